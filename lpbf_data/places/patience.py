"""Requests that are repeated: a server that is busy, or a connection that breaks, may serve the next one.

The limit is the same everywhere: `TRIES` requests, and `LONGEST_WAIT` seconds between them in all. Between two requests
passes what the server asks for (`Retry-After`, or the reset of its `RateLimit`), else a pause that doubles every time.
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

TRIES: Final = 7
LONGEST_WAIT: Final = 300.0
"""Seconds; the window in which the hub counts requests."""

TEMPORARY: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Answers after which the same request may succeed."""

_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 8.0
_TOLD_PAUSE: Final = 5.0  # a longer one is told while it passes
_RESET: Final = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")


class WaitingWarning(UserWarning):
    """A server asks for a pause that is long enough to wonder about."""


class OutOfPatienceError(Exception):
    """A request failed as often as it is repeated.

    Attributes:
        last: Why, the last time.
        story: Why, how often, and over how long, for people.
    """

    def __init__(self, last: Exception, tries: int, waited: float, asked: float | None) -> None:
        self.last = last
        status = status_of(last)
        said = _innermost(last) if status is None else f"the server answers {status} {_phrase(status)}"
        times = "once" if tries == 1 else f"{tries} times in {waited:.0f} s"
        self.story = f"{said}, {times}" + (f", and asks to wait {asked:.0f} s more" if asked else "")
        super().__init__(self.story)

    @property
    def cure(self) -> str:
        """What helps."""
        if status_of(self.last) == HTTPStatus.TOO_MANY_REQUESTS:
            return "wait some minutes; a token, or fewer workers, may help"
        return "try again later"


def patiently(action: Callable[[], T], place: str, temporary: Callable[[Exception], bool]) -> T:
    """Do something, again after a pause where it fails in a way that may pass.

    Args:
        action: One request.
        place: Who is asked, for people.
        temporary: Whether an error may pass; others are raised as they are.

    Raises:
        OutOfPatienceError: If it failed too often, or the server asks for a pause that is too long.
    """
    waited, growing = 0.0, _FIRST_PAUSE
    for number in range(1, TRIES + 1):
        try:
            return action()
        except Exception as error:
            if not temporary(error):
                raise
            asked = pause_asked_for(error)
            pause = max(asked or 0.0, growing)
            if number == TRIES or waited + pause > LONGEST_WAIT:
                raise OutOfPatienceError(error, number, waited, asked) from error
        if asked is not None and asked >= _TOLD_PAUSE:
            warnings.warn(f"{place} asks to wait {pause:.0f} s", WaitingWarning, stacklevel=2)
        time.sleep(pause)
        waited, growing = waited + pause, min(2 * growing, _LONGEST_PAUSE)
    raise AssertionError  # the last try returns or raises


def status_of(error: BaseException) -> int | None:
    """The status that a server answered, from the errors of httpx, aiohttp and botocore; None without an answer."""
    response = getattr(error, "response", None)
    for place, name in ((response, "status_code"), (error, "status"), (error, "status_code")):
        if isinstance(found := getattr(place, name, None), int):
            return found
    if isinstance(response, Mapping):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    return None


def pause_asked_for(error: BaseException) -> float | None:
    """Seconds that a server asks to wait; None where it doesn't say."""
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
