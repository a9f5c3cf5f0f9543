"""Softmax attention among the points of each mesh: all meshes in one call where the GPU's FlashAttention takes them.

B meshes, N points, ΣN points of all meshes together, H heads, D channels a head, C = H · D.
"""

from __future__ import annotations

import importlib.util
from typing import Final, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flare_model.layers.layout import Layout

_HAS_VARLEN: Final = importlib.util.find_spec("torch.nn.attention.varlen") is not None
"""Whether PyTorch has attention over joined meshes, since 2.10; looked up once, not at every call."""

_DEPTHS: Final = (8, 256)
"""FlashAttention takes a D that is a multiple of the first and at most the second."""
_MIN_CAPABILITY: Final = (8, 0)


def attend_among_points(queries: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Every point attends to all points of its mesh, with scale 1/√D.

    Args:
        queries: [B, N, H, D] or [ΣN, H, D].
        keys: Of the same shape.
        values: Of the same shape.
        layout: How the points divide into meshes.

    Returns:
        Of the same shape; rows of points that don't exist mean nothing.
    """
    if layout.offsets is not None and layout.offsets.shape[0] > 2 and takes_meshes_together(queries):
        bounds = layout.offsets.to(torch.int32)
        # Blocks beyond the end of a mesh end at once.
        longest = max(layout.sizes) if layout.sizes else queries.shape[0]
        from torch.nn.attention.varlen import varlen_attn  # with it comes PyTorch's compiler, a second

        return cast("Tensor", varlen_attn(queries, keys, values, bounds, bounds, longest, longest))
    return layout.attend(_attend, queries, keys, values)


def takes_meshes_together(queries: Tensor) -> bool:
    """Whether one call takes joined meshes: 16 bits on a GPU that FlashAttention knows."""
    multiple, largest = _DEPTHS
    return (
        _HAS_VARLEN
        and queries.is_cuda
        and torch.version.hip is None
        and queries.dtype in (torch.float16, torch.bfloat16)
        and queries.shape[-1] % multiple == 0
        and queries.shape[-1] <= largest
        and torch.cuda.get_device_capability(queries.device) >= _MIN_CAPABILITY
    )


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """[B, N, H, D] each, and so is the result."""
    exists = None if mask is None else mask[:, None, None, :]
    queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=exists).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention among the points of a mesh, or among its latents.

    Args:
        channels: C.
        num_heads: H; it divides C.
        bias: Whether query, key and value projections have biases.
    """

    def __init__(self, channels: int, num_heads: int, *, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.enter = nn.Linear(channels, 3 * channels, bias=bias)
        self.leave = nn.Linear(channels, channels)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[B, N, C] or [ΣN, C] to the same."""
        queries, keys, values = self.enter(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        out: Tensor = self.leave(attend_among_points(queries, keys, values, layout).flatten(-2))
        return out
