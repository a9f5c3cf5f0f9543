"""Transolver without convolution (Wu et al. 2024, arXiv:2402.02366): points are assigned to slices, and slices attend.

B meshes, N points, C channels, H heads, D = C / H channels a head, G slices.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flare_model.layers.layout import Layout
from flare_model.layers.mesh_tiles import MeshTiles
from flare_model.layers.pointwise import FeedForward
from flare_model.models.backbone import Backbone, Block
from flare_model.sizes import TransolverConfig


class PhysicsAttention(nn.Module):
    """Points are softly assigned to slices, the slices' means attend to each other, and slices are decoded onto points.

    The projections onto slices and inside the attention are shared by the heads, as in Transolver's code. It bounds
    the temperature in its mixers for structured meshes alone; here it is always bounded, so that it can't reach zero.

    Args:
        channels: C.
        num_heads: H; it divides C.
        num_slices: G.
    """

    tiled = True

    def __init__(self, channels: int, num_heads: int, num_slices: int) -> None:
        super().__init__()
        depth = channels // num_heads
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.full((num_heads, 1), 0.5))
        self.assign: nn.Module = nn.Linear(channels, channels)
        self.values: nn.Module = nn.Linear(channels, channels)
        self.slices = nn.Linear(depth, num_slices)
        self.slice_attention = nn.Linear(depth, 3 * depth, bias=False)
        self.leave = nn.Linear(channels, channels)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[B, N, C] or [ΣN, C] to the same."""
        tiles = layout.tiles
        if tiles is None:
            return layout.attend(self._attend, x)
        return tiles.to_points(self._attend(tiles.to_rows(x), tiles.exists, tiles))

    def _attend(self, x: Tensor, mask: Tensor | None, tiles: MeshTiles | None = None) -> Tensor:
        """[B, N, C], or tiles of joined meshes [R, L, C], to the same."""
        scores = self.slices(self.assign(x).unflatten(-1, (self.num_heads, -1)))
        weights = torch.softmax(scores / self.temperature.clamp(0.1, 5.0), dim=-1)
        values = self.values(x).unflatten(-1, (self.num_heads, -1))
        if mask is not None:
            weights = weights * mask[:, :, None, None]
        means = slice_means(weights, values, tiles)
        weights = weights.to(values.dtype)
        queries, keys, slice_values = self.slice_attention(means.to(values.dtype)).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(queries, keys, slice_values)
        if tiles is not None:
            attended = tiles.spread(attended).to(weights.dtype)
        out: Tensor = self.leave(torch.einsum("bnhg,bhgd->bnhd", weights, attended).flatten(-2))
        return out


def slice_means(weights: Tensor, values: Tensor, tiles: MeshTiles | None = None) -> Tensor:
    """Weighted mean of values over the points of a mesh, for each slice.

    Sums are taken in float32 at least, also where autocast takes products in 16 bits: bfloat16 has three digits for
    the sum of the weights, and float16 ends at 65,504 points.

    Args:
        weights: Weight of each point in each slice, 0 where there is no point, [B, N, H, G]; of tiles, [R, L, H, G].
        values: Values of the points, [B, N, H, D]; of tiles, [R, L, H, D].
        tiles: Which tiles belong to which mesh; None for [B, N, …].

    Returns:
        [B, H, G, D], float32 at least.
    """
    wide = torch.promote_types(weights.dtype, torch.float32)
    with torch.autocast(weights.device.type, enabled=False):
        weights = weights.to(wide)
        sums, totals = torch.einsum("bnhg,bnhd->bhgd", weights, values.to(wide)), weights.sum(dim=1)
        if tiles is not None:
            sums, totals = tiles.total(sums), tiles.total(totals)
        return sums / (totals + 1e-5).unsqueeze(-1)


class PlaceholderProjection(nn.Module):
    """Transolver's projection in: two linear layers, and a learned vector in place of missing features.

    Args:
        in_dim: Numbers a point comes with.
        channels: C.
        added: Whether features are missing; otherwise the vector isn't used or trained.
    """

    def __init__(self, in_dim: int, channels: int, *, added: bool = True) -> None:
        super().__init__()
        self.network = FeedForward(in_dim, 2 * channels, channels, gelu="none")
        self.placeholder = nn.Parameter(torch.rand(channels) / channels, requires_grad=added)
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """[…, in_dim] to […, C]."""
        out: Tensor = self.network(x)
        return out + self.placeholder if self.added else out


class Transolver(Backbone):
    """Transolver: physics attention between its own, shallow projections.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: TransolverConfig = TransolverConfig()) -> None:  # noqa: B008 (frozen)
        width = config.channels
        blocks = (
            Block(
                width,
                PhysicsAttention(width, config.num_heads, config.num_slices),
                FeedForward(width, width * config.mlp_ratio, width, gelu="none"),
            )
            for _ in range(config.num_blocks)
        )
        input_projection = PlaceholderProjection(config.in_dim, width)
        super().__init__(config.in_dim, width, input_projection, blocks, nn.Linear(width, config.out_dim))
        self.config = config
        self.apply(partial(initialise_truncated, deviation=config.initial_deviation))


def initialise_truncated(module: nn.Module, deviation: float = 0.02) -> None:
    """Weights of linear layers from a truncated normal distribution (of 0.02 in Transolver's code), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=deviation)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
