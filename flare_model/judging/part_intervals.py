"""Intervals of the prediction on one part, from those of the checkpoint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flare_model.checkpoints.files import WEIGHTS_NAME
from flare_model.checkpoints.hub import fetch_checkpoint
from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.intervals import Intervals, extreme_of, part_scale, read_intervals, regressors
from flare_model.data.point_fields import resolve_targets
from flare_model.prediction.parts import Part
from lpbf_data.durable import sha256_of_file


def stored_intervals(checkpoint: str, surrogate: Surrogate) -> tuple[Intervals | None, str]:
    """The intervals of a checkpoint, and a sentence that says why they are left out where they are of other weights.

    Raises:
        SchemaError: If they can't be read.
    """
    folder = fetch_checkpoint(checkpoint)
    stored = read_intervals(folder)
    if stored is None:
        return None, ""
    same_columns = set(surrogate.usage.columns) == set(stored.columns)
    if same_columns and stored.weights_sha256 == sha256_of_file(folder / WEIGHTS_NAME):
        return stored, ""
    return None, (
        f"the intervals in {checkpoint} are of other weights, and are left out; new ones are made by: "
        "python -m flare_model.evaluate"
    )


def intervals_of(
    surrogate: Surrogate,
    part: Part,
    known: NDArray[np.float32] | None,
    predicted: NDArray[np.float32],
    intervals: Intervals,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, tuple[float, float]], dict[str, dict[str, float]]]:
    """Intervals of one prediction.

    Args:
        surrogate: The model.
        part: The part.
        known: Input features, [N, F].
        predicted: Prediction, [N, T].
        intervals: Prediction intervals of the model's checkpoint.

    Returns:
        Target to half-widths at points, [N, components]; column to the part's extreme as predicted, and half-width
        of its interval; column to peak to half-width of its interval. All in the unit of the field.
    """
    half_widths: dict[str, NDArray[np.float32]] = {}
    extremes: dict[str, tuple[float, float]] = {}
    peaks: dict[str, dict[str, float]] = {}
    number = 0
    for target in resolve_targets(surrogate.usage.targets, "the checkpoint"):
        widths = []
        for column in target.columns:
            norm, of = surrogate.usage.normalisation, intervals.column_interval(column, len(part.points))
            scales = intervals.scales(column, regressors(part.points, known, predicted, number, norm))
            widths.append(of.point * scales)
            scale = part_scale(scales)
            extremes[column] = extreme_of(column, predicted[:, number]), of.part * scale
            peaks[column] = {peak: width * scale for peak, width in of.peaks.items()}
            number += 1
        half_widths[target.name] = np.stack(widths, axis=1).astype(np.float32)
    return half_widths, extremes, peaks
