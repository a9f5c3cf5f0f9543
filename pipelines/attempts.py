"""Who killed the worker: a journal of which case of a group is at work.

A case that hangs is ended with its process once its time is up; one that crashes its process ends it by itself. The
next process that takes the group reads the journal, and sets a case aside that ran out of time once or killed two
processes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lpbf_data.errors import CaseError, FailureReason

MAX_KILLS: Final = 2
"""Processes that a case may take with it before it is set aside."""

_EXIT_STATUS: Final = 75  # EX_TEMPFAIL; the process is started again by its nanny


class Attempts:
    """The journal of one group, one word and a number a line: `run`, `start <case>`, `limit <case>`.

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
        text = self._path.read_text(encoding="ascii") if self._path.exists() else ""
        for run in text.split("run\n"):
            words = [line.split() for line in run.splitlines()]
            limits |= {int(word[1]) for word in words if len(word) == 2 and word[0] == "limit"}
            starts = [int(word[1]) for word in words if len(word) == 2 and word[0] == "start"]
            if starts:
                kills[starts[-1]] = kills.get(starts[-1], 0) + 1
        return kills, limits

    @contextmanager
    def at(self, index: int) -> Iterator[None]:
        """Work on a case.

        Args:
            index: Its number in the group.

        Raises:
            CaseError: If it took too long, or too many processes with it, before.
        """
        if index in self._limits:
            detail = f"reading and measuring it took more than {self._time_limit:g} s"
            raise CaseError(FailureReason.TIME_LIMIT, detail)
        if self._kills.get(index, 0) >= MAX_KILLS:
            detail = f"it took {MAX_KILLS} worker processes with it"
            raise CaseError(FailureReason.WORKER_KILLED, detail)
        self._write(f"start {index}")
        watch = threading.Timer(self._time_limit, self._give_up, [index])
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def _give_up(self, index: int) -> None:
        self._write(f"limit {index}")
        os._exit(_EXIT_STATUS)
