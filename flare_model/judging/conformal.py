"""Intervals by split conformal prediction: calibrated on validation designs, with their coverage on other cases.

Designs are exchangeable, points of a part are not. Each design therefore has the same weight, which its parts and their
points share. A quantile of the weighted residuals then holds, with the stated probability and for any model, for a
point drawn from a new design (Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.data.intervals import (
    LARGE_PART_POINTS,
    ColumnInterval,
    Intervals,
    Values,
    extreme_error,
    extreme_of,
    part_scale,
    peaks_of,
    regressors,
    scale_of,
)
from flare_model.data.normalisation import Normalisation
from flare_model.judging.risk_curves import LEVEL, RESAMPLES

_POINTS: Final = 1024
"""Points of a part that are used, drawn at random: all of 600 parts of 20,000 points would be too many to sort."""

_FITTED: Final = 3
"""Every third design is used to fit the residual model; the others give the width of the intervals."""

_MIN_FITTED: Final = 10
"""Designs that a residual model needs; with fewer, intervals have the same width everywhere."""

_RIDGES: Final = (5e-2, 0.5, 5.0)
"""Ridge penalties of the residual model that are tried; the best one on held-out designs is taken, or no model."""

_FOLDS: Final = 5
_SIZES: Final = 3


@dataclass(frozen=True)
class PartResiduals:
    """Residuals of every column at some points of one part, and errors of its extremes.

    Attributes:
        case_id: The case.
        design: Its design.
        num_points: Points of the part.
        inputs: Column to inputs of the residual model, [n, K].
        residuals: Column to truth minus prediction, [n].
        extremes: Column to the extreme value (`extreme_of`) of the prediction and of the truth, over all points.
        peaks: Column to name of a peak (`peaks_of`) to its absolute error.
    """

    case_id: str
    design: str
    num_points: int
    inputs: Mapping[str, NDArray[np.floating]]
    residuals: Mapping[str, Values]
    extremes: Mapping[str, tuple[float, float]]
    peaks: Mapping[str, Mapping[str, float]]


def part_residuals(
    case_id: str,
    design: str,
    columns: Sequence[str],
    points: NDArray[np.floating],
    features: NDArray[np.floating] | None,
    prediction: NDArray[np.floating],
    truth: NDArray[np.floating],
    norm: Normalisation,
) -> PartResiduals:
    """Residuals and extremes of one part from prediction and truth.

    Args:
        case_id: The case.
        design: Its design.
        columns: Names of the T columns.
        points: [N, 3], mm.
        features: [N, F]; None where the model has none.
        prediction: [N, T].
        truth: [N, T].
        norm: Normalisation of the model.
    """
    seed = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8])
    count = len(points)
    taken = np.sort(np.random.default_rng(seed).choice(count, min(count, _POINTS), replace=False))
    residuals = truth.astype(np.float64) - prediction
    predicted, true = (peaks_of({name: of[:, c] for c, name in enumerate(columns)}) for of in (prediction, truth))
    return PartResiduals(
        case_id,
        design,
        count,
        {n: regressors(points, features, prediction, c, norm)[taken].astype(np.float32) for c, n in enumerate(columns)},
        {name: residuals[taken, c] for c, name in enumerate(columns)},
        {n: (extreme_of(n, prediction[:, c]), extreme_of(n, truth[:, c])) for c, n in enumerate(columns)},
        {n: {peak: abs(value - true[n][peak]) for peak, value in of.items()} for n, of in predicted.items()},
    )


def min_designs(level: float) -> int:
    """Smallest number of designs from which an interval of a level can be calibrated.

    Args:
        level: Share of points and parts that are to lie inside.

    >>> min_designs(0.9), min_designs(0.95)
    (9, 19)
    """
    return math.ceil(level / (1 - level) - 1e-9)


def calibrate(parts: Sequence[PartResiduals], level: float, weights_sha256: str) -> Intervals | str:
    """Intervals from the parts of the validation split.

    Args:
        parts: The parts; their designs must not have been trained on.
        level: Share of points and of parts that are to lie inside.
        weights_sha256: The weights that predicted.

    Returns:
        The intervals, or a sentence that says why there are none. Large parts have separate intervals where at least
        twice as many designs as an interval needs are large, and as many are small.
    """
    designs = shuffled({part.design for part in parts})
    minimum = min_designs(level)
    if len(designs) < minimum:
        return f"{level:.0%} intervals need {minimum} validation designs, and there are {len(designs)}"
    fitted = set(designs[::_FITTED]) if len(designs) // _FITTED >= _MIN_FITTED else set()
    if len(designs) - len(fitted) < minimum:
        fitted = set()
    fitting = [part for part in parts if part.design in fitted]
    calibration = [part for part in parts if part.design not in fitted]
    by_size = [
        [part for part in calibration if (part.num_points > LARGE_PART_POINTS) == large] for large in (False, True)
    ]
    separately = all(len({part.design for part in some}) >= 2 * minimum for some in by_size)
    columns, of_large = {}, {}
    for name in parts[0].residuals:
        coefficients = _residual_model(fitting, name, level)
        columns[name] = _column_interval(name, coefficients, by_size[0] if separately else calibration, level)
        if separately:
            of_large[name] = _column_interval(name, coefficients, by_size[1], level)
    return Intervals(level, weights_sha256, columns, len(designs), of_large)


def _column_interval(
    name: str, coefficients: tuple[float, ...], parts: Sequence[PartResiduals], level: float
) -> ColumnInterval:
    """The interval of a column from parts that its residual model wasn't fitted to."""
    scales = [scale_of(coefficients, part.inputs[name]) for part in parts]
    residuals = [np.abs(part.residuals[name]) for part in parts]
    groups = [part.design for part in parts]

    def of_parts(errors: Sequence[float]) -> float:
        scores = [np.array([e / part_scale(s)]) for e, s in zip(errors, scales, strict=True)]
        return conformal_quantile(scores, groups, level)

    return ColumnInterval(
        coefficients,
        conformal_quantile([r / s for r, s in zip(residuals, scales, strict=True)], groups, level),
        of_parts([extreme_error(name, *part.extremes[name]) for part in parts]),
        conformal_quantile(residuals, groups, level),
        {peak: of_parts([part.peaks[name][peak] for part in parts]) for peak in parts[0].peaks.get(name, ())},
    )


def shuffled(names: Iterable[str]) -> list[str]:
    """Names sorted by their SHA-256 digests: a pseudorandom order that is the same in every run."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def conformal_quantile(scores: Sequence[Values], groups: Sequence[str], level: float) -> float:
    """Weighted quantile of scores that bounds the score of a new group with a stated probability.

    Every group has the same weight, and one more group, the new one, counts as infinite.

    Args:
        scores: Scores of each part, at its points.
        groups: The group (design) of each part.
        level: The probability.

    Returns:
        The quantile; infinite where there are too few groups.

    >>> conformal_quantile([np.array([float(i)]) for i in range(9)], [str(i) for i in range(9)], 0.9)
    8.0
    """
    sizes = {name: groups.count(name) for name in set(groups)}
    share = 1 / (len(sizes) + 1)
    weights = np.concatenate(
        [np.full(len(s), share / sizes[name] / len(s)) for s, name in zip(scores, groups, strict=True)]
    )
    values = np.concatenate(scores)
    order = np.argsort(values)
    reached = np.searchsorted(np.cumsum(weights[order]), level - 1e-9)
    return float(values[order][reached]) if reached < len(values) else math.inf


def _residual_model(parts: Sequence[PartResiduals], name: str, level: float) -> tuple[float, ...]:
    """Coefficients of the scale of residuals, by cross-validation over designs; empty for a scale of 1 everywhere.

    The scale whose intervals are narrowest on held-out designs is taken: from few designs a fitted scale can follow
    noise, which makes intervals wider.

    Args:
        parts: Parts that are used for nothing else.
        name: The column.
        level: Share of points that are to lie inside.
    """
    designs = shuffled({part.design for part in parts})
    folds = [set(designs[number::_FOLDS]) for number in range(_FOLDS)]
    narrowest, best = math.inf, None
    for ridge in (None, *_RIDGES) if parts else ():
        scales, scores, groups = [], [], []
        for held_out in folds:
            coefficients = () if ridge is None else _fit([p for p in parts if p.design not in held_out], name, ridge)
            for part in (part for part in parts if part.design in held_out):
                scales.append(scale_of(coefficients, part.inputs[name]))
                scores.append(np.abs(part.residuals[name]) / scales[-1])
                groups.append(part.design)
        width = conformal_quantile(scores, groups, level) * float(np.mean([scale.mean() for scale in scales]))
        if width < narrowest:
            narrowest, best = width, ridge
    return () if best is None else _fit(parts, name, best)


def _fit(parts: Sequence[PartResiduals], name: str, ridge: float) -> tuple[float, ...]:
    """Coefficients of a ridge regression for the logarithm of the residuals' size, with equal weight for each part."""
    width = parts[0].inputs[name].shape[1]
    products, sides = np.zeros((width, width)), np.zeros(width)
    for part in parts:
        inputs, squares = part.inputs[name].astype(np.float64), part.residuals[name] ** 2
        logs = 0.5 * np.log(squares + 0.1 * squares.mean() + 1e-24)
        products += inputs.T @ inputs / len(inputs)
        sides += inputs.T @ logs / len(inputs)
    penalty = ridge * len(parts) * np.eye(width)
    penalty[0, 0] = 0.0
    solved = np.linalg.lstsq(products + penalty, sides, rcond=None)[0]
    return tuple(solved.tolist())


def coverage(intervals: Intervals, parts: Sequence[PartResiduals], families: Mapping[str, str]) -> dict[str, Any]:
    """Coverage of the intervals on other parts than those of their calibration: overall, by size and by family.

    Args:
        intervals: The intervals.
        parts: The parts.
        families: Case id to family, as far as known.

    Returns:
        Column to shares of points and of parts inside the intervals, bootstrap intervals of these shares over designs,
        mean half-widths, and the ratio of those to a half-width that is the same everywhere; the same by size and by
        family.
    """
    sizes = np.array_split(np.argsort([part.num_points for part in parts], kind="stable"), min(_SIZES, len(parts)))
    by_size = {
        f"{parts[group[0]].num_points:,} to {parts[group[-1]].num_points:,} points": [parts[i] for i in group]
        for group in sizes
    }
    by_family: dict[str, list[PartResiduals]] = {}
    for part in parts:
        if part.case_id in families:
            by_family.setdefault(families[part.case_id], []).append(part)
    return {
        name: _shares(intervals, name, parts)
        | {"by_size": {group: _shares(intervals, name, some) for group, some in by_size.items()}}
        | {"by_family": {group: _shares(intervals, name, by_family[group]) for group in sorted(by_family)}}
        for name in intervals.columns
    }


def _shares(intervals: Intervals, name: str, parts: Sequence[PartResiduals]) -> dict[str, Any]:
    points, whole, widths, part_widths, constants = [], [], [], [], []
    peaks: dict[str, list[float]] = {peak: [] for peak in intervals.columns[name].peaks}
    for part in parts:
        of = intervals.column_interval(name, part.num_points)
        constants.append(of.constant)
        scales = intervals.scales(name, part.inputs[name])
        points.append(float((np.abs(part.residuals[name]) <= of.point * scales).mean()))
        part_widths.append(of.part * part_scale(scales))
        whole.append(float(extreme_error(name, *part.extremes[name]) <= part_widths[-1]))
        for peak, width in of.peaks.items():
            peaks[peak].append(float(part.peaks[name][peak] <= width * part_scale(scales)))
        widths.append(float((of.point * scales).mean()))
    designs = [part.design for part in parts]
    mean_width = float(np.mean(widths))
    points_interval = _bootstrap(points, designs)
    return {
        "parts": len(parts),
        "points_inside": float(np.mean(points)),
        "points_inside_interval": points_interval,
        "holds": points_interval[0] <= intervals.level <= points_interval[1],
        "parts_inside": float(np.mean(whole)),
        "parts_inside_interval": _bootstrap(whole, designs),
        "half_width": mean_width,
        "part_half_width": float(np.mean(part_widths)),
        "peaks_inside": {peak: float(np.mean(inside)) for peak, inside in peaks.items()},
        "over_constant_width": mean_width / float(np.mean(constants)) if any(constants) else None,
    }


def _bootstrap(values: Sequence[float], designs: Sequence[str]) -> tuple[float, float]:
    """Bootstrap interval of the mean over parts, by resampling designs."""
    numbers = np.unique(np.array(designs), return_inverse=True)[1]
    sums, counts = np.bincount(numbers, values), np.bincount(numbers)
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
