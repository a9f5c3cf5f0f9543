"""Which case ended its worker process: a journal of the case of a group that is being read.

In a worker that is started anew, by a nanny or by the command, a case that hangs is ended with its process once its
time is up; one that crashes its process ends it by itself. The next process that takes the group reads the journal, and
sets a case aside that ran out of time once or killed two processes. Any other process is its user's and stays: there a
case works in a thread of its own, which is given up once its time is up. Native code that keeps the interpreter to
itself can't be given up so; such a worker is ended by a watchdog that needs no interpreter.
"""

from __future__ import annotations

import ctypes
import faulthandler
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from lpbf_data.errors import CaseError, FailureReason
from pipelines.building.case_process import is_replaceable

MAX_KILLS: Final = 2
"""Processes that may end while they work on a case before it is set aside."""

_GRACE: Final = 1.0  # seconds after which the watchdog without an interpreter ends what the timer couldn't
_TIMEOUT: Final = "Timeout ("  # how the report of that watchdog, faulthandler, begins in the journal
_EXIT_STATUS: Final = 75  # EX_TEMPFAIL; the process is started again by its nanny

Result = TypeVar("Result")


class _GivenUpError(BaseException):
    """Ends Python code in a thread whose result isn't waited for any more."""


def has_nanny() -> bool:
    """Whether this process is a worker that is started anew when it ends."""
    if is_replaceable():
        return True
    if "distributed.worker" not in sys.modules:
        return False
    from distributed import get_worker

    try:
        return bool(get_worker().nanny)
    except ValueError:  # no worker at all
        return False


def run_within(seconds: float, function: Callable[[], Result]) -> Result:
    """The result of a function that may hang.

    It works in a thread of its own. One that is late is told to stop, which Python code obeys; what waits for a disk
    that doesn't answer stays behind, and doesn't hold the process at its end.

    Args:
        seconds: Time that it may take.
        function: What to do.

    Raises:
        CaseError: If it takes longer.
        BaseException: Whatever the function raises.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 (raised again by the caller)
            errors.append(error)

    thread = threading.Thread(target=work, name="case", daemon=True)
    thread.start()
    thread.join(None if math.isinf(seconds) else min(seconds, threading.TIMEOUT_MAX))
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_GivenUpError))
        raise _too_late(seconds)
    if errors:
        raise errors[0]
    return results[0]


def _too_late(seconds: float) -> CaseError:
    return CaseError(FailureReason.TIME_LIMIT, f"reading and measuring it took more than {seconds:g} s")


class Attempts:
    """The journal of one group, one word and a number per line: `run`, `start <case>`, `limit <case>`.

    Args:
        path: The journal.
        time_limit: Seconds that a case may take.
    """

    def __init__(self, path: Path, time_limit: float) -> None:
        self._path = path
        self._time_limit = time_limit
        self._kills, self._limits = self._read()
        self._write("run")

    def _write(self, line: str) -> None:
        with self._path.open("a", encoding="ascii") as journal:
            journal.write(f"{line}\n")

    def _read(self) -> tuple[dict[int, int], set[int]]:
        """How many processes each case killed, and which ran out of time."""
        kills: dict[int, int] = {}
        limits: set[int] = set()
        text = self._path.read_text(encoding="ascii", errors="replace") if self._path.exists() else ""
        last: int | None = None
        for line in (*text.splitlines(), "run"):
            word, _, number = line.partition(" ")
            if line == "run" and last is not None:
                kills[last], last = kills.get(last, 0) + 1, None
            elif word == "start" and number.isdecimal():
                last = int(number)
            elif word == "limit" and number.isdecimal():
                limits.add(int(number))
            elif line.startswith(_TIMEOUT) and last is not None:
                limits.add(last)
        return kills, limits

    def run(self, index: int, function: Callable[[], Result]) -> Result:
        """Work on a case, for as long as it may take.

        Args:
            index: Its number in the group.
            function: The work.

        Raises:
            CaseError: If it takes too long, or took too long before, or too many processes ended in it.
        """
        if has_nanny():
            with self.at(index):
                return function()
        self._begin(index)
        try:
            return run_within(self._time_limit, function)
        except CaseError as error:
            if error.reason is FailureReason.TIME_LIMIT:
                self._write(f"limit {index}")
            raise

    @contextmanager
    def at(self, index: int) -> Iterator[None]:
        """Work on a case in a process that ends with it when it takes too long.

        Args:
            index: Its number in the group.

        Raises:
            CaseError: If it took too long before, or too many processes ended in it.
        """
        self._begin(index)
        watch = threading.Timer(min(self._time_limit, threading.TIMEOUT_MAX), self._give_up, [index])
        watch.daemon = True
        watch.start()
        try:
            with self._native_watchdog():
                yield
        finally:
            watch.cancel()

    @contextmanager
    def _native_watchdog(self) -> Iterator[None]:
        """End the process where native code keeps the interpreter, so that no thread can."""
        if self._time_limit + _GRACE > threading.TIMEOUT_MAX:
            yield
            return
        with self._path.open("a", encoding="ascii") as journal:
            faulthandler.dump_traceback_later(self._time_limit + _GRACE, exit=True, file=journal)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()

    def _begin(self, index: int) -> None:
        if index in self._limits:
            raise _too_late(self._time_limit)
        if self._kills.get(index, 0) >= MAX_KILLS:
            detail = f"{MAX_KILLS} worker processes ended while they worked on it"
            raise CaseError(FailureReason.WORKER_KILLED, detail)
        self._write(f"start {index}")

    def _give_up(self, index: int) -> None:
        self._write(f"limit {index}")
        os._exit(_EXIT_STATUS)
