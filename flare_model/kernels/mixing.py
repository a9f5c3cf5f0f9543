"""FLARE's token mixing as one operator of torch, with its gradient.

B meshes, N points, ΣN points of all meshes together, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from flare_model.kernels.decode import decode_kernel
from flare_model.kernels.encoding import launch_encoding, scale_latents
from flare_model.kernels.gradients import latent_gradient_kernel, point_gradient_kernel
from flare_model.kernels.launches import LOGSUMEXP_TYPES, Points, on_device_of, sum_slices


def _decode(queries: Tensor, encoded: Tensor, points: Points) -> tuple[Tensor, Tensor]:
    """Mixed values, laid out as the keys, and l [H, ΣN]."""
    tiles, latents = points.tiles("decode")
    length, slices = points.slices(tiles, points.heads)
    decoded = torch.empty_like(points.keys)
    logsumexps = encoded.new_empty(points.heads, points.total, dtype=LOGSUMEXP_TYPES[points.keys.dtype])
    decode_kernel[(slices * points.heads,)](
        queries, points.keys, encoded, points.offsets, decoded, logsumexps,
        **points.place(length), total_points=points.total, **points.constants(tiles, latents),
        TILES=triton.cdiv(points.num_latents, latents), UNEVEN=points.num_latents % latents != 0,
        OWN=queries.dim() == 4, POLYNOMIALS=points.polynomials(tiles),
    )  # fmt: skip
    return decoded, logsumexps


def _latent_gradient(queries: Tensor, grad_decoded: Tensor, logsumexps: Tensor, points: Points) -> Tensor:
    """DZ, [B, H, M, D]."""
    heads, depth, num_latents = points.heads, points.depth, points.num_latents
    tiles, latents = points.tiles("latent_gradient")
    rows = heads * triton.cdiv(num_latents, latents)
    length, slices = points.slices(tiles, rows)
    parts = logsumexps.new_empty(slices, heads, num_latents, depth, dtype=torch.float32)
    latent_gradient_kernel[(slices * rows,)](
        queries, points.keys, grad_decoded, logsumexps, points.offsets, parts,
        **points.place(length), total_points=points.total, NARROW=points.narrow, **points.constants(tiles, latents),
        OWN=queries.dim() == 4, POLYNOMIALS=points.polynomials(tiles),
    )  # fmt: skip
    return sum_slices(parts, length, points)


def _point_gradients(
    queries: Tensor,
    values: Tensor,
    decoded: Tensor,
    grad_decoded: Tensor,
    encoded: Tensor,
    grad_encoded: Tensor,
    latent_logsumexps: Tensor,
    point_logsumexps: Tensor,
    points: Points,
) -> tuple[Tensor, Tensor, Tensor]:
    """DQ as the queries lie, in float32; dK and dV as the keys."""
    general, fast = points.tiles("point_gradient"), points.fast_tiles()
    paths = (fast, general) if fast else (general,)
    length, slices = points.slices(paths[0][0], points.heads)
    parts = encoded.new_empty(slices, points.heads, points.num_latents, points.depth)
    finished = torch.empty(slices, points.heads, dtype=torch.int8, device=values.device) if fast else None
    scales, bounds = scale_latents(encoded, grad_encoded, latent_logsumexps, points)
    accumulates = any(points.num_latents > points.latents_per_launch(*path) for path in paths)
    gradients = [torch.empty_like(t, dtype=torch.float32 if accumulates else t.dtype) for t in (points.keys, values)]
    for path in paths:
        latents_per_launch = points.latents_per_launch(*path)
        for latent in range(0, points.num_latents, latents_per_launch):
            point_gradient_kernel[(slices * points.heads,)](
                queries, points.keys, values, decoded, grad_decoded, point_logsumexps, encoded, grad_encoded,
                scales, bounds, finished, points.mask, points.offsets, parts, *gradients,
                **points.place(length), total_points=points.total, latent=latent, **points.constants(*path),
                NARROW=points.narrow, TILES=latents_per_launch // path[1], MASKED=points.mask is not None,
                UNEVEN=points.num_latents % latents_per_launch != 0, ADD=latent > 0, FAST=path is not general,
                OWN=queries.dim() == 4,
            )  # fmt: skip
    grad_keys, grad_values = (t.to(values.dtype) for t in gradients)
    grad_queries = sum_slices(parts, length, points) if queries.dim() == 4 else parts.sum(0)
    return grad_queries, grad_keys, grad_values


@torch.library.custom_op(
    "flare_model::mix",
    mutates_args=(),
    schema="(Tensor queries, Tensor keys, Tensor values, Tensor? mask, Tensor? offsets)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def mix_operator(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encode and decode.

    Args:
        queries: [H, M, D], or [B, H, M, D] where each mesh has its own; contiguous. They are rounded to the type of
            the keys, and their gradient is not.
        keys: [B, N, H, D], contiguous; [1, ΣN, H, D] with offsets.
        values: As the keys.
        mask: True where a point exists, [B, N], contiguous.
        offsets: First point of each mesh and the end of the last, [B + 1], on the device.

    Returns:
        Mixed values, as the keys; and for the backward pass: latents Z [B, H, M, D], their logsumexps L [B, H, M] and
        those of the points l [H, ΣN]; no gradient goes through these. All are float32, but L and l are float64 where
        the keys are float32.
    """
    points = Points(keys, queries.shape[-2], mask, offsets)
    with on_device_of(keys):
        cast_queries = queries.to(keys.dtype)
        encoded, latent_logsumexps = launch_encoding(cast_queries, values, points)
        decoded, point_logsumexps = _decode(cast_queries, encoded, points)
    return decoded, encoded, latent_logsumexps, point_logsumexps


@torch.library.custom_op(
    "flare_model::mix_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor queries, Tensor keys, Tensor values, Tensor? mask, Tensor? offsets,"
    " Tensor decoded, Tensor encoded, Tensor latent_logsumexps, Tensor point_logsumexps) -> (Tensor, Tensor, Tensor)",
)
def mix_backward_operator(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    offsets: Tensor | None,
    decoded: Tensor,
    encoded: Tensor,
    latent_logsumexps: Tensor,
    point_logsumexps: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; arguments as for and from `mix_operator`, the gradient contiguous."""
    points = Points(keys, queries.shape[-2], mask, offsets)
    with on_device_of(keys):
        cast_queries = queries.to(keys.dtype)
        grad_encoded = _latent_gradient(cast_queries, gradient, point_logsumexps, points)
        grad_queries, grad_keys, grad_values = _point_gradients(
            cast_queries, values, decoded, gradient, encoded, grad_encoded, latent_logsumexps, point_logsumexps, points
        )
        return grad_queries.to(queries.dtype), grad_keys, grad_values


@mix_operator.register_fake
def _(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    heads, num_latents, depth = queries.shape[-3:]
    meshes = keys.shape[0] if offsets is None else offsets.shape[0] - 1
    encoded = queries.new_empty(meshes, heads, num_latents, depth, dtype=torch.float32)
    total = keys.shape[0] * keys.shape[1]
    shapes = (encoded.shape[:-1], (heads, total))
    high, low = (encoded.new_empty(shape, dtype=LOGSUMEXP_TYPES[keys.dtype]) for shape in shapes)
    return torch.empty_like(values), encoded, high, low


@mix_backward_operator.register_fake
def _(gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = mix_backward_operator(gradient.contiguous(), *ctx.saved_tensors)
    return (*gradients, None, None)


mix_operator.register_autograd(_backward, setup_context=_remember)


def mix(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, offsets: Tensor | None = None
) -> Tensor:
    """FLARE's mixing by the kernels.

    Args:
        queries: Latent queries, [H, M, D]; or [B, H, M, D], where each mesh has its own, with gradients of its own.
        keys: Keys of the points, [B, N, H, D]; [ΣN, H, D] with offsets.
        values: As the keys.
        mask: True where a point exists, [B, N].
        offsets: First point of each mesh and the end of the last, [B + 1].

    Returns:
        As the keys.
    """
    keys, values = keys.contiguous(), values.contiguous()
    mixed: Tensor
    if offsets is not None:
        offsets = offsets.to(keys.device).contiguous()
        mixed = mix_operator(queries.contiguous(), keys[None], values[None], None, offsets)[0][0]
    else:
        mixed = mix_operator(queries.contiguous(), keys, values, None if mask is None else mask.contiguous(), None)[0]
    return mixed


def encode(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The first half of `mix`, without a gradient.

    Args:
        queries: Latent queries, [H, M, D].
        keys: Keys of the points, [B, N, H, D].
        values: As the keys.

    Returns:
        Latents Z [B, H, M, D], float32, and their logsumexps L [B, H, M]: float64 where the keys are float32, else
        float32 and to the base of two.
    """
    points = Points(keys.contiguous(), queries.shape[-2], None, None)
    with on_device_of(keys):
        return launch_encoding(queries.to(keys.dtype).contiguous(), values.contiguous(), points)


def decode(queries: Tensor, keys: Tensor, encoded: Tensor) -> Tensor:
    """The second half of `mix`, without a gradient.

    Args:
        queries: Latent queries, [H, M, D].
        keys: Keys of the points, [B, N, H, D].
        encoded: Latents, [B, H, M, D], float32.

    Returns:
        Mixed values, as the keys.
    """
    points = Points(keys.contiguous(), queries.shape[-2], None, None)
    with on_device_of(keys):
        return _decode(queries.to(keys.dtype).contiguous(), encoded.contiguous(), points)[0]


class Ranks(Protocol):
    """Processes that share the points of every mesh."""

    def merge(self, encoded: Tensor, logsumexps: Tensor, *, binary: bool) -> tuple[Tensor, Tensor]:
        """Z and L of whole meshes, merged from those of each process's points; L is -∞ where a process has none."""

    def total(self, part: Tensor) -> Tensor:
        """Sum over the processes."""


class _MixDivided(torch.autograd.Function):
    """`mix_operator` for the points of one of several processes: Z, L and dZ are those of whole meshes."""

    @staticmethod
    def forward(
        ctx: Any, ranks: Ranks, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None,
        offsets: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Mixed values; arguments as for `mix_operator`."""
        points, cast_queries = Points(keys, queries.shape[-2], mask, offsets), queries.to(keys.dtype)
        with on_device_of(keys):
            encoded, logsumexps = _encode_own(cast_queries, values, points)
            encoded, logsumexps = ranks.merge(encoded, logsumexps, binary=keys.dtype != torch.float32)
            encoded, logsumexps = encoded.contiguous(), logsumexps.contiguous()
            if points.total:
                decoded, point_logsumexps = _decode(cast_queries, encoded, points)
            else:
                decoded, point_logsumexps = torch.empty_like(values), logsumexps.new_empty(points.heads, 0)
        ctx.save_for_backward(queries, keys, values, mask, offsets, decoded, encoded, logsumexps, point_logsumexps)
        ctx.ranks = ranks
        return decoded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As `mix_backward_operator`, with dZ summed over the processes between the passes; dQ is of the own points."""
        queries, keys, values, mask, offsets, decoded, encoded, logsumexps, point_logsumexps = ctx.saved_tensors
        points, cast_queries = Points(keys, queries.shape[-2], mask, offsets), queries.to(keys.dtype)
        gradient = gradient.contiguous()
        with on_device_of(keys):
            if points.total == 0:
                ctx.ranks.total(torch.zeros_like(encoded))
                return None, torch.zeros_like(queries), torch.empty_like(keys), torch.empty_like(values), None, None
            grad_encoded = ctx.ranks.total(_latent_gradient(cast_queries, gradient, point_logsumexps, points))
            grad_queries, grad_keys, grad_values = _point_gradients(
                cast_queries, values, decoded, gradient, encoded, grad_encoded, logsumexps, point_logsumexps, points
            )
        return None, grad_queries.to(queries.dtype), grad_keys, grad_values, None, None


def _encode_own(queries: Tensor, values: Tensor, points: Points) -> tuple[Tensor, Tensor]:
    """Z and L of the points of this process; L is -∞ for meshes of which it has none."""
    if points.total == 0:
        shape = (points.meshes, points.heads, points.num_latents)
        encoded = values.new_zeros(*shape, points.depth, dtype=torch.float32)
        return encoded, encoded.new_full(shape, -math.inf, dtype=LOGSUMEXP_TYPES[values.dtype])
    encoded, logsumexps = launch_encoding(queries, values, points)
    if points.offsets is not None:
        return encoded, logsumexps.masked_fill((points.offsets.diff() == 0)[:, None, None], -math.inf)
    if points.mask is not None:
        return encoded, logsumexps.masked_fill(~points.mask.any(1)[:, None, None], -math.inf)
    return encoded, logsumexps


def mix_divided(
    ranks: Ranks,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """`mix` where several processes share the points of every mesh.

    Args:
        ranks: The processes.
        queries: Latent queries, [H, M, D]; their gradient is of the points of this process.
        keys: Keys of the points of this process; of any mesh, and of all, there may be none.
        values: As the keys.
        mask: True where a point exists, [B, N].
        offsets: First point of each mesh here and the end of the last, [B + 1].

    Returns:
        As the keys.
    """
    queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
    if offsets is not None:
        offsets = offsets.to(keys.device).contiguous()
        joined: Tensor = _MixDivided.apply(ranks, queries, keys[None], values[None], None, offsets)  # type: ignore[no-untyped-call]
        return joined[0]
    mask = None if mask is None else mask.contiguous()
    mixed: Tensor = _MixDivided.apply(ranks, queries, keys, values, mask, None)  # type: ignore[no-untyped-call]
    return mixed
