"""A memory pool: arrays of samples and batches reuse the memory of earlier ones that nothing refers to any more.

A fresh block of a megabyte costs about as much as filling it: the system maps and clears it page by page, and unmaps it
when it is freed. Training allocates and frees samples in a loop, so a few blocks do for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MAX_FREE_BYTES: Final = 64 << 20
_MIN_POOLED_BYTES: Final = 1 << 18  # smaller arrays come from memory that the allocator keeps anyway


class _Block(np.ndarray[Any, Any]):
    """An array that returns its memory to the pool when nothing refers to it any more."""

    memory: NDArray[np.uint8] | None = None
    pool: ArrayPool | None = None

    def __del__(self) -> None:
        if self.memory is not None and self.pool is not None:
            self.pool.release(self.memory)


class ArrayPool:
    """Free blocks of memory by size, a power of two."""

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}
        self._free_bytes = 0

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An uninitialised array, as `np.empty` gives it.

        Args:
            shape: Its shape.
            dtype: Its type.
        """
        needed = math.prod(shape) * dtype.itemsize
        if needed < _MIN_POOLED_BYTES:
            return np.empty(shape, dtype)
        size = 1 << (needed - 1).bit_length()
        try:
            memory = self._free[size].pop()
            self._free_bytes -= size
        except (KeyError, IndexError):
            memory = np.empty(size, np.uint8)
        block = _Block(tuple(shape), dtype, buffer=memory)
        block.memory, block.pool = memory, self
        return block

    def copy(self, values: NDArray[Any]) -> NDArray[Any]:
        """A copy of an array, in C order."""
        if values.nbytes < _MIN_POOLED_BYTES:
            return values.copy("C")
        block = self.empty(values.shape, values.dtype)
        block[...] = values
        return block

    def join(self, parts: Sequence[NDArray[Any]], axis: int = 0) -> NDArray[Any]:
        """Arrays concatenated along an axis, as `np.concatenate` does it, in memory of the pool."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return np.concatenate(parts, axis=axis, out=self.empty(shape, parts[0].dtype))

    def release(self, memory: NDArray[np.uint8]) -> None:
        """Return a block to the pool; it is freed where the pool holds 64 MiB already."""
        if self._free_bytes + memory.nbytes <= _MAX_FREE_BYTES:
            self._free.setdefault(memory.nbytes, []).append(memory)
            self._free_bytes += memory.nbytes


ARRAY_POOL: Final = ArrayPool()
"""The memory pool of this process."""
