"""Whole training steps as CUDA graphs: one launch in place of a thousand, where launching takes longer than computing.

A graph is recorded once for each size of batch. It is replayed on the same tensors each time, into which batches are
copied. Fill batches up to few sizes: [filled][flare_model.data.batches.Batch.filled].

Where several processes train together, a step is two recordings: forward and backward pass, one for each size of
batch; and the update of the weights, which serves all sizes. Between them gradients are averaged by a call that isn't
recorded.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.training.averaged_gradients import AveragedGradients
from flare_model.training.recorded.recording import Recording, recording

MAX_SIZES: Final = 256
"""Most recordings that are kept, each of some megabytes; the one used longest ago goes first, the largest never."""

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
        self._recordings: OrderedDict[tuple[int, int], Recording] = OrderedDict()
        self._recorded_update: torch.cuda.CUDAGraph | None = None
        self._pool: Any = None
        self.replaying = False

    def __call__(self, batch: Batch) -> Tensor:
        """One step.

        Args:
            batch: A filled batch; its offsets may lie on the host.

        Returns:
            The loss, on the device.

        Raises:
            UsageError: If a step of the model can't be recorded.
        """
        size = (len(batch.points), len(batch.offsets))
        if size not in self._recordings:
            self._make_room(size)
            self._recordings[size] = self._record(batch)
        self._recordings.move_to_end(size)
        self.replaying = True
        loss = self._recordings[size].replay(batch)
        if self._gradients is not None:
            self._gradients.average()
            self._replay_update(self._gradients)
        self.replaying = False
        return loss

    def _replay_update(self, gradients: AveragedGradients) -> None:
        """Change the weights by the averaged gradients."""
        if self._recorded_update is None:
            with recording(None) as graph:
                gradients.assign()
                self._update()
            self._optimizer.zero_grad(set_to_none=True)
            self._recorded_update = graph
        self._recorded_update.replay()

    def _make_room(self, size: tuple[int, int]) -> None:
        """Drop all recordings before a batch that is larger than any before, so that smaller ones can share its memory.

        A graph keeps the memory that it was recorded in; a larger one could not use that, and would need its own.
        """
        largest = max((points for points, _ in self._recordings), default=size[0])
        if size[0] > largest:
            torch.cuda.synchronize()
            self._recordings.clear()
            self._pool = None
        elif len(self._recordings) == MAX_SIZES:
            unused = next((one for one in self._recordings if one[0] < largest), next(iter(self._recordings)))
            del self._recordings[unused]

    def _record(self, batch: Batch) -> Recording:
        static = batch.on(batch.points.device)
        self._warm_up(static)
        return self._capture(static)

    def _capture(self, static: Batch) -> Recording:
        # Only the loss is needed after a replay, and it is copied at once: graphs of all sizes share their memory.
        with recording(self._pool) as graph:
            loss = self._differentiate(static)
            if self._gradients is None:
                self._update()
            else:
                self._gradients.collect()
        self._pool = self._pool or graph.pool()
        self._optimizer.zero_grad(set_to_none=True)
        return Recording(graph, static, loss.detach())

    def _warm_up(self, static: Batch) -> None:
        """Let libraries and kernels load; weights, buffers, averages and random numbers stay as they are."""
        buffers, random = [buffer.clone() for buffer in self._model.buffers()], torch.cuda.get_rng_state()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._differentiate(static)
            if not self._optimizer.state:
                make_state(self._optimizer)
            self._optimizer.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(aside)
        for buffer, value in zip(self._model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        torch.cuda.set_rng_state(random)
        torch.cuda.synchronize()


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let AdamW make its averages, as it does in its first step, without taking that step.

    Args:
        optimizer: AdamW whose learning rates are tensors.
    """
    rates = [group["lr"].clone() for group in optimizer.param_groups]
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
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"].copy_(rate)
    optimizer.zero_grad(set_to_none=True)
