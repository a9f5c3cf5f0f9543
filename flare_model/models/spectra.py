"""What each head of FLARE communicates: eigenvalues and eigenvectors of its matrix W = W_decode · W_encode.

FLARE, section 3.3 and Algorithm 1; without forming W, and without overflow: with scores s, L = logsumexp of s over the
points and l = logsumexp over the latents, J = exp(s - L/2 - l/2) is at most 1, and W is similar to Jᵀ J.

N points, C channels, H heads, D channels a head, M latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flare_model.layers.mixer import FlareMixer
from flare_model.models.backbone import Block
from flare_model.models.flare import Flare

_CHUNK_NUMBERS: Final = 1 << 22
"""Scores that are held at a time; a few arrays of so many float64 numbers, 32 MiB each."""


@dataclass(frozen=True)
class BlockSpectrum:
    """Eigenvalues of one block's heads.

    Attributes:
        block: Number of the block, from 0.
        eigenvalues: [H, M] float64, largest first.
        modes: Eigenvectors of J Jᵀ, one a column, in the same order, [H, M, M].
        latent_sums: L, the logsumexp of the scores over the points, [H, M].
    """

    block: int
    eigenvalues: NDArray[np.float64]
    modes: NDArray[np.float64]
    latent_sums: NDArray[np.float64]


def spectra(model: Flare, points: Tensor, features: Tensor | None = None) -> Iterator[BlockSpectrum]:
    """Spectra of every block of a model on one mesh, block after block.

    Memory grows with N · C and not with N · M: what enters a block is kept, all else is done in chunks of points.

    Args:
        model: FLARE.
        points: Scaled points as the model takes them, [N, 3].
        features: Scaled features, [N, F].
    """
    for number, (block, x) in enumerate(block_inputs(model, points, features)):
        yield _spectrum(number, block, x)


@torch.no_grad()
def block_inputs(model: Flare, points: Tensor, features: Tensor | None = None) -> Iterator[tuple[Block, Tensor]]:
    """Every block with what enters it, [N, C], computed in chunks of points; the forward pass of the model."""
    known = points if features is None else torch.cat([points, features], dim=-1)
    known = known.to(next(model.parameters()).dtype)
    with torch.autocast(points.device.type, enabled=False):
        x = torch.cat([model.enter(part) for part in torch.split(known, 1 << 16)])
        for block in model.blocks:
            assert isinstance(block, Block)
            yield block, x
            x = _through(block, x)


def _scores(block: Block, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Scores of all heads, [H, M, n] float64, for one chunk of n points after the other."""
    mixer = block.mixer
    assert isinstance(mixer, FlareMixer)
    queries = mixer.latent_queries.double()
    heads, latents, depth = queries.shape
    step = max(1, _CHUNK_NUMBERS // (heads * latents))
    for start in range(0, len(x), step):
        part = slice(start, min(start + step, len(x)))
        keys = mixer.keys(block.mixer_norm(x[part])).view(-1, heads, depth).double()
        yield part, torch.einsum("hmd,nhd->hmn", queries, keys)


def _latent_sums(block: Block, x: Tensor) -> Tensor:
    """L: logsumexp of the scores over the points, [H, M]."""
    total: Tensor | None = None
    for _, scores in _scores(block, x):
        part = scores.logsumexp(dim=2)
        total = part if total is None else torch.logaddexp(total, part)
    assert total is not None
    return total


def _chunk_of_j(scores: Tensor, latent_sums: Tensor) -> Tensor:
    """J for a chunk of points, [H, M, n]."""
    point_sums = scores.logsumexp(dim=1, keepdim=True)
    return (scores - 0.5 * latent_sums[:, :, None] - 0.5 * point_sums).exp()


@torch.no_grad()
def _spectrum(number: int, block: Block, x: Tensor) -> BlockSpectrum:
    with torch.autocast(x.device.type, enabled=False):
        sums = _latent_sums(block, x)
        gram = torch.zeros(*sums.shape, sums.shape[1], dtype=torch.float64, device=x.device)
        for _, scores in _scores(block, x):
            j = _chunk_of_j(scores, sums)
            gram += j @ j.mT
        values, vectors = torch.linalg.eigh(gram)
    found = (t.cpu().numpy() for t in (values.flip(1), vectors.flip(2), sums))
    return BlockSpectrum(number, *found)


@torch.no_grad()
def eigenvectors(block: Block, x: Tensor, spectrum: BlockSpectrum, count: int) -> NDArray[np.float64]:
    """Leading eigenvectors of W for every head: Λ_N^½ Jᵀ U Σ⁻¹.

    Args:
        block: The block.
        x: What enters it, [N, C].
        spectrum: Its spectrum on the same mesh.
        count: How many; those of eigenvalues that are zero in float64 come out as zero.

    Returns:
        [H, N, count].
    """
    sums = torch.from_numpy(spectrum.latent_sums).to(x.device)
    modes = torch.from_numpy(spectrum.modes[:, :, :count]).to(x.device)
    values = torch.from_numpy(spectrum.eigenvalues[:, None, :count]).to(x.device)
    inverse = torch.where(values > 1e-14, values.clamp_min(1e-300).rsqrt(), 0.0)
    parts = []
    with torch.autocast(x.device.type, enabled=False):
        for _, scores in _scores(block, x):
            j = _chunk_of_j(scores, sums)
            scale = (-0.5 * scores.logsumexp(dim=1)).exp()
            parts.append(scale[:, :, None] * (j.mT @ (modes * inverse)))
    return torch.cat(parts, dim=1).cpu().numpy()


def _through(block: Block, x: Tensor) -> Tensor:
    """What leaves a block, in chunks of points."""
    mixer = block.mixer
    assert isinstance(mixer, FlareMixer)
    sums = _latent_sums(block, x)
    heads, _, depth = mixer.latent_queries.shape
    latents = torch.zeros_like(mixer.latent_queries, dtype=torch.float64)
    for part, scores in _scores(block, x):
        values = mixer.values(block.mixer_norm(x[part])).view(-1, heads, depth).double()
        latents += torch.einsum("hmn,nhd->hmd", (scores - sums[:, :, None]).exp(), values)
    out = torch.empty_like(x)
    for part, scores in _scores(block, x):
        mixed = torch.einsum("hmn,hmd->nhd", scores.softmax(dim=1), latents).flatten(1).to(x.dtype)
        hidden = x[part] + mixer.leave(mixed)
        out[part] = hidden + block.pointwise(block.pointwise_norm(hidden))
    return out
