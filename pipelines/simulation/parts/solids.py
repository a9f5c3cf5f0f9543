"""The solids that parts are made of: boxes, bars and posts, and how they are joined and cut.

Lengths are in the unit of the part, about a millimetre before it is scaled.
"""

from __future__ import annotations

import math
from typing import Final

from manifold3d import Manifold

SEGMENTS: Final = 48
"""Straight pieces of a circle."""


def box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> Manifold:
    """A box between two values of each coordinate."""
    size = (x[1] - x[0], y[1] - y[0], z[1] - z[0])
    return Manifold.cube(size).translate((x[0], y[0], z[0]))


def rod(start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> Manifold:
    """A round bar between two points, with round ends."""
    ends = [Manifold.sphere(radius, 16).translate(point) for point in (start, end)]
    return settle(Manifold.batch_hull(ends))


def post(x: float, y: float, z: tuple[float, float], radius: float) -> Manifold:
    """An upright cylinder between two heights."""
    return Manifold.cylinder(z[1] - z[0], radius, radius, SEGMENTS).translate((x, y, z[0]))


def settle(solid: Manifold) -> Manifold:
    """Work out a solid now.

    Left to itself, manifold joins operations and works on several at a time, in an order that threads decide; equal
    parameters would give surfaces that differ in their triangles.
    """
    solid.num_tri()
    return solid


def union(*solids: Manifold) -> Manifold:
    """All solids in one; neighbours are joined first, so that most steps are small."""
    parts = list(solids)
    while len(parts) > 1:
        pairs = [settle(parts[i] + parts[i + 1]) for i in range(0, len(parts) - 1, 2)]
        parts = pairs + parts[2 * len(pairs) :]
    return parts[0]


def cut(solid: Manifold, *tools: Manifold) -> Manifold:
    """A solid without what the tools take away, one after the other."""
    for tool in tools:
        solid = settle(solid - tool)
    return solid


def spaced(count: float, low: float, high: float) -> list[float]:
    """So many positions between two ends, with half a gap at each."""
    number = max(1, round(count))
    return [low + (i + 0.5) * (high - low) / number for i in range(number)]


def ring(count: float, radius: float) -> list[tuple[float, float]]:
    """So many positions around a circle, x and y, the first on the x axis."""
    number = round(count)
    angles = [2 * math.pi * i / number for i in range(number)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]
