"""Gradients averaged over processes between two recordings: data parallelism of steps that are CUDA graphs.

`DistributedDataParallel` averages within the backward pass. Recorded, its collectives would have to be recorded by all
processes at the same time, and processes meet new sizes of batches at different times. Here each process records its
own forward and backward pass, at whose end gradients are copied into one row of numbers; the row is averaged by a call
that isn't recorded, and the update of the weights is a recording of its own.
"""

from __future__ import annotations

from functools import reduce
from typing import Final

import torch
from torch import Tensor, nn

from flare_model.training.devices import Fabric

_ALIGNED: Final = 4
"""Numbers that each parameter's part of the row is a multiple of, so that kernels read several at once."""


class AveragedGradients:
    """The gradients of a model in one row of numbers that stays at its address.

    Args:
        model: The model in training; its parameters and buffers stay at theirs from here on.

    Attributes:
        row: All gradients one after the other, in float32, or in float64 if any parameter is.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._buffers = list(model.buffers())
        sizes = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in self._parameters]
        dtype = reduce(torch.promote_types, (p.dtype for p in self._parameters), torch.float32)
        self.row = torch.zeros(sum(sizes), dtype=dtype, device=self._parameters[0].device)
        self._parts = [_shaped(part, p) for part, p in zip(self.row.split(sizes), self._parameters, strict=True)]  # type: ignore[no-untyped-call]

    def collect(self) -> None:
        """Copy the gradients of the backward pass into the row; a parameter without one has 0."""
        self.row.zero_()
        with_gradient = [(part, p.grad) for part, p in zip(self._parts, self._parameters, strict=True)]
        pairs = [(part, gradient) for part, gradient in with_gradient if gradient is not None]
        torch._foreach_copy_([part for part, _ in pairs], [gradient for _, gradient in pairs])

    def average(self) -> None:
        """Take the mean over all processes, and the first one's buffers, such as running means of norms.

        Every process must call this once a step.
        """
        torch.distributed.all_reduce(self.row)
        self.row /= torch.distributed.get_world_size()
        for buffer in self._buffers:
            torch.distributed.broadcast(buffer, 0)

    def assign(self) -> None:
        """Let the gradients of the parameters be those of the row.

        Where types agree they share memory: clipping one clips the other. Recorded with the update, so that what is
        converted to another type is converted anew in each step.
        """
        for parameter, part in zip(self._parameters, self._parts, strict=True):
            parameter.grad = part.to(parameter.dtype)


def _shaped(part: Tensor, parameter: Tensor) -> Tensor:
    """A part of the row in the shape of a parameter, and with its strides where these leave no gaps."""
    strides = torch.empty_like(parameter, device="meta").stride()
    return part[: parameter.numel()].as_strided(parameter.shape, strides)


def same_weights(module: nn.Module) -> None:
    """Give all processes the first one's weights and buffers, as `DistributedDataParallel` does."""
    for values in (*module.parameters(), *module.buffers()):
        same = values.detach().contiguous()
        torch.distributed.broadcast(same, 0)
        values.detach().copy_(same)


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
