"""One step of training: from batches to a loss, gradients, and weights that have changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flare_model.checkpoints.files import Usage
from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.batches import Batch
from flare_model.data.envelope import merge_envelopes
from flare_model.data.splits import Split, normalisation_of
from flare_model.layers.mixer import mix_by
from flare_model.models.contract import check_contract
from flare_model.models.divided import divided
from flare_model.models.mesh_model import MeshModel
from flare_model.training.averaged_gradients import AveragedGradients, WithPrecision, same_weights
from flare_model.training.devices import Fabric, in_process_group
from flare_model.training.divided_meshes import open_ranks, waiting_briefly
from flare_model.training.initial_weights import initial_normalisation, load_initial_checkpoint
from flare_model.training.loss import Shares, TrainingLoss
from flare_model.training.optimizer import make_optimizer, make_schedule
from flare_model.training.recipe import Loss, check_device
from flare_model.training.recorded.step_graphs import StepGraphs
from flare_model.training.settings import Settings
from lpbf_data.errors import UsageError

STEPPER_STATE: Final = ("optimizer", "schedule", "averaged")
"""State to resume from, in addition to weights."""

_ema: Any = get_ema_multi_avg_fn  # It has no annotations.


class Stepper:
    """A model in training, with its optimiser, schedule, loss, and average of weights.

    Args:
        settings: Settings of the run.
        fabric: Devices, processes, precision.
        train: The split that is trained on.
        steps: Steps of the run.

    Attributes:
        surrogate: The model with its normalisation.
        evaluated: The surrogate that is validated and published: `surrogate`, or the exponential moving average of it.

    Raises:
        UsageError: If the model breaks the contract, or options don't go together.
    """

    def __init__(self, settings: Settings, fabric: Fabric, train: Split, steps: int) -> None:
        self.settings, self.recipe, self.fabric = settings, settings.recipe, fabric
        self._step_complete = True
        recipe = self.recipe
        check_device(recipe, on_gpu=fabric.device.type == "cuda")
        self.recorded = recipe.step_graphs
        initial = load_initial_checkpoint(settings.init, settings.model.class_path) if settings.init else None
        measured = normalisation_of(train, settings.targets, settings.features)
        usage = Usage(
            measured if initial is None else initial_normalisation(initial, measured, settings),
            tuple(t.name for t in settings.targets),
            tuple(f.name for f in settings.features),
            train.envelope if initial is None else merge_envelopes(initial.usage.envelope, train.envelope),
            settings.point_schema,
        )
        self.objective = TrainingLoss(settings, usage.floors())
        model = self._make_model(usage)
        self._grid_points = self._points_of_grids(model)
        if initial is not None:
            model.load_state_dict(initial.model.state_dict())
        self.ranks = open_ranks(settings, model)
        self.surrogate = self.evaluated = Surrogate(model, usage, settings.model)
        self.optimizer = make_optimizer(self.surrogate, recipe, fabric.device, recorded=self.recorded)
        self.schedule = make_schedule(self.optimizer, recipe, steps)
        self.wrapped, self.wrapped_optimizer, self._gradients = self._wrap()
        self.average = None
        if recipe.ema_decay:
            self.average = AveragedModel(model, multi_avg_fn=_ema(recipe.ema_decay), use_buffers=True)
            self.evaluated = Surrogate(self.average.module, usage, settings.model).to(fabric.device)
        if recipe.compile != "off":
            model.compile(mode=None if recipe.compile == "default" else recipe.compile, dynamic=True)
        self._shares: dict[Loss, Tensor] = {}
        self.graphs = self._open_graphs(model) if self.recorded else None

    def _wrap(self) -> tuple[Any, Any, AveragedGradients | None]:
        """The surrogate under the run's precision and the optimiser; of several processes, with the same weights.

        What averages gradients over processes is `DistributedDataParallel` around the surrogate, or the third value.
        """
        if not (self.recorded and in_process_group(self.fabric)):
            return (*self.fabric.setup(self.surrogate, self.optimizer), None)
        self.surrogate.to(self.fabric.device)
        same_weights(self.surrogate)
        optimizer = self.fabric.setup_optimizers(self.optimizer)
        return WithPrecision(self.surrogate, self.fabric), optimizer, AveragedGradients(self.surrogate.model)

    def _open_graphs(self, model: torch.nn.Module) -> StepGraphs:
        """What records steps; of several processes, with a batch's share of a step as a number on the device."""
        if self._gradients is None:
            return StepGraphs(self._differentiate, self._update, self.optimizer, model)
        self._shares = {kind: torch.ones((), device=self.fabric.device) for kind in self.objective.kinds}
        differentiate = partial(self._differentiate, shares=self._shares)
        return StepGraphs(differentiate, self._update, self.optimizer, model, self._gradients)

    def _make_model(self, usage: Usage) -> torch.nn.Module:
        """The model of the settings, after it was checked against the contract."""
        model = self.settings.model.build()
        mix_by(model, self.recipe.mixer)
        self._check_grid(model)
        self._check_contract(model, usage)
        if self.recipe.activation_checkpointing:
            if not hasattr(model, "activation_checkpointing"):
                raise UsageError(
                    f"{self.settings.model.class_path} has no attribute activation_checkpointing to switch on"
                )
            model.activation_checkpointing = True  # type: ignore[assignment]
        return model

    def _check_grid(self, model: torch.nn.Module) -> None:
        """Refuse a model for grids where cases aren't grids, or are grids of another size."""
        grid, points = getattr(model, "grid", None), self.settings.point_schema
        if grid is None:
            return
        name, wanted = self.settings.model.class_path, f"grids of {grid.rows} × {grid.columns} points alone"
        if points is None or points.grid is None:
            raise UsageError(
                f"the model {name} takes {wanted}, and {self.settings.data} holds none; take another model"
            )
        if points.grid != (grid.rows, grid.columns):
            has = " × ".join(map(str, points.grid))
            raise UsageError(
                f"the model {name} takes {wanted}, and {self.settings.data} holds grids of {has}; set grid_rows and "
                "grid_columns of the model to these"
            )
        if self.settings.thin_to:
            raise UsageError(f"the model {name} takes {wanted}; leave out --thin_to")
        if self.recipe.multiple and not self._points_of_grids(model):
            raise UsageError(
                f"the model {name} takes {wanted}, and --recipe.round_points, or --recipe.step_graphs with a model "
                "that isn't of this package, fill batches up by a mesh that is none; leave them out"
            )

    def _points_of_grids(self, model: torch.nn.Module) -> int:
        """Points of each case where all are grids of one size and the model takes them as a batch [B, N, …]; else 0.

        Such batches have one size: neither offsets nor padding for a recording are needed.
        """
        points = self.settings.point_schema
        whole = not (self.settings.thin_to or self.recipe.round_points)
        if points is None or points.grid is None or not whole or not isinstance(model, MeshModel):
            return 0
        return math.prod(points.grid)

    def _check_contract(self, model: torch.nn.Module, usage: Usage) -> None:
        """Check the model on the host, or on the GPU where it runs on GPUs alone."""
        features, predicted = len(usage.normalisation.feature_mean), len(usage.normalisation.target_mean)
        check = partial(
            check_contract, model, features, predicted, name=self.settings.model.class_path,
            all_used=self.fabric.world_size > 1, coordinates=len(usage.normalisation.point_scale),
        )  # fmt: skip
        if getattr(model, "grid", None) is not None:  # it is checked on whole grids, which take long on the host
            model.to(self.fabric.device)
        try:
            check()
        except UsageError:
            if self.fabric.device.type == "cpu":
                raise
            model.to(self.fabric.device)
            check()

    @property
    def between_steps(self) -> bool:
        """Whether weights, optimiser, schedule and average are all those after the same step."""
        return self._step_complete and not (self.graphs and self.graphs.replaying)

    def step(self, group: list[Batch]) -> tuple[Tensor, float | Tensor]:
        """One step of the optimiser on one or more batches.

        Args:
            group: The batches, on the device.

        Returns:
            This process's part of the loss, on the device, whose mean over the processes is the loss of all batches
            together; and the learning rate of the step.
        """
        loss = self._step_in_graphs(self.graphs, group[0]) if self.graphs else self._step_eagerly(group)
        self._step_complete = False
        rate: float | Tensor = self.schedule.get_last_lr()[0]
        if self.schedule.last_epoch + 1 < self.schedule.total_steps:
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.surrogate.model)
        self._step_complete = True
        return loss, rate

    def _step_in_graphs(self, graphs: StepGraphs, batch: Batch) -> Tensor:
        """Loss, gradients and the optimiser's step, recorded for batches padded to one of few sizes."""
        for kind, count in self.objective.counts(batch).items() if self._shares else ():
            self._shares[kind].fill_(count).div_(self._mean_over_processes(count))
        return graphs(self.padded_for_graph(batch))

    def record(self, batch: Batch) -> None:
        """Record the step of a batch's size without taking it, where steps are recorded.

        Args:
            batch: A batch of that size, on the device.

        Raises:
            UsageError: If the step can't be recorded.
            torch.OutOfMemoryError: If there is too little memory.
        """
        if self.graphs is not None:
            self.graphs.record(self.padded_for_graph(batch))

    def padded_for_graph(self, batch: Batch) -> Batch:
        """A batch padded to one of few sizes; grids of one size have that already."""
        return batch if self._grid_points else batch.filled(self.recipe.multiple)

    def _step_eagerly(self, group: list[Batch]) -> Tensor:
        """Loss, gradients and the optimiser's step, launched one by one."""
        with nullcontext() if self.ranks is None else waiting_briefly():
            return self._accumulate_and_update(group)

    def _accumulate_and_update(self, group: list[Batch]) -> Tensor:
        counts = [self.objective.counts(batch) for batch in group]
        kinds = self.objective.kinds
        totals = {kind: self._mean_over_processes(sum(count[kind] for count in counts)) for kind in kinds}
        losses = []
        for number, (batch, count) in enumerate(zip(group, counts, strict=True), start=1):
            shares: dict[Loss, float | Tensor] = {kind: count[kind] / totals[kind] for kind in kinds}
            with self.fabric.no_backward_sync(self.wrapped, enabled=number < len(group)):
                losses.append(self._differentiate(batch if self.ranks is None else batch.shared(self.ranks), shares))
        self._update()
        self.wrapped_optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).sum()

    def _mean_over_processes(self, count: int) -> float | Tensor:
        """Denominator of shares: gradients are averaged over processes, which may have different counts."""
        if self.fabric.world_size == 1:
            return float(count)
        total = torch.full((), float(count), dtype=torch.float64, device=self.fabric.device)
        torch.distributed.all_reduce(total)  # Fabric's lets the host wait for the GPU, in every step
        return total / self.fabric.world_size

    def _differentiate(self, batch: Batch, shares: Shares | None = None) -> Tensor:
        loss = self.loss(batch, shares)
        # Gradients are averaged over all processes, but add up over those that share points.
        self.fabric.backward(loss if self.ranks is None else loss * self.ranks.size)
        return loss.detach()

    def _update(self) -> None:
        self._step_complete = self.recorded  # Recording an update doesn't carry it out.
        self.fabric.clip_gradients(
            self.wrapped, self.wrapped_optimizer, max_norm=self.recipe.clip_norm, error_if_nonfinite=False
        )
        self.wrapped_optimizer.step()

    def predict(self, module: torch.nn.Module, batch: Batch) -> Tensor:
        """Predictions of a surrogate for a batch, in physical units, [ΣN, T]."""
        prediction: Tensor
        if self._grid_points and len(batch.points) == len(batch) * self._grid_points:  # not where points are shared
            grids = (len(batch), self._grid_points, -1)
            features = None if batch.features is None else batch.features.reshape(grids)
            prediction = module(batch.points.reshape(grids), features)
            return prediction.flatten(0, 1)
        filled = batch.filled(self.recipe.round_points) if self.recipe.round_points else batch
        offsets = filled.offsets
        if self.recipe.compile != "off":
            offsets = offsets.to(batch.points.device)  # A CUDA graph can't read from the host.
        prediction = module(filled.points, filled.features, offsets)
        return prediction[: len(batch.points)]

    def loss(self, batch: Batch, shares: Shares | None = None) -> Tensor:
        """Weighted mean over the targets of their losses for a batch, filled or not.

        Args:
            batch: The batch, on the device; of one whose points are shared, those of this process.
            shares: The fraction of the step that the batch holds; all of it where left out.
        """
        with nullcontext() if self.ranks is None else divided(self.surrogate, self.ranks):
            prediction = self.predict(self.wrapped, batch)
        return self.objective(prediction, batch, self.surrogate.target_std, shares, self.ranks)

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """Weights to resume from: "model" as they are trained, and "average" where there is one."""
        weights: dict[str, Mapping[str, Tensor]] = {"model": self.surrogate.stored_weights()}
        if self.average is not None:
            weights["average"] = dict(self.average.module.state_dict())
        return weights

    def state(self) -> dict[str, Any]:
        """State of optimiser, schedule and average, under the names of `STEPPER_STATE`."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "averaged": 0 if self.average is None else int(self.average.n_averaged),
        }

    def load(self, weights: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Resume from weights and state that may come from another device."""
        self.surrogate.model.load_state_dict(weights["model"])
        for own_group, saved_group in zip(self.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True):
            saved_group |= {name: own_group[name] for name in ("capturable", "fused")}
            if self.recorded:
                saved_group["lr"] = torch.as_tensor(saved_group["lr"], device=self.fabric.device)
            else:
                saved_group["lr"] = float(saved_group["lr"])
        self.optimizer.load_state_dict(state["optimizer"])
        # The rate of the next step is logged from here, beside those of later steps: a number, or on the device.
        rates = [group["lr"].clone() if self.recorded else group["lr"] for group in self.optimizer.param_groups]
        self.schedule.load_state_dict(state["schedule"] | {"_last_lr": rates})
        if self.average is not None:
            self.average.module.load_state_dict(weights["average"])
            self.average.n_averaged.fill_(state["averaged"])
