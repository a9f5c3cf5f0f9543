"""The losses of a run's steps, read from the device every few steps: logged, shown, and checked for NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.training.devices import Fabric
from flare_model.training.divergence import diverged
from flare_model.training.run_log import TRAINING_NAME, RunLog
from lpbf_data.serving.loader import Loader

_FLUSH_EVERY: Final = 10
"""Steps between reads of the losses; each read waits for the device."""

_FLUSH_SECONDS: Final = 30.0
"""Seconds after which a single process reads the losses of slow steps in any case, so that progress is shown."""


@dataclass(frozen=True)
class _Step:
    """One step: its number, its loss on the device, its learning rate, and the cases that it took."""

    number: int
    loss: Tensor
    rate: float | Tensor
    case_ids: tuple[str, ...]


class LossLog:
    """Losses of the steps since training began or resumed.

    Args:
        folder: Folder of the run.
        fabric: The processes that train together.
        loader: The loader of the batches, which counts the time that training waits for it.
        table: Log that rows are written to; None in processes that write nothing.
        bar: The progress bar, one unit a step.
    """

    def __init__(self, folder: Path, fabric: Fabric, loader: Loader, table: RunLog | None, bar: Any) -> None:
        self.folder, self.fabric, self.loader, self.table, self.bar = folder, fabric, loader, table, bar
        self._started, self._seconds_paused, self._points = time.monotonic(), 0.0, 0
        self._pending: list[_Step] = []
        self._flushed_at = self._started

    def add(self, step: int, loss: Tensor, rate: float | Tensor, group: Sequence[Batch]) -> None:
        """Add the loss of a step; every few steps all are read and logged.

        Args:
            step: Number of the step, from 1.
            loss: Its loss, on the device.
            rate: Its learning rate.
            group: The batches that it took.

        Raises:
            DivergedError: If a loss is no finite number.
        """
        self._points += sum(len(batch.points) for batch in group)
        self._pending.append(_Step(step, loss, rate, tuple(i for batch in group for i in batch.case_ids)))
        # Several processes read together, and their clocks differ: they go by the number of steps alone.
        late = self.fabric.world_size == 1 and time.monotonic() - self._flushed_at > _FLUSH_SECONDS
        if step % _FLUSH_EVERY == 0 or late:
            self.flush()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of something that isn't training out of the points per second."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds_paused += time.monotonic() - began

    def flush(self) -> None:
        """Read the losses since the last flush, and log them.

        Raises:
            DivergedError: If one is no finite number.
        """
        if not self._pending:
            return
        steps, self._pending = self._pending, []
        self._flushed_at = time.monotonic()
        rates = [float(step.rate) for step in steps]
        own = torch.stack([step.loss for step in steps])
        values = cast("Tensor", self.fabric.all_reduce(own, reduce_op="mean")).tolist()
        for step, value in zip(steps, values, strict=True):
            if not math.isfinite(value):
                raise diverged(self.folder, _what_diverged(step))
        elapsed = time.monotonic() - self._started - self._seconds_paused
        speed, waiting = self._points * self.loader.world_size / elapsed, self.loader.seconds_waiting / elapsed
        if self.table:
            for step, value, rate in zip(steps, values, rates, strict=True):
                row = {"step": step.number, "loss": value, "learning_rate": rate}
                row |= {"points_per_second": round(speed), "data_wait": round(waiting, 4)}
                self.table.write(TRAINING_NAME, row)
        self.bar.set_postfix(
            loss=f"{values[-1]:.4f}", lr=f"{rates[-1]:.1e}", points_s=f"{speed:,.0f}", data_wait=f"{waiting:.0%}"
        )
        self.bar.update(len(values))


def _what_diverged(step: _Step) -> str:
    own = float(step.loss)
    if math.isfinite(own):
        return f"the loss of another process is no finite number any more at step {step.number}"
    return f"the loss became {own} at step {step.number}, in case {', '.join(step.case_ids)}"
