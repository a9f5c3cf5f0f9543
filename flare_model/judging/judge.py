"""Judging a model on the cases of a split: scores, and what its predictions say of recoater interference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.batches import Batch
from flare_model.data.splits import Split, has_split, open_loader
from flare_model.data.targets import resolve_inputs, resolve_targets, spans
from flare_model.judging.interference import (
    Risk,
    assess,
    choose_threshold,
    detect,
    detect_by_rule,
    ranking_quality,
    risk_target,
)
from flare_model.judging.scores import CaseScore, score_case, summarise
from lpbf_data.console import follow


def predictions(surrogate: Surrogate, split: Split) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
    """Every case of a split with its prediction in physical units, [N, T].

    Raises:
        UsageError: If the data set doesn't hold what the model predicts or is told.
    """
    targets = resolve_targets(surrogate.usage.targets, "the checkpoint")
    features = resolve_inputs(surrogate.usage.features, "the checkpoint")
    opened = Split(split.data, split.name, (*targets, *features))
    device = surrogate.point_scale.device
    for ragged in follow(open_loader(opened), len(opened), split.name, "case"):
        batch = Batch.of(ragged, targets, features)
        moved = batch.to(device)
        with torch.inference_mode():
            prediction = surrogate(moved.points, moved.features, moved.offsets)
        yield batch, prediction.cpu().numpy()


def judge(
    surrogate: Surrogate, split: Split, keep: Callable[[str, NDArray[np.float32]], None] | None = None
) -> tuple[list[CaseScore], list[Risk]]:
    """Score the model, "predict zero" and "predict the training mean" on every case of a split.

    Args:
        surrogate: The model.
        split: The split.
        keep: Is given every case id and prediction, [N, T].
    """
    targets = resolve_targets(surrogate.usage.targets, "the checkpoint")
    mean = np.array(surrogate.usage.normalisation.target_mean, dtype=np.float32)
    risky = risk_target(surrogate.usage.targets)
    scores: list[CaseScore] = []
    risks: list[Risk] = []
    columns, floors = spans(targets), surrogate.usage.floors()
    for batch, prediction in predictions(surrogate, split):
        case_id, truth = batch.case_ids[0], batch.targets.numpy()
        if keep is not None:
            keep(case_id, prediction)
        given = {"model": prediction, "zero": np.zeros_like(truth), "mean": np.broadcast_to(mean, truth.shape)}
        for target in targets:
            c = columns[target.name]
            of_target = {name: values[:, c] for name, values in given.items()}
            floor = floors[target.name]
            scores += score_case(case_id, target.name, target.unit, truth[:, c], of_target, mean[c].tolist(), floor)
        record = split.records.get(case_id)
        if risky is not None and record is not None and record.measures is not None:
            hit, tolerance = record.measures.recoater_interference, record.run.recoater_tolerance
            risks.append(assess(case_id, risky, prediction[:, columns[risky]], hit=hit, tolerance=tolerance))
    return scores, risks


def summaries_of(scores: Sequence[CaseScore]) -> dict[str, dict[str, dict[str, Any]]]:
    """Target to predictor to summary."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for target, predictor in dict.fromkeys((s.target, s.predictor) for s in scores):
        rows = [s for s in scores if (s.target, s.predictor) == (target, predictor)]
        found.setdefault(target, {})[predictor] = asdict(summarise(rows))
    return found


def interference_of(
    surrogate: Surrogate, split: Split, risks: Sequence[Risk], false_alarms: float
) -> dict[str, Any] | None:
    """Recall and false alarms; the threshold comes from the validation split, where there is one.

    Args:
        surrogate: The model.
        split: The split that was judged.
        risks: What was predicted of its cases.
        false_alarms: Share of validation parts without interference that may raise an alarm.

    Returns:
        Detections by the solver's rule and by the threshold, and why there is none where there is none; None where the
        model predicts nothing that tells of interference, or nothing was recorded of it.
    """
    if not risks:
        return None
    found: dict[str, Any] = {"target": risk_target(surrogate.usage.targets), "ranking_quality": ranking_quality(risks)}
    by_rule = detect_by_rule(risks)
    detections = {} if by_rule is None else {"by_the_solvers_rule": by_rule}
    seen, reason = _seen_in_validation(surrogate, split)
    if reason:
        found["no_threshold"] = reason
    else:
        detections["by_threshold"] = detect(risks, choose_threshold(seen, false_alarms))
    for name, detection in detections.items():
        rates = {"recall": detection.recall, "false_alarm_rate": detection.false_alarm_rate}
        found[name] = asdict(detection) | rates
    if "by_threshold" in found:
        found["by_threshold"]["stated_false_alarm_rate"] = false_alarms
    return found


def _seen_in_validation(surrogate: Surrogate, split: Split) -> tuple[list[Risk], str]:
    """What is predicted of the validation cases, or why no threshold can be chosen from them."""
    if split.name == "validation":
        return [], "the validation split, from which it would be chosen, is the one that is judged"
    if not has_split(split.data, "validation"):
        return [], "the data set has no validation split to choose it from"
    _, seen = judge(surrogate, Split(split.data, "validation"))
    if all(risk.hit for risk in seen):
        return [], "no part of the validation split is without interference, so it says nothing of false alarms"
    return seen, ""
