"""The losses of a run's steps, read from the device every few steps: logged, shown, and checked for NaN."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.training.data_wait import DataWait
from flare_model.training.devices import Fabric
from flare_model.training.divergence import diverged
from flare_model.training.run_log import TRAINING_NAME, RunLog

_READ_EVERY: Final = 10
"""Steps whose losses are read together; the GPU goes on meanwhile."""

_READ_SECONDS: Final = 30.0
"""Seconds after which a single process reads the losses of slow steps in any case, so that progress is shown."""


@dataclass(frozen=True)
class _Step:
    """One step: its number, its loss on the device, its learning rate, and the cases that it took."""

    number: int
    loss: Tensor
    rate: float | Tensor
    case_ids: tuple[str, ...]


@dataclass(frozen=True)
class _Block:
    """Consecutive steps whose losses are on their way to the host.

    Attributes:
        steps: The steps.
        numbers: Their losses, of all processes, and behind them learning rates that lie on the device, [1 or 2, steps]
            float64, on the host.
        arrived: Tells when these have arrived; None where they are there.
        sent_at: Seconds since training began, without pauses, when they were sent.
        paused: Seconds of pauses until then.
        points: Points that training had taken then.
        waited: Seconds that it had waited for data then, as `DataWait` counts them.
    """

    steps: tuple[_Step, ...]
    numbers: Tensor
    arrived: torch.cuda.Event | None
    sent_at: float
    paused: float
    points: int
    waited: float


class LossLog:
    """Losses of the steps since training began or resumed.

    Args:
        folder: Folder of the run.
        fabric: The processes that train together.
        loaders: Number of processes that take batches of their own.
        data_wait: Counts the time that training waits for data.
        table: Log that rows are written to; None in processes that write nothing.
        bar: The progress bar, one unit a step.
    """

    def __init__(
        self, folder: Path, fabric: Fabric, loaders: int, data_wait: DataWait, table: RunLog | None, bar: Any
    ) -> None:
        self.folder, self.fabric, self.table, self.bar = folder, fabric, table, bar
        self._loaders, self._data_wait = loaders, data_wait
        self._started, self._seconds_paused, self._points = time.monotonic(), 0.0, 0
        self._pending: list[_Step] = []
        self._sent: deque[_Block] = deque()
        self._read_at = self._started
        self._began = _event() if fabric.device.type == "cuda" else None

    def add(self, step: int, loss: Tensor, rate: float | Tensor, group: Sequence[Batch]) -> None:
        """Add the loss of a step; losses are logged when they have arrived from the device, some steps later.

        Args:
            step: Number of the step, from 1.
            loss: Its loss, on the device.
            rate: Its learning rate.
            group: The batches that it took.

        Raises:
            DivergedError: If the loss of a step since the last `flush` is no finite number.
        """
        self._points += sum(len(batch.points) for batch in group)
        self._pending.append(_Step(step, loss, rate, tuple(i for batch in group for i in batch.case_ids)))
        # Several processes log after the same steps, and their clocks differ: they go by the number of steps alone.
        alone = self.fabric.world_size == 1
        if alone and time.monotonic() - self._read_at > _READ_SECONDS:
            self.flush()
        elif step % _READ_EVERY == 0:
            self._send()
            while len(self._sent) > 1:
                self._log()
        while alone and self._sent and _has_arrived(self._sent[0]):
            self._log()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of something that isn't training out of the points per second."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds_paused += time.monotonic() - began

    def flush(self) -> None:
        """Log all losses so far.

        Raises:
            DivergedError: If one is no finite number.
        """
        self._send()
        while self._sent:
            self._log()

    def _send(self) -> None:
        """Let the losses since the last call be copied to the host, when the device has computed them."""
        if not self._pending:
            return
        steps, self._pending = tuple(self._pending), []
        losses = torch.stack([step.loss for step in steps]).double()
        if self.fabric.world_size > 1:
            torch.distributed.all_reduce(losses)  # Fabric's lets the host wait for the GPU
            losses /= self.fabric.world_size
        rates = [step.rate for step in steps if isinstance(step.rate, Tensor)]  # of recorded steps
        numbers = torch.stack([losses, torch.stack(rates).double()]) if rates else losses[None]
        arrived = None
        if numbers.is_cuda:
            host = torch.empty_like(numbers, device="cpu", pin_memory=True)
            numbers, arrived = host.copy_(numbers, non_blocking=True), _event()
        sent_at = time.monotonic() - self._started - self._seconds_paused
        self._sent.append(
            _Block(steps, numbers, arrived, sent_at, self._seconds_paused, self._points, self._data_wait.seconds)
        )

    def _log(self) -> None:
        """Wait for the oldest losses that were sent, and log them."""
        block = self._sent.popleft()
        if block.arrived is not None:
            block.arrived.synchronize()
        self._read_at = time.monotonic()
        losses, *of_device = block.numbers.tolist()
        for step, loss in zip(block.steps, losses, strict=True):
            if not math.isfinite(loss):
                raise diverged(self.folder, _what_diverged(step))
        rates = of_device[0] if of_device else [float(step.rate) for step in block.steps]
        elapsed = self._seconds_until(block)
        speed, waiting = block.points * self._loaders / elapsed, block.waited / elapsed
        pace = {"points_per_second": round(speed), "data_wait": round(waiting, 4)}
        if self.table:
            rows = zip(block.steps, losses, rates, strict=True)
            self.table.write_rows(
                TRAINING_NAME,
                [{"step": step.number, "loss": loss, "learning_rate": rate} | pace for step, loss, rate in rows],
            )
        self.bar.set_postfix(
            loss=f"{losses[-1]:.4f}", lr=f"{rates[-1]:.1e}", points_s=f"{speed:,.0f}", data_wait=f"{waiting:.0%}"
        )
        self.bar.update(len(losses))

    def _seconds_until(self, block: _Block) -> float:
        """Seconds of training, without pauses, until losses had been computed, by the device's clock if it has one."""
        if self._began is None or block.arrived is None:
            return block.sent_at
        return float(self._began.elapsed_time(block.arrived)) / 1000 - block.paused


def _event() -> torch.cuda.Event:
    """A point in the work of the device, with its time."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _has_arrived(block: _Block) -> bool:
    return block.arrived is None or bool(block.arrived.query())  # type: ignore[no-untyped-call]


def _what_diverged(step: _Step) -> str:
    own = float(step.loss)
    if math.isfinite(own):
        return f"the loss of another process is no finite number any more at step {step.number}"
    return f"the loss became {own} at step {step.number}, in case {', '.join(step.case_ids)}"
