"""`flare_model.train --recipe.step_graphs true` on a CPU: what a GPU would record is done anew each time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import flare_model.training.devices
import flare_model.training.stepper
from flare_model.data.batches import Batch
from flare_model.training.averaged_gradients import AveragedGradients
from flare_model.training.step_graphs import StepGraphs
from tests.forked import command


class PlayedSteps(StepGraphs):
    """Steps that are done where they would be replayed, on the same tensors."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for group in self._optimizer.param_groups:
            group["capturable"] = False  # a CPU takes the same step

    def _record(self, batch: Batch) -> Any:
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

        return SimpleNamespace(replay=replay)

    def _replay_update(self, gradients: AveragedGradients) -> None:
        gradients.assign()
        self._update()
        self._optimizer.zero_grad(set_to_none=True)


def train(*words: str) -> None:
    """What `python -m flare_model.train words…` does with --recipe.step_graphs true."""
    for module in (flare_model.training.devices, flare_model.training.stepper):
        module.check_device = lambda *_, **__: None  # type: ignore[attr-defined]
    flare_model.training.stepper.StepGraphs = PlayedSteps  # type: ignore[misc]
    torch.cuda.synchronize = lambda: None  # type: ignore[assignment]
    torch.set_num_threads(1)
    command("flare_model.train", *words, "--recipe.step_graphs", "true")
