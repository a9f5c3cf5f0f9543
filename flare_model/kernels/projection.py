"""Layers of the projections in float32, and LayerNorm, as operations with gradients; float_layers.py has their kernels.

N points, IN channels in, OUT channels out, C channels of a LayerNorm.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flare_model.kernels.float_layers import (
    layer_gradient_kernel,
    layer_kernel,
    norm_gradient_kernel,
    norm_kernel,
)
from flare_model.kernels.launches import on_device_of, product_precision
from flare_model.kernels.network_launches import count_points, count_programs
from flare_model.kernels.tuning import NetworkTiles, float_layer_tiles, norm_tiles

_LEAST: int = 16
"""Least channels of a tile, as the least width of a product."""
_SLICE: int = 16
"""Channels of one product: tensor cores add them in two steps, each of which cuts off what float32 can't hold."""
_ROWS: int = 32
"""Channels out that the gradient's kernel takes at a time, for the same reason; half as many take more products."""


class _Layer(torch.autograd.Function):
    """One layer; x and what is returned are [..., channels], and x is contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gelu: bool, residual: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.gelu, ctx.residual = gelu, residual
        out = x.new_empty(*x.shape[:-1], len(weight))
        tiles = float_layer_tiles(gradient=False)
        with on_device_of(x):
            layer_kernel[(count_programs(x, count_points(x), tiles),)](
                x, weight, bias, out, count_points(x), **_layer_options(weight, tiles, gelu=gelu, residual=residual)
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        gradient, tiles = gradient.contiguous(), float_layer_tiles(gradient=True)
        programs, wanted = count_programs(x, count_points(x), tiles), ctx.needs_input_grad[0]
        grad_x = torch.empty_like(x) if wanted else None
        grad_weights, grad_biases = weight.new_empty(programs, *weight.shape), bias.new_empty(programs, len(bias))
        options = _layer_options(weight, tiles, gelu=ctx.gelu, residual=ctx.residual)
        with on_device_of(x):
            layer_gradient_kernel[(programs,)](
                x, weight, bias, gradient, x if grad_x is None else grad_x, grad_weights, grad_biases, count_points(x),
                WANTED=wanted, ROWS=min(_ROWS, options["OUT_PADDED"]), **options,
            )  # fmt: skip
        return grad_x, grad_weights.sum(0), grad_biases.sum(0), None, None


class _Norm(torch.autograd.Function):
    """LayerNorm of [..., C], contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        out, tiles = torch.empty_like(x), norm_tiles(x.shape[-1])
        with on_device_of(x):
            norm_kernel[(count_programs(x, count_points(x), tiles),)](
                x, weight, bias, out, count_points(x), epsilon, **_norm_options(x, tiles)
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        tiles = norm_tiles(x.shape[-1])
        programs = count_programs(x, count_points(x), tiles)
        grad_x, (grad_weights, grad_biases) = torch.empty_like(x), weight.new_empty(2, programs, len(weight))
        with on_device_of(x):
            norm_gradient_kernel[(programs,)](
                x, weight, gradient.contiguous(), grad_x, grad_weights, grad_biases, count_points(x), ctx.epsilon,
                **_norm_options(x, tiles),
            )  # fmt: skip
        return grad_x, grad_weights.sum(0), grad_biases.sum(0), None


def apply_layer(x: Tensor, linear: nn.Linear, *, gelu: bool, residual: bool) -> Tensor:
    """A linear layer with what follows it: [x +] [gelu] (W x + b), in float32.

    Nothing is kept for the gradient but x: the rest is computed again. Products are of float32's accuracy, or of TF32
    where PyTorch was asked for it.

    Args:
        x: [..., IN], float32, of at least one point.
        linear: From IN to OUT channels, with a bias; `flare_model.kernels.support` says how many it may have.
        gelu: Apply GELU in its tanh form.
        residual: Add x; then IN is OUT.

    Returns:
        [..., OUT], float32.
    """
    out: Tensor = _Layer.apply(  # type: ignore[no-untyped-call]
        x.contiguous(), linear.weight.contiguous(), linear.bias, gelu, residual
    )
    return out


def apply_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm over the last dimension, in float32.

    Args:
        x: [..., C], float32, of at least one point.
        norm: With a weight and a bias; `flare_model.kernels.support` says which C.

    Returns:
        As x.
    """
    out: Tensor = _Norm.apply(x.contiguous(), norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return out


def _layer_options(weight: Tensor, tiles: NetworkTiles, *, gelu: bool, residual: bool) -> dict[str, Any]:
    """Compile-time arguments of the layer's kernels."""
    (out_padded, in_padded) = (max(_LEAST, triton.next_power_of_2(size)) for size in weight.shape)
    precision = "tf32" if product_precision(weight.dtype) == "tf32" else "tf32x3"
    sizes = {"IN": weight.shape[1], "OUT": weight.shape[0], "IN_PADDED": in_padded, "OUT_PADDED": out_padded}
    kind = {"GELU": gelu, "RESIDUAL": residual, "SLICE": _SLICE, "PRECISION": precision}
    return sizes | kind | {"POINTS": tiles.points, "num_warps": tiles.warps, "num_stages": tiles.stages}


def _norm_options(x: Tensor, tiles: NetworkTiles) -> dict[str, Any]:
    return {"C": x.shape[-1], "POINTS": tiles.points, "num_warps": tiles.warps, "num_stages": tiles.stages}
