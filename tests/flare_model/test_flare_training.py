"""Training: it learns, records what it was made from, saves the right weights, and refuses what is impossible."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from flare_model import from_pretrained
from flare_model.checkpoints.spec import ModelSpec
from flare_model.configs import FOLDER
from flare_model.data.batches import Batch, grouped
from flare_model.data.metrics import relative_l2
from flare_model.data.point_fields import resolve_target, resolve_targets, spans, stack_fields
from flare_model.train import main, open_splits
from flare_model.training.devices import device_of, open_fabric
from flare_model.training.divergence import DivergedError
from flare_model.training.optimizer import make_optimizer, make_schedule
from flare_model.training.recipe import Recipe, choose_precision
from flare_model.training.run_log import read_table
from flare_model.training.settings import make_settings
from flare_model.training.trainer import Trainer
from lpbf_data.case.statistics import FieldStatistics
from lpbf_data.errors import CaseError, UsageError
from lpbf_data.serving.collating import RaggedBatch
from lpbf_data.serving.datasets import CaseDataset
from pipelines.build import build
from tests.flare_model.flare_support import (
    LEARNING,
    TINY,
    assert_same_losses,
    losses,
    run_training,
    tiny_flare,
    write_cases,
)
from tests.flare_model.test_flare_checkpoints import POINTWISE, Pointwise
from tests.forked import Program, command
from tests.netfabb_cases import Part, write_part


def test_training_lowers_the_loss(trained_run: Path) -> None:
    table = read_table(trained_run / "training.csv")
    assert len(table["loss"]) == 6 * 8
    assert sum(table["loss"][-8:]) < 0.6 * sum(table["loss"][:8])
    errors = read_table(trained_run / "validation.csv")["displacement_z"]
    assert errors[-1] < 0.6 * errors[0]


def test_a_run_records_everything_that_it_was_made_from(trained_run: Path, box_dataset: str) -> None:
    about = json.loads((trained_run / "run.json").read_text())
    manifest = (Path(box_dataset) / "manifest.parquet").read_bytes()
    assert about["data"]["sha256"] == hashlib.sha256(manifest).hexdigest()
    assert about["data"]["splits"]["train"]["cases"] == 8
    assert "test" not in about["data"]["splits"]
    assert about["configuration"]["seed"] == 0
    assert about["versions"]["torch"] == torch.__version__
    assert len(about["code"]["sha256"]) == 64
    result = json.loads((trained_run / "result.json").read_text())
    assert result["steps"] == 48
    best = min(read_table(trained_run / "validation.csv")["displacement_z"])
    assert result["validation"]["displacement_z"] == best
    assert (trained_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((trained_run / "tensorboard").iterdir())
    assert from_pretrained(trained_run).origin["data_sha256"] == about["data"]["sha256"]


def test_the_configuration_of_a_run_starts_the_same_run(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--config", str(trained_run / "config.yaml"), "--out", str(run)]
    program = Program(command, tmp_path / "said", "flare_model.train", *words)
    assert program.end() == 0, program.text()
    assert losses(run) == losses(trained_run)
    assert "points_s" in program.text()
    assert "data_wait" in program.text()


def test_the_configuration_of_a_run_holds_only_options_of_the_command_line(box_dataset: str, tmp_path: Path) -> None:
    """The numbers of inputs and targets, which the data give, are no options of a model."""
    first = run_training(box_dataset, tmp_path / "a", model={"class_path": POINTWISE}, recipe=Recipe(epochs=1))
    words = ["--config", str(first / "config.yaml"), "--out", str(tmp_path / "b")]
    program = Program(command, tmp_path / "said", "flare_model.train", *words)
    assert program.end() == 0, program.text()
    assert losses(tmp_path / "b") == losses(first)


def test_several_seeds_give_mean_and_standard_deviation(
    box_dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(box_dataset, tmp_path, seed=[0, 3], recipe=Recipe(epochs=1))
    errors = [json.loads((tmp_path / f"seed-{s}" / "result.json").read_text())["validation"] for s in (0, 3)]
    spread = json.loads((tmp_path / "seeds.json").read_text())["validation"]["displacement_z"]
    first, second = (e["displacement_z"] for e in errors)
    assert first != second
    assert spread["mean"] == pytest.approx((first + second) / 2)
    assert spread["standard_deviation"] == pytest.approx(abs(first - second) / math.sqrt(2))
    assert f"{spread['mean']:.4f} ± {spread['standard_deviation']:.4f} over 2 seeds" in capsys.readouterr().out
    assert losses(tmp_path / "seed-3") == losses(
        run_training(box_dataset, tmp_path / "alone", seed=[3], recipe=Recipe(epochs=1))
    )


@pytest.mark.parametrize("loss", ["relative_l2", pytest.param("mse", marks=pytest.mark.slow)])
def test_accumulated_batches_take_the_step_of_a_large_one(box_dataset: str, tmp_path: Path, loss: Any) -> None:
    """With batches of different numbers of points, and a smaller last group: the same losses, hence gradients."""
    large = run_training(box_dataset, tmp_path / "large", recipe=Recipe(epochs=2, batch_size=3, loss=loss))
    small = run_training(
        box_dataset, tmp_path / "small", recipe=Recipe(epochs=2, batch_size=1, accumulate=3, loss=loss)
    )
    assert len(losses(large)) == 6
    assert_same_losses(small, large)


def test_rounding_up_the_number_of_points_changes_no_loss(box_dataset: str, tmp_path: Path) -> None:
    plain = run_training(box_dataset, tmp_path / "plain", recipe=Recipe(epochs=1, batch_size=2))
    filled = run_training(box_dataset, tmp_path / "filled", recipe=Recipe(epochs=1, batch_size=2, round_points=64))
    assert_same_losses(filled, plain)


def test_saved_weights_are_the_exponential_moving_average(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    plain = Trainer._optimise

    def optimise(self: Trainer, group: list[Batch]) -> None:
        plain(self, group)
        seen.append(self.stepper.surrogate.model.norm.weight.detach().clone())

    monkeypatch.setattr(Trainer, "_optimise", optimise)
    run_training(box_dataset, tmp_path, recipe=Recipe(epochs=1, ema_decay=0.7))
    average = seen[0]
    for weights in seen[1:]:
        average = 0.7 * average + 0.3 * weights
    kept = from_pretrained(tmp_path).model.norm.weight
    torch.testing.assert_close(kept, average)
    assert not torch.allclose(kept, seen[-1], atol=1e-6)


class Diverging(Pointwise):
    """Gives NaN after its fortieth batch."""

    def forward(self, *inputs: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + self.training
        return super().forward(*inputs) * (math.nan if self.calls > 40 else 1.0)


@pytest.mark.usefixtures("drawn_charts")
@pytest.mark.parametrize("late", [False, True])
def test_a_diverging_loss_stops_the_run_and_names_the_case(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Losses of a GPU arrive after later steps; what a checkpoint holds was looked at before."""
    if late:
        monkeypatch.setattr("flare_model.training.loss_log._has_arrived", lambda _: False)
    model = {"class_path": f"{__name__}.Diverging"}
    with pytest.raises(DivergedError, match=r"became nan at step 41, in case 1000\d\d_11b839a.*step-00000040"):
        run_training(box_dataset, tmp_path, model=model, recipe=Recipe(epochs=20), checkpoint_every=4)
    kept = from_pretrained(tmp_path, trust=f"{__name__}.Diverging")
    assert all(p.isfinite().all() for p in kept.parameters())
    assert len(losses(tmp_path)) == 40
    assert (tmp_path / "curves.png").exists()


def test_losses_that_arrive_late_are_logged_once_and_in_order(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps are logged when the next ten have been launched, and all of them before a checkpoint."""
    monkeypatch.setattr("flare_model.training.loss_log._has_arrived", lambda _: False)
    logged: list[tuple[int, int]] = []
    optimise = Trainer._optimise

    def count(self: Trainer, group: list[Batch]) -> None:
        optimise(self, group)
        logged.append((self.step, len(read_table(tmp_path / "training.csv").get("step", ()))))

    monkeypatch.setattr(Trainer, "_optimise", count)
    run_training(box_dataset, tmp_path, recipe=Recipe(epochs=7), checkpoint_every=35, validate_every=7)
    assert read_table(tmp_path / "training.csv")["step"] == list(range(1, 57))
    known = dict(logged)
    assert [known[step] for step in (10, 19, 20, 30, 35, 36, 40, 50)] == [0, 0, 10, 20, 20, 35, 35, 40]


def test_any_model_trains_by_its_class_path(box_dataset: str, tmp_path: Path) -> None:
    model = {"class_path": POINTWISE, "init_args": {"width": 5}}
    run_training(
        box_dataset, tmp_path, model=model, targets=["displacement", "von_mises_stress"], features=["temperature"]
    )
    surrogate = from_pretrained(tmp_path, trust=POINTWISE)
    assert surrogate.model.network[0].weight.shape == (5, 4)
    assert surrogate(torch.rand(6, 3), torch.rand(6, 1)).shape == (6, 4)
    columns = read_table(tmp_path / "validation.csv")
    assert columns["mean"][0] == pytest.approx((columns["displacement"][0] + columns["von_mises_stress"][0]) / 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ["cauchy_stress"]}, "has no field 'cauchy_stress'"),
        ({"targets": ["no_such_field"]}, "no field 'no_such_field'"),
        ({"targets": ["structure_type"]}, "no field 'structure_type' at points"),
        ({"targets": []}, "names nothing"),
        ({"targets": ["temperature", "temperature"]}, "twice"),
        ({"features": ["displacement_z"]}, "both a target and a feature"),
        ({"features": ["displacement"]}, "displacement_z can't be both a target and a feature"),
        ({"features": ["elastic_strain"]}, "has no field 'elastic_strain'"),
        ({"seed": []}, "--seed"),
        ({"seed": [1, 1]}, "different numbers"),
        ({"max_steps": 0}, "--max_steps must be 1 or more"),
        ({"thin_to": 0}, "--thin_to must be 1 or more"),
        ({"num_workers": -1}, "--num_workers"),
        ({"recipe": Recipe(precision="16-mixed"), "accelerator": "cpu"}, "16-mixed needs a GPU"),
        ({"recipe": Recipe(activation_checkpointing=True), "model": {"class_path": POINTWISE}}, "no attribute"),
    ],
)
def test_impossible_requests_are_refused(box_dataset: str, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run_training(box_dataset, tmp_path / "run", **options)
    assert not (tmp_path / "run" / "training.csv").exists()


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"warmup": 1.0}, "warmup"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"weight_decay": -1e-9}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"round_points": -1}, "round_points"),
    ],
)
def test_impossible_recipes_are_refused(numbers: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"--recipe.{words}"):
        Recipe(**numbers)


@pytest.mark.usefixtures("drawn_charts")
def test_a_case_whose_truth_is_zero_is_named_and_adds_no_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = write_cases(tmp_path / "cases", 3)
    write_part(cases, Part("200000_22b839a0_1", amplitude=0.0))
    data = str(tmp_path / "lpbf")
    build([str(cases)], out=data, workers=0, time_limit=math.inf, splits="train=1", formats=["parquet"], no_report=True)
    run_training(data, tmp_path / "run", recipe=Recipe(epochs=2))
    warning = capsys.readouterr().err
    assert "zero everywhere in 1 of 4 training cases, 200000_22b839a0_1 among them" in warning
    assert "or train with --recipe.loss mse" in warning
    found = [float(loss) for _, loss, _ in losses(tmp_path / "run")]
    assert found.count(0.0) == 2
    assert all(0 <= loss < 10 for loss in found)
    run_training(data, tmp_path / "mse", recipe=Recipe(epochs=1, loss="mse"))
    assert "zero everywhere" not in capsys.readouterr().err
    assert all(float(loss) > 0 for _, loss, _ in losses(tmp_path / "mse"))


def test_a_target_that_is_zero_in_every_case_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path / "cases", Part("200000_22b839a0_1", amplitude=0.0))
    data = str(tmp_path / "lpbf")
    build(
        [str(tmp_path / "cases")],
        out=data,
        workers=0,
        time_limit=math.inf,
        splits="train=1",
        formats=["parquet"],
        no_report=True,
    )
    for loss in ("relative_l2", "mse"):
        with pytest.raises(
            UsageError, match=r"displacement_z is 0 at every point of every training case, so .*--targets"
        ):
            run_training(data, tmp_path / "run", recipe=Recipe(loss=loss))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_constant_targets_are_refused_and_constant_components_get_a_warning(
    box_dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, steady = CaseDataset.statistics, FieldStatistics(9, 20.5, 0.0, 20.5, 20.5)
    changed = {"temperature": steady, "displacement_x": steady}
    monkeypatch.setattr(CaseDataset, "statistics", lambda self: {**plain(self), **changed})

    def opened(*targets: str) -> None:
        open_splits(make_settings(ModelSpec(**TINY), targets, [], data=box_dataset, recipe=Recipe(loss="mse")))

    words = r"displacement_x is 20\.5, temperature is 20\.5 at every point .*, so that there is nothing to learn; name"
    with pytest.raises(UsageError, match=words):
        opened("displacement_x", "temperature")
    opened("displacement_z")
    assert capsys.readouterr().err == ""
    opened("displacement")
    assert "warning: displacement_x is 20.5 at every point of every training case" in capsys.readouterr().err


def test_without_a_validation_split_the_last_weights_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tmp_path / "lpbf")
    build(
        [str(write_cases(tmp_path / "cases", 3))],
        out=data,
        workers=0,
        time_limit=math.inf,
        splits="train=1",
        formats=["parquet"],
        no_report=True,
    )
    run = run_training(data, tmp_path / "run", recipe=Recipe(epochs=2))
    assert "no validation split" in capsys.readouterr().out
    assert from_pretrained(run).origin["step"] == 6


def ragged(values: list[float]) -> RaggedBatch:
    y = torch.tensor(values)[:, None]
    return RaggedBatch(
        torch.zeros(len(values), 3), y, torch.tensor([0, 2, len(values)]), ("a", "b"), {"temperature": y}
    )


def test_a_value_that_is_not_finite_is_refused_with_its_case() -> None:
    targets = resolve_targets(["temperature"], "--targets")
    assert Batch.of(ragged([1, 2, 3, 4]), targets, ()).targets.tolist() == [[1], [2], [3], [4]]
    for values, case in (([1, math.nan, 3, 4], "a"), ([1, 2, math.inf, 4], "b")):
        with pytest.raises(CaseError, match=f"case {case}: non_finite: a value of temperature"):
            Batch.of(ragged(values), targets, ())


def test_filling_a_batch_adds_one_mesh() -> None:
    batch = Batch.of(ragged([1, 2, 3, 4]), resolve_targets(["temperature"], ""), ())
    for multiple, total in ((4, 8), (5, 5), (3, 6)):
        filled = batch.filled(multiple)
        assert len(filled.points) == len(filled.targets) == total
        assert filled.features is None
        assert filled.offsets.tolist() == [0, 2, 4, total]
        assert filled.case_ids == batch.case_ids


def test_batches_are_grouped_for_one_step() -> None:
    assert list(grouped(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_the_loss_is_the_mean_over_targets_of_the_mean_over_cases(box_dataset: str, tmp_path: Path) -> None:
    settings = make_settings(
        ModelSpec(**TINY), ["displacement", "temperature"], [], data=box_dataset, accelerator="cpu"
    )
    fabric, precision = open_fabric(settings.recipe, "cpu")
    trainer = Trainer(settings, fabric, precision, tmp_path, open_splits(settings))
    group = [Batch.of(r, settings.targets, ()) for r in trainer.loader][:2]
    for batch in group:
        prediction = trainer.stepper.surrogate(batch.points, None, batch.offsets)
        wanted = [
            ((prediction[:, c] - batch.targets[:, c]).norm() / batch.targets[:, c].norm())
            for c in (slice(0, 3), slice(3, 4))
        ]
        torch.testing.assert_close(trainer.stepper.loss(batch).float(), (wanted[0] + wanted[1]) / 2)


def test_targets_are_found_by_name() -> None:
    targets = resolve_targets(["displacement_z", "von_mises_stress", "displacement"], "--targets")
    assert {n: (s.start, s.stop) for n, s in spans(targets).items()} == {
        "displacement_z": (0, 1),
        "von_mises_stress": (1, 2),
        "displacement": (2, 5),
    }
    fields = {"displacement": torch.arange(6.0).view(2, 3), "von_mises_stress": torch.tensor([7.0, 8.0])}
    assert stack_fields(fields, targets).tolist() == [[2, 7, 0, 1, 2], [5, 8, 3, 4, 5]]
    assert resolve_target("cauchy_stress_xy").components == (3,)


def test_the_schedule_is_the_papers() -> None:
    """10 % of the steps up to the peak, then a cosine; beta1 is constant."""
    model = tiny_flare()
    optimizer = make_optimizer(model, Recipe())
    schedule = make_schedule(optimizer, Recipe(), 200)
    rates, betas = [], set()
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        betas.add(optimizer.param_groups[0]["betas"])
        optimizer.step()
        if len(rates) < 200:
            schedule.step()
    assert betas == {(0.9, 0.999)}
    assert rates[0] == pytest.approx(1e-3 / 25)
    assert rates.index(max(rates)) == 19
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-3 / 2.5e5)
    middle = 19 + 90
    assert rates[middle] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 90 / 180)) / 2, rel=1e-3)


def test_the_shortest_runs_have_a_complete_schedule() -> None:
    """In runs of ten steps and fewer the learning rate rises too, and ends where it ends in long ones."""
    for steps in range(1, 30):
        optimizer = make_optimizer(tiny_flare(), Recipe())
        schedule = make_schedule(optimizer, Recipe(), steps)
        rates = [schedule.get_last_lr()[0]]
        for _ in range(max(steps, 2) - 1):
            optimizer.step()
            schedule.step()
            rates.append(schedule.get_last_lr()[0])
        assert rates[0] == pytest.approx(1e-3 / 25)
        assert rates[-1] == pytest.approx(1e-3 / 2.5e5)
        assert steps < 3 or max(rates) > 0.5e-3


def test_the_configuration_of_the_published_code_has_its_schedule_and_decay() -> None:
    path = FOLDER / "lpbf_published_code.yaml"
    recipe = Recipe(**yaml.safe_load(path.read_text())["recipe"])
    model = tiny_flare()
    optimizer = make_optimizer(model, recipe)
    schedule = make_schedule(optimizer, recipe, 100)
    spared = next(g for g in optimizer.param_groups if g["weight_decay"] == 0)["params"]
    names = {n for n, p in model.named_parameters() if any(p is s for s in spared)}
    assert names == {n for n, _ in model.named_parameters() if n.endswith("bias") or "latent_queries" in n}
    rates, betas = [], []
    for step in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        betas.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        if step < 99:
            schedule.step()
    # For the last rate that code divides the first rate, not the peak, by 1e4.
    assert (rates[0], rates[-1]) == (pytest.approx(1e-7), pytest.approx(1e-11))
    assert (betas[0], min(betas), betas[-1]) == (pytest.approx(0.95), pytest.approx(0.85), pytest.approx(0.95))


def test_all_weights_decay_by_default() -> None:
    model = tiny_flare()
    (group,) = make_optimizer(model, Recipe(weight_decay=0.5)).param_groups
    assert group["weight_decay"] == 0.5
    assert len(group["params"]) == len(list(model.parameters()))


def test_precision_is_chosen_by_device() -> None:
    assert choose_precision("auto", on_gpu=True) == "bf16-mixed"
    assert choose_precision("auto", on_gpu=False) == "32-true"
    assert choose_precision("16-mixed", on_gpu=True) == "16-mixed"
    assert choose_precision("bf16-mixed", on_gpu=False) == "bf16-mixed"


@pytest.mark.parametrize("start", [lambda: open_fabric(Recipe(), "cpu"), lambda: device_of("cpu")])
def test_attention_does_not_use_cudnn_which_plans_for_every_size(start: Any) -> None:
    torch.backends.cuda.enable_cudnn_sdp(enabled=True)
    start()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_bf16_learns_as_well_and_keeps_coordinates_in_float32(
    box_dataset: str, tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    plain = Pointwise.forward

    def forward(self: Pointwise, points: Tensor, *others: Tensor) -> Tensor:
        seen.add(points.dtype)
        return plain(self, points, *others)

    monkeypatch.setattr(Pointwise, "forward", forward)
    run_training(
        box_dataset, tmp_path / "any", model={"class_path": POINTWISE}, recipe=Recipe(epochs=1, precision="bf16-mixed")
    )
    assert seen == {torch.float32}
    half = run_training(box_dataset, tmp_path / "half", recipe=replace(LEARNING, precision="bf16-mixed"))
    errors, full = (read_table(f / "validation.csv")["displacement_z"][-1] for f in (half, trained_run))
    assert errors == pytest.approx(full, rel=0.2)
    assert losses(half) != losses(trained_run)


def test_an_unknown_model_is_refused_in_one_sentence(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", box_dataset, "--out", str(tmp_path), "--model", "my.Model"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: there is no model 'my.Model'")
    assert said.count("\n") == 1


def test_relative_errors_of_exact_predictions_have_gradients() -> None:
    truth = torch.tensor([[1.0], [2.0], [0.0], [0.0]])
    prediction = truth.clone().requires_grad_()
    errors = relative_l2(prediction, truth, torch.tensor([0, 2, 4]))
    errors.sum().backward()
    assert errors.tolist() == [0, 0]
    assert prediction.grad is not None
    assert prediction.grad.abs().max() == 0


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_losses(box_dataset: str, tmp_path: Path) -> None:
    plain = run_training(box_dataset, tmp_path / "plain", recipe=Recipe(epochs=1, batch_size=2))
    fast = run_training(box_dataset, tmp_path / "fast", recipe=Recipe(epochs=1, batch_size=2, compile="default"))
    assert_same_losses(fast, plain)
