"""`python -m flare_model.evaluate --checkpoint runs/first --data lpbf/`: errors of a trained model on the test split.

The test split is evaluated once: asked again for the same weights and data, the stored numbers are shown, and pictures
that are missing are drawn from the stored predictions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flare_model.judging.stored_evaluation import EVALUATIONS, SUMMARY_NAME
from flare_model.table_formats import parquet_bytes
from lpbf_data.command_line import run
from lpbf_data.console import open_console, say
from lpbf_data.durable import sha256_of_file, write_durably, write_json
from lpbf_data.errors import StoreError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.data.splits import Split
    from flare_model.judging.scores import CaseScore

# The summary is written after the files that it names by checksum; pictures are drawn from these, again where one is
# missing.
CASES_NAME: Final = "cases.parquet"
PREDICTIONS_NAME: Final = "predictions.parquet"
"""What `python -m pipelines.report --predictions` shows beside the truth."""

SEEDS_NAME: Final = "seeds.json"


def evaluate(
    checkpoint: str | None = None,
    data: str = "",
    *,
    split: str = "test",
    out: str | None = None,
    false_alarms: float = 0.1,
    threshold_cases: int = 1000,
    coverage: float = 0.9,
    families: str | None = None,
    worst: int = 3,
    trust: str | None = None,
    accelerator: str = "auto",
) -> int:
    """Evaluate a trained model on a split, with "predict zero" and "predict the training mean" for comparison.

    Args:
        checkpoint: Folder of a run or checkpoint, or an id on the Hugging Face hub; a folder of several seeds gives
            mean and standard deviation. The model that comes with the package where none is named.
        data: The data set.
        split: Its split.
        out: Folder of the results; `evaluation/<split>` in the folder of the run by default, and for the package's own
            model in own_model/. Pictures of an earlier evaluation are removed from it.
        false_alarms: Share of parts without recoater interference that may raise an alarm; the threshold for it is
            chosen by cross-validation over validation and training designs.
        threshold_cases: Training cases, at most, that are predicted for that threshold; 0 for validation alone.
        coverage: Share of points, and of parts, that intervals are to hold; they come from the validation split, and
            are written into the checkpoint's folder, where predict reads them.
        families: CSV file with columns case_id and family, for the coverage of intervals by family; by default the
            families that the data set's manifest names.
        worst: Cases with the largest relative error to draw.
        trust: Class path of a model outside of this package that may be imported.
        accelerator: auto, cpu or gpu.

    Returns:
        Exit status.
    """
    if not 0 <= false_alarms < 1:
        raise UsageError(f"--false_alarms must lie between 0 and 1, not {false_alarms}")
    if not 0 < coverage < 1:
        raise UsageError(f"--coverage must lie between 0 and 1, not {coverage}")
    if threshold_cases < 0:
        raise UsageError(f"--threshold_cases must not be negative, but is {threshold_cases}")
    if worst < 0:
        raise UsageError(f"--worst must not be negative, but is {worst}")
    if not data:
        raise UsageError("--data is missing: name the data set to evaluate on")
    from flare_model.checkpoints.hub import seeds_of
    from flare_model.checkpoints.packaged_model import packaged_checkpoint
    from flare_model.checkpoints.surrogate import results_folder
    from flare_model.data.splits import Split
    from flare_model.judging.interval_calibration import read_families
    from flare_model.judging.tables import show, show_spread, spread_of
    from flare_model.training.devices import device_of

    checkpoint = checkpoint or packaged_checkpoint()
    options = _Options(false_alarms, threshold_cases, coverage, read_families(families))
    judged = Split(data, split)
    console = open_console()
    folders = seeds_of(checkpoint)
    summaries = []
    for folder in folders:
        place = results_folder(folder, EVALUATIONS) / split
        if out is not None:
            place = Path(out) if len(folders) == 1 else Path(out) / Path(folder).name
        summaries.append(_evaluate_one(folder, judged, place, options, worst, trust, device_of(accelerator)))
        show(summaries[-1], f"{folder} on {data}, split {split}", console)
        console.print(f"numbers, cases and pictures in {place}")
    if len(summaries) > 1:
        home = results_folder(checkpoint, EVALUATIONS) / split if out is None else Path(out)
        spread = spread_of(summaries)
        write_json(home / SEEDS_NAME, {"seeds": folders, "identity": summaries[0]["identity"], "scores": spread})
        show_spread(spread, len(folders), console)
        console.print(f"mean and standard deviation in {home / SEEDS_NAME}")
    return 0


@dataclass(frozen=True)
class _Options:
    """Options that decide the numbers of an evaluation; part of its identity."""

    false_alarms: float
    threshold_cases: int
    coverage: float
    families: Mapping[str, str]


def _evaluate_one(
    checkpoint: str, split: Split, out: Path, options: _Options, worst: int, trust: str | None, device: torch.device
) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from flare_model.checkpoints.files import CONFIG_NAME, WEIGHTS_NAME
    from flare_model.checkpoints.hub import fetch_checkpoint
    from flare_model.checkpoints.surrogate import from_pretrained
    from flare_model.judging.pictures import draw_evaluation

    loaded = fetch_checkpoint(checkpoint)
    identity = {
        "weights_sha256": _digest(loaded / WEIGHTS_NAME),
        "config_sha256": _digest(loaded / CONFIG_NAME),
        "data_sha256": split.data_digest,
        "split": split.name,
        "case_ids_sha256": split.digest,
        **asdict(options),
    }
    summary = _stored(out, identity)
    if summary is None:
        surrogate = from_pretrained(loaded, trust=trust).to(device)
        summary = _judge_into(out, checkpoint, surrogate, split, options, identity)
        write_json(out / SUMMARY_NAME, summary)
    else:
        say(f"{out} holds this evaluation already; only pictures that are missing are drawn")
    rows = pq.read_table(out / CASES_NAME).to_pylist()
    draw_evaluation(out, split, rows, out / PREDICTIONS_NAME, worst, summary["interference"])
    return summary


def _judge_into(
    out: Path, checkpoint: str, surrogate: Surrogate, split: Split, options: _Options, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Evaluate a model, write predictions, table of cases and intervals, and return the summary.

    Pictures of an earlier evaluation are removed first, so that those in the folder always belong to its summary.
    """
    from flare_model.data.intervals import write_intervals
    from flare_model.judging import judge as judging
    from flare_model.judging.interval_calibration import (
        ResidualCollector,
        describe_intervals,
        families_of,
        validation_collector,
        validation_intervals,
    )
    from flare_model.judging.pictures import clear_pictures
    from flare_model.judging.risk_model import risk_from, write_risk

    predictions: dict[str, NDArray[np.float32]] = {}
    # Intervals are made for printed parts alone.
    collector = ResidualCollector(surrogate, split) if split.point_schema is None else None
    scores, hit_scores = judging.judge(surrogate, split, predictions.__setitem__, collector)
    validation_residuals = validation_collector(surrogate, split)
    interference = judging.interference_of(
        surrogate, split, hit_scores, options.false_alarms, options.threshold_cases, validation_residuals
    )
    intervals = validation_intervals(
        surrogate, split, options.coverage, str(identity["weights_sha256"]), validation_residuals
    )
    clear_pictures(out)
    _write_predictions(out / PREDICTIONS_NAME, checkpoint, surrogate, split, predictions)
    _write_cases(out / CASES_NAME, scores)
    if not isinstance(intervals, str):
        _keep(checkpoint, out, lambda folder: write_intervals(folder, intervals), "intervals")
    if interference and "risk" in interference:
        interference["risk"]["weights_sha256"] = identity["weights_sha256"]
        risk_model = risk_from(interference["risk"])
        _keep(checkpoint, out, lambda folder: write_risk(folder, risk_model), "the risk of a hit")
    return {
        "identity": dict(identity),
        "checkpoint": checkpoint,
        "origin": surrogate.origin,
        "trained_on_this_data": _trained_on(surrogate, split),
        "files": {name: sha256_of_file(out / name) for name in (CASES_NAME, PREDICTIONS_NAME)},
        "scores": judging.summaries_of(scores),
        "over_all": judging.mean_over_targets(scores),
        "interference": interference,
        **(
            {}
            if surrogate.usage.point_schema is None
            else {"units": {t.name: t.unit for t in surrogate.usage.target_fields}}
        ),
        "intervals": describe_intervals(
            intervals, collector.parts if collector else (), options.families or families_of(split)
        ),
    }


def _keep(checkpoint: str, out: Path, write: Callable[[Path], None], what: str) -> None:
    """Write an auxiliary file into the folder of the evaluation, and into the checkpoint's if a user trained that."""
    from flare_model.checkpoints.packaged_model import is_packaged

    write(out)
    if Path(checkpoint).is_dir() and not is_packaged(checkpoint):
        try:
            write(Path(checkpoint))
        except OSError as error:
            say(f"{what} can't be written into the checkpoint's folder ({error}); see {out}")


def _trained_on(surrogate: Surrogate, split: Split) -> bool:
    """Whether the evaluated data set is the one of the training; true where the checkpoint doesn't name one."""
    from flare_model.data.splits import Split, has_split

    known = surrogate.origin.get("data_sha256")
    if known in (None, split.data_digest):
        return True
    # Without a manifest, each split has a digest of its own, and a checkpoint names that of its train split.
    return has_split(split.data, "train") and known == Split(split.data, "train").data_digest


def _stored(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stored summary of an evaluation with this identity; None where it, or a file that it names, is missing."""
    try:
        content: dict[str, Any] = json.loads((out / SUMMARY_NAME).read_text(encoding="utf-8"))
        files = {name: sha256_of_file(out / name) for name in (CASES_NAME, PREDICTIONS_NAME)}
        same = content["identity"] == identity and content["files"] == files
    except (OSError, ValueError, KeyError, TypeError):
        return None
    parts = {"scores", "over_all", "interference", "intervals", "trained_on_this_data"}
    return content if same and parts <= content.keys() else None


def _digest(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise StoreError(f"no readable checkpoint in {path.parent} ({error}); training writes one") from error


def _write_cases(path: Path, scores: Sequence[CaseScore]) -> None:
    from flare_model.judging.scores import columns_of

    write_durably(path, parquet_bytes(columns_of(scores)))


def _write_predictions(
    path: Path, checkpoint: str, surrogate: Surrogate, split: Split, predictions: Mapping[str, NDArray[np.float32]]
) -> None:
    from lpbf_data.stores.predictions import write_predictions

    columns = surrogate.usage.columns
    rows = ((case_id, dict(zip(columns, values.T, strict=True))) for case_id, values in predictions.items())
    points = surrogate.usage.point_schema
    known = {} if points is None else {"known": points.field_columns}
    write_predictions(path, rows, list(dict.fromkeys(columns)), split.data_digest, Path(checkpoint).name, **known)


def main() -> None:
    """Entry point of `lpbf-evaluate`."""
    run(evaluate, "python -m flare_model.evaluate")


if __name__ == "__main__":
    main()
