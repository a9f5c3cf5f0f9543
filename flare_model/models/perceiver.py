"""PerceiverIO as FLARE's paper compares with it (appendix C.3): one encoding, blocks among latents, one decoding.

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flare_model.layers.attention import SelfAttention
from flare_model.layers.layout import Layout
from flare_model.layers.pointwise import FeedForward, ResMLP
from flare_model.models.backbone import Block
from flare_model.models.flare import initialise_linear
from flare_model.models.mesh_model import MeshModel, full_precision
from flare_model.sizes import PerceiverConfig


class Encoder(nn.Module):
    """A learned table of latents attends to the points; the latents themselves are not added.

    Args:
        channels: C.
        num_heads: H; it divides C.
        num_latents: M.
    """

    def __init__(self, channels: int, num_heads: int, num_latents: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.latents = nn.Parameter(torch.randn(num_latents, channels))
        self.keys = nn.Linear(channels, channels)
        self.values = nn.Linear(channels, channels)
        self.leave = nn.Linear(channels, channels)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[B, N, C] or [ΣN, C] to [B, M, C]."""
        x = self.norm(x)
        encoded: Tensor = self.leave(layout.reduce(self._encode, self.keys(x), self.values(x)))
        return encoded

    def _encode(self, keys: Tensor, values: Tensor, *, mask: Tensor | None) -> Tensor:
        latents = self.latents.to(keys.dtype).expand(keys.shape[0], -1, -1)
        return attend(latents, keys, values, self.num_heads, mask)


class Decoder(nn.Module):
    """The points attend to the latents, with queries from their hidden states; there is no residual around it.

    Args:
        channels: C.
        num_heads: H; it divides C.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent_norm = nn.LayerNorm(channels)
        self.norm = nn.LayerNorm(channels)
        self.queries = nn.Linear(channels, channels)
        self.keys = nn.Linear(channels, channels)
        self.values = nn.Linear(channels, channels)
        self.leave = nn.Linear(channels, channels)

    def forward(self, x: Tensor, latents: Tensor, layout: Layout) -> Tensor:
        """[B, N, C] or [ΣN, C], and latents [B, M, C], to the shape of the former."""
        latents = self.latent_norm(latents)
        of_meshes = self.keys(latents), self.values(latents)
        decoded = layout.attend(self._decode, self.queries(self.norm(x)), of_meshes=of_meshes)
        out: Tensor = self.leave(decoded)
        return out

    def _decode(self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None) -> Tensor:
        del mask  # It is of points; all latents are attended to.
        return attend(queries, keys, values, self.num_heads)


def attend(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of queries to keys and values, with scale 1/√D.

    Args:
        queries: [B, Q, C].
        keys: [B, K, C].
        values: [B, K, C].
        num_heads: H.
        mask: True where a key exists, [B, K].

    Returns:
        [B, Q, C].
    """
    exists = None if mask is None else mask[:, None, None, :]
    queries, keys, values = (
        t.reshape(*t.shape[:2], num_heads, t.shape[2] // num_heads).transpose(1, 2) for t in (queries, keys, values)
    )
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=exists).transpose(1, 2).flatten(-2)


class PerceiverIO(MeshModel):
    """PerceiverIO between the projections of FLARE.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: PerceiverConfig = PerceiverConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__(config.in_dim)
        width, heads, layers = config.channels, config.num_heads, config.projection_layers
        self.enter = ResMLP(config.in_dim, width, width, layers, input_residual=False)
        self.encoder = Encoder(width, heads, config.num_latents)
        self.blocks = nn.ModuleList(
            Block(width, SelfAttention(width, heads), FeedForward(width, width * config.mlp_ratio, width))
            for _ in range(config.num_blocks)
        )
        self.decoder = Decoder(width, heads)
        self.norm = nn.LayerNorm(width)
        self.leave = ResMLP(width, width, config.out_dim, layers, output_residual=False)
        self.config = config
        self.apply(partial(initialise_linear, deviation=config.initial_deviation))

    def compute(self, inputs: Tensor, layout: Layout) -> Tensor:
        """[B, N, in_dim] or [ΣN, in_dim] to [B, N, out_dim] or [ΣN, out_dim]."""
        with full_precision(inputs):
            x = self.enter(inputs)
        latents = self.encoder(x, layout)
        for block in self.blocks:
            latents = block(latents, Layout())
        decoded = self.decoder(x, latents, layout)
        with full_precision(inputs):
            out: Tensor = self.leave(self.norm(decoded.to(inputs.dtype)))
        return out
