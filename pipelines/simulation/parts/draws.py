"""Named draws: corpora whose parts are chosen by what their simulation gives, not by their plan alone.

A case is the first accepted candidate of a stream of its own. A candidate is planned, simulated, and accepted with a
probability that depends on what was measured; 1 over it is stored as the case's weight, so that weighted means over a
corpus are those over all candidates that the published filter keeps. A stream depends on draw, seed and the number of
its case alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np

from lpbf_data.case.record import Measures
from pipelines.simulation.choices import DrawName
from pipelines.simulation.parts.corpus import MAX_EXTENT, MIN_POINTS, PartPlan, design_ids, parameters_of, quantile
from pipelines.simulation.parts.families import FAMILIES

MAX_CANDIDATES: Final = 200
"""Candidates that a stream may have; a case of which none is accepted fails."""

HEIGHT_CLASSES: Final = (7.8, 21.6, 59.0)
DISPLACEMENT_CLASSES: Final = (0.13827, 0.27075, 0.41962)
"""Bounds in mm between classes of heights and largest Z displacements: each holds a quarter of the published parts (the
uppermost heights are 60 mm, less what doesn't fill a plane of cells)."""

_UP: Final = (1 / 3, 1 / 3, 1 / 3)
_TILTS: Final = (10.0, 80.0)  # degrees
_BODY: Final = 1  # a case is a design of its own


@dataclass(frozen=True)
class Draw:
    """How candidates are planned and accepted.

    Attributes:
        name: Its name.
        heights: Shares and heights in mm of parts that aren't tilted.
        tilted: Share of parts that are tilted; their height is what it is then.
        sizes: Shares and numbers of points over the median.
        aspect_ratios: Shares and heights of cells over their widths.
        clear: Probability that a part clear of the blade is accepted.
        hit: Probability that one is accepted that meets it.
        by_height: Factor to that probability in each class of heights.
        by_displacement: Factor to it in each class of largest Z displacements.
    """

    name: DrawName
    heights: tuple[tuple[float, float], ...]
    tilted: float
    sizes: tuple[tuple[float, float], ...]
    aspect_ratios: tuple[tuple[float, float], ...]
    clear: float = 1.0
    hit: float = 1.0
    by_height: tuple[float, ...] = (1.0,) * 4
    by_displacement: tuple[float, ...] = (1.0,) * 4

    def acceptance(self, measures: Measures) -> float:
        """Probability that a simulated part is accepted.

        Args:
            measures: What was measured on it.
        """
        blade = self.hit if measures.recoater_interference else self.clear
        moved = int(np.searchsorted(DISPLACEMENT_CLASSES, measures.displacement_z_max))
        return blade * self._of_height(measures.height) * self.by_displacement[moved]

    def most(self, height: float, *, hit: bool) -> float:
        """Largest acceptance that a part can still have.

        Args:
            height: Its height, mm.
            hit: Whether it has met the blade.
        """
        blade = self.hit if hit else max(self.hit, self.clear)
        return blade * self._of_height(height) * max(self.by_displacement)

    def _of_height(self, height: float) -> float:
        return self.by_height[int(np.searchsorted(HEIGHT_CLASSES, height))]


# Table 6 of the paper: least, 25 %, 50 %, 75 %, largest. Heights are those of parts that aren't tilted, and leave room
# for the others, most of which are high; between 21.6 and 60 mm there is one more, which meets the mean.
_RATIOS: Final = ((0.0, 1.0667), (0.25, 1.28), (0.5, 1.4733), (0.75, 1.9072), (1.0, 2.9))
_SIZES: Final = ((0.0, 0.037), (0.25, 0.518), (0.5, 1.0), (0.75, 1.545), (1.0, 2.3))
_HEIGHTS: Final = ((0.0, 0.6), (0.31, 7.8), (0.58, 21.6), (0.65, 36.0), (0.72, 60.0), (1.0, 60.0))

# Acceptances are from tests/benchmarks/calibrate_draws.py, whose JSON says of which version of the simulator.
PUBLISHED: Final = Draw(
    "published",
    _HEIGHTS,
    0.2,
    _SIZES,
    _RATIOS,
    by_height=(1.0, 0.76, 0.43, 0.36),
    by_displacement=(0.22, 0.35, 0.73, 1.0),
)
BALANCED: Final = Draw("balanced", _HEIGHTS, 0.2, ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0)), _RATIOS, hit=0.38)

DRAWS: Final = MappingProxyType({draw.name: draw for draw in (PUBLISHED, BALANCED)})
"""Every draw by name."""


@dataclass(frozen=True)
class CandidateStream:
    """The candidates of one case.

    Attributes:
        case_id: The case.
        draw: Name of the draw.
        seed: Seed of the corpus.
        number: Number of the case in it, from 0.
        num_points: Median number of points of the corpus.
        families: Families to draw from.
        chosen: The candidate that was accepted at another size and is taken as it is; None to look for one.
        meshed_for: Median number of points at that size.
        weight: Its weight there.
    """

    case_id: str
    draw: DrawName
    seed: int
    number: int
    num_points: int
    families: tuple[str, ...]
    chosen: int | None = None
    meshed_for: int | None = None
    weight: float | None = None

    def candidate(self, number: int) -> tuple[PartPlan, float]:
        """A candidate, and the number from 0 to 1 that its acceptance must exceed.

        Args:
            number: Which, from 0.
        """
        draw = DRAWS[self.draw]
        salt = int(hashlib.sha256(draw.name.encode()).hexdigest()[:8], 16)
        rng = np.random.default_rng([self.seed, salt, self.number, number])
        family = FAMILIES[self.families[int(rng.integers(len(self.families)))]]
        shares = {name: float(rng.uniform()) for name in family.ranges}
        up, is_tilted = int(rng.choice(3, p=_UP)), bool(rng.uniform() < draw.tilted)
        height, ratio, size = (
            quantile([share for share, _ in table], [value for _, value in table], rng.uniform())
            for table in (draw.heights, draw.aspect_ratios, draw.sizes)
        )
        tilt = (float(rng.uniform(*_TILTS)), float(rng.uniform(0.0, 360.0)))
        threshold = float(rng.uniform())
        points = max(MIN_POINTS, round((self.meshed_for or self.num_points) * size))
        plan = PartPlan(
            self.case_id,
            family.name,
            parameters_of(family, shares),
            up,
            points,
            ratio,
            height=None if is_tilted else min(height, MAX_EXTENT),
            tilt=tilt if is_tilted else None,
            sized_for=points,
        )
        if self.meshed_for is not None:
            plan = replace(plan, num_points=round(self.num_points * size))
        return plan, threshold


def plan_streams(
    draw: DrawName, seed: int, cases: int, num_points: int, families: Sequence[str]
) -> tuple[CandidateStream, ...]:
    """Plan the streams of a corpus; the first ones don't depend on how many cases are asked for.

    Args:
        draw: Name of the draw.
        seed: Another seed gives other parts.
        cases: Number of parts.
        num_points: Median number of points.
        families: Families to draw from.
    """
    return tuple(
        CandidateStream(f"{design}_{_BODY}", draw, seed, number, num_points, tuple(families))
        for number, design in enumerate(design_ids(seed, cases))
    )


def at_size(stream: CandidateStream, chosen: int, num_points: int, weight: float | None) -> CandidateStream:
    """The accepted candidate of a stream, meshed with other numbers of points: another body of the same design.

    Args:
        stream: The stream.
        chosen: The candidate that was accepted.
        num_points: Median number of points.
        weight: Weight of the case that it was.
    """
    case_id = f"{stream.case_id}{num_points:06d}"
    now = replace(stream, case_id=case_id, num_points=num_points, meshed_for=stream.num_points)
    return replace(now, chosen=chosen, weight=weight)
