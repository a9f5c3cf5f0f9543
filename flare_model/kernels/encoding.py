"""Encoding as one operator of torch, with its gradient, where points are keys and values in one.

B meshes, N points, ΣN points of all meshes together, H heads, D channels a head, M latents.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
from torch import Tensor

from flare_model.kernels.encode import encode_kernel, merge_encoded_kernel
from flare_model.kernels.encode_gradient import encode_gradient_kernel
from flare_model.kernels.gradients import scale_latents_kernel
from flare_model.kernels.launches import LOGSUMEXP_TYPES, TYPES, Points, on_device_of

_MERGED_LATENTS: Final = 16
_MERGED_SLICES: Final = 16


def launch_encoding(queries: Tensor, values: Tensor, points: Points) -> tuple[Tensor, Tensor]:
    """Latents [B, H, M, D] and L [B, H, M]; queries are [H, M, D], or [B, H, M, D]."""
    heads, depth, num_latents = points.heads, points.depth, points.num_latents
    tiles, latents = points.tiles("encode")
    rows = heads * triton.cdiv(num_latents, latents)
    length, slices = points.slices(tiles, rows)
    maxima, sums = values.new_empty(2, slices, heads, num_latents, dtype=torch.float32)
    moments = values.new_empty(slices, heads, num_latents, depth, dtype=torch.float32)
    encode_kernel[(slices * rows,)](
        queries, points.keys, values, points.mask, points.offsets, maxima, sums, moments,
        **points.place(length), **points.constants(tiles, latents), MASKED=points.mask is not None,
        OWN=queries.dim() == 4, POLYNOMIALS=points.polynomials(tiles),
    )  # fmt: skip
    encoded = values.new_empty(points.meshes, heads, num_latents, depth, dtype=torch.float32)
    logsumexps = values.new_empty(points.meshes, heads, num_latents, dtype=LOGSUMEXP_TYPES[values.dtype])
    place = points.place(length)
    merge_encoded_kernel[(points.meshes * heads * triton.cdiv(num_latents, _MERGED_LATENTS),)](
        maxima, sums, moments, points.offsets, encoded, logsumexps,
        place["num_points"], num_latents, length,
        HEADS=heads, DEPTH=depth, LATENTS=_MERGED_LATENTS, SLICES=_MERGED_SLICES, JOINED=points.offsets is not None,
        FLOAT32=points.keys.dtype == torch.float32,
    )  # fmt: skip
    return encoded, logsumexps


def scale_latents(encoded: Tensor, grad_encoded: Tensor, logsumexps: Tensor, points: Points) -> tuple[Tensor, Tensor]:
    """Values of the latents that the gradient needs, [4, B·H·M] and [B·H, 2]; see `scale_latents_kernel`."""
    size = logsumexps.numel()
    scales, bounds = logsumexps.new_empty(4, size), encoded.new_empty(points.meshes * points.heads, 2)
    scale_latents_kernel[(len(bounds),)](
        encoded, grad_encoded, logsumexps, scales, bounds, size, points.num_latents,
        DEPTH=points.depth, LATENTS=triton.next_power_of_2(points.num_latents), TYPE=TYPES[points.keys.dtype],
    )  # fmt: skip
    return scales, bounds


def _differentiate(
    gradient: Tensor, queries: Tensor, encoded: Tensor, logsumexps: Tensor, points: Points
) -> tuple[Tensor, Tensor]:
    """DQ [H, M, D], float32, and the gradient of the points, laid out as they are."""
    tiles, latents = points.tiles("encode_gradient")
    latents_per_launch = points.latents_per_launch(tiles, latents)
    length, slices = points.slices(tiles, points.heads)
    parts = encoded.new_empty(slices, points.heads, points.num_latents, points.depth)
    scales, _ = scale_latents(encoded, gradient, logsumexps, points)
    dtype = points.keys.dtype
    found = torch.empty_like(points.keys, dtype=torch.float32 if points.num_latents > latents_per_launch else dtype)
    for latent in range(0, points.num_latents, latents_per_launch):
        encode_gradient_kernel[(slices * points.heads,)](
            queries, points.keys, gradient, scales, points.mask, points.offsets, parts, found,
            **points.place(length), latent=latent, **points.constants(tiles, latents),
            NARROW=points.narrow, TILES=latents_per_launch // latents, MASKED=points.mask is not None, ADD=latent > 0,
        )  # fmt: skip
    return parts.sum(0), found.to(dtype)


@torch.library.custom_op(
    "flare_model::encode",
    mutates_args=(),
    schema="(Tensor queries, Tensor points, Tensor? mask, Tensor? offsets) -> (Tensor, Tensor)",
)
def encode_operator(
    queries: Tensor, points: Tensor, mask: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Encode points that are keys and values.

    Args:
        queries: [H, M, D], contiguous. They are rounded to the type of the points, and their gradient is not.
        points: [B, N, H, D], contiguous; [1, ΣN, H, D] with offsets.
        mask: True where a point exists, [B, N], contiguous.
        offsets: First point of each mesh and the end of the last, [B + 1], on the device.

    Returns:
        Latents Z [B, H, M, D], float32; and for the backward pass their logsumexps L [B, H, M], float32, or float64
        where the points are float32, through which no gradient goes.
    """
    with on_device_of(points):
        return launch_encoding(queries.to(points.dtype), points, Points(points, queries.shape[1], mask, offsets))


@torch.library.custom_op(
    "flare_model::encode_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor queries, Tensor points, Tensor? mask, Tensor? offsets, Tensor encoded,"
    " Tensor logsumexps) -> (Tensor, Tensor)",
)
def encode_backward_operator(
    gradient: Tensor,
    queries: Tensor,
    points: Tensor,
    mask: Tensor | None,
    offsets: Tensor | None,
    encoded: Tensor,
    logsumexps: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and points; arguments as for and from `encode_operator`, the gradient contiguous."""
    cut = Points(points, queries.shape[1], mask, offsets)
    with on_device_of(points):
        grad_queries, grad_points = _differentiate(gradient, queries.to(points.dtype), encoded, logsumexps, cut)
    return grad_queries.to(queries.dtype), grad_points


@encode_operator.register_fake
def _(queries: Tensor, points: Tensor, mask: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    heads, num_latents, depth = queries.shape
    meshes = points.shape[0] if offsets is None else offsets.shape[0] - 1
    encoded = queries.new_empty(meshes, heads, num_latents, depth, dtype=torch.float32)
    return encoded, encoded.new_empty(encoded.shape[:-1], dtype=LOGSUMEXP_TYPES[points.dtype])


@encode_backward_operator.register_fake
def _(gradient: Tensor, queries: Tensor, points: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(queries), torch.empty_like(points)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = encode_backward_operator(gradient.contiguous(), *ctx.saved_tensors)
    return (*gradients, None, None)


encode_operator.register_autograd(_backward, setup_context=_remember)


def encode(queries: Tensor, points: Tensor, mask: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
    """Latents attend to points that are keys and values in one, with scale 1, by the kernels.

    Args:
        queries: Latent queries, [H, M, D].
        points: [B, N, H, D]; [ΣN, H, D] with offsets.
        mask: True where a point exists, [B, N].
        offsets: First point of each mesh and the end of the last, [B + 1].

    Returns:
        [B, H, M, D], float32.
    """
    points = points.contiguous() if offsets is None else points.contiguous()[None]
    offsets = None if offsets is None else offsets.to(points.device).contiguous()
    encoded: Tensor = encode_operator(
        queries.contiguous(), points, None if mask is None else mask.contiguous(), offsets
    )[0]
    return encoded
