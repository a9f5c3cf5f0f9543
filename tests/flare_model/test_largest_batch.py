"""The largest batch of a run: known before the first step, and recorded first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_model.checkpoints.spec import ModelSpec
from flare_model.data.batches import Batch
from flare_model.data.point_fields import resolve_targets
from flare_model.data.splits import Split, open_loader
from flare_model.train import open_splits
from flare_model.training.devices import open_fabric
from flare_model.training.recipe import Recipe
from flare_model.training.recorded.largest_batch import largest_request
from flare_model.training.settings import make_settings
from flare_model.training.step_errors import StepFailedError
from flare_model.training.trainer import Trainer
from lpbf_data.serving.loader import Loader
from tests.flare_model.flare_support import TINY, assert_same_losses, run_training
from tests.flare_model.recorded_steps_programs import ComputedPasses, ComputedSteps


@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"batch_size": 3, "max_points": 200}, {"batch_size": 2, "thin_to": 48}]
)
@pytest.mark.parametrize("ranks", [(0, 1), (1, 2)])
def test_the_largest_batch_of_a_run_is_known_before_it(
    box_dataset: str, options: dict[str, Any], ranks: tuple[int, int]
) -> None:
    """Of all epochs of the run, not of the first one alone, and with thinned cases; the loader stays where it was."""
    loader, read, new = (open_train(box_dataset, ranks=ranks, **options) for _ in range(3))
    points: list[int] = []
    for steps in range(1, 12):
        while len(points) < steps:
            points += [len(batch.pos) for batch in read]
        found = loader.read(largest_request(loader, steps, thin_to=options.get("thin_to")))
        assert len(found.pos) == max(points[:steps])
        assert loader.state_dict() == new.state_dict()
    assert len(set(points)) > 1


def open_train(data: str, **options: Any) -> Loader:
    """The cases of training in a fixed order; where `thin_to` is 48, the largest batch of 4 is another than stored."""
    split = Split(data, "train", resolve_targets(["displacement"], ""))
    return open_loader(split, shuffle=True, seed=5, **options)


def test_the_largest_batch_is_another_one_where_cases_are_thinned(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some cases have fewer points than are kept, and some have more; a trainer counts the points that are kept."""
    loader = open_train(box_dataset, batch_size=2, thin_to=48)
    sizes = loader.dataset.sizes
    assert sizes.min() < 48 < sizes.max()
    stored, thinned = (largest_request(loader, 4, thin_to=kept) for kept in (None, 48))
    points = [len(loader.read(request).pos) for request in (stored, thinned)]
    assert points[0] < points[1]
    for module in ("devices", "stepper"):
        monkeypatch.setattr(f"flare_model.training.{module}.check_device", lambda *_, **__: None)
    monkeypatch.setattr("flare_model.training.stepper.StepGraphs", ComputedSteps)
    monkeypatch.setattr("flare_model.training.validation.ForwardGraphs", ComputedPasses)
    recipe = Recipe(epochs=1, batch_size=2, step_graphs=True, round_points=32, precision="32-true")
    settings = make_settings(
        ModelSpec(**TINY), ["displacement"], [], data=box_dataset, accelerator="cpu", recipe=recipe, thin_to=48, seed=5
    )
    trainer = Trainer(settings, *open_fabric(recipe, "cpu"), tmp_path, open_splits(settings))
    assert trainer.steps == 4
    assert trainer._largest == thinned


@pytest.mark.parametrize("uneven", ["drop", "pad", "keep"])
@pytest.mark.parametrize("batch", [{"batch_size": 1}, {"batch_size": 3}, {"batch_size": 2, "max_points": 110}])
def test_batches_are_counted_as_they_are_requested(box_dataset: str, uneven: Any, batch: dict[str, int]) -> None:
    """On every rank and in every epoch, with what is left at the end of an epoch."""
    for ranks in (1, 2, 3):
        for rank in range(ranks):
            loader, other = (open_train(box_dataset, uneven=uneven, ranks=(rank, ranks), **batch) for _ in range(2))
            for epoch in (0, 1, 4):
                other.set_epoch(epoch)
                requests = list(other.requests())
                assert [loader.request(epoch, number) for number in range(len(requests))] == requests
                points = [sum(loader.dataset.sizes[list(request.cases)]) for request in requests]
                assert loader.points_of_batches(epoch, loader.dataset.sizes).tolist() == points
                with pytest.raises(IndexError, match=f"epoch {epoch} has no batch number {len(requests)}"):
                    loader.request(epoch, len(requests))


def test_of_a_very_long_run_only_the_beginning_is_looked_at(box_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = open_train(box_dataset, batch_size=2)
    of_epochs = [largest_request(loader, 4 * epochs) for epochs in (1, 2, 1_000)]
    assert len({request.epoch for request in of_epochs}) > 1
    for name, value in (("MAX_BATCHES", 8), ("MAX_EPOCHS", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(f"flare_model.training.recorded.largest_batch.{name}", value)
            assert largest_request(loader, 4_000) == of_epochs[1]


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
    where: dict[str, Any] = {"accelerator": "cpu"}  # where steps are computed in place of recorded
    plain = run_training(box_dataset, tmp_path / "plain", recipe=replace(recipe, step_graphs=False), **where)
    for resident in (False, True):
        given.clear()
        run = run_training(box_dataset, tmp_path / f"resident {resident}", recipe=recipe, resident=resident, **where)
        taken = [points for what, points in given if what == "taken"]
        recorded = [points for what, points in given if what == "recorded"]
        assert given[0] == ("recorded", max(taken))
        assert len(recorded) == len(set(recorded)) > 1
        assert set(recorded) == set(taken)
        assert_same_losses(run, plain)
    monkeypatch.setattr(Steps, "_record", raise_out_of_memory)
    with pytest.raises(StepFailedError, match="recording a step of the largest batch doesn't fit into memory, with ca"):
        run_training(box_dataset, tmp_path / "none", recipe=recipe, **where)


def raise_out_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError
