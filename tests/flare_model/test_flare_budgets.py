"""Batches limited by their points, in training on request and in validation always; and the speed of training alone."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_model.checkpoints.spec import ModelSpec
from flare_model.data.batches import Batch
from flare_model.data.splits import open_loader
from flare_model.train import open_splits
from flare_model.training.devices import open_fabric
from flare_model.training.recipe import Recipe
from flare_model.training.run_checkpoints import Checkpoints
from flare_model.training.run_log import read_table
from flare_model.training.settings import make_settings
from flare_model.training.trainer import Trainer
from flare_model.training.validation import Validation, open_validation
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import TINY, losses, run_training, train_until_killed


def trainer_of(data: str, folder: Path, recipe: Recipe, **options: Any) -> Trainer:
    settings = make_settings(
        ModelSpec(**TINY), ["displacement"], [], data=data, accelerator="cpu", recipe=recipe, **options
    )
    return Trainer(settings, *open_fabric(recipe, "cpu"), folder, open_splits(settings))


def test_batches_keep_to_a_budget_of_points_and_every_epoch_has_all_cases(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs differ in their numbers of batches, which the schedule accounts for; a killed run resumes exactly."""
    seen: list[list[Batch]] = []
    plain = Trainer._optimise

    def optimise(self: Trainer, group: list[Batch]) -> None:
        seen.append(group)
        plain(self, group)

    recipe = Recipe(epochs=6, max_points=100, accumulate=2)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_optimise", optimise)
        whole = run_training(box_dataset, tmp_path / "whole", recipe=recipe)
    batches = [batch for group in seen for batch in group]
    assert max(len(batch.points) for batch in batches) <= 100
    assert max(len(batch) for batch in batches) > 1
    ids = [case_id for batch in batches for case_id in batch.case_ids]
    epochs = [sorted(ids[start : start + 8]) for start in range(0, len(ids), 8)]
    assert len(epochs) == 6
    assert all(epoch == epochs[0] for epoch in epochs)
    assert len(set(ids)) == 8
    trainer = trainer_of(box_dataset, tmp_path / "other", recipe)
    assert len(set(trainer.batches)) > 1
    assert sum(trainer.batches) == len(batches)
    assert trainer.steps == sum(math.ceil(count / 2) for count in trainer.batches) == len(seen)
    train_until_killed(box_dataset, tmp_path / "cut", 7, recipe, checkpoint_every=3)
    assert losses(run_training(box_dataset, tmp_path / "cut", recipe=recipe, checkpoint_every=3)) == losses(whole)


def test_batches_keep_to_a_budget_of_points_and_a_number_of_cases(box_dataset: str, tmp_path: Path) -> None:
    both = trainer_of(box_dataset, tmp_path, Recipe(epochs=2, max_points=1000, batch_size=3))
    assert [len(batch.case_ids) for batch in both.loader] == [3, 3, 2]
    assert trainer_of(box_dataset, tmp_path, Recipe(epochs=9, max_points=1000), max_steps=2).steps == 2
    with pytest.raises(UsageError, match="max_points=20 is less than the"):
        trainer_of(box_dataset, tmp_path, Recipe(max_points=20))
    with pytest.raises(UsageError, match=r"--recipe\.max_points must not be negative"):
        Recipe(max_points=-1)


def test_validation_in_batches_gives_the_errors_of_one_case_at_a_time(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to rounding in float64 for the same predictions, and in float32 for those of a model."""
    trainer = trainer_of(box_dataset, tmp_path, Recipe())
    split = open_splits(trainer.settings)["train"]
    together, apart = open_validation(split, Recipe()), open_loader(split, uneven="keep")
    assert (len(together), len(apart)) == (1, 8)
    errors = [trainer.validation.errors_on(loader) for loader in (together, apart)]
    for name in errors[0]:
        assert errors[0][name].cases == errors[1][name].cases == 8
        assert errors[0][name].total == pytest.approx(errors[1][name].total, rel=1e-5)

    def predict(_: object, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        del module
        return torch.cat([0.9 * batch.targets[a:b] + 0.01 for a, b in pairwise(batch.offsets.tolist())])

    monkeypatch.setattr(type(trainer.stepper), "predict", predict)
    errors = [trainer.validation.errors_on(loader) for loader in (together, apart)]
    for name in errors[0]:
        assert errors[0][name].total == pytest.approx(errors[1][name].total, rel=1e-13)


def test_a_compiled_model_is_validated_on_one_case_at_a_time(box_dataset: str, tmp_path: Path) -> None:
    """With several cases it would compute with all points of the batch once for each case."""
    split = open_splits(trainer_of(box_dataset, tmp_path, Recipe()).settings)["validation"]
    assert len(open_validation(split, Recipe(compile="default"))) == len(split) == 2
    assert len(open_validation(split, Recipe())) == 1


def test_points_per_second_are_those_of_training_alone(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a simulated clock: a step takes 1 s, a validation 1,000 s, a checkpoint 100 s."""
    clock = [0.0]
    monkeypatch.setattr("flare_model.training.loss_log.time", type("Clock", (), {"monotonic": lambda: clock[0]}))

    def later(function: Any, seconds: float) -> Any:
        def called(*arguments: Any) -> Any:
            clock[0] += seconds
            return function(*arguments)

        return called

    monkeypatch.setattr(Trainer, "_optimise", later(Trainer._optimise, 1.0))
    monkeypatch.setattr(Validation, "judge", later(Validation.judge, 1000.0))
    monkeypatch.setattr(Checkpoints, "write", later(Checkpoints.write, 100.0))
    run = run_training(box_dataset, tmp_path, recipe=Recipe(epochs=3), checkpoint_every=12)
    assert clock[0] == 24 + 3 * 1000 + 2 * 100
    points = 3 * sum(open_splits(trainer_of(box_dataset, tmp_path / "other", Recipe()).settings)["train"].dataset.sizes)
    assert read_table(run / "training.csv")["points_per_second"][-1] == round(points / 24)
