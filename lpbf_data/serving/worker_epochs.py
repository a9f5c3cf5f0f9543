"""Shared record of the epochs that DataLoader workers have served, so that new workers serve the next one.

A DataLoader without `persistent_workers` starts new processes for each epoch. Each gets a copy of the parent's stream,
and the parent's own copy never advances: every epoch would be the first. So each worker records, in memory that all
copies share, which epoch it served and in which iteration of the DataLoader; the worker with the same number in the
next iteration reads the record and serves the epoch after it.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any, Final

import torch
from torch import Tensor

_WORKERS: Final = 1024
_EPOCHS: Final = 1 << 24


def _tag(number: int, bits: int) -> int:
    """A number's hash of some bits, never 0."""
    return (number * 0x9E3779B97F4A7C15 % (1 << 64) >> (64 - bits)) or 1


def _zeros(count: int) -> Tensor:
    zeros = torch.zeros(count, dtype=torch.int64)
    try:
        return zeros.share_memory_()  # type: ignore[no-untyped-call, no-any-return]
    except RuntimeError:
        with tempfile.NamedTemporaryFile() as file:  # the mapping outlives its name
            file.write(bytes(8 * count))
            file.flush()
            return torch.from_file(file.name, shared=True, size=count, dtype=torch.int64)


class SharedNumbers:
    """An array of integers, initially 0, in memory shared with child processes; a deep copy has its own.

    Without shared memory (a container without /dev/shm) a file in the folder for temporary files stands for it, which
    forked processes share.

    Args:
        count: How many numbers.
    """

    def __init__(self, count: int) -> None:
        self._values = _zeros(count)

    def __getitem__(self, index: int) -> int:
        return int(self._values[index])

    def __setitem__(self, index: int, number: int) -> None:
        self._values[index] = number

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedNumbers:
        # A tensor that is copied leaves shared memory.
        copied = SharedNumbers(len(self._values))
        copied._values.copy_(self._values)
        return copied

    def tolist(self) -> list[int]:
        """All of them."""
        numbers: list[int] = self._values.tolist()
        return numbers


class WorkerEpochs:
    """The record of all workers. Pickled to a worker it is shared; a deep copy shares nothing with the original.

    Each worker writes one 8-byte cell, atomically, and no other worker writes that cell: no lock is needed.
    """

    def __init__(self) -> None:
        self._cells = SharedNumbers(_WORKERS)

    def begin(self, worker: int, iteration: int, epoch: int, times_set: int, *, fixed: bool) -> int | None:
        """Record that a worker begins an iteration of the DataLoader.

        Args:
            worker: Number of the worker.
            iteration: Base seed of the DataLoader, which differs between iterations and is the same in all workers.
            epoch: Epoch of the parent's copy.
            times_set: How many times the position of the parent's copy was set.
            fixed: Whether the worker itself loaded a position; the records of others don't count then.

        Returns:
            The epoch after the one that was served last; None to start at the position of the parent's copy.
        """
        found = None if fixed else self._following(worker, iteration, epoch, times_set)
        self.serve(worker, iteration, epoch if found is None else found, times_set)
        return found

    def is_begun(self, times_set: int) -> bool:
        """Whether a worker has begun an iteration since the position of the parent's copy was last set."""
        return any(cell and _times_set(cell) == times_set % 256 for cell in self._cells.tolist())

    def serve(self, worker: int, iteration: int, epoch: int, times_set: int) -> None:
        """Record which epoch a worker serves."""
        fields = (
            (_tag(iteration, 16) << 47) | (_tag(os.getpid(), 15) << 32) | ((times_set % 256) << 24) | (epoch % _EPOCHS)
        )
        self._cells[worker % _WORKERS] = fields

    def _following(self, worker: int, iteration: int, epoch: int, times_set: int) -> int | None:
        cells = self._cells.tolist()
        own = cells[worker % _WORKERS]
        if own and _times_set(own) == times_set % 256:
            return (own % _EPOCHS) + 1
        tag = _tag(iteration, 16)
        others = [cell for cell in cells if cell and _times_set(cell) == times_set % 256]
        if same_iteration := [cell % _EPOCHS for cell in others if cell >> 47 == tag]:
            # Another worker of this iteration has begun. In the epoch of the parent's copy it may have resumed midway.
            return None if same_iteration[0] == epoch % _EPOCHS else same_iteration[0]
        return max((cell % _EPOCHS for cell in others), default=-2) + 1 if others else None


def _times_set(cell: int) -> int:
    return cell >> 24 & 255
