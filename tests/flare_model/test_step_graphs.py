"""Whole steps as CUDA graphs: what can be tested on a CPU; test_flare_gpu.py records them."""

from __future__ import annotations

import copy
import gc
import math
import shutil
import signal
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flare_model.checkpoints.spec import ModelSpec
from flare_model.checkpoints.surrogate import from_pretrained
from flare_model.data.batches import Batch
from flare_model.data.point_fields import resolve_targets
from flare_model.data.splits import Split, open_loader
from flare_model.train import open_splits
from flare_model.training.devices import open_fabric
from flare_model.training.optimizer import make_optimizer
from flare_model.training.recipe import Recipe
from flare_model.training.recorded.forward_graphs import ForwardGraphs
from flare_model.training.recorded.largest_batch import largest_request
from flare_model.training.recorded.recording import no_collection
from flare_model.training.recorded.recordings import Recordings
from flare_model.training.recorded.step_graphs import StepGraphs, make_state, unchanged
from flare_model.training.run_log import read_table
from flare_model.training.settings import make_settings
from flare_model.training.step_errors import StepFailedError
from flare_model.training.trainer import Trainer
from flare_model.training.training_checkpoint import STATE_NAME
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import TINY, assert_same_losses, run_training, train_in_processes
from tests.flare_model.recorded_steps_programs import ComputedPasses, ComputedSteps
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


class RecordedSizes:
    """What is recorded in which memory, with a replay that gives the number of points; a recording needs a GPU.

    Args:
        room: Points for which there is memory, in all recordings together.
    """

    def __init__(self, room: float = math.inf, max_sizes: int = 100) -> None:
        self.recorded: list[int] = []
        self.pools: list[Any] = []
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.room = room
        self.recordings = Recordings(self._record, max_sizes)

    def _record(self, batch: Batch, pool: Any) -> Any:
        if sum(recording.points for recording in self.alive) + len(batch.points) > self.room:
            raise torch.OutOfMemoryError(f"no room for {len(batch.points)}")
        self.recorded.append(len(batch.points))
        recording: Any = FakeRecording(batch, pool or f"pool {len(self.recorded)}")
        self.pools.append(recording.pool)
        self.alive.add(recording)
        return recording

    def add(self, *sizes: int, make_room: bool = False) -> None:
        for size in sizes:
            self.recordings.add(batch_of(size), make_room=make_room)


class FakeRecording:
    """A recording that gives the number of points."""

    def __init__(self, batch: Batch, pool: Any) -> None:
        self.points, self.pool = len(batch.points), pool

    def replay(self, batch: Batch) -> torch.Tensor:
        assert len(batch.points) == self.points
        return torch.tensor(self.points)


def batch_of(points: int) -> Batch:
    return Batch(torch.ones(points, 3), None, torch.ones(points, 1), torch.tensor([0, points]), ("case",))


def test_recordings_are_kept_when_a_larger_size_comes() -> None:
    """All sizes share one memory pool, and none is recorded twice."""
    sizes = RecordedSizes()
    sizes.add(20, 10, 30, 5)
    assert {points for points in (20, 10, 30, 5) if (points, 2) in sizes.recordings} == {20, 10, 30, 5}
    assert [int(sizes.recordings.replay(batch_of(points))) for points in (5, 30, 10, 20)] == [5, 30, 10, 20]
    assert sizes.pools == ["pool 1"] * 4


def test_the_recording_used_longest_ago_is_dropped_where_there_are_too_many() -> None:
    sizes = RecordedSizes(max_sizes=3)
    sizes.add(20, 10)
    assert not sizes.recordings.full
    sizes.add(30)
    assert sizes.recordings.full
    sizes.recordings.replay(batch_of(20))
    sizes.add(5)
    assert sorted(recording.points for recording in sizes.alive) == [5, 20, 30]
    assert sizes.pools == ["pool 1"] * 4


def test_other_recordings_are_dropped_where_memory_runs_out() -> None:
    """Once, and where that doesn't help the error is raised; nothing holds the memory of what was dropped."""
    sizes = RecordedSizes(room=50)
    sizes.add(20, 10)
    with pytest.raises(torch.OutOfMemoryError, match="no room for 30"):
        sizes.add(30)
    assert sorted(recording.points for recording in sizes.alive) == [10, 20]
    sizes.add(30, make_room=True)
    assert [recording.points for recording in sizes.alive] == [30]
    assert sizes.pools == ["pool 1", "pool 1", "pool 3"]
    sizes.add(15, make_room=True)
    assert sizes.pools[-1] == "pool 3"
    with pytest.raises(torch.OutOfMemoryError, match="no room for 60"):
        sizes.add(60, make_room=True)
    assert not sizes.alive
    sizes.add(40, make_room=True)
    assert sizes.recorded == [20, 10, 30, 15, 40]


def test_steps_are_recorded_once_for_each_size_and_again_where_memory_ran_out() -> None:
    sizes = RecordedSizes(room=50)

    class Steps(StepGraphs):
        def _record(self, batch: Batch, pool: Any) -> Any:
            return sizes._record(batch, pool)

    graphs = Steps(lambda _: torch.zeros(()), lambda: None, torch.optim.SGD([torch.zeros(1)]), torch.nn.Identity())
    graphs.record(batch_of(20))
    assert [int(graphs(batch_of(points))) for points in (10, 20, 10, 5)] == [10, 20, 10, 5]
    assert [int(graphs(batch_of(points))) for points in (30, 10, 20, 30)] == [30, 10, 20, 30]
    assert sizes.recorded == [20, 10, 5, 30, 10, 20, 30]
    with pytest.raises(torch.OutOfMemoryError, match="no room for 60"):
        graphs(batch_of(60))
    assert not graphs.replaying


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


@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"batch_size": 3, "max_points": 200}, {"batch_size": 2, "thin_to": 30}]
)
def test_the_largest_batch_of_a_run_is_known_before_it(box_dataset: str, options: dict[str, Any]) -> None:
    """Of all epochs of the run, not of the first one alone, and with thinned cases; the loader stays where it was."""
    split, thin_to = Split(box_dataset, "train", resolve_targets(["displacement"], "")), options.get("thin_to")
    loader, read = (open_loader(split, shuffle=True, seed=5, **options) for _ in range(2))
    points: list[int] = []
    for steps in range(1, 12):
        while len(points) < steps:
            points += [len(batch.pos) for batch in read]
        found = loader.read(largest_request(loader, steps, thin_to=thin_to))
        assert len(found.pos) == max(points[:steps])
        assert loader.state_dict() == open_loader(split, shuffle=True, seed=5, **options).state_dict()
    assert len(set(points)) > 1 or thin_to


def test_the_largest_batch_is_recorded_before_the_first_step(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run that begins and in one that resumes; lack of memory for it is an error that names its cases."""
    given: list[tuple[str, int]] = []

    class Steps(ComputedSteps):
        def _record(self, batch: Batch, pool: Any) -> Any:
            given.append(("recorded", len(batch.points)))
            return super()._record(batch, pool)

        def __call__(self, batch: Batch) -> torch.Tensor:
            given.append(("taken", len(batch.points)))
            return super().__call__(batch)

    for module in ("devices", "stepper"):
        monkeypatch.setattr(f"flare_model.training.{module}.check_device", lambda *_, **__: None)
    monkeypatch.setattr("flare_model.training.stepper.StepGraphs", Steps)
    monkeypatch.setattr("flare_model.training.validation.ForwardGraphs", ComputedPasses)
    recipe = Recipe(epochs=3, batch_size=2, step_graphs=True, round_points=32, precision="32-true")
    plain = run_training(box_dataset, tmp_path / "plain", recipe=replace(recipe, step_graphs=False))
    for resident in (False, True):
        given.clear()
        run = run_training(box_dataset, tmp_path / f"resident {resident}", recipe=recipe, resident=resident)
        taken = [points for what, points in given if what == "taken"]
        recorded = [points for what, points in given if what == "recorded"]
        assert given[0] == ("recorded", max(taken))
        assert len(recorded) == len(set(recorded)) > 1
        assert set(recorded) == set(taken)
        assert_same_losses(run, plain)
    monkeypatch.setattr(Steps, "_record", raise_out_of_memory)
    with pytest.raises(StepFailedError, match="recording a step of the largest batch doesn't fit into memory, with ca"):
        run_training(box_dataset, tmp_path / "none", recipe=recipe)


def raise_out_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError


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

    def _record(self, batch: Batch, pool: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.recorded.append(len(batch.points))
        return SimpleNamespace(replay=lambda batch: -batch.points.sum(), pool=pool or "pool")


def sums_of(graphs: ForwardGraphs, *sizes: int) -> list[float]:
    return [float(graphs(batch_of(points))) for points in sizes]


def test_a_size_is_recorded_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest that came is recorded first; a larger one later drops none, and where all room is taken stays out."""
    monkeypatch.setattr("flare_model.training.recorded.forward_graphs.MAX_SIZES", 5)
    graphs = Sizes()
    assert sums_of(graphs, 4, 6, 2) == [12, 18, 6]
    assert sums_of(graphs, 4, 6, 2) == [-12, -18, -6]
    assert sums_of(graphs, 4, 6, 2) == [-12, -18, -6]
    assert (graphs.computed, graphs.recorded) == ([4, 6, 2], [6, 4, 2])
    assert sums_of(graphs, 3, 8, 3, 8) == [9, 24, -9, -24]
    assert graphs.recorded == [6, 4, 2, 8, 3]
    assert sums_of(graphs, 4, 6, 2, 9, 9) == [-12, -18, -6, 27, 27]
    assert graphs.recorded == [6, 4, 2, 8, 3]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), UsageError("it reads from the host")])
def test_what_can_not_be_recorded_is_computed(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    graphs = Sizes(error)
    assert [sums_of(graphs, 4, 6) for _ in range(3)] == [[12, 18]] * 3
    (said,) = capsys.readouterr().err.splitlines()
    why = "too little memory" if isinstance(error, torch.OutOfMemoryError) else "it reads from the host"
    assert "validation isn't recorded as CUDA graphs" in said
    assert why in said


def test_validation_is_computed_once_memory_for_its_recordings_runs_out() -> None:
    graphs = Sizes()
    assert sums_of(graphs, 4, 6, 4, 6) == [12, 18, -12, -18]
    graphs.error = torch.OutOfMemoryError("none left")
    assert sums_of(graphs, 8, 8, 4, 6) == [24, 24, 12, 18]
    assert graphs.recorded == [6, 4]
