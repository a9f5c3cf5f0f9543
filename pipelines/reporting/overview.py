"""A data set in numbers, from its manifest alone: what card and report say, beside the figures published before."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lpbf_data.case.record import CaseRecord, Measures
from lpbf_data.stores.manifest import count_by

PUBLISHED_SOURCE: Final = (
    "Puri et al., FLARE: Fast Low-rank Attention Routing Engine, arXiv:2508.12594, appendix G, Table 6 "
    "(1,390 parts simulated with Autodesk Netfabb)"
)


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary statistics of many values: the rows of the paper's Table 6."""

    mean: float
    std: float
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary | None:
        """Summary of some values, the deviation that of a sample (n - 1), as in Table 6; None without values."""
        if not values:
            return None
        quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, *quartiles)


SUMMARY_ROWS: Final = {
    "mean": "mean",
    "std": "standard deviation",
    "minimum": "least",
    "lower_quartile": "25 %",
    "median": "50 %",
    "upper_quartile": "75 %",
    "maximum": "largest",
}
"""Rows of Table 6 and what they are called."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that is measured once for every case.

    Attributes:
        name: Name of the column in the manifest.
        label: Name for people.
        unit: Unit; empty for counts and ratios.
        value_of: The value of a case.
        published: The column of Table 6, where there is one.
    """

    name: str
    label: str
    unit: str
    value_of: Callable[[Measures], float]
    published: Summary | None = None

    @property
    def heading(self) -> str:
        """Label with unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


QUANTITIES: Final = (
    Quantity(
        "num_points", "Points", "", lambda m: m.num_points,
        Summary(20_972, 12_476, 736, 10_229, 19_743, 30_503, 47_542),
    ),
    Quantity(
        "num_edges", "Edges, both directions", "", lambda m: m.num_edges,
        Summary(114_140, 68_308, 2_860, 56_208, 107_680, 166_250, 249_930),
    ),
    Quantity(
        "aspect_ratio_mean", "Mean aspect ratio", "", lambda m: m.aspect_ratio_mean,
        Summary(1.6421, 0.43794, 1.0667, 1.2800, 1.4733, 1.9072, 2.9932),
    ),
    Quantity(
        "aspect_ratio_max", "Largest aspect ratio", "", lambda m: m.aspect_ratio_max,
        Summary(1.6421, 0.43794, 1.0667, 1.2800, 1.4733, 1.9072, 2.9933),
    ),
    Quantity(
        "height", "Height", "mm", lambda m: m.height,
        Summary(29.429, 23.246, 0.60000, 7.8000, 21.600, 60.000, 60.000),
    ),
    Quantity(
        "displacement_z_max", "Largest Z displacement", "mm", lambda m: m.displacement_z_max,
        Summary(0.29526, 0.21064, 0.00048500, 0.13827, 0.27075, 0.41962, 0.99777),
    ),
    Quantity("von_mises_stress_max", "Largest von Mises stress", "MPa", lambda m: m.von_mises_stress_max),
    Quantity("recoater_clearance_min", "Least recoater clearance", "% of a layer", lambda m: m.recoater_clearance_min),
)  # fmt: skip
"""What Table 6 and Figure 12 show, then what engineers ask for besides."""


def table_6(records: Sequence[CaseRecord]) -> dict[str, Summary]:
    """Quantity to its summary over the kept cases; empty when none was kept."""
    kept = [record.measures for record in records if record.status == "kept" and record.measures is not None]
    found = {quantity.name: Summary.of([float(quantity.value_of(m)) for m in kept]) for quantity in QUANTITIES}
    return {name: summary for name, summary in found.items() if summary is not None}


@dataclass(frozen=True, slots=True)
class RejectionCount:
    """How many cases one criterion rejects, and how many of them no other criterion does."""

    criterion: str
    limit: float
    cases: int
    alone: int


def count_rejections(records: Sequence[CaseRecord], limits: Mapping[str, float]) -> list[RejectionCount]:
    """What each limit in force rejects.

    Args:
        records: Rows of the manifest.
        limits: Criterion to limit.
    """
    every = count_by(records, lambda r: [x.criterion for x in r.rejections])
    alone = count_by(records, lambda r: [r.rejections[0].criterion] if len(r.rejections) == 1 else [])
    return [RejectionCount(name, limit, every.get(name, 0), alone.get(name, 0)) for name, limit in limits.items()]


@dataclass(frozen=True, slots=True)
class FailureCount:
    """How many cases failed for one reason, with a few of them: case id and detail."""

    reason: str
    cases: int
    examples: tuple[tuple[str, str], ...]


def count_failures(records: Sequence[CaseRecord], most_examples: int = 3) -> list[FailureCount]:
    """Failures by reason, the most frequent first.

    Args:
        records: Rows of the manifest.
        most_examples: Examples of each reason.
    """
    counts = count_by(records, lambda r: [str(r.failure.failure_reason)] if r.failure else [])
    found = []
    for reason, cases in counts.items():
        failed = [r for r in records if r.failure is not None and str(r.failure.failure_reason) == reason]
        examples = tuple((r.case_id, r.failure.description) for r in failed[:most_examples] if r.failure)
        found.append(FailureCount(reason, cases, examples))
    return found
