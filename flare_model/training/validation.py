"""Validation during training, and the best weights so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.data.metrics import RelativeL2
from flare_model.data.point_fields import spans
from flare_model.data.splits import Split, open_loader
from flare_model.training.devices import Fabric
from flare_model.training.recipe import Recipe
from flare_model.training.run_log import TRAINING_ERROR_NAME, VALIDATION_NAME, RunLog
from flare_model.training.settings import Settings
from flare_model.training.step_errors import errors_with_cases
from flare_model.training.stepper import Stepper
from lpbf_data.serving.loader import Loader

_MIN_POINTS: Final = 1 << 16
_MAX_CASES: Final = 64
"""Points that a batch of validation may hold in any case, and most cases of it."""


@dataclass
class BestWeights:
    """The best weights so far.

    Attributes:
        error: Mean validation error, by which they were chosen; infinite as long as no validation gave a number.
        step: Number of steps after which the model had these weights.
        errors: Relative L2 error of each target; None for a target without an error.
        weights: The weights, on the host; none before the first validation.
    """

    error: float = math.inf
    step: int = 0
    errors: dict[str, float | None] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)


def open_validation(split: Split, recipe: Recipe) -> Loader:
    """Batches of the validation split: many small cases at a time, within a bound on points.

    The bound is 65,536 points, the recipe's `max_points`, or the points of the largest case, whichever is largest.

    Every case comes exactly once, whatever the number of processes; processes don't wait for each other here.

    Args:
        split: The validation split.
        recipe: Says whether the model is compiled. A compiled model gets one case at a time, since with several it
            would compute with all points of the batch once for each case.
    """
    if recipe.compile != "off":
        return open_loader(split, uneven="keep")
    most = max([_MIN_POINTS, recipe.max_points, *split.dataset.sizes.tolist()])
    return open_loader(split, batch_size=_MAX_CASES, max_points=most, uneven="keep")


def open_training_cases(train: Split, settings: Settings) -> Loader | None:
    """Batches of training cases for validation: whole cases without augmentation, as those of the validation split.

    Args:
        train: The training split.
        settings: `judge_training` says how many of its cases, evenly spaced over all; 0 for none.
    """
    return (
        open_validation(train.evenly_chosen(settings.judge_training), settings.recipe)
        if settings.judge_training
        else None
    )


class Validation:
    """Computes errors of a model in training, and keeps its best weights.

    Args:
        settings: Settings of the run.
        fabric: The processes that train together.
        stepper: The model in training.
        loader: The validation split; None where there is none.
        training_loader: Training cases whose error is logged too, without influence on the best weights; None for none.
    """

    def __init__(
        self,
        settings: Settings,
        fabric: Fabric,
        stepper: Stepper,
        loader: Loader | None,
        training_loader: Loader | None = None,
    ) -> None:
        self.settings, self.fabric, self.stepper = settings, fabric, stepper
        self.loader, self.training_loader = loader, training_loader
        self.best = BestWeights()

    def judge(self, step: int, epoch: int, table: RunLog | None) -> bool:
        """Compute the errors on the validation split, and keep the weights if they are the best so far.

        Args:
            step: Steps done.
            epoch: Epochs done.
            table: Log that errors are written to; None in processes that write nothing.

        Returns:
            Whether the weights were kept.
        """
        errors: dict[str, float | None] = {}
        if self.loader is not None:
            found = self.errors_on(self.loader)
            means = {name: error.mean for name, error in found.items()}
            errors = {name: error if math.isfinite(error) else None for name, error in means.items()}
            mean = _mean_of(found)
            if table:
                table.write(VALIDATION_NAME, {"step": step, "epoch": epoch, "mean": mean, **means})
        else:
            mean = -step  # Without a validation split the latest is the best.
        if self.training_loader is not None:
            training_errors = self.errors_on(self.training_loader)
            if table:
                row = {"step": step, "epoch": epoch, "mean": _mean_of(training_errors)}
                table.write(TRAINING_ERROR_NAME, row | {name: error.mean for name, error in training_errors.items()})
        # As long as no validation gave a number, there is nothing to choose by, and the latest is the best.
        kept = mean < self.best.error or not math.isfinite(self.best.error)
        if kept:
            weights = {k: v.detach().cpu().clone() for k, v in self.stepper.evaluated.stored_weights().items()}
            self.best = BestWeights(mean, step, errors, weights)
        return kept

    @torch.no_grad()
    def errors_on(self, loader: Loader) -> dict[str, RelativeL2]:
        """Relative L2 error of each target over an epoch of a loader, over all ranks."""
        settings, evaluated = self.settings, self.stepper.evaluated
        totals = {t.name: RelativeL2() for t in settings.targets}
        columns, floors = spans(settings.targets), evaluated.usage.floors()
        evaluated.eval()
        with self.fabric.autocast():
            for ragged in loader:
                batch = Batch.of(ragged, settings.targets, settings.features).to(self.fabric.device)
                with errors_with_cases("validation", [batch], settings.model.class_path, self._memory_advice(batch)):
                    prediction = self.stepper.predict(evaluated, batch)
                for name, c in columns.items():
                    totals[name] += RelativeL2.of(prediction[:, c], batch.targets[:, c], batch.offsets, floors[name])
        evaluated.train()
        sums = torch.tensor([[t.total, t.cases, t.without_truth] for t in totals.values()], dtype=torch.float64)
        sums = cast("Tensor", self.fabric.all_reduce(sums.to(self.fabric.device), reduce_op="sum")).cpu()
        return {n: RelativeL2(float(row[0]), int(row[1]), int(row[2])) for n, row in zip(totals, sums, strict=True)}

    def _memory_advice(self, batch: Batch) -> str:
        """Advice where a batch of validation doesn't fit into memory: few of the recipe's options apply to it."""
        recipe, advice = self.settings.recipe, []
        if recipe.max_points > _MIN_POINTS and len(batch) > 1:
            advice.append(f"lower --recipe.max_points (to {_MIN_POINTS:,} or less)")
        if recipe.step_graphs:
            advice.append("leave out --recipe.step_graphs, whose graphs keep memory")
        advice.append("leave such large parts out of the validation split")
        return f"go on where there is more memory; else begin another run, and {', or '.join(advice)}"


def _mean_of(errors: Mapping[str, RelativeL2]) -> float:
    """Mean over the targets that have an error; infinite where none has, or where a prediction is no finite number."""
    means = [error.mean for error in errors.values() if error.cases]
    mean = sum(means) / len(means) if means else math.inf
    return mean if math.isfinite(mean) else math.inf
