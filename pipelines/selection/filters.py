"""Which cases are kept: limits on what was measured. Reads records only, never an array."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from lpbf_data.case.record import CaseRecord, Measures, Rejection
from lpbf_data.errors import UsageError


@dataclass(frozen=True)
class Filters:
    """Limits that a case must meet to be kept; one that is left out comes from the preset.

    Args:
        preset: "benchmark" is the filter of the published data set; "all" rejects nothing.
        max_points: Most points.
        max_edges: Most columns of edge_index, that is, edges counted in both directions.
        max_aspect_ratio: Largest aspect ratio of a cell, for the mean over the part and for its worst cell.
        max_displacement: Largest upward Z displacement of the finished part, mm.
        max_von_mises_stress: Largest von Mises stress of the finished part, MPa.
    """

    preset: Literal["benchmark", "all"] = "benchmark"
    max_points: int | None = None
    max_edges: int | None = None
    max_aspect_ratio: float | None = None
    max_displacement: float | None = None
    max_von_mises_stress: float | None = None


@dataclass(frozen=True, slots=True)
class Criterion:
    """One limit: its name, the measures that it bounds, and its value in the preset "benchmark", None for no limit."""

    name: str
    measures: tuple[str, ...]
    benchmark: float | None = None

    def value_of(self, measures: Measures) -> float:
        """The value of a case that must not be above the limit; NaN where one of its measures is, or is missing."""
        values = [getattr(measures, name) for name in self.measures]
        return math.nan if any(value is None or math.isnan(value) for value in values) else float(max(values))


CRITERIA: Final = (
    Criterion("max_points", ("num_points",), 50_000),
    Criterion("max_edges", ("num_edges",), 250_000),
    Criterion("max_aspect_ratio", ("aspect_ratio_mean", "aspect_ratio_max"), 3.0),
    Criterion("max_displacement", ("displacement_z_max",), 1.0),
    Criterion("max_von_mises_stress", ("von_mises_stress_max",), 2000.0),
)


def active_limits(filters: Filters) -> dict[str, float]:
    """The limits in force, by criterion.

    Raises:
        UsageError: If a limit isn't a positive number.

    >>> active_limits(Filters(preset="all", max_points=100))
    {'max_points': 100}
    """
    limits: dict[str, float] = {}
    for criterion in CRITERIA:
        asked = getattr(filters, criterion.name)
        if asked is not None and not (math.isfinite(asked) and asked > 0):
            raise UsageError(f"--filters.{criterion.name} must be a positive number, not {asked}")
        if asked is not None:
            limits[criterion.name] = asked
        elif filters.preset == "benchmark" and criterion.benchmark is not None:
            limits[criterion.name] = criterion.benchmark
    return limits


def reject(record: CaseRecord, limits: Mapping[str, float]) -> CaseRecord:
    """Record every criterion that a measured case doesn't meet; a failed case stays as it is.

    Args:
        record: A record with or without measures.
        limits: Limits by criterion.
    """
    if record.failure is not None or record.measures is None:
        return record
    rejections = tuple(
        Rejection(criterion.name, float(value), float(limits[criterion.name]))
        for criterion in CRITERIA
        if criterion.name in limits
        # Not "value > limit": a value that isn't a number must not slip through.
        and not (value := criterion.value_of(record.measures)) <= limits[criterion.name]
    )
    return dataclasses.replace(record, rejections=rejections, placement=None)
