"""The page `answer.html`: each part in 3D with its answer, to turn, cut and deform; it opens without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flare_model.data.point_fields import columns_of, resolve_targets
from flare_model.decision.answer import Answer
from flare_model.decision.answer_text import answer_facts
from flare_model.decision.prediction import Prediction
from lpbf_data.case.schema import FIELDS
from lpbf_data.viewer.page import ShownPart, render_parts
from lpbf_data.viewer.shown_fields import ShownField, shown_fields


def shown_part(prediction: Prediction, answer: Answer) -> ShownPart:
    """One part for the page.

    Args:
        prediction: Fields that are shown on the part.
        answer: Answer that is shown next to it, with the remarks on the part.
    """
    part = prediction.part
    facts = answer_facts(answer)
    if part.remarks:
        facts.append(("notes", "; ".join(remark.with_count for remark in part.remarks)))
    return ShownPart.of_mesh(part.name, part.points, part.cells, _columns(prediction), facts)


def render_answers(
    title: str, parts: Sequence[ShownPart], targets: Sequence[str], *, with_intervals: bool
) -> bytes | None:
    """The page as HTML.

    Args:
        title: Title of the page.
        parts: The parts, from `shown_part`.
        targets: What the model predicts.
        with_intervals: Whether there are half-widths.

    Returns:
        None where the model predicts nothing that the page can show.
    """
    fields = page_fields(targets, with_intervals=with_intervals)
    return render_parts(title, parts, fields) if fields else None


def page_fields(targets: Sequence[str], *, with_intervals: bool) -> list[ShownField]:
    """Columns that a page shows for the targets of a model: their values, then the half-widths of their intervals.

    Args:
        targets: What the model predicts.
        with_intervals: Whether there are half-widths.
    """
    found = [column for target in resolve_targets(targets, "the checkpoint") for column in target.columns]
    plain = {field.column: field for field in shown_fields(FIELDS.values())}
    fields = [field for field in plain.values() if field.column in found]
    if with_intervals:
        fields += [
            ShownField(_half(f.column), f"{f.label}, half of its interval", f.unit, signed=False) for f in tuple(fields)
        ]
    return fields


def _half(column: str) -> str:
    return f"{column}_half_width"


def _columns(prediction: Prediction) -> Mapping[str, NDArray[np.float32]]:
    halves, found = columns_of(prediction.half_widths), {}
    for column, values in prediction.columns().items():
        found[column] = values
        if column in halves:
            found[_half(column)] = halves[column]
    return found
