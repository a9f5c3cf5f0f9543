"""Runs kernels on as many threads as PyTorch has."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import torch
from torch import Tensor

_BLOCKS: Final = 8
"""Blocks of items for each thread, so that none waits long for the others on a busy processor."""

Work = Callable[[Tensor, int, int], None]
"""Called with scratch memory of its own, the first item of a block, and the block's end."""

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_workers = 0


def run(work: Work, items: int, make_scratch: Callable[[], Tensor]) -> None:
    """Compute all items, by blocks that threads take one after the other; this thread is one of them.

    Args:
        work: Computes a block of items. What it computes for an item must depend on no other: then results don't depend
            on the number of threads.
        items: Their number.
        make_scratch: Makes what each thread needs to work with.
    """
    threads = min(torch.get_num_threads(), items)
    if threads <= 1:
        work(make_scratch(), 0, items)
        return
    blocks = min(items, threads * _BLOCKS)
    numbers = itertools.count()
    scratch = [make_scratch() for _ in range(threads)]
    stop = threading.Event()

    def take_blocks(thread: int) -> None:
        while not stop.is_set() and (block := next(numbers)) < blocks:
            work(scratch[thread], items * block // blocks, items * (block + 1) // blocks)

    others = _submit(take_blocks, threads - 1)
    try:
        take_blocks(0)
    except BaseException:  # Ctrl-C, say
        stop.set()
        raise
    finally:
        for other in others:
            other.result()


def _submit(take_blocks: Callable[[int], None], workers: int) -> list[Future[None]]:
    """Let so many workers, from 1 on, take blocks; fewer where Python is ending, which starts no threads any more."""
    submitted: list[Future[None]] = []
    with contextlib.suppress(RuntimeError):
        pool = _executor(workers)
        for thread in range(1, workers + 1):
            submitted.append(pool.submit(take_blocks, thread))  # noqa: PERF401 (those before a refusal stay)
    return submitted


def _executor(workers: int) -> ThreadPoolExecutor:
    """The pool, with at least so many workers."""
    global _pool, _workers
    with _lock:
        if _pool is None or _workers < workers:
            _pool, _workers = ThreadPoolExecutor(workers, thread_name_prefix="flare_model"), workers
        return _pool


def _forget() -> None:
    """After a fork the child has the pool's object, but none of its threads."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
