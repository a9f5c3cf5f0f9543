"""Checks a mesh against the surface it was made of: volume, extents, loose pieces and thin walls, in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.geometry.closed_surface import Surface
from lpbf_data.geometry.voxel_mesh import VoxelMesh

VOLUME_REPORTED: Final = 0.1
"""Relative deviation of the volume from which it is reported."""

VOLUME_REFUSED: Final = 0.5
"""Relative deviation of the volume from which a mesh isn't the part any more."""

EXTENT_REPORTED: Final = 0.05
"""Relative deviation of an extent, beside two cells, from which it is reported."""

EXTENT_REFUSED: Final = 0.2
"""Relative deviation of an extent, beside two cells, from which a mesh isn't the part any more."""

MISSING_REPORTED: Final = 0.05
"""Share of the walls missing in the mesh from which it is reported."""

USUAL_MAX_POINTS: Final = 50_000
"""Largest number of points in the published data set (paper, appendix G.2): no model was trained on more."""

_WHOLE_CELL: Final = 0.999  # cells across a wall: a cell, but for the rounding of coordinates
_ONE_CELL: Final = 1.05  # cells across a wall that are sure to hold the centre of one
_HANGS_TOGETHER: Final = 1.8  # cells across a slanting strut whose cells share faces: a bit over the root of three
_RAYS: Final = 500
_MAX_HITS: Final = 10_000_000  # pairs of rays and triangles in all
_PAIRS: Final = 500_000  # of them that are looked at together
_FACING: Final = 0.9  # cosine: sides of a wall face away from each other, those of a wedge don't
_THINNEST: Final = 0.01  # share of the surface that may be thinner still


@dataclass(frozen=True)
class MeshCheck:
    """A mesh beside the surface that it came from.

    Attributes:
        volume: Of the mesh over that of the surface.
        extents: Of the mesh, mm, [3].
        surface_extents: Of the surface, mm, [3].
        spacing: Of the cells, mm, [3].
        left_out: Cells of pieces that aren't connected with the mesh.
        wall: Thickness of the thinnest walls in mm; None where no wall was met.
        cells_across: The same in cells.
        num_points: Points of the mesh.
        missing: Share of the walls, by area, that have no cell.
        needed_points: How many points to ask for to get a mesh without differences; it was made and checked. None where
            this mesh has none, or where no such number was looked for or found.
        points_tried: The largest number of points that was tried for that; 0 where none was.
    """

    volume: float
    extents: tuple[float, float, float]
    surface_extents: tuple[float, float, float]
    spacing: tuple[float, float, float]
    left_out: int
    wall: float | None
    cells_across: float | None
    num_points: int
    missing: float = 0.0
    needed_points: int | None = None
    points_tried: int = 0

    @property
    def has_thin_walls(self) -> bool:
        """Whether the thinnest walls are less than a cell thick, by more than rounding."""
        return self.cells_across is not None and self.cells_across < _WHOLE_CELL

    @property
    def resolved_wall(self) -> float | None:
        """About the thinnest walls in mm that the usual largest number of points resolves; None if those are thicker.

        It is None, too, where fewer points are known to resolve them.
        """
        if self.wall is None or self.cells_across is None or self.needed_points is not None:
            return None
        in_pieces = self.left_out > 0 and self.missing > MISSING_REPORTED
        wanted = _HANGS_TOGETHER if in_pieces else _ONE_CELL
        cell = self.wall / max(self.cells_across, 1e-3) * math.cbrt(self.num_points / USUAL_MAX_POINTS)
        return wanted * cell if wanted * cell > self.wall else None

    def differing_axes(self, bound: float) -> tuple[int, ...]:
        """Axes along which mesh and surface differ by more than two cells and a share."""
        pairs = zip(self.extents, self.surface_extents, self.spacing, strict=True)
        return tuple(k for k, (a, b, cell) in enumerate(pairs) if abs(a - b) > max(2.01 * cell, bound * b))

    @property
    def is_another_part(self) -> bool:
        """Whether the mesh differs so much that results on it wouldn't be those of the part."""
        return abs(self.volume - 1) > VOLUME_REFUSED or bool(self.differing_axes(EXTENT_REFUSED))

    @property
    def is_quite_the_part(self) -> bool:
        """Whether volume, extents and walls are those of the part, so that results on the mesh hold for the part."""
        there = abs(self.volume - 1) <= VOLUME_REPORTED and self.missing <= MISSING_REPORTED
        return there and not self.differing_axes(EXTENT_REPORTED)

    def differences(self) -> tuple[str, ...]:
        """What differs by more than the stated bounds, in numbers."""
        found = self.lost()
        if self.has_thin_walls:
            found += (f"walls of {self.wall:.2g} mm are {self.cells_across:.2g} cells thick",)
        return found

    def lost(self) -> tuple[str, ...]:
        """As `differences`, without walls that are thin but have cells."""
        found = [
            f"{self.extents[k]:.4g} of {self.surface_extents[k]:.4g} mm along {'xyz'[k]}"
            for k in self.differing_axes(EXTENT_REPORTED)
        ]
        if abs(self.volume - 1) > VOLUME_REPORTED:
            found.append(f"{self.volume:.0%} of its volume")
        if self.left_out:
            found.append(f"{self.left_out:,} cells in loose pieces are missing")
        if self.missing > MISSING_REPORTED:
            found.append(f"{self.missing:.0%} of its walls are missing")
        return tuple(found)

    def advice(self) -> str:
        """What would help."""
        if self.needed_points is not None:
            return f"--points {self.needed_points} gives a mesh that represents the part"
        tried = self.points_tried or (self.num_points if self.num_points >= USUAL_MAX_POINTS else 0)
        if not tried:
            return "ask for more points"
        said = f"no mesh that was tried represents the part, up to {tried:,} points"
        if self.resolved_wall is None:
            return said
        return f"{said}; make these walls {self.resolved_wall:.2g} mm thick, or cut the part into pieces"


@dataclass(frozen=True)
class Walls:
    """Walls of a surface, met by rays that go inwards from random points of it.

    Attributes:
        middles: Middle of each wall, mm, [W, 3].
        directions: Unit vector of each ray, [W, 3].
        thickness: Thickness of each wall along its ray, mm, [W].
    """

    middles: NDArray[np.float64]
    directions: NDArray[np.float64]
    thickness: NDArray[np.float64]

    def thinnest(self, spacing: Sequence[float]) -> tuple[float, float] | None:
        """Thickness of the thinnest walls, in mm and in cells.

        Args:
            spacing: Edges of a cell, mm, [3].

        Returns:
            The thickness in mm of the wall that 99 % of the walls exceed in cells, and its cells; None where no ray
            met a wall.
        """
        if not len(self.thickness):
            return None
        cells = self.thickness * np.linalg.norm(self.directions / np.asarray(spacing), axis=1)
        index = int(np.argsort(cells)[int(_THINNEST * len(cells))])
        return float(self.thickness[index]), float(cells[index])


def check_mesh(surface: Surface, mesh: VoxelMesh, walls: Walls | None = None) -> MeshCheck:
    """Compare a mesh with its surface.

    Args:
        surface: The surface.
        mesh: What `voxelize` made of it.
        walls: The walls of the surface, where they have been found already: they take longest.
    """
    sizes = (np.ptp(mesh.indices, axis=0) + 1) * np.asarray(mesh.spacing)
    x, y, z = map(float, sizes)
    sx, sy, sz = map(float, np.ptp(surface.bounds, axis=0))
    enclosed = surface.volume - mesh.surplus
    volume = mesh.num_cells * math.prod(mesh.spacing) / enclosed if enclosed > 0 else math.inf
    walls = walls or find_walls(surface)
    wall, across = walls.thinnest(mesh.spacing) or (None, None)
    missing = float(_without_cell(mesh, walls.middles).mean()) if len(walls.middles) else 0.0
    extents, own = (x, y, z), (sx, sy, sz)
    return MeshCheck(volume, extents, own, mesh.spacing, mesh.left_out, wall, across, mesh.num_points, missing)


def _without_cell(mesh: VoxelMesh, positions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether positions are farther than half a cell from every cell of a mesh, [P] from [P, 3]."""
    spacing = np.asarray(mesh.spacing)
    grid = (positions - np.asarray(mesh.origin)) / spacing - (0, 0, mesh.lowered)
    mask = np.zeros(mesh.indices.max(axis=0) + 3, bool)  # with a frame of no cells
    mask[tuple(mesh.indices.T + 1)] = True
    steps = 0.5 * np.array([(0, 0, 0), *np.eye(3), *-np.eye(3)])
    near = np.clip(np.floor(grid[:, None] + steps).astype(np.int64) + 1, 0, np.array(mask.shape) - 1)
    found: NDArray[np.bool_] = ~mask[tuple(np.moveaxis(near, 2, 0))].any(axis=1)
    return found


def find_walls(surface: Surface) -> Walls:
    """The walls of a surface, below points of it that are the same in each call."""
    corners = surface.vertices[surface.triangles]
    normals = surface.area_vectors()
    areas = np.linalg.norm(normals, axis=1)
    count = min(_RAYS, max(20, _MAX_HITS // len(corners)))
    rng = np.random.default_rng(0)
    chosen = np.searchsorted(np.cumsum(areas), (np.arange(count) + rng.random(count)) / count * areas.sum())
    chosen = chosen[chosen < len(corners)]
    shares = rng.dirichlet((1, 1, 1), len(chosen))
    starts = np.einsum("ij,ijk->ik", shares, corners[chosen])
    del corners
    inwards = -normals[chosen] / areas[chosen, None]
    thickness = _first_walls(surface, starts, inwards)
    met = np.isfinite(thickness)
    starts, inwards, thickness = starts[met], inwards[met], thickness[met]
    return Walls(starts + inwards * thickness[:, None] / 2, inwards, thickness)


def _first_walls(surface: Surface, starts: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances from points to the next triangle that faces the other way, [R]; infinite for wedges and misses.

    A ray is tested against those triangles alone whose bounding spheres it meets.

    Args:
        surface: The surface.
        starts: Points, mm, [R, 3].
        directions: Unit vectors, [R, 3].
    """
    slack = 1e-7 * float(np.ptp(surface.bounds, axis=0).max())
    corners = surface.vertices[surface.triangles]
    middles = corners.mean(axis=1)
    radii = np.sqrt(((corners - middles[:, None]) ** 2).sum(axis=2).max(axis=1)) + slack
    found = np.full(len(starts), math.inf)
    rays_at_once = max(1, _PAIRS // len(corners))
    for begin in range(0, len(starts), rays_at_once):
        some = slice(begin, begin + rays_at_once)
        # A common origin near the ray keeps digits, since squares of distances are subtracted.
        origin = starts[some].mean(axis=0)
        start, direction, middle = starts[some] - origin, directions[some], middles - origin
        along = direction @ middle.T - np.einsum("rk,rk->r", start, direction)[:, None]
        away = -2 * (start @ middle.T)
        away += (middle**2).sum(axis=1)
        away += (start**2).sum(axis=1)[:, None]
        away -= along**2
        ray, triangle = np.nonzero((away <= radii**2) & (along >= -radii))
        distances, facing = _hits(starts[some][ray], direction[ray], corners[triangle], slack)
        order = np.lexsort((distances, ray))
        rays, first = np.unique(ray[order], return_index=True)
        nearest = order[first]
        found[begin + rays] = np.where(facing[nearest], distances[nearest], math.inf)
    return found


def _hits(
    start: NDArray[np.float64], direction: NDArray[np.float64], corners: NDArray[np.float64], least: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Distances at which rays go through triangles, infinite where they don't, and whether these face along the ray.

    Möller and Trumbore (1997), for pairs: [P] from [P, 3], [P, 3] and [P, 3, 3].
    """
    one, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normals, across = np.cross(one, other), np.cross(direction, other)
    scale = np.einsum("pk,pk->p", one, across)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = start - corners[:, 0]
        u = np.einsum("pk,pk->p", offset, across) / scale
        turned = np.cross(offset, one)
        v = np.einsum("pk,pk->p", turned, direction) / scale
        distance = np.einsum("pk,pk->p", other, turned) / scale
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > least)
    facing = np.einsum("pk,pk->p", normals, direction) > _FACING * np.linalg.norm(normals, axis=1)
    return np.where(hit, distance, math.inf), facing
