"""Residual pointwise networks as operators of torch, with their gradients and the LayerNorm before them.

N points, C channels, K networks. vectors are the biases of all layers, [layers, C]; where there is a LayerNorm, its
weight and its bias follow as two rows more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from flare_model.kernels.network_launches import MAX_IN_REGISTERS, Parameters, differentiate, launch_networks

_MAX_TOGETHER: Final = 2
"""Most networks of one forward kernel: the shared memory of two programs holds no more matrices."""


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
    in_kernel = residual and x.shape[-1] <= MAX_IN_REGISTERS
    out = torch.empty_like(x, dtype=x.dtype if in_kernel else dtype)
    launch_networks(x, Parameters(weights[None], vectors[None], epsilon, dtype), out, residual=in_kernel)
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
    return grad_x, *differentiate(gradient, added, x, Parameters(weights, vectors, epsilon, dtype), grad_x)


@network_operator.register_fake
def _(x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype, residual: bool) -> Tensor:
    return torch.empty_like(x, dtype=x.dtype if residual else dtype)


@network_backward_operator.register_fake
def _(gradient: Tensor, x: Tensor, weights: Tensor, vectors: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weights), torch.empty_like(vectors)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.epsilon, ctx.dtype, ctx.residual = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    found = network_backward_operator(gradient.contiguous(), *ctx.saved_tensors, ctx.epsilon, ctx.dtype, ctx.residual)
    return (*found, None, None, None)


network_operator.register_autograd(_backward, setup_context=_remember)


@torch.library.custom_op(
    "flare_model::networks_backward",
    mutates_args=(),
    schema="(Tensor? passed, Tensor?[] gradients, Tensor x, Tensor weights, Tensor vectors, float epsilon,"
    " ScalarType dtype) -> (Tensor, Tensor, Tensor)",
)
def networks_backward_operator(
    passed: Tensor | None,
    gradients: Sequence[Tensor | None],
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    epsilon: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weights and vectors of several networks; an operator, so that a second derivative is refused.

    Args:
        passed: Gradient of x where it was passed on, contiguous; None for none.
        gradients: Of each network's output, contiguous; None for none.
        x: As of the networks, like the others.
        weights: [K, layers, C, C].
        vectors: [K, layers + 2, C].
        epsilon: What the LayerNorm adds to a variance.
        dtype: Type of the products.
    """
    grad_x, grad_weights, grad_vectors = torch.empty_like(x), torch.zeros_like(weights), torch.zeros_like(vectors)
    added, parameters = passed, Parameters(weights, vectors, epsilon, dtype)
    for number, gradient in enumerate(gradients):
        if gradient is not None:
            found = differentiate(gradient, added, x, parameters.of(number), grad_x)
            grad_weights[number], grad_vectors[number] = found
            added = grad_x
    if added is not grad_x:
        grad_x = torch.zeros_like(x) if passed is None else passed.clone()
    return grad_x, grad_weights, grad_vectors


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
        together = _MAX_TOGETHER if x.shape[-1] <= MAX_IN_REGISTERS else 1
        outs: list[Tensor] = []
        pairs = zip(torch.split(weights, together), torch.split(vectors, together), strict=True)
        for some_weights, some_vectors in pairs:
            out = x.new_empty(len(some_weights), *x.shape, dtype=dtype)
            launch_networks(x, Parameters(some_weights, some_vectors, epsilon, dtype), out, residual=False)
            outs += out.unbind(0)
        return (x, *outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        passed, *of_outs = (None if one is None else one.contiguous() for one in gradients)
        found = networks_backward_operator(passed, of_outs, *ctx.saved_tensors, ctx.epsilon, ctx.dtype)
        return (*found, None, None)


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
        x, on the same memory, and of each network [..., C]. Whatever else needs x should take the one that is returned:
        its gradient is then added in the kernels. It must not be changed in place.
    """
    matrices = torch.stack([weight for some in weights for weight in some]).float()
    vectors = torch.stack([vector for some in biases for vector in _vectors(some, norm)]).float()
    cut = [t.view(len(weights), -1, *t.shape[1:]) for t in (matrices, vectors)]
    passed, *outs = _Networks.apply(x.contiguous(), *cut, norm.eps, dtype)  # type: ignore[no-untyped-call]
    return (passed if x.requires_grad else x, *outs)


def _vectors(biases: Sequence[Tensor], norm: nn.LayerNorm | None) -> list[Tensor]:
    return [*biases] if norm is None else [*biases, norm.weight, norm.bias]
