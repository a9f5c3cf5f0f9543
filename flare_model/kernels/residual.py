"""A linear layer with its residual connection as one operator of torch, with its gradient.

C channels, as many in as out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flare_model.kernels.network_launches import DTYPES, count_points, count_programs
from flare_model.kernels.residual_linear import residual_linear_gradient_kernel, residual_linear_kernel
from flare_model.kernels.tuning import NetworkTiles, residual_linear_tiles


def _compile_options(inputs: Tensor, tiles: NetworkTiles) -> dict[str, Any]:
    options = {"C": inputs.shape[-1], "POINTS": tiles.points, "TYPE": DTYPES[inputs.dtype]}
    return options | {"num_warps": tiles.warps, "num_stages": tiles.stages}


@torch.library.custom_op(
    "flare_model::residual_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor inputs, Tensor weight, Tensor bias) -> Tensor",
)
def residual_linear_operator(x: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Add a linear layer of the inputs to x.

    Args:
        x: [..., C], contiguous.
        inputs: As x, of 16 bits, which is the type of the products.
        weight: [C, C], float32, contiguous.
        bias: [C], float32.

    Returns:
        As x, and of its type.
    """
    out = torch.empty_like(x)
    tiles = residual_linear_tiles(x.shape[-1], gradient=False)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        residual_linear_kernel[(count_programs(x, count_points(x), tiles),)](
            x, inputs, weight, bias, out, count_points(x), **_compile_options(inputs, tiles)
        )
    return out


@torch.library.custom_op(
    "flare_model::residual_linear_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor inputs, Tensor weight) -> (Tensor, Tensor, Tensor)",
)
def residual_linear_backward_operator(
    gradient: Tensor, inputs: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of inputs, weight and bias; arguments as for `residual_linear_operator`, the gradient contiguous."""
    tiles = residual_linear_tiles(inputs.shape[-1], gradient=True)
    programs = count_programs(inputs, count_points(inputs), tiles)
    grad_inputs = torch.empty_like(inputs)
    grad_weights = weight.new_empty(programs, *weight.shape)
    grad_biases = weight.new_empty(programs, len(weight))
    with torch.cuda.device_of(inputs):  # type: ignore[no-untyped-call]
        residual_linear_gradient_kernel[(programs,)](
            gradient, inputs, weight, grad_inputs, grad_weights, grad_biases, count_points(inputs),
            **_compile_options(inputs, tiles),
        )  # fmt: skip
    return grad_inputs, grad_weights.sum(0), grad_biases.sum(0)


@residual_linear_operator.register_fake
def _(x: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)


@residual_linear_backward_operator.register_fake
def _(gradient: Tensor, inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(inputs), torch.empty_like(weight), weight.new_empty(len(weight))


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, *saved, _ = inputs
    ctx.save_for_backward(*saved)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    return gradient, *residual_linear_backward_operator(gradient.contiguous(), *ctx.saved_tensors)


residual_linear_operator.register_autograd(_backward, setup_context=_remember)


def residual_linear(x: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Add a linear layer of the inputs to x.

    Args:
        x: [..., C].
        inputs: As x.
        weight: [C, C].
        bias: [C].
        dtype: Type of the products, float16 or bfloat16; sums are float32.

    Returns:
        As x, and of its type.
    """
    out: Tensor = residual_linear_operator(
        x.contiguous(), inputs.to(dtype).contiguous(), weight.float().contiguous(), bias.float()
    )
    return out
