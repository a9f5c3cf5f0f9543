"""FLARE's mixing on a CPU without gradients, of PyTorch's tensors, in float32.

Results don't depend on the number of threads.

B meshes, N points, ΣN points of all meshes together, S slices of points, H heads, D channels a head, M latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from flare_model.kernels.cpu.attention import BLOCK, decoder, decoder_scratch, encoder, encoder_scratch
from flare_model.kernels.cpu.compiling import pointers
from flare_model.kernels.cpu.expressions import LANES
from flare_model.kernels.cpu.threads import run

_LENGTH: Final = 16 * BLOCK
"""Points of a slice, of meshes that aren't large."""
_SLICES: Final = 64
"""Slices of a mesh at most: what each leaves is H·M·(D + 2) numbers."""


def mix(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, offsets: Tensor | None = None
) -> Tensor:
    """Latents attend to the points of their mesh, then the points to the latents, with scale 1.

    Args:
        queries: Latent queries, [H, M, D].
        keys: [B, N, H, D], or [ΣN, H, D] with offsets.
        values: As the keys.
        mask: None; padded batches are left to attention calls.
        offsets: First point of each mesh and the end of the last, [B + 1].

    Returns:
        Laid out as the keys.
    """
    assert mask is None
    slices = _Slices.of(_bounds(keys) if offsets is None else offsets.tolist())
    joined_keys, joined_values = (t.detach().flatten(0, -3).contiguous() for t in (keys, values))
    latents, _ = _encode(queries.detach(), joined_keys, joined_values, slices)
    return _decode(queries.detach(), joined_keys, latents, slices).view(keys.shape)


def encode(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What latents see of the points of each mesh.

    Args:
        queries: Latent queries, [H, M, D].
        keys: [B, N, H, D].
        values: As the keys.

    Returns:
        Weighted means of the values, [B, H, M, D], float32, and the logarithms of their weights' sums, [B, H, M],
        float64.
    """
    joined_keys, joined_values = (t.detach().flatten(0, 1).contiguous() for t in (keys, values))
    return _encode(queries.detach(), joined_keys, joined_values, _Slices.of(_bounds(keys)))


def decode(queries: Tensor, keys: Tensor, latents: Tensor) -> Tensor:
    """What points see of the latents of their mesh.

    Args:
        queries: Latent queries, [H, M, D].
        keys: [B, N, H, D].
        latents: [B, H, M, D].

    Returns:
        Laid out as the keys.
    """
    joined = keys.detach().flatten(0, 1).contiguous()
    mixed = _decode(queries.detach(), joined, latents.detach().to(torch.float32), _Slices.of(_bounds(keys)))
    return mixed.view(keys.shape)


@dataclass(frozen=True)
class _Slices:
    """Points cut into slices of one mesh each, by the sizes of the meshes alone.

    Attributes:
        bounds: First point of each slice and its end, S pairs.
        meshes: The mesh of each slice.
        firsts: First slice of each mesh.
    """

    bounds: list[tuple[int, int]]
    meshes: list[int]
    firsts: list[int]

    @classmethod
    def of(cls, mesh_bounds: Sequence[int]) -> _Slices:
        """Cut meshes, of which the first point of each and the end of the last are given; each has a point."""
        assert all(first < end for first, end in itertools.pairwise(mesh_bounds))
        slices = cls([], [], [])
        for mesh, (first, end) in enumerate(itertools.pairwise(mesh_bounds)):
            length = max(_LENGTH, -(-(end - first) // (_SLICES * BLOCK)) * BLOCK)
            slices.firsts.append(len(slices.bounds))
            slices.bounds.extend((start, min(start + length, end)) for start in range(first, end, length))
            slices.meshes.extend([mesh] * (len(slices.bounds) - len(slices.meshes)))
        return slices


def _bounds(batch: Tensor) -> Sequence[int]:
    """First point of each mesh and the end of the last, of a batch [B, N, ...]."""
    meshes, points = batch.shape[:2]
    return range(0, meshes * points + 1, points)


def _encode(queries: Tensor, keys: Tensor, values: Tensor, slices: _Slices) -> tuple[Tensor, Tensor]:
    """Latents [B, H, M, D] and logsumexps [B, H, M] of joined points [N, H, D]."""
    heads, num_latents, depth = queries.shape
    tiles = -(-num_latents // LANES)
    filled = F.pad(queries, (0, 0, 0, tiles * LANES - num_latents))
    rows = filled.view(heads, tiles, LANES, depth).mT.contiguous()
    parts = keys.new_empty(len(slices.bounds), heads, tiles, 2 + depth, LANES)
    kernel = encoder(depth)

    def work(scratch: Tensor, first: int, end: int) -> None:
        for item in range(first, end):
            part, head = divmod(item, heads)
            kernel(*pointers(rows, keys, values, parts[part], scratch), heads, tiles, head, *slices.bounds[part])

    run(work, len(slices.bounds) * heads, lambda: keys.new_empty(encoder_scratch(depth)))
    found = parts.transpose(2, 3).flatten(-2)[..., :num_latents].double()
    return _merge(found, slices)


def _merge(parts: Tensor, slices: _Slices) -> tuple[Tensor, Tensor]:
    """Latents and logsumexps of meshes from largest scores, sums and moments of slices, [S, H, 2 + D, M], float64.

    Slices are added in their order.
    """
    largest, sums = parts.numpy()[:, :, 0], parts.numpy()[:, :, 1:]
    # Scores of ∞ end as NaN, as they do in PyTorch.
    with np.errstate(invalid="ignore", over="ignore"):
        of_meshes = np.maximum.reduceat(largest, slices.firsts)
        weights = np.exp(largest - of_meshes[slices.meshes])
        totals = np.add.reduceat(sums * weights[:, :, None], slices.firsts)
        latents = np.swapaxes(totals[:, :, 1:] / totals[:, :, :1], 2, 3)
        logsumexps = of_meshes + np.log(totals[:, :, 0])
    return torch.from_numpy(latents).float().contiguous(), torch.from_numpy(logsumexps)


def _decode(queries: Tensor, keys: Tensor, latents: Tensor, slices: _Slices) -> Tensor:
    """Mixed values [N, H, D] of joined points."""
    heads, num_latents, depth = queries.shape
    # The kernel takes four queries at a time.
    four = torch.cat([queries, queries[:, -1:].expand(-1, -num_latents % 4, -1)], dim=1).contiguous()
    latents, mixed = latents.contiguous(), torch.empty_like(keys)
    kernel = decoder(depth)

    def work(scratch: Tensor, first: int, end: int) -> None:
        for item in range(first, end):
            part, head = divmod(item, heads)
            arrays = pointers(four, latents[slices.meshes[part]], keys, mixed, scratch)
            kernel(*arrays, heads, num_latents, head, *slices.bounds[part])

    run(work, len(slices.bounds) * heads, lambda: keys.new_empty(decoder_scratch(depth, num_latents)))
    return mixed
