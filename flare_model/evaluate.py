"""`python -m flare_model.evaluate --checkpoint runs/first --data lpbf/`: judge a trained model on the test split.

The test split is read once: asked again for the same weights and data, the stored numbers are shown.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from flare_model.batches import Batch
from flare_model.checkpoint import CONFIG_NAME, WEIGHTS_NAME
from flare_model.data import Split, has_split, open_loader
from flare_model.devices import device_of
from flare_model.file_names import FileNames
from flare_model.interference import (
    Risk,
    assess,
    choose_threshold,
    detect,
    detect_by_rule,
    ranking_quality,
    risk_target,
)
from flare_model.parts import Part, find_parts
from flare_model.pictures import draw_prediction
from flare_model.plots import plot_histogram
from flare_model.predict import predict_part
from flare_model.pretrained import fetch_checkpoint
from flare_model.scores import CaseScore, columns_of, score_case, summarise, unit_of_errors
from flare_model.surrogate import Surrogate, from_pretrained, results_folder
from flare_model.targets import resolve_targets, spans
from lpbf_data.command_line import run
from lpbf_data.durable import write_durably
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.predictions import write_predictions

SUMMARY_NAME: Final = "summary.json"
CASES_NAME: Final = "cases.parquet"
PREDICTIONS_NAME: Final = "predictions.parquet"
"""What `python -m pipelines.report --predictions` shows beside the truth."""


def evaluate(
    checkpoint: str,
    data: str,
    *,
    split: str = "test",
    out: str | None = None,
    false_alarms: float = 0.1,
    worst: int = 3,
    trust: str | None = None,
    accelerator: str = "auto",
) -> int:
    """Judge a trained model, beside "predict zero" and "predict the training mean".

    Args:
        checkpoint: Folder of a run or checkpoint, or an id on the Hugging Face hub; a folder of several seeds gives
            mean and standard deviation.
        data: The data set.
        split: Its split.
        out: Folder of the results; `evaluation/<split>` in the folder of the run by default.
        false_alarms: Share of parts without recoater interference that may raise an alarm; the threshold for it is
            chosen on the validation split.
        worst: Cases with the largest relative error to draw.
        trust: Class path of a model outside of this package that may be imported.
        accelerator: auto, cpu or gpu.

    Returns:
        Exit status.
    """
    if not 0 <= false_alarms < 1:
        raise UsageError(f"--false_alarms must lie between 0 and 1, not {false_alarms}")
    if worst < 0:
        raise UsageError(f"--worst must not be negative, but is {worst}")
    judged = Split(data, split)
    console = Console(soft_wrap=True)
    folders = seeds_of(checkpoint)
    summaries = []
    for folder in folders:
        place = results_folder(folder, "evaluation") / split
        if out is not None:
            place = Path(out) if len(folders) == 1 else Path(out) / Path(folder).name
        summaries.append(_evaluate_one(folder, judged, place, false_alarms, worst, trust, device_of(accelerator)))
        show(summaries[-1], f"{folder} on {data}, split {split}", console)
        console.print(f"numbers, cases and pictures in {place}")
    if len(summaries) > 1:
        _show_spread(summaries, console)
    return 0


def seeds_of(checkpoint: str) -> list[str]:
    """The checkpoints that a name stands for: itself, or one a seed where it is a folder of several runs."""
    folders = sorted(Path(checkpoint).glob("seed-*/config.json")) if Path(checkpoint).is_dir() else []
    if folders and not (Path(checkpoint) / "config.json").exists():
        return [str(path.parent) for path in folders]
    return [checkpoint]


def _evaluate_one(
    checkpoint: str, split: Split, out: Path, false_alarms: float, worst: int, trust: str | None, device: torch.device
) -> dict[str, Any]:
    loaded = fetch_checkpoint(checkpoint)
    identity = {
        "weights_sha256": _digest(loaded / WEIGHTS_NAME),
        "config_sha256": _digest(loaded / CONFIG_NAME),
        "data_sha256": split.data_digest,
        "split": split.name,
        "case_ids_sha256": split.digest,
        "false_alarms": false_alarms,
    }
    known = _stored(out / SUMMARY_NAME)
    if known is not None and known["identity"] == identity and (out / PREDICTIONS_NAME).exists():
        return known
    surrogate = from_pretrained(loaded, trust=trust).to(device)
    kept: dict[str, NDArray[np.float32]] = {}
    scores, risks = judge(surrogate, split, kept.__setitem__)
    _write_predictions(out / PREDICTIONS_NAME, checkpoint, surrogate, split, kept)
    summary: dict[str, Any] = {"checkpoint": checkpoint, "identity": identity, "origin": surrogate.origin}
    summary["scores"] = _summaries(scores)
    summary["interference"] = _interference(surrogate, split, risks, false_alarms)
    _write(out, summary, scores)
    _draw(out, surrogate, scores, split, worst)
    return summary


def _stored(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content if {"identity", "scores", "interference"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise StoreError(f"no readable checkpoint in {path.parent} ({error}); training writes one") from error


def predictions(surrogate: Surrogate, split: Split) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
    """Every case of a split with its prediction in physical units, [N, T].

    Raises:
        UsageError: If the data set doesn't hold what the model predicts or is told.
    """
    targets = resolve_targets(surrogate.usage.targets, "the checkpoint")
    features = resolve_targets(surrogate.usage.features, "the checkpoint")
    opened = Split(split.data, split.name, (*targets, *features))
    device = surrogate.point_scale.device
    for ragged in tqdm(open_loader(opened), desc=split.name, unit="case", total=len(opened)):
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


def _summaries(scores: Sequence[CaseScore]) -> dict[str, dict[str, dict[str, Any]]]:
    """Target to predictor to summary."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for target, predictor in dict.fromkeys((s.target, s.predictor) for s in scores):
        rows = [s for s in scores if (s.target, s.predictor) == (target, predictor)]
        found.setdefault(target, {})[predictor] = asdict(summarise(rows))
    return found


def _interference(surrogate: Surrogate, split: Split, risks: list[Risk], false_alarms: float) -> dict[str, Any] | None:
    """Recall and false alarms; the threshold comes from the validation split, where there is one."""
    if not risks:
        return None
    found: dict[str, Any] = {"target": risk_target(surrogate.usage.targets), "ranking_quality": ranking_quality(risks)}
    by_rule = detect_by_rule(risks)
    detections = {} if by_rule is None else {"by_the_solvers_rule": by_rule}
    if split.name != "validation" and has_split(split.data, "validation"):
        _, seen = judge(surrogate, Split(split.data, "validation"))
        if any(not risk.hit for risk in seen):
            detections["by_threshold"] = detect(risks, choose_threshold(seen, false_alarms))
    for name, detection in detections.items():
        rates = {"recall": detection.recall, "false_alarm_rate": detection.false_alarm_rate}
        found[name] = asdict(detection) | rates
    return found


def _write(out: Path, summary: dict[str, Any], scores: Sequence[CaseScore]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns_of(scores)), sink, compression="zstd")
    write_durably(out / CASES_NAME, sink.getvalue().to_pybytes())
    write_durably(out / SUMMARY_NAME, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())


def _write_predictions(
    path: Path, checkpoint: str, surrogate: Surrogate, split: Split, kept: Mapping[str, NDArray[np.float32]]
) -> None:
    columns = [column for target in resolve_targets(surrogate.usage.targets, "") for column in target.columns]
    rows = ((case_id, dict(zip(columns, values.T, strict=True))) for case_id, values in kept.items())
    write_predictions(path, rows, list(dict.fromkeys(columns)), split.data_digest, Path(checkpoint).name)


def _draw(out: Path, surrogate: Surrogate, scores: Sequence[CaseScore], split: Split, worst: int) -> None:
    """Histograms of every target's errors, and the worst cases as pictures."""
    for target in resolve_targets(surrogate.usage.targets, "the checkpoint"):
        rows = [s for s in scores if s.target == target.name]
        _, unit = unit_of_errors(target.unit)
        relative = {
            name: [s.relative_l2 for s in rows if s.predictor == name and s.relative_l2 is not None]
            for name in ("model", "zero", "mean")
        }
        plot_histogram(out / f"{target.name}_relative_l2.png", relative, f"relative L2 error of {target.name}")
        errors = {"model": [s.mean_error for s in rows if s.predictor == "model"]}
        plot_histogram(out / f"{target.name}_error.png", errors, f"mean absolute error of {target.name}, {unit}")
        mine = sorted((s for s in rows if s.predictor == "model"), key=lambda s: -(s.relative_l2 or 0.0))[:worst]
        names = FileNames()
        for part in find_parts(split.data, split=split.name, cases=[s.case_id for s in mine]) if mine else ():
            assert isinstance(part, Part)
            prediction = predict_part(surrogate, part)
            place = out / "worst" / f"{target.name}_{names.name(part.name)}.png"
            draw_prediction(place, part, target.name, prediction.fields[target.name], prediction.truth[target.name])


def show(summary: dict[str, Any], title: str, console: Console) -> None:
    """A summary as tables."""

    def number(value: float | None, form: str = ".4f") -> str:
        return "–" if value is None else format(value, form)

    for target, by_predictor in summary["scores"].items():
        _, unit = unit_of_errors(resolve_targets([target], "")[0].unit)
        table = Table(title=f"{target}: {title}")
        heads = (
            "",
            "relative L2",
            "median",
            "published figure",
            f"mean error, {unit}",
            f"95 %, {unit}",
            f"largest, {unit}",
            "R²",
        )
        for head in heads:
            table.add_column(head, justify="right" if head else "left")
        names = {"model": "model", "zero": "predict zero", "mean": "predict the mean"}
        for predictor, s in by_predictor.items():
            errors = (number(s[name], ",.4g") for name in ("mean_error", "p95_error", "max_error"))
            relative = (number(s[name]) for name in ("relative_l2", "relative_l2_median", "published"))
            table.add_row(names[predictor], *relative, *errors, number(s["r2"]))
        console.print(table)
        if missing := by_predictor["model"]["without_truth"]:
            console.print(f"note: {missing} cases have no relative error, for {target} is zero everywhere in them")
    _show_interference(summary["interference"], console)


def _show_interference(found: dict[str, Any] | None, console: Console) -> None:
    if found is None:
        return
    for name, words in (
        ("by_the_solvers_rule", "by the solver's rule"),
        ("by_threshold", "by a threshold from validation"),
    ):
        if name in found:
            d = found[name]
            console.print(
                f"recoater interference from {found['target']}, {words}: {d['found']} of {d['hits']} hits found, "
                f"{d['false_alarms']} false alarms in {d['clear']} parts without one"
            )


def _show_spread(summaries: Sequence[dict[str, Any]], console: Console) -> None:
    """Mean and standard deviation over the seeds."""
    for target in summaries[0]["scores"]:
        for name in ("relative_l2", "published", "mean_error"):
            values = [s["scores"][target]["model"][name] for s in summaries]
            if all(value is not None for value in values):
                mean, deviation = statistics.fmean(values), statistics.stdev(values)
                console.print(f"{target}, {name}: {mean:.4g} ± {deviation:.2g} over {len(values)} seeds")


def main() -> None:
    """Entry point of `lpbf-evaluate`."""
    run(evaluate, "python -m flare_model.evaluate")


if __name__ == "__main__":
    main()
