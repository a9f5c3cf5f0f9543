"""A mesh of equal axis-aligned boxes, numbered plane by plane as a part grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lpbf_data.cached_property import cached_property
from lpbf_data.errors import GeometryError
from lpbf_data.geometry.hexahedra import HEX8_CORNERS


@dataclass(frozen=True)
class VoxelMesh:
    """A mesh of equal axis-aligned boxes.

    Cells are numbered from the bottom up: by z, then y, then x. So are points, but in the order in which cells need
    them when the part grows plane by plane: a point with no cell below it comes with the plane of cells above it.

    Attributes:
        origin: Corner of the grid with the least coordinates, mm.
        spacing: Edges of a cell, mm.
        shape: Cells of the grid along each axis; along x and y it spans the bounding box of the surface.
        indices: Index of each cell in the grid along x, y and z, [E, 3] int64.
        left_out: Cells inside the surface that aren't connected with the others by faces.
        lowered: Planes of cells below the first one that has any; the mesh stands so much lower than the surface.
        surplus: Volume in mm³ that the surface encloses more than once.
    """

    origin: tuple[float, float, float]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    indices: NDArray[np.int64]
    left_out: int = 0
    lowered: int = 0
    surplus: float = 0.0

    @cached_property
    def _topology(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
        return _number_points(self.indices)

    @property
    def point_indices(self) -> NDArray[np.int64]:
        """Index of each point in the grid along x, y and z, [N, 3] int64."""
        return self._topology[0]

    @property
    def cells(self) -> NDArray[np.int32]:
        """Zero-based hexahedra, [E, 8], node order of VTK."""
        return self._topology[1]

    @property
    def point_levels(self) -> NDArray[np.int64]:
        """How many planes of cells must be there for each point to be there, [N]; 0 on the build plate, and sorted."""
        return self._topology[2]

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """Coordinates in mm, [N, 3]."""
        points: NDArray[np.float64] = np.asarray(self.origin) + self.point_indices * np.asarray(self.spacing)
        return points

    @property
    def num_points(self) -> int:
        """Number of points N."""
        return len(self.point_indices)

    @property
    def num_cells(self) -> int:
        """Number of cells E."""
        return len(self.indices)

    @property
    def num_planes(self) -> int:
        """Planes of cells from the build plate to the highest cell."""
        return int(self.indices[:, 2].max()) + 1


def _number_points(
    indices: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Grid indices of the points [N, 3], cells [E, 8], and levels of the points [N]."""
    corners = indices[:, None, :] + HEX8_CORNERS
    nx, ny = int(corners[..., 0].max()) + 1, int(corners[..., 1].max()) + 1
    keys = (corners[..., 2] * ny + corners[..., 1]) * nx + corners[..., 0]
    unique, inverse = np.unique(keys, return_inverse=True)
    cells = inverse.reshape(-1, 8)
    positions = np.stack([unique % nx, unique // nx % ny, unique // (nx * ny)], axis=1)
    rests = positions[:, 2] == 0
    rests[cells[:, 4:]] = True
    levels = positions[:, 2] + ~rests
    order = np.argsort(levels, kind="stable")
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return positions[order], number[cells].astype(np.int32), levels[order]


def mesh_of_mask(mask: NDArray[np.bool_], origin: Sequence[float], spacing: Sequence[float]) -> VoxelMesh:
    """The cells of a grid that are set, as a mesh.

    Args:
        mask: [nx, ny, nz].
        origin: Corner of the grid with the least coordinates, mm.
        spacing: Edges of a cell, mm.

    Raises:
        GeometryError: If no cell is set.

    >>> mesh_of_mask(np.ones((2, 1, 1), bool), (0, 0, 0), (1, 1, 1)).num_points
    12
    """
    indices = np.argwhere(mask)
    if len(indices) == 0:
        size = " × ".join(f"{n * s:.3g}" for n, s in zip(mask.shape, spacing, strict=True))
        raise GeometryError(
            f"no cell of the grid of {size} mm lies inside the surface; say its unit (--units) if its "
            "lengths aren't in mm, else ask for more points"
        )
    order = np.lexsort(indices.T)
    ox, oy, oz = map(float, origin)
    sx, sy, sz = map(float, spacing)
    nx, ny, nz = mask.shape
    return VoxelMesh((ox, oy, oz), (sx, sy, sz), (nx, ny, nz), indices[order])
