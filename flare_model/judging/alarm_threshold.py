"""The threshold on the hit score above which an alarm is raised, by cross-validation over designs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from flare_model.judging.conformal import shuffled
from flare_model.judging.interference import HitScore, choose_threshold

FOLDS: Final = 10
"""Folds of the cross-validation that chooses the parts from which a threshold is taken."""

BOTH: Final = "training and validation"


@dataclass(frozen=True)
class Choice:
    """A threshold, and the parts that it was taken from.

    Attributes:
        threshold: Score above which an alarm is raised.
        source: "validation", or "training and validation".
        rates: Source to the rate of false alarms in validation designs that the threshold hadn't seen.
        clear: Number of clear parts (without a hit) that the threshold was taken from.
    """

    threshold: float
    source: str
    rates: dict[str, float]
    clear: int


def choose_by_cross_validation(validation: Sequence[HitScore], training: Sequence[HitScore], rate: float) -> Choice:
    """The lowest threshold that keeps a rate of false alarms, taken from as many parts as can be trusted.

    Clear parts are those without a hit. A model may score clear parts that it was trained on lower than others, so that
    a threshold taken from them may be too low. Cross-validation over the validation designs tells whether it is: on
    each fold thresholds from the other folds are applied, with the training parts and without. The source whose rate of
    false alarms is closer to the stated one is taken, or training and validation parts where both are equally close.

    Args:
        validation: Parts of the validation split, with one clear part or more.
        training: Parts of the training split.
        rate: Largest share of clear parts that may raise an alarm.
    """
    pools: dict[str, Sequence[HitScore]] = {BOTH: training} if any(not risk.hit for risk in training) else {}
    pools["validation"] = ()
    designs = shuffled({r.design for r in validation if not r.hit})
    rates = {}
    for source, training_parts in pools.items():
        alarms = []
        for fold in range(min(FOLDS, len(designs))):
            held_out = set(designs[fold::FOLDS])
            threshold = choose_threshold(
                [r for r in validation if r.design not in held_out] + list(training_parts), rate
            )
            alarms += [r.score > threshold for r in validation if r.design in held_out and not r.hit]
        rates[source] = float(np.mean(alarms))
    source = min(rates, key=lambda name: (abs(rates[name] - rate), name != BOTH))
    pool = [*validation, *pools[source]]
    return Choice(choose_threshold(pool, rate), source, rates, sum(not r.hit for r in pool))
