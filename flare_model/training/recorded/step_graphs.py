"""Whole training steps as CUDA graphs: one launch in place of a thousand, where launching takes longer than computing.

A graph is recorded once for each size of batch. It is replayed on the same tensors each time, into which batches are
copied. Fill batches up to few sizes: [filled][flare_model.data.batches.Batch.filled]. Record the largest size first:
its memory then serves all others.

Where several processes train together, a step is two recordings: forward and backward pass, one for each size of
batch; and the update of the weights, which serves all sizes. Between them gradients are averaged by a call that isn't
recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.training.averaged_gradients import AveragedGradients
from flare_model.training.recorded.recording import Recording, recording, recording_stream
from flare_model.training.recorded.recordings import Recordings, size_of

MAX_SIZES: Final = 256
"""Most recordings that are kept, each of some megabytes; the one used longest ago goes first."""

Step = Callable[[Batch], Tensor]


class StepGraphs:
    """Training steps, recorded when a size of batch is met first.

    Args:
        differentiate: Loss and gradients of a batch whose tensors, offsets included, lie on the device.
        update: Clips the gradients and updates the weights.
        optimizer: The optimiser, capturable.
        model: The model in training.
        gradients: Averages gradients over processes between backward pass and update; None where one process trains.

    Attributes:
        replaying: Whether a step has begun and hasn't ended.
    """

    def __init__(
        self,
        differentiate: Step,
        update: Callable[[], None],
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module,
        gradients: AveragedGradients | None = None,
    ) -> None:
        self._differentiate, self._update, self._optimizer, self._model = differentiate, update, optimizer, model
        self._gradients = gradients
        self._recordings = Recordings(self._record, MAX_SIZES)
        self._recorded_update: torch.cuda.CUDAGraph | None = None
        self.replaying = False

    def __call__(self, batch: Batch) -> Tensor:
        """One step.

        Args:
            batch: A filled batch; its offsets may lie on the host.

        Returns:
            The loss, on the device.

        Raises:
            UsageError: If a step of the model can't be recorded.
            torch.OutOfMemoryError: If there is too little memory, even without all other recordings but the largest.
        """
        self.record(batch)
        self.replaying = True
        loss = self._recordings.replay(batch)
        if self._gradients is not None:
            self._gradients.average()
            self._replay_update(self._gradients)
        self.replaying = False
        return loss

    def record(self, batch: Batch) -> None:
        """Record the step of a batch's size, if it isn't recorded yet, without taking it.

        Weights, buffers, the optimiser's state and random numbers stay as they are, and no other process is waited for.

        Args:
            batch: As above.

        Raises:
            UsageError: As above.
            torch.OutOfMemoryError: As above.
        """
        if size_of(batch) not in self._recordings:
            self._recordings.add(batch, make_room=True)

    def _replay_update(self, gradients: AveragedGradients) -> None:
        """Change the weights by the averaged gradients."""
        if self._recorded_update is None:
            with recording(None) as graph:
                gradients.assign()
                self._update()
            self._optimizer.zero_grad(set_to_none=True)
            self._recorded_update = graph
        self._recorded_update.replay()

    def _record(self, batch: Batch, pool: Any) -> Recording:
        static = batch.on(batch.points.device)
        self._warm_up(static)
        # Only the loss is needed after a replay, and it is copied at once: graphs of all sizes share their memory.
        try:
            with recording(pool) as graph:
                loss = self._differentiate(static)
                if self._gradients is None:
                    self._update()
                else:
                    self._gradients.collect()
        finally:
            self._optimizer.zero_grad(set_to_none=True)
        return Recording(graph, static, loss.detach())

    def _warm_up(self, static: Batch) -> None:
        """Let libraries and kernels load; weights, buffers, averages and random numbers stay as they are."""
        aside = recording_stream(torch.cuda.current_device())
        aside.wait_stream(torch.cuda.current_stream())
        with unchanged(self._model, self._optimizer):
            try:
                with torch.cuda.stream(aside):
                    self._differentiate(static)
                    if not self._optimizer.state:
                        make_state(self._optimizer)
            finally:
                torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()


@contextmanager
def unchanged(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Leave a model's buffers and the random numbers as they were, and no gradients, after a pass that may fail.

    Args:
        model: The model.
        optimizer: The optimiser of its parameters.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            optimizer.zero_grad(set_to_none=True)
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let AdamW make its averages, as it does in its first step, without taking that step.

    Args:
        optimizer: AdamW whose learning rates are tensors.
    """
    rates = [group["lr"].clone() for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"].zero_()
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        with warnings.catch_warnings():
            # PyTorch warns where a capturable optimiser takes a step that isn't recorded.
            warnings.filterwarnings("ignore", message=".*[Cc]apturable")
            optimizer.step()
        for state in optimizer.state.values():
            state["step"].zero_()
    except torch.OutOfMemoryError:
        optimizer.state.clear()  # it would be incomplete
        raise
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"].copy_(rate)
        optimizer.zero_grad(set_to_none=True)
