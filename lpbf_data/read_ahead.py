"""Take from an iterator in a thread, so that the next value is there when it is asked for."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

_END: Final = object()
_PATIENCE: Final = 0.1


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
        self._ready: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source, finish), name="lpbf-read-ahead", daemon=True)
        self._thread.start()

    def _run(self, source: Iterator[T], finish: Callable[[T], T] | None) -> None:
        try:
            for value in source:
                if not self._offer((value if finish is None else finish(value), None)):
                    return
            self._offer((_END, None))
        except BaseException as error:  # noqa: BLE001 (it is raised where the values are taken)
            self._offer((_END, error))
        finally:
            with contextlib.suppress(AttributeError):
                source.close()  # type: ignore[attr-defined]

    def _offer(self, item: tuple[Any, BaseException | None]) -> bool:
        """Wait for room; whether anybody still wants values."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=_PATIENCE)
                return True
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        started = time.perf_counter()
        value, error = self._ready.get()
        self.seconds_waiting += time.perf_counter() - started
        if error is not None:
            raise error
        if value is _END:
            self._ready.put((_END, None))
            raise StopIteration
        return value  # type: ignore[no-any-return]

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
