"""What the evaluation of a checkpoint found, as far as it concerns those who predict with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SUMMARY_NAME: Final = "summary.json"
"""Summary of an evaluation, in the folder of its results."""

EVALUATIONS: Final = "evaluation"
"""Folder in that of a checkpoint, with the results of an evaluation a split."""

PREDICTOR_NAMES: Final[Mapping[str, str]] = {
    "model": "model",
    "zero": "predict zero",
    "mean": "predict mean",
    "mean_field": "mean field",
}
"""Names for people of the predictors that an evaluation compares."""


@dataclass(frozen=True)
class StoredEvaluation:
    """Verdict of an evaluation.

    Attributes:
        split: The split that was evaluated.
        no_better_than: Target to predictors that ignore the part and whose error isn't larger than the model's; without
            the targets at which the model is better than all of them.
        no_intervals: Why it made no prediction intervals; empty where it made them.
    """

    split: str
    no_better_than: Mapping[str, tuple[str, ...]]
    no_intervals: str

    def doubt(self) -> str:
        """At which targets the model is no better than a predictor that ignores the part; empty for none."""
        if not self.no_better_than:
            return ""
        found = [f"{' and '.join(names)} at {target}" for target, names in self.no_better_than.items()]
        return (
            f"by its evaluation on the {self.split} split, the model is no better than {', than '.join(found)}: train "
            "it longer, or on more cases"
        )


def as_good_as_the_model(by_predictor: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names for people of predictors that ignore the part, and whose error isn't larger than the model's.

    Args:
        by_predictor: Predictor to its errors at one target.
    """
    errors = {name: scores["relative_l2"] for name, scores in by_predictor.items()}
    model = errors.pop("model")
    if model is None:
        return []
    return [PREDICTOR_NAMES[name] for name, error in errors.items() if error is not None and error <= model]


def read_evaluation(folder: Path, weights_sha256: str) -> StoredEvaluation | None:
    """The verdict of a checkpoint's evaluation; of several splits that of the test split is taken.

    Args:
        folder: Folder of the checkpoint; evaluations that were written elsewhere aren't found.
        weights_sha256: SHA-256 of its weights.

    Returns:
        None where no evaluation of these weights lies there, or it can't be read.
    """
    found: list[StoredEvaluation] = []
    for path in sorted((folder / EVALUATIONS).glob(f"*/{SUMMARY_NAME}")):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            if summary["identity"]["weights_sha256"] == weights_sha256:
                found.append(_verdict_of(summary))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # evaluate writes it anew
    return min(found, key=lambda one: one.split != "test", default=None)


def _verdict_of(summary: Mapping[str, Any]) -> StoredEvaluation:
    better = {target: tuple(as_good_as_the_model(scores)) for target, scores in summary["scores"].items()}
    why = str((summary.get("intervals") or {}).get("none", ""))
    return StoredEvaluation(str(summary["identity"]["split"]), {t: names for t, names in better.items() if names}, why)
