"""Training on a GPU, where there is one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from flare_model import from_pretrained
from flare_model.data.batches import Batch
from flare_model.data.metrics import relative_l2_loss
from flare_model.layers.attention import attend_among_points, takes_meshes_together
from flare_model.layers.layout import Layout
from flare_model.predict import predict
from flare_model.spectrum import spectrum
from flare_model.training.optimizer import make_optimizer
from flare_model.training.recipe import Recipe
from flare_model.training.recorded.step_graphs import StepGraphs
from flare_model.training.run_log import read_table
from flare_model.training.step_errors import StepFailedError
from flare_model.training.trainer import Trainer
from flare_model.training.training_checkpoint import latest_state
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import (
    LEARNING,
    TINY,
    grid_model,
    losses,
    run_training,
    tiny_surrogate,
    train_in_processes,
    train_until_killed,
    write_grids,
)

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here"),
]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_every_precision_learns_on_a_gpu(box_dataset: str, tmp_path: Path, precision: Any) -> None:
    run = run_training(box_dataset, tmp_path, recipe=replace(LEARNING, precision=precision), accelerator="gpu")
    errors = read_table(run / "validation.csv")["displacement_z"]
    assert errors[-1] < 0.6 * errors[0]
    latest = latest_state(run)
    assert latest is not None
    scaler = torch.load(latest / "training.pt", weights_only=True)["precision"]
    assert bool(scaler) == (precision == "16-mixed")


@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_a_run_killed_on_a_gpu_resumes_with_its_loss_scale(box_dataset: str, tmp_path: Path) -> None:
    """With deterministic kernels losses in 16 bits and the loss scale are exactly the same."""
    recipe = Recipe(epochs=5, accumulate=2, ema_decay=0.8, precision="16-mixed", deterministic=True)
    whole = run_training(box_dataset, tmp_path / "whole", recipe=recipe, checkpoint_every=3)
    train_until_killed(box_dataset, tmp_path / "cut", 5, recipe, checkpoint_every=3)
    cut = run_training(box_dataset, tmp_path / "cut", recipe=recipe, checkpoint_every=3)
    states = [latest_state(folder) for folder in (whole, cut)]
    scales = [torch.load(s / "training.pt", weights_only=True)["precision"] for s in states if s is not None]
    assert scales[0] == scales[1]
    assert scales[0]["_growth_tracker"] > 0
    assert losses(cut) == losses(whole)


def test_cuda_graphs_give_the_same_losses(box_dataset: str, tmp_path: Path) -> None:
    recipes = [
        Recipe(epochs=2, precision="32-true", round_points=64, compile=mode) for mode in ("off", "reduce-overhead")
    ]
    runs = [run_training(box_dataset, tmp_path / r.compile, recipe=r, accelerator="gpu") for r in recipes]
    for (_, a, _), (_, b, _) in zip(losses(runs[1]), losses(runs[0]), strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-3)


@pytest.mark.parametrize("name", ["FlarePlusPlus", "Transformer", "Transolver"])
def test_compared_models_are_recorded_in_16_bits(box_dataset: str, tmp_path: Path, name: str) -> None:
    sizes = {"channels": 16, "num_blocks": 2, "num_heads": 2}
    model = {"class_path": name, "init_args": {"config": sizes}}
    recipe = replace(LEARNING, batch_size=3, precision="bf16-mixed")
    recipes = {"plain": recipe, "graphs": replace(recipe, step_graphs=True, round_points=32)}
    runs = {
        name: run_training(box_dataset, tmp_path / name, model, recipe=r, accelerator="gpu")
        for name, r in recipes.items()
    }
    plain, graphs = (losses(run) for run in runs.values())
    assert [float(loss) for _, loss, _ in graphs] == pytest.approx([float(loss) for _, loss, _ in plain], rel=2e-2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["Flare", "Transformer", "Transolver", "GridTransolver"])
def test_every_model_is_recorded_on_grids(tmp_path: Path, name: str, precision: Any) -> None:
    """With `gradient_weight`, and a smaller last batch of each epoch."""
    data = write_grids(tmp_path)
    recipe = replace(LEARNING, batch_size=4, precision=precision, gradient_weight=0.1)
    recipes = {"plain": recipe, "graphs": replace(recipe, step_graphs=True)}
    runs = {
        way: run_training(data, tmp_path / way, grid_model(name), recipe=r, accelerator="gpu", resident=True)
        for way, r in recipes.items()
    }
    plain, graphs = ([float(loss) for _, loss, _ in losses(run)] for run in runs.values())
    assert graphs == pytest.approx(plain, rel=2e-3 if precision == "32-true" else 2e-2)


def test_arrays_and_tensors_of_the_cpu_are_moved_to_the_gpu() -> None:
    """Single, joined and padded meshes."""
    surrogate = tiny_surrogate()
    points = np.random.default_rng(0).uniform(-20, 20, (12, 3))
    given: list[tuple[Any, ...]] = [
        (points,),
        (torch.from_numpy(points), None, torch.tensor([0, 5, 12])),
        (points.reshape(2, 6, 3), None, None, np.ones((2, 6), bool)),
    ]
    wanted = [surrogate(*one) for one in given]
    surrogate = surrogate.cuda()
    for one, here in zip(given, wanted, strict=True):
        found = surrogate(*one)
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), here, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("width", [1, 3])
def test_losses_add_exactly_and_in_one_order_on_a_gpu(width: int) -> None:
    """Twenty million points and small cases: the loss of the CPU, and the same bits when repeated."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(20_000_000, width, generator=generator)
    prediction, offsets = 1.1 * truth + 0.01, torch.tensor([0, 1, 700, 19_000_000, 20_000_000])
    wanted = relative_l2_loss(prediction, truth, offsets).item()
    found = []
    for _ in range(2):
        leaf = prediction.cuda().requires_grad_()
        loss = relative_l2_loss(leaf, truth.cuda(), offsets)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    assert found[0][0].item() == pytest.approx(wanted, rel=1e-9)
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


def test_meshes_in_one_attention_call_give_what_each_gives_alone() -> None:
    sizes = (1, 130, 777, 64)
    torch.manual_seed(0)
    whole = [torch.randn(sum(sizes), 3, 16, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    *inputs, gradient = whole
    layout = Layout.of(whole[0].flatten(1), torch.tensor([0, *itertools.accumulate(sizes)]), None)
    assert takes_meshes_together(whole[0])
    results = []
    for dtype in (torch.bfloat16, torch.float64):  # in float64 every mesh has a call of its own
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        out = attend_among_points(*leaves, replace(layout, padding=None))
        results.append([out, *torch.autograd.grad(out, leaves, gradient.to(dtype))])
    for found, truth in zip(*results, strict=True):
        assert (found - truth).norm() < 0.01 * truth.norm()


@pytest.mark.parametrize("loss", ["relative_l2", "mse"])
def test_steps_recorded_as_graphs_have_the_same_losses(box_dataset: str, tmp_path: Path, loss: Any) -> None:
    """Several sizes, the last batch of an epoch smaller, and a schedule that changes the rate in every step."""
    recipe = replace(LEARNING, epochs=3, batch_size=3, precision="32-true", loss=loss)
    recipes = {"plain": recipe, "graphs": replace(recipe, step_graphs=True, round_points=32)}
    runs = {
        name: run_training(box_dataset, tmp_path / name, recipe=r, accelerator="gpu") for name, r in recipes.items()
    }
    plain, graphs = (losses(run) for run in runs.values())
    assert [float(rate) for _, _, rate in graphs] == pytest.approx([float(rate) for _, _, rate in plain], rel=1e-6)
    assert [float(loss) for _, loss, _ in graphs] == pytest.approx([float(loss) for _, loss, _ in plain], rel=2e-3)
    # Validation is recorded the second time; the errors are those of weights that changed since.
    plain, graphs = (read_table(run / "validation.csv")["displacement_z"] for run in runs.values())
    assert len(set(plain)) == len(plain) == 3
    assert graphs == pytest.approx(plain, rel=2e-3)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("resident", [False, True])
def test_sizes_are_recorded_once_the_largest_first_and_losses_stay(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    """The same numbers, to the last bit, as where sizes are recorded when they come."""
    recorded: list[int] = []
    record, first = StepGraphs._record, Trainer._record_largest_batch

    def counted(self: StepGraphs, batch: Batch, pool: Any) -> Any:
        recorded.append(len(batch.points))
        return record(self, batch, pool)

    monkeypatch.setattr(StepGraphs, "_record", counted)
    recipe = replace(LEARNING, epochs=4, batch_size=2, step_graphs=True, round_points=32, deterministic=True)
    found = []
    for way, before in (("first", first), ("as they come", lambda _: None)):
        recorded.clear()
        monkeypatch.setattr(Trainer, "_record_largest_batch", before)
        run = run_training(
            box_dataset, tmp_path / way, recipe=recipe, resident=resident, symmetries=True, accelerator="gpu"
        )
        found.append((losses(run), read_table(run / "validation.csv")["mean"]))
        assert len(recorded) == len(set(recorded)) > 2
        assert (recorded[0] == max(recorded)) or way != "first"
    assert found[0] == found[1]


def test_recordings_stay_right_when_a_larger_size_comes() -> None:
    """Sizes rise, and earlier recordings are replayed after larger ones came to the same memory: all as computed."""
    torch.manual_seed(0)
    device = torch.device("cuda")
    models = [torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.GELU(), torch.nn.Linear(64, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    trained = []
    for number, model in enumerate(models):
        optimizer = make_optimizer(model.to(device), Recipe(), device, recorded=True)

        def differentiate(batch: Batch, model: torch.nn.Module = model) -> Tensor:
            loss = (model(batch.points) - batch.targets).square().mean()
            loss.backward()
            return loss.detach()

        graphs, generator = StepGraphs(differentiate, optimizer.step, optimizer, model), torch.Generator()
        generator.manual_seed(1)
        sizes = (500, 2_000, 500, 90_000, 2_000, 700_000, 500, 90_000, 2_000, 700_000)
        batches = [
            Batch(points.cuda(), None, points[:, :1].cuda(), torch.tensor([0, len(points)]), ("case",))
            for points in (torch.rand(size, 3, generator=generator) for size in sizes)
        ]
        if number:  # the largest first
            graphs.record(batches[5])
        recorded = len(set(sizes))
        trained.append([float(graphs(batch)) for batch in batches])
        assert len(graphs._recordings._kept) == recorded
    assert trained[0] == pytest.approx(trained[1], rel=1e-5)


def test_recordings_make_room_for_one_that_finds_none() -> None:
    """Lack of memory in the pass before a recording, and within one: others are dropped, and training goes on.

    A smaller batch is recorded after the largest one.
    """
    torch.manual_seed(0)
    device, model = torch.device("cuda"), torch.nn.Linear(3, 1).cuda()
    optimizer = make_optimizer(model, Recipe(), device, recorded=True)
    kept, size = torch.cuda.memory_reserved(), 1 << 28
    fails: list[bool] = []

    def differentiate(batch: Batch) -> Tensor:
        if fails and fails.pop():
            torch.empty(1 << 50, device=device)
        loss = torch.zeros(size, device=device).sum() + model(batch.points).mean()
        loss.backward()
        return loss.detach()

    graphs = StepGraphs(differentiate, optimizer.step, optimizer, model)
    batches = [
        Batch(torch.rand(n, 3, device=device), None, torch.rand(n, 1, device=device), torch.tensor([0, n]), ("case",))
        for n in (10, 20, 30, 5)
    ]
    # Which passes fail, last first: the first is that before a recording, the second is recorded.
    for batch, failing, sizes in zip(
        batches, ([], [True], [True, False], [True]), ([10], [20], [30], [30, 5]), strict=True
    ):
        fails[:] = failing
        wanted = float(model(batch.points).detach().mean())
        assert float(graphs(batch)) == pytest.approx(wanted, rel=1e-5)
        assert not fails
        assert list(graphs._recordings._kept) == [(points, 2) for points in sizes]
    graphs._recordings.clear()
    assert torch.cuda.memory_reserved() - kept < 4 * size


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="takes two GPUs")
@pytest.mark.parametrize("loss", ["relative_l2", "mse"])
def test_steps_of_two_gpus_recorded_as_graphs_have_the_same_losses(box_dataset: str, tmp_path: Path, loss: str) -> None:
    """Gradients are averaged between the recorded passes and the recorded update, as `DistributedDataParallel` does."""
    options = {"epochs": 6, "batch_size": 3, "precision": "32-true", "loss": loss, "round_points": 32}
    words = {f"recipe.{name}": value for name, value in options.items()}
    words |= {f"model.config.{name}": value for name, value in TINY["init_args"]["config"].items()}
    for way in ("false", "true"):
        ended, said = train_in_processes(
            1, 2, box_dataset, tmp_path / way, accelerator="gpu", **words, **{"recipe.step_graphs": way}
        )
        assert not any(ended), said
    launched, recorded = ([float(loss) for _, loss, _ in losses(tmp_path / way)] for way in ("false", "true"))
    assert recorded == pytest.approx(launched, rel=2e-3)
    assert recorded[-1] < recorded[0]


def test_a_killed_run_with_step_graphs_resumes(box_dataset: str, tmp_path: Path) -> None:
    recipe = Recipe(epochs=5, ema_decay=0.8, precision="bf16-mixed", step_graphs=True, round_points=64)
    whole = run_training(box_dataset, tmp_path / "whole", recipe=recipe, checkpoint_every=3)
    train_until_killed(box_dataset, tmp_path / "cut", 5, recipe, checkpoint_every=3)
    cut = run_training(box_dataset, tmp_path / "cut", recipe=recipe, checkpoint_every=3)
    pairs = list(zip(losses(cut), losses(whole), strict=True))
    # PyTorch's own kernels sum gradients in any order on a GPU, unless --recipe.deterministic is set.
    assert all(float(a) == pytest.approx(float(b), rel=5e-3) for (_, a, _), (_, b, _) in pairs)
    assert [rate for (_, _, rate), _ in pairs] == [rate for _, (_, _, rate) in pairs]


def test_a_model_that_reads_numbers_from_the_gpu_can_not_be_recorded(box_dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be recorded as a CUDA graph, which must not"):
        run_training(box_dataset, tmp_path, model=READING, recipe=Recipe(epochs=1, step_graphs=True), accelerator="gpu")
    assert torch.rand(3, device="cuda").isfinite().all()  # the process goes on without recording anything


class Reading(torch.nn.Module):
    """Reads a number from the device in every pass."""

    def __init__(self, in_dim: int = 3, out_dim: int = 1) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(in_dim, out_dim)

    def forward(self, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        """[ΣN, 3] to [ΣN, 1]."""
        out: Tensor = self.linear(points * (1.0 + 0.0 * float(points.sum())))
        return out


READING = {"class_path": "tests.flare_model.test_flare_gpu.Reading", "init_args": {}}


def test_spectra_on_a_gpu_are_those_of_the_cpu(box_dataset: str, trained_run: Path, tmp_path: Path) -> None:
    found = []
    for accelerator in ("cpu", "gpu"):
        out = tmp_path / accelerator
        assert spectrum(str(trained_run), box_dataset, out=str(out), accelerator=accelerator) == 0
        found.append(pq.read_table(out / "eigenvalues.parquet")["eigenvalue"].to_numpy())
    np.testing.assert_allclose(found[1], found[0], atol=1e-3)


def test_a_part_too_large_for_the_gpu_names_its_case(box_dataset: str, tmp_path: Path) -> None:
    """Only a hundredth of the GPU's memory may be used."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        words = r"step 1 of the training doesn't fit into memory, with case 1000.*: lower --recipe.batch_size"
        with pytest.raises(StepFailedError, match=words):
            run_training(box_dataset, tmp_path, LARGE, recipe=Recipe(epochs=1), accelerator="gpu")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


class Large(Reading):
    """Allocates 4 GiB in training."""

    def forward(self, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        """[ΣN, 3] to [ΣN, 1]."""
        if self.training:
            torch.empty(1 << 30, device=points.device)
        return super().forward(points, features, offsets)


LARGE = {"class_path": "tests.flare_model.test_flare_gpu.Large", "init_args": {}}


def test_a_model_trained_with_kernels_predicts_on_a_cpu(box_dataset: str, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, precision="bf16-mixed", mixer="triton")
    run = run_training(box_dataset, tmp_path / "run", recipe=recipe, accelerator="gpu")
    assert from_pretrained(run)(torch.rand(30, 3)).isfinite().all()
    assert predict(str(run), [box_dataset], out=str(tmp_path / "out"), pictures=False, accelerator="cpu") == 0
