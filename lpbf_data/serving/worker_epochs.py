"""Which epoch the workers of a DataLoader are in, where their copies of a stream die with every epoch.

A DataLoader without `persistent_workers` starts new processes for each epoch, with the copy of the stream that its
parent holds, and the parent's copy never moves: every epoch would be the first. So each worker writes down, in memory
that all copies share, which epoch it served and in which iteration of the DataLoader; the worker of that number in the
next iteration reads it and goes on.
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
    """Whole numbers, zeros at first, in memory that processes started from this one share; a deep copy has its own.

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
    """What workers say of their epochs. Pickles to workers; a deep copy shares nothing with the original.

    Each worker writes one cell of 8 bytes, at once, and no other worker writes it: no lock is needed.
    """

    def __init__(self) -> None:
        self._cells = SharedNumbers(_WORKERS)

    def begin(self, worker: int, iteration: int, epoch: int, told: int, *, fixed: bool) -> int | None:
        """Say that a worker begins an iteration.

        Args:
            worker: Number of the worker.
            iteration: What tells iterations of a DataLoader apart, the same in all its workers: its base seed.
            epoch: The epoch where the parent's copy stands.
            told: How often the parent was told where to stand.
            fixed: The worker itself was told; what others say doesn't count.

        Returns:
            The epoch that follows the one which was served last, or None to start where the copy stands.
        """
        found = None if fixed else self._following(worker, iteration, epoch, told)
        self.serve(worker, iteration, epoch if found is None else found, told)
        return found

    def is_begun(self, told: int) -> bool:
        """Whether a worker has begun an iteration since the parent was last told where to stand."""
        return any(cell and _told(cell) == told % 256 for cell in self._cells.tolist())

    def serve(self, worker: int, iteration: int, epoch: int, told: int) -> None:
        """Say which epoch a worker serves."""
        fields = (_tag(iteration, 16) << 47) | (_tag(os.getpid(), 15) << 32) | ((told % 256) << 24) | (epoch % _EPOCHS)
        self._cells[worker % _WORKERS] = fields

    def _following(self, worker: int, iteration: int, epoch: int, told: int) -> int | None:
        cells = self._cells.tolist()
        own = cells[worker % _WORKERS]
        if own and _told(own) == told % 256:
            return (own % _EPOCHS) + 1
        mine = _tag(iteration, 16)
        others = [cell for cell in cells if cell and _told(cell) == told % 256]
        if beside := [cell % _EPOCHS for cell in others if cell >> 47 == mine]:
            # A worker of this iteration that has begun; if where the copy stands, then maybe in the middle of an epoch.
            return None if beside[0] == epoch % _EPOCHS else beside[0]
        return max((cell % _EPOCHS for cell in others), default=-2) + 1 if others else None


def _told(cell: int) -> int:
    return cell >> 24 & 255
