"""Digests that two meshes of one shape share, whatever their names, positions, scales, and sides of the build plate.

Two cases whose geometry agrees up to translation, uniform scale and the symmetries of a square build plate (mirrored
along x, along y, both exchanged: what training shows cases under) are one design, and one design must not lie on both
sides of a split. Rounding a coordinate to compare it can put two equal values into neighbouring bins, so a mesh is
described by what survives rounding: the ranks of its coordinates along each axis (integers), and two ratios of its
extents. Each symmetry gives a description by ranks; the least of them is used. Where the extents along x and y differ,
the longer one is turned to x first: otherwise a mesh would agree with one that has x and y exchanged in its ranks but
not in its extents. The ratios don't change under the symmetries. They are binned three times with shifted bins; each of
the two can be split by at most one of the three, so two equal meshes always share at least one of the three digests.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.case import Case

DIGEST_VERSION: Final = 2
"""Prefix of each digest, so that digests of earlier versions, which distinguished mirrored meshes, equal none."""

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


def _shape_digest(ranks: NDArray[np.int64], span: NDArray[np.int64], cells: NDArray[np.int32]) -> bytes:
    """Hash of points and cells by their ranks, whatever the order of either."""
    keys = (ranks[0] * span[1] + ranks[1]) * span[2] + ranks[2]
    # A cell is known by its least and its largest corner: all are boxes, or nearly so.
    corners = keys[cells]
    least, largest = corners.min(axis=1), corners.max(axis=1)
    shape = hashlib.sha256(span.tobytes())
    shape.update(np.sort(keys).tobytes())
    shape.update(np.sort(least * (int(keys.max()) + 1) + largest).tobytes())
    return shape.digest()


def _turned(
    ranks: NDArray[np.int64], span: NDArray[np.int64], *, exchange: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Ranks and spans under the four mirrorings along x and y, and x and y exchanged or not; one at a time."""
    if exchange:
        ranks, span = ranks[[1, 0, 2]], span[[1, 0, 2]]
    for mirrored in itertools.product((False, True), repeat=2):
        moved = ranks.copy()
        for axis in np.flatnonzero(mirrored):
            moved[axis] = span[axis] - 1 - moved[axis]
        yield moved, span


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
    x, y, z = np.log(np.maximum(extents, 1e-9 * largest))
    ratios = np.array([abs(x - y), z - (x + y) / 2]) / _RATIO_BIN
    least: dict[bool, bytes] = {}
    for exchange in (False, True):
        # Where x and y are nearly equal, either may be the longer one.
        if exchange == (y > x) or ratios[0] < 1:
            least[exchange] = min(
                _shape_digest(*turned, case.cells) for turned in _turned(ranks, span, exchange=exchange)
            )
    digests = []
    for shift in _SHIFTS:
        bins = np.floor(ratios + shift).astype(np.int64)
        square = bins[0] == 0
        digest = hashlib.sha256(min(least.values()) if square else least[bool(y > x)])
        digest.update(bins.tobytes())
        digests.append(f"{DIGEST_VERSION}:{digest.hexdigest()[:32]}")
    return tuple(digests)
