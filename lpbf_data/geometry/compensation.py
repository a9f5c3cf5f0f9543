"""Compensation of a part's surface: moved against a predicted displacement, so that the printed part ends up nominal.

V vertices and T triangles of a surface, N points and E cells of a mesh.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.durable import check_writable
from lpbf_data.errors import GeometryError, UsageError
from lpbf_data.geometry.closed_surface import Surface, surface_of_arrays
from lpbf_data.geometry.crossings import crossing_triangles
from lpbf_data.geometry.surface_formats import SURFACE_SUFFIXES, cad_advice

MAX_TRIANGLES: Final = 1_000_000
"""Triangles of a subdivided surface, at most."""

MAX_SCALE: Final = 5.0
_MAX_EXAMPLES: Final = 5
_NEAR: Final = 8  # cells whose centres are nearest to a vertex: one of them is the nearest cell


@dataclass(frozen=True)
class Compensated:
    """A displaced surface, and how it was made.

    Attributes:
        surface: The displaced surface.
        split: Triangles that the subdivision added.
        edge: Longest edge that was asked for, mm.
        largest: Largest displacement of a vertex, mm.
        crossings: Points where triangles cross each other that didn't before, or turned over, mm, [C, 3].
    """

    surface: Surface
    split: int
    edge: float
    largest: float
    crossings: NDArray[np.float64]

    def as_dict(self) -> dict[str, Any]:
        """What was done, as JSON takes it; lengths in mm."""
        return {
            "triangles": len(self.surface.triangles),
            "triangles_added": self.split,
            "longest_edge": self.edge,
            "largest_move": self.largest,
        }


def triangles_said(done: Mapping[str, Any]) -> str:
    """The triangles of a surface that crosses itself nowhere, in words.

    Args:
        done: What `Compensated.as_dict` holds.
    """
    return (
        f"{done['triangles']:,} triangles ({done['triangles_added']:,} added, edges up to "
        f"{done['longest_edge']:.3g} mm); closed, crosses itself nowhere"
    )


def compensate_surface(
    surface: Surface,
    points: NDArray[np.floating[Any]],
    cells: NDArray[np.integer[Any]],
    displacement: NDArray[np.floating[Any]],
    scale: float,
) -> Compensated:
    """Displace a surface by a multiple of the displacement of its mesh.

    Args:
        surface: The surface, in the coordinates of its mesh, mm.
        points: Points of the mesh, mm, [N, 3].
        cells: Zero-based hexahedra, [E, 8], boxes along the axes.
        displacement: At the points, mm, [N, 3].
        scale: -1 for the part to print, 1 for the shape that it warps to.

    Raises:
        UsageError: If the scale isn't within -5 … 5.
        GeometryError: If the displaced surface encloses no volume.
    """
    check_scale(scale)
    edge = float(np.median(np.ptp(points[cells], axis=1)))
    fine, edge = subdivide(surface, edge)
    moved = scale * interpolate(fine.vertices, points, cells, displacement)
    displaced = Surface(fine.vertices + moved, fine.triangles)
    crossings = crossing_triangles(displaced)
    if len(crossings):
        before = {tuple(pair) for pair in crossing_triangles(fine).tolist()}
        crossings = np.array([pair for pair in crossings.tolist() if tuple(pair) not in before], np.int64).reshape(
            -1, 2
        )
    crossed = np.concatenate([crossings[:, 0], _turned_over(fine, displaced)])
    middles = displaced.vertices[displaced.triangles[crossed]].mean(axis=1)
    largest = float(np.linalg.norm(moved, axis=1).max())
    return Compensated(displaced, len(fine.triangles) - len(surface.triangles), edge, largest, middles)


def check_scale(scale: float) -> None:
    """Refuse a scale that isn't within -5 … 5.

    Raises:
        UsageError: If it isn't.
    """
    if not (math.isfinite(scale) and abs(scale) <= MAX_SCALE):
        raise UsageError(f"--scale must lie between -{MAX_SCALE:g} and {MAX_SCALE:g}, not {scale:g}")


def check_files(source: Path, target: Path, scale: float) -> None:
    """Refuse what no surface can be read from or written to.

    Args:
        source: The surface file.
        target: The file to write.
        scale: How many times a displacement is added.

    Raises:
        UsageError: If the suffix of either is of something else, both are one file, the scale is out of range, the
            target, or the JSON file beside it, can't be written, or there is no such surface file.
    """
    check_scale(scale)
    if source.suffix.lower() not in SURFACE_SUFFIXES:
        why = cad_advice(source.suffix) or f"surfaces are read from {', '.join(SURFACE_SUFFIXES)} files"
        raise UsageError(f"{source}: {why}")
    if target.suffix.lower() != ".stl":
        raise UsageError(f"--out must be an STL file, not {target}")
    if target.resolve() == source.resolve():
        raise UsageError(f"--out must be another file than {source}, which stays as it is")
    check_writable(target)
    check_writable(target.with_suffix(".json"))
    if not source.is_file():
        raise UsageError(f"there is no file {source}")


def refuse_crossings(found: Compensated, name: str, scale: float) -> None:
    """Refuse a surface that crosses itself.

    Args:
        found: The surface.
        name: The part.
        scale: How many times the displacement was added.

    Raises:
        GeometryError: If it does; it says where.
    """
    if not len(found.crossings):
        return
    points = "; ".join("x {:.2f}, y {:.2f}, z {:.2f} mm".format(*point) for point in found.crossings[:_MAX_EXAMPLES])
    more = ", …" if len(found.crossings) > _MAX_EXAMPLES else ""
    raise GeometryError(
        f"{name} would cross itself at {len(found.crossings):,} points ({points}{more}), and isn't written; "
        f"take a --scale nearer to 0 than {scale:g}, or widen the gaps there"
    )


def _turned_over(before: Surface, after: Surface) -> NDArray[np.int64]:
    """Numbers of the triangles that look the other way now: there the surface folds."""
    return np.flatnonzero(np.einsum("tk,tk->t", before.area_vectors(), after.area_vectors()) < 0)


def subdivide(surface: Surface, edge: float, max_triangles: int = MAX_TRIANGLES) -> tuple[Surface, float]:
    """Split edges until none is longer than asked for, as far as a number of triangles allows.

    An edge is split for both of its triangles alike, so that a closed surface stays closed. What is flat stays flat.

    Args:
        surface: The surface.
        edge: Longest edge, mm.
        max_triangles: Triangles at most; a surface that has more already is left as it is.

    Returns:
        The surface, and the longest edge that was asked for in the end.
    """
    corners = surface.vertices[surface.triangles]
    areas = np.linalg.norm(surface.area_vectors(), axis=1) / 2
    lengths = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)
    if len(corners) >= max_triangles or lengths.max() <= edge:
        return surface, float(max(edge, lengths.max()))

    def expected(of: float) -> float:
        pieces = np.maximum(np.maximum(2.5 * areas / of**2, lengths.sum(axis=1) / of - 2), 1.0)
        return float(pieces.sum())

    while expected(edge) > max_triangles:
        edge *= 1.2
    vertices, triangles = surface.vertices, surface.triangles
    while True:
        split = _split_longest(vertices, triangles, edge)
        if split is None or len(split[1]) > max_triangles:
            return Surface(vertices, triangles), edge
        vertices, triangles = split


def _split_longest(
    vertices: NDArray[np.float64], triangles: NDArray[np.int64], edge: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Split every edge that is too long in its middle: its triangles become two, three or four."""
    sides = np.sort(np.stack([triangles, np.roll(triangles, -1, axis=1)], axis=2), axis=2)  # [T, 3, 2]
    keys = (sides[..., 0] * len(vertices) + sides[..., 1]).ravel()
    unique, number = np.unique(keys, return_inverse=True)
    ends = np.stack([unique // len(vertices), unique % len(vertices)], axis=1)
    long = np.linalg.norm(vertices[ends[:, 0]] - vertices[ends[:, 1]], axis=1) > edge
    if not long.any():
        return None
    middle = np.where(long, len(vertices) + np.cumsum(long) - 1, -1)
    added = vertices[ends[long]].mean(axis=1)
    cut = middle[number.reshape(-1, 3)]  # [T, 3]: the new vertex on each side, -1 where it isn't split
    return np.concatenate([vertices, added]), _pieces(np.concatenate([vertices, added]), triangles, cut)


def _pieces(vertices: NDArray[np.float64], triangles: NDArray[np.int64], cut: NDArray[np.int64]) -> NDArray[np.int64]:
    """Triangles between old corners and new ones on their sides."""
    count = (cut >= 0).sum(axis=1)
    found = [triangles[count == 0]]
    # Turned so that with one side split it is the first, with two it is the last that isn't.
    for wanted in (1, 2, 3):
        chosen = count == wanted
        own, new = triangles[chosen], cut[chosen]
        first = np.argmax(new >= 0, axis=1) if wanted == 1 else (np.argmin(new >= 0, axis=1) + 1) % 3
        order = (first[:, None] + np.arange(3)) % 3
        (a, b, c), (ab, bc, ca) = np.take_along_axis(own, order, 1).T, np.take_along_axis(new, order, 1).T
        if wanted == 1:
            pieces = [(a, ab, c), (ab, b, c)]
        elif wanted == 2:
            # A quadrilateral a, ab, bc, c remains; its shorter diagonal is taken.
            one = np.linalg.norm(vertices[a] - vertices[bc], axis=1) <= np.linalg.norm(
                vertices[ab] - vertices[c], axis=1
            )
            pieces = [(ab, b, bc), (a, ab, np.where(one, bc, c)), (np.where(one, a, ab), bc, c)]
        else:
            pieces = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        found += [np.stack(piece, axis=1) for piece in pieces]
    return np.concatenate(found)


def interpolate(
    positions: NDArray[np.float64],
    points: NDArray[np.floating[Any]],
    cells: NDArray[np.integer[Any]],
    values: NDArray[np.floating[Any]],
) -> NDArray[np.float64]:
    """Values of a mesh at positions in it or near it, by trilinear interpolation in a cell.

    A surface lies up to half a cell outside of its mesh: such a position takes the value at the nearest point in it.

    Args:
        positions: [V, 3], mm.
        points: [N, 3], mm.
        cells: Zero-based hexahedra in VTK's order, [E, 8], boxes along the axes.
        values: At the points, [N, K].

    Returns:
        [V, K].
    """
    from scipy.spatial import cKDTree

    corners = np.asarray(points, np.float64)[cells]
    low, high = corners.min(axis=1), corners.max(axis=1)
    near = cKDTree((low + high) / 2).query(positions, k=min(_NEAR, len(cells)))[1].reshape(len(positions), -1)
    outside = np.maximum(low[near] - positions[:, None], 0) + np.maximum(positions[:, None] - high[near], 0)
    chosen = near[np.arange(len(positions)), np.argmin((outside**2).sum(axis=2), axis=1)]
    share = np.clip((positions - low[chosen]) / (high - low)[chosen], 0, 1)
    x, y, z = share.T
    along_x, along_y = (1 - x, x), (1 - y, y)
    order = ((0, 0), (1, 0), (1, 1), (0, 1))  # of the corners of a face in VTK
    weights = [along_x[i] * along_y[j] * level for level in (1 - z, z) for i, j in order]
    of_corners = np.asarray(values, np.float64)[cells[chosen]]
    found: NDArray[np.float64] = np.einsum("cv,vck->vk", np.array(weights), of_corners)
    return found


def joined(surfaces: list[Surface]) -> Surface:
    """Several bodies as one surface.

    Args:
        surfaces: The bodies.

    Raises:
        GeometryError: If there are none.
    """
    if not surfaces:
        raise GeometryError("there is no body to write")
    starts = np.cumsum([0, *(len(surface.vertices) for surface in surfaces[:-1])])
    triangles = [surface.triangles + start for surface, start in zip(surfaces, starts, strict=True)]
    return surface_of_arrays(np.concatenate([surface.vertices for surface in surfaces]), np.concatenate(triangles))
