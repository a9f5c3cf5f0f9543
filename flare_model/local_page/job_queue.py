"""A queue of computations, run one at a time on a daemon thread while the server answers other requests."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

from lpbf_data.errors import LpbfError

T = TypeVar("T")

MAX_JOBS: Final = 8
"""Parts that are received, wait or are computed at a time; further ones are refused with a request to retry."""


class QueueFullError(LpbfError):
    """Too many parts wait already."""


class ClientGoneError(LpbfError):
    """The client has disconnected."""


class JobQueue:
    """Runs computations one after the other, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.num_jobs = 0
        self._lock = asyncio.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # A daemon thread: a server that is stopped in the middle of a part doesn't wait for it.
        threading.Thread(target=self._work, name="computations", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """A slot in the queue, taken before a file is received.

        Raises:
            QueueFullError: If all slots are taken.
        """
        if self.num_jobs >= MAX_JOBS:
            raise QueueFullError(f"{MAX_JOBS} parts wait to be computed already; send this one again in a minute")
        self.num_jobs += 1
        try:
            yield
        finally:
            self.num_jobs -= 1

    async def run(self, work: Callable[[], T], client_left: Callable[[], Awaitable[bool]]) -> T:
        """Wait for the computation's turn, run it, and return its result or raise its error.

        Args:
            work: The computation.
            client_left: Tells whether the client has disconnected.

        Raises:
            ClientGoneError: If the client has disconnected before its turn.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            if await client_left():
                raise ClientGoneError("nobody waits for this part any more")
            done: asyncio.Future[T] = loop.create_future()

            def resolve(set_it: Callable[[Any], None], value: Any) -> None:
                with contextlib.suppress(asyncio.InvalidStateError):  # the client is gone
                    set_it(value)

            def job() -> None:
                outcome: tuple[Callable[[Any], None], Any]
                try:
                    outcome = done.set_result, work()
                except BaseException as error:  # noqa: BLE001 (raised where the result is awaited)
                    outcome = done.set_exception, error
                with contextlib.suppress(RuntimeError):  # the server is gone
                    loop.call_soon_threadsafe(resolve, *outcome)

            self._jobs.put(job)
            return await done
