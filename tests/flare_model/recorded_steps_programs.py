"""`flare_model.train --recipe.step_graphs true` on a CPU: each step that a GPU would replay is computed anew."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import flare_model.training.devices
import flare_model.training.stepper
import flare_model.training.validation
from flare_model.checkpoints.spec import ModelSpec
from flare_model.data.batches import Batch
from flare_model.train import open_splits
from flare_model.training.averaged_gradients import AveragedGradients
from flare_model.training.devices import open_fabric
from flare_model.training.recipe import Recipe
from flare_model.training.recorded.forward_graphs import ForwardGraphs
from flare_model.training.recorded.step_graphs import StepGraphs
from flare_model.training.settings import make_settings
from flare_model.training.stepper import Stepper
from flare_model.training.trainer import Trainer
from tests.flare_model.flare_support import TINY
from tests.forked import command
from tests.lpbf_data.rank_programs import report


class ComputedSteps(StepGraphs):
    """Step graphs that compute a step where a GPU would replay its recording, on the same tensors."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for group in self._optimizer.param_groups:
            group["capturable"] = False  # only GPUs need it; the step is the same without

    def _record(self, batch: Batch, pool: Any) -> Any:
        static = batch.on("cpu")

        def replay(new: Batch) -> Tensor:
            for kept, values in zip(static.tensors(), new.tensors(), strict=True):
                kept.copy_(values)
            loss = self._differentiate(static)
            if self._gradients is None:
                self._update()
            else:
                self._gradients.collect()
            self._optimizer.zero_grad(set_to_none=True)
            return loss

        return SimpleNamespace(replay=replay, pool=pool, batch=static)

    def _replay_update(self, gradients: AveragedGradients) -> None:
        gradients.assign()
        self._update()
        self._optimizer.zero_grad(set_to_none=True)


class ComputedPasses(ForwardGraphs):
    """Forward graphs that compute a pass where a GPU would replay its recording, on the same tensors."""

    def _record(self, batch: Batch, pool: Any) -> Any:
        static = batch.on("cpu")

        def replay(new: Batch) -> Tensor:
            for kept, values in zip(static.tensors(), new.tensors(), strict=True):
                kept.copy_(values)
            return self._compute(static)

        return SimpleNamespace(replay=replay, pool=pool, batch=static)


def train_until(step: str, *words: str) -> None:
    """What `train` does, but every process is killed after a step."""
    plain = Trainer._optimise

    def optimise(self: Trainer, group: Any) -> None:
        plain(self, group)
        if self.step == int(step):
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer._optimise = optimise  # type: ignore[method-assign]
    train(*words)


def gradients(data: str, out: str, loss: Any) -> None:
    """Report how far the gradients of one step, as the update receives them, differ with and without step graphs.

    The first process has three cases, the second has one, so that in a mean over cases or points it counts less.
    """
    allow_step_graphs_on_cpus()
    found = []
    for recorded in (False, True):
        recipe = Recipe(batch_size=3, loss=loss, step_graphs=recorded, round_points=32)
        settings = make_settings(ModelSpec(**TINY), ["displacement"], [], data=data, accelerator="cpu", recipe=recipe)
        trainer = Trainer(settings, *open_fabric(recipe, "cpu"), Path(out), open_splits(settings))
        batch = Batch.of(next(iter(trainer.loader)), settings.targets, ())
        if trainer.fabric.global_rank:
            end = int(batch.offsets[1])
            batch = Batch(batch.points[:end], None, batch.targets[:end], batch.offsets[:2], batch.case_ids[:1])
        stepper = trainer.stepper
        kept: list[Tensor] = []

        def keep(stepper: Stepper = stepper, kept: list[Tensor] = kept) -> None:
            parameters = stepper.surrogate.parameters()
            kept.append(torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None]))

        stepper._update = keep  # type: ignore[method-assign]
        if stepper.graphs is not None:
            stepper.graphs._update = keep
        stepper.step([batch])
        found.append(kept[0])
    report({"off": float((found[1] - found[0]).norm() / found[0].norm()), "cases": len(batch)})


def train(*words: str) -> None:
    """What `python -m flare_model.train words…` does with --recipe.step_graphs true."""
    allow_step_graphs_on_cpus()
    command("flare_model.train", *words, "--recipe.step_graphs", "true")


def allow_step_graphs_on_cpus() -> None:
    """Replace what needs a GPU, so that training with step graphs runs on CPUs."""
    for module in (flare_model.training.devices, flare_model.training.stepper):
        module.check_device = lambda *_, **__: None  # type: ignore[attr-defined]
    flare_model.training.stepper.StepGraphs = ComputedSteps  # type: ignore[misc]
    flare_model.training.validation.ForwardGraphs = ComputedPasses  # type: ignore[misc]
    torch.set_num_threads(1)
