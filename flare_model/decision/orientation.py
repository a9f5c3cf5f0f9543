"""Orientations in which to build a part, ranked by the predicted risk of a hit and displacement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.data.envelope import fits_build_volume
from flare_model.decision.answer import Answer, Auxiliary, answer_of
from flare_model.decision.overhangs import Overhangs, overhangs_of
from flare_model.decision.prediction import Prediction, predict_part
from flare_model.prediction.surface_parts import mesh_surface
from lpbf_data.console import PATIENCE, follow
from lpbf_data.errors import GeometryError, StoreError, UsageError
from lpbf_data.geometry.closed_surface import Surface, on_build_plate

if TYPE_CHECKING:
    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.prediction.part import Part

RANKED_POINTS: Final = 2000
MAX_RANKED_POINTS: Final = 20_000
"""Most points of an orientation's mesh where other orientations need narrow cells."""

_EQUAL_EDGE_RATIO: Final = 1.4  # ratio of edges up to which cells count as of one size
NUM_BEST: Final = 3
HIT_COST: Final = 4.0
"""A certain hit adds so many times the displacement to the cost; chosen by tests/benchmarks/orientations.py."""

_SAME_DIRECTION_COSINE: Final = math.cos(math.radians(8.0))
"""Directions that are nearer to each other than this count as one."""
_MAX_FACES: Final = 12


@dataclass(frozen=True)
class OrientedPart:
    """A part in one orientation.

    Attributes:
        down: Direction in the coordinates of its file that points down, [3].
        rotation: Rotation from the file's coordinates, [3, 3].
        answer: The answer for it; None where it can't be meshed or predicted on.
        overhangs: Its overhangs; None where there is no answer.
        error: Why there is no answer; empty where there is one.
    """

    down: tuple[float, float, float]
    rotation: NDArray[np.float64]
    answer: Answer | None
    overhangs: Overhangs | None
    error: str = ""

    @property
    def displacement(self) -> float:
        """Largest displacement, up or down, mm; infinite without an answer."""
        if self.answer is None or self.answer.up is None or self.answer.down is None:
            return math.inf
        return max(abs(self.answer.up.value), abs(self.answer.down.value))

    @property
    def fits(self) -> bool:
        """Whether it fits into the build volume."""
        return self.answer is not None and fits_build_volume(self.answer.size)

    @property
    def chance(self) -> float:
        """Chance of a hit; 1 where it isn't known."""
        hit = self.answer.hit if self.answer else None
        return hit.chance if hit is not None and hit.chance is not None else 1.0

    def key(self) -> tuple[bool, float]:
        """Sort key: the best orientation has the least."""
        return not self.fits, cost_of(self.displacement, self.chance)


def cost_of(displacement: float, chance: float) -> float:
    """Cost by which orientations are ranked, mm: the displacement, and what a hit adds by its probability.

    Neither alone will do: few probabilities are 0 or 1, and the largest displacement of a part that is hit means
    little.

    Args:
        displacement: Largest displacement, mm.
        chance: Chance of a hit.
    """
    return displacement * (1 + HIT_COST * chance)


@dataclass(frozen=True)
class BestOrientation:
    """One of the best orientations, predicted on again with as many points as the part, or more to be quite the part.

    Attributes:
        turned: The orientation with its answer on the coarse mesh, by which it was ranked first.
        surface: The surface in that orientation, on the build plate, mm.
        prediction: Prediction on the mesh with as many points as were asked for.
        answer: Answer from that prediction.
    """

    turned: OrientedPart
    surface: Surface
    prediction: Prediction
    answer: Answer


@dataclass(frozen=True)
class Ranking:
    """All orientations, the best first.

    Attributes:
        name: The part.
        orientations: All that were tried, ranked on coarse meshes.
        best: The best of them, predicted on again and ranked by that.
    """

    name: str
    orientations: tuple[OrientedPart, ...]
    best: tuple[BestOrientation, ...]


def directions(surface: Surface, count: int) -> list[NDArray[np.float64]]:
    """Directions of a part that may point down: as it lies, its flat faces, the axes, and others evenly between them.

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
    faces = rounded[np.argsort(-areas, kind="stable")][:_MAX_FACES]
    axes = np.array([[0, 0, -1], [0, 0, 1], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], np.float64)
    found: list[NDArray[np.float64]] = []
    for candidate in [*axes[:1], *faces[np.linalg.norm(faces, axis=1) > 0], *axes[1:], *_spiral(8 * count)]:
        direction = candidate / np.linalg.norm(candidate)
        if len(found) < count and all(direction @ other < _SAME_DIRECTION_COSINE for other in found):
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


def rank_orientations(
    surrogate: Surrogate, auxiliary: Auxiliary, part: Part, count: int, best: int = NUM_BEST
) -> Ranking:
    """Predict on a part in many orientations, and rank them.

    Args:
        surrogate: The model.
        auxiliary: Intervals, risk model, training shapes and material scale.
        part: The part, which came as a surface; the best orientations are meshed with as many points as it has.
        count: Number of orientations.
        best: How many of the best to predict on again with all points.

    Raises:
        UsageError: If the model predicts no displacement, or the part came as a mesh.
        GeometryError: If the part can't be meshed in any orientation.
    """
    if part.origin is None:
        raise UsageError(f"{part.name} came as a mesh: only surfaces (STL and others) can be turned")
    if "displacement_z" not in surrogate.usage.columns:
        raise UsageError("orientations are ranked by displacement_z, which this model doesn't predict")
    surface = part.origin.surface
    points = min(RANKED_POINTS, len(part.points))
    materials = surrogate.usage.materials
    ways = directions(surface, count)
    orientations = [
        _predict_orientation(surrogate, auxiliary, part, down, points)
        for down in follow(ways, len(ways), f"{part.name}, turned", "orientation", after=PATIENCE)
    ]
    finer_points = points_for_equal_cells([*map(_points_and_edge, orientations)])
    described = f"{part.name}, turned and with cells of equal size"
    for number, num_points in enumerate(
        follow(finer_points, len(finer_points), described, "orientation", after=PATIENCE)
    ):
        if num_points is not None:
            finer = _predict_orientation(surrogate, auxiliary, part, np.array(orientations[number].down), num_points)
            orientations[number] = finer if finer.answer is not None else orientations[number]
    orientations.sort(key=OrientedPart.key)
    if orientations[0].answer is None:
        raise GeometryError(
            f"{part.name} can't be meshed in any of {len(orientations)} orientations: {orientations[0].error}"
        )
    chosen = [orientation for orientation in orientations if orientation.answer is not None][:best]
    found = [
        _predict_best(surrogate, auxiliary, part, orientation, materials)
        for orientation in follow(chosen, len(chosen), f"{part.name}, the best in full", "orientation", after=PATIENCE)
    ]
    # The order on the finer meshes may differ, and is the final one.
    found.sort(key=lambda one: replace(one.turned, answer=one.answer).key())
    return Ranking(part.name, tuple(orientations), tuple(found))


def points_for_equal_cells(meshes: Sequence[tuple[int, float] | None]) -> list[int | None]:
    """Numbers of points with which to mesh orientations again, so that all have cells of about one size.

    Wide cells can resolve walls along the axes, or miss them by chance, and tilted walls need narrow cells; predictions
    on meshes with cells of different sizes don't compare.

    Args:
        meshes: Points, and edge of a cell in mm, of each orientation's first mesh; None where it couldn't be meshed.

    Returns:
        Points of each orientation; None where its cells have that size already, or it couldn't be meshed.
    """
    narrowest = min((mesh[1] for mesh in meshes if mesh is not None), default=0.0)
    num_points: list[int | None] = []
    for mesh in meshes:
        points = 0
        if mesh is not None and mesh[1] > _EQUAL_EDGE_RATIO * narrowest:
            points = min(MAX_RANKED_POINTS, round(mesh[0] * (mesh[1] / narrowest) ** 3))
        num_points.append(points if mesh is not None and points > _EQUAL_EDGE_RATIO * mesh[0] else None)
    return num_points


def _points_and_edge(orientation: OrientedPart) -> tuple[int, float] | None:
    """Points of an orientation's mesh, and the edge of the cube that is as large as a cell, mm."""
    if orientation.answer is None:
        return None
    return int(orientation.answer.mesh["points"]), math.prod(orientation.answer.mesh["cell"]) ** (1 / 3)


def _predict_orientation(
    surrogate: Surrogate, auxiliary: Auxiliary, part: Part, down: NDArray[np.float64], points: int
) -> OrientedPart:
    """Prediction on a part in one orientation."""
    assert part.origin is not None
    materials = surrogate.usage.materials
    rotation = rotation_to(down)
    x, y, z = map(float, down)
    try:
        turned = mesh_surface(turn(part.origin.surface, rotation), part.name, points, propose=False)
        assert turned.origin is not None
        answer = answer_of(
            predict_part(surrogate, turned, auxiliary.intervals, auxiliary.material_scale), auxiliary, materials
        )
        overhangs = overhangs_of(turned.origin.surface, turned.points, turned.cells)
        return OrientedPart((x, y, z), rotation, answer, overhangs)
    except (GeometryError, StoreError) as error:
        return OrientedPart((x, y, z), rotation, None, None, str(error))


def _predict_best(
    surrogate: Surrogate, auxiliary: Auxiliary, part: Part, orientation: OrientedPart, materials: tuple[str, ...]
) -> BestOrientation:
    assert part.origin is not None
    turned = mesh_surface(turn(part.origin.surface, orientation.rotation), part.name, len(part.points), refined=True)
    assert turned.origin is not None
    prediction = predict_part(surrogate, turned, auxiliary.intervals, auxiliary.material_scale)
    return BestOrientation(orientation, turned.origin.surface, prediction, answer_of(prediction, auxiliary, materials))
