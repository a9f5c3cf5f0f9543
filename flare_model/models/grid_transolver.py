"""Transolver with convolution (Wu et al. 2024, arXiv:2402.02366), for meshes that are grids of one size.

B meshes, N points, C channels, H heads, G slices.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from flare_model.layers.layout import Layout
from flare_model.layers.pointwise import FeedForward
from flare_model.models.backbone import Backbone, Block
from flare_model.models.grids import REFERENCES, Grid
from flare_model.models.transolver import PhysicsAttention, PlaceholderProjection, initialise_truncated
from flare_model.sizes import GridTransolverConfig


class GridConvolution(nn.Conv2d):
    """A 3 × 3 convolution of points in the order of their grid, with zeros around it.

    Args:
        channels: C.
        grid: The grid.
    """

    def __init__(self, channels: int, grid: Grid) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)
        self.grid = grid

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        """[B, N, C] to the same."""
        image = input.mT.reshape(*input.mT.shape[:2], self.grid.rows, self.grid.columns)
        return super().forward(image).flatten(-2).mT


class GridPhysicsAttention(PhysicsAttention):
    """Physics attention whose two projections of the points see their neighbours.

    Args:
        channels: C.
        num_heads: H; it divides C.
        num_slices: G.
        grid: The grid.
    """

    tiled = False

    def __init__(self, channels: int, num_heads: int, num_slices: int, grid: Grid) -> None:
        super().__init__(channels, num_heads, num_slices)
        self.assign = GridConvolution(channels, grid)
        self.values = GridConvolution(channels, grid)


class GridTransolver(Backbone):
    """Transolver with convolution; meshes of any other number of points than its grid's are refused.

    With unified positions, the placeholder for missing features is a parameter that the result doesn't depend on, as in
    Transolver's code, so that numbers of parameters agree.

    Args:
        config: Sizes of the model and of its grid.
    """

    def __init__(self, config: GridTransolverConfig = GridTransolverConfig()) -> None:  # noqa: B008 (frozen)
        width, grid = config.channels, Grid(config.grid_rows, config.grid_columns)
        blocks = (
            Block(
                width,
                GridPhysicsAttention(width, config.num_heads, config.num_slices, grid),
                FeedForward(width, width * config.mlp_ratio, width, gelu="none"),
            )
            for _ in range(config.num_blocks)
        )
        num_inputs = REFERENCES**2 + config.in_dim - 2 if config.unified_positions else config.in_dim
        input_projection = PlaceholderProjection(num_inputs, width, added=not config.unified_positions)
        super().__init__(config.in_dim, width, input_projection, blocks, nn.Linear(width, config.out_dim))
        self.config = config
        self.grid = grid
        self.apply(partial(initialise_truncated, deviation=config.initial_deviation))

    def compute(self, inputs: Tensor, layout: Layout) -> Tensor:
        """[B, N, in_dim] or [ΣN, in_dim] to [B, N, out_dim] or [ΣN, out_dim].

        Raises:
            UsageError: If a mesh is no such grid.
        """
        grids = self.grid.grids(inputs, layout, "Transolver with convolution")
        if self.config.unified_positions:
            distances = self.grid.distances(inputs).expand(len(grids), -1, -1)
            grids = torch.cat([distances, grids[..., 2:]], dim=-1)
        out = super().compute(grids, Layout())
        return out if inputs.dim() == 3 else out.flatten(0, 1)
