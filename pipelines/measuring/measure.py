"""One case to one record: counts, aspect ratios, extremes, statistics. Later stages take them from the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from lpbf_data.case.case import Case
from lpbf_data.case.record import Measures
from lpbf_data.case.schema import BUILD_FIELDS, DEFAULT_FIELDS, DEFAULT_TOLERANCE, FIELDS, FieldSpec
from lpbf_data.case.statistics import FieldStatistics
from lpbf_data.geometry.hexahedra import count_hex_edges, hex_aspect_ratio
from pipelines.netfabb.run import BuildReduction

MEASURED_FIELDS: Final = (*DEFAULT_FIELDS, *BUILD_FIELDS)
"""Fields whose statistics are taken for every case, kept or not."""


def measure_case(case: Case, build: BuildReduction, tolerance: float | None) -> Measures:
    """Measure the finished part of one case.

    Args:
        case: The last frame, with displacement and von Mises stress.
        build: The build reduced onto it.
        tolerance: Recoater tolerance of the run, percent of a layer; NetFabb's default when None.
    """
    aspect_ratio = hex_aspect_ratio(case.points, case.cells)
    displacement = case.fields["displacement"].astype(np.float64)
    limit = DEFAULT_TOLERANCE if tolerance is None else tolerance
    return Measures(
        num_points=case.num_points,
        num_edges=count_hex_edges(case.cells),
        num_cells=case.num_cells,
        aspect_ratio_mean=float(aspect_ratio.mean()),
        aspect_ratio_max=float(aspect_ratio.max()),
        height=float(np.ptp(case.points[:, 2])),
        displacement_z_max=float(displacement[:, 2].max()),
        displacement_z_abs_max=float(np.abs(displacement[:, 2]).max()),
        displacement_max=float(np.sqrt(np.square(displacement).sum(axis=1).max())),
        von_mises_stress_max=float(case.fields["von_mises_stress"].max()),
        recoater_clearance_min=build.least_clearance,
        recoater_clearance_min_height=build.least_clearance_height,
        recoater_interference=build.least_clearance < limit,
    )


def field_statistics(case: Case, specs: Sequence[FieldSpec]) -> Mapping[str, FieldStatistics]:
    """Statistics of each component of each field.

    Args:
        case: The case.
        specs: Fields to look at.

    Returns:
        Column name to statistics.
    """
    return {
        column: FieldStatistics.of(values)
        for spec in specs
        for column, values in zip(spec.columns, case.planar(spec), strict=True)
    }


def measured_specs() -> tuple[FieldSpec, ...]:
    """Specifications of the fields that are measured for every case."""
    return tuple(FIELDS[name] for name in MEASURED_FIELDS)
