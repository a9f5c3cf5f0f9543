"""What each split holds, and whether a design lies in two."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lpbf_data.case.record import CaseRecord
from pipelines.reporting.blade_risk import blade_risk
from pipelines.selection.split_options import PUBLISHED, parse_splits
from pipelines.selection.splits import group_designs, leaking_designs, ordered_splits


@dataclass(frozen=True, slots=True)
class SplitBalance:
    """What one split holds.

    Attributes:
        name: The split.
        cases: Kept cases.
        designs: Designs that they belong to.
        share: Its share of the kept cases.
        asked: What was asked for: a share, or the rule of a split that asks for extrapolation.
        hits: Cases that come closer to the recoater's blade than the solver tolerates.
        contacts: Those of them that it touches.
        num_points: Median number of points.
        displacement_z_max: Median of the largest Z displacement, mm.
    """

    name: str
    cases: int
    designs: int
    share: float
    asked: str
    hits: int
    contacts: int
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
                sum(blade_risk(m) != "clear" for _, m in mine),
                sum(blade_risk(m) == "contact" for _, m in mine),
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
    return f"{sides}; a model may have seen designs of the test split in training. Build the data set again."
