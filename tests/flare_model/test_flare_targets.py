"""Several targets in one model, each with a loss, a weight and a scale; errors on training cases."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from flare_model.checkpoints.spec import ModelSpec
from flare_model.configs import FOLDER
from flare_model.data.batches import Batch
from flare_model.data.point_fields import resolve_inputs, resolve_targets
from flare_model.data.splits import Split
from flare_model.train import open_splits
from flare_model.training.devices import open_fabric
from flare_model.training.recipe import Recipe
from flare_model.training.run_log import read_table
from flare_model.training.settings import make_settings
from flare_model.training.trainer import Trainer
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import TINY, assert_same_losses, losses, run_training, train_until_killed

FIVE = ["displacement_x", "displacement_y", "displacement_z", "build_clearance_min", "build_displacement_z_max"]
MIXED = Recipe(
    epochs=2,
    target_losses={"build_clearance_min": "mse", "build_displacement_z_max": "mse"},
    target_weights={"displacement_z": 2.0, "build_clearance_min": 0.5},
)


def trainer_of(data: str, folder: Path, recipe: Recipe, targets: list[str], **options: Any) -> Trainer:
    settings = make_settings(ModelSpec(**TINY), targets, [], data=data, accelerator="cpu", recipe=recipe, **options)
    return Trainer(settings, *open_fabric(recipe, "cpu"), folder, open_splits(settings))


def test_each_target_has_its_loss_weight_and_scale(box_dataset: str, tmp_path: Path) -> None:
    """By the formulas, written out in float64 with NumPy from what the model predicts."""
    trainer = trainer_of(box_dataset, tmp_path, MIXED, FIVE)
    train = Split(box_dataset, "train", resolve_targets(FIVE, ""))
    batch = Batch.of(next(iter(trainer_of(box_dataset, tmp_path, Recipe(batch_size=3), FIVE).loader)),
                     trainer.settings.targets, ())  # fmt: skip
    found = float(trainer.stepper.loss(batch).detach())
    with torch.no_grad():
        prediction = trainer.stepper.surrogate(batch.points, None, batch.offsets).double().numpy()
    truth = batch.targets.double().numpy()
    wanted = []
    for c, name in enumerate(FIVE):
        if name.startswith("build"):
            std = np.concatenate([train.dataset[i][name].double().numpy().ravel() for i in range(len(train))]).std()
            wanted.append((((prediction - truth)[:, c] / std) ** 2).mean())
            continue
        cases = [slice(a, b) for a, b in pairwise(batch.offsets.tolist())]
        ratios = [np.linalg.norm((prediction - truth)[s, c]) / np.linalg.norm(truth[s, c]) for s in cases]
        wanted.append(np.mean(ratios))
    assert found == pytest.approx(np.average(wanted, weights=[1, 1, 2, 0.5, 1]), rel=1e-5)


def test_accumulated_batches_with_different_losses_take_the_step_of_a_large_one(
    box_dataset: str, tmp_path: Path
) -> None:
    """Each loss has its own share of a batch: relative errors are means over cases, squared ones over points."""
    changed = {"epochs": 2, "target_losses": MIXED.target_losses, "target_weights": MIXED.target_weights}
    large = run_training(box_dataset, tmp_path / "large", recipe=Recipe(batch_size=4, **changed), targets=FIVE)
    small = run_training(box_dataset, tmp_path / "small", recipe=Recipe(accumulate=4, **changed), targets=FIVE)
    assert_same_losses(small, large)


def test_a_run_of_several_targets_resumes_and_logs_the_error_of_each(box_dataset: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"targets": FIVE, "judge_training": 3, "validate_steps": 5, "checkpoint_every": 5}
    recipe = Recipe(steps=14, ema_decay=0.8, target_losses=MIXED.target_losses)
    whole = run_training(box_dataset, tmp_path / "whole", recipe=recipe, **options)
    train_until_killed(box_dataset, tmp_path / "cut", 12, recipe, **options)
    again = run_training(box_dataset, tmp_path / "cut", recipe=recipe, **options)
    assert losses(again) == losses(whole)
    assert len(losses(whole)) == 14
    for name in ("validation.csv", "training_error.csv"):
        table = read_table(whole / name)
        assert set(table) == {"step", "epoch", "mean", *FIVE}
        assert table["step"] == [5, 10, 14]
        assert (again / name).read_bytes() == (whole / name).read_bytes()
        assert table["mean"][-1] == pytest.approx(np.mean([table[target][-1] for target in FIVE]))
    assert json.loads((whole / "run.json").read_text())["configuration"]["recipe"]["steps"] == 14


def test_training_cases_are_evaluated_without_symmetries_and_thinning(box_dataset: str, tmp_path: Path) -> None:
    """Like validation cases. A smaller number of training cases is chosen evenly."""
    options: dict[str, Any] = {"judge_training": 8, "symmetries": True, "thin_to": 5}
    trainer = trainer_of(box_dataset, tmp_path, Recipe(), ["displacement"], **options)
    assert trainer.validation.training_cases is not None
    seen = trainer.validation.training_cases.loader
    plain = trainer_of(box_dataset, tmp_path, Recipe(), ["displacement"]).loader
    cases = {i: b for r in plain for b in [Batch.of(r, trainer.settings.targets, ())] for i in b.case_ids}
    for batch in (Batch.of(ragged, trainer.settings.targets, ()) for ragged in seen):
        for case_id, (a, b) in zip(batch.case_ids, pairwise(batch.offsets.tolist()), strict=True):
            assert torch.equal(batch.points[a:b], cases.pop(case_id).points)
    assert not cases
    part = Split(box_dataset, "train").evenly_chosen(3)
    every = Split(box_dataset, "train").case_ids
    assert list(part.case_ids) == [every[0], every[4], every[7]]
    assert [part.dataset[i]["case_id"] for i in range(3)] == list(part.case_ids)


def test_later_options_at_their_defaults_leave_the_identity_of_a_run_as_it_was(box_dataset: str) -> None:
    identity = make_settings(ModelSpec(**TINY), ["displacement_z"], [], data=box_dataset).identity
    assert not {"validate_steps", "judge_training", "init"} & identity.keys()
    assert not {"steps", "target_losses", "target_weights"} & identity["recipe"].keys()


@pytest.mark.parametrize(
    ("name", "near"),
    [("build_clearance", "build_clearance_min"), ("displacement_zz", "displacement_z"), ("qqq", None)],
)
def test_an_unknown_target_is_refused_with_the_nearest_name(name: str, near: str | None) -> None:
    with pytest.raises(UsageError, match=f"no field '{name}'") as refused:
        resolve_targets([name], "--targets")
    assert ("did you mean" in str(refused.value)) == (near is not None)
    if near:
        assert f"did you mean {near}?" in str(refused.value)
    with pytest.raises(UsageError, match=r"did you mean solid_above\?"):
        resolve_inputs(["solid_abov"], "--features")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            {"target_losses": {"build_clearance": "mse"}},
            r"names 'build_clearance'.*build_clearance_min\?",
        ),
        ({"target_weights": {"temperature": 2.0}}, "its targets are displacement_x, displacement_y"),
        ({"target_weights": {"displacement_z": 0.0}}, "target_weights.displacement_z must be positive"),
        ({"target_weights": {"displacement_z": float("nan")}}, "target_weights.displacement_z must be positive"),
        ({"steps": -1}, "steps must not be negative"),
    ],
)
def test_losses_and_weights_of_no_target_are_refused(recipe: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_settings(ModelSpec(**TINY), FIVE, [], data="", recipe=Recipe(**recipe))


@pytest.mark.usefixtures("drawn_charts")
def test_the_accurate_configuration_trains(box_dataset: str, tmp_path: Path) -> None:
    """With a smaller model and two steps; the number of parameters that it states is that of its own model."""
    content = yaml.safe_load((FOLDER / "lpbf_accurate.yaml").read_text())
    recipe = Recipe(**(content["recipe"] | {"steps": 2}))
    settings = make_settings(
        ModelSpec(**content["model"]), content["targets"], content["features"], data="", recipe=recipe
    )
    parameters = sum(p.numel() for p in settings.model.build().parameters())
    assert f"# Parameters: {parameters:,} with" in (FOLDER / "lpbf_accurate.yaml").read_text()
    options = {name: content[name] for name in ("targets", "features", "symmetries", "judge_training")}
    run = run_training(box_dataset, tmp_path / "run", recipe=recipe, validate_steps=1, **options)
    assert list(read_table(run / "training_error.csv")["step"]) == [1, 2]
    assert (run / "curves.png").stat().st_size > 10_000
