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
from flare_model.kernels.launches import LEVELS, Points, launching_on, sum_slices


def _decode(queries: Tensor, encoded: Tensor, points: Points) -> tuple[Tensor, Tensor]:
    """Mixed values, laid out as the keys, and l [H, ΣN]."""
    tiles, latents = points.tiles("decode")
    length, slices = points.slices(tiles, points.heads)
    decoded = torch.empty_like(points.keys)
    normalisers = encoded.new_empty(points.heads, points.total, dtype=LEVELS[points.keys.dtype])
    decode_kernel[(slices * points.heads,)](
        queries, points.keys, encoded, points.offsets, decoded, normalisers,
        **points.place(length), total_points=points.total, **points.constants(tiles, latents),
        TILES=triton.cdiv(points.num_latents, latents), UNEVEN=points.num_latents % latents != 0,
        OWN=queries.dim() == 4, POLYNOMIALS=points.polynomials(tiles),
    )  # fmt: skip
    return decoded, normalisers


def _latent_gradient(queries: Tensor, grad_decoded: Tensor, normalisers: Tensor, points: Points) -> Tensor:
    """DZ, [B, H, M, D]."""
    heads, depth, num_latents = points.heads, points.depth, points.num_latents
    tiles, latents = points.tiles("latent_gradient")
    rows = heads * triton.cdiv(num_latents, latents)
    length, slices = points.slices(tiles, rows)
    parts = normalisers.new_empty(slices, heads, num_latents, depth, dtype=torch.float32)
    latent_gradient_kernel[(slices * rows,)](
        queries, points.keys, grad_decoded, normalisers, points.offsets, parts,
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
    latent_normalisers: Tensor,
    point_normalisers: Tensor,
    points: Points,
) -> tuple[Tensor, Tensor, Tensor]:
    """DQ as the queries lie, in float32; dK and dV as the keys."""
    exact, quick = points.tiles("point_gradient"), points.quick_tiles()
    ways = (quick, exact) if quick else (exact,)
    length, slices = points.slices(ways[0][0], points.heads)
    parts = encoded.new_empty(slices, points.heads, points.num_latents, points.depth)
    finished = torch.empty(slices, points.heads, dtype=torch.int8, device=values.device) if quick else None
    scales, bounds = scale_latents(encoded, grad_encoded, latent_normalisers, points)
    several = any(points.num_latents > points.together(*way) for way in ways)
    gradients = [torch.empty_like(t, dtype=torch.float32 if several else t.dtype) for t in (points.keys, values)]
    for way in ways:
        together = points.together(*way)
        for latent in range(0, points.num_latents, together):
            point_gradient_kernel[(slices * points.heads,)](
                queries, points.keys, values, decoded, grad_decoded, point_normalisers, encoded, grad_encoded,
                scales, bounds, finished, points.mask, points.offsets, parts, *gradients,
                **points.place(length), total_points=points.total, latent=latent, **points.constants(*way),
                NARROW=points.narrow, TILES=together // way[1], MASKED=points.mask is not None,
                UNEVEN=points.num_latents % together != 0, ADD=latent > 0, QUICK=way is not exact,
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
        Mixed values, as the keys; and for the backward pass: latents Z [B, H, M, D], their normalisers L [B, H, M] and
        those of the points l [H, ΣN]; no gradient goes through these. All are float32, but L and l are float64 where
        the keys are float32.
    """
    points = Points(keys, queries.shape[-2], mask, offsets)
    with launching_on(keys):
        asking = queries.to(keys.dtype)
        encoded, latent_normalisers = launch_encoding(asking, values, points)
        decoded, point_normalisers = _decode(asking, encoded, points)
    return decoded, encoded, latent_normalisers, point_normalisers


@torch.library.custom_op(
    "flare_model::mix_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor queries, Tensor keys, Tensor values, Tensor? mask, Tensor? offsets,"
    " Tensor decoded, Tensor encoded, Tensor latent_normalisers, Tensor point_normalisers) -> (Tensor, Tensor, Tensor)",
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
    latent_normalisers: Tensor,
    point_normalisers: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; arguments as for and from `mix_operator`, the gradient contiguous."""
    points = Points(keys, queries.shape[-2], mask, offsets)
    with launching_on(keys):
        asking = queries.to(keys.dtype)
        grad_encoded = _latent_gradient(asking, gradient, point_normalisers, points)
        grad_queries, grad_keys, grad_values = _point_gradients(
            asking, values, decoded, gradient, encoded, grad_encoded, latent_normalisers, point_normalisers, points
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
    high, low = (encoded.new_empty(shape, dtype=LEVELS[keys.dtype]) for shape in shapes)
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
        queries: Latent queries, [H, M, D]; or [B, H, M, D], where each mesh has its own, whose gradients are apart.
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


class Ranks(Protocol):
    """Processes that share the points of every mesh."""

    def merge(self, encoded: Tensor, levels: Tensor, *, binary: bool) -> tuple[Tensor, Tensor]:
        """Z and L of whole meshes, of those that each process has; L is -∞ where it has no point."""

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
        points, asking = Points(keys, queries.shape[-2], mask, offsets), queries.to(keys.dtype)
        with launching_on(keys):
            encoded, levels = _encode_own(asking, values, points)
            encoded, levels = ranks.merge(encoded, levels, binary=keys.dtype != torch.float32)
            encoded, levels = encoded.contiguous(), levels.contiguous()
            if points.total:
                decoded, point_levels = _decode(asking, encoded, points)
            else:
                decoded, point_levels = torch.empty_like(values), levels.new_empty(points.heads, 0)
        ctx.save_for_backward(queries, keys, values, mask, offsets, decoded, encoded, levels, point_levels)
        ctx.ranks = ranks
        return decoded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As `mix_backward_operator`, with dZ summed over the processes between the passes; dQ is of the own points."""
        queries, keys, values, mask, offsets, decoded, encoded, levels, point_levels = ctx.saved_tensors
        points, asking = Points(keys, queries.shape[-2], mask, offsets), queries.to(keys.dtype)
        gradient = gradient.contiguous()
        with launching_on(keys):
            if points.total == 0:
                ctx.ranks.total(torch.zeros_like(encoded))
                return None, torch.zeros_like(queries), torch.empty_like(keys), torch.empty_like(values), None, None
            grad_encoded = ctx.ranks.total(_latent_gradient(asking, gradient, point_levels, points))
            grad_queries, grad_keys, grad_values = _point_gradients(
                asking, values, decoded, gradient, encoded, grad_encoded, levels, point_levels, points
            )
        return None, grad_queries.to(queries.dtype), grad_keys, grad_values, None, None


def _encode_own(queries: Tensor, values: Tensor, points: Points) -> tuple[Tensor, Tensor]:
    """Z and L of the points of this process; L is -∞ for meshes of which it has none."""
    if points.total == 0:
        shape = (points.meshes, points.heads, points.num_latents)
        encoded = values.new_zeros(*shape, points.depth, dtype=torch.float32)
        return encoded, encoded.new_full(shape, -math.inf, dtype=LEVELS[values.dtype])
    encoded, levels = launch_encoding(queries, values, points)
    if points.offsets is not None:
        return encoded, levels.masked_fill((points.offsets.diff() == 0)[:, None, None], -math.inf)
    if points.mask is not None:
        return encoded, levels.masked_fill(~points.mask.any(1)[:, None, None], -math.inf)
    return encoded, levels


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
