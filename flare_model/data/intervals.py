"""Prediction intervals of a checkpoint, at points and for whole parts, as stored in `intervals.json`.

N points of one part, T numbers a point, F features. An interval is the prediction plus and minus a half-width: a
conformal quantile of the column times a scale that a residual model gives at every point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.data.auxiliary_file import AuxiliaryFile
from flare_model.data.normalisation import Normalisation

INTERVALS_NAME: Final = "intervals.json"
INTERVALS_VERSION: Final = 1
_FILE: Final = AuxiliaryFile(
    INTERVALS_NAME,
    "intervals_version",
    INTERVALS_VERSION,
    ("doesn't hold the intervals of a checkpoint", "remove it, or judge the checkpoint again"),
)

LARGE_PART_POINTS: Final = 8000
"""Parts with more points count as large: errors are larger there than those of parts of all sizes pooled."""

_MAX_STANDARDISED: Final = 5.0
"""Standardised inputs of the residual model are clipped here, so that it stays bounded far from its fitting data."""

_MIN_STANDARDISED: Final = 1e-3
"""Root mean squares of standardised predictions are bounded from below by this, before their logarithm is taken."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class ColumnInterval:
    """The interval of one column.

    Attributes:
        coefficients: Coefficients of the logarithm of the scale, one for each column of `regressors`, [K]; empty for a
            scale of 1 everywhere.
        point: Half-width at a point divided by the scale at that point.
        part: Half-width for the part's extreme value divided by the part's scale, which is the geometric mean of the
            scales at its points. The extreme of a displacement is taken by its absolute value.
        constant: Half-width at a point if it were the same everywhere, in the column's unit.
        peaks: For displacements, name of a peak (`peaks_of`) to its half-width divided by the part's scale.
    """

    coefficients: tuple[float, ...]
    point: float
    part: float
    constant: float
    peaks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Intervals:
    """The intervals of a checkpoint.

    Attributes:
        level: Share of points, and of parts, that they hold for, in parts like those of the validation split.
        weights_sha256: SHA-256 of the file of weights that they were made for.
        columns: Column to its interval; of parts with at most LARGE_PART_POINTS points where `large` holds those of
            larger ones.
        designs: Validation designs that they come from.
        large: Column to its interval for parts with more than LARGE_PART_POINTS points; empty where there were too few
            validation designs of such parts.
    """

    level: float
    weights_sha256: str
    columns: Mapping[str, ColumnInterval]
    designs: int
    large: Mapping[str, ColumnInterval] = field(default_factory=dict)

    def column_interval(self, column: str, num_points: int) -> ColumnInterval:
        """The interval of a column in a part of so many points."""
        return self.large[column] if self.large and num_points > LARGE_PART_POINTS else self.columns[column]

    def scales(self, column: str, inputs: NDArray[np.floating]) -> Values:
        """Scale at every point, [N], in the column's unit.

        Args:
            column: The column.
            inputs: What `regressors` returns for it, [N, K].
        """
        return scale_of(self.columns[column].coefficients, inputs)


def scale_of(coefficients: tuple[float, ...], inputs: NDArray[np.floating]) -> Values:
    """Scale at every point, [N]: the exponential of coefficients times inputs; 1 without coefficients."""
    if not coefficients:
        return np.ones(len(inputs))
    scales: Values = np.exp(np.clip(inputs @ np.array(coefficients), -50.0, 50.0))
    return scales


def part_scale(scales: Values) -> float:
    """Scale of a part: the geometric mean of those at its points."""
    return float(np.exp(np.log(scales).mean()))


def regressors(
    points: NDArray[np.floating],
    features: NDArray[np.floating] | None,
    prediction: NDArray[np.floating],
    column: int,
    norm: Normalisation,
) -> Values:
    """Inputs of the residual model at every point: prediction, size of the part, height in it, features.

    Args:
        points: [N, 3], mm.
        features: [N, F]; None where the model has none.
        prediction: [N, T], physical units.
        column: Which of the T.
        norm: Means and standard deviations of the training points.

    Returns:
        [N, K]; the first is 1.
    """
    standardised = (prediction.astype(np.float64) - np.array(norm.target_mean)) / np.array(norm.target_std)
    values = standardised[:, column]
    size = math.hypot(float(np.sqrt(np.mean(values**2))), _MIN_STANDARDISED)
    whole = math.hypot(float(np.sqrt(np.mean(standardised**2))), _MIN_STANDARDISED)
    high = points[:, 2] - points[:, 2].min()
    inputs = [
        np.ones(len(points)),
        np.full(len(points), math.log(size)),
        np.full(len(points), math.log(whole)),
        np.log(np.hypot(values / size, 0.1)),
        np.full(len(points), math.log(len(points)) - 8.0),
        np.full(len(points), math.log(max(float(high.max()), 0.1)) - 3.0),
        high / max(float(high.max()), 1e-6),
    ]
    if features is not None:
        scaled = (features.astype(np.float64) - np.array(norm.feature_mean)) / np.array(norm.feature_std)
        inputs += [*np.clip(scaled, -_MAX_STANDARDISED, _MAX_STANDARDISED).T]
    return np.stack(inputs, axis=1)


def extreme_of(column: str, values: NDArray[np.floating]) -> float:
    """The extreme of a part: the least clearance, else the value farthest from zero.

    Args:
        column: Name of the column.
        values: At the points, [N].

    >>> extreme_of("displacement_z", np.array([0.1, -0.3])), extreme_of("build_clearance_min", np.array([90.0, 70.0]))
    (-0.3, 70.0)
    """
    if column.endswith("clearance_min"):
        return float(values.min())
    return float(values[np.argmax(np.abs(values))])


def extreme_error(column: str, predicted: float, true: float) -> float:
    """Error of a part's predicted extreme value; displacements are compared by their absolute values.

    >>> extreme_error("displacement_x", -0.31, 0.3) < 0.011, extreme_error("build_clearance_min", 90.0, 70.0)
    (True, 20.0)
    """
    if column.endswith("clearance_min"):
        return abs(predicted - true)
    return abs(abs(predicted) - abs(true))


def peaks_of(values: Mapping[str, NDArray[np.floating]]) -> dict[str, dict[str, float]]:
    """The largest displacements of a part by direction: the farthest up each axis and down it, and sideways.

    Args:
        values: Column to values at the points, [N].

    Returns:
        Column to name of the peak to value: "largest" and "least" for each displacement, and for displacement_x also
        "sideways", the length of the displacement in the plane of the plate, whose interval takes the scale of
        displacement_x.
    """
    found = {
        name: {"largest": float(of.max()), "least": float(of.min())}
        for name, of in values.items()
        if name in ("displacement_x", "displacement_y", "displacement_z")
    }
    if {"displacement_x", "displacement_y"} <= found.keys():
        found["displacement_x"]["sideways"] = float(np.hypot(values["displacement_x"], values["displacement_y"]).max())
    return found


def write_intervals(folder: Path, intervals: Intervals) -> None:
    """Write the intervals into the folder of their checkpoint."""
    _FILE.write(folder, asdict(intervals))


def read_intervals(folder: Path) -> Intervals | None:
    """The intervals of a checkpoint; None where it has none.

    Raises:
        SchemaError: If they can't be read.
    """
    return _FILE.read(folder, _intervals_from)


def _intervals_from(content: Mapping[str, Any]) -> Intervals:
    columns = {str(name): _column(values) for name, values in content["columns"].items()}
    large = {str(name): _column(values) for name, values in content.get("large", {}).items()}  # earlier files have none
    if large and large.keys() != columns.keys():
        raise ValueError("intervals of large parts for other columns")
    return Intervals(float(content["level"]), str(content["weights_sha256"]), columns, int(content["designs"]), large)


def _column(values: Mapping[str, Any]) -> ColumnInterval:
    numbers = {name: float(values[name]) for name in ("point", "part", "constant")}
    peaks = {str(name): float(of) for name, of in values.get("peaks", {}).items()}  # earlier files have none
    found = ColumnInterval(tuple(map(float, values["coefficients"])), **numbers, peaks=peaks)
    widths = (*numbers.values(), *peaks.values())
    if not all(map(math.isfinite, (*found.coefficients, *widths))) or min(widths) < 0:
        raise ValueError("a number that isn't finite, or a negative width")
    return found
