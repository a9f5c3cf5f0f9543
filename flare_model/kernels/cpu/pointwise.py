"""Pointwise networks on a CPU without gradients, of PyTorch's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flare_model.kernels.cpu.compiling import pointers
from flare_model.kernels.cpu.expressions import LANES
from flare_model.kernels.cpu.network import network_kernel, network_scratch
from flare_model.kernels.cpu.threads import run


class Residuals(NamedTuple):
    """What is added where.

    Attributes:
        after_first: The network's input, behind its first layer.
        to_output: The last hidden numbers, to the output.
        around: What comes into the LayerNorm, to the output.
    """

    after_first: bool
    to_output: bool
    around: bool


def network(x: Tensor, layers: Sequence[nn.Linear], residuals: Residuals, norm: nn.LayerNorm | None) -> Tensor:
    """A residual network with GELU in its tanh form, in float32; results don't depend on the number of threads.

    Args:
        x: [..., C_in].
        layers: The first, the residual ones, and the last.
        residuals: What is added where.
        norm: The LayerNorm before the network.

    Returns:
        [..., C_out].
    """
    added = x if residuals.around else None
    return _apply(x, layers, added, norm, (residuals.after_first, residuals.to_output))


def residual_linear(x: Tensor, inputs: Tensor, layer: nn.Linear) -> Tensor:
    """Returns x + layer(inputs), in float32.

    Args:
        x: [..., C_out].
        inputs: [..., C_in].
        layer: From C_in to C_out.
    """
    return _apply(inputs, [layer], x, None, (False, False))


def _apply(
    x: Tensor,
    layers: Sequence[nn.Linear],
    added: Tensor | None,
    norm: nn.LayerNorm | None,
    residuals: tuple[bool, bool],
) -> Tensor:
    """Layers of x, all but the last with GELU, and what is added to their result."""
    sizes = (x.shape[-1], layers[0].out_features, layers[-1].out_features)
    result = x.new_empty(*x.shape[:-1], sizes[-1])
    points = x.detach().contiguous()
    # Where there is no norm, or nothing to add, the kernel looks at no such array.
    summand = points if added is None else added.detach().contiguous()
    affine = (points, points) if norm is None else (norm.weight.detach().contiguous(), norm.bias.detach().contiguous())
    arrays = (points, _joined([one.weight for one in layers]), _joined([one.bias for one in layers]), *affine, summand)
    count = points.numel() // sizes[0]
    flags = (norm is not None, *residuals, added is not None)
    kernel = network_kernel()

    def make_scratch() -> Tensor:
        scratch = torch.zeros(network_scratch(max(sizes)), device="cpu", dtype=torch.float32)
        scratch[0] = 0.0 if norm is None else norm.eps
        return scratch

    def work(scratch: Tensor, first: int, end: int) -> None:
        kernel(*pointers(*arrays, result, scratch), count, *sizes, len(layers) - 1, *map(int, flags), first, end)

    run(work, -(-count // LANES), make_scratch)
    return result


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    """Parameters one after the other."""
    return torch.cat([parameter.detach().flatten() for parameter in parameters])
