"""Memory for samples and batches that is used again once nobody holds them any more.

A fresh block of a megabyte costs about as much as filling it: the system maps and clears it page by page, and takes it
back when it is freed. Samples come and go in an endless loop, so a few blocks do for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MOST_KEPT: Final = 64 << 20
_LEAST: Final = 1 << 18  # smaller arrays come from memory that the allocator keeps anyway


class _Block(np.ndarray[Any, Any]):
    """An array whose memory goes back to where it came from when nothing refers to it any more."""

    memory: NDArray[np.uint8] | None = None
    home: Recycler | None = None

    def __del__(self) -> None:
        if self.memory is not None and self.home is not None:
            self.home.take_back(self.memory)


class Recycler:
    """Blocks of memory that were used before, by size."""

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}
        self._kept = 0

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array with any values in it.

        Args:
            shape: Its shape.
            dtype: Its type.
        """
        needed = math.prod(shape) * dtype.itemsize
        if needed < _LEAST:
            return np.empty(shape, dtype)
        size = 1 << (needed - 1).bit_length()
        try:
            memory = self._free[size].pop()
            self._kept -= size
        except (KeyError, IndexError):
            memory = np.empty(size, np.uint8)
        block = _Block(tuple(shape), dtype, buffer=memory)
        block.memory, block.home = memory, self
        return block

    def copy(self, values: NDArray[Any]) -> NDArray[Any]:
        """A copy of an array, in C order."""
        if values.nbytes < _LEAST:
            return values.copy("C")
        block = self.empty(values.shape, values.dtype)
        block[...] = values
        return block

    def join(self, parts: Sequence[NDArray[Any]], axis: int = 0) -> NDArray[Any]:
        """Arrays one behind the other, in memory of their own."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return np.concatenate(parts, axis=axis, out=self.empty(shape, parts[0].dtype))

    def take_back(self, memory: NDArray[np.uint8]) -> None:
        """Keep a block for the next one who asks, unless enough are kept."""
        if self._kept + memory.nbytes <= _MOST_KEPT:
            self._free.setdefault(memory.nbytes, []).append(memory)
            self._kept += memory.nbytes


RECYCLER: Final = Recycler()
"""The blocks of this process."""
