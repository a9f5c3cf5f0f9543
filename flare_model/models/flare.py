"""FLARE, with the structure and number of parameters of "FLARE: Fast Low-rank Attention Routing Engine".

arXiv:2508.12594.

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import Tensor, nn

from flare_model.layers.attention import SelfAttention
from flare_model.layers.layout import Layout
from flare_model.layers.mixer import FlareMixer, mix_by
from flare_model.layers.pointwise import FeedForward, ResMLP
from flare_model.models.backbone import Backbone, Block
from flare_model.models.chunked_forward import compute_in_chunks, takes_chunks
from flare_model.sizes import FlareConfig, FlarePlusPlusConfig, Implementation, TransformerConfig


class Flare(Backbone):
    """FLARE: blocks between an input and an output projection.

    Args:
        config: Sizes of the model.
        mixer: Implementation of the mixing: triton for the GPU's kernels, sdpa for two attention calls, reference for
            matrices written out, auto for the kernels where they can run and sdpa elsewhere. With the kernels,
            pointwise networks of 64 or 128 channels run in one kernel each under 16-bit precision, with the LayerNorm
            before them. It isn't stored in checkpoints; `flare_model.layers.mixer.mix_by` changes it.
    """

    divisible = True

    def __init__(self, config: FlareConfig = FlareConfig(), mixer: Implementation = "auto") -> None:  # noqa: B008 (frozen)
        width = config.channels
        blocks = (Block(width, _mixer(config), _pointwise(config)) for _ in range(config.num_blocks))
        input_projection, output_projection = flare_projections(config)
        super().__init__(config.in_dim, width, input_projection, blocks, output_projection)
        self.config = config
        mix_by(self, mixer)
        self.apply(partial(initialise_linear, deviation=config.initial_deviation))

    def compute(self, inputs: Tensor, layout: Layout) -> Tensor:
        """As `Backbone.compute`; one mesh of millions of points is predicted on in chunks, with bounded memory."""
        blocks = [cast("Block", block) for block in self.blocks]
        if not takes_chunks(blocks, inputs, layout):
            return super().compute(inputs, layout)
        predicted = compute_in_chunks(self.enter, blocks, self.predict_from, inputs.flatten(0, -2))
        return predicted.view(*inputs.shape[:-1], -1)


def flare_projections(config: FlareConfig | FlarePlusPlusConfig | TransformerConfig) -> tuple[ResMLP, ResMLP]:
    """The input and output projections of FLARE, which FLARE++ and the Transformer share."""
    width, layers = config.channels, config.projection_layers
    return (
        ResMLP(config.in_dim, width, width, layers, input_residual=False),
        ResMLP(width, width, config.out_dim, layers, output_residual=False),
    )


def _mixer(config: FlareConfig) -> FlareMixer:
    width, heads = config.channels, config.num_heads
    latent_blocks = (
        Block(width, SelfAttention(width, heads), FeedForward(width, 4 * width, width))
        for _ in range(config.latent_layers)
    )
    return FlareMixer(
        width, heads, config.num_latents, config.mixer_layers,
        scaled_scores=config.scaled_scores, separate_decoding=config.separate_decoding, latent_blocks=latent_blocks,
    )  # fmt: skip


def _pointwise(config: FlareConfig) -> nn.Module:
    width = config.channels
    if config.pointwise == "mlp":
        return FeedForward(width, width * config.mlp_ratio, width)
    return ResMLP(width, width, width, config.pointwise_layers)


def initialise_linear(module: nn.Module, deviation: float = 0.02) -> None:
    """Weights of linear layers normal with a standard deviation (0.02 in the paper's code), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=deviation)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
