"""Which of several training processes this is, and what their seeds may be."""

from __future__ import annotations

import operator
import os
import sys
import warnings
from types import FrameType
from typing import Any, Final

import torch

from lpbf_data.errors import UsageError

_WRAPPER_CLASSES: Final = frozenset({"BatchSamplerShard", "DataLoaderDispatcher", "IterableDatasetShard"})
"""Classes that share out among processes what they iterate over."""

_WRAPPER_PACKAGES: Final = ("accelerate.", "transformers.")
"""Whose classes these are; transformers has some of the same names."""


class RanksWarning(UserWarning):
    """Several processes were started together, and each serves all cases."""


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


def shared_by_wrapper() -> bool:
    """Whether this is called by a wrapper that shares out what it takes, so that all of it must be given.

    `accelerator.prepare` puts such wrappers around a data set without notice to it. But they call it: their methods are
    on the call stack, also in workers that were forked from such a call.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        within = frame.f_code.co_qualname.partition(".")[0] in _WRAPPER_CLASSES
        if within and str(frame.f_globals.get("__name__", "")).startswith(_WRAPPER_PACKAGES):
            return True
        frame = frame.f_back
    return False


def effective_rank(ranks: tuple[int, int] | None) -> tuple[int, int]:
    """Rank and number of ranks for which to serve: 0 of 1 where a wrapper such as accelerate's shares out the cases.

    Args:
        ranks: Rank and number of ranks that the user gave; None for those of the process group.

    Raises:
        UsageError: If the user gave several ranks and a wrapper shares out the cases, too.
    """
    if not shared_by_wrapper():
        return ranks or rank_of_process()
    if ranks is not None and ranks[1] > 1:
        raise UsageError(
            f"cases would be shared out twice: accelerate does, and rank={ranks[0]} of world_size={ranks[1]} was asked "
            "for; leave both out, or don't give the loader to accelerator.prepare"
        )
    return 0, 1


def processes_started() -> int:
    """How many processes torchrun or srun started together with this one; 1 where neither did.

    `sbatch --ntasks=8` alone starts one process, whatever SLURM_NTASKS says.
    """
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        number = os.environ.get(name, "")
        if number.isascii() and number.isdigit() and int(number) > 1:
            return int(number)
    return 1


def warn_of_missing_group(ranks: tuple[int, int]) -> None:
    """Tell when each of several processes is about to serve all cases, because none knows of the others.

    Args:
        ranks: Rank and number of ranks that are about to be served, from the process group.
    """
    worker = torch.utils.data.get_worker_info()
    started = processes_started()
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    if ranks[1] > 1 or started == 1 or grouped or (worker is not None and worker.id):
        return
    warnings.warn(
        f"{started} processes were started together, but there is no process group: each of them serves all cases. To "
        "share them out, call torch.distributed.init_process_group first, or give rank and world_size (0 and 1 if this "
        "is meant)",
        RanksWarning,
        stacklevel=3,
    )
