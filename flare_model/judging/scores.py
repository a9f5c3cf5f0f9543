"""Errors of predictions: one row for each case, and summaries over cases.

B cases, N points of one case, F numbers a point.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MICROMETRES: Final = 1000.0
"""Micrometres in a millimetre."""


@dataclass(frozen=True, slots=True)
class CaseScore:
    """Errors of one prediction of one field of one case.

    Attributes:
        case_id: The case.
        target: The field, or component.
        predictor: Origin of the prediction: "model", "zero" (predict zero everywhere), "mean" (the mean of the training
            points), or for grids "mean_field" (the mean of the training cases at each point).
        num_points: Points of the case.
        relative_l2: ‖prediction - truth‖ / ‖truth‖; None where the truth is zero everywhere.
        published: The figure that the FLARE paper gives for LPBF (`published_lpbf_error`); None for other targets than
            displacement_z.
        mean_error: Mean absolute error (length of the error vector for vectors), in the target's unit, µm for lengths.
        p95_error: 95th percentile of these errors over the points.
        max_error: Largest of these errors.
        squared_errors: Sum of squared errors, unit squared.
        squared_deviations: Sum of squared deviations of the truth from the mean of the training points, unit squared.
    """

    case_id: str
    target: str
    predictor: str
    num_points: int
    relative_l2: float | None
    published: float | None
    mean_error: float
    p95_error: float
    max_error: float
    squared_errors: float
    squared_deviations: float


def unit_of_errors(unit: str) -> tuple[float, str]:
    """Factor and name of the unit in which errors are given: lengths in micrometres, everything else as it is.

    >>> unit_of_errors("mm"), unit_of_errors("MPa")
    ((1000.0, 'µm'), (1.0, 'MPa'))
    """
    return (MICROMETRES, "µm") if unit == "mm" else (1.0, unit)


def score_case(
    case_id: str,
    target: str,
    unit: str,
    truth: NDArray[np.float32],
    predictions: Mapping[str, NDArray[np.float32]],
    training_mean: Sequence[float],
    floor: float = 0.0,
) -> list[CaseScore]:
    """Score several predictions of one field of one case.

    Args:
        case_id: The case.
        target: Name of the field.
        unit: Its unit.
        truth: [N, F].
        predictions: Predictor to prediction, [N, F].
        training_mean: Mean over the training points, [F].
        floor: Root mean square up to which a truth counts as zero everywhere.
    """
    import torch

    from flare_model.data.metrics import has_truth, published_lpbf_error, relative_l2

    factor, _ = unit_of_errors(unit)
    wide = truth.astype(np.float64)
    deviations = float(np.square(wide - np.asarray(training_mean)).sum()) * factor**2
    offsets = torch.tensor([0, len(truth)])
    known = torch.from_numpy(wide)
    defined = bool(has_truth(known, offsets, floor))
    rows = []
    for predictor, prediction in predictions.items():
        given = torch.from_numpy(prediction.astype(np.float64))
        lengths = np.linalg.norm(prediction.astype(np.float64) - wide, axis=1) * factor
        relative = float(relative_l2(given, known, offsets)) if defined else None
        published = float(published_lpbf_error(given, known, offsets)) if target == "displacement_z" else None
        rows.append(
            CaseScore(
                case_id,
                target,
                predictor,
                len(truth),
                relative,
                published,
                float(lengths.mean()),
                float(np.quantile(lengths, 0.95)),
                float(lengths.max()),
                float(np.square(lengths).sum()),
                deviations,
            )
        )
    return rows


@dataclass(frozen=True)
class Summary:
    """Summary of the scores of one predictor for one target.

    Attributes:
        cases: Number of cases.
        without_truth: Cases whose truth is zero everywhere, left out of the relative errors.
        relative_l2: Mean over the cases.
        relative_l2_median: Median over the cases.
        published: Mean over the cases of the figure that the paper gives for LPBF.
        mean_error: Mean over the cases of the mean absolute error.
        p95_error: Mean over the cases of the 95th percentile.
        max_error: Largest error of all.
        root_mean_square_error: Over all points.
        r2: 1 - squared errors / squared deviations from the training mean, over all points.
    """

    cases: int
    without_truth: int
    relative_l2: float | None
    relative_l2_median: float | None
    published: float | None
    mean_error: float
    p95_error: float
    max_error: float
    root_mean_square_error: float
    r2: float | None


def summarise(scores: Sequence[CaseScore]) -> Summary:
    """Summarise the scores of one predictor for one target; there must be one or more."""
    relative = [s.relative_l2 for s in scores if s.relative_l2 is not None]
    published = [s.published for s in scores if s.published is not None]
    errors, deviations = sum(s.squared_errors for s in scores), sum(s.squared_deviations for s in scores)
    return Summary(
        cases=len(scores),
        without_truth=len(scores) - len(relative),
        relative_l2=float(np.mean(relative)) if relative else None,
        relative_l2_median=float(np.median(relative)) if relative else None,
        published=float(np.mean(published)) if published else None,
        mean_error=float(np.mean([s.mean_error for s in scores])),
        p95_error=float(np.mean([s.p95_error for s in scores])),
        max_error=max(s.max_error for s in scores),
        root_mean_square_error=math.sqrt(errors / sum(s.num_points for s in scores)),
        r2=1 - errors / deviations if deviations else None,
    )


def columns_of(scores: Sequence[CaseScore]) -> dict[str, list[object]]:
    """Scores as columns, for a table on disk."""
    rows = [asdict(score) for score in scores]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def mean_and_deviation(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and sample standard deviation over two seeds or more; None where a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return {"mean": statistics.fmean(known), "standard_deviation": statistics.stdev(known)}
