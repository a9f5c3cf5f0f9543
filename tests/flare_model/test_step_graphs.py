"""Whole steps as CUDA graphs: what can be tested on a CPU; test_flare_gpu.py records them."""

from __future__ import annotations

import gc
import shutil
import signal
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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
from flare_model.training.recorded.forward_graphs import ForwardGraphs
from flare_model.training.recorded.recording import no_collection
from flare_model.training.recorded.step_graphs import StepGraphs, make_state
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


def test_recordings_are_dropped_before_a_larger_size_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which sizes are recorded, and which recordings are dropped; the recordings themselves need a GPU."""
    recorded: list[int] = []

    class Sizes(StepGraphs):
        def _record(self, batch: Batch) -> Any:
            recorded.append(len(batch.points))
            return SimpleNamespace(replay=lambda batch: torch.zeros(()))

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("flare_model.training.recorded.step_graphs.MAX_SIZES", 3)
    graphs = Sizes(lambda _: torch.zeros(()), lambda: None, torch.optim.SGD([torch.zeros(1)]), torch.nn.Identity())
    for count in (20, 10, 20, 30, 10, 20, 10, 5, 20, 30):
        points = torch.zeros(count, 3)
        graphs(Batch(points, None, points, torch.tensor([0, count]), ("",)))
    assert recorded == [20, 10, 30, 10, 20, 5, 20]
    assert [points for points, _ in graphs._recordings] == [5, 20, 30]


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


class Sizes(ForwardGraphs):
    """What is recorded, with a replay that gives the negative of what is computed; a recording itself needs a GPU."""

    def __init__(self, error: Exception | None = None) -> None:
        self.computed: list[int] = []
        self.recorded: list[int] = []
        self.error = error
        super().__init__(self.sum_of)

    def sum_of(self, batch: Batch) -> torch.Tensor:
        self.computed.append(len(batch.points))
        return batch.points.sum()

    def _record(self, batch: Batch) -> Any:
        if self.error is not None:
            raise self.error
        self.recorded.append(len(batch.points))
        return SimpleNamespace(replay=lambda batch: -batch.points.sum())


def sums_of(graphs: ForwardGraphs, *sizes: int) -> list[float]:
    offsets = (torch.tensor([0, points]) for points in sizes)
    batches = (Batch(torch.ones(int(o[1]), 3), None, torch.ones(int(o[1]), 1), o, ("case",)) for o in offsets)
    return [float(graphs(batch)) for batch in batches]


def test_a_size_is_recorded_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that is larger than all before drops what was recorded, so that smaller ones can use its memory."""
    graphs = Sizes()
    assert sums_of(graphs, 4, 6, 2) == [12, 18, 6]
    assert sums_of(graphs, 4, 6, 2) == [-12, -18, -6]
    assert sums_of(graphs, 4, 6, 2) == [-12, -18, -6]
    assert (graphs.computed, graphs.recorded) == ([4, 6, 2], [4, 6, 2, 4])
    monkeypatch.setattr("flare_model.training.recorded.forward_graphs.MAX_SIZES", 3)
    assert sums_of(graphs, 3, 3, 8, 8) == [9, 9, 24, -24]
    assert graphs.recorded == [4, 6, 2, 4, 8]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), UsageError("it reads from the host")])
def test_what_can_not_be_recorded_is_computed(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    graphs = Sizes(error)
    assert [sums_of(graphs, 4, 6) for _ in range(3)] == [[12, 18]] * 3
    (said,) = capsys.readouterr().err.splitlines()
    why = "too little memory" if isinstance(error, torch.OutOfMemoryError) else "it reads from the host"
    assert "validation isn't recorded as CUDA graphs" in said
    assert why in said
