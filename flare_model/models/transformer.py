"""The vanilla Transformer as FLARE's paper compares with it (appendix C.3): all points attend to all points.

B meshes, N points, C channels, H heads, D = C / H channels a head.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from flare_model.layers.attention import attend_among_points
from flare_model.layers.layout import Layout
from flare_model.layers.pointwise import FeedForward, ResMLP
from flare_model.models.backbone import Backbone, Block
from flare_model.models.flare import initialise_linear
from flare_model.sizes import TransformerConfig


class SelfAttention(nn.Module):
    """Multi-head self-attention among the points of a mesh; query, key and value projections without biases.

    Args:
        channels: C.
        num_heads: H; it divides C.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.enter = nn.Linear(channels, 3 * channels, bias=False)
        self.leave = nn.Linear(channels, channels)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[B, N, C] or [ΣN, C] to the same."""
        queries, keys, values = self.enter(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        out: Tensor = self.leave(attend_among_points(queries, keys, values, layout).flatten(-2))
        return out


class Transformer(Backbone):
    """The vanilla Transformer between the projections of FLARE.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: TransformerConfig = TransformerConfig()) -> None:  # noqa: B008 (frozen)
        width, layers = config.channels, config.projection_layers
        blocks = (
            Block(width, SelfAttention(width, config.num_heads), FeedForward(width, width * config.mlp_ratio, width))
            for _ in range(config.num_blocks)
        )
        enter = ResMLP(config.in_dim, width, width, layers, input_residual=False)
        leave = ResMLP(width, width, config.out_dim, layers, output_residual=False)
        super().__init__(config.in_dim, width, enter, blocks, leave)
        self.config = config
        self.apply(partial(initialise_linear, deviation=config.initial_deviation))
