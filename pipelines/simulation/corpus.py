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

from lpbf_data.geometry.voxelize import Surface, surface_of_arrays
from pipelines.simulation.families import FAMILIES, Family, Parameters

BUILD_VOLUME: Final = 60.0
"""Parts are scaled to fit [-30, 30] x [-30, 30] x [0, 60] mm, as in appendix G.2 of the paper."""

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
_FEWEST_POINTS: Final = 100
_VARIATION: Final = 0.3  # of a parameter's range, between the bodies of a design
_MOST_BODIES_NUMBER: Final = 13
# How often the least, the middle and the largest extent of a part points up: half of the published parts lie, a quarter
# is as high as the build volume allows.
_UP: Final = (0.7, 0.05, 0.25)


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
    """

    case_id: str
    family: str
    parameters: Mapping[str, float]
    up: int
    num_points: int
    aspect_ratio: float


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
    for number, design in enumerate(_design_ids(seed, cases)):
        rng = np.random.default_rng([seed, number])
        plans += _plan_design(rng, design, FAMILIES[names[int(rng.integers(len(names)))]], num_points)
        if len(plans) >= cases:
            break
    return tuple(plans[:cases])


def _design_ids(seed: int, most: int) -> Iterator[str]:
    digits = 20_000 + int(hashlib.sha256(f"{seed}".encode()).hexdigest(), 16) % 10_000
    for number in range(most):
        digest = hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()
        digits += 1 + int(digest[8:12], 16) % 97
        yield f"{digits}_{digest[:8]}"


def _plan_design(rng: np.random.Generator, design: str, family: Family, num_points: int) -> list[PartPlan]:
    centre = {name: float(rng.uniform()) for name in family.ranges}
    up = int(rng.choice(3, p=_UP))
    count = 1 + int(rng.choice(len(_BODIES), p=_BODIES))
    bodies = np.sort(rng.choice(_MOST_BODIES_NUMBER, size=count, replace=False))
    plans = []
    for body in bodies.tolist():
        shares = {k: float(np.clip(v + rng.uniform(-1, 1) * _VARIATION * (count > 1), 0, 1)) for k, v in centre.items()}
        size = max(_FEWEST_POINTS, round(num_points * _quantile(_SIZES, rng.uniform())))
        ratio = _quantile(_ASPECT_RATIOS, rng.uniform())
        plans.append(PartPlan(f"{design}_{body}", family.name, parameters_of(family, shares), up, size, ratio))
    return plans


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.interp(share, _SHARES, values))


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


def part_surface(family: str, parameters: Parameters, up: int) -> Surface:
    """The surface of a part, scaled into the build volume; rounded as an STL file will round it.

    Args:
        family: Family of the part.
        parameters: Its parameters.
        up: Which extent of the solid points up: 0 for the least, 2 for the largest.

    Raises:
        GeometryError: If the solid has no closed surface.
    """
    mesh = FAMILIES[family].build(parameters).to_mesh64()
    vertices = np.asarray(mesh.vert_properties, np.float64)[:, :3]
    axis = int(np.argsort(np.ptp(vertices, axis=0), kind="stable")[up])
    return surface_of_arrays(fit_build_volume(np.roll(vertices, 2 - axis, axis=1)), mesh.tri_verts)


def fit_build_volume(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale and move points so that they fill the build volume and stand on the build plate.

    Args:
        vertices: Coordinates, [n, 3].
    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    scaled = (vertices - low) * (BUILD_VOLUME / (high - low).max())
    scaled[:, :2] -= (scaled[:, :2].max(axis=0)) / 2
    rounded: NDArray[np.float64] = scaled.astype(np.float32).astype(np.float64)
    return rounded
