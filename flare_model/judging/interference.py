"""Recoater interference: hit scores from predicted fields, and how well they detect the hits of the simulation.

A hit is what NetFabb calls interference: a clearance of the recoater's blade above the part below the tolerance.
The score of a part is larger where a hit is likelier. Where the model predicts the clearance itself, the same rule is
applied to the prediction. In any case a threshold on the score is chosen on the validation split for a stated rate of
false alarms, and only applied on the test split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.schema import DEFAULT_TOLERANCE

RISK_TARGETS: Final = ("build_clearance_min", "build_displacement_z_max", "displacement_z", "displacement")
"""Targets from which interference can be predicted, the most direct one first."""


@dataclass(frozen=True)
class HitScore:
    """Hit score of one case, and whether the simulation found a hit.

    Attributes:
        case_id: The case.
        score: Larger where a hit is likelier.
        hit: Whether the simulation found one.
        by_rule: Whether the solver's rule, applied to the prediction, finds one; None where it can't be applied.
        design_id: Its design, whose parts bootstraps and folds keep together; None where it isn't known.
    """

    case_id: str
    score: float
    hit: bool
    by_rule: bool | None
    design_id: str | None = None

    @property
    def design(self) -> str:
        """Group that bootstraps and folds keep together: the design, or the case itself where that isn't known."""
        return self.design_id or self.case_id


@dataclass(frozen=True)
class Detection:
    """How well hits are found.

    Attributes:
        hits: Cases in which the recoater hits.
        found: How many of them raise an alarm.
        clear: Cases in which it doesn't hit.
        false_alarms: How many of the clear cases raise an alarm.
        threshold: Score above which an alarm is raised; None for the solver's rule.
    """

    hits: int
    found: int
    clear: int
    false_alarms: int
    threshold: float | None = None

    @property
    def recall(self) -> float | None:
        """Share of the hits that are found."""
        return self.found / self.hits if self.hits else None

    @property
    def false_alarm_rate(self) -> float | None:
        """Share of the cases without a hit that raise an alarm."""
        return self.false_alarms / self.clear if self.clear else None


def risk_target(targets: Sequence[str]) -> str | None:
    """The most direct target from which interference can be predicted; None when there is none."""
    return next((name for name in RISK_TARGETS if name in targets), None)


def assess(
    case_id: str,
    target: str,
    prediction: NDArray[np.float32],
    *,
    hit: bool,
    tolerance: float | None,
    design: str | None = None,
) -> HitScore:
    """Hit score of one case from its prediction.

    Args:
        case_id: The case.
        target: One of RISK_TARGETS.
        prediction: [N, F].
        hit: Whether the simulation found interference.
        tolerance: Recoater tolerance of the simulation, percent of a layer; NetFabb's default when None.
        design: Its design, where known.
    """
    if target == "build_clearance_min":
        least = float(prediction.min())
        return HitScore(case_id, -least, hit, least < (DEFAULT_TOLERANCE if tolerance is None else tolerance), design)
    return HitScore(case_id, float(prediction[:, -1].max()), hit, None, design)


def choose_threshold(hit_scores: Sequence[HitScore], false_alarm_rate: float) -> float:
    """The lowest threshold that keeps the rate of false alarms.

    Args:
        hit_scores: Cases of which the truth may be used.
        false_alarm_rate: Largest share of cases without a hit that may raise an alarm.

    >>> hit_scores = [HitScore("a", 1.0, False, None), HitScore("b", 2.0, False, None), HitScore("c", 3.0, True, None)]
    >>> choose_threshold(hit_scores, 0.5), choose_threshold(hit_scores, 0.0)
    (1.0, 2.0)
    """
    clear = sorted((hit_score.score for hit_score in hit_scores if not hit_score.hit), reverse=True)
    allowed = math.floor(false_alarm_rate * len(clear) + 1e-9)
    return clear[allowed] if allowed < len(clear) else -math.inf


def detect(hit_scores: Sequence[HitScore], threshold: float) -> Detection:
    """Hits found and false alarms raised by a threshold."""
    return _count(hit_scores, {hit_score.case_id: hit_score.score > threshold for hit_score in hit_scores}, threshold)


def detect_by_rule(hit_scores: Sequence[HitScore]) -> Detection | None:
    """Hits found and false alarms raised by the solver's rule; None where it can't be applied."""
    alarms = {hit_score.case_id: hit_score.by_rule for hit_score in hit_scores if hit_score.by_rule is not None}
    return _count(hit_scores, alarms, None) if len(alarms) == len(hit_scores) and hit_scores else None


def _count(hit_scores: Sequence[HitScore], alarms: Mapping[str, bool], threshold: float | None) -> Detection:
    hits = [hit_score.case_id for hit_score in hit_scores if hit_score.hit]
    clear = [hit_score.case_id for hit_score in hit_scores if not hit_score.hit]
    return Detection(len(hits), sum(alarms[i] for i in hits), len(clear), sum(alarms[i] for i in clear), threshold)


def ranking_quality(hit_scores: Sequence[HitScore]) -> float | None:
    """Chance that a case with a hit scores above one without (the area under the ROC curve); None without both.

    >>> ranking_quality([HitScore("a", 1.0, False, None), HitScore("b", 2.0, True, None)])
    1.0
    """
    hits = np.array([hit_score.score for hit_score in hit_scores if hit_score.hit])
    clear = np.array([hit_score.score for hit_score in hit_scores if not hit_score.hit])
    if not len(hits) or not len(clear):
        return None
    above = (hits[:, None] > clear).mean() + 0.5 * (hits[:, None] == clear).mean()
    return float(above)
