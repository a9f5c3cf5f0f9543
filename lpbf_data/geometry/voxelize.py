"""A closed surface to a mesh of axis-aligned hexahedra.

Every column of cells is pierced by vertical lines; the heights at which a line enters and leaves the surface give the
part of it that lies inside. A cell becomes a hexahedron when its centre (or more than half of its sample points) does;
by this rule NetFabb activates the same number of cells on both parts whose logs state it. Used wherever a part comes as
a surface: by the simulator, and for predictions on parts that were never simulated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface
from lpbf_data.geometry.voxel_mesh import VoxelMesh, mesh_of_mask

_SAMPLES: Final = 1  # NetFabb's rule: a cell belongs to the part when its centre does
_OFF_CENTRE: Final = 1e-6 * np.array([0.6180339887, 0.3819660113])
# Lines lie off the centres by this share of a cell, because corners of designs lie on round numbers.
_ABOVE_CENTRE: Final = 1e-5
# Samples lie above the centres by this share of a cell: faces of designs lie at round heights, too, and where they meet
# centres rounding alone would decide for each cell whether it is filled.
_ATTEMPTS: Final = 12
_CLOSE_ENOUGH: Final = 0.04  # relative deviation from the number of points asked for
_FALLS_APART: Final = 0.9  # share of the cells that the largest piece must hold
_MAX_SAMPLES: Final = 64_000_000  # of a grid, 1 byte each, and 4 for a moment; the stated bound is 1 GiB with all else
_MAX_SAMPLES_ALONG_AXIS: Final = 100_000
_TILE: Final = 2_000_000  # samples and crossings that are worked on together


def fill_fractions(
    surface: Surface,
    origin: Sequence[float],
    spacing: Sequence[float],
    shape: tuple[int, int, int],
    *,
    samples: int = _SAMPLES,
) -> NDArray[np.float32]:
    """Which share of each cell of a grid lies inside a surface: where its winding number isn't zero.

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
    if math.prod(fine) > _MAX_SAMPLES or max(fine) > _MAX_SAMPLES_ALONG_AXIS:
        raise GeometryError(
            f"a grid of {shape[0]:,} × {shape[1]:,} × {shape[2]:,} cells is too fine (at most {_MAX_SAMPLES:,}); ask "
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
        level = np.clip(np.ceil((heights - start[2]) / step[2] - 0.5 - _ABOVE_CENTRE), 0, fine[2]).astype(np.int64)
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


def voxelize(surface: Surface, cell: tuple[float, float], *, samples: int = _SAMPLES) -> VoxelMesh:
    """Mesh the inside of a surface with cells of about a size.

    The width of the cells is fitted to the extents of the surface, as NetFabb does; their height isn't, since it is a
    whole number of powder layers.

    Args:
        surface: The surface.
        cell: Width and height of a cell, mm.
        samples: See `fill_fractions`.

    Returns:
        The largest piece of cells connected by faces, its bottom at the bottom of the surface.

    Raises:
        GeometryError: If no cell lies inside, or the mesh falls apart because walls are thinner than cells.
    """
    low, high = surface.bounds
    size = high - low
    across = _cells_across(surface, cell[0])
    up = max(1, math.ceil(size[2] / cell[1] - 1e-9))
    spacing = (size[0] / across[0], size[1] / across[1], cell[1])
    grid = (*across, up)
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


def _cells_across(surface: Surface, width: float) -> tuple[int, int]:
    """How many cells of about a width fit along x and y."""
    x, y = np.maximum(np.rint(np.ptp(surface.bounds, axis=0)[:2] / width), 1).astype(int)
    return int(x), int(y)


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
    if layer is not None and extent < layer / 2:
        raise GeometryError(
            f"the part is {extent:.2g} mm high, less than half of a powder layer of {layer:g} mm; turn it, or check "
            "the unit of its lengths (--units)"
        )
    best: VoxelMesh | None = None
    trouble: GeometryError | None = None
    known: dict[tuple[int, int, float], VoxelMesh] = {}  # attempts that go to and fro come to the same grids again
    for _ in range(_ATTEMPTS):
        height = extent / max(planes, round(extent / (width * aspect_ratio)))
        if layer is not None:
            height = max(1, math.floor(height / layer + 1e-6)) * layer
        grid = (*_cells_across(surface, width), height)
        try:
            mesh = known[grid] if grid in known else voxelize(surface, (width, height))
        except GeometryError as error:
            trouble, width = error, 0.8 * width
            continue
        known[grid] = mesh
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
