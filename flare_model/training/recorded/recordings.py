"""Recordings by the size of their batches: what is kept, in which memory, and what is dropped when memory runs out."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.training.recorded.recording import Recording
from lpbf_data.console import say

Size = tuple[int, int]
"""Points and offsets of a batch."""


def size_of(batch: Batch) -> Size:
    """Size of a batch, which decides which recording serves it."""
    return len(batch.points), len(batch.offsets)


class Recordings:
    """Recordings of one function of batches, one for each size of batch.

    All are recorded in one memory pool: they are replayed one after the other, and the result of each is copied before
    the next, so that they can share intermediate memory. What is recorded first in a pool decides how its memory is
    divided. A smaller batch finds room in the memory of a larger one; a larger batch finds little in that of smaller
    ones, and the pool grows. Where the largest size is recorded first, the pool stays as large as that needs.

    Args:
        record: Records the function for a batch, in the memory pool of earlier recordings, or in one of its own where
            that is None.
        max_sizes: Most recordings that are kept; the one used longest ago goes first.
    """

    def __init__(self, record: Callable[[Batch, Any], Recording], max_sizes: int) -> None:
        self._record, self._max_sizes = record, max_sizes
        self._kept: OrderedDict[Size, Recording] = OrderedDict()
        self._pool: Any = None
        self._said = False

    def __contains__(self, size: Size) -> bool:
        """Whether there is a recording for batches of a size."""
        return size in self._kept

    @property
    def full(self) -> bool:
        """Whether another recording would take the place of one that is kept."""
        return self.room == 0

    @property
    def room(self) -> int:
        """How many more sizes can be recorded before one that is kept is dropped."""
        return self._max_sizes - len(self._kept)

    def add(self, batch: Batch, *, make_room: bool = False) -> None:
        """Record the function for the size of a batch.

        Args:
            batch: A batch of that size.
            make_room: Where memory runs out, drop all recordings and try once more, after the largest that was kept has
                been recorded again: its batch comes again, and would find too little room after a smaller one. That
                is said once.

        Raises:
            torch.OutOfMemoryError: If there is too little memory; with `make_room`, even without all recordings but the
                largest.
            UsageError: If the function can't be recorded.
        """
        if self.full:
            self._drop(1)
        try:
            self._add(batch)
        except torch.OutOfMemoryError:
            if not (make_room and self._kept):
                raise
        else:
            return
        # Outside of the handler, since the error holds the tensors of the attempt that failed.
        self._make_room(size_of(batch))
        self._add(batch)

    def _make_room(self, size: Size) -> None:
        """Drop all recordings, and record the largest again if it is larger than a size."""
        largest = max((recording.batch for recording in self._kept.values()), key=size_of)
        self.clear()
        if not self._said:
            self._said = True
            say(
                "there is too little memory for the CUDA graphs of all sizes of batches: they were dropped, and each "
                "is recorded again when its size comes again, which takes time"
            )
        if size_of(largest) > size:
            self._add(largest)

    def replay(self, batch: Batch) -> Tensor:
        """What the function gives for a batch of a size that was recorded."""
        size = size_of(batch)
        self._kept.move_to_end(size)
        return self._kept[size].replay(batch)

    def clear(self) -> None:
        """Drop all recordings, and give their memory back."""
        self._drop(len(self._kept))
        self._pool = None
        gc.collect()
        torch.cuda.empty_cache()

    def _add(self, batch: Batch) -> None:
        recording = self._record(batch, self._pool)
        self._pool = self._pool or recording.pool
        self._kept[size_of(batch)] = recording

    def _drop(self, count: int) -> None:
        """Drop those used longest ago."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # one may still be computed
        for _ in range(count):
            self._kept.popitem(last=False)
