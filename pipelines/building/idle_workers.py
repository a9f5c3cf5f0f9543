"""Workers of this machine that all do nothing though tasks wait: found by their processor time, and started anew."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from lpbf_data.console import say

if TYPE_CHECKING:
    from distributed import Client

_SHARE: Final = 0.15  # of a core: waiting for messages takes up to 0.06
_BURST: Final = 0.5  # seconds of processor time that waiting takes at once, when Python collects garbage, say
_MAX_GAP: Final = 30.0  # seconds between two looks; after more, nobody knows what happened meanwhile
_TIME_TO_ANSWER: Final = 5.0  # seconds within which workers tell where they stand; those that hang may never do


def _waited(pid: int) -> float:
    """Seconds that the threads of a process could have worked, but had no processor, as on a machine that is too busy.

    Linux counts them in `/proc/<pid>/task/<tid>/schedstat`
    (https://docs.kernel.org/scheduler/sched-stats.html, the second number, in nanoseconds); elsewhere they are 0.
    """
    waited = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended, or the kernel counts nothing
            waited += int(thread.read_text(encoding="ascii").split()[1])
    return waited / 1e9


class WorkerProcesses:
    """The processes of the workers of a cluster of this machine.

    Args:
        client: Its client; nannies start a worker anew that ends.
    """

    def __init__(self, client: Client) -> None:
        self._client: Any = client  # its methods that are used here have no types

    def cpu_seconds(self) -> dict[int, float]:
        """Number of each process to the processor time that it has used or, on Linux, has waited for, seconds."""
        used = {}
        for process in self._running():
            with contextlib.suppress(psutil.Error):  # it is just ending
                used[process.pid] = sum(process.cpu_times()[:2]) + _waited(process.pid)
        return used

    def any_alive(self) -> bool:
        """Whether there is one, which may not have joined the scheduler yet."""
        return next(self._running(), None) is not None

    def kill(self) -> None:
        """End them at once: one that hangs may listen to nothing else."""
        for process in self._running():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _running(self) -> Iterator[psutil.Process]:
        for nanny in self._client.cluster.workers.values():
            try:
                process = psutil.Process(nanny.pid) if nanny.pid is not None else None
            except psutil.Error:
                process = None
            if process is not None:
                yield process


class IdleWorkers:
    """Looks whether all workers do nothing though tasks wait for them, and starts them anew.

    A case that is computed keeps a core busy, or waits for one. Where no worker has used processor time for long and no
    result has come, a worker hangs (in a lock of a library, say) or Dask has lost a task, and the run would wait for
    ever. Tasks of workers that are started anew go back to the scheduler. As long as others work nothing is done, so
    nothing is lost.

    Args:
        client: Client of a cluster of this machine, whose workers are started anew by nannies.
        limit: Seconds without work after which workers are started anew; twice as many the next time, until a result
            has come, so that work that only looks idle ends at last.
        processes: The workers' processes; those of the client's cluster by default.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        client: Client,
        limit: float,
        processes: WorkerProcesses | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client: Any = client  # its methods that are used here have no types
        self._first_limit = self._limit = limit
        self._processes = processes or WorkerProcesses(client)
        self._clock = clock
        self._idle_since: float | None = None
        self._used: Mapping[int, float] = {}
        self._looked = -float("inf")

    def result_came(self) -> None:
        """Note that a task is finished."""
        self._idle_since, self._limit = None, self._first_limit

    def look(self) -> bool:
        """Look once, while tasks wait; returns whether workers were started anew."""
        now, used = self._clock(), self._processes.cpu_seconds()
        gap, self._looked = now - self._looked, now
        if self._idle_since is None or gap > _MAX_GAP or self._is_busy(used, now - self._idle_since):
            self._idle_since, self._used = now, used
            return False
        if now - self._idle_since < self._limit:
            return False
        self._restart()
        self._idle_since, self._limit = None, 2 * self._limit
        return True

    def _is_busy(self, used: Mapping[int, float], seconds: float) -> bool:
        """Whether a worker has worked since the first look, or is another one than then."""
        allowed = _BURST + _SHARE * seconds
        return used.keys() != self._used.keys() or any(used[pid] - self._used[pid] > allowed for pid in used)

    def _restart(self) -> None:
        where = self._where()
        say(
            f"the workers did nothing for {self._limit:.0f} s and are started anew"
            f"{f' (last seen in {where})' if where else ''}; no case is lost"
        )
        self._processes.kill()

    def _where(self) -> str:
        """The innermost lines that tasks stand at, as far as workers tell."""
        try:
            answer = self._client.sync(self._client.scheduler.call_stack, keys=None, callback_timeout=_TIME_TO_ANSWER)
        except (OSError, TimeoutError, KeyError):
            return ""
        stacks = [frames for of_worker in (answer or {}).values() for frames in of_worker.values() if frames]
        return "; ".join(sorted({" ".join(frames[-1].split()) for frames in stacks}))
