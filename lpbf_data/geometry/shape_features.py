"""Features of a part's shape at each of its points: inputs of a surrogate beside the coordinates.

A residual stress bends a part by its moment over the part's stiffness, so that a displacement depends on how much
solid lies where. The features below are lengths, areas and shares of the solid itself, integrated exactly over the
boxes of the mesh: they don't depend on how fine the mesh is, nor on hanging nodes. Where a quantity jumps from voxel
to voxel, a point takes the mean over those of the eight octants around it that are solid.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.feature_schema import SHAPE_FEATURES
from lpbf_data.geometry.box_grid import BoxGrid

_CUBES: Final = {"solid_share_4mm": 4.0, "solid_share_12mm": 12.0}
_GROWTH_REACH: Final = 2.5
"""Distance in mm over which the slice area is compared: the lumped layer of the published data set."""
_ONE_SQUARE: Final = 1.0
"""mm² that are added to areas which may be zero, before their logarithm."""


def shape_features(
    points: NDArray[np.floating[Any]], cells: NDArray[np.integer[Any]]
) -> dict[str, NDArray[np.float32]]:
    """All features of a part.

    Args:
        points: Coordinates in mm, [N, 3], z upwards; the plate lies under the lowest point.
        cells: Zero-based hexahedra, [E, 8], each a box along the axes.

    Returns:
        Name to values in the units of `SHAPE_FEATURES`: [N] float32 for a scalar, [N, 2] for two components.

    Raises:
        CaseError: If the mesh is none of boxes, as [BoxGrid][lpbf_data.geometry.box_grid.BoxGrid] says.

    >>> cube = np.array([[x, y, z] for z in (0, 2) for x, y in ((0, 0), (3, 0), (3, 3), (0, 3))], dtype=np.float32)
    >>> found = shape_features(cube, np.arange(8)[None])
    >>> found["solid_above"].tolist(), round(float(np.exp(found["slice_area_log"][0])), 3)
    ([2.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0], 9.0)
    """
    grid = BoxGrid.of(points, cells)
    around = _OctantMeans(grid)
    found = {name: _solid_share(grid, side) for name, side in _CUBES.items()}
    found |= _columns(grid, around)
    found["surface_distance"] = _surface_distance(grid)
    found |= _slices(grid, around)
    found |= _sections(grid, around)
    return {name: np.ascontiguousarray(found[name], dtype=np.float32) for name in SHAPE_FEATURES}


class _OctantMeans:
    """Means over the solid octants around the points."""

    def __init__(self, grid: BoxGrid) -> None:
        self._numbers, self._solid = grid.octants()
        self._counts = self._solid.sum(axis=0)
        self._shape = grid.solid.shape
        self._vertices = grid.vertices
        # Solid octants on the lower side along each axis, [3][N].
        by_side = self._solid.reshape(2, 2, 2, -1)
        self._below = [by_side.take(0, axis).sum(axis=(0, 1)) for axis in range(3)]

    def mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean at each point of what each voxel has, [nx, ny, nz] to [N]; the voxels may be broadcast."""
        flat = np.ascontiguousarray(np.broadcast_to(values, self._shape)).reshape(-1)
        mean: NDArray[np.float64] = np.where(self._solid, flat[self._numbers], 0.0).sum(axis=0) / self._counts
        return mean

    def mean_along(self, axis: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean at each point of what each layer of voxels along an axis has, [n] to [N]."""
        padded = np.concatenate(([0.0], values, [0.0]))
        plane = self._vertices[:, axis]
        total = self._below[axis] * padded[plane] + (self._counts - self._below[axis]) * padded[plane + 1]
        mean: NDArray[np.float64] = total / self._counts
        return mean


def _solid_share(grid: BoxGrid, side: float) -> NDArray[np.float64]:
    """Share of solid in a cube around each point, one axis after the other; what lies outside of the part is empty."""
    share = grid.solid.astype(np.float32)
    for axis, (planes, sizes) in enumerate(zip(grid.planes, grid.sizes, strict=True)):
        share = np.moveaxis(share, axis, 0)
        low, high = (np.clip(planes + shift * side / 2, planes[0], planes[-1]) for shift in (-1, 1))
        # Overlap of each plane's interval with each voxel, [n + 1, n].
        overlap = np.minimum(high[:, None], planes[None, 1:]) - np.maximum(low[:, None], planes[None, :-1])
        weights = (np.clip(overlap, 0, sizes) / side).astype(np.float32)
        share = np.moveaxis((weights @ share.reshape(len(sizes), -1)).reshape(-1, *share.shape[1:]), 0, axis)
    found: NDArray[np.float64] = share[tuple(grid.vertices.T)]
    return found


def _columns(grid: BoxGrid, around: _OctantMeans) -> dict[str, NDArray[np.float64]]:
    """Where the column of solid through a point begins, and how far it goes on above it."""
    z = grid.planes[2]
    count = grid.solid.shape[2]
    layers = np.arange(count)
    foot = np.maximum.accumulate(np.where(grid.solid, 0, layers + 1), axis=2)
    head = np.minimum.accumulate(np.where(grid.solid, count, layers)[:, :, ::-1], axis=2)[:, :, ::-1]
    height = z[grid.vertices[:, 2]]
    return {
        # A voxel below the point belongs to a column that ends at the point, or goes on above it.
        "solid_above": np.maximum(around.mean(z[head]) - height, 0.0),
        "column_foot": around.mean(z[np.minimum(foot, count)]) - z[0],
    }


def _surface_distance(grid: BoxGrid) -> NDArray[np.float64]:
    """Distance to the surface, exactly.

    The point of the surface nearest to a vertex of the grid is a vertex of the grid too: faces lie in its planes and
    end at its planes. So squared distances add up one axis after the other (Saito and Toriwaki, Pattern Recognition 27,
    1994), and none is farther away along an axis than the largest one found so far.
    """
    surface = grid.surface_vertices()
    squares = _along_first(surface, grid.planes[0])
    inside = _interior(grid)
    for axis in (1, 2):
        squares = np.moveaxis(squares, axis, 0)
        within = np.moveaxis(inside, axis, 0)
        least = squares.copy()
        planes = grid.planes[axis]
        for step in range(1, len(planes)):
            gaps = ((planes[step:] - planes[:-step]) ** 2).astype(np.float32)[:, None, None]
            if gaps.min() >= least.max(initial=0.0, where=within):
                break
            np.minimum(least[:-step], squares[step:] + gaps, out=least[:-step])
            np.minimum(least[step:], squares[:-step] + gaps, out=least[step:])
        squares = np.moveaxis(least, 0, axis)
    found: NDArray[np.float64] = np.sqrt(squares[tuple(grid.vertices.T)])
    return found


def _interior(grid: BoxGrid) -> NDArray[np.bool_]:
    """Vertices of the grid with solid all around, [nx + 1, ny + 1, nz + 1]."""
    inside = np.zeros([n + 1 for n in grid.solid.shape], dtype=bool)
    inner = np.ones([n - 1 for n in grid.solid.shape], dtype=bool)
    for octant in np.ndindex(2, 2, 2):
        inner &= grid.solid[tuple(slice(o, n - 1 + o) for o, n in zip(octant, grid.solid.shape, strict=True))]
    inside[1:-1, 1:-1, 1:-1] = inner
    return inside


def _along_first(surface: NDArray[np.bool_], planes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Squared distance to the nearest vertex of the surface on the line along the first axis; infinite without one."""
    position = planes.astype(np.float32)[:, None, None]
    before = np.maximum.accumulate(np.where(surface, position, np.float32(-np.inf)), axis=0)
    after = np.minimum.accumulate(np.where(surface, position, np.float32(np.inf))[::-1], axis=0)[::-1]
    squares: NDArray[np.float32] = np.minimum(position - before, after - position) ** 2
    return squares


def _slices(grid: BoxGrid, around: _OctantMeans) -> dict[str, NDArray[np.float64]]:
    """Areas, centroids and radii of gyration of the slices at the points, and of the part as a whole."""
    size_x, size_y, size_z = grid.sizes
    solid = grid.solid.astype(np.float64)
    by_side = [np.tensordot(size_y, solid, (0, 1)).T * size_x, np.tensordot(size_x, solid, (0, 0)).T * size_y]
    positions = [planes[grid.vertices[:, axis]] for axis, planes in enumerate(grid.planes)]
    found: dict[str, NDArray[np.float64]] = {}
    for axis, areas in enumerate(by_side):  # area of each slice by its position along the axis, [nz, n], mm²
        centroid, radius = _moments(areas, grid.planes[axis])
        whole, spread = _moments((size_z @ areas)[None], grid.planes[axis])
        found[f"slice_offset_{axis}"] = positions[axis] - around.mean_along(2, centroid)
        found[f"slice_radius_{axis}"] = around.mean_along(2, radius)
        found[f"part_offset_{axis}"] = positions[axis] - whole
        found[f"part_radius_{axis}"] = np.repeat(spread, len(positions[axis]))
    names = ("slice_offset", "slice_radius", "part_offset", "part_radius")
    joined = {name: np.stack([found[f"{name}_0"], found[f"{name}_1"]], axis=1) for name in names}
    return joined | _areas(grid, around, by_side[0].sum(axis=1))


def _areas(grid: BoxGrid, around: _OctantMeans, area: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """What the areas of all slices, [nz], mm², say at the points."""
    z, layer = grid.planes[2], grid.vertices[:, 2]
    filled = np.concatenate(([0.0], np.cumsum(area * grid.sizes[2])))
    above, below = (_mean_area(z, filled, shift) for shift in (_GROWTH_REACH, -_GROWTH_REACH))
    # A layer without solid is around no point.
    area_log = np.log(np.where(area > 0, area, _ONE_SQUARE))
    return {
        "slice_area_log": around.mean_along(2, area_log),
        "slice_growth": ((above - below) / (above + below))[layer],
        "volume_above": (1 - filled / filled[-1])[layer],
        "part_above": (z[-1] - z)[layer],
        "footprint_log": np.full(len(layer), np.log(area[0] + _ONE_SQUARE)),
    }


def _moments(
    areas: NDArray[np.float64], planes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centroid and radius of gyration of each row of areas along a direction.

    Args:
        areas: Area in each interval between planes, [rows, n], mm².
        planes: The planes, [n + 1], mm.

    Returns:
        Both [rows], mm; 0 where there is no area.
    """
    middles, lengths = (planes[1:] + planes[:-1]) / 2, np.diff(planes)
    total = areas.sum(axis=1)
    safe = np.where(total > 0, total, 1.0)
    centroid = areas @ middles / safe
    spread = areas @ (middles**2 + lengths**2 / 12) / safe - centroid**2
    return np.where(total > 0, centroid, 0.0), np.where(total > 0, np.sqrt(np.maximum(spread, 0.0)), 0.0)


def _mean_area(z: NDArray[np.float64], filled: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Mean slice area between each plane and another one `reach` above it, mm²; there is none outside of the part."""
    other: NDArray[np.float64] = np.interp(z + reach, z, filled)
    return np.abs(other - filled) / abs(reach)


def _sections(grid: BoxGrid, around: _OctantMeans) -> dict[str, NDArray[np.float64]]:
    """Height of the centroid and radius of gyration of the sections normal to x and to y: what resists bending."""
    size_x, size_y, size_z = grid.sizes
    solid = grid.solid.astype(np.float64)
    normal_to_x = np.tensordot(solid, size_y, (1, 0)) * size_z
    normal_to_y = np.tensordot(solid, size_x, (0, 0)) * size_z
    height = grid.planes[2] - grid.planes[2][0]
    moments = [_moments(areas, height) for areas in (normal_to_x, normal_to_y)]
    return {
        name: np.stack([around.mean_along(axis, moments[axis][which]) for axis in (0, 1)], axis=1)
        for which, name in enumerate(("section_centroid", "section_radius"))
    }
