"""Whole steps as CUDA graphs: what can be tested on a CPU; test_flare_gpu.py records them."""

from __future__ import annotations

import copy
import gc
import shutil
import signal
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_model.checkpoints.spec import ModelSpec
from flare_model.checkpoints.surrogate import from_pretrained
from flare_model.data.batches import Batch
from flare_model.train import open_splits
from flare_model.training.devices import open_fabric
from flare_model.training.optimizer import make_optimizer
from flare_model.training.recipe import Recipe
from flare_model.training.recorded.recording import no_collection
from flare_model.training.recorded.step_graphs import make_state, unchanged
from flare_model.training.run_log import read_table
from flare_model.training.settings import make_settings
from flare_model.training.trainer import Trainer
from flare_model.training.training_checkpoint import STATE_NAME
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import TINY, assert_same_losses, run_training, train_in_processes
from tests.lpbf_data.launch_support import run_ranks
from tests.rounding import WEIGHTS

PROGRAMS = "tests.flare_model.recorded_steps_programs"


@pytest.mark.parametrize("loss", ["relative_l2", "mse"])
def test_filling_a_batch_does_not_change_its_loss(box_dataset: str, tmp_path: Path, loss: Any) -> None:
    recipe = Recipe(batch_size=3, loss=loss)
    settings = make_settings(
        ModelSpec(**TINY), ["displacement"], [], data=box_dataset, accelerator="cpu", recipe=recipe
    )
    trainer = Trainer(settings, *open_fabric(recipe, "cpu"), tmp_path, open_splits(settings))
    batch = Batch.of(next(iter(trainer.loader)), settings.targets, ())
    assert len(batch) == 3
    torch.testing.assert_close(trainer.stepper.loss(batch.filled(64).on("cpu")), trainer.stepper.loss(batch))
    trainer.stepper.recipe = replace(recipe, round_points=64)
    seen: list[int] = []
    trainer.stepper.wrapped.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for given in (batch, batch.filled(64)):  # A filled batch is not filled again.
        torch.testing.assert_close(trainer.stepper.loss(given.on("cpu")), trainer.stepper.loss(batch))
    assert set(seen) == {-(-(len(batch.points) + 1) // 64) * 64}


def test_making_the_state_of_an_optimiser_changes_no_weights_and_no_later_step() -> None:
    model = torch.nn.Linear(3, 2)
    start = {name: weights.clone() for name, weights in model.state_dict().items()}
    optimizers = [
        make_optimizer(model, Recipe(decay="published"), torch.device("cpu"), recorded=True) for _ in range(2)
    ]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["capturable"] = False  # A CPU takes the same step, but can't record it.
    make_state(optimizers[0])
    assert all(torch.equal(weights, start[name]) for name, weights in model.state_dict().items())
    assert all(float(group["lr"]) == pytest.approx(1e-3) for group in optimizers[0].param_groups)
    found = []
    for optimizer in optimizers:
        model.load_state_dict(start)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not torch.equal(found[0][0], start["weight"])


@pytest.mark.parametrize("fails", [False, True])
def test_a_pass_before_a_recording_changes_neither_buffers_nor_random_numbers(fails: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout())
    optimizer = torch.optim.AdamW(model.parameters())
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(torch.OutOfMemoryError) if fails else nullcontext(), unchanged(model, optimizer):
        model(torch.rand(5, 3)).sum().backward()
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
        if fails:
            raise torch.OutOfMemoryError
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_an_optimiser_whose_state_has_no_room_keeps_its_rates_and_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next attempt would take half of a state for a whole one, and train with a learning rate of zero."""
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, Recipe(), torch.device("cpu"), recorded=True)

    def step() -> None:
        optimizer.state[model.weight]["step"] = torch.ones(())
        raise torch.OutOfMemoryError

    monkeypatch.setattr(optimizer, "step", step)
    with pytest.raises(torch.OutOfMemoryError):
        make_state(optimizer)
    assert not optimizer.state
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([1e-3])
    assert model.weight.grad is None


def test_step_graphs_are_refused_on_a_cpu(box_dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"step_graphs needs a GPU: .* --recipe.step_graphs false here"):
        run_training(box_dataset, tmp_path / "graphs", recipe=Recipe(epochs=1, step_graphs=True), accelerator="cpu")
    assert not (tmp_path / "graphs").exists()


@pytest.mark.parametrize("loss", ["relative_l2", "mse"])
def test_gradients_of_two_processes_are_averaged_by_their_shares(box_dataset: str, tmp_path: Path, loss: str) -> None:
    """As `DistributedDataParallel` averages them, where one process has three cases and the other has one."""
    found = run_ranks("gradients", tmp_path, box_dataset, str(tmp_path / "run"), loss, ranks=2, module=PROGRAMS)
    assert [one["cases"] for one in found] == [3, 1]
    assert all(one["off"] <= 10 * torch.finfo(torch.float32).eps for one in found), found


def test_two_processes_take_the_steps_that_they_take_without_graphs(box_dataset: str, tmp_path: Path) -> None:
    """Several sizes of padded batches, an average of the weights, and a killed run that resumes."""
    options = {
        "epochs": 3,
        "batch_size": 3,
        "loss": "mse",
        "ema_decay": 0.8,
        "precision": "32-true",
        "round_points": 32,
    }
    words: dict[str, Any] = {f"recipe.{name}": value for name, value in options.items()} | {"checkpoint_every": 2}
    words |= {f"model.config.{name}": value for name, value in TINY["init_args"]["config"].items()}
    runs = {name: tmp_path / name for name in ("launched", "recorded", "killed")}
    for name, program in (("launched", ""), ("recorded", f"{PROGRAMS}:train"), ("killed", f"{PROGRAMS}:train_until:3")):
        ended, said = train_in_processes(1, 2, box_dataset, runs[name], program, **words)
        assert ended == [-signal.SIGKILL if name == "killed" else 0] * 2, said
    ended, said = train_in_processes(1, 2, box_dataset, runs["killed"], f"{PROGRAMS}:train", **words)
    assert not any(ended), said
    assert "goes on from step 2 of 6" in said
    weights = from_pretrained(runs["launched"]).model.state_dict()
    for name in ("recorded", "killed"):
        assert_same_losses(runs[name], runs["launched"])
        found, wanted = (read_table(run / "validation.csv")["mean"] for run in (runs[name], runs["launched"]))
        assert found == pytest.approx(wanted, rel=1e-5)
        assert len(wanted) > 2
        for key, values in from_pretrained(runs[name]).model.state_dict().items():
            assert (values - weights[key]).norm() <= WEIGHTS * values.norm(), key


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accumulate": 2}, "accumulate 2"),
        ({"max_points": 100}, "max_points"),
        ({"precision": "16-mixed"}, "16-mixed"),
        ({"compile": "max-autotune"}, "own"),
        ({"cycle_beta1": True}, "beta1"),
        ({"activation_checkpointing": True}, "activation_checkpointing"),
    ],
)
def test_options_that_do_not_go_with_step_graphs_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"--recipe.step_graphs doesn't go with .*{words}"):
        Recipe(step_graphs=True, **options)


def test_the_identity_of_a_run_without_step_graphs_does_not_name_them(box_dataset: str) -> None:
    identities = [
        make_settings(
            ModelSpec(**TINY),
            ["displacement_z"],
            [],
            data=box_dataset,
            accelerator="cpu",
            recipe=Recipe(step_graphs=on),
        ).identity["recipe"]
        for on in (False, True)
    ]
    assert "step_graphs" not in identities[0]
    assert identities[1]["step_graphs"] is True


def test_a_checkpoint_of_recorded_steps_opens_where_none_are_recorded(box_dataset: str, tmp_path: Path) -> None:
    """As one of a GPU on a CPU: its learning rate is a tensor, and its optimiser's state says that it is capturable."""
    recipe = Recipe(epochs=2)
    whole = run_training(box_dataset, tmp_path / "whole", recipe=recipe, checkpoint_every=4)
    cut = run_training(box_dataset, tmp_path / "cut", recipe=recipe, checkpoint_every=4)
    folder, *later = sorted((cut / "checkpoints").iterdir())
    for newer in later:
        shutil.rmtree(newer)
    rest = torch.load(folder / STATE_NAME, weights_only=True)
    for group in rest["optimizer"]["param_groups"]:
        group |= {"lr": torch.tensor(group["lr"]), "capturable": True, "fused": True}
    torch.save(rest, folder / STATE_NAME)
    run_training(box_dataset, cut, recipe=recipe, checkpoint_every=4)
    assert_same_losses(cut, whole)


def test_no_garbage_is_collected_while_a_step_is_recorded() -> None:
    """Freeing a graph of an earlier run during a recording makes CUDA end the recording with an error."""

    class Earlier:
        def __init__(self) -> None:
            self.itself = self  # only garbage collection frees it

    def left_over() -> weakref.ref[Earlier]:
        return weakref.ref(Earlier())

    freed = left_over()
    [[] for _ in range(100_000)]  # makes Python collect garbage
    assert freed() is None
    with no_collection():
        kept = left_over()
        [[] for _ in range(100_000)]
        assert kept() is not None
    assert gc.isenabled()
