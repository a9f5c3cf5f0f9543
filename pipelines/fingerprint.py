"""Telling that two meshes are the same shape, whatever their names, places and scales.

Two cases whose geometry agrees up to translation and uniform scale are one design, and one design must not lie on both
sides of a split. Rounding a coordinate to compare it can put two equal values into neighbouring bins, so a mesh is
described by what survives rounding: the ranks of its coordinates along each axis (integers), and two ratios of its
extents. The ratios are binned three times with shifted bins; each of the two can be split by at most one of the three,
so two equal meshes always share at least one of the three digests.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case import Case

_LEVEL_TOLERANCE: Final = 1e-4  # of the largest extent; coordinates closer than that are one level
_RATIO_BIN: Final = 1e-3  # relative width of the bins that extents are compared in
_SHIFTS: Final = (0.0, 1 / 3, 2 / 3)


def _ranks(values: NDArray[np.floating[Any]], extent: float) -> NDArray[np.int64]:
    """Number of the level that each value lies on; levels are apart by more than the tolerance."""
    order = np.argsort(values, kind="stable")
    levels = np.cumsum(np.concatenate(([0], np.diff(values[order]) > _LEVEL_TOLERANCE * extent)))
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = levels
    return ranks


def geometry_digests(case: Case) -> tuple[str, ...]:
    """Three digests of a mesh; two meshes are the same shape when they share at least one.

    Args:
        case: The case; only its points and cells are looked at. Their order doesn't matter.
    """
    points = case.points.astype(np.float64)
    extents = np.ptp(points, axis=0)
    largest = float(extents.max()) or 1.0
    ranks = np.stack([_ranks(points[:, axis], largest) for axis in range(3)])
    span = ranks.max(axis=1) + 1
    keys = (ranks[0] * span[1] + ranks[1]) * span[2] + ranks[2]
    # A cell is known by its least and its largest corner: all are boxes, or nearly so.
    corners = keys[case.cells]
    least, largest_corner = corners.min(axis=1), corners.max(axis=1)
    shape = hashlib.sha256(span.tobytes())
    shape.update(np.sort(keys).tobytes())
    shape.update(np.sort(least * (int(keys.max()) + 1) + largest_corner).tobytes())
    ratios = np.log(np.maximum(extents[1:], 1e-9 * largest) / max(float(extents[0]), 1e-9 * largest)) / _RATIO_BIN
    digests = []
    for shift in _SHIFTS:
        digest = shape.copy()
        digest.update(np.floor(ratios + shift).astype(np.int64).tobytes())
        digests.append(f"{digest.hexdigest()[:32]}")
    return tuple(digests)
