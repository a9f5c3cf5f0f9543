"""Unique rows of a table: points with the same coordinates, triangles with the same corners."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unique_rows(rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Unique rows, and for each row the unique one that it equals.

    As `np.unique(rows, axis=0, return_index=True, return_inverse=True)`, which compares rows as records and takes five
    times as long; sorting by one column after the other gives the same order.

    Args:
        rows: Finite numbers, [N, K], K at least 1.

    Returns:
        Index of the first occurrence of each unique row, [U] int64, in lexicographic order of the rows; and for each
        row the number of its unique row, [N] int64.

    >>> rows = np.array([[2, 1], [1, 2], [2, 1]])
    >>> first, inverse = unique_rows(rows)
    >>> rows[first].tolist(), inverse.tolist()
    ([[1, 2], [2, 1]], [1, 0, 1])
    """
    order = np.lexsort(rows.T[::-1])
    starts = np.zeros(len(rows), bool)
    starts[:1] = True
    for column in rows.T:
        ordered = column[order]
        starts[1:] |= ordered[1:] != ordered[:-1]
    inverse = np.empty(len(rows), np.int64)
    inverse[order] = np.cumsum(starts) - 1
    return order[starts].astype(np.int64, copy=False), inverse
