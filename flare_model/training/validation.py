"""Validation during training, and the best weights so far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.data.metrics import RelativeL2, has_truth, relative_l2
from flare_model.data.point_fields import spans
from flare_model.data.splits import Split, open_loader
from flare_model.training.devices import Fabric
from flare_model.training.recipe import Recipe
from flare_model.training.recorded.forward_graphs import ForwardGraphs
from flare_model.training.resident_cases import ResidentCases
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


class _Cases(NamedTuple):
    """What `errors_on` takes."""

    loader: Loader
    resident: ResidentCases | None


class Validation:
    """Computes errors of a model in training, and keeps its best weights.

    Args:
        settings: Settings of the run; `judge_training` says of how many training cases, evenly spaced over all, the
            error is logged too, without influence on the best weights, and `resident` whether the cases of validation
            stay on the device too.
        fabric: The processes that train together.
        stepper: The model in training.
        validation: The validation split; None where there is none.
        train: The training split.

    Raises:
        UsageError: If the device has no room for resident cases.
    """

    def __init__(
        self, settings: Settings, fabric: Fabric, stepper: Stepper, validation: Split | None, train: Split
    ) -> None:
        self.settings, self.fabric, self.stepper = settings, fabric, stepper
        judged = settings.judge_training
        self.cases = None if validation is None else self._open(validation)
        self.training_cases = self._open(train.evenly_chosen(judged)) if judged else None
        self.best = BestWeights()
        self._graphs = ForwardGraphs(self._case_errors) if stepper.recorded else None

    def _open(self, split: Split) -> _Cases:
        settings = self.settings
        resident = ResidentCases.of(split, settings, self.fabric.device) if settings.resident else None
        return _Cases(open_validation(split, settings.recipe), resident)

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
        if self.cases is not None:
            found = self.errors_on(*self.cases)
            means = {name: error.mean for name, error in found.items()}
            errors = {name: error if math.isfinite(error) else None for name, error in means.items()}
            mean = _mean_of(found)
            if table:
                table.write(VALIDATION_NAME, {"step": step, "epoch": epoch, "mean": mean, **means})
        else:
            mean = -step  # Without a validation split the latest is the best.
        if self.training_cases is not None:
            training_errors = self.errors_on(*self.training_cases)
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
    def errors_on(self, loader: Loader, resident: ResidentCases | None = None) -> dict[str, RelativeL2]:
        """Relative L2 error of each target over an epoch of a loader, over all ranks.

        Args:
            loader: Gives whole cases, or their order alone.
            resident: The same cases on the device, which then aren't read.
        """
        settings, evaluated = self.settings, self.stepper.evaluated
        totals = {t.name: RelativeL2() for t in settings.targets}
        evaluated.eval()
        for batch in self._batches(loader, resident):
            with errors_with_cases("validation", [batch], settings.model.class_path, self._memory_advice(batch)):
                errors, defined = self._errors_of(batch).cpu()  # errors of the device show here
            for name, row, counts in zip(totals, errors, defined.bool(), strict=True):
                totals[name] += RelativeL2.of_cases(row, counts)
        evaluated.train()
        sums = torch.tensor([[t.total, t.cases, t.without_truth] for t in totals.values()], dtype=torch.float64)
        sums = cast("Tensor", self.fabric.all_reduce(sums.to(self.fabric.device), reduce_op="sum")).cpu()
        return {n: RelativeL2(float(row[0]), int(row[1]), int(row[2])) for n, row in zip(totals, sums, strict=True)}

    def _batches(self, loader: Loader, resident: ResidentCases | None) -> Iterator[Batch]:
        if resident is not None:
            yield from loader.each(resident.batch)
            return
        for ragged in loader:
            yield Batch.of(ragged, self.settings.targets, self.settings.features).to(self.fabric.device)

    def _errors_of(self, batch: Batch) -> Tensor:
        """`_case_errors` of the cases of a batch, recorded where training steps are."""
        if self._graphs is None:
            return self._case_errors(batch)
        return self._graphs(self.stepper.padded_for_graph(batch))[:, :, : len(batch)]

    def _case_errors(self, batch: Batch) -> Tensor:
        """Relative L2 error of each target and mesh, and 1 where it is defined, else 0: [2, T, B] float64."""
        evaluated, targets = self.stepper.evaluated, self.settings.targets
        with self.fabric.autocast():
            prediction = self.stepper.predict(evaluated, batch)
        floors, rows = evaluated.usage.floors(), []
        for name, c in spans(targets).items():
            truth = batch.targets[:, c]
            errors = relative_l2(prediction[:, c], truth, batch.offsets)
            defined = has_truth(truth, batch.offsets, floors[name])
            rows.append(torch.stack([errors, defined.double()]))
        return torch.stack(rows, dim=1)

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
