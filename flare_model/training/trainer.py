"""One training run: data, model, optimiser, steps, validation, checkpoints, in the order in which one reads it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flare_model.checkpoints.files import Description, Usage, write_checkpoint
from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.batches import Batch, grouped
from flare_model.data.metrics import RelativeL2, mse_loss, relative_l2_loss
from flare_model.data.splits import Split, normalisation_of, open_loader
from flare_model.data.targets import spans
from flare_model.models.contract import check_contract
from flare_model.training.devices import Fabric, Precision
from flare_model.training.optimizer import make_optimizer, make_schedule
from flare_model.training.run_log import TRAINING_NAME, VALIDATION_NAME, RunLog
from flare_model.training.settings import Settings
from flare_model.training.state import latest_state, random_state, read_state, set_random_state, write_state
from flare_model.training.step_graphs import StepGraphs
from lpbf_data.console import progress, say
from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.serving.loader import Loader

_FLUSH_EVERY: Final = 10
"""Steps between looks at the losses; each look waits for the device."""
_STATE: Final = ("step", "epoch", "taken", "best", "optimizer", "schedule", "precision", "averaged", "loader", "random")
"""What a run needs to go on, beside its weights."""

_log = logging.getLogger(__name__)
_ema: Any = get_ema_multi_avg_fn  # It has no annotations.


class DivergedError(LpbfError):
    """The loss of a run is no finite number any more."""


def _mean_of(errors: Mapping[str, RelativeL2]) -> float:
    """Mean over the targets that have an error; infinite where none has, or where a prediction is no finite number."""
    means = [error.mean for error in errors.values() if error.cases]
    mean = sum(means) / len(means) if means else math.inf
    return mean if math.isfinite(mean) else math.inf


class Trainer:
    """A run in progress.

    Args:
        settings: What was asked for.
        fabric: Devices, processes, precision.
        precision: The precision plugin that the fabric was made with.
        folder: Folder of the run.
        splits: The splits that training reads: train, and validation where there is one.
    """

    def __init__(
        self, settings: Settings, fabric: Fabric, precision: Precision, folder: Path, splits: dict[str, Split]
    ) -> None:
        self.settings, self.fabric, self.precision, self.folder = settings, fabric, precision, folder
        self.splits, self.recipe = splits, settings.recipe
        fabric.seed_everything(settings.seed, verbose=False)
        self.loader = open_loader(
            splits["train"],
            batch_size=self.recipe.batch_size,
            shuffle=True,
            seed=settings.seed,
            num_workers=settings.num_workers,
            thin_to=settings.thin_to,
            symmetries=settings.symmetries,
        )
        self.batches_an_epoch = len(self.loader)
        if self.batches_an_epoch == 0:
            raise UsageError(f"the split train has fewer cases than the {fabric.world_size} processes that train on it")
        # Every case once, whatever the number of processes: nobody waits for another here.
        validation = splits.get("validation")
        self.validation = None if validation is None else open_loader(validation, uneven="keep")
        steps = self.recipe.epochs * math.ceil(self.batches_an_epoch / self.recipe.accumulate)
        self.steps = min(steps, settings.max_steps or steps)
        self.step = self.epoch = self.taken = 0
        self.best: dict[str, Any] = {"error": math.inf, "step": 0}
        self.best_weights: dict[str, Tensor] = {}
        self.validated: dict[str, float | None] = {}
        self._pending: list[tuple[Tensor, float | Tensor, tuple[str, ...]]] = []
        self.recorded = self.recipe.step_graphs and fabric.device.type == "cuda"
        if self.recorded and fabric.world_size > 1:
            raise UsageError("--recipe.step_graphs is for one process; leave it out where several train together")
        if self.recipe.step_graphs and not self.recorded:
            _log.warning("--recipe.step_graphs is left out: there are no CUDA graphs without a GPU")
        self._make_model()

    def _make_model(self) -> None:
        """The surrogate, its average if any, optimiser and schedule."""
        settings, recipe, train = self.settings, self.recipe, self.splits["train"]
        usage = Usage(
            normalisation_of(train, settings.targets, settings.features),
            tuple(t.name for t in settings.targets),
            tuple(f.name for f in settings.features),
            train.envelope,
        )
        model = settings.model.build()
        self._check_contract(model, usage)
        if recipe.activation_checkpointing:
            if not hasattr(model, "activation_checkpointing"):
                raise UsageError(f"{settings.model.class_path} has no attribute activation_checkpointing to switch on")
            model.activation_checkpointing = True  # type: ignore[assignment]
        self.surrogate = self.judged = Surrogate(model, usage, settings.model)
        self.optimizer = make_optimizer(self.surrogate, recipe, self.fabric.device, recorded=self.recorded)
        self.schedule = make_schedule(self.optimizer, recipe, self.steps)
        self.wrapped, self.wrapped_optimizer = self.fabric.setup(self.surrogate, self.optimizer)
        self.average = None
        if recipe.ema_decay:
            self.average = AveragedModel(model, multi_avg_fn=_ema(recipe.ema_decay), use_buffers=True)
            self.judged = Surrogate(self.average.module, usage, settings.model).to(self.fabric.device)
        if recipe.compile != "off":
            model.compile(mode=None if recipe.compile == "default" else recipe.compile, dynamic=True)
        self.graphs = StepGraphs(self._differentiate, self._update, self.optimizer, model) if self.recorded else None

    def _check_contract(self, model: torch.nn.Module, usage: Usage) -> None:
        """On the host; a model that runs on GPUs alone is checked there."""
        told, predicted = len(usage.normalisation.feature_mean), len(usage.normalisation.target_mean)
        check = partial(
            check_contract, model, told, predicted, name=self.settings.model.class_path,
            all_used=self.fabric.world_size > 1,
        )  # fmt: skip
        try:
            check()
        except UsageError:
            if self.fabric.device.type == "cpu":
                raise
            model.to(self.fabric.device)
            check()

    def fit(self) -> None:
        """Train to the end, from the latest checkpoint if there is one.

        Raises:
            DivergedError: If the loss is no finite number any more; the checkpoints before it stay.
        """
        self.resume()
        self.log = RunLog(self.folder, self.step) if self.fabric.is_global_zero else None
        self._started, self._points = time.monotonic(), 0
        shown = self.fabric.is_global_zero
        try:
            with progress(self.steps, "train", "step", initial=self.step, shown=shown) as self.bar:
                while self.step < self.steps:
                    self.loader.set_epoch(self.epoch)
                    for group in grouped(self._rest_of_epoch(), self.recipe.accumulate):
                        self._optimise(group)
                        self._after_step()
        finally:
            if self.log:
                self.log.close()

    def _rest_of_epoch(self) -> Iterator[Batch]:
        """Batches of the epoch that haven't been taken; every rank takes equally many."""
        for ragged in self.loader:
            if self.step == self.steps:
                return
            self.taken += 1
            yield Batch.of(ragged, self.settings.targets, self.settings.features).to(self.fabric.device)

    def _after_step(self) -> None:
        """Validate after every so many epochs, write a checkpoint after every so many steps, and do both at the end."""
        finished = self.step == self.steps
        epoch_done = self.taken == self.batches_an_epoch
        if epoch_done:
            self.epoch, self.taken = self.epoch + 1, 0
        judging = finished or (epoch_done and self.epoch % self.settings.validate_every == 0)
        keeping = finished or self.step % self.settings.checkpoint_every == 0
        if judging or keeping:
            self._flush()
            self._check_weights()
        if judging:
            self.validate()
        if keeping:
            self.checkpoint()

    def _optimise(self, group: list[Batch]) -> None:
        """One step of the optimiser on one or more batches; the loss is the mean over all their cases."""
        loss = self.graphs(group[0].filled(self.recipe.multiple)) if self.graphs else self._launch(group)
        self._points += sum(len(batch.points) for batch in group)
        rate = self.schedule.get_last_lr()[0]
        if self.step + 1 < self.schedule.total_steps:
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.surrogate.model)
        self.step += 1
        self._pending.append((loss, rate, tuple(i for batch in group for i in batch.case_ids)))
        if self.step % _FLUSH_EVERY == 0:
            self._flush()

    def _launch(self, group: list[Batch]) -> Tensor:
        """Loss, gradients and the optimiser's step, launched one by one."""
        cases = sum(len(batch) for batch in group)
        losses = []
        for number, batch in enumerate(group, start=1):
            with self.fabric.no_backward_sync(self.wrapped, enabled=number < len(group)):
                losses.append(self._differentiate(batch, len(batch) / cases))
        self._update()
        self.wrapped_optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).sum()

    def _differentiate(self, batch: Batch, share: float = 1.0) -> Tensor:
        loss = self.loss(batch) * share
        self.fabric.backward(loss)
        return loss.detach()

    def _update(self) -> None:
        self.fabric.clip_gradients(
            self.wrapped, self.wrapped_optimizer, max_norm=self.recipe.clip_norm, error_if_nonfinite=False
        )
        self.wrapped_optimizer.step()

    def predict(self, module: torch.nn.Module, batch: Batch) -> Tensor:
        """Predictions of a surrogate for a batch, in physical units, [ΣN, T]."""
        filled = batch.filled(self.recipe.round_points) if self.recipe.round_points else batch
        offsets = filled.offsets
        if self.recipe.compile != "off":
            offsets = offsets.to(batch.points.device)  # A graph on the device can't read the host.
        prediction: Tensor = module(filled.points, filled.features, offsets)
        return prediction[: len(batch.points)]

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the cases of a batch, filled or not."""
        prediction = self.predict(self.wrapped, batch)
        if self.recipe.loss == "mse":
            return mse_loss((prediction - batch.targets) / self.surrogate.target_std, batch.offsets, len(batch))
        floors, columns = self.surrogate.usage.floors(), spans(self.settings.targets)
        errors = [
            relative_l2_loss(prediction[:, c], batch.targets[:, c], batch.offsets, floors[name], len(batch))
            for name, c in columns.items()
        ]
        return torch.stack(errors).mean()

    def _flush(self) -> None:
        """Look at the losses since the last look, and log them; stop when one isn't finite."""
        if not self._pending:
            return
        losses, _, cases = zip(*self._pending, strict=True)
        rates = [float(rate) for _, rate, _ in self._pending]
        self._pending = []
        own = torch.stack(losses)
        values = cast("Tensor", self.fabric.all_reduce(own, reduce_op="mean")).tolist()
        first = self.step - len(values) + 1
        for number, value in enumerate(values):
            if not math.isfinite(value):
                raise DivergedError(self._diverged(first + number, float(own[number]), cases[number]))
        elapsed = time.monotonic() - self._started
        speed, waiting = self._points * self.fabric.world_size / elapsed, self.loader.seconds_waiting / elapsed
        if self.log:
            for number, (value, rate) in enumerate(zip(values, rates, strict=True)):
                row = {"step": first + number, "loss": value, "learning_rate": rate}
                self.log.write(TRAINING_NAME, row | {"points_per_second": round(speed), "data_wait": round(waiting, 4)})
        self.bar.set_postfix(
            loss=f"{values[-1]:.4f}", lr=f"{rates[-1]:.1e}", points_s=f"{speed:,.0f}", data_wait=f"{waiting:.0%}"
        )
        self.bar.update(len(values))

    def _check_weights(self) -> None:
        """Stop before weights are kept that are no finite numbers: a gradient can be infinite where the loss is not."""
        weights = [p.detach() for p in self.surrogate.parameters()]
        if not bool(torch.stack([values.isfinite().all() for values in weights]).all()):
            raise DivergedError(self._ended(f"weights are no finite numbers any more at step {self.step}"))

    def _diverged(self, step: int, own: float, cases: tuple[str, ...]) -> str:
        if math.isfinite(own):
            return self._ended(f"the loss of another process is no finite number any more at step {step}")
        return self._ended(f"the loss became {own} at step {step}, in case {', '.join(cases)}")

    def _ended(self, what: str) -> str:
        kept = latest_state(self.folder)
        good = f"the last good checkpoint is {kept}" if kept else "there was no checkpoint yet"
        return f"{what}; {good}. Lower --recipe.learning_rate, or look at the case, and give another --out"

    def validate(self) -> None:
        """Judge the model on the validation split, and keep it if it is the best so far."""
        if self.validation is not None:
            errors = self.errors_on(self.validation)
            means = {name: error.mean for name, error in errors.items()}
            self.validated = {name: error if math.isfinite(error) else None for name, error in means.items()}
            mean = _mean_of(errors)
            if self.log:
                self.log.write(VALIDATION_NAME, {"step": self.step, "epoch": self.epoch, "mean": mean, **means})
        else:
            mean = -self.step  # Without a validation split the latest is the best.
        # As long as no validation gave a number, there is nothing to choose by, and the latest is the best.
        if mean < self.best["error"] or not math.isfinite(self.best["error"]):
            self.best = {"error": mean, "step": self.step, "errors": self.validated}
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.judged.stored_weights().items()}
            self._publish()

    @torch.no_grad()
    def errors_on(self, loader: Loader) -> dict[str, RelativeL2]:
        """Relative L2 error of each target over an epoch of a loader, over all ranks."""
        totals = {t.name: RelativeL2() for t in self.settings.targets}
        columns, floors = spans(self.settings.targets), self.surrogate.usage.floors()
        self.judged.eval()
        with self.fabric.autocast():
            for ragged in loader:
                batch = Batch.of(ragged, self.settings.targets, self.settings.features).to(self.fabric.device)
                prediction = self.predict(self.judged, batch)
                for name, c in columns.items():
                    totals[name] += RelativeL2.of(prediction[:, c], batch.targets[:, c], batch.offsets, floors[name])
        self.judged.train()
        sums = torch.tensor([[t.total, t.cases, t.without_truth] for t in totals.values()], dtype=torch.float64)
        sums = cast("Tensor", self.fabric.all_reduce(sums.to(self.fabric.device), reduce_op="sum")).cpu()
        return {n: RelativeL2(float(row[0]), int(row[1]), int(row[2])) for n, row in zip(totals, sums, strict=True)}

    def description(self, **origin: Any) -> Description:
        """What a checkpoint of this run says of itself."""
        about = {"seed": self.settings.seed, "recipe": self.settings.identity["recipe"], **origin}
        about["data_sha256"] = self.splits["train"].data_digest
        return Description(self.settings.model, self.surrogate.usage, about)

    def _publish(self) -> None:
        """Put the best weights where users look for them: into the folder of the run."""
        if self.fabric.is_global_zero and self.best_weights:
            about = self.description(step=self.best["step"], validation_relative_l2=self.best.get("errors", {}))
            write_checkpoint(self.folder, self.best_weights, about)

    def checkpoint(self) -> None:
        """Write everything that is needed to go on."""
        states = self._gather(random_state())
        if self.fabric.is_global_zero:
            weights = {"model": self.surrogate.stored_weights()}
            if self.best_weights:
                weights["best"] = self.best_weights
            if self.average is not None:
                weights["average"] = dict(self.average.module.state_dict())
            rest = {
                "step": self.step,
                "epoch": self.epoch,
                "taken": self.taken,
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "precision": self.precision.state_dict(),
                "averaged": 0 if self.average is None else int(self.average.n_averaged),
                "loader": self.loader.state_dict(),
                "random": states,
            }
            write_state(self.folder, self.step, self.description(step=self.step), weights, rest)
        self.fabric.barrier()

    def _gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """The random states of all ranks."""
        if self.fabric.world_size == 1:
            return [state]
        states: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(states, state)
        return states

    def resume(self) -> None:
        """Take up the latest checkpoint, if there is one."""
        folder = latest_state(self.folder)
        if folder is None:
            return
        weights, rest = read_state(folder, _STATE)
        if len(rest["random"]) != self.fabric.world_size:
            raise UsageError(
                f"the run in {self.folder} was trained by {len(rest['random'])} processes, not by "
                f"{self.fabric.world_size}; go on with as many, or give another --out"
            )
        self.surrogate.model.load_state_dict(weights["model"])
        for mine, theirs in zip(self.optimizer.param_groups, rest["optimizer"]["param_groups"], strict=True):
            # The checkpoint may come from another device.
            theirs |= {name: mine[name] for name in ("capturable", "fused")}
            if self.recorded:
                theirs["lr"] = torch.as_tensor(theirs["lr"], device=self.fabric.device)
            else:
                theirs["lr"] = float(theirs["lr"])
        self.optimizer.load_state_dict(rest["optimizer"])
        self.schedule.load_state_dict(rest["schedule"])
        self.precision.load_state_dict(rest["precision"])
        if self.average is not None:
            self.average.module.load_state_dict(weights["average"])
            self.average.n_averaged.fill_(rest["averaged"])
        self.step, self.epoch, self.taken, self.best = (rest[name] for name in ("step", "epoch", "taken", "best"))
        self.best_weights = weights.get("best", {})
        self.loader.load_state_dict(rest["loader"])
        set_random_state(rest["random"][self.fabric.global_rank])
        if self.fabric.is_global_zero:
            say(f"{self.folder} goes on from step {self.step:,} of {self.steps:,}")
        self._publish()
