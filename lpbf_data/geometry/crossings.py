"""Where a surface crosses itself: pairs of its triangles that share no corner and meet.

T triangles.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.geometry.closed_surface import Surface

_TILE: Final = 2_000_000  # pairs that are looked at together
_SHRUNK: Final = 1e-9  # of the largest extent: triangles that only touch don't cross


def crossing_triangles(surface: Surface) -> NDArray[np.int64]:
    """Pairs of triangles that cross each other.

    Two triangles that lie in one plane don't count, nor those that share a corner: neighbours fold over each other
    only where others cross too, but for folds of a single triangle, which turn its neighbours over.

    Args:
        surface: The surface.

    Returns:
        Numbers of the triangles, [C, 2], the lower one first, sorted.
    """
    corners = surface.vertices[surface.triangles]
    low, high = corners.min(axis=1), corners.max(axis=1)
    slack = _SHRUNK * float(np.ptp(surface.bounds, axis=0).max())
    normals = surface.area_vectors()
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    heights = np.einsum("tk,tk->t", normals, corners[:, 0])
    found = []
    for near in _near_pairs(low, high):
        pairs = np.stack(near)
        # Most pairs are neighbours in one plane or at an edge: all of one lies on one side of the other.
        for _ in range(2):
            beyond = np.einsum("pck,pk->pc", corners[pairs[1]], normals[pairs[0]]) - heights[pairs[0], None]
            pairs = pairs[::-1, (beyond.min(axis=1) < -slack) & (beyond.max(axis=1) > slack)]
        one, other = surface.triangles[pairs]
        pairs = pairs[:, (one[:, :, None] != other[:, None, :]).all(axis=(1, 2))]
        found.append(np.sort(pairs[:, _meet(corners[pairs[0]], corners[pairs[1]], slack)].T, axis=1))
    crossing = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
    unique: NDArray[np.int64] = np.unique(crossing, axis=0).astype(np.int64)
    return unique


def _near_pairs(
    low: NDArray[np.float64], high: NDArray[np.float64]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of boxes that overlap, in pieces: boxes are put into the cells of a grid that they touch."""
    lengths = (high - low).max(axis=1)
    # As large as nearly all triangles, so that few cells hold one; large triangles lie in up to 9 cells along an axis.
    size = max(float(np.quantile(lengths, 0.9)), float(lengths.max()) / 8)
    start, end = ((bound - low.min(axis=0)) // size for bound in (low, high))
    start, end = start.astype(np.int64), end.astype(np.int64)
    shape = end.max(axis=0) + 1
    keys, owners = [], []
    spans = (end - start).max(axis=0) + 1
    for step in np.ndindex(*spans):
        cell = start + step
        inside = (cell <= end).all(axis=1)
        keys.append((cell[inside, 0] * shape[1] + cell[inside, 1]) * shape[2] + cell[inside, 2])
        owners.append(np.flatnonzero(inside))
    key, owner = np.concatenate(keys), np.concatenate(owners)
    order = np.argsort(key, kind="stable")
    key, owner = key[order], owner[order]
    ends = np.searchsorted(key, key, side="right")
    # Each box with all that come after it in its cell.
    counts = ends - np.arange(len(key)) - 1
    pieces, begin, total = [], 0, np.cumsum(counts)
    while begin < len(key):
        done = total[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(total, done + _TILE, side="right")))
        one = np.repeat(np.arange(begin, stop), counts[begin:stop])
        within = np.arange(len(one)) - np.repeat(np.cumsum(counts[begin:stop]) - counts[begin:stop], counts[begin:stop])
        first, second = owner[one], owner[one + 1 + within]
        overlap = (low[first] <= high[second]).all(axis=1) & (low[second] <= high[first]).all(axis=1)
        pieces.append((first[overlap], second[overlap]))
        begin = stop
    return pieces


def _meet(one: NDArray[np.float64], other: NDArray[np.float64], slack: float) -> NDArray[np.bool_]:
    """Whether triangles cross, [P]: an edge of one of them goes through the other."""
    found = np.zeros(len(one), bool)
    for target, source in ((one, other), (other, one)):
        for k in range(3):
            found |= _pierces(source[:, k], source[:, (k + 1) % 3], target, slack)
    return found


def _pierces(
    start: NDArray[np.float64], end: NDArray[np.float64], triangle: NDArray[np.float64], slack: float
) -> NDArray[np.bool_]:
    """Whether edges go through triangles from one side to the other, [P]."""
    a, b, c = triangle[:, 0], triangle[:, 1], triangle[:, 2]
    normal = np.cross(b - a, c - a)
    length = np.linalg.norm(normal, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = normal / length[:, None]
        at_start, at_end = (np.einsum("pk,pk->p", unit, point - a) for point in (start, end))
        through = np.minimum(at_start, at_end) < -slack
        through &= np.maximum(at_start, at_end) > slack
        point = start + (at_start / (at_start - at_end))[:, None] * (end - start)
        inside = through
        for p, q in ((a, b), (b, c), (c, a)):
            side = np.einsum("pk,pk->p", np.cross(q - p, point - p), unit)
            inside &= side > -slack * np.linalg.norm(q - p, axis=1)
    found: NDArray[np.bool_] = inside & np.isfinite(length) & (length > 0)
    return found
