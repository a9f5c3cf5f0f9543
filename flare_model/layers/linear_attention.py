"""GNOT's attention (Hao et al. 2023, arXiv:2302.14376): linear in the points, by sums over each mesh.

B meshes, N points, C channels, H heads, D = C / H channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flare_model.layers.layout import Layout
from flare_model.layers.mesh_tiles import MeshTiles


class LinearAttention(nn.Module):
    """Queries and keys are softmaxes over the channels of a head; there is no softmax over points.

        q · Σ kᵀv / (q · Σ k) + q, heads joined, then a linear layer

    Args:
        channels: C.
        num_heads: H; it divides C.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Linear(channels, channels)
        self.keys = nn.Linear(channels, channels)
        self.values = nn.Linear(channels, channels)
        self.leave = nn.Linear(channels, channels)

    def forward(self, x: Tensor, source: Tensor, layout: Layout) -> Tensor:
        """Attention with queries from x and keys and values from source, [B, N, C] or [ΣN, C] each as the result."""
        queries, keys, values = (
            layer(t).unflatten(-1, (self.num_heads, -1))
            for layer, t in ((self.queries, x), (self.keys, source), (self.values, source))
        )
        queries, keys = queries.softmax(dim=-1), keys.softmax(dim=-1)
        tiles = layout.tiles
        if tiles is None:
            attended = layout.attend(attend_linearly, queries, keys, values)
        else:
            cut = map(tiles.to_rows, (queries, keys, values))
            attended = tiles.to_points(attend_linearly(*cut, mask=tiles.exists, tiles=tiles))
        out: Tensor = self.leave((attended + queries).flatten(-2))
        return out


def attend_linearly(
    queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None = None, tiles: MeshTiles | None = None
) -> Tensor:
    """Mean of the values over a mesh, weighted by the scalar products of queries and keys.

    Sums over the points are taken in float32 at least, also where autocast takes products in 16 bits: bfloat16 has
    three digits, and float16 ends at 65,504.

    Args:
        queries: Above 0, [B, N, H, D]; of tiles, [R, L, H, D].
        keys: Above 0, of the same shape.
        values: Of the same shape.
        mask: True where a point exists, [B, N] or [R, L].
        tiles: Which tiles belong to which mesh; None for [B, N, …].

    Returns:
        Of the same shape, in float32 at least.
    """
    with torch.autocast(queries.device.type, enabled=False):
        wide = torch.promote_types(queries.dtype, torch.float32)
        queries, keys, values = queries.to(wide), keys.to(wide), values.to(wide)
        if mask is not None:
            keys = keys * mask[:, :, None, None]
        products, totals = torch.einsum("bnhd,bnhe->bhde", keys, values), keys.sum(dim=1)
        if tiles is not None:
            products, totals = (tiles.spread(tiles.total(t)) for t in (products, totals))
        common = torch.einsum("bnhd,bhd->bnh", queries, totals)
        if mask is not None:  # 0 / 0 in rows of no mesh, which aren't used, would still make every gradient NaN.
            common = common.masked_fill(common == 0, 1.0)
        return torch.einsum("bnhd,bhde->bnhe", queries, products) / common.unsqueeze(-1)
