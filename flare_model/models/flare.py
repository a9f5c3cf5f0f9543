"""FLARE, to the last parameter: the model of "FLARE: Fast Low-rank Attention Routing Engine".

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from flare_model.layers.mixer import FlareMixer
from flare_model.layers.pointwise import ResMLP
from flare_model.models.backbone import Backbone, Block
from flare_model.sizes import FlareConfig


class Flare(Backbone):
    """FLARE: blocks between an input and an output projection.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: FlareConfig = FlareConfig()) -> None:  # noqa: B008 (frozen)
        width, layers = config.channels, config.projection_layers
        blocks = (
            Block(
                width,
                FlareMixer(width, config.num_heads, config.num_latents, config.mixer_layers, config.mixer),
                ResMLP(width, width, width, config.pointwise_layers, implementation=config.mixer),
            )
            for _ in range(config.num_blocks)
        )
        enter = ResMLP(config.in_dim, width, width, layers, input_residual=False)
        leave = ResMLP(width, width, config.out_dim, layers, output_residual=False)
        super().__init__(config.in_dim, width, enter, blocks, leave)
        self.config = config
        self.apply(partial(initialise_linear, deviation=config.initial_deviation))


def initialise_linear(module: nn.Module, deviation: float = 0.02) -> None:
    """Weights of linear layers normal with a standard deviation (0.02 in the paper's code), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=deviation)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
