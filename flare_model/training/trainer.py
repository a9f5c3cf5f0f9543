"""One training run: data, steps, validation, checkpoints, in the order in which they come."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flare_model.data.batches import Batch, grouped
from flare_model.data.splits import Split, open_loader
from flare_model.training.data_wait import DataWait
from flare_model.training.devices import Fabric, Precision
from flare_model.training.divergence import DivergedError, check_weights
from flare_model.training.divided_meshes import batch_ranks
from flare_model.training.loss_log import LossLog
from flare_model.training.recorded.largest_batch import largest_request
from flare_model.training.resident_cases import ResidentCases
from flare_model.training.run_checkpoints import Checkpoints, Counters
from flare_model.training.run_log import RunLog
from flare_model.training.settings import Settings
from flare_model.training.step_errors import (
    OtherProcessError,
    errors_with_cases,
    is_of_another_process,
    other_process_error,
)
from flare_model.training.stepper import Stepper
from flare_model.training.training_checkpoint import latest_state, random_state
from flare_model.training.validation import BestWeights, Validation
from lpbf_data.console import progress, say
from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.serving.collating import RaggedBatch
from lpbf_data.serving.loader import Loader


class Trainer:
    """A run in progress.

    Args:
        settings: Settings of the run.
        fabric: Devices, processes, precision.
        precision: The precision plugin that the fabric was made with.
        folder: Folder of the run.
        splits: The splits that training reads: train, and validation where there is one.

    Attributes:
        stepper: The model, its optimiser and schedule.
        validation: Validation, and the best weights so far.
        checkpoints: Checkpoints of the run.
        counters: How far the run has come.
    """

    def __init__(
        self, settings: Settings, fabric: Fabric, precision: Precision, folder: Path, splits: dict[str, Split]
    ) -> None:
        self.settings, self.fabric, self.folder = settings, fabric, folder
        fabric.seed_everything(settings.seed, verbose=False)
        train, validation = splits["train"], splits.get("validation")
        self.loader = self._open_train_loader(train)
        if len(self.loader) == 0:
            raise UsageError(
                f"the split train has fewer cases than the {self.loader.world_size} processes that train on it"
            )
        self.batches, self.steps = self._count()
        self._largest = (
            largest_request(self.loader, self.steps, thin_to=settings.thin_to) if settings.recipe.step_graphs else None
        )
        self.data_wait = DataWait(self.loader, fabric.device)
        self.counters = Counters()
        self.stepper = Stepper(settings, fabric, train, self.steps)
        self.validation = Validation(settings, fabric, self.stepper, validation, train)
        self.resident = (
            ResidentCases.of(train, settings, fabric.device, symmetries=settings.symmetries)
            if settings.resident
            else None
        )
        self.checkpoints = Checkpoints(
            folder, settings, fabric, precision, self.stepper, self.loader, data_digest=train.data_digest
        )

    def _open_train_loader(self, train: Split) -> Loader:
        recipe = self.settings.recipe
        return open_loader(
            train,
            batch_size=recipe.batch_size if recipe.batch_size > 1 or not recipe.max_points else None,
            max_points=recipe.max_points or None,
            shuffle=True,
            seed=self.settings.seed,
            num_workers=self.settings.num_workers,
            thin_to=self.settings.thin_to,
            symmetries=self.settings.symmetries,
            ranks=batch_ranks(self.settings, self.fabric),
        )

    def _count(self) -> tuple[list[int], int]:
        """Number of batches of each epoch, which depends on the order of the cases with `max_points`; and of steps."""
        recipe, batches, steps = self.settings.recipe, list[int](), 0
        max_steps = min(self.settings.max_steps or math.inf, recipe.steps or math.inf)
        for epoch in itertools.count() if recipe.steps else range(recipe.epochs):
            if recipe.max_points:
                self.loader.set_epoch(epoch)
            batches.append(len(self.loader))
            steps += math.ceil(batches[-1] / recipe.accumulate)
            if steps >= max_steps:
                break
        self.loader.set_epoch(0)
        return batches, int(min(steps, max_steps))

    @property
    def step(self) -> int:
        """Steps done."""
        return self.counters.step

    @property
    def best(self) -> BestWeights:
        """The best weights so far."""
        return self.validation.best

    def fit(self) -> None:
        """Train to the end, from the latest checkpoint if there is one.

        After any error but a loss that isn't finite, a single process stores the steps that were done in a checkpoint;
        of several processes, a message names the last checkpoint.

        Raises:
            DivergedError: If the loss is no finite number any more; the checkpoints before it stay.
            StepFailedError: If the model raises an error, or there is too little memory.
        """
        self._resume()
        shown = self.fabric.is_global_zero
        self.table = RunLog(self.folder, self.step) if shown else None
        try:
            with progress(self.steps, "train", "step", initial=self.step, shown=shown) as bar:
                self.losses = LossLog(self.folder, self.fabric, self.loader.world_size, self.data_wait, self.table, bar)
                self._remember_position()
                try:
                    self._record_largest_batch()
                    self._validate_if_due()
                    while self.step < self.steps:
                        self.loader.set_epoch(self.counters.epoch)
                        for group in grouped(self._remaining_batches(), self.settings.recipe.accumulate):
                            self._optimise(group)
                            self._after_step()
                except DivergedError:
                    raise
                except Exception as error:
                    if is_of_another_process(error):
                        raise other_process_error(error, f"after step {self.step:,}") from error
                    self._save_completed_steps(error)
                    raise
        finally:
            if self.table:
                self.table.close()

    def _remember_position(self) -> None:
        """Keep the states of loader and random generators, from which to resume if the next step fails."""
        self._position = replace(self.counters), self.loader.state_dict(), random_state()

    def _save_completed_steps(self, error: Exception) -> None:
        """Write a checkpoint of the last complete step, unless the weights are between two steps.

        Several processes write a checkpoint together, so that one alone can't: a message then says where the run
        resumes.
        """
        counters, loader, drawn = self._position
        latest = latest_state(self.folder)
        if counters.step == 0 or (latest is not None and latest.name == f"step-{counters.step:08d}"):
            return
        if self.fabric.world_size > 1:
            if not isinstance(error, OtherProcessError):
                say(_resume_hint(latest))
            return
        if counters.step != self.step or not self.stepper.between_steps:
            return
        try:
            self.losses.flush()
            check_weights(self.stepper.surrogate, counters.step, self.folder)
            self.checkpoints.write(counters, self.best, loader, drawn)
        except (LpbfError, OSError) as failed:
            say(f"the steps since the last checkpoint are lost: {failed}")
        else:
            say(f"the {counters.step:,} steps that were done are kept; the same command goes on from there")

    def _resume(self) -> None:
        """Resume from the latest checkpoint, if there is one."""
        resumed = self.checkpoints.resume()
        if resumed is None:
            return
        self.counters, self.validation.best = resumed
        if self.fabric.is_global_zero:
            say(f"{self.folder} goes on from step {self.step:,} of {self.steps:,}")
        self.checkpoints.publish(self.best)

    def _record_largest_batch(self) -> None:
        """Record the step of the largest batch first: its memory serves all others, and lack of it shows at once."""
        request = self._largest
        if request is None or self.step == self.steps:
            return
        batch = self.resident.batch(request) if self.resident else self._on_device(self.loader.read(request))
        what, model = "recording a step of the largest batch", self.settings.model.class_path
        with errors_with_cases(what, [batch], model), self.losses.paused():
            self.stepper.record(batch)

    def _remaining_batches(self) -> Iterator[Batch]:
        """The remaining batches of the epoch; every process takes equally many."""
        for batch in self.loader.each(self.resident.batch) if self.resident else self._read_batches():
            if self.step == self.steps:
                return
            self.counters.taken += 1
            yield batch

    def _read_batches(self) -> Iterator[Batch]:
        for ragged in self.loader:
            self.data_wait.batch_arrived()
            yield self._on_device(ragged)

    def _on_device(self, ragged: RaggedBatch) -> Batch:
        return Batch.of(ragged, self.settings.targets, self.settings.features).to(self.fabric.device)

    def _optimise(self, group: list[Batch]) -> None:
        """One step of the optimiser on one or more batches."""
        with errors_with_cases(f"step {self.step + 1:,} of the training", group, self.settings.model.class_path):
            loss, rate = self.stepper.step(group)
        self.data_wait.step_launched()
        self.counters.step += 1
        self.losses.add(self.step, loss, rate, group)

    def _after_step(self) -> None:
        """Validate and write a checkpoint, each after every so many steps or epochs, and do both at the end."""
        counters = self.counters
        if counters.taken == self.batches[counters.epoch]:
            counters.epoch, counters.taken = counters.epoch + 1, 0
        self._remember_position()
        self._validate_if_due()
        if self.step == self.steps or self.step % self.settings.checkpoint_every == 0:
            self._check_losses_and_weights()
            with self.losses.paused():
                self.checkpoints.write(counters, self.best, self.loader.state_dict(), random_state())

    def _validate_if_due(self) -> None:
        """Validate where that is due, and at the end; a validation that failed is done again when the run resumes."""
        counters, every = self.counters, self.settings.validate_steps
        epoch_done = counters.taken == 0 and counters.epoch % self.settings.validate_every == 0
        due = self.step % every == 0 if every else epoch_done
        if counters.judged == self.step or not (due or self.step == self.steps):
            return
        self._check_losses_and_weights()
        with self.losses.paused():
            if self.validation.judge(self.step, counters.epoch, self.table):
                self.checkpoints.publish(self.best)
        counters.judged = self.step
        self._remember_position()

    def _check_losses_and_weights(self) -> None:
        self.losses.flush()
        check_weights(self.stepper.surrogate, self.step, self.folder)


def _resume_hint(latest: Path | None) -> str:
    """From where a run of several processes resumes after one of them failed."""
    if latest is None:
        return "there is no checkpoint yet, so that the same command starts again"
    return f"the last checkpoint is {latest}; the same command goes on from there"
