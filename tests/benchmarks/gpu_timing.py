"""Timing and peak memory of calls on a GPU, and a description of the GPU for results; not a command."""

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
    """Wait for a lock on the GPU: benchmarks may compile at the same time, but measure one after the other.

    The lock holds among processes whose variable GPU_LOCK names the same file; without that variable this does nothing.
    It can't be nested.
    """
    name = os.environ.get("GPU_LOCK")
    if not name:
        yield
        return
    torch.cuda.empty_cache()  # Another process may need this memory meanwhile.
    with open(name, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


def milliseconds(function: Callable[[], Any], budget: float = 150.0, most: int = 20, calls: int = 4) -> float:
    """Median time of a call, by events on the device, after one call that isn't counted.

    Calls are timed several at a time, so that the device does not wait for the host to launch the first kernel.

    Args:
        function: The call to time.
        budget: About how many milliseconds to spend.
        most: Largest number of repetitions.
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
    """Peak memory of all tensors during a call, GiB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def describe_gpu() -> dict[str, Any]:
    """Name, clocks, driver and versions of the first GPU."""
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
