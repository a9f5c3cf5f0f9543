"""FLARE++ (arXiv:2608.11519): FLARE's backbone with latent queries that depend on the mesh.

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

from functools import partial

from flare_model.layers.flare_plus_plus_mixer import FlarePlusPlusMixer, make_norm
from flare_model.layers.mixer import mix_by
from flare_model.layers.pointwise import FeedForward
from flare_model.models.backbone import Backbone, Block
from flare_model.models.flare import flare_projections, initialise_linear
from flare_model.sizes import FlarePlusPlusConfig, Implementation


class FlarePlusPlus(Backbone):
    """FLARE++ between the projections of FLARE; three attention calls a block, or the kernels for them.

    Args:
        config: Sizes of the model.
        mixer: Implementation of the mixing, as for `Flare`.
    """

    def __init__(
        self,
        config: FlarePlusPlusConfig = FlarePlusPlusConfig(),  # noqa: B008 (frozen)
        mixer: Implementation = "auto",
    ) -> None:
        width = config.channels
        mixers = [
            FlarePlusPlusMixer(width, config.num_heads, config.num_latents, config.norm)
            for _ in range(config.num_blocks)
        ]
        blocks = (
            Block(width, each, FeedForward(width, width * config.mlp_ratio, width), partial(make_norm, config.norm))
            for each in mixers
        )
        input_projection, output_projection = flare_projections(config)
        super().__init__(config.in_dim, width, input_projection, blocks, output_projection)
        self.config = config
        mix_by(self, mixer)
        self.apply(partial(initialise_linear, deviation=config.initial_deviation))
        for each in mixers:
            each.start_near_identity()
