"""A closed surface to a mesh of axis-aligned hexahedra.

Every column of cells is pierced by vertical lines; where a line enters and leaves the surface tells which part of it
lies inside. A cell becomes a hexahedron when its centre (or more than half of its sample points) does; by this rule
NetFabb activates the same number of cells on both parts whose logs tell it. Used wherever a part comes as a surface: by
the simulator, and for predictions on parts that were never simulated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy import ndimage

from lpbf_data.cached import cached_property
from lpbf_data.errors import GeometryError

_SAMPLES: Final = 1  # NetFabb's rule: a cell belongs to the part when its centre does
_OFF_CENTRE: Final = 1e-6 * np.array([0.6180339887, 0.3819660113])
# Lines lie off the centres by this share of a cell, because corners of designs lie on round numbers.
_CORNERS: Final = np.array(
    [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=np.int64
)
_ATTEMPTS: Final = 12
_CLOSE_ENOUGH: Final = 0.04  # relative deviation from the number of points asked for
_FALLS_APART: Final = 0.9
_MOST_SAMPLES: Final = 400_000_000


@dataclass(frozen=True)
class Surface:
    """A closed, consistently oriented triangulated surface.

    Attributes:
        vertices: Coordinates in mm, [V, 3] float64.
        triangles: Corners of the triangles, counter-clockwise seen from outside, [T, 3].

    Raises:
        GeometryError: If the surface isn't closed, or its triangles don't agree on which side is outside.
    """

    vertices: NDArray[np.float64]
    triangles: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.triangles) == 0:
            raise GeometryError("the surface has no triangles")
        if not np.isfinite(self.vertices).all():
            raise GeometryError("a coordinate of the surface is not a finite number")
        ends = np.concatenate([self.triangles[:, [0, 1]], self.triangles[:, [1, 2]], self.triangles[:, [2, 0]]])
        keys = ends[:, 0] * len(self.vertices) + ends[:, 1]
        reverse = ends[:, 1] * len(self.vertices) + ends[:, 0]
        unmatched = int((~np.isin(keys, reverse)).sum())
        if unmatched:
            raise GeometryError(
                f"the surface is not watertight: {unmatched:,} of {len(keys):,} edges have no neighbour; close its "
                "holes in a CAD program or with trimesh.repair"
            )
        if self.volume <= 0:
            raise GeometryError("the surface encloses no volume, or its triangles face inwards; flip their orientation")

    @property
    def volume(self) -> float:
        """Enclosed volume in mm³."""
        a, b, c = (self.vertices[self.triangles[:, k]] for k in range(3))
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0)

    @property
    def bounds(self) -> NDArray[np.float64]:
        """Least and largest coordinates, [2, 3]."""
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])


def load_surface(path: Path) -> Surface:
    """Read a surface from a file of any format that trimesh knows (STL, OBJ, PLY, 3MF, …).

    Args:
        path: The file; lengths are taken as mm.

    Raises:
        GeometryError: If it can't be read or isn't watertight.
    """
    try:
        mesh = trimesh.load_mesh(path, process=True)
    except Exception as error:  # trimesh raises whatever its readers raise
        raise GeometryError(f"{path} can't be read as a surface: {error}") from error
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        raise GeometryError(f"{path} holds no triangulated surface")
    try:
        return Surface(np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64))
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def on_build_plate(surface: Surface, *, centre: bool = False) -> Surface:
    """Move a surface so that its lowest point lies at z = 0.

    Args:
        surface: The surface.
        centre: Move the middle of its extents to x = y = 0 as well.
    """
    low, high = surface.bounds
    shift = np.array([*(low + high)[:2] / 2 * centre, low[2]])
    return Surface(surface.vertices - shift, surface.triangles)


def write_stl(path: Path, surface: Surface) -> None:
    """Write a surface as a binary STL file.

    Args:
        path: The file.
        surface: The surface.
    """
    path.write_bytes(
        trimesh.exchange.stl.export_stl(trimesh.Trimesh(surface.vertices, surface.triangles, process=False))
    )


def fill_fractions(
    surface: Surface,
    origin: Sequence[float],
    spacing: Sequence[float],
    shape: tuple[int, int, int],
    *,
    samples: int = _SAMPLES,
) -> NDArray[np.float32]:
    """Which share of each cell of a grid lies inside a surface.

    Args:
        surface: The surface.
        origin: Corner of the grid with the least coordinates, mm.
        spacing: Edges of a cell, mm.
        shape: Cells along x, y and z.
        samples: Sample points along each edge of a cell; 1 asks for its centre only.

    Returns:
        Shares from 0 to 1, [nx, ny, nz].

    Raises:
        GeometryError: If the grid is too fine for the memory.
    """
    fine = tuple(n * samples for n in shape)
    if math.prod(fine) > _MOST_SAMPLES:
        raise GeometryError(f"a grid of {shape[0]} × {shape[1]} × {shape[2]} cells is too fine; ask for fewer points")
    start = np.asarray(origin, np.float64)
    step = np.asarray(spacing, np.float64) / samples
    columns, heights, signs = _crossings(surface, start, step, fine[:2])
    level = np.ceil((heights - start[2]) / step[2] - 0.5)
    level = np.clip(level, 0, fine[2]).astype(np.int64)
    changes = np.bincount(columns * (fine[2] + 1) + level, weights=signs, minlength=fine[0] * fine[1] * (fine[2] + 1))
    winding = np.cumsum(changes.reshape(fine[0], fine[1], fine[2] + 1), axis=2)[:, :, :-1]
    inside = np.rint(winding) != 0
    nx, ny, nz = shape
    shares: NDArray[np.float32] = inside.reshape(nx, samples, ny, samples, nz, samples).mean(
        axis=(1, 3, 5), dtype=np.float32
    )
    return shares


def _crossings(
    surface: Surface, start: NDArray[np.float64], step: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Where vertical lines meet the surface: number of the line, height, and +1 on entering from below or -1."""
    flat = (surface.vertices[:, :2] - start[:2]) / step[:2] - 0.5 - _OFF_CENTRE  # lines stand on whole numbers
    corners = flat[surface.triangles]
    low = np.maximum(np.ceil(corners.min(axis=1)), 0).astype(np.int64)
    high = np.minimum(np.floor(corners.max(axis=1)), np.array(shape) - 1).astype(np.int64)
    counts = np.maximum(high - low + 1, 0).prod(axis=1)
    triangle = np.repeat(np.arange(len(corners)), counts)
    within = np.arange(len(triangle)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = np.maximum(high[:, 1] - low[:, 1] + 1, 1)[triangle]
    line = low[triangle] + np.stack([within // width, within % width], axis=1)
    sides = [_side(flat, surface.triangles[:, k], surface.triangles[:, (k + 1) % 3], triangle, line) for k in range(3)]
    area = sides[0][0] + sides[1][0] + sides[2][0]
    hit = (sides[0][1] == sides[1][1]) & (sides[1][1] == sides[2][1]) & (area != 0)
    weights = np.stack([sides[1][0], sides[2][0], sides[0][0]], axis=1)[hit] / area[hit, None]
    heights = np.einsum("ij,ij->i", weights, surface.vertices[surface.triangles[triangle[hit]], 2])
    numbers = line[hit, 0] * shape[1] + line[hit, 1]
    # Seen from above, a triangle that faces down has its corners clockwise: there a line enters the part.
    return numbers, heights, np.where(sides[0][1][hit], -1.0, 1.0)


def _side(
    flat: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    triangle: NDArray[np.int64],
    line: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Twice the signed area between an edge of each triangle and a line, and whether the line lies on its left.

    Both triangles of an edge compute the area with its ends in the same order, so that they never both claim a line,
    and never both leave it out.
    """
    swap = first > second
    a, b = np.where(swap, second, first)[triangle], np.where(swap, first, second)[triangle]
    along, to = flat[b] - flat[a], line - flat[a]
    area = along[:, 0] * to[:, 1] - along[:, 1] * to[:, 0]
    turned = swap[triangle]
    return np.where(turned, -area, area), (area >= 0) != turned


@dataclass(frozen=True)
class VoxelMesh:
    """A mesh of equal axis-aligned boxes.

    Cells are numbered from the bottom up: by z, then y, then x. So are points, but in the order in which cells need
    them when the part grows plane by plane: a point with no cell below it comes with the plane of cells above it.

    Attributes:
        origin: Corner of the grid with the least coordinates, mm.
        spacing: Edges of a cell, mm.
        shape: Cells of the grid along each axis; along x and y it spans the bounding box of the surface.
        indices: Place of each cell in the grid, [E, 3].
    """

    origin: tuple[float, float, float]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    indices: NDArray[np.int64]

    @cached_property
    def _topology(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
        return _number_points(self.indices)

    @property
    def point_indices(self) -> NDArray[np.int64]:
        """Place of each point in the grid, [N, 3]."""
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


def _number_points(
    indices: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Places of the points, cells, and levels of the points."""
    corners = indices[:, None, :] + _CORNERS
    nx, ny = int(corners[..., 0].max()) + 1, int(corners[..., 1].max()) + 1
    keys = (corners[..., 2] * ny + corners[..., 1]) * nx + corners[..., 0]
    unique, inverse = np.unique(keys, return_inverse=True)
    cells = inverse.reshape(-1, 8)
    places = np.stack([unique % nx, unique // nx % ny, unique // (nx * ny)], axis=1)
    rests = places[:, 2] == 0
    rests[cells[:, 4:]] = True
    levels = places[:, 2] + ~rests
    order = np.argsort(levels, kind="stable")
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return places[order], number[cells].astype(np.int32), levels[order]


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
            f"no cell of the grid of {size} mm lies inside the surface; lengths must be in mm, and if they are, "
            "ask for more points"
        )
    order = np.lexsort(indices.T)
    ox, oy, oz = map(float, origin)
    sx, sy, sz = map(float, spacing)
    nx, ny, nz = mask.shape
    return VoxelMesh((ox, oy, oz), (sx, sy, sz), (nx, ny, nz), indices[order])


def voxelize(surface: Surface, cell: tuple[float, float], *, samples: int = _SAMPLES) -> VoxelMesh:
    """Mesh the inside of a surface with cells of about a size.

    The width of the cells is fitted to the extents of the surface, as NetFabb does; their height isn't, since it is a
    whole number of powder layers.

    Args:
        surface: The surface.
        cell: Width and height of a cell, mm.
        samples: See `fill_fractions`.

    Returns:
        The largest piece that hangs together by faces of cells, its bottom at the bottom of the surface.

    Raises:
        GeometryError: If no cell lies inside, or the mesh falls apart because walls are thinner than cells.
    """
    low, high = surface.bounds
    size = high - low
    across = np.maximum(np.rint(size[:2] / cell[0]), 1).astype(int)
    up = max(1, math.ceil(size[2] / cell[1] - 1e-9))
    spacing = (size[0] / across[0], size[1] / across[1], cell[1])
    mask = fill_fractions(surface, low, spacing, (int(across[0]), int(across[1]), up), samples=samples) > 0.5
    labels, pieces = ndimage.label(mask)
    if pieces > 1:
        sizes = np.bincount(labels.ravel())[1:]
        if sizes.max() < _FALLS_APART * sizes.sum():
            raise GeometryError(
                f"the mesh falls apart into {pieces} pieces at cells of {cell[0]:.3g} mm: walls are thinner than "
                "cells; ask for more points"
            )
        mask = labels == 1 + int(sizes.argmax())
    filled = np.flatnonzero(mask.any(axis=(0, 1)))
    mask = mask[:, :, filled[0] :] if len(filled) else mask
    return mesh_of_mask(mask, low, spacing)


def voxelize_to_size(
    surface: Surface, num_points: int, aspect_ratio: float = 1.0, *, layer: float | None = None, planes: int = 1
) -> VoxelMesh:
    """Mesh the inside of a surface with about a number of points.

    Args:
        surface: The surface.
        num_points: Points asked for.
        aspect_ratio: Height of a cell over its width; it is met as far as a whole number of cells fits into the part.
        layer: Thickness of a powder layer in mm, of which the height of a cell is a multiple; None for any height.
        planes: Fewest planes of cells; a flat part of few points then gets cells that are lower than was asked for.

    Returns:
        The mesh that comes closest; thin walls can ask for more points than were wanted.

    Raises:
        GeometryError: If the surface can't be meshed with anything near to that many points.
    """
    width = (surface.volume / (0.7 * num_points * aspect_ratio)) ** (1 / 3)
    extent = float(np.ptp(surface.bounds[:, 2]))
    best: VoxelMesh | None = None
    trouble: GeometryError | None = None
    for _ in range(_ATTEMPTS):
        height = extent / max(planes, round(extent / (width * aspect_ratio)))
        if layer is not None:
            height = max(1, math.floor(height / layer + 1e-6)) * layer
        try:
            mesh = voxelize(surface, (width, height))
        except GeometryError as error:
            trouble, width = error, 0.8 * width
            continue
        if best is None or _distance(mesh, num_points) < _distance(best, num_points):
            best = mesh
        if _distance(mesh, num_points) < _CLOSE_ENOUGH:
            break
        width *= (mesh.num_points / num_points) ** (1 / 2.5)
    if best is None:
        assert trouble is not None
        raise trouble
    return best


def _distance(mesh: VoxelMesh, num_points: int) -> float:
    return abs(math.log(mesh.num_points / num_points))


def surface_of_arrays(vertices: NDArray[Any], triangles: NDArray[Any]) -> Surface:
    """A surface from arrays of any number type; vertices at one place become one.

    Args:
        vertices: Coordinates in mm, [V, 3].
        triangles: [T, 3].

    Raises:
        GeometryError: See `Surface`.
    """
    unique, inverse = np.unique(np.asarray(vertices, np.float64), axis=0, return_inverse=True)
    merged = inverse.ravel()[np.asarray(triangles, np.int64)]
    proper = (merged[:, 0] != merged[:, 1]) & (merged[:, 1] != merged[:, 2]) & (merged[:, 2] != merged[:, 0])
    return Surface(unique, merged[proper])
