"""A data set in numbers, from its manifest alone: what card and report say, beside the figures published before."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from lpbf_data.case.record import CaseRecord, Measures
from lpbf_data.stores.manifest import count_by
from pipelines.selection.select import group_designs, leaking_designs, ordered_splits
from pipelines.selection.split_rules import PUBLISHED, parse_splits
from pipelines.simulation.identity import OWN_SOLVER

PUBLISHED_SOURCE: Final = (
    "Puri et al., FLARE: Fast Low-rank Attention Routing Engine, arXiv:2508.12594, appendix G, Table 6 "
    "(1,390 parts simulated with Autodesk Netfabb)"
)


@dataclass(frozen=True, slots=True)
class Summary:
    """What many values come to, in the rows of the paper's Table 6."""

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


BladeRisk = Literal["hits", "close", "clear"]


def blade_risk(measures: Measures) -> BladeRisk:
    """What the recoater blade finds: a part that it hits, one that comes too close, or neither.

    A clearance of 100 % is that of a part that doesn't rise, 0 % that of one whose highest point stands as high as the
    blade passes. Solvers report interference long before: below a tolerance, 80 % of a layer in NetFabb, which is a
    rise by 8 of 40 µm. So the two are told apart.

    Args:
        measures: What was measured on a case.
    """
    if measures.recoater_clearance_min <= 0:
        return "hits"
    return "close" if measures.recoater_interference else "clear"


@dataclass(frozen=True, slots=True)
class SplitBalance:
    """What one split holds.

    Attributes:
        name: The split.
        cases: Kept cases.
        designs: Designs that they belong to.
        share: Its share of the kept cases.
        asked: What was asked for: a share, or the rule of a split that asks for extrapolation.
        hits: Cases that the recoater blade hits.
        close: Cases that come closer to it than the solver tolerates.
        num_points: Median number of points.
        displacement_z_max: Median of the largest Z displacement, mm.
    """

    name: str
    cases: int
    designs: int
    share: float
    asked: str
    hits: int
    close: int
    num_points: float
    displacement_z_max: float


def _asked_for(splits: str) -> dict[str, str]:
    """Split to the share or rule that `--splits` gives it."""
    request = parse_splits(splits)
    whole = " of the rest" if request.held_out else ""
    asked = {name: f"{100 * share:.1f} %{whole}" for name, share in request.fractions.items()}
    for name, rule in request.held_out.items():
        asked[name] = f"{rule.rule}: {rule.pattern or f'{100 * rule.share:.1f} %'}"
    return asked


def balance_splits(records: Sequence[CaseRecord], splits: str) -> list[SplitBalance]:
    """How like each other the splits are.

    Args:
        records: Rows of the manifest.
        splits: The option `--splits` of the build.
    """
    placed = [(r.placement.split, r, r.measures) for r in records if r.placement is not None and r.measures is not None]
    design_of = group_designs([record for record in records if record.measures is not None])
    asked = _asked_for(splits)
    found = []
    for name in ordered_splits(split for split, _, _ in placed):
        mine = [(record, measures) for split, record, measures in placed if split == name]
        found.append(
            SplitBalance(
                name,
                len(mine),
                len({design_of[record.case_id] for record, _ in mine}),
                len(mine) / len(placed),
                asked.get(name, "–"),
                sum(blade_risk(m) == "hits" for _, m in mine),
                sum(blade_risk(m) == "close" for _, m in mine),
                statistics.median(m.num_points for _, m in mine),
                statistics.median(m.displacement_z_max for _, m in mine),
            )
        )
    return found


def leak_sentence(records: Sequence[CaseRecord], splits: str) -> str:
    """Whether bodies of one design lie on both sides of a split, in a sentence.

    Args:
        records: Rows of the manifest.
        splits: The option `--splits` of the build.
    """
    placed = [record for record in records if record.placement is not None]
    leaks = leaking_designs(records)
    design_of = group_designs([record for record in records if record.measures is not None])
    designs = len({design_of[record.case_id] for record in placed})
    if not leaks:
        return f"No design lies in two splits ({designs:,} designs, {len(placed):,} cases)."
    sides = f"{len(leaks):,} of {designs:,} designs lie in several splits"
    if splits == PUBLISHED:
        return f"{sides}: this is the published division by case, which mixes bodies of one design."
    return f"{sides}; a model can know the test split by heart. Build the data set again."


FUSION_ID: Final = re.compile(r"\d+_[0-9a-f]{8}_\d+")
"""Case ids of parts from the Fusion 360 Gallery, whose licence allows non-commercial research only."""


def fusion_parts(records: Sequence[CaseRecord]) -> list[str]:
    """Ids of kept cases that look like parts of the Fusion 360 Gallery and weren't simulated by this project.

    The project's own simulator gives ids of the same form to parts of its own making.

    Args:
        records: Rows of the manifest.
    """
    kept = [record for record in records if record.status == "kept" and not is_simulated_here(record)]
    return [record.case_id for record in kept if FUSION_ID.fullmatch(record.case_id)]


def is_simulated_here(record: CaseRecord) -> bool:
    """Whether a case comes from this project's simulator rather than from Netfabb, by what its log says."""
    return (record.run.solver_version or "").endswith(OWN_SOLVER)


def solver_sentence(records: Sequence[CaseRecord]) -> str:
    """Which solvers the kept cases come from.

    Args:
        records: Rows of the manifest.
    """
    kept = [record for record in records if record.status == "kept"]

    def name_of(record: CaseRecord) -> str:
        version = record.run.solver_version or "of unknown version"
        if is_simulated_here(record):
            return f"the open simulator of LPBF-FLARE ({version}), not Autodesk Netfabb"
        return f"Autodesk Netfabb Simulation ({version})"

    counts = count_by(kept, lambda record: [name_of(record)])
    if not counts:
        return "No case was kept."
    if len(counts) == 1:
        return f"All kept cases were simulated with {next(iter(counts))}."
    listed = "; ".join(f"{count:,} with {name}" for name, count in counts.items())
    return f"The kept cases were simulated with different solvers: {listed}."
