"""Latent neural operator (Wang & Wang 2024, arXiv:2406.03923) as FLARE's paper compares with it (appendix C.3).

B meshes, N points, C channels, M latents, here called modes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flare_model.layers.attention import SelfAttention
from flare_model.layers.layout import Layout
from flare_model.layers.pointwise import FeedForward, ResMLP
from flare_model.models.backbone import Block
from flare_model.models.mesh_model import MeshModel, full_precision
from flare_model.sizes import LNOConfig


class LNO(MeshModel):
    """Points are encoded into modes, blocks process these, and modes are decoded onto points: by one set of scores.

    Trunk and branch get the same inputs, as in the paper's comparison; LNO's own code gives the trunk coordinates
    alone. The scores are shared by encoding and decoding, and there is one set of them, not one a head. Weights start
    as PyTorch's do.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: LNOConfig = LNOConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__(config.in_dim)
        width, layers = config.channels, config.residual_layers
        self.trunk = _network(config.in_dim, width, width, layers)
        self.branch = _network(config.in_dim, width, width, layers)
        self.scores = _network(width, width, config.num_modes, layers)
        self.blocks = nn.ModuleList(
            Block(
                width,
                SelfAttention(width, config.num_heads, bias=True),
                FeedForward(width, width * config.mlp_ratio, width, gelu="none"),
            )
            for _ in range(config.num_blocks)
        )
        self.leave = _network(width, width, config.out_dim, layers)
        self.config = config

    def compute(self, inputs: Tensor, layout: Layout) -> Tensor:
        """[B, N, in_dim] or [ΣN, in_dim] to [B, N, out_dim] or [ΣN, out_dim]."""
        with full_precision(inputs):
            trunk, branch = self.trunk(inputs), self.branch(inputs)
        scores = self.scores(trunk)
        modes = layout.reduce(encode_modes, scores, branch)
        for block in self.blocks:
            modes = block(modes, Layout())
        decoded = layout.attend(decode_modes, scores, of_meshes=(modes,))
        with full_precision(inputs):
            out: Tensor = self.leave(decoded.to(inputs.dtype))
        return out


def encode_modes(scores: Tensor, values: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Encode points into modes: weighted means by a softmax over the points of a mesh.

    Args:
        scores: [B, N, M].
        values: [B, N, C].
        mask: True where a point exists, [B, N].

    Returns:
        [B, M, C].
    """
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-1), float("-inf"))
    return torch.softmax(scores, dim=1).mT @ values


def decode_modes(scores: Tensor, modes: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Decode modes onto points: weighted means by a softmax over the modes.

    Args:
        scores: [B, N, M].
        modes: [B, M, C].
        mask: Not needed: values at points that don't exist are meaningless.

    Returns:
        [B, N, C].
    """
    del mask
    return torch.softmax(scores, dim=2) @ modes


def _network(in_dim: int, hidden: int, out_dim: int, layers: int) -> ResMLP:
    return ResMLP(in_dim, hidden, out_dim, layers, input_residual=False, output_residual=False, gelu="none")
