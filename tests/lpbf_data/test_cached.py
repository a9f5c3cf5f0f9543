"""Properties that are computed once: the same as those of functools, and safe to fork beside."""

from __future__ import annotations

import multiprocessing
import threading

import pytest

from lpbf_data.cached_property import cached_property
from lpbf_data.stores import zarr_parts as zarr_store


class Slow:
    """Computes its value when it is let."""

    def __init__(self, let: threading.Event) -> None:
        self.let, self.times = let, 0

    @cached_property
    def value(self) -> int:
        """Computed once."""
        self.let.wait(30)
        self.times += 1
        return 7 * self.times


def _read_another() -> None:
    let = threading.Event()
    let.set()
    assert Slow(let).value == 7
    with zarr_store._settings({}):
        pass


def test_it_is_computed_once() -> None:
    let = threading.Event()
    let.set()
    slow = Slow(let)
    assert (slow.value, slow.value) == (7, 7)
    assert Slow.value.__doc__ == "Computed once."


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system doesn't fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_worker_forked_while_a_thread_computes_does_not_wait_for_it() -> None:
    let = threading.Event()

    def hold() -> None:
        with zarr_store._settings({}):
            assert Slow(let).value == 7

    thread = threading.Thread(target=hold)
    thread.start()
    worker = multiprocessing.get_context("fork").Process(target=_read_another)
    worker.start()
    worker.join(20)
    hangs = worker.is_alive()
    if hangs:
        worker.kill()
    let.set()
    thread.join()
    assert not hangs
    assert worker.exitcode == 0
