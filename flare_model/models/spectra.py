"""Spectra of FLARE's heads: eigenvalues of each head's token mixing matrix W = W_decode · W_encode.

FLARE, section 3.3 and Algorithm 1; without forming W, and without overflow: with scores s, L = logsumexp of s over the
points and l = logsumexp over the latents, J = exp(s - L/2 - l/2) is at most 1, and W is similar to Jᵀ J, whose
eigenvalues are those of J Jᵀ.

N points, H heads, D channels a head, M latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flare_model.layers.mixer import LatentMixing
from lpbf_data.errors import UsageError

_CHUNK_NUMBERS: Final = 1 << 22
"""Scores that are held at a time; a few arrays of so many float64 numbers, 32 MiB each."""


@dataclass(frozen=True)
class BlockSpectrum:
    """Eigenvalues of one block's heads.

    Attributes:
        block: Number of the block, from 0.
        eigenvalues: [H, M] float64, largest first.
    """

    block: int
    eigenvalues: NDArray[np.float64]


@torch.no_grad()
def spectra(model: nn.Module, points: Tensor, features: Tensor | None = None) -> list[BlockSpectrum]:
    """Spectra of every block of a model on one mesh, from the queries and keys of the model's own forward pass.

    Each is computed when its block mixes, from scores in chunks of points: apart from the forward pass, memory grows
    with neither N · M nor the number of blocks.

    Args:
        model: FLARE, or another model whose blocks mix by [LatentMixing][flare_model.layers.mixer.LatentMixing].
        points: Scaled points as the model takes them, [N, 3].
        features: Scaled features, [N, F].

    Returns:
        A spectrum for each block, in the order in which the model computes them.

    Raises:
        UsageError: If no block mixes in that way.
    """
    found: list[BlockSpectrum] = []

    def record(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        queries, keys = inputs[:2]
        found.append(BlockSpectrum(len(found), _eigenvalues(queries, keys.flatten(0, -3))))

    dtype = next(model.parameters()).dtype
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, LatentMixing):
                stack.enter_context(module.register_forward_pre_hook(record))
        stack.enter_context(torch.autocast(points.device.type, enabled=False))
        model(points.to(dtype), None if features is None else features.to(dtype))
    if not found:
        raise UsageError(
            "the spectrum is defined where the same latents and keys encode and decode, as in FLARE without "
            "separate_decoding and latent_layers; this model has no such block"
        )
    return found


def _scores(queries: Tensor, keys: Tensor) -> Iterator[Tensor]:
    """Scores of all heads, [H, M, n] float64, for one chunk of n points after the other.

    Args:
        queries: Latent queries, [H, M, D].
        keys: Keys of the points, [N, H, D].
    """
    heads, latents, _ = queries.shape
    step = max(1, _CHUNK_NUMBERS // (heads * latents))
    for part in torch.split(keys, step):
        yield torch.einsum("hmd,nhd->hmn", queries.double(), part.double())


def _latent_sums(queries: Tensor, keys: Tensor) -> Tensor:
    """L: logsumexp of the scores over the points, [H, M]."""
    total = queries.new_full(queries.shape[:2], -torch.inf, dtype=torch.float64)
    for scores in _scores(queries, keys):
        total = torch.logaddexp(total, scores.logsumexp(dim=2))
    return total


def _chunk_of_j(scores: Tensor, latent_sums: Tensor) -> Tensor:
    """J for a chunk of points, [H, M, n]."""
    point_sums = scores.logsumexp(dim=1, keepdim=True)
    return (scores - 0.5 * latent_sums[:, :, None] - 0.5 * point_sums).exp()


def _eigenvalues(queries: Tensor, keys: Tensor) -> NDArray[np.float64]:
    """Eigenvalues of J Jᵀ for every head, [H, M], largest first."""
    sums = _latent_sums(queries, keys)
    gram = sums.new_zeros(*sums.shape, sums.shape[1])
    for scores in _scores(queries, keys):
        j = _chunk_of_j(scores, sums)
        gram += j @ j.mT
    values: NDArray[np.float64] = torch.linalg.eigvalsh(gram).flip(1).cpu().numpy()
    return values
