"""Validation: which weights it chooses, and what is written where a target has no error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_model import from_pretrained
from flare_model.data.metrics import RelativeL2
from flare_model.training.recipe import Recipe
from flare_model.training.validation import Validation
from tests.flare_model.flare_support import run_training


def test_the_best_weights_by_validation_are_kept(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation errors are set to fall and rise again; the weights of the lowest are saved."""
    made_up = iter([0.5, 0.2, 0.9])
    kept = []

    def judge(self: Validation, *_: object) -> dict[str, Any]:
        kept.append({k: v.clone() for k, v in self.stepper.surrogate.model.state_dict().items()})
        return {"displacement_z": RelativeL2(next(made_up), 1)}

    monkeypatch.setattr(Validation, "errors_on", judge)
    run_training(box_dataset, tmp_path, recipe=Recipe(epochs=3))
    published = from_pretrained(tmp_path)
    assert published.origin["step"] == 16
    for name, values in published.model.state_dict().items():
        assert torch.equal(values, kept[1][name])
    assert any(not torch.equal(v, kept[2][k]) for k, v in published.model.state_dict().items())


NO_ERROR = RelativeL2(0.0, 0, 2)
"""Errors of a target that is zero in every validation case: there are none."""


@pytest.mark.parametrize(
    ("of_one_target", "of_the_other", "chosen"),
    [
        # One of two targets has errors, as in the third entry.
        pytest.param(
            [RelativeL2(0.5, 1), RelativeL2(0.2, 1), RelativeL2(0.9, 1)], [NO_ERROR] * 3, 16, marks=pytest.mark.slow
        ),
        ([NO_ERROR] * 3, [NO_ERROR] * 3, 24),
        ([NO_ERROR, RelativeL2(0.5, 1), NO_ERROR], [NO_ERROR] * 3, 16),
        ([RelativeL2(0.5, 1), RelativeL2(0.4, 1), RelativeL2(0.1, 1)], [RelativeL2(math.nan, 1)] * 3, 24),
        ([RelativeL2(0.5, 1)] * 3, [RelativeL2(0.5, 1), RelativeL2(math.nan, 1), RelativeL2(0.6, 1)], 8),
    ],
)
def test_missing_or_nan_errors_do_not_stop_the_choice_of_weights(
    box_dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_one_target: list[RelativeL2],
    of_the_other: list[RelativeL2],
    chosen: int,
) -> None:
    """Targets without an error don't count; without any error the latest weights are the best."""
    names = ("displacement_z", "temperature")
    rows = zip(of_one_target, of_the_other, strict=True)
    monkeypatch.setattr(Validation, "errors_on", lambda *_: dict(zip(names, next(rows), strict=True)))
    run_training(box_dataset, tmp_path, targets=list(names), recipe=Recipe(epochs=3, loss="mse"))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for name in ("result.json", "config.json"):
        json.loads((tmp_path / name).read_text(), parse_constant=refuse)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["best_step"] == from_pretrained(tmp_path).origin["step"] == chosen
    expected = [of_one_target[chosen // 8 - 1].mean, of_the_other[chosen // 8 - 1].mean]
    assert list(result["validation"].values()) == [e if math.isfinite(e) else None for e in expected]
