"""Checkpoints of a run: writing and reading those to resume from, and publishing the best weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from flare_model.checkpoints.files import Description, write_checkpoint
from flare_model.training.devices import Fabric, Precision, on_first_process
from flare_model.training.settings import Settings
from flare_model.training.stepper import STEPPER_STATE, Stepper
from flare_model.training.training_checkpoint import latest_state, read_state, set_random_state, write_state
from flare_model.training.validation import BestWeights
from lpbf_data.errors import UsageError
from lpbf_data.serving.loader import Loader
from lpbf_data.serving.stream import State

_STATE: Final = (*STEPPER_STATE, "step", "epoch", "taken", "best", "precision", "loader", "random")
"""State that a run needs to resume, in addition to its weights."""


@dataclass
class Counters:
    """How far a run has come.

    Attributes:
        step: Steps of the optimiser that are done.
        epoch: Epochs that are done.
        taken: Batches of the current epoch that are done.
        judged: Step after which the model was validated last.
    """

    step: int = 0
    epoch: int = 0
    taken: int = 0
    judged: int = 0


class Checkpoints:
    """Checkpoints of one run.

    Args:
        folder: Folder of the run.
        settings: Settings of the run.
        fabric: The processes that train together; the first one writes.
        precision: The precision plugin that the fabric was made with.
        stepper: The model in training.
        loader: The loader of the training batches.
        data_digest: Digest of the data set.
    """

    def __init__(
        self, folder: Path, settings: Settings, fabric: Fabric, precision: Precision, stepper: Stepper, loader: Loader,
        *, data_digest: str,
    ) -> None:  # fmt: skip
        self.folder, self.settings, self.fabric, self.precision = folder, settings, fabric, precision
        self.stepper, self.loader, self.data_digest = stepper, loader, data_digest

    def description(self, **origin: Any) -> Description:
        """Description that a checkpoint of this run stores; `origin` is added to the origin of the weights."""
        about = {"seed": self.settings.seed, "recipe": self.settings.identity["recipe"], **origin}
        about["data_sha256"] = self.data_digest
        return Description(self.settings.model, self.stepper.surrogate.usage, about)

    def publish(self, best: BestWeights) -> None:
        """Write the best weights into the folder of the run, where users load them from."""
        about = self.description(step=best.step, validation_relative_l2=best.errors)
        if best.weights:
            on_first_process(self.fabric, lambda: write_checkpoint(self.folder, best.weights, about))

    def write(self, counters: Counters, best: BestWeights, loader: State, drawn: dict[str, Any]) -> None:
        """Write everything that is needed to resume.

        Args:
            counters: How far the run has come.
            best: The weights that were chosen so far.
            loader: State of the loader after these batches.
            drawn: `random_state` after these batches.
        """
        states = self._gather(drawn)

        def write() -> None:
            weights = self.stepper.weights()
            if best.weights:
                weights["best"] = best.weights
            rest = {
                **asdict(counters),
                **self.stepper.state(),
                "best": {"error": best.error, "step": best.step, "errors": best.errors},
                "precision": self.precision.state_dict(),
                "loader": loader,
                "random": states,
            }
            write_state(self.folder, counters.step, self.description(step=counters.step), weights, rest)

        on_first_process(self.fabric, write)

    def _gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """The random states of all ranks."""
        if self.fabric.world_size == 1:
            return [state]
        states: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(states, state)
        return states

    def resume(self) -> tuple[Counters, BestWeights] | None:
        """Load the latest checkpoint.

        Returns:
            How far the run had come, and its best weights so far; None where there is no checkpoint.

        Raises:
            StoreError: If the checkpoint can't be read.
            UsageError: If it was written by another number of processes.
        """
        folder = latest_state(self.folder)
        if folder is None:
            return None
        weights, rest = read_state(folder, _STATE)
        if len(rest["random"]) != self.fabric.world_size:
            raise UsageError(
                f"the run in {self.folder} was trained by {len(rest['random'])} processes, not by "
                f"{self.fabric.world_size}; go on with as many, or give another --out"
            )
        self.stepper.load(weights, rest)
        self.precision.load_state_dict(rest["precision"])
        self.loader.load_state_dict(rest["loader"])
        set_random_state(rest["random"][self.fabric.global_rank])
        # Earlier versions wrote none but steps whose validation was done.
        counters = Counters(rest["step"], rest["epoch"], rest["taken"], rest.get("judged", rest["step"]))
        return counters, BestWeights(**rest["best"], weights=weights.get("best", {}))
