"""The residual pointwise network as one operator of torch, with its gradient.

N points, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from flare_model.kernels.network import network_gradient_kernel, network_kernel
from flare_model.kernels.tuning import INTERPRETED

DTYPES: Final = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}

_POINTS: Final = 16 if INTERPRETED else 64
_GRADIENT_POINTS: Final = 16 if INTERPRETED else 128
_PROGRAMS_A_MULTIPROCESSOR: Final = 4


def _programs(x: Tensor, points: int, per_multiprocessor: int) -> int:
    """Programs for a tensor of points; each takes tile after tile."""
    count = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    return int(max(1, min(triton.cdiv(x.numel() // x.shape[-1], points), count * per_multiprocessor)))


@torch.library.custom_op(
    "flare_model::network",
    mutates_args=(),
    schema="(Tensor x, Tensor weights, Tensor biases, ScalarType dtype) -> Tensor",
)
def network_operator(x: Tensor, weights: Tensor, biases: Tensor, dtype: torch.dtype) -> Tensor:
    """Apply a network.

    Args:
        x: [..., C], contiguous.
        weights: Matrices of all layers, [layers, C, C], float32, contiguous.
        biases: [layers, C], float32, contiguous.
        dtype: Type of the products and of the result.

    Returns:
        As x, of that type.
    """
    out = torch.empty_like(x, dtype=dtype)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        network_kernel[(_programs(x, _POINTS, _PROGRAMS_A_MULTIPROCESSOR),)](
            x, weights, biases, out, x.numel() // x.shape[-1],
            LAYERS=len(weights), C=x.shape[-1], POINTS=_POINTS, TYPE=DTYPES[dtype], num_warps=4, num_stages=2,
        )  # fmt: skip
    return out


@torch.library.custom_op(
    "flare_model::network_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor x, Tensor weights, Tensor biases, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
)
def network_backward_operator(
    gradient: Tensor, x: Tensor, weights: Tensor, biases: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weights and biases; arguments as for `network_operator`, the gradient contiguous."""
    programs = _programs(x, _GRADIENT_POINTS, 1)
    grad_x = torch.empty_like(x)
    grad_weights, grad_biases = weights.new_empty(programs, *weights.shape), biases.new_empty(programs, *biases.shape)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        network_gradient_kernel[(programs,)](
            x, weights, biases, gradient, grad_x, grad_weights, grad_biases, x.numel() // x.shape[-1],
            LAYERS=len(weights), C=x.shape[-1], POINTS=_GRADIENT_POINTS, TYPE=DTYPES[dtype], num_warps=8, num_stages=1,
        )  # fmt: skip
    return grad_x, grad_weights.sum(0), grad_biases.sum(0)


@network_operator.register_fake
def _(x: Tensor, weights: Tensor, biases: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@network_backward_operator.register_fake
def _(
    gradient: Tensor, x: Tensor, weights: Tensor, biases: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weights), torch.empty_like(biases)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.dtype = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return (*network_backward_operator(gradient.contiguous(), *ctx.saved_tensors, ctx.dtype), None)


network_operator.register_autograd(_backward, setup_context=_remember)


def network(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """A residual pointwise network whose layers all have C channels.

    Args:
        x: [..., C].
        weights: Matrices of the layers, each [C, C].
        biases: Biases of the layers, each [C].
        dtype: Type of the products and of the result, float16 or bfloat16; sums are float32.

    Returns:
        [..., C].
    """
    out: Tensor = network_operator(x.contiguous(), torch.stack(list(weights)), torch.stack(list(biases)), dtype)
    return out
