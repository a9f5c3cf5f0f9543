"""The grid that a mesh of boxes lies in: cells, conforming or with hanging nodes, become solid and empty voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import CaseError, FailureReason

MAX_VOXELS: Final = 64_000_000
"""Most voxels of a grid: 64 MB at one byte each."""

_TOLERANCE: Final = 0.02
"""Coordinates that differ by less than this share of the shortest edge are one plane."""


@dataclass(frozen=True)
class BoxGrid:
    """A mesh of boxes on the grid of all its planes.

    Every face of a cell lies in a plane of the grid, so that a voxel of it is solid or empty as a whole, however the
    mesh is refined.

    Attributes:
        planes: Coordinates of the planes normal to x, y and z, mm, ascending: [nx + 1], [ny + 1], [nz + 1] float64.
        solid: Whether a voxel is solid, [nx, ny, nz] bool.
        vertices: Numbers of the planes in which each point of the mesh lies, [N, 3] int64.
    """

    planes: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
    solid: NDArray[np.bool_]
    vertices: NDArray[np.int64]

    @classmethod
    def of(cls, points: NDArray[np.floating[Any]], cells: NDArray[np.integer[Any]]) -> BoxGrid:
        """The grid of a mesh.

        Args:
            points: Coordinates in mm, [N, 3].
            cells: Zero-based hexahedra, [E, 8].

        Raises:
            CaseError: If there are no cells, one isn't a box along the axes, two overlap, a point belongs to no cell,
                or the grid would have more than `MAX_VOXELS` voxels.
        """
        _check_numbers(points, cells)
        corners = np.ascontiguousarray(cells.T)
        axes = [_planes_of(np.asarray(points[:, axis], dtype=np.float64), corners) for axis in range(3)]
        _check_boxes([numbers[corners] for _, numbers in axes])
        vertices = np.stack([numbers for _, numbers in axes], axis=1)
        shape = (len(axes[0][0]) - 1, len(axes[1][0]) - 1, len(axes[2][0]) - 1)
        if math.prod(shape) > MAX_VOXELS:
            raise _refused(f"its planes make a grid of {' × '.join(map(str, shape))} voxels, more than are taken")
        return cls((axes[0][0], axes[1][0], axes[2][0]), _fill(vertices, corners, shape), vertices)

    @property
    def sizes(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Lengths of the voxels along x, y and z, mm: [nx], [ny], [nz] float64."""
        x, y, z = (np.diff(planes) for planes in self.planes)
        return x, y, z

    def octants(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The eight voxels around each point.

        Returns:
            Flat numbers of the voxels, [8, N] int64 (that of another voxel where there is none), and which are solid,
            [8, N] bool.
        """
        shape = np.array(self.solid.shape)
        flat = np.ascontiguousarray(self.solid).reshape(-1)
        numbers, solid = [], []
        for octant in np.ndindex(2, 2, 2):
            voxels = self.vertices - 1 + np.array(octant)
            inside = ((voxels >= 0) & (voxels < shape)).all(axis=1)
            clipped = np.clip(voxels, 0, shape - 1)
            number = (clipped[:, 0] * shape[1] + clipped[:, 1]) * shape[2] + clipped[:, 2]
            numbers.append(number)
            solid.append(flat[number] & inside)
        return np.stack(numbers), np.stack(solid)

    def surface_vertices(self) -> NDArray[np.bool_]:
        """Whether a vertex of the grid lies on the surface of the part: [nx + 1, ny + 1, nz + 1] bool."""
        counts = np.zeros([n + 1 for n in self.solid.shape], dtype=np.int8)
        for octant in np.ndindex(2, 2, 2):
            window = tuple(slice(o, o + n) for o, n in zip(octant, self.solid.shape, strict=True))
            counts[window] += self.solid
        return (counts > 0) & (counts < 8)


def _refused(what: str) -> CaseError:
    return CaseError(
        FailureReason.UNSUPPORTED_ELEMENT, f"features of the shape need a mesh of boxes along the axes, and {what}"
    )


def _check_numbers(points: NDArray[Any], cells: NDArray[Any]) -> None:
    if cells.ndim != 2 or cells.shape[1] != 8 or len(cells) == 0:
        raise _refused(f"this one has cells of shape {list(cells.shape)} instead of [E, 8]")
    used = np.zeros(len(points), dtype=bool)
    used[cells] = True
    if not used.all():
        count = int((~used).sum())
        raise _refused(f"{count} of {len(points)} points belong to no cell (the first is {int((~used).argmax())})")


def _planes_of(
    coordinates: NDArray[np.float64], corners: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Planes along an axis, ascending, and for each point the number of its own.

    Args:
        coordinates: Of the points along the axis, [N].
        corners: Points at the corners of the cells, [8, E].
    """
    at_corners = coordinates[corners]
    extents = at_corners.max(axis=0) - at_corners.min(axis=0)
    if not extents.min() > 0:
        raise _refused(f"cell {int(extents.argmin())} has no volume")
    values, numbers = np.unique(coordinates, return_inverse=True)
    plane = np.concatenate(([0], np.cumsum(np.diff(values) > _TOLERANCE * extents.min())))
    return np.bincount(plane, values) / np.bincount(plane), plane[numbers]


def _check_boxes(corners: Sequence[NDArray[np.int64]]) -> None:
    """Each corner of a cell lies in the lowest or highest plane of it along each axis, and no two in the same.

    Args:
        corners: Numbers of the planes of the cells' corners along each axis, [3][8, E].
    """
    which = np.zeros(corners[0].shape, dtype=np.int64)
    inside = np.zeros(corners[0].shape, dtype=bool)
    for axis, planes in enumerate(corners):
        at_high = planes == planes.max(axis=0)
        inside |= ~at_high & (planes != planes.min(axis=0))
        which |= at_high.astype(np.int64) << axis
    bad = inside.any(axis=0) | (np.bitwise_or.reduce(1 << which, axis=0) != 255)
    if bad.any():
        raise _refused(f"{int(bad.sum())} of {len(bad)} cells are none (the first is {int(bad.argmax())})")


def _fill(
    vertices: NDArray[np.int64], corners: NDArray[np.integer[Any]], shape: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """Which voxels the cells cover.

    Args:
        vertices: Numbers of the planes of each point, [N, 3].
        corners: Points at the corners of the cells, [8, E].
        shape: Voxels along x, y and z.
    """
    along = [np.ascontiguousarray(vertices[:, axis])[corners] for axis in range(3)]
    low, high = (np.stack([reduce(planes, axis=0) for planes in along], axis=1) for reduce in (np.min, np.max))
    single = (high - low == 1).all(axis=1)
    count = np.zeros(shape, dtype=np.int32)
    np.add.at(count, tuple(low[single].T), 1)
    if not single.all():
        count += _cover(low[~single], high[~single], shape)
    if (count > 1).any():
        raise _refused(f"cells overlap in {int((count > 1).sum())} voxels of its grid")
    return count > 0


def _cover(low: NDArray[np.int64], high: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """How many boxes of several voxels cover each voxel: sums over differences at their eight corners."""
    changes = np.zeros([n + 1 for n in shape], dtype=np.int32)
    for octant in np.ndindex(2, 2, 2):
        corner = np.where(np.array(octant, dtype=bool), high, low)
        np.add.at(changes, tuple(corner.T), 1 - 2 * (sum(octant) % 2))
    for axis in range(3):
        np.cumsum(changes, axis=axis, out=changes)
    return changes[:-1, :-1, :-1]
