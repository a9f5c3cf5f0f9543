"""The residual pointwise network as one operator of torch, with its gradient and the LayerNorm before it.

N points, C channels. vectors are the biases of all layers, [layers, C]; where there is a LayerNorm, its weight and its
bias follow as two rows more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from flare_model.kernels.network import network_kernel
from flare_model.kernels.network_gradient import network_backward_kernel, network_gradient_kernel
from flare_model.kernels.tuning import INTERPRETED, NetworkTiles, gradient_tiles, network_tiles

DTYPES: Final = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}

_MAX_IN_REGISTERS: Final = 64
"""Most channels with which gradients of the matrices lie in registers; with more, kernels write their factors, and the
gradients are products of these."""

_SLICE: Final = 32 if INTERPRETED else 1024
"""Points of one of these products: few enough that there are products for all multiprocessors."""

_CHUNK: Final = 64 if INTERPRETED else 1 << 17
"""Points at a time, which limits the memory for these factors: 320 MiB for 128 channels and five layers."""


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def _multiprocessors(x: Tensor) -> int:
    return int(torch.cuda.get_device_properties(x.device).multi_processor_count) if x.is_cuda else 1


def _programs(x: Tensor, count: int, tiles: NetworkTiles) -> int:
    """Programs for so many points; each takes tile after tile."""
    return int(max(1, min(triton.cdiv(count, tiles.points), _multiprocessors(x) * tiles.programs)))


def _compile_options(weights: Tensor, vectors: Tensor, dtype: torch.dtype, tiles: NetworkTiles) -> dict[str, Any]:
    """Compile-time arguments of the kernels."""
    layers, channels = weights.shape[:2]
    network = {"LAYERS": layers, "C": channels, "NORM": len(vectors) > layers, "TYPE": DTYPES[dtype]}
    return network | {"POINTS": tiles.points, "num_warps": tiles.warps, "num_stages": tiles.stages}


@torch.library.custom_op(
    "flare_model::network",
    mutates_args=(),
    schema="(Tensor x, Tensor weights, Tensor vectors, float epsilon, ScalarType dtype) -> Tensor",
)
def network_operator(x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """Apply a network.

    Args:
        x: [..., C], contiguous.
        weights: Matrices of all layers, [layers, C, C], float32, contiguous.
        vectors: [layers, C] or, with a LayerNorm, [layers + 2, C]; float32, contiguous.
        epsilon: What the LayerNorm adds to a variance.
        dtype: Type of the products and of the result.

    Returns:
        As x, of that type.
    """
    out = torch.empty_like(x, dtype=dtype)
    tiles = network_tiles(x.shape[-1])
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        network_kernel[(_programs(x, _count(x), tiles),)](
            x, weights, vectors, out, _count(x), epsilon, **_compile_options(weights, vectors, dtype, tiles)
        )
    return out


@torch.library.custom_op(
    "flare_model::network_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor x, Tensor weights, Tensor vectors, float epsilon, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
)
def network_backward_operator(
    gradient: Tensor, x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weights and vectors; arguments as for `network_operator`, the gradient contiguous."""
    differentiate = _differentiate_at_once if x.shape[-1] <= _MAX_IN_REGISTERS else _differentiate_in_chunks
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return differentiate(gradient, x, weights, vectors, epsilon, dtype)


def _differentiate_at_once(
    gradient: Tensor, x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    norm = len(vectors) > len(weights)
    tiles = gradient_tiles(x.shape[-1], norm=norm)
    programs = _programs(x, _count(x), tiles)
    grad_x = torch.empty_like(x)
    grad_weights, grad_vectors = (
        weights.new_empty(programs, *weights.shape),
        vectors.new_empty(programs, *vectors.shape),
    )
    slopes_shape = (programs, len(weights) - 1, tiles.points, x.shape[-1]) if norm else (1,)
    slopes = x.new_empty(slopes_shape, dtype=dtype)
    network_gradient_kernel[(programs,)](
        x, weights, vectors, gradient, grad_x, grad_weights, grad_vectors, slopes, _count(x), epsilon,
        **_compile_options(weights, vectors, dtype, tiles),
    )  # fmt: skip
    return grad_x, grad_weights.sum(0), grad_vectors.sum(0)


def _differentiate_in_chunks(
    gradient: Tensor, x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x)
    grad_weights, grad_vectors = torch.zeros_like(weights), torch.zeros_like(vectors)
    layers, width = weights.shape[:2]
    tiles = gradient_tiles(width, norm=len(vectors) > layers)
    rows = [torch.split(tensor.view(-1, width), _CHUNK) for tensor in (x, gradient, grad_x)]
    for some_x, some_gradient, some_grad_x in zip(*rows, strict=True):
        slices = triton.cdiv(len(some_x), _SLICE)
        layer_inputs, grad_outputs = x.new_empty(2, layers, slices * _SLICE, width, dtype=dtype)
        programs = _programs(x, slices * _SLICE, tiles)
        shares = vectors.new_empty(programs, *vectors.shape)
        network_backward_kernel[(programs,)](
            some_x, weights, vectors, some_gradient, some_grad_x, layer_inputs, grad_outputs, shares,
            len(some_x), slices * _SLICE, epsilon,
            **_compile_options(weights, vectors, dtype, tiles),
        )  # fmt: skip
        products = _products(grad_outputs.view(-1, _SLICE, width).mT, layer_inputs.view(-1, _SLICE, width))
        grad_weights += products.view(layers, slices, width, width).sum(1)
        grad_vectors += shares.sum(0)
    return grad_x, grad_weights, grad_vectors


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Products of two batches of matrices, added and returned in float32."""
    return torch.bmm(left, right, out_dtype=torch.float32) if left.is_cuda else left.float() @ right.float()


@network_operator.register_fake
def _(x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@network_backward_operator.register_fake
def _(
    gradient: Tensor, x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weights), torch.empty_like(vectors)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.epsilon, ctx.dtype = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    found = network_backward_operator(gradient.contiguous(), *ctx.saved_tensors, ctx.epsilon, ctx.dtype)
    return (*found, None, None)


network_operator.register_autograd(_backward, setup_context=_remember)


def network(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype, norm: nn.LayerNorm | None = None
) -> Tensor:
    """A residual pointwise network whose layers all have C channels.

    Args:
        x: [..., C].
        weights: Matrices of the layers, each [C, C].
        biases: Biases of the layers, each [C].
        dtype: Type of the products and of the result, float16 or bfloat16; sums are float32.
        norm: LayerNorm that is applied to x first, in float32; None for none.

    Returns:
        [..., C].
    """
    vectors = [*biases] if norm is None else [*biases, norm.weight, norm.bias]
    epsilon = 0.0 if norm is None else norm.eps
    out: Tensor = network_operator(
        x.contiguous(), torch.stack([*weights]).float(), torch.stack(vectors).float(), epsilon, dtype
    )
    return out
