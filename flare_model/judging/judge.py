"""Evaluating a model on the cases of a split: errors of each case, and detection of recoater interference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.batches import Batch
from flare_model.data.point_fields import PointField, spans, stack_fields
from flare_model.data.splits import Split, has_split, open_loader
from flare_model.judging.alarm_threshold import BOTH, choose_by_cross_validation
from flare_model.judging.interference import (
    Detection,
    HitScore,
    assess,
    detect,
    detect_by_rule,
    ranking_quality,
    risk_target,
)
from flare_model.judging.risk_curves import (
    LogisticCurve,
    arrays_of,
    bootstrap,
    brier,
    describe,
)
from flare_model.judging.risk_model import RiskModel, describe_verdicts
from flare_model.judging.scores import CaseScore, score_case, summarise
from lpbf_data.console import follow

CaseObserver = Callable[[Batch, NDArray[np.float32]], None]
"""Called with every case and its prediction."""


def predictions(surrogate: Surrogate, split: Split) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
    """Every case of a split with its prediction in physical units, [N, T].

    Raises:
        UsageError: If the data set is of another kind, or lacks a target or feature of the model.
    """
    surrogate.usage.check_data(split.point_schema, split.data)
    targets, features = surrogate.usage.target_fields, surrogate.usage.feature_fields
    opened = Split(split.data, split.name, (*targets, *features)).only(split.case_ids)
    device = surrogate.point_scale.device
    for ragged in follow(open_loader(opened), len(opened), split.name, "case"):
        batch = Batch.of(ragged, targets, features)
        moved = batch.to(device)
        with torch.inference_mode():
            prediction = surrogate(moved.points, moved.features, moved.offsets)
        yield batch, prediction.cpu().numpy()


def judge(
    surrogate: Surrogate,
    split: Split,
    on_prediction: Callable[[str, NDArray[np.float32]], None] | None = None,
    on_case: CaseObserver | None = None,
) -> tuple[list[CaseScore], list[HitScore]]:
    """Score the model, "predict zero" and "predict the training mean" on every case of a split.

    Where cases are grids, the mean of the training cases at each of their points is scored too.

    Args:
        surrogate: The model.
        split: The split.
        on_prediction: Called with every case id and prediction, [N, T].
        on_case: Called with every case and prediction.
    """
    surrogate.usage.check_data(split.point_schema, split.data)
    targets = surrogate.usage.target_fields
    mean = np.array(surrogate.usage.normalisation.target_mean, dtype=np.float32)
    hit_target = risk_target(surrogate.usage.targets)
    scores: list[CaseScore] = []
    hit_scores: list[HitScore] = []
    columns, floors, field = spans(targets), surrogate.usage.floors(), mean_field(split, targets)
    for batch, prediction in predictions(surrogate, split):
        case_id, truth = batch.case_ids[0], batch.targets.numpy()
        if on_prediction is not None:
            on_prediction(case_id, prediction)
        if on_case is not None:
            on_case(batch, prediction)
        given = {"model": prediction, "zero": np.zeros_like(truth), "mean": np.broadcast_to(mean, truth.shape)}
        given |= {} if field is None else {"mean_field": field}
        for target in targets:
            c = columns[target.name]
            of_target = {name: values[:, c] for name, values in given.items()}
            floor = floors[target.name]
            scores += score_case(case_id, target.name, target.unit, truth[:, c], of_target, mean[c].tolist(), floor)
        hit_scores += _hit_score_of(surrogate, split, case_id, hit_target, prediction)
    return scores, hit_scores


def mean_field(split: Split, targets: Sequence[PointField]) -> NDArray[np.float32] | None:
    """Mean of the training cases at each point of their grid, [N, T].

    Args:
        split: The split that is judged.
        targets: What is predicted.

    Returns:
        None where cases are no grids, or there is no training split.
    """
    if split.point_schema is None or split.point_schema.grid is None or not has_split(split.data, "train"):
        return None
    train = Split(split.data, "train", targets)
    added = sum(stack_fields(ragged.fields, targets).double() for ragged in open_loader(train))
    assert isinstance(added, torch.Tensor)
    return (added / len(train)).float().numpy()


def summaries_of(scores: Sequence[CaseScore]) -> dict[str, dict[str, dict[str, Any]]]:
    """Summaries of scores: name of the target to predictor ("model", "zero", …) to summary."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for target, predictor in dict.fromkeys((s.target, s.predictor) for s in scores):
        rows = [s for s in scores if (s.target, s.predictor) == (target, predictor)]
        found.setdefault(target, {})[predictor] = asdict(summarise(rows))
    return found


def mean_over_targets(scores: Sequence[CaseScore]) -> dict[str, dict[str, float | None]]:
    """Predictor to the averages over all targets, with equal weights, of mean and median relative L2 error."""
    by_target = summaries_of(scores)
    found: dict[str, dict[str, float | None]] = {}
    for predictor in dict.fromkeys(score.predictor for score in scores):
        found[predictor] = {}
        for name in ("relative_l2", "relative_l2_median"):
            known = [s[predictor][name] for s in by_target.values() if s[predictor][name] is not None]
            found[predictor][name] = float(np.mean(known)) if known else None
    return found


def interference_of(
    surrogate: Surrogate,
    split: Split,
    hit_scores: Sequence[HitScore],
    false_alarms: float,
    threshold_cases: int = 1000,
    on_case: CaseObserver | None = None,
) -> dict[str, Any] | None:
    """Recall, false alarms, curves and calibrated risk of hits; the threshold comes from the validation split.

    Args:
        surrogate: The model.
        split: The split that was judged.
        hit_scores: Hit scores of its cases.
        false_alarms: Share of parts without interference that may raise an alarm.
        threshold_cases: Training cases, at most, that the threshold is taken from in addition to those of validation.
        on_case: Called with every validation case and prediction, where the threshold needs them.

    Returns:
        Detections by the solver's rule and by the threshold, or why there is no threshold; None where the model has no
        target from which interference can be predicted, or the data set records no interference.
    """
    if not hit_scores:
        return None
    found: dict[str, Any] = {
        "target": risk_target(surrogate.usage.targets),
        "ranking_quality": ranking_quality(hit_scores),
    }
    found |= describe(hit_scores, false_alarms)
    by_rule = detect_by_rule(hit_scores)
    detections: dict[str, tuple[Detection, Callable[[Sequence[HitScore]], Detection | None]]] = {}
    if by_rule is not None:
        detections["by_the_solvers_rule"] = (by_rule, detect_by_rule)
    validation_scores, reason = _validation_hit_scores(surrogate, split, on_case)
    if reason:
        found["no_threshold"] = reason
    else:
        trained_on: list[HitScore] = []
        if threshold_cases and has_split(split.data, "train"):
            trained_on = _hit_scores_of(surrogate, Split(split.data, "train").evenly_chosen(threshold_cases))
        choice = choose_by_cross_validation(validation_scores, trained_on, false_alarms)
        counted = partial(detect, threshold=choice.threshold)
        detections["by_threshold"] = (counted(hit_scores), counted)
        pool = [*validation_scores, *(trained_on if choice.source == BOTH else [])]
        found["brier"] = _brier(hit_scores, pool)
        if (risk_model := RiskModel.of(found["target"], pool)) is not None:
            found["risk"] = asdict(risk_model)
            found["verdicts"] = describe_verdicts(risk_model, hit_scores)
    for name, (detection, detect_again) in detections.items():
        rates = {"recall": detection.recall, "false_alarm_rate": detection.false_alarm_rate}
        confidence_intervals = {
            f"{rate}_interval": bootstrap(hit_scores, partial(_rate, detect_again, rate)) for rate in rates
        }
        found[name] = asdict(detection) | rates | confidence_intervals
    if "by_threshold" in found:
        found["by_threshold"] |= {
            "stated_false_alarm_rate": false_alarms,
            "source": choice.source,
            "clear_parts_of_source": choice.clear,
            "cross_validated_false_alarm_rates": choice.rates,
        }
    return found


def _rate(
    detection: Callable[[Sequence[HitScore]], Detection | None], rate: str, hit_scores: Sequence[HitScore]
) -> float | None:
    value: float | None = getattr(detection(hit_scores), rate, None)
    return value


def _brier(hit_scores: Sequence[HitScore], validation_scores: Sequence[HitScore]) -> dict[str, float]:
    """Brier scores of a logistic curve and of the share of hits alone, both fitted to validation parts."""
    model, (scores, hits) = LogisticCurve.of(validation_scores), arrays_of(hit_scores)
    share = float(np.mean([hit_score.hit for hit_score in validation_scores]))
    return {"model": brier(model.chances(scores), hits), "share_of_hits": brier(np.full(len(hits), share), hits)}


def _hit_scores_of(surrogate: Surrogate, split: Split, on_case: CaseObserver | None = None) -> list[HitScore]:
    """Hit scores of the cases of a split."""
    hit_target = risk_target(surrogate.usage.targets)
    found = []
    for batch, prediction in predictions(surrogate, split) if hit_target else ():
        if on_case is not None:
            on_case(batch, prediction)
        found += _hit_score_of(surrogate, split, batch.case_ids[0], hit_target, prediction)
    return found


def _hit_score_of(
    surrogate: Surrogate, split: Split, case_id: str, hit_target: str | None, prediction: NDArray[np.float32]
) -> list[HitScore]:
    """Hit score of one case, in a list; an empty list where no interference was recorded."""
    record = split.records.get(case_id)
    if hit_target is None or record is None or record.measures is None:
        return []
    columns = spans(surrogate.usage.target_fields)[hit_target]
    hit, tolerance = record.measures.recoater_interference, record.run.recoater_tolerance
    design = record.design_id
    return [assess(case_id, hit_target, prediction[:, columns], hit=hit, tolerance=tolerance, design=design)]


def _validation_hit_scores(
    surrogate: Surrogate, split: Split, on_case: CaseObserver | None
) -> tuple[list[HitScore], str]:
    """Hit scores of the validation cases, or why no threshold can be chosen from them."""
    if split.name == "validation":
        return [], "the validation split, from which it would be chosen, is the one that is judged"
    if not has_split(split.data, "validation"):
        return [], "the data set has no validation split to choose it from"
    validation_scores = _hit_scores_of(surrogate, Split(split.data, "validation"), on_case)
    if all(hit_score.hit for hit_score in validation_scores):
        return [], "no part of the validation split is without interference, so it says nothing of false alarms"
    return validation_scores, ""
