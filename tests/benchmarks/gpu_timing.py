"""Timing on a GPU, and what it is, for the JSON of the gpu benchmarks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import torch


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Have the GPU alone: benchmarks may compile side by side, but they measure one after the other.

    Holds for processes that share the lock file that GPU_LOCK names; without it, this does nothing. It can't be nested.
    """
    name = os.environ.get("GPU_LOCK")
    if not name:
        yield
        return
    torch.cuda.empty_cache()  # While this waits, others may need the memory.
    with open(name, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


def milliseconds(function: Callable[[], Any], budget: float = 150.0, most: int = 20, calls: int = 4) -> float:
    """Median time of a call by events on the device, after warming up.

    Calls are timed several at a time, so that the device does not wait for the host to launch the first kernel.

    Args:
        function: What to time.
        budget: Milliseconds to spend, about.
        most: Most repetitions.
        calls: Calls between two events.
    """
    function()
    torch.cuda.synchronize()
    first = _once(function, calls)
    count = max(2, min(most, int(budget / calls / max(first, 1e-3))))
    return statistics.median(_once(function, calls) for _ in range(count))


def _once(function: Callable[[], Any], calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / calls


def peak_gib(function: Callable[[], Any]) -> float:
    """Most memory that tensors take during a call, GiB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def describe_gpu() -> dict[str, Any]:
    """Name, clocks, driver and versions."""
    import triton

    fields = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu")
    answer = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return {
        **dict(zip(fields, (part.strip() for part in answer.splitlines()[0].split(",")), strict=True)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }
