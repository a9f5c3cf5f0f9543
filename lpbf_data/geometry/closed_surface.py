"""A closed triangulated surface: checked to be watertight and to face outwards, with its volume and extents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.rows import unique_rows


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
        low, high = np.minimum(starts, ends), np.maximum(starts, ends)
        edges = np.unique(low * len(self.vertices) + high, return_inverse=True)[1].ravel()
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

    def area_vectors(self) -> NDArray[np.float64]:
        """Outward normals of the triangles, twice their area long, mm², [T, 3]."""
        a, b, c = (self.vertices[self.triangles[:, k]] for k in range(3))
        return np.cross(b - a, c - a)

    @property
    def bounds(self) -> NDArray[np.float64]:
        """Least and largest coordinates, [2, 3]."""
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])


def inside_surface(vertices: NDArray[np.float64], triangles: NDArray[np.int64], point: NDArray[np.float64]) -> bool:
    """Whether a point lies inside a surface that faces outwards: its winding number there exceeds one half.

    The solid angles of the triangles are added (Van Oosterom and Strackee, 1983).

    Args:
        vertices: [V, 3].
        triangles: [T, 3].
        point: [3].
    """
    a, b, c = (vertices[triangles[:, k]] - point for k in range(3))
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


def surface_of_arrays(vertices: NDArray[Any], triangles: NDArray[Any]) -> Surface:
    """A surface from arrays of any number type; equal vertices become one, unused ones are left out.

    Args:
        vertices: Coordinates in mm, [V, 3].
        triangles: [T, 3].

    Raises:
        GeometryError: See `Surface`.
    """
    vertices = np.asarray(vertices, np.float64)
    first, inverse = unique_rows(vertices)
    merged = inverse[np.asarray(triangles, np.int64)]
    proper = (merged[:, 0] != merged[:, 1]) & (merged[:, 1] != merged[:, 2]) & (merged[:, 2] != merged[:, 0])
    used, numbers = np.unique(merged[proper], return_inverse=True)
    return Surface(vertices[first[used]], numbers.reshape(-1, 3))
