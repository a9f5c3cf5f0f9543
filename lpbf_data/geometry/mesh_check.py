"""Checks a mesh against the surface it was made of: volume, extents, loose pieces and thin walls, in numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.remarks import Remark, Treatment

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

_ONE_CELL: Final = 1.05  # cells across a wall that are sure to hold the centre of one
_HANGS_TOGETHER: Final = 1.8  # cells across a slanting strut whose cells share faces: a bit over the root of three
_TRIALS: Final = (1, 2, 4)  # times as many points as were asked for, to keep a part whole
_FINE_TRIALS: Final = (1, 1.12, 1.25, 1.4, 1.6, 2, 2.5, 3.2, 4)  # so close that faces of walls meet other cells
_NO_ADVICE: Final = 10_000_000  # points, more than anything here computes with: so many aren't proposed
_MANY: Final = 1.5  # times as many points as were asked for, from which on it is reported
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

    @property
    def needed_points(self) -> int | None:
        """About how many points give the thinnest walls a cell, and struts connected cells; None if they have them."""
        in_pieces = self.left_out > 0 and self.missing > MISSING_REPORTED
        wanted = _HANGS_TOGETHER if in_pieces else _ONE_CELL
        if self.cells_across is None or self.cells_across >= (wanted if in_pieces else 1):
            return None
        return _round_up(self.num_points * (wanted / max(self.cells_across, 1e-3)) ** 3)

    @property
    def resolved_wall(self) -> float | None:
        """Walls in mm that the usual largest number of points would resolve; None where fewer resolve those it has."""
        needed = self.needed_points
        if needed is None or needed <= USUAL_MAX_POINTS or self.wall is None:
            return None
        return self.wall * math.cbrt(needed / USUAL_MAX_POINTS)

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
        if self.cells_across is not None and self.cells_across < 1:
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
        needed = self.needed_points
        if needed is None:
            return "ask for more points"
        said = f"its walls of {self.wall:.2g} mm need about {needed:,} points"
        if self.resolved_wall is None:
            return said
        return (
            f"{said}; since that is more than the usual {USUAL_MAX_POINTS:,}, make these walls "
            f"{self.resolved_wall:.2g} mm thick, or cut the part into pieces"
        )


def check_mesh(surface: Surface, mesh: VoxelMesh) -> MeshCheck:
    """Compare a mesh with its surface.

    Args:
        surface: The surface.
        mesh: What `voxelize` made of it.
    """
    sizes = (np.ptp(mesh.indices, axis=0) + 1) * np.asarray(mesh.spacing)
    x, y, z = map(float, sizes)
    sx, sy, sz = map(float, np.ptp(surface.bounds, axis=0))
    enclosed = surface.volume - mesh.surplus
    volume = mesh.num_cells * math.prod(mesh.spacing) / enclosed if enclosed > 0 else math.inf
    middles, thickness, cells = _walls(surface, np.asarray(mesh.spacing))
    wall, across = _thinnest(thickness, cells) or (None, None)
    missing = float(_without_cell(mesh, middles).mean()) if len(middles) else 0.0
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


def thinnest_wall(surface: Surface, spacing: NDArray[np.float64]) -> tuple[float, float] | None:
    """Thickness of the thinnest walls, in mm and in cells, met by rays that go inwards from random points of a surface.

    Args:
        surface: The surface.
        spacing: Edges of a cell, mm, [3].

    Returns:
        The thickness in mm of the wall that 99 % of the walls exceed in cells, and its cells; None where no ray met a
        wall.
    """
    _, thickness, cells = _walls(surface, spacing)
    return _thinnest(thickness, cells)


def _thinnest(thickness: NDArray[np.float64], cells: NDArray[np.float64]) -> tuple[float, float] | None:
    if not len(cells):
        return None
    index = int(np.argsort(cells)[int(_THINNEST * len(cells))])
    return float(thickness[index]), float(cells[index])


def _walls(
    surface: Surface, spacing: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Walls below random points of a surface: their middles, mm, [W, 3], and their thickness in mm and cells, [W]."""
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
    return starts + inwards * thickness[:, None] / 2, thickness, thickness * np.linalg.norm(inwards / spacing, axis=1)


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


def remarks_on(check: MeshCheck, name: str, *, advise: bool = True) -> tuple[Remark, ...]:
    """What differs between mesh and surface, as a remark.

    Args:
        check: The comparison.
        name: The part, as the remark names it.
        advise: Whether the remark says how many points would help.
    """
    differences = check.differences()
    if not differences:
        return ()
    sentence = (
        f"the mesh differs from the surface, in volume (by over {VOLUME_REPORTED:.0%}), in size (by over "
        f"{EXTENT_REPORTED:.0%}) or at thin walls"
    )
    example = f"{name}: {', '.join(differences)}"
    if advise:
        sentence += "; mesh it with more points (--points)"
        example += f"; {check.advice()}"
    return (Remark(Treatment.CHANGED, "mesh_differs", sentence, 1, (example,)),)


def mesh_faithfully(
    surface: Surface, num_points: int, name: str, mesher: Callable[[Surface, int], VoxelMesh]
) -> tuple[VoxelMesh, tuple[Remark, ...]]:
    """Mesh a surface as `mesh_and_check` does; returns the mesh and the remarks."""
    mesh, _, remarks = mesh_and_check(surface, num_points, name, mesher)
    return mesh, remarks


def mesh_and_check(
    surface: Surface,
    num_points: int,
    name: str,
    mesher: Callable[[Surface, int], VoxelMesh],
    *,
    refined: bool = False,
) -> tuple[VoxelMesh, MeshCheck, tuple[Remark, ...]]:
    """Mesh a surface so that the mesh is still the part, with up to four times as many points as were asked for.

    Args:
        surface: The surface.
        num_points: Points that the mesh should have.
        name: The part, as remarks name it.
        mesher: Makes a mesh of a surface with about so many points.
        refined: Whether to go on to finer meshes until one is quite the part; else, or where none is, the first mesh
            that is still the part is taken.

    Returns:
        The mesh, the comparison with the surface, and what differs from that or from what was asked for.

    Raises:
        GeometryError: If it can't be meshed, or only as another part.
    """
    trouble: GeometryError | None = None
    first: tuple[VoxelMesh, MeshCheck] | None = None
    for times in _FINE_TRIALS if refined else _TRIALS:
        try:
            mesh = mesher(surface, round(times * num_points))
        except GeometryError as error:
            trouble = trouble or error
            continue
        check = check_mesh(surface, mesh)
        if check.is_another_part:
            found = ", ".join(check.differences())
            trouble = GeometryError(f"the mesh of {mesh.num_points:,} points has {found}; {check.advice()}")
            continue
        first = first or (mesh, check)
        if check.is_quite_the_part or not refined:
            return mesh, check, _remarks_on_trials(check, first[1], name, num_points)
    if first is not None:
        return *first, _remarks_on_trials(first[1], first[1], name, num_points)
    assert trouble is not None
    raise GeometryError(_with_needed_points(str(trouble), surface, num_points)) from trouble


def _remarks_on_trials(taken: MeshCheck, first: MeshCheck, name: str, num_points: int) -> tuple[Remark, ...]:
    """What differs from the surface, and that there are more points than were asked for or than the first mesh had."""
    remarks = remarks_on(taken, name)
    if taken is not first:
        sentence = "a part was meshed with more points than by default, so that volume, extents and walls are its own"
        example = f"{name}: {taken.num_points:,}, where {first.num_points:,} had {', '.join(first.lost())}"
        return *remarks, Remark(Treatment.CHANGED, "refined", sentence, 1, (example,))
    if taken.num_points > _MANY * num_points:
        sentence = "a part was meshed with more points than were asked for, to keep thin walls whole"
        example = f"{name}: {taken.num_points:,} instead of {num_points:,}"
        return *remarks, Remark(Treatment.CHANGED, "more_points", sentence, 1, (example,))
    return remarks


def _with_needed_points(trouble: str, surface: Surface, num_points: int) -> str:
    """Why no mesh is the part, with the points that its thinnest walls need where that isn't said yet."""
    if "need about" in trouble or (wall := thinnest_wall(surface, np.ones(3))) is None:
        return trouble
    needed = _round_up(surface.volume / (0.7 * wall[0] ** 3))
    if not num_points < needed <= _NO_ADVICE:
        return trouble
    return f"{trouble} (its walls of {wall[0]:.2g} mm need about {needed:,})"


def _round_up(points: float) -> int:
    """A number of points, rounded up to two significant digits."""
    digits = int(10 ** max(0, int(math.log10(max(points, 1))) - 1))
    rounded: int = math.ceil(points / digits) * digits
    return rounded
