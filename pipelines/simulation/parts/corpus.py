"""Which parts a corpus holds: sizes, aspect ratios and numbers of bodies as in the published data set.

Case number i doesn't depend on how many cases are asked for, so a corpus can be extended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.geometry.closed_surface import Surface, surface_of_arrays
from pipelines.simulation.parts.families import FAMILIES, Family, Parameters

MAX_EXTENT: Final = 60.0
"""Largest extent in mm: parts are scaled to fit [-30, 30] x [-30, 30] x [0, 60] mm, as in appendix G.2 of the paper."""

MIN_PLANES: Final = 2
"""Fewest planes of cells of a part: one alone shrinks freely when it is cut off, and wouldn't warp."""

MIN_POINTS: Final = 100
"""Fewest points of a part that is drawn."""

_SHARES: Final = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
# Quantiles over the 3,398 simulations from which the published data set was chosen: hexahedra over their median, and
# aspect ratio of the cells. Those with aspect ratios above 52.8 (one in a hundred, up to 3,923) are drawn at 52.8.
_SIZES: Final = (0.002, 0.049, 0.129, 0.203, 0.418, 0.598, 0.804, 1, 1.305, 1.651, 2.093, 2.945, 3.821, 5.244, 8.511)
_ASPECT_RATIOS: Final = (
    1.055,
    1.177,
    1.28,
    1.28,
    1.28,
    1.307,
    1.44,
    1.6,
    1.92,
    2.468,
    4.155,
    9.495,
    16,
    52.793,
    52.793,
)
# Shares of designs with 1, 2, … bodies.
_BODIES: Final = (0.716, 0.169, 0.070, 0.029, 0.010, 0.006)
_VARIATION: Final = 0.3  # of a parameter's range, between the bodies of a design
_MAX_BODY_NUMBER: Final = 13
# How often the least, the middle and the largest extent of a part points up: half of the published parts lie, a quarter
# is as high as the build volume allows.
_UP: Final = (0.7, 0.05, 0.25)
# Width over height up to which cells may go: within the published limit of 3, with room for heights of whole powder
# layers and for parts that are wider at their foot.
_WIDEST: Final = 1.8


@dataclass(frozen=True)
class PartPlan:
    """One part to simulate.

    Attributes:
        case_id: `<digits>_<8 hex>_<body>`, as published ids are.
        family: Family of the part.
        parameters: Its parameters.
        up: Which extent of the solid points up: 0 for the least, 2 for the largest.
        num_points: Points that its mesh should have.
        aspect_ratio: Height of its cells over their width.
        height: Height in mm that it is stretched or flattened to, in place of `up`; None to leave it as it is.
        tilt: Degrees by which it is tilted, and direction of the axis in the plane of the plate; None for none.
        sized_for: Points for whose cells the footprint of a flat part is small enough; None for any footprint.
    """

    case_id: str
    family: str
    parameters: Mapping[str, float]
    up: int
    num_points: int
    aspect_ratio: float
    height: float | None = None
    tilt: tuple[float, float] | None = None
    sized_for: int | None = None


def plan_corpus(seed: int, cases: int, num_points: int, families: Sequence[str] | None = None) -> tuple[PartPlan, ...]:
    """Plan the parts of a corpus.

    Args:
        seed: Another seed gives other parts.
        cases: Number of parts.
        num_points: Median number of points.
        families: Families to draw from; all by default.
    """
    plans: list[PartPlan] = []
    names = list(FAMILIES) if families is None else list(families)
    for number, design in enumerate(design_ids(seed, cases)):
        rng = np.random.default_rng([seed, number])
        plans += _plan_design(rng, design, FAMILIES[names[int(rng.integers(len(names)))]], num_points)
        if len(plans) >= cases:
            break
    return tuple(plans[:cases])


def design_ids(seed: int, most: int) -> Iterator[str]:
    """Ids of the first designs of a seed, in the published form.

    Args:
        seed: Seed of the corpus.
        most: How many.
    """
    digits = 20_000 + int(hashlib.sha256(f"{seed}".encode()).hexdigest(), 16) % 10_000
    for number in range(most):
        digest = hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()
        digits += 1 + int(digest[8:12], 16) % 97
        yield f"{digits}_{digest[:8]}"


def _plan_design(rng: np.random.Generator, design: str, family: Family, num_points: int) -> list[PartPlan]:
    centre = {name: float(rng.uniform()) for name in family.ranges}
    up = int(rng.choice(3, p=_UP))
    count = 1 + int(rng.choice(len(_BODIES), p=_BODIES))
    bodies = np.sort(rng.choice(_MAX_BODY_NUMBER, size=count, replace=False))
    plans = []
    for body in bodies.tolist():
        shares = {k: float(np.clip(v + rng.uniform(-1, 1) * _VARIATION * (count > 1), 0, 1)) for k, v in centre.items()}
        size = max(MIN_POINTS, round(num_points * quantile(_SHARES, _SIZES, rng.uniform())))
        ratio = quantile(_SHARES, _ASPECT_RATIOS, rng.uniform())
        plans.append(PartPlan(f"{design}_{body}", family.name, parameters_of(family, shares), up, size, ratio))
    return plans


def quantile(shares: Sequence[float], values: Sequence[float], share: float) -> float:
    """The value at a share of a distribution that is given by quantiles, straight lines between.

    Args:
        shares: Shares of what lies below, from 0 to 1.
        values: Values at these shares.
        share: The share.
    """
    return float(np.interp(share, shares, values))


def parameters_of(family: Family, shares: Mapping[str, float]) -> dict[str, float]:
    """Parameters at given shares of their ranges.

    Args:
        family: The family.
        shares: For each parameter, 0 for its least value and 1 for its largest.
    """
    parameters = {}
    for name, span in family.ranges.items():
        if span.whole:
            parameters[name] = float(min(int(span.low + shares[name] * (span.high - span.low + 1)), span.high))
        else:
            parameters[name] = span.low + shares[name] * (span.high - span.low)
    return parameters


def part_surface(
    family: str,
    parameters: Parameters,
    up: int,
    *,
    height: float | None = None,
    tilt: tuple[float, float] | None = None,
    sized_for: int | None = None,
) -> Surface:
    """The surface of a part, scaled into the build volume; rounded as an STL file will round it.

    Args:
        family: Family of the part.
        parameters: Its parameters.
        up: Which extent of the solid points up: 0 for the least, 2 for the largest.
        height: Height in mm that it is stretched or flattened to; that of its extents points up that is nearest to it
            and leaves the part as large as the build volume.
        tilt: Degrees by which it is tilted, and direction of the axis in the plane of the plate.
        sized_for: Points for whose cells the footprint of a flat part is made small enough; any footprint by default.

    Raises:
        GeometryError: If the solid has no closed surface.
    """
    mesh = FAMILIES[family].build(parameters).to_mesh64()
    vertices = np.asarray(mesh.vert_properties, np.float64)[:, :3]
    extents = np.ptp(vertices, axis=0)
    order = np.argsort(extents, kind="stable")
    if height is not None:
        natural = MAX_EXTENT * extents[order] / extents.max()
        up = 2 if height >= MAX_EXTENT else int(np.abs(np.log(natural[:2] / height)).argmin())
    placed = fit_build_volume(np.roll(vertices, 2 - int(order[up]), axis=1))
    if height is not None:
        placed[:, 2] *= height / np.ptp(placed[:, 2])
    if tilt is not None:
        placed = fit_build_volume(placed @ _rotation(*tilt).T)
    surface = surface_of_arrays(_rounded(placed), mesh.tri_verts)
    share = 1.0 if sized_for is None else _footprint_share(surface, sized_for)
    return surface if share == 1.0 else surface_of_arrays(_rounded(placed * (share, share, 1.0)), mesh.tri_verts)


def _footprint_share(surface: Surface, num_points: int) -> float:
    """By how much the footprint of a flat part must shrink so that few points give cells that aren't too flat."""
    height = float(np.ptp(surface.bounds[:, 2]))
    width = _WIDEST * height / MIN_PLANES  # of a cell
    needed = (MIN_PLANES + 1) * surface.volume / (height * width**2)
    return min(1.0, float(np.sqrt(num_points / needed)))


def _rotation(degrees: float, direction: float) -> NDArray[np.float64]:
    """Rotation by an angle about an axis in the plane of the plate, [3, 3] (Rodrigues' formula); both in degrees."""
    angle, along = np.deg2rad(degrees), np.deg2rad(direction)
    x, y = float(np.cos(along)), float(np.sin(along))
    cross = np.array([[0.0, 0.0, y], [0.0, 0.0, -x], [-y, x, 0.0]])
    rotation: NDArray[np.float64] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    return rotation


def fit_build_volume(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale and move points so that they fill the build volume and stand on the build plate.

    Args:
        vertices: Coordinates, [n, 3].
    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    scaled = (vertices - low) * (MAX_EXTENT / (high - low).max())
    scaled[:, :2] -= (scaled[:, :2].max(axis=0)) / 2
    return _rounded(scaled)


def _rounded(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates as an STL file has them."""
    rounded: NDArray[np.float64] = vertices.astype(np.float32).astype(np.float64)
    return rounded
