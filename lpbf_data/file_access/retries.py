"""Retries with exponential backoff, for requests that fail in a transient way: a busy server, a broken connection.

The limits are the same everywhere: `MAX_ATTEMPTS` requests, and `MAX_WAIT` seconds of pauses in all. A pause is as long
as the server asks for (`Retry-After`, or the reset of its `RateLimit`), else twice as long as the one before.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar

T = TypeVar("T")

MAX_ATTEMPTS: Final = 7
MAX_WAIT: Final = 300.0
"""Seconds of all pauses together; the window in which the hub counts requests."""

TRANSIENT_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same request may succeed."""

_FIRST_PAUSE: Final = 0.25
_MAX_PAUSE: Final = 8.0
_WARNED_PAUSE: Final = 5.0  # seconds; a longer pause is announced by a WaitingWarning
_RESET: Final = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")


class WaitingWarning(UserWarning):
    """A server asks for a pause of 5 s or more."""


class RetriesExhaustedError(Exception):
    """Every attempt at a request failed.

    Attributes:
        last: The error of the last attempt.
        summary: That error, the number of attempts and their duration, for the message to the user.
    """

    def __init__(self, last: Exception, attempts: int, waited: float, requested: float | None) -> None:
        self.last = last
        status = status_of(last)
        said = _innermost(last) if status is None else f"the server answers {status} {_phrase(status)}"
        times = "once" if attempts == 1 else f"{attempts} times in {waited:.0f} s"
        self.summary = f"{said}, {times}" + (f", and asks to wait {requested:.0f} s more" if requested else "")
        super().__init__(self.summary)

    @property
    def advice(self) -> str:
        """What the user can do."""
        if status_of(self.last) == HTTPStatus.TOO_MANY_REQUESTS:
            return "wait some minutes; a token, or fewer workers, may help"
        return "try again later"


def retry(action: Callable[[], T], server: str, is_transient: Callable[[Exception], bool]) -> T:
    """Run a request, and repeat it after a pause while it fails in a transient way.

    Args:
        action: One request.
        server: Name of the server, for warnings.
        is_transient: Whether the same request may succeed after an error; any other error is raised as it is.

    Returns:
        What the action returns.

    Raises:
        RetriesExhaustedError: If every attempt failed, or the server asks for a pause beyond `MAX_WAIT`.
    """
    waited, growing = 0.0, _FIRST_PAUSE
    for number in range(1, MAX_ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            requested = requested_pause(error)
            pause = max(requested or 0.0, growing)
            if number == MAX_ATTEMPTS or waited + pause > MAX_WAIT:
                raise RetriesExhaustedError(error, number, waited, requested) from error
        if requested is not None and requested >= _WARNED_PAUSE:
            warnings.warn(f"{server} asks to wait {pause:.0f} s", WaitingWarning, stacklevel=2)
        time.sleep(pause)
        waited, growing = waited + pause, min(2 * growing, _MAX_PAUSE)
    raise AssertionError  # the last attempt returns or raises


def status_of(error: BaseException) -> int | None:
    """HTTP status of the response behind an error of httpx, aiohttp or botocore; None without a response."""
    response = getattr(error, "response", None)
    for holder, name in ((response, "status_code"), (error, "status"), (error, "status_code")):
        if isinstance(found := getattr(holder, name, None), int):
            return found
    if isinstance(response, Mapping):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    return None


def requested_pause(error: BaseException) -> float | None:
    """Seconds that the response behind an error asks to wait; None where it doesn't say."""
    response: Any = getattr(error, "response", None)
    headers = getattr(response, "headers", None) or getattr(error, "headers", None)
    if isinstance(response, Mapping):
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
    if not isinstance(headers, Mapping):
        return None
    given = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    if (value := given.get("retry-after")) is not None:
        return _seconds_of(value)
    reset = _RESET.search(given.get("ratelimit", ""))
    return float(reset[1]) if reset else None


def _seconds_of(value: str) -> float | None:
    """`Retry-After` is a number of seconds, or a date."""
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    then = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
    return max((then - datetime.now(UTC)).total_seconds(), 0.0)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = f"{type(error).__name__}: {error}".splitlines()
    return lines[0].removesuffix(": ")
