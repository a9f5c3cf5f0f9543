"""Mathematics of hexahedral meshes, vectorised over all cells.

Node order is that of VTK, EnSight and Abaqus: 0-1-2-3 counter-clockwise at the bottom, 4-5-6-7 above them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

HEX8_CORNERS: Final[NDArray[np.int64]] = np.array(
    [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=np.int64
)
"""Coordinates of the eight corners of the unit cube in the order of nodes, [8, 3]."""

HEX8_EDGES: Final[NDArray[np.intp]] = np.array(
    [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]], dtype=np.intp
)
"""The twelve edges of a hexahedron, [12, 2]."""

HEX8_FACES: Final[NDArray[np.intp]] = np.array(
    [[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]], dtype=np.intp
)
"""The six faces of a hexahedron, [6, 4], each counter-clockwise seen from outside."""

# At each corner, its neighbours along the three edges, ordered so that the triple product is positive.
_HEX8_NEIGHBOURS: Final[NDArray[np.intp]] = np.array(
    [[0, 1, 3, 4], [1, 2, 0, 5], [2, 3, 1, 6], [3, 0, 2, 7], [4, 7, 5, 0], [5, 4, 6, 1], [6, 5, 7, 2], [7, 6, 4, 3]],
    dtype=np.intp,
)


def _edge_keys(cells: NDArray[np.integer[Any]], num_points: int) -> NDArray[Any]:
    """One sorted integer for each edge of each cell: smaller end times `num_points` plus larger end, [12 E]."""
    # Half the bits sort in half the time, and parts of the benchmark have fewer than 2**16 points.
    dtype = np.uint32 if num_points < 1 << 16 else np.uint64
    corners = np.ascontiguousarray(cells.T, dtype=dtype)
    first, second = corners[HEX8_EDGES[:, 0]], corners[HEX8_EDGES[:, 1]]
    keys = np.minimum(first, second)
    keys *= dtype(num_points)
    keys += np.maximum(first, second)
    flat: NDArray[Any] = keys.ravel()
    flat.sort()
    return flat


def hex_edges(cells: NDArray[np.integer[Any]], *, directed: bool = True) -> NDArray[np.int64]:
    """Edges of a hexahedral mesh, each once.

    Args:
        cells: Zero-based connectivity, [E, 8].
        directed: Give every edge in both directions, as PyG's `edge_index` has them.

    Returns:
        [2, num_edges] int64, sorted by first and then by second end.

    >>> hex_edges(np.arange(8)[None]).shape
    (2, 24)
    >>> hex_edges(np.arange(8)[None], directed=False).shape
    (2, 12)
    """
    if len(cells) == 0:
        return np.empty((2, 0), dtype=np.int64)
    num_points = int(cells.max()) + 1
    keys = _edge_keys(cells, num_points)
    keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))].astype(np.int64)
    ends = np.stack(np.divmod(keys, num_points))
    if not directed:
        return ends
    both = np.concatenate([keys, ends[1] * num_points + ends[0]])
    both.sort()
    return np.stack(np.divmod(both, num_points))


def count_hex_edges(cells: NDArray[np.integer[Any]]) -> int:
    """Number of columns of `edge_index`: every edge counted in both directions.

    Args:
        cells: Zero-based connectivity, [E, 8].

    >>> count_hex_edges(np.arange(8)[None])
    24
    """
    if len(cells) == 0:
        return 0
    keys = _edge_keys(cells, int(cells.max()) + 1)
    return 2 * (1 + int(np.count_nonzero(keys[1:] != keys[:-1])))


def hex_aspect_ratio(points: NDArray[np.floating[Any]], cells: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Longest edge over shortest edge of each cell.

    Args:
        points: Coordinates, [N, 3].
        cells: Zero-based connectivity, [E, 8].

    Returns:
        [E] float64; infinite where a cell has an edge of length zero.
    """
    squares = np.zeros((12, len(cells)))
    ends = np.ascontiguousarray(cells.T)[HEX8_EDGES]
    for axis in range(3):
        along = np.ascontiguousarray(points[:, axis], dtype=np.float64)
        squares += np.square(along[ends[:, 1]] - along[ends[:, 0]])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(squares.max(axis=0) / squares.min(axis=0))
    return np.where(np.isnan(ratio), np.inf, ratio)


def hex_corner_volumes(points: NDArray[np.floating[Any]], cells: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Least signed triple product over the eight corners of each cell, in mm³.

    For a box it is the volume. A value that isn't positive marks a cell that is inverted or degenerate (the
    Jacobian determinant of the trilinear map at a corner is this value, up to a constant).

    Args:
        points: Coordinates, [N, 3].
        cells: Zero-based connectivity, [E, 8].

    Returns:
        [E] float64.
    """
    corners = points.T.astype(np.float64)[:, cells.T]  # [3, 8, E]
    least = np.full(len(cells), np.inf)
    for origin, first, second, third in _HEX8_NEIGHBOURS:
        a, b, c = (corners[:, k] - corners[:, origin] for k in (first, second, third))
        triple = (
            a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])
        )
        np.minimum(least, triple, out=least)
    return least


def boundary_faces(cells: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Quadrilaterals that belong to one cell only: the surface of the mesh.

    Where the mesh is refined and nodes hang, the faces between coarse and fine cells are matched by no partner and
    are part of the result too; [outer_faces][lpbf_data.geometry.outer_surface.outer_faces] leaves them out.

    Args:
        cells: Zero-based connectivity, [E, 8].

    Returns:
        [F, 4] int64, counter-clockwise seen from outside, in the order of the cells.

    >>> len(boundary_faces(np.arange(8)[None]))
    6
    """
    faces = np.asarray(cells, dtype=np.int64)[:, HEX8_FACES].reshape(-1, 4)
    if len(faces) == 0:
        return faces
    ordered = np.sort(faces, axis=1)
    num_points = int(ordered.max()) + 1
    # Three of the four corners name a quadrilateral of a valid mesh; two integers hold three.
    keys = np.stack([ordered[:, 0] * num_points + ordered[:, 1], ordered[:, 2] * num_points + ordered[:, 3]])
    order = np.lexsort(keys)
    same = np.all(keys[:, order[1:]] == keys[:, order[:-1]], axis=0)
    lonely = ~(np.concatenate(([False], same)) | np.concatenate((same, [False])))
    return faces[np.sort(order[lonely])]
