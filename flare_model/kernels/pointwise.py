"""Residual pointwise networks as operators of torch, with their gradients and the LayerNorm before them.

N points, C channels, K networks. vectors are the biases of all layers, [layers, C]; where there is a LayerNorm, its
weight and its bias follow as two rows more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flare_model.kernels.network import network_kernel
from flare_model.kernels.network_gradient import network_backward_kernel, network_gradient_kernel
from flare_model.kernels.tuning import INTERPRETED, NetworkTiles, gradient_tiles, network_tiles

DTYPES: Final = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}

_MAX_IN_REGISTERS: Final = 64
"""Most channels with which gradients of the matrices lie in registers; with more, kernels write their factors, and the
gradients are products of these. With more, the registers of the forward kernel hold no x to be added, and its shared
memory the matrices of one network only."""

_MAX_TOGETHER: Final = 2
"""Most networks of one forward kernel: the shared memory of two programs holds no more matrices."""

_SLICE: Final = 32 if INTERPRETED else 1024
"""Points of one of these products: few enough that there are products for all multiprocessors."""

_CHUNK: Final = 64 if INTERPRETED else 1 << 17
"""Points at a time, which limits the memory for these factors: 320 MiB for 128 channels and five layers."""


def count_points(x: Tensor) -> int:
    """N of [..., C]."""
    return x.numel() // x.shape[-1]


def _multiprocessors(x: Tensor) -> int:
    return int(torch.cuda.get_device_properties(x.device).multi_processor_count) if x.is_cuda else 1


def count_programs(x: Tensor, count: int, tiles: NetworkTiles) -> int:
    """Programs for so many points; each takes tile after tile."""
    return int(max(1, min(triton.cdiv(count, tiles.points), _multiprocessors(x) * tiles.programs)))


def _compile_options(weights: Tensor, vectors: Tensor, dtype: torch.dtype, tiles: NetworkTiles) -> dict[str, Any]:
    """Compile-time arguments of the kernels."""
    layers, channels = weights.shape[-3:-1]
    network = {"LAYERS": layers, "C": channels, "NORM": _has_norm(weights, vectors), "TYPE": DTYPES[dtype]}
    return network | {"POINTS": tiles.points, "num_warps": tiles.warps, "num_stages": tiles.stages}


def _has_norm(weights: Tensor, vectors: Tensor) -> bool:
    """Whether a LayerNorm goes before the network."""
    return vectors.shape[-2] > weights.shape[-3]


def _launch(
    x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype, out: Tensor, *, residual: bool
) -> None:
    """Write all networks of weights [K, layers, C, C] and vectors [K, rows, C] to out, [K, ..., C]."""
    tiles = network_tiles(x.shape[-1], networks=len(weights))
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        network_kernel[(count_programs(x, count_points(x), tiles),)](
            x, weights, vectors, out, count_points(x), epsilon, NETWORKS=len(weights), RESIDUAL=residual,
            **_compile_options(weights, vectors, dtype, tiles),
        )  # fmt: skip


@torch.library.custom_op(
    "flare_model::network",
    mutates_args=(),
    schema="(Tensor x, Tensor weights, Tensor vectors, float epsilon, ScalarType dtype, bool residual) -> Tensor",
)
def network_operator(
    x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype, residual: bool
) -> Tensor:
    """Apply a network.

    Args:
        x: [..., C], contiguous.
        weights: Matrices of all layers, [layers, C, C], float32, contiguous.
        vectors: [layers, C] or, with a LayerNorm, [layers + 2, C]; float32, contiguous.
        epsilon: What the LayerNorm adds to a variance.
        dtype: Type of the products and, without `residual`, of the result.
        residual: Add x, in float32.

    Returns:
        As x, of `dtype`; with `residual` of the type of x.
    """
    in_kernel = residual and x.shape[-1] <= _MAX_IN_REGISTERS
    out = torch.empty_like(x, dtype=x.dtype if in_kernel else dtype)
    _launch(x, weights[None], vectors[None], epsilon, dtype, out, residual=in_kernel)
    return out if in_kernel or not residual else x + out


@torch.library.custom_op(
    "flare_model::network_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor x, Tensor weights, Tensor vectors, float epsilon, ScalarType dtype,"
    " bool residual) -> (Tensor, Tensor, Tensor)",
)
def network_backward_operator(
    gradient: Tensor,
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    epsilon: float,
    dtype: torch.dtype,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weights and vectors; arguments as for `network_operator`, the gradient contiguous."""
    grad_x = torch.empty_like(x)
    added = gradient if residual else None
    return grad_x, *_differentiate(gradient, added, x, weights, vectors, epsilon, dtype, grad_x)


def _differentiate(
    gradient: Tensor,
    added: Tensor | None,
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    epsilon: float,
    dtype: torch.dtype,
    grad_x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and vectors; that of x, to which `added` is added, is written to grad_x.

    `added` may be grad_x itself.
    """
    differentiate = _differentiate_at_once if x.shape[-1] <= _MAX_IN_REGISTERS else _differentiate_in_chunks
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return differentiate(gradient, added, x, weights, vectors, epsilon, dtype, grad_x)


def _differentiate_at_once(
    gradient: Tensor,
    added: Tensor | None,
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    epsilon: float,
    dtype: torch.dtype,
    grad_x: Tensor,
) -> tuple[Tensor, Tensor]:
    norm = _has_norm(weights, vectors)
    tiles = gradient_tiles(x.shape[-1], norm=norm)
    programs = count_programs(x, count_points(x), tiles)
    grad_weights, grad_vectors = (
        weights.new_empty(programs, *weights.shape),
        vectors.new_empty(programs, *vectors.shape),
    )
    slopes_shape = (programs, len(weights) - 1, tiles.points, x.shape[-1]) if norm else (1,)
    slopes = x.new_empty(slopes_shape, dtype=dtype)
    network_gradient_kernel[(programs,)](
        x, weights, vectors, gradient, grad_x if added is None else added, grad_x, grad_weights, grad_vectors, slopes,
        count_points(x), epsilon, ADD=added is not None, **_compile_options(weights, vectors, dtype, tiles),
    )  # fmt: skip
    return grad_weights.sum(0), grad_vectors.sum(0)


def _differentiate_in_chunks(
    gradient: Tensor,
    added: Tensor | None,
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    epsilon: float,
    dtype: torch.dtype,
    grad_x: Tensor,
) -> tuple[Tensor, Tensor]:
    grad_weights, grad_vectors = torch.zeros_like(weights), torch.zeros_like(vectors)
    layers, width = weights.shape[:2]
    tiles = gradient_tiles(width, norm=_has_norm(weights, vectors))
    tensors = (x, gradient, grad_x if added is None else added, grad_x)
    for some_x, some_gradient, some_added, some_grad_x in zip(
        *(torch.split(tensor.view(-1, width), _CHUNK) for tensor in tensors), strict=True
    ):
        slices = triton.cdiv(len(some_x), _SLICE)
        layer_inputs, grad_outputs = x.new_empty(2, layers, slices * _SLICE, width, dtype=dtype)
        programs = count_programs(x, slices * _SLICE, tiles)
        shares = vectors.new_empty(programs, *vectors.shape)
        network_backward_kernel[(programs,)](
            some_x, weights, vectors, some_gradient, some_added, some_grad_x, layer_inputs, grad_outputs, shares,
            len(some_x), slices * _SLICE, epsilon, ADD=added is not None,
            **_compile_options(weights, vectors, dtype, tiles),
        )  # fmt: skip
        products = _products(grad_outputs.view(-1, _SLICE, width).mT, layer_inputs.view(-1, _SLICE, width))
        grad_weights += products.view(layers, slices, width, width).sum(1)
        grad_vectors += shares.sum(0)
    return grad_weights, grad_vectors


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Products of two batches of matrices, added and returned in float32."""
    return torch.bmm(left, right, out_dtype=torch.float32) if left.is_cuda else left.float() @ right.float()


@network_operator.register_fake
def _(x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype, residual: bool) -> Tensor:
    return torch.empty_like(x, dtype=x.dtype if residual else dtype)


@network_backward_operator.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    epsilon: float,
    dtype: torch.dtype,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weights), torch.empty_like(vectors)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.epsilon, ctx.dtype, ctx.residual = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    found = network_backward_operator(gradient.contiguous(), *ctx.saved_tensors, ctx.epsilon, ctx.dtype, ctx.residual)
    return (*found, None, None, None)


network_operator.register_autograd(_backward, setup_context=_remember)


class _Networks(torch.autograd.Function):
    """K networks of the same LayerNorm and x, which is passed on: so its whole gradient is added up by the kernels.

    An operator could not pass x on, as what it returns must not be what it was given.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weights, vectors)
        ctx.epsilon, ctx.dtype = epsilon, dtype
        ctx.set_materialize_grads(False)
        together = _MAX_TOGETHER if x.shape[-1] <= _MAX_IN_REGISTERS else 1
        outs: list[Tensor] = []
        pairs = zip(torch.split(weights, together), torch.split(vectors, together), strict=True)
        for some_weights, some_vectors in pairs:
            out = x.new_empty(len(some_weights), *x.shape, dtype=dtype)
            _launch(x, some_weights, some_vectors, epsilon, dtype, out, residual=False)
            outs += out.unbind(0)
        return (x, *outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, passed: Tensor | None, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weights, vectors = ctx.saved_tensors
        grad_x, grad_weights, grad_vectors = torch.empty_like(x), torch.zeros_like(weights), torch.zeros_like(vectors)
        added = None if passed is None else passed.contiguous()
        for number, gradient in enumerate(gradients):
            if gradient is not None:
                of_weights, of_vectors = _differentiate(
                    gradient.contiguous(), added, x, weights[number], vectors[number], ctx.epsilon, ctx.dtype, grad_x
                )
                grad_weights[number], grad_vectors[number] = of_weights, of_vectors
                added = grad_x
        return added, grad_weights, grad_vectors, None, None


def network(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dtype: torch.dtype,
    norm: nn.LayerNorm | None = None,
    *,
    residual: bool = False,
) -> Tensor:
    """A residual pointwise network whose layers all have C channels.

    Args:
        x: [..., C].
        weights: Matrices of the layers, each [C, C].
        biases: Biases of the layers, each [C].
        dtype: Type of the products and of the result, float16 or bfloat16; sums are float32.
        norm: LayerNorm that is applied to x first, in float32; None for none.
        residual: Add x to the result, which then has the type of x.

    Returns:
        [..., C].
    """
    out: Tensor = network_operator(
        x.contiguous(),
        torch.stack([*weights]).float(),
        torch.stack(_vectors(biases, norm)).float(),
        0.0 if norm is None else norm.eps,
        dtype,
        residual,
    )
    return out


def networks(
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
    norm: nn.LayerNorm,
) -> tuple[Tensor, ...]:
    """Several residual pointwise networks, with as many layers each, of one LayerNorm of x.

    Args:
        x: [..., C].
        weights: Of each network the matrices of its layers, each [C, C].
        biases: Of each network the biases of its layers, each [C].
        dtype: Type of the products and of the results, float16 or bfloat16; sums are float32.
        norm: LayerNorm that is applied to x first, in float32.

    Returns:
        x itself, and of each network [..., C]. Whatever else needs x should take the one that is returned: its gradient
        is then added in the kernels.
    """
    matrices = torch.stack([weight for some in weights for weight in some]).float()
    vectors = torch.stack([vector for some in biases for vector in _vectors(some, norm)]).float()
    cut = [t.view(len(weights), -1, *t.shape[1:]) for t in (matrices, vectors)]
    found: tuple[Tensor, ...] = _Networks.apply(  # type: ignore[no-untyped-call]
        x.contiguous(), *cut, norm.eps, dtype
    )
    return found


def _vectors(biases: Sequence[Tensor], norm: nn.LayerNorm | None) -> list[Tensor]:
    return [*biases] if norm is None else [*biases, norm.weight, norm.bias]
