"""Finding the points of one mesh in another, by their coordinates."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# Odd multipliers spread the bits of each coordinate over 64 (from the fractional parts of golden ratio and friends).
_MULTIPLIERS: Final = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)))


def _keys(points: NDArray[np.float32]) -> NDArray[np.uint64]:
    """A 64-bit number for each point; equal points have equal numbers, others rarely."""
    bits = np.ascontiguousarray(points + np.float32(0)).view(np.uint32).astype(np.uint64)  # + 0 turns -0 into 0
    keys = np.zeros(len(points), dtype=np.uint64)
    for axis, multiplier in enumerate(_MULTIPLIERS):
        keys ^= bits[:, axis] * multiplier
        keys ^= keys >> np.uint64(29)
    return keys


class PointIndex:
    """Points that others are looked up in; coordinates must be equal to the last bit.

    Args:
        points: [N, 3] float32.
    """

    def __init__(self, points: NDArray[np.float32]) -> None:
        self._points = points
        keys = _keys(points)
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]
        # Points with the same coordinates share a key; the first of them stands for all.
        first = np.maximum.accumulate(
            np.where(np.concatenate(([True], self._sorted[1:] != self._sorted[:-1])), np.arange(len(keys)), 0)
        )
        self._first = np.empty(len(keys), dtype=np.intp)
        self._first[self._order] = self._order[first]

    def match(self, others: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which of the points occur among others.

        Args:
            others: [K, 3] float32.

        Returns:
            Indices into the points, and for each the index of the equal one among the others. Of several points at
            one place the first one is given; `spread` passes its value on to the rest.
        """
        keys = _keys(others)
        rank = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        there = np.flatnonzero(self._sorted[rank] == keys)
        here = self._order[rank[there]]
        equal = (self._points[here] == others[there]).all(axis=1)
        return here[equal], there[equal]

    def spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give every point the value of the first one with its coordinates, [N]."""
        return values[self._first]
