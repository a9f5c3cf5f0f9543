"""Pictures of an evaluation, drawn from its files: histograms of the errors, and the cases with the largest ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.data.point_fields import PointField, resolve_targets
from flare_model.data.splits import Split
from flare_model.judging.scores import unit_of_errors
from flare_model.plots import plot_detection, plot_histogram
from flare_model.prediction.file_names import FileNames
from flare_model.prediction.parts import Part, Unreadable, cases_of
from flare_model.prediction.pictures import draw_prediction
from lpbf_data.case.schema import FIELDS
from lpbf_data.stores.predictions import PredictionFile

WORST: Final = "worst"
"""Folder of the pictures of the worst cases."""

INTERFERENCE: Final = "interference.png"

Row = Mapping[str, Any]
"""One row of the table of cases; its columns are the attributes of `CaseScore`."""


def draw_evaluation(
    out: Path,
    split: Split,
    rows: Sequence[Row],
    predictions: Path,
    worst: int,
    interference: Mapping[str, Any] | None = None,
) -> None:
    """Draw missing pictures, and remove those of other targets, of other cases, or of more cases than asked for.

    Args:
        out: Folder of the evaluation.
        split: The split that was judged.
        rows: The table of cases.
        predictions: The file of predictions.
        worst: Cases with the largest relative error to draw, of each target.
        interference: The summary's entry on recoater interference, whose curves are drawn; None where there is none.

    Raises:
        StoreError: If predictions or a case that is to be drawn can't be read.
    """
    targets = resolve_targets(tuple(dict.fromkeys(row["target"] for row in rows)), "the evaluation", split.point_schema)
    worst = worst if split.point_schema is None else 0  # points without cells have no surface to draw
    pictures = {place for target in targets for place in _histograms(out, target.name)}
    chosen = {target.name: worst_cases(rows, target.name, worst) for target in targets}
    names = {name: _name_files(out, name, cases) for name, cases in chosen.items()}
    curves = (interference or {}).get("curves")
    if curves and not (out / INTERFERENCE).exists():
        plot_detection(out / INTERFERENCE, curves, (interference or {}).get("by_threshold"))
    pictures |= {out / INTERFERENCE} if curves else set()
    wanted = pictures | {place for places in names.values() for place in places.values()}
    _remove_others(out, wanted, [target.name for target in targets])
    for target in targets:
        _draw_histograms(out, target, [row for row in rows if row["target"] == target.name])
        missing = {case_id: place for case_id, place in names[target.name].items() if not place.exists()}
        _draw_worst(target, split, missing, predictions)


def worst_cases(rows: Sequence[Row], target: str, count: int) -> list[str]:
    """Ids of the cases in which the model has the largest relative errors, the worst first."""
    mine = [row for row in rows if (row["target"], row["predictor"]) == (target, "model")]
    return [row["case_id"] for row in sorted(mine, key=lambda row: -(row["relative_l2"] or 0.0))[:count]]


def _histograms(out: Path, target: str) -> tuple[Path, Path]:
    return out / f"{target}_relative_l2.png", out / f"{target}_error.png"


def _name_files(out: Path, target: str, cases: Sequence[str]) -> dict[str, Path]:
    names = FileNames()
    return {case_id: out / WORST / f"{target}_{names.name(case_id)}.png" for case_id in cases}


def clear_pictures(out: Path) -> None:
    """Remove the pictures of an evaluation, whatever it judged."""
    _remove_others(out, set())


def _remove_others(out: Path, wanted: set[Path], targets: Sequence[str] = ()) -> None:
    """Remove pictures that an evaluation drew and that aren't wanted; other files stay."""
    if out / INTERFERENCE not in wanted:
        (out / INTERFERENCE).unlink(missing_ok=True)
    for name in [*FIELDS, *(column for spec in FIELDS.values() for column in spec.columns), *targets]:
        for path in (*_histograms(out, name), *(out / WORST).glob(f"{name}_*.png")):
            if path not in wanted:
                path.unlink(missing_ok=True)


def _draw_histograms(out: Path, target: PointField, rows: Sequence[Row]) -> None:
    relative_place, error_place = _histograms(out, target.name)

    def values(predictor: str, column: str) -> list[float]:
        return [row[column] for row in rows if row["predictor"] == predictor and row[column] is not None]

    if not relative_place.exists():
        relative = {name: values(name, "relative_l2") for name in ("model", "zero", "mean")}
        plot_histogram(relative_place, relative, f"relative L2 error of {target.name}")
    if not error_place.exists():
        errors, (_, unit) = {"model": values("model", "mean_error")}, unit_of_errors(target.unit)
        plot_histogram(error_place, errors, f"mean absolute error of {target.name}, {unit}")


def _draw_worst(target: PointField, split: Split, places: Mapping[str, Path], predictions: Path) -> None:
    """Draw cases. A case that can't be read is an error here, since a prediction for it was made before."""
    if not places:
        return
    prediction_file = PredictionFile(predictions)
    for part in cases_of(split.data, split.name, list(places), {target.field}):
        if isinstance(part, Unreadable):
            raise part.error
        prediction = _columns(prediction_file, part, target)
        truth = part.column(target.name, target.field, target.components)
        draw_prediction(places[part.name], part, target.name, prediction, truth)


def _columns(prediction_file: PredictionFile, part: Part, target: PointField) -> NDArray[np.float32]:
    """The predicted columns of a target, [N, components]."""
    found = prediction_file.read(part.name, len(part.points))
    return np.stack([found[column] for column in target.columns], axis=1)
