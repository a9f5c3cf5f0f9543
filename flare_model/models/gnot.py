"""GNOT (Hao et al. 2023, arXiv:2302.14376) in the variant that FLARE's paper compares with.

B meshes, N points, C channels, H heads, D = C / H channels a head, E experts.
"""

from __future__ import annotations

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from flare_model.layers.layout import Layout
from flare_model.layers.linear_attention import LinearAttention
from flare_model.layers.pointwise import FeedForward
from flare_model.models.grids import REFERENCES, Grid
from flare_model.models.mesh_model import MeshModel, full_precision
from flare_model.models.transolver import PlaceholderProjection, initialise_truncated
from flare_model.sizes import GNOTConfig


class Experts(nn.Module):
    """Mixture of experts: pointwise networks whose outputs a gate weighs at each point.

    Args:
        channels: C.
        hidden: Width of their hidden layers.
        count: E.
    """

    def __init__(self, channels: int, hidden: int, count: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(FeedForward(channels, hidden, channels, gelu="none") for _ in range(count))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """[…, C] with gates […, E] to […, C]."""
        weighed = [network(x) * gates[..., e, None] for e, network in enumerate(self.networks)]
        return torch.stack(weighed).sum(dim=0)


class GNOTBlock(nn.Module):
    """Cross-attention of the trunk to the projected inputs, then self-attention; experts and a norm follow each.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: GNOTConfig) -> None:
        super().__init__()
        width, hidden = config.channels, config.channels * config.expert_ratio
        self.gate = nn.Sequential(
            nn.Linear(config.in_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.num_experts),
        )
        self.trunk_norm, self.source_norm, self.self_norm = (nn.LayerNorm(width) for _ in range(3))
        self.cross, self.self_attention = (LinearAttention(width, config.num_heads) for _ in range(2))
        self.first, self.second = (Experts(width, hidden, config.num_experts) for _ in range(2))
        self.first_norm, self.second_norm = (nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor, source: Tensor, inputs: Tensor, layout: Layout) -> Tensor:
        """Trunk and source, [B, N, C] or [ΣN, C] each, and the inputs of the points, to the shape of the trunk."""
        with full_precision(inputs):
            gates = self.gate(inputs).softmax(dim=-1)
        x = x + self.cross(self.trunk_norm(x), self.source_norm(source), layout)
        x = x + self.first_norm(self.first(x, gates))
        own = self.self_norm(x)
        x = x + self.self_attention(own, own, layout)
        out: Tensor = x + self.second_norm(self.second(x, gates))
        return out


class GNOT(MeshModel):
    """GNOT: linear attention and gated experts.

    Args:
        config: Sizes of the model, and its flow of data.
    """

    tiled = True

    def __init__(self, config: GNOTConfig = GNOTConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__(config.in_dim)
        width = config.channels
        self.grid = Grid(config.grid_rows, config.grid_columns) if config.unified_positions else None
        trunk_inputs = REFERENCES**2 if self.grid else config.in_dim
        self.enter = FeedForward(trunk_inputs, 2 * width, width, gelu="none")
        self.enter_source = PlaceholderProjection(trunk_inputs, width)
        self.blocks = nn.ModuleList(GNOTBlock(config) for _ in range(config.num_blocks))
        self.leave = FeedForward(width, 2 * width, config.out_dim, gelu="none")
        self.config = config
        self.activation_checkpointing = False
        """Keep only the input of each block, and recompute the rest in the backward pass."""
        self.apply(lambda module: initialise_truncated(module, config.initial_deviation))

    def compute(self, inputs: Tensor, layout: Layout) -> Tensor:
        """[B, N, in_dim] or [ΣN, in_dim] to [B, N, out_dim] or [ΣN, out_dim]."""
        with full_precision(inputs):
            trunk_inputs = inputs if self.grid is None else self._on_grid(self.grid, inputs, layout)
            trunk, source = self.enter(trunk_inputs), self.enter_source(trunk_inputs)
        x = trunk
        for block in self.blocks:
            block_inputs = (x, source) if self.config.flow == "original" else (trunk, source)
            if self.activation_checkpointing and torch.is_grad_enabled():
                out = torch.utils.checkpoint.checkpoint(block, *block_inputs, inputs, layout, use_reentrant=False)
            else:
                out = block(*block_inputs, inputs, layout)
            x, source = (out, source) if self.config.flow == "original" else (x, out)
        with full_precision(inputs):
            last = x if self.config.flow == "original" else source
            predicted: Tensor = self.leave(last.to(inputs.dtype))
        return predicted

    @staticmethod
    def _on_grid(grid: Grid, inputs: Tensor, layout: Layout) -> Tensor:
        """Distances on the index grid, [B, N, 64] or [ΣN, 64]: the same for every mesh."""
        grids = grid.grids(inputs, layout, "GNOT with unified_positions")
        trunk_inputs = grid.distances(inputs).expand(len(grids), -1, -1)
        return trunk_inputs if inputs.dim() == 3 else trunk_inputs.flatten(0, 1)
