"""FLARE's token mixing as two attention calls: the readable reference, and the fallback for every device.

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everyone uses)
from torch import Tensor


def mix(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Encode N points into M latents, decode the latents onto the points (FLARE, equations 5 and 6).

    The latents attend to the points, then the points attend to the latents; both with scale 1.

    Args:
        queries: Latent queries, [H, M, D].
        keys: Keys of the points, [B, H, N, D].
        values: Values of the points, [B, H, N, D].
        mask: True where a point exists, [B, N]; for padded batches. Every mesh needs a point.

    Returns:
        [B, H, N, D]; rows of points that don't exist mean nothing.
    """
    latents = queries.unsqueeze(0).expand(len(keys), -1, -1, -1)
    exists = None if mask is None else mask[:, None, None, :]
    encoded = F.scaled_dot_product_attention(latents, keys, values, attn_mask=exists, scale=1.0)
    return F.scaled_dot_product_attention(keys, latents, encoded, scale=1.0)


def mix_ragged(queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
    """The same for meshes joined along their points.

    Args:
        queries: Latent queries, [H, M, D].
        keys: Keys of all points, [ΣN, H, D].
        values: Values of all points, [ΣN, H, D].
        offsets: First point of each mesh and the end of the last, [B + 1].

    Returns:
        [ΣN, H, D].
    """
    bounds = offsets.tolist()
    mixed = [
        mix(queries, keys[a:b].transpose(0, 1).unsqueeze(0), values[a:b].transpose(0, 1).unsqueeze(0))
        for a, b in itertools.pairwise(bounds)
    ]
    return torch.cat([one.squeeze(0).transpose(0, 1) for one in mixed])
