"""FLARE's token mixing of meshes divided over processes, by softmax matrices in chunks of points.

Only the encoding depends on points of other processes, and only through sums over points: each process encodes its own
points, and `PointRanks` merges the results. The kernels do the same in `flare_model.kernels.mixing`.

B meshes, N points of this process, H heads, D channels a head, M latents.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flare_model.layers.layout import Layout

_SCORES: Final = 1 << 24
"""Approximate number of scores in a chunk."""


def encode_divided(queries: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Latents of whole meshes, of which this process has some points.

    Args:
        queries: Latent queries, [H, M, D].
        keys: Keys of the points, [B, N, H, D] or [ΣN, H, D].
        values: As the keys.
        layout: How the points divide into meshes, and the processes that share them.

    Returns:
        [B, H, M, D], in float32 at least, the same in each process.
    """
    assert layout.ranks is not None
    with torch.autocast(keys.device.type, enabled=False):
        packed = layout.reduce(partial(encode_points, queries), keys, values)
        latents = layout.ranks.merged(packed[..., :-1], packed[..., -1])
        return latents.to(torch.promote_types(keys.dtype, torch.float32))


def decode_divided(queries: Tensor, keys: Tensor, latents: Tensor, layout: Layout) -> Tensor:
    """Latents onto the points of this process.

    Args:
        queries: Latent queries, which are the keys of this attention, [H, M, D].
        keys: Keys of the points, [B, N, H, D] or [ΣN, H, D].
        latents: [B, H, M, D].
        layout: How the points divide into meshes.

    Returns:
        As the keys.
    """
    with torch.autocast(keys.device.type, enabled=False):
        return layout.attend(partial(decode_points, queries), keys, of_meshes=[latents])


def encode_points(queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None) -> Tensor:
    """Weighted means of the values and, behind them, the logarithms of their weights' sums.

    Args:
        queries: Latent queries, [H, M, D].
        keys: Keys of the points, [B, N, H, D].
        values: As the keys.
        mask: True where a point exists, [B, N].

    Returns:
        [B, H, M, D + 1], float64.
    """
    packed: Tensor = _Encode.apply(queries, keys.transpose(1, 2), values.transpose(1, 2), mask)  # type: ignore[no-untyped-call]
    return packed


def decode_points(queries: Tensor, keys: Tensor, latents: Tensor, *, mask: Tensor | None) -> Tensor:
    """Attention of points to latents, where there may be no points at all.

    Args:
        queries: Latent queries, which are the keys of this attention, [H, M, D].
        keys: Keys of the points, [B, N, H, D].
        latents: [B, H, M, D].
        mask: Has no influence.

    Returns:
        [B, N, H, D].
    """
    del mask
    wide_queries, latents = queries.to(keys.dtype).expand(len(keys), -1, -1, -1), latents.to(keys.dtype)
    if keys.shape[1] == 0:
        return (keys.transpose(1, 2) @ wide_queries.mT @ latents).transpose(1, 2)
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(keys.transpose(1, 2), wide_queries, latents, scale=1.0).transpose(1, 2)


class _Encode(torch.autograd.Function):
    """Weighted means of the values and the logarithms of their weights' sums; nothing of size N·M is kept."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Of queries [H, M, D] and keys and values [B, H, N, D]: [B, H, M, D + 1], float64, the logarithms last."""
        wide = torch.promote_types(keys.dtype, torch.float32)
        shape = (len(keys), *queries.shape[:2])
        maximum, total = keys.new_full(shape, -math.inf, dtype=wide), keys.new_zeros(shape, dtype=wide)
        moment = keys.new_zeros(*shape, keys.shape[-1], dtype=wide)
        for chunk in _chunks(queries, keys):
            scores = _scores(queries.to(wide), keys[:, :, chunk].to(wide), _part(mask, chunk))
            new_maximum = torch.maximum(maximum, scores.amax(-1))
            finite_maximum = new_maximum.masked_fill(new_maximum == -math.inf, 0.0)
            weights, decay = (scores - finite_maximum[..., None]).exp(), (maximum - finite_maximum).exp()
            total = total * decay + weights.sum(-1)
            moment = moment * decay[..., None] + weights @ values[:, :, chunk].to(wide)
            maximum = new_maximum
        logsumexp = maximum.double() + total.double().log()
        empty = total == 0
        maximum, total = maximum.masked_fill(empty, 0.0), total.masked_fill(empty, 1.0)
        encoded = moment / total[..., None]
        ctx.save_for_backward(queries, keys, values, mask, encoded, maximum, total)
        return torch.cat([encoded.double(), logsumexp[..., None]], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With E the weights over their sums: dV = Eᵀ dZ, dS = E ∘ (dZ Vᵀ - dZ·Z + dL), dK = dSᵀ Q, dQ = dS K."""
        queries, keys, values, mask, encoded, maximum, total = ctx.saved_tensors
        wide = encoded.dtype
        wide_queries, slopes = queries.to(wide), gradient[..., :-1].to(wide)
        shift = (gradient[..., -1] - (gradient[..., :-1] * encoded).sum(-1)).to(wide)[..., None]
        grad_queries = torch.zeros_like(wide_queries)
        grad_keys, grad_values = torch.empty_like(keys), torch.empty_like(values)
        for chunk in _chunks(queries, keys):
            k, v = keys[:, :, chunk].to(wide), values[:, :, chunk].to(wide)
            scores = _scores(wide_queries, k, _part(mask, chunk))
            weights = (scores - maximum[..., None]).exp() / total[..., None]
            grad_values[:, :, chunk] = weights.mT @ slopes
            slope = weights * (slopes @ v.mT + shift)
            grad_keys[:, :, chunk] = slope.mT @ wide_queries
            grad_queries += (slope @ k).sum(0)
        return grad_queries.to(queries.dtype), grad_keys, grad_values, None


def _chunks(queries: Tensor, keys: Tensor) -> list[slice]:
    length = max(1, _SCORES // max(1, len(keys) * queries.shape[0] * queries.shape[1]))
    return [slice(start, start + length) for start in range(0, keys.shape[2], length)]


def _part(mask: Tensor | None, chunk: slice) -> Tensor | None:
    return None if mask is None else mask[:, chunk]


def _scores(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """[B, H, M, N]; -∞ where there is no point."""
    scores = queries @ keys.mT
    return scores if mask is None else scores.masked_fill(~mask[:, None, None, :], -math.inf)
