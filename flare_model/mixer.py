"""FLARE's token mixing as two attention calls: the readable reference, and the fallback for every device.

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everyone uses)
from torch import Tensor, nn

from flare_model.layout import Layout
from flare_model.pointwise import ResMLP


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
    return mix_meshes(queries, keys, values, Layout.of(keys.flatten(1), offsets, None))


def mix_meshes(queries: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """The same for meshes laid out in any way: keys and values are [B, N, H, D] or [ΣN, H, D], and so is the result."""

    def one_batch(keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return mix(queries, keys.transpose(1, 2), values.transpose(1, 2), mask).transpose(1, 2)

    return layout.attend(one_batch, keys, values)


class FlareMixer(nn.Module):
    """Token mixing through latents (section 3.2): learned queries, keys and values from deep networks.

    Args:
        channels: C.
        num_heads: H; it divides C.
        num_latents: M, latent tokens a head.
        layers: Residual layers in the key and value networks.
    """

    def __init__(self, channels: int, num_heads: int, num_latents: int, layers: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent_queries = nn.Parameter(torch.empty(num_heads, num_latents, channels // num_heads))
        self.keys = ResMLP(channels, channels, channels, layers)
        self.values = ResMLP(channels, channels, channels, layers)
        self.leave = nn.Linear(channels, channels)
        nn.init.normal_(self.latent_queries, std=0.1)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[B, N, C] or [ΣN, C] to the same."""
        keys = self.keys(x).unflatten(-1, (self.num_heads, -1))
        values = self.values(x).unflatten(-1, (self.num_heads, -1))
        mixed = mix_meshes(self.latent_queries.to(keys.dtype), keys, values, layout)
        out: Tensor = self.leave(mixed.flatten(-2))
        return out
