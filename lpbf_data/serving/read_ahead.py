"""`ReadAhead`: takes values from an iterator in a thread, ahead of the caller."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Generic, TypeVar

T = TypeVar("T")

JOIN_TIMEOUT: Final = 60.0
"""Seconds that the end of an epoch waits for the thread to end."""


class ReadAhead(Generic[T]):
    """An iterator over the values of another one, which a thread takes some steps ahead.

    Args:
        source: The other iterator; only the thread touches it, and closes it in the end.
        depth: Values to have ready.
        finish: Applied to each value in the thread.

    Attributes:
        seconds_waiting: Time that the caller spent waiting for values.
    """

    def __init__(self, source: Iterator[T], depth: int, finish: Callable[[T], T] | None = None) -> None:
        self.seconds_waiting = 0.0
        self._depth = depth
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._ended = self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(source, finish), name="lpbf-read-ahead", daemon=True)
        self._thread.start()

    def _run(self, source: Iterator[T], finish: Callable[[T], T] | None) -> None:
        try:
            for value in source:
                if not self._offer(value if finish is None else finish(value)):
                    break
        except BaseException as error:  # noqa: BLE001 (it is raised again where the values are taken)
            self._error = error
        finally:
            with contextlib.suppress(AttributeError):
                source.close()  # type: ignore[attr-defined]
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _offer(self, value: T) -> bool:
        """Put a value where the caller finds it, once there is room; whether anybody still wants values."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._depth or self._stopped)
            self._ready.append(value)
            self._changed.notify_all()
            return not self._stopped

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        started = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            self.seconds_waiting += time.perf_counter() - started
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
            # Nothing may hold the error here: its traceback holds the source, whose workers should end with it.
            error, self._error = self._error, None
            try:
                raise StopIteration if error is None else error
            finally:
                del error

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take nothing more, and wait until the thread has let go of the other iterator."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(JOIN_TIMEOUT)
        if self._thread.is_alive():
            warnings.warn(
                f"what reads ahead has not ended within {JOIN_TIMEOUT:g} s and is left to itself: a worker or the "
                "storage hangs",
                RuntimeWarning,
                stacklevel=2,
            )
