"""How well a score separates hits from clear parts (without a hit): curves, logistic calibration, bootstrap intervals.

R parts, each with a score, larger where a hit is likelier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.judging.interference import HitScore

RESAMPLES: Final = 2000
LEVEL: Final = 0.95
"""Number of resamples of a bootstrap interval, and the interval's level."""

_SLOPE_RIDGE: Final = 1e-3
"""Ridge penalty on the slope of the logistic curve, which is infinite without one where scores separate perfectly."""


def arrays_of(hit_scores: Sequence[HitScore]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores [R] and hits [R]."""
    return np.array([r.score for r in hit_scores], np.float64), np.array([r.hit for r in hit_scores], bool)


@dataclass(frozen=True)
class Curve:
    """Recall, false alarms and precision at every threshold, the highest first; the first one raises no alarm.

    Attributes:
        thresholds: An alarm is raised from this score on, infinite for the first.
        found: Share of the hits that raise an alarm: recall.
        false_alarms: Share of the clear parts that raise an alarm.
        precision: Share of the alarms that are hits; 1 without any.
    """

    thresholds: NDArray[np.float64]
    found: NDArray[np.float64]
    false_alarms: NDArray[np.float64]
    precision: NDArray[np.float64]

    def as_dict(self) -> dict[str, list[float]]:
        """The curve as JSON takes it, without thresholds."""
        names = ("found", "false_alarms", "precision")
        return {name: getattr(self, name).tolist() for name in names}

    @property
    def average_precision(self) -> float:
        """Average precision: the sum of precision times the rise of recall over all thresholds."""
        return float((np.diff(self.found) * self.precision[1:]).sum())

    def recall_at(self, rate: float) -> float:
        """The largest recall with at most a rate of false alarms."""
        return float(self.found[self.false_alarms <= rate + 1e-9].max())


def curve_of(scores: NDArray[np.float64], hits: NDArray[np.bool_]) -> Curve | None:
    """ROC and precision-recall curve; None where there are no hits, or no parts without one.

    Args:
        scores: [R].
        hits: [R].

    >>> curve = curve_of(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    >>> curve.recall_at(0.0), curve.recall_at(1.0)
    (0.5, 1.0)
    """
    if hits.all() or not hits.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ordered, is_hit = scores[order], hits[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # the last of the parts with the same score
    found, alarms = np.cumsum(is_hit)[last], np.flatnonzero(last) + 1
    return Curve(
        np.append(np.inf, ordered[last]),
        np.append(0, found) / hits.sum(),
        np.append(0, alarms - found) / (~hits).sum(),
        np.append(1.0, found / alarms),
    )


@dataclass(frozen=True)
class LogisticCurve:
    """Probability of a hit from a score: a logistic curve.

    Attributes:
        centre: Score at which the standardised score is 0.
        spread: Scale of the standardised score: standardised = (score - centre) / spread.
        intercept: Log odds of a hit at the centre.
        slope: Change of the log odds per unit of the standardised score.
    """

    centre: float
    spread: float
    intercept: float
    slope: float

    @classmethod
    def of(cls, hit_scores: Sequence[HitScore]) -> LogisticCurve:
        """Fit by Newton's method to parts of which the truth may be used; hits and clear parts must be among them."""
        scores, hits = arrays_of(hit_scores)
        centre, spread = float(scores.mean()), float(scores.std()) or 1.0
        design = np.stack([np.ones(len(scores)), (scores - centre) / spread], axis=1)
        ridge, weights = np.diag([0.0, _SLOPE_RIDGE * len(scores)]), np.zeros(2)
        for _ in range(50):
            chance = _logistic(design @ weights)
            slope = design.T @ (hits - chance) - ridge @ weights
            curvature = (design * (chance * (1 - chance))[:, None]).T @ design + ridge + 1e-12 * np.eye(2)
            change = np.linalg.solve(curvature, slope)
            weights = weights + change * min(1.0, 4.0 / max(float(np.abs(change).max()), 1e-12))
            if float(np.abs(change).max()) < 1e-10:
                break
        return cls(centre, spread, float(weights[0]), float(weights[1]))

    def chances(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Chance of a hit, [R]."""
        return _logistic(self.intercept + self.slope * (scores - self.centre) / self.spread)


def _logistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    half: NDArray[np.float64] = 0.5 * (1 + np.tanh(values / 2))
    return half


def brier(chances: NDArray[np.float64], hits: NDArray[np.bool_]) -> float:
    """Mean squared difference of the chance of a hit and the outcome, 0 at best.

    >>> brier(np.array([1.0, 0.5]), np.array([True, False]))
    0.125
    """
    return float(np.square(chances - hits).mean())


def bootstrap(
    hit_scores: Sequence[HitScore], statistic: Callable[[Sequence[HitScore]], float | None]
) -> tuple[float, float] | None:
    """Interval of a statistic over parts, by resampling designs; None where it has no value.

    Args:
        hit_scores: The parts.
        statistic: Computes the statistic from parts; samples for which it returns None are left out.
    """
    designs: dict[str, list[HitScore]] = {}
    for hit_score in hit_scores:
        designs.setdefault(hit_score.design, []).append(hit_score)
    groups, draw = list(designs.values()), np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        drawn = [hit_score for number in draw.integers(len(groups), size=len(groups)) for hit_score in groups[number]]
        value = statistic(drawn)
        if value is not None and math.isfinite(value):
            found.append(value)
    if not found:
        return None
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _recall_at(rate: float) -> Callable[[Sequence[HitScore]], float | None]:
    def recall(hit_scores: Sequence[HitScore]) -> float | None:
        curve = curve_of(*arrays_of(hit_scores))
        return None if curve is None else curve.recall_at(rate)

    return recall


def describe(hit_scores: Sequence[HitScore], rate: float) -> dict[str, Any]:
    """Curves of the parts that were judged, average precision, and recall at a stated rate of false alarms.

    Args:
        hit_scores: The parts.
        rate: Share of clear parts that may raise an alarm.

    Returns:
        Entries for the summary of an evaluation; empty where there are no hits, or no parts without one.
    """
    curve = curve_of(*arrays_of(hit_scores))
    if curve is None:
        return {}
    recall = {
        "false_alarm_rate": rate,
        "recall": curve.recall_at(rate),
        "interval": bootstrap(hit_scores, _recall_at(rate)),
    }
    return {"curves": curve.as_dict(), "average_precision": curve.average_precision, "recall_at_false_alarms": recall}
