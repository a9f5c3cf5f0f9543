"""The model card of a released model: what it is, training data, errors, intervals, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flare_model.checkpoints.files import Usage
from flare_model.data.likeness import DESCRIPTORS, QUANTILE_LEVELS, TrainingShapes
from flare_model.data.material_scale_errors import ERRORS
from flare_model.data.point_fields import resolve_target
from flare_model.judging.scores import unit_of_errors
from flare_model.judging.tables import verdicts_in_words
from flare_model.table_formats import format_number

_UNCALIBRATED: Final = (
    "It isn't calibrated to a machine. `--material my.yaml` (of `python -m pipelines.calibrate`) multiplies what it "
    "predicts by a scale; nine of ten unseen parts are then off by less than "
    f"{100 * ERRORS['expansion'][0]:.0f} % of the displacement for another material, "
    f"{100 * ERRORS['strain'][0] / 10:.0f} % for each tenth of strain, and {100 * ERRORS['at once'][0]:.0f} % for "
    "NetFabb's calibration, in addition to the model's own error."
)
_LIMITS: Final = (
    "It knows parts of up to 60 × 60 × 60 mm that stand on the plate without supports, of one material and machine.",
    _UNCALIBRATED,
    "Intervals and chances hold for parts drawn like those of the corpus, on average over parts.",
    "Answers are for the mesh that is asked for: a finer one may give others where walls are a few cells thick.",
    "`python -m flare_model.predict` tells how unlike the corpus each part is, by the numbers below.",
)


def card_of(
    usage: Usage,
    origin: Mapping[str, Any],
    summary: Mapping[str, Any],
    training_shapes: TrainingShapes,
    num_weights: int,
    num_cases: int,
) -> str:
    """The card as Markdown.

    Args:
        usage: Targets and input features of the model.
        origin: Origin of the weights, as the checkpoint states it.
        summary: Content of `summary.json` of its evaluation.
        training_shapes: Shapes of its training parts.
        num_weights: Parameters of the model.
        num_cases: Parts that it was trained on.
    """
    identity = summary["identity"]
    material = ", ".join(usage.materials) or "unknown"
    about = (
        f"Predicts {', '.join(usage.targets)} at the points of a part made by laser powder bed fusion, from its mesh "
        f"alone; {num_weights:,} parameters, {origin.get('step', 'unknown')} steps of training."
    )
    corpus = (
        f"{num_cases:,} training parts of the open simulator, material {material}. Digests: of the training data set "
        f"`{origin.get('data_sha256', 'unknown')}`, of the data set of the evaluation `{identity['data_sha256']}`, of "
        f"the weights `{identity['weights_sha256']}`."
    )
    lines = [
        "# The model that comes with the package",
        about,
        "## Corpus",
        corpus,
        f"## Errors on {identity['split']} parts, of designs that it never saw",
        "| target | relative L2 | median | predict the mean | mean error | R² |\n|---|---|---|---|---|---|",
    ]
    rows = []
    for target, by_predictor in summary["scores"].items():
        model, mean = by_predictor["model"], by_predictor["mean"]
        unit = unit_of_errors(resolve_target(target).unit)[1]
        errors = model["relative_l2"], model["relative_l2_median"], mean["relative_l2"]
        numbers = [format_number(number, ".3f") for number in errors]
        error = f"{format_number(model['mean_error'], '.3g')} {unit}"
        rows.append(f"| {' | '.join([target, *numbers, error, format_number(model['r2'], '.3f')])} |")
    lines[-1] += "\n" + "\n".join(rows)
    lines += _uncertainty_lines(summary)
    lines += ["## Limits", "\n".join(f"- {limit}" for limit in _LIMITS)]
    table = [f"| of {training_shapes.parts:,} training parts | 1 % | median | 99 % | unit |", "|---|---|---|---|---|"]
    for name, (label, unit) in DESCRIPTORS.items():
        low, middle, high = (
            training_shapes.quantiles[name][QUANTILE_LEVELS.index(level)] for level in (0.01, 0.5, 0.99)
        )
        table.append(f"| {label} | {low:,.3g} | {middle:,.3g} | {high:,.3g} | {unit} |")
    return "\n\n".join([*lines, "\n".join(table)]) + "\n"


def _uncertainty_lines(summary: Mapping[str, Any]) -> list[str]:
    found = []
    intervals, interference = summary["intervals"], summary["interference"]
    if "none" not in intervals:
        held = ", ".join(f"{name} {100 * of['points_inside']:.3g} %" for name, of in intervals["columns"].items())
        level = f"{100 * intervals['level']:.3g} %"
        found += ["## Intervals", f"Share of points within their {level} prediction intervals: {held}."]
    if interference:
        words = ["A hit is a clearance below the recoater's tolerance in the simulation"]
        words += [f"area under the ROC curve {format_number(interference['ranking_quality'], '.3f')}"]
        if "brier" in interference:
            model, share = (format_number(interference["brier"][n], ".3f") for n in ("model", "share_of_hits"))
            words.append(f"Brier score {model} ({share} with the share of hits as the chance of every part)")
        if "verdicts" in interference:
            words.append(verdicts_in_words(interference["verdicts"]))
        found += ["## Hits of the recoater", "; ".join(words) + "."]
    return found
