"""The envelope of the training data: ranges of sizes and materials, and in what a new part lies outside of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.record import CaseRecord
from lpbf_data.case.schema import BUILD_VOLUME

BUILD_EXTENTS: Final = (2 * BUILD_VOLUME[0], 2 * BUILD_VOLUME[1], BUILD_VOLUME[2])
"""Width, depth and height of the build volume, mm."""

_SLACK: Final = 1e-3
"""Coordinates and ratios that are larger by so little are not worth a warning, mm."""


def fits_build_volume(extents: Sequence[float]) -> bool:
    """Whether a part of these extents along x, y and z, in mm, fits the build volume as it is turned."""
    return all(one <= most + _SLACK for one, most in zip(extents, BUILD_EXTENTS, strict=True))


@dataclass(frozen=True)
class Range:
    """Least and largest value of a quantity."""

    least: float
    largest: float

    def __contains__(self, value: float) -> bool:
        return self.least - _SLACK <= value <= self.largest + _SLACK


@dataclass(frozen=True)
class Envelope:
    """Ranges of sizes, and materials, of the cases of a training split.

    Attributes:
        num_cases: How many there were.
        num_points: Points of a part.
        height: Extent along z, mm.
        aspect_ratio_max: Aspect ratio of a part's worst cell.
        materials: Materials by name; empty when none was recorded.
        num_points_median: Median of the points of a part; None where it wasn't recorded.
    """

    num_cases: int
    num_points: Range
    height: Range
    aspect_ratio_max: Range
    materials: tuple[str, ...] = ()
    num_points_median: float | None = None

    @classmethod
    def of(cls, records: Iterable[CaseRecord]) -> Envelope:
        """The envelope of measured cases; there must be one or more."""
        measured = [(r.measures, r.run.material) for r in records if r.measures is not None]

        def span(name: str) -> Range:
            values = [float(getattr(measures, name)) for measures, _ in measured]
            return Range(min(values), max(values))

        materials = tuple(sorted({material for _, material in measured if material}))
        median = float(np.median([measures.num_points for measures, _ in measured]))
        return cls(len(measured), span("num_points"), span("height"), span("aspect_ratio_max"), materials, median)


def merge_envelopes(first: Envelope | None, second: Envelope | None) -> Envelope | None:
    """The envelope of two trainings, one after the other; the median number of points is that of the later.

    Args:
        first: Envelope of the earlier cases; None where nothing was measured.
        second: Envelope of the later cases.
    """
    if first is None or second is None:
        return second or first

    def both(name: str) -> Range:
        ranges = (getattr(first, name), getattr(second, name))
        return Range(min(r.least for r in ranges), max(r.largest for r in ranges))

    materials = tuple(sorted({*first.materials, *second.materials}))
    spans = {name: both(name) for name in ("num_points", "height", "aspect_ratio_max")}
    median = second.num_points_median or first.num_points_median
    return Envelope(first.num_cases + second.num_cases, **spans, materials=materials, num_points_median=median)


def reasons_outside(
    envelope: Envelope | None,
    points: NDArray[np.floating],
    *,
    aspect_ratio: float | None = None,
    material: str | None = None,
    build_volume: Sequence[float] = BUILD_VOLUME,
) -> list[str]:
    """In what a part lies outside of the envelope of the training data.

    Args:
        envelope: Envelope of the training data; only the build volume is checked when None.
        points: Points of the part in mm, [N, 3].
        aspect_ratio: Aspect ratio of its worst cell, where known.
        material: Its material, where known.
        build_volume: Half width, half depth and height in mm.

    Returns:
        One sentence a reason; none when it lies inside.
    """
    half_width, half_depth, height = build_volume
    beyond = np.maximum(points.max(0) - (half_width, half_depth, height), (-half_width, -half_depth, 0) - points.min(0))
    reasons = [
        f"it reaches {distance:.3g} mm out of the build volume along {axis} ({bounds} mm)"
        for axis, distance, bounds in zip(
            "xyz", beyond.tolist(), (f"±{half_width:g}", f"±{half_depth:g}", f"0 … {height:g}"), strict=True
        )
        if distance > _SLACK
    ]
    if envelope is None:
        return reasons
    tall = float(np.ptp(points[:, 2]))
    checks = [
        ("number of points", float(len(points)), envelope.num_points, ""),
        ("height", tall, envelope.height, " mm"),
    ]
    reasons += [
        f"its {name} {value:,.6g}{unit} lies outside {seen.least:,.6g} … {seen.largest:,.6g}{unit} seen in training"
        for name, value, seen, unit in checks
        if value not in seen
    ]
    # Cells that are nearer to cubes than any of the training are no reason to doubt.
    if aspect_ratio is not None and aspect_ratio > envelope.aspect_ratio_max.largest + _SLACK:
        largest = envelope.aspect_ratio_max.largest
        reasons.append(
            f"the aspect ratio of its worst cell, {aspect_ratio:,.6g}, lies above {largest:,.6g}, "
            "the largest in training"
        )
    if material and envelope.materials and material not in envelope.materials:
        reasons.append(f"its material {material} is none of those seen in training: {', '.join(envelope.materials)}")
    return reasons
