"""The vanilla Transformer as FLARE's paper compares with it (appendix C.3): all points attend to all points.

B meshes, N points, C channels, H heads, D = C / H channels a head.
"""

from __future__ import annotations

from functools import partial

from flare_model.layers.attention import SelfAttention
from flare_model.layers.pointwise import FeedForward
from flare_model.models.backbone import Backbone, Block
from flare_model.models.flare import flare_projections, initialise_linear
from flare_model.sizes import TransformerConfig


class Transformer(Backbone):
    """The vanilla Transformer between the projections of FLARE.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: TransformerConfig = TransformerConfig()) -> None:  # noqa: B008 (frozen)
        width = config.channels
        blocks = (
            Block(width, SelfAttention(width, config.num_heads), FeedForward(width, width * config.mlp_ratio, width))
            for _ in range(config.num_blocks)
        )
        input_projection, output_projection = flare_projections(config)
        super().__init__(config.in_dim, width, input_projection, blocks, output_projection)
        self.config = config
        self.apply(partial(initialise_linear, deviation=config.initial_deviation))
