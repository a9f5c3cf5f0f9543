"""The surface of a hexahedral mesh, exact also where the mesh is refined and has hanging nodes.

Where cells of two sizes meet, a coarse face lies on four fine ones (or on some of them: the others are outside). No
face there has a partner of equal corners, so [boundary_faces][lpbf_data.geometry.hexahedra.boundary_faces] gives
both sides, inside the material. Here such faces are recognised by the points in their middle and cut to what is really
outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.geometry.hexahedra import boundary_faces

_TOLERANCE: Final = 0.1
"""Coordinates closer than this part of the shortest edge are one; solvers write them with few digits."""


def _uncovered_table() -> NDArray[np.intp]:
    """Quadrilaterals that are left of a face when some of its quarters are covered by fine faces, [16, 2, 4].

    Bit i of the row says that the quarter at corner i is covered. Local points: 0-3 the corners, 4-7 the middle of the
    edge after each corner, 8 the middle. Only points are named that exist: those of a covered quarter. -1 is none.
    """
    table = np.full((16, 2, 4), -1, dtype=np.intp)
    for covered in range(15):
        free = [i for i in range(4) if not covered >> i & 1]
        before = [4 + (i - 1) % 4 for i in range(4)]
        quads: list[tuple[int, ...]]
        if covered == 0:
            quads = [(0, 1, 2, 3)]
        elif len(free) == 1 or (len(free) == 2 and free[1] - free[0] == 2):
            quads = [(i, 4 + i, 8, before[i]) for i in free]
        else:
            first = next(i for i in free if (i - 1) % 4 not in free)
            second, third = (first + 1) % 4, (first + 2) % 4
            if len(free) == 2:
                quads = [(first, second, 4 + second, before[first])]
            else:
                quads = [(first, second, 8, before[first]), (second, third, 4 + third, 8)]
        table[covered, : len(quads)] = quads
    return table


_UNCOVERED: Final = _uncovered_table()


class _PointIndex:
    """Finds points by their coordinates, up to a tolerance: ranks along each axis, joined to one integer key."""

    def __init__(self, points: NDArray[np.floating[Any]], tolerance: float) -> None:
        self._tolerance = tolerance
        self._coordinates: list[NDArray[np.float64]] = []
        key = np.zeros(len(points), dtype=np.int64)
        for axis in range(3):
            values, inverse = np.unique(points[:, axis].astype(np.float64), return_inverse=True)
            rank = np.cumsum(np.concatenate(([False], np.diff(values) > tolerance)))
            self._coordinates.append(np.bincount(rank, values) / np.bincount(rank))
            key = key * len(self._coordinates[-1]) + rank[inverse]
        self._order = np.argsort(key, kind="stable")
        self._keys = key[self._order]

    def find(self, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        """Number of the point at each position, [...] int64 for [..., 3]; -1 where there is none."""
        key = np.zeros(positions.shape[:-1], dtype=np.int64)
        near = np.ones(positions.shape[:-1], dtype=bool)
        for axis, known in enumerate(self._coordinates):
            middles = (known[1:] + known[:-1]) / 2
            rank = np.searchsorted(middles, positions[..., axis])
            near &= np.abs(known[rank] - positions[..., axis]) <= self._tolerance
            key = key * len(known) + rank
        position = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return np.where(near & (self._keys[position] == key), self._order[position], -1)


def _face_keys(faces: NDArray[np.int64]) -> NDArray[np.void]:
    """Faces by their corners in any order, as one comparable value each."""
    ordered = np.ascontiguousarray(np.sort(faces, axis=-1)).reshape(-1, 4)
    return ordered.view([("", np.int64)] * 4).reshape(faces.shape[:-1])


def outer_faces(points: NDArray[np.floating[Any]], cells: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Quadrilaterals between material and surroundings, also where a refined mesh has hanging nodes.

    Neighbouring cells may differ in size by a factor of two, as octrees do. What is outside of a coarse face that is
    covered in part becomes one or two quadrilaterals on points of the mesh.

    Args:
        points: Coordinates, [N, 3].
        cells: Zero-based connectivity, [E, 8].

    Returns:
        [F, 4] int64, counter-clockwise seen from outside.

    >>> from lpbf_data.geometry.hexahedra import HEX8_FACES
    >>> corners = np.array([[x, y, z] for z in (0, 1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))], dtype=np.float32)
    >>> bool(np.all(outer_faces(corners, np.arange(8)[None]) == HEX8_FACES))
    True
    """
    faces = boundary_faces(cells)
    if len(faces) == 0:
        return faces
    corners = points[faces].astype(np.float64)  # [F, 4, 3]
    following = np.roll(corners, -1, axis=1)
    index = _PointIndex(points, _TOLERANCE * float(np.linalg.norm(following - corners, axis=-1).min()))
    centres = index.find(corners.mean(axis=1))
    candidates = np.flatnonzero(centres >= 0)
    if len(candidates) == 0:
        return faces
    coarse = faces[candidates]
    middles = index.find((corners[candidates] + following[candidates]) / 2)
    local = np.concatenate([coarse, middles, centres[candidates, None]], axis=1)  # [C, 9]
    quarters = np.stack([local[:, [i, 4 + i, 8, 4 + (i - 1) % 4]] for i in range(4)], axis=1)  # [C, 4, 4]
    keys = _face_keys(faces)
    order = np.argsort(keys)
    quarter_keys = _face_keys(quarters)
    position = np.minimum(np.searchsorted(keys[order], quarter_keys), len(keys) - 1)
    partner = order[position]
    covered = keys[partner] == quarter_keys
    covering = np.zeros(len(faces), dtype=bool)
    covering[partner[covered]] = True
    left = _UNCOVERED[(covered << np.arange(4)).sum(axis=1)]  # [C, 2, 4]
    pieces = np.take_along_axis(local[:, None], np.maximum(left, 0), axis=2)
    pieces = pieces[(left[..., 0] >= 0) & ~covering[candidates, None]]
    whole = ~covering
    whole[candidates] = False
    return np.concatenate([faces[whole], pieces])


@dataclass(frozen=True)
class MeshSurface:
    """The surface of a mesh with points of its own.

    Attributes:
        point_numbers: Which points of the mesh it uses, ascending, [S] int64.
        faces: Quadrilaterals over them, counter-clockwise seen from outside, [F, 4] int64.
    """

    point_numbers: NDArray[np.int64]
    faces: NDArray[np.int64]


def extract_surface(points: NDArray[np.floating[Any]], cells: NDArray[np.integer[Any]]) -> MeshSurface:
    """The surface of a mesh, without the points inside.

    Args:
        points: Coordinates, [N, 3].
        cells: Zero-based connectivity, [E, 8].
    """
    numbers, faces = np.unique(outer_faces(points, cells), return_inverse=True)
    return MeshSurface(numbers, faces.reshape(-1, 4))
