"""Risk of a recoater hit: curves, calibrated chances, thresholds by cross-validation, and intervals of the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare_model.judging.alarm_threshold import BOTH, choose_by_cross_validation
from flare_model.judging.interference import HitScore, ranking_quality
from flare_model.judging.risk_curves import (
    LogisticCurve,
    arrays_of,
    bootstrap,
    brier,
    curve_of,
    describe,
)

ROWS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=30)


def hit_scores(rows: Sequence[tuple[float, bool]], name: str = "") -> list[HitScore]:
    return [HitScore(f"{name}{i}", float(score), bool(hit), None) for i, (score, hit) in enumerate(rows)]


def random_hit_scores(count: int, seed: int, *, gap: float = 0.0, name: str = "") -> list[HitScore]:
    """Normally distributed hit scores of deviation 1, those of hits higher by `gap`; half of the parts are hits."""
    draw = np.random.default_rng(seed)
    hits = draw.random(count) < 0.5
    return hit_scores(list(zip(draw.normal(size=count) + gap * hits, hits, strict=True)), name)


@given(ROWS)
def test_curves_are_what_counting_at_every_threshold_gives(rows: list[tuple[float, bool]]) -> None:
    scores, hits = arrays_of(hit_scores(rows))
    curve = curve_of(scores, hits)
    if hits.all() or not hits.any():
        assert curve is None
        return
    assert curve is not None
    assert (curve.found[0], curve.false_alarms[0], curve.precision[0]) == (0, 0, 1)
    assert (curve.found[-1], curve.false_alarms[-1]) == (1, 1)
    assert curve.thresholds.tolist()[1:] == sorted(set(scores), reverse=True)
    for threshold, found, false_alarms, precision in zip(
        curve.thresholds[1:], curve.found[1:], curve.false_alarms[1:], curve.precision[1:], strict=True
    ):
        alarms = scores >= threshold
        assert found == pytest.approx((alarms & hits).sum() / hits.sum())
        assert false_alarms == pytest.approx((alarms & ~hits).sum() / (~hits).sum())
        assert precision == pytest.approx((alarms & hits).sum() / alarms.sum())
    # The area under the curve by trapezia is the chance that a hit scores higher, ties counted half.
    area = np.sum(np.diff(curve.false_alarms) * (curve.found[1:] + curve.found[:-1]) / 2)
    assert area == pytest.approx(ranking_quality(hit_scores(rows)))
    for rate in (0.0, 0.3, 1.0):
        wanted = [
            (scores[hits] >= t).mean() for t in [*set(scores), math.inf] if (scores[~hits] >= t).mean() <= rate + 1e-9
        ]
        assert curve.recall_at(rate) == pytest.approx(max(wanted))


def test_average_precision_by_hand() -> None:
    """Scores 4, 3, 2, 1 of hit, clear, hit, clear: (1/1 + 2/3) / 2."""
    curve = curve_of(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))
    assert curve is not None
    assert curve.average_precision == pytest.approx((1 + 2 / 3) / 2)


def test_the_chance_of_a_hit_is_that_by_which_hits_were_drawn() -> None:
    draw = np.random.default_rng(1)
    scores = draw.normal(3.0, 2.0, 40_000)
    chances = 1 / (1 + np.exp(-(1.5 * (scores - 2.0))))
    model = LogisticCurve.of(hit_scores(list(zip(scores, draw.random(len(scores)) < chances, strict=True))))
    at = np.linspace(0, 5, 11)
    np.testing.assert_allclose(model.chances(at), 1 / (1 + np.exp(-(1.5 * (at - 2.0)))), atol=0.02)
    found = brier(model.chances(scores), draw.random(len(scores)) < chances)
    assert found == pytest.approx(
        float(np.mean(chances * (1 - chances))), abs=0.003
    )  # the least that any forecast can have


@settings(max_examples=30)
@given(ROWS)
def test_chances_of_a_hit_add_up_to_the_number_of_hits(rows: list[tuple[float, bool]]) -> None:
    """As at every maximum of a likelihood with an intercept; separable scores are no exception."""
    scores, hits = arrays_of(hit_scores(rows))
    chances = LogisticCurve.of(hit_scores(rows)).chances(scores)
    assert np.isfinite(chances).all()
    assert chances.sum() == pytest.approx(hits.sum(), abs=1e-3)


def test_a_threshold_from_training_parts_is_used_only_where_it_holds_for_others() -> None:
    """Training parts with scores like those of others help; overfitted ones would give far more false alarms."""
    validation, others = random_hit_scores(100, 1, gap=2, name="v"), random_hit_scores(2000, 2, gap=2, name="t")
    alike = choose_by_cross_validation(validation, others, 0.1)
    assert alike.source == BOTH
    assert alike.clear == sum(not risk.hit for risk in [*validation, *others])
    assert alike.threshold == pytest.approx(1.2816, abs=0.15)  # 90 % of a normal distribution
    known = [HitScore(r.case_id, r.score * 0.3 if not r.hit else r.score, r.hit, None) for r in others]
    by_heart = choose_by_cross_validation(validation, known, 0.1)
    assert by_heart.source == "validation"
    assert by_heart.rates[BOTH] > 0.2
    assert abs(by_heart.rates["validation"] - 0.1) < 0.1


def test_one_clear_validation_design_needs_the_training_parts() -> None:
    choice = choose_by_cross_validation(
        hit_scores([(0, False), (3, True)], "v"), random_hit_scores(500, 3, gap=2, name="t"), 0.1
    )
    assert choice.source == BOTH
    assert choice.rates["validation"] == 1  # without it there is none to take a threshold from
    alone = choose_by_cross_validation(hit_scores([(0, False), (3, True)], "v"), [], 0.1)
    assert (alone.source, alone.threshold) == ("validation", 0.0)


def test_parts_of_a_design_are_resampled_together() -> None:
    """Ten copies of a part give no more information than one: their interval is as wide."""
    few = hit_scores([(i % 7, i % 3 > 0) for i in range(30)])
    copies = [HitScore(f"{r.case_id}-{k}", r.score, r.hit, None, r.case_id) for r in few for k in range(10)]
    apart = [HitScore(r.case_id, r.score, r.hit, None) for r in copies]

    def share(parts: Sequence[HitScore]) -> float:
        return float(np.mean([part.hit for part in parts]))

    one, same, narrow = (bootstrap(parts, share) for parts in (few, copies, apart))
    assert one is not None
    assert one == same
    assert narrow is not None
    deviation = math.sqrt(share(few) * (1 - share(few)) / 30)
    assert one[1] - one[0] == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * deviation / math.sqrt(10), rel=0.1)


def test_the_interval_of_recall_has_its_stated_coverage() -> None:
    """Recall at 10 % false alarms of two normal distributions, 2 apart: 1 - Φ(1.2816 - 2) = 0.764."""
    inside = 0
    for seed in range(12):
        found = describe(random_hit_scores(150, seed, gap=2), 0.1)["recall_at_false_alarms"]
        inside += found["interval"][0] <= 0.764 <= found["interval"][1]
    assert inside >= 10
    assert describe(hit_scores([(1, True)]), 0.1) == {}
