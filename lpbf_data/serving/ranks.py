"""Which of several training processes this is, and what their seeds may be."""

from __future__ import annotations

import operator
from typing import Any

import torch

from lpbf_data.errors import UsageError


def check_rank(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Rank and number of ranks where they are given; None where the process group is to be asked.

    Raises:
        UsageError: If only one is given, or the rank is out of range.
    """
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        raise UsageError("give both rank and world_size, or neither")
    if not 0 <= rank < world_size:
        raise UsageError(f"rank={rank} must lie between 0 and world_size - 1 = {world_size - 1}")
    return rank, world_size


def check_seed(seed: Any) -> int:
    """A seed as a plain number, so that positions that hold it can be saved as JSON.

    Args:
        seed: A whole number of any kind, NumPy's too.

    Raises:
        UsageError: If it is none, or negative.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise UsageError(f"seed={seed!r} must be a whole number, 0 or more")
    return number


def rank_of_process() -> tuple[int, int]:
    """Rank and number of ranks as torch.distributed says; 0 of 1 where there is no process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
