"""Gradients averaged over processes between two recordings: data parallelism of steps that are CUDA graphs.

`DistributedDataParallel` averages within the backward pass, by hooks that a recording can't hold: its collectives would
have to be recorded on all processes at the same time, and processes meet new sizes of batches at different times. Here
each process records its own passes, whose gradients go into one row of numbers; the row is averaged by one call that
isn't recorded, and the update is a recording of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flare_model.training.devices import Fabric


class AveragedGradients:
    """The gradients of a model in one row of numbers that stays where it is.

    Args:
        model: What is trained; its parameters and their device stay as they are from here on.

    Attributes:
        row: All gradients one after the other, in float32.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        device = self._parameters[0].device
        self.row = torch.zeros(sum(p.numel() for p in self._parameters), device=device)
        parts = torch.split(self.row, [p.numel() for p in self._parameters])
        self._parts = [part.view_as(p) for part, p in zip(parts, self._parameters, strict=True)]

    def collect(self) -> None:
        """Copy the gradients of the backward pass into the row; a parameter without one has 0."""
        self.row.zero_()
        with_gradient = [(part, p.grad) for part, p in zip(self._parts, self._parameters, strict=True)]
        pairs = [(part, gradient) for part, gradient in with_gradient if gradient is not None]
        torch._foreach_copy_([part for part, _ in pairs], [gradient for _, gradient in pairs])

    def average(self) -> None:
        """The mean over all processes, each of which must call this once a step."""
        torch.distributed.all_reduce(self.row)
        self.row /= torch.distributed.get_world_size()

    def assign(self) -> None:
        """Let the parameters' gradients be the row's: changing one, as clipping does, changes the other."""
        for parameter, part in zip(self._parameters, self._parts, strict=True):
            parameter.grad = part if part.dtype == parameter.dtype else part.to(parameter.dtype)


def same_weights(module: nn.Module) -> None:
    """Give all processes the first one's weights and buffers, as `DistributedDataParallel` does."""
    for values in module.state_dict().values():
        torch.distributed.broadcast(values, 0)


class WithPrecision(nn.Module):
    """A model under a fabric's precision, as Fabric wraps it but without `DistributedDataParallel`.

    Args:
        module: The model.
        fabric: Says the precision.
    """

    def __init__(self, module: nn.Module, fabric: Fabric) -> None:
        super().__init__()
        self.module, self._fabric = module, fabric

    def forward(self, *inputs: Tensor) -> Tensor:
        """The model's output, in float32."""
        with self._fabric.autocast():
            prediction: Tensor = self.module(*inputs)
        return prediction.float()
