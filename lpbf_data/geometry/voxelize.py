"""A closed surface to a mesh of axis-aligned hexahedra.

Every column of cells is pierced by vertical lines; where a line enters and leaves the surface tells which part of it
lies inside. A cell becomes a hexahedron when its centre (or more than half of its sample points) does; by this rule
NetFabb activates the same number of cells on both parts whose logs tell it. Used wherever a part comes as a surface: by
the simulator, and for predictions on parts that were never simulated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lpbf_data.cached import cached_property
from lpbf_data.errors import GeometryError
from lpbf_data.geometry.rows import unique_rows

_SAMPLES: Final = 1  # NetFabb's rule: a cell belongs to the part when its centre does
_OFF_CENTRE: Final = 1e-6 * np.array([0.6180339887, 0.3819660113])
# Lines lie off the centres by this share of a cell, because corners of designs lie on round numbers.
_CORNERS: Final = np.array(
    [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=np.int64
)
_ATTEMPTS: Final = 12
_CLOSE_ENOUGH: Final = 0.04  # relative deviation from the number of points asked for
_FALLS_APART: Final = 0.9
_MOST_SAMPLES: Final = 64_000_000  # of a grid, 1 byte each, and 4 for a moment; the stated bound is 1 GiB with all else
_MOST_ALONG: Final = 100_000
_TILE: Final = 2_000_000  # samples and crossings that are worked on together


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
        starts, ends = self.triangles.T.ravel(), self.triangles[:, [1, 2, 0]].T.ravel()
        least, most = np.minimum(starts, ends), np.maximum(starts, ends)
        edges = np.unique(least * len(self.vertices) + most, return_inverse=True)[1].ravel()
        # Each edge is passed as often in one direction as in the other; a facet that is there twice shows here.
        uneven = np.bincount(edges, np.where(starts < ends, 1, -1)) != 0
        if uneven.any():
            raise GeometryError(
                f"the surface is not watertight: {int(uneven.sum()):,} of {len(uneven):,} edges have no neighbour, or "
                "one that is turned or there twice; repair it in a CAD program or with trimesh.repair"
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


def inside_surface(vertices: NDArray[np.float64], triangles: NDArray[np.int64], place: NDArray[np.float64]) -> bool:
    """Whether triangles that face outwards wind around a place more than half a time.

    The solid angles of the triangles are added (Van Oosterom and Strackee, 1983).

    Args:
        vertices: [V, 3].
        triangles: [T, 3].
        place: [3].
    """
    a, b, c = (vertices[triangles[:, k]] - place for k in range(3))
    la, lb, lc = (np.linalg.norm(side, axis=1) for side in (a, b, c))
    above = np.einsum("ij,ij->i", a, np.cross(b, c))
    below = la * lb * lc + lc * np.einsum("ij,ij->i", a, b)
    below += lb * np.einsum("ij,ij->i", a, c) + la * np.einsum("ij,ij->i", b, c)
    return float(2 * np.arctan2(above, below).sum() / (4 * math.pi)) > 0.5


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
    import trimesh

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
    """Which share of each cell of a grid lies inside a surface: where it winds around a place more than no time.

    Shells that overlap or lie in one another are united by this; a shell that faces inwards is a cavity.

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
    return _fill(surface, origin, spacing, shape, samples)[0]


def _fill(
    surface: Surface, origin: Sequence[float], spacing: Sequence[float], shape: tuple[int, int, int], samples: int
) -> tuple[NDArray[np.float32], float]:
    """Shares as `fill_fractions` gives them, and the surplus of the surface's volume over that of the union in cells.

    The volume of a surface counts what lies in several shells several times.
    """
    fine = tuple(n * samples for n in shape)
    if math.prod(fine) > _MOST_SAMPLES or max(fine) > _MOST_ALONG:
        raise GeometryError(
            f"a grid of {shape[0]:,} × {shape[1]:,} × {shape[2]:,} cells is too fine (at most {_MOST_SAMPLES:,}); ask "
            "for fewer points"
        )
    start, step = np.asarray(origin, np.float64), np.asarray(spacing, np.float64) / samples
    shares, surplus = np.empty(shape, np.float32), 0.0
    lines = max(1, _TILE // (fine[2] + 1))
    across = max(1, min(shape[1], lines // samples))
    along = max(1, lines // (across * samples) // samples)
    for x in range(0, shape[0], along):
        for y in range(0, shape[1], across):
            low, high = (x, y), (min(x + along, shape[0]), min(y + across, shape[1]))
            tile = (samples * low[0], samples * high[0]), (samples * low[1], samples * high[1])
            winding = _winding(surface, start, step, fine, tile)
            inside = winding > 0
            surplus += float(winding.sum(dtype=np.float64) - inside.sum()) / samples**3
            nx, ny = high[0] - low[0], high[1] - low[1]
            blocks = inside.reshape(nx, samples, ny, samples, shape[2], samples)
            shares[low[0] : high[0], low[1] : high[1]] = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    return shares, surplus


def _winding(
    surface: Surface,
    start: NDArray[np.float64],
    step: NDArray[np.float64],
    fine: tuple[int, ...],
    tile: tuple[tuple[int, int], tuple[int, int]],
) -> NDArray[np.int32]:
    """How often the surface winds around each sample of some columns, [x, y, z]; 1 inside of one shell."""
    (x0, x1), (y0, y1) = tile
    shape = (x1 - x0, y1 - y0, fine[2] + 1)
    changes = np.zeros(math.prod(shape), np.int32)
    for lines, heights, signs in _crossings(surface, start, step, tile):
        level = np.clip(np.ceil((heights - start[2]) / step[2] - 0.5), 0, fine[2]).astype(np.int64)
        columns = (lines[:, 0] - x0) * shape[1] + lines[:, 1] - y0
        np.add.at(changes, columns * shape[2] + level, signs)
    winding = np.cumsum(changes.reshape(shape), axis=2, dtype=np.int32)
    if winding[:, :, -1].any():
        raise GeometryError(
            "the surface isn't closed: lines that enter it don't leave it again; repair it in a CAD program or with "
            "trimesh.repair"
        )
    return winding[:, :, :-1]


def _crossings(
    surface: Surface,
    start: NDArray[np.float64],
    step: NDArray[np.float64],
    tile: tuple[tuple[int, int], tuple[int, int]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]]:
    """Where vertical lines of a tile meet the surface: the line, [n, 2]; the height; +1 on entering from below or -1.

    It comes in pieces, so that memory doesn't follow the number of triangles times that of lines.
    """
    flat = (surface.vertices[:, :2] - start[:2]) / step[:2] - 0.5 - _OFF_CENTRE  # lines stand on whole numbers
    corners = flat[surface.triangles]
    (x0, x1), (y0, y1) = tile
    low = np.maximum(np.ceil(corners.min(axis=1)), (x0, y0)).astype(np.int64)
    high = np.minimum(np.floor(corners.max(axis=1)), (x1 - 1, y1 - 1)).astype(np.int64)
    counts = np.maximum(high - low + 1, 0).prod(axis=1)
    met = np.flatnonzero(counts)
    bounds = np.cumsum(counts[met])
    first = 0
    while first < len(met):
        before = bounds[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(bounds, before + _TILE, side="right")))
        chosen = met[first:last]
        yield _crossings_of(surface, flat, chosen, low[chosen], high[chosen])
        first = last


def _crossings_of(
    surface: Surface,
    flat: NDArray[np.float64],
    chosen: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]:
    """Crossings of some triangles with the lines in their boxes."""
    counts = (high - low + 1).prod(axis=1)
    own = np.repeat(np.arange(len(chosen)), counts)
    within = np.arange(len(own)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = (high[:, 1] - low[:, 1] + 1)[own]
    line = low[own] + np.stack([within // width, within % width], axis=1)
    corners, triangle = surface.triangles[chosen], own
    sides = [_side(flat, corners[:, k], corners[:, (k + 1) % 3], triangle, line) for k in range(3)]
    area = sides[0][0] + sides[1][0] + sides[2][0]
    hit = (sides[0][1] == sides[1][1]) & (sides[1][1] == sides[2][1]) & (area != 0)
    weights = np.stack([sides[1][0], sides[2][0], sides[0][0]], axis=1)[hit] / area[hit, None]
    heights = np.einsum("ij,ij->i", weights, surface.vertices[corners[triangle[hit]], 2])
    # Seen from above, a triangle that faces down has its corners clockwise: there a line enters the part.
    return line[hit], heights, np.where(sides[0][1][hit], -1, 1).astype(np.int32)


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
        left_out: Cells inside the surface that don't hang together with the others by faces.
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

    @property
    def num_planes(self) -> int:
        """Planes of cells from the build plate to the highest cell."""
        return int(self.indices[:, 2].max()) + 1


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
            f"no cell of the grid of {size} mm lies inside the surface; say its unit (--units) if its "
            "lengths aren't in mm, else ask for more points"
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
    grid = (int(across[0]), int(across[1]), up)
    shares, surplus = _fill(surface, low, spacing, grid, samples)
    mask = shares > 0.5
    del shares
    labels, pieces = ndimage.label(mask)
    left_out = 0
    if pieces > 1:
        sizes = np.bincount(labels.ravel())[1:]
        if sizes.max() < _FALLS_APART * sizes.sum():
            raise GeometryError(
                f"the mesh falls apart into {pieces} pieces at cells of {cell[0]:.3g} mm: walls are thinner than "
                "cells; ask for more points"
            )
        mask = labels == 1 + int(sizes.argmax())
        left_out = int(sizes.sum() - sizes.max())
    filled = np.flatnonzero(mask.any(axis=(0, 1)))
    mask = mask[:, :, filled[0] :] if len(filled) else mask
    lowered = int(filled[0]) if len(filled) else 0
    mesh = mesh_of_mask(mask, low, spacing)
    return replace(mesh, left_out=left_out, lowered=lowered, surplus=surplus * math.prod(spacing))


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
    """A surface from arrays of any number type; vertices at one place become one, unused ones are left out.

    Args:
        vertices: Coordinates in mm, [V, 3].
        triangles: [T, 3].

    Raises:
        GeometryError: See `Surface`.
    """
    vertices = np.asarray(vertices, np.float64)
    first, place = unique_rows(vertices)
    merged = place[np.asarray(triangles, np.int64)]
    proper = (merged[:, 0] != merged[:, 1]) & (merged[:, 1] != merged[:, 2]) & (merged[:, 2] != merged[:, 0])
    used, numbers = np.unique(merged[proper], return_inverse=True)
    return Surface(vertices[first[used]], numbers.reshape(-1, 3))
