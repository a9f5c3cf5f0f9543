"""Workers of this machine that hold tasks and yet do nothing: found, told with where they stand, and started anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from lpbf_data.console import say

if TYPE_CHECKING:
    from distributed import Client

_IDLE: Final = 15.0  # percent of a core: waiting for messages takes up to 6; on a full machine computing gets as little
_TIME_TO_RESTART: Final = 60.0  # seconds; a worker that doesn't listen is killed long before


class IdleWorkers:
    """Looks for workers that do nothing though tasks wait for them, and starts them anew.

    A case that is computed keeps a core busy. A worker that has used next to none for long, and has stood at the same
    line all the time, hangs (in a lock of a library, say), or its task was lost between it and the scheduler; either
    way the run would wait for ever. Tasks of a worker that is started anew go back to the scheduler.

    Args:
        client: Client of a cluster whose workers are watched over by nannies.
        limit: Seconds without work after which a worker is started anew; twice as many each time, so that work that
            only looks idle ends at last.
        clock: Seconds that only grow.
    """

    def __init__(self, client: Client, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._client: Any = client  # its methods that are used here have no types
        self._limit = limit
        self._clock = clock
        self._idle: dict[str, tuple[float, str]] = {}  # address to the time since when, and where it stands

    def look(self) -> tuple[str, ...]:
        """Look once, while tasks wait; returns the addresses of the workers that were started anew."""
        now = self._clock()
        workers: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        holders = {address for address, keys in self._client.processing().items() if keys} or set(workers)
        idle = [a for a in holders if a in workers and workers[a]["metrics"]["cpu"] < _IDLE]
        stands = self._where(idle) if idle else {}
        self._idle = {
            a: self._idle[a] if a in self._idle and self._idle[a][1] == stands[a] else (now, stands[a]) for a in idle
        }
        hanging = tuple(sorted(a for a, (since, _) in self._idle.items() if now - since >= self._limit))
        if hanging:
            self._restart(hanging)
        return hanging

    def _where(self, addresses: Sequence[str]) -> dict[str, str]:
        """The innermost lines that tasks of each worker stand at; empty where none runs."""
        stacks = self._client.call_stack() or {}
        innermost = {a: [frames[-1] for frames in stacks.get(a, {}).values() if frames] for a in addresses}
        return {a: "; ".join(" ".join(line.split()) for line in lines) for a, lines in innermost.items()}

    def _restart(self, addresses: tuple[str, ...]) -> None:
        lines = "; ".join(line for line in (self._idle[a][1] for a in addresses) if line)
        several = len(addresses) > 1
        say(
            f"{len(addresses)} worker{'s' if several else ''} did nothing for {self._limit:.0f} s and "
            f"{'are' if several else 'is'} started anew{f' (last seen in {lines})' if lines else ''}; no case is lost"
        )
        self._client.restart_workers([*addresses], timeout=_TIME_TO_RESTART, raise_for_error=False)
        self._idle.clear()
        self._limit *= 2
