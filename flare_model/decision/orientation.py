"""Which way up to build a part: the part turned in many ways, each predicted on, ranked by risk and displacement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.data.envelope import BUILD_VOLUME
from flare_model.decision.answer import Answer, Beside, answer_of
from flare_model.decision.overhangs import Overhangs, overhangs_of
from flare_model.decision.prediction import Prediction, predict_part
from flare_model.prediction.surface_parts import mesh_surface
from lpbf_data.errors import GeometryError, StoreError, UsageError
from lpbf_data.geometry.closed_surface import Surface, on_build_plate

if TYPE_CHECKING:
    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.prediction.part import Part

RANKED_POINTS: Final = 2000
MOST_RANKED: Final = 20_000
"""Points of a way, at most, where others ask for narrow cells."""

_EVEN: Final = 1.4  # ratio of edges up to which cells count as of one size
BEST: Final = 3
HIT: Final = 4.0
"""How many times its displacement a certain hit adds to the cost of a way; tests/benchmarks/orientations.py."""

_CLOSE: Final = math.cos(math.radians(8.0))
"""Directions that are nearer to each other than this count as one."""
_MOST_FACES: Final = 12


@dataclass(frozen=True)
class Turned:
    """A part turned in one way.

    Attributes:
        down: Direction of the part, as its file has it, that looks down, [3].
        rotation: What turns it so, [3, 3].
        answer: What is predicted of it; None where it can't be meshed or is refused.
        overhangs: Its overhangs.
        why_not: Why there is no answer.
    """

    down: tuple[float, float, float]
    rotation: NDArray[np.float64]
    answer: Answer | None
    overhangs: Overhangs | None
    why_not: str = ""

    @property
    def displacement(self) -> float:
        """Largest displacement, up or down, mm; infinite without an answer."""
        if self.answer is None or self.answer.up is None or self.answer.down is None:
            return math.inf
        return max(abs(self.answer.up.value), abs(self.answer.down.value))

    @property
    def fits(self) -> bool:
        """Whether it fits into the build volume."""
        room = (2 * BUILD_VOLUME[0], 2 * BUILD_VOLUME[1], BUILD_VOLUME[2])
        return self.answer is not None and all(a <= b + 1e-3 for a, b in zip(self.answer.size, room, strict=True))

    @property
    def chance(self) -> float:
        """Chance of a hit; 1 where it isn't known."""
        hit = self.answer.hit if self.answer else None
        return hit.chance if hit is not None and hit.chance is not None else 1.0

    def key(self) -> tuple[bool, float]:
        """What orders it: the best is the least."""
        return not self.fits, cost_of(self.displacement, self.chance)


def cost_of(displacement: float, chance: float) -> float:
    """What ways to build a part are ranked by, mm: the displacement, and what a hit would add by its chance.

    Neither alone will do: chances between are no certainty, and the largest displacement of a part that is hit means
    little.

    Args:
        displacement: Largest displacement, mm.
        chance: Chance of a hit.
    """
    return displacement * (1 + HIT * chance)


@dataclass(frozen=True)
class Best:
    """One of the best, again in full.

    Attributes:
        turned: The same as it was ranked.
        surface: The surface as it is to be built, mm.
        prediction: On as many points as were asked for.
        answer: The answer of that.
    """

    turned: Turned
    surface: Surface
    prediction: Prediction
    answer: Answer


@dataclass(frozen=True)
class Ranking:
    """All the ways, the best first.

    Attributes:
        name: The part.
        ways: All that were tried.
        best: The best of them in full, the best by that first.
    """

    name: str
    ways: tuple[Turned, ...]
    best: tuple[Best, ...]


def directions(surface: Surface, count: int) -> list[NDArray[np.float64]]:
    """Which sides of a part may look down: as it lies, its flat faces, the axes, and others evenly between them.

    Args:
        surface: The part.
        count: How many directions.

    Returns:
        Unit vectors; the first is straight down.
    """
    normals = surface.area_vectors()
    rounded, place = np.unique(
        np.round(normals / np.linalg.norm(normals, axis=1, keepdims=True), 2), axis=0, return_inverse=True
    )
    areas = np.bincount(place.ravel(), np.linalg.norm(normals, axis=1))
    faces = rounded[np.argsort(-areas, kind="stable")][:_MOST_FACES]
    axes = np.array([[0, 0, -1], [0, 0, 1], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], np.float64)
    found: list[NDArray[np.float64]] = []
    for candidate in [*axes[:1], *faces[np.linalg.norm(faces, axis=1) > 0], *axes[1:], *_spiral(8 * count)]:
        direction = candidate / np.linalg.norm(candidate)
        if len(found) < count and all(direction @ other < _CLOSE for other in found):
            found.append(direction)
    return found


def _spiral(count: int) -> NDArray[np.float64]:
    """Directions spread evenly over the sphere, in an order that is spread too (Fibonacci)."""
    number = np.arange(count) + 0.5
    z, angle = 1 - 2 * number / count, np.pi * (1 + math.sqrt(5)) * number
    ring = np.sqrt(1 - z * z)
    points = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)
    order = np.argsort((np.arange(count) * 0.6180339887) % 1, kind="stable")
    shuffled: NDArray[np.float64] = points[order]
    return shuffled


def rotation_to(down: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shortest rotation that turns a direction down, [3, 3].

    >>> rotation_to(np.array([1.0, 0.0, 0.0])).round(6) @ [1, 0, 0]
    array([ 0.,  0., -1.])
    """
    target = np.array([0.0, 0.0, -1.0])
    axis, cosine = np.cross(down, target), float(down @ target)
    if cosine < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: NDArray[np.float64] = np.eye(3) + cross + cross @ cross / (1 + cosine)
    return turned


def turn(surface: Surface, rotation: NDArray[np.float64]) -> Surface:
    """A surface turned, put on the middle of the plate."""
    return on_build_plate(replace(surface, vertices=surface.vertices @ rotation.T), centre=True)


def rank_orientations(surrogate: Surrogate, beside: Beside, part: Part, count: int, best: int = BEST) -> Ranking:
    """Predict on a part turned in many ways.

    Args:
        surrogate: The model.
        beside: What is used with it.
        part: The part, which came as a surface; its number of points is that of the best in full.
        count: How many ways.
        best: How many of the best to predict on in full.

    Raises:
        UsageError: If the model predicts no displacement, or the part came as a mesh.
        GeometryError: If the part can't be meshed in any of the ways.
    """
    if part.origin is None:
        raise UsageError(f"{part.name} came as a mesh: only surfaces (STL and others) can be turned")
    if "displacement_z" not in _columns(surrogate):
        raise UsageError("orientations are ranked by displacement_z, which this model doesn't predict")
    surface = part.origin.surface
    points = min(RANKED_POINTS, len(part.points))
    materials = surrogate.usage.envelope.materials if surrogate.usage.envelope else ()
    ways = [_judged(surrogate, beside, part, down, points) for down in directions(surface, count)]
    for number, wanted in enumerate(even_points([*map(_mesh_of, ways)])):
        if wanted is not None:
            again = _judged(surrogate, beside, part, np.array(ways[number].down), wanted)
            ways[number] = again if again.answer is not None else ways[number]
    ways.sort(key=Turned.key)
    if ways[0].answer is None:
        raise GeometryError(f"{part.name} can't be meshed in any of {len(ways)} orientations: {ways[0].why_not}")
    chosen = [way for way in ways if way.answer is not None][:best]
    found = [_in_full(surrogate, beside, part, way, materials) for way in chosen]
    # Another mesh may tell them apart in another order, and the finer one is to be believed.
    found.sort(key=lambda one: replace(one.turned, answer=one.answer).key())
    return Ranking(part.name, tuple(ways), tuple(found))


def even_points(meshes: Sequence[tuple[int, float] | None]) -> list[int | None]:
    """Points that ways are to be meshed with again, so that all have cells of about one size; None where they have.

    Walls along the axes can be met by wide cells, or by chance be left out by them, and tilted ones ask for narrow
    cells: what is predicted for one mesh doesn't compare with what is predicted for the other.

    Args:
        meshes: Points and edge of a cell in mm of each way as it was meshed first; None where it couldn't be.
    """
    narrowest = min((mesh[1] for mesh in meshes if mesh is not None), default=0.0)
    wanted: list[int | None] = []
    for mesh in meshes:
        points = 0
        if mesh is not None and mesh[1] > _EVEN * narrowest:
            points = min(MOST_RANKED, round(mesh[0] * (mesh[1] / narrowest) ** 3))
        wanted.append(points if mesh is not None and points > _EVEN * mesh[0] else None)
    return wanted


def _mesh_of(way: Turned) -> tuple[int, float] | None:
    """Points of a way's mesh, and the edge of the cube that is as large as a cell, mm."""
    if way.answer is None:
        return None
    return int(way.answer.mesh["points"]), math.prod(way.answer.mesh["cell"]) ** (1 / 3)


def _judged(surrogate: Surrogate, beside: Beside, part: Part, down: NDArray[np.float64], points: int) -> Turned:
    """What is predicted of a part turned in one way."""
    assert part.origin is not None
    materials = surrogate.usage.envelope.materials if surrogate.usage.envelope else ()
    rotation = rotation_to(down)
    x, y, z = map(float, down)
    try:
        turned = mesh_surface(turn(part.origin.surface, rotation), part.name, points)
        assert turned.origin is not None
        answer = answer_of(predict_part(surrogate, turned, beside.intervals, beside.scale), beside, materials)
        overhangs = overhangs_of(turned.origin.surface, turned.points, turned.cells)
        return Turned((x, y, z), rotation, answer, overhangs)
    except (GeometryError, StoreError) as error:
        return Turned((x, y, z), rotation, None, None, str(error))


def _columns(surrogate: Surrogate) -> set[str]:
    from flare_model.data.targets import column_names, resolve_targets

    return set(column_names(resolve_targets(surrogate.usage.targets, "the checkpoint")))


def _in_full(surrogate: Surrogate, beside: Beside, part: Part, way: Turned, materials: tuple[str, ...]) -> Best:
    assert part.origin is not None
    turned = mesh_surface(turn(part.origin.surface, way.rotation), part.name, len(part.points))
    assert turned.origin is not None
    prediction = predict_part(surrogate, turned, beside.intervals, beside.scale)
    return Best(way, turned.origin.surface, prediction, answer_of(prediction, beside, materials))
