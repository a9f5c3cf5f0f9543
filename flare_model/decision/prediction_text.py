"""A prediction in words: the values of all targets, their errors where the truth is known, and what to doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flare_model.data.point_fields import resolve_targets
from flare_model.decision.result_files import extremes_of
from flare_model.judging.scores import unit_of_errors

if TYPE_CHECKING:
    from flare_model.decision.prediction import Prediction


def prediction_line(prediction: Prediction, file: str) -> str:
    """Range of each target, errors against what the part came with, extremes with their intervals.

    Args:
        prediction: The prediction.
        file: Name of its file, without suffix; told where it isn't that of the part.
    """
    part = prediction.part
    words = []
    for target in resolve_targets(tuple(prediction.fields), "the checkpoint"):
        values = prediction.fields[target.name]
        factor, unit = unit_of_errors(target.unit)
        words.append(f"{target.name} {values.min():.4g} … {values.max():.4g} {target.unit}")
        error = prediction.errors.get(target.name)
        if error is not None:
            mean = float(np.linalg.norm(values - prediction.truth[target.name], axis=1).mean()) * factor
            words[-1] += f" (relative L2 error {error:.4f}, mean error {mean:.4g} {unit})"
    for column, of in extremes_of(prediction).items():
        words.append(f"extreme {column} {of['extreme']:.4g} ± {of['half_width']:.3g} {of['unit']}")
    place = "" if file == part.name else f" (written as {file})"
    return f"{part.name}{place}: {len(part.points):,} points in {prediction.seconds:.2f} s: {'; '.join(words)}"


def prediction_warnings(prediction: Prediction) -> list[str]:
    """What the part came with that can't be compared, and that it is unlike the training, a sentence each."""
    found = [
        f"the {name} that {prediction.part.name} comes with isn't finite everywhere: no error is shown"
        for name in prediction.broken_truth
    ]
    warning = prediction.envelope_warning()
    return [*found, warning] if warning else found
