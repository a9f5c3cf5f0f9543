"""Computations one after the other, on a thread that ends with the process; the page is answered meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

from lpbf_data.errors import LpbfError

T = TypeVar("T")

MOST_WAITING: Final = 8
"""Parts that are received, wait or are computed; who comes then is told to come again."""


class FullError(LpbfError):
    """Too many parts wait already."""


class GoneError(LpbfError):
    """Whoever asked has left."""


class OneAtATime:
    """Runs computations one after the other, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.places = 0
        self._lock = asyncio.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Of a daemon nobody waits for the end: a server that is told to stop in the middle of a part stops.
        threading.Thread(target=self._work, name="computations", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, taken before a file is received.

        Raises:
            FullError: If all are taken.
        """
        if self.places >= MOST_WAITING:
            raise FullError(f"{MOST_WAITING} parts wait to be computed already; send this one again in a minute")
        self.places += 1
        try:
            yield
        finally:
            self.places -= 1

    async def run(self, work: Callable[[], T], gone: Callable[[], Awaitable[bool]]) -> T:
        """What a computation returns, or raises, when it is its turn.

        Args:
            work: The computation.
            gone: Whether whoever asked has left meanwhile.

        Raises:
            GoneError: If so.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            if await gone():
                raise GoneError("nobody waits for this part any more")
            done: asyncio.Future[T] = loop.create_future()

            def tell(set_it: Callable[[Any], None], value: Any) -> None:
                with contextlib.suppress(asyncio.InvalidStateError):  # nobody waits any more
                    set_it(value)

            def job() -> None:
                said: tuple[Callable[[Any], None], Any]
                try:
                    said = done.set_result, work()
                except BaseException as error:  # noqa: BLE001 (whoever asked gets it)
                    said = done.set_exception, error
                with contextlib.suppress(RuntimeError):  # the server is gone
                    loop.call_soon_threadsafe(tell, *said)

            self._jobs.put(job)
            return await done
