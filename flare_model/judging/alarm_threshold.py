"""The threshold on the hit score above which an alarm is raised, by cross-validation over designs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from flare_model.judging.conformal import shuffled
from flare_model.judging.interference import HitScore, choose_threshold

FOLDS: Final = 10
"""Folds of the cross-validation that chooses what a threshold is taken from."""

BOTH: Final = "training and validation"


@dataclass(frozen=True)
class Choice:
    """A threshold, and what it was taken from.

    Attributes:
        threshold: Score above which an alarm is raised.
        source: "validation", or "training and validation".
        rates: Source to the rate of false alarms in validation designs that the threshold hadn't seen.
        clear: Clear parts that the threshold was taken from.
    """

    threshold: float
    source: str
    rates: dict[str, float]
    clear: int


def choose_by_cross_validation(validation: Sequence[HitScore], training: Sequence[HitScore], rate: float) -> Choice:
    """The lowest threshold that keeps a rate of false alarms, taken from as many parts as can be trusted.

    A model may score the clear parts that it was trained on lower than others: taken from them, a threshold
    may be too low. The validation designs say whether it is: each fold of them is judged by thresholds from the others,
    with the training parts and without, and the source whose rate of false alarms comes closer to the stated one is
    taken, training parts where both are as close.

    Args:
        validation: Parts of the validation split; a clear one among them.
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
