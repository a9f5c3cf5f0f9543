"""FLARE, to the last parameter: the model of "FLARE: Fast Low-rank Attention Routing Engine".

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from flare_model.backbone import Backbone, Block
from flare_model.implementation import IMPLEMENTATIONS, Implementation
from flare_model.mixer import FlareMixer
from flare_model.pointwise import ResMLP
from flare_model.sizes import check_sizes
from lpbf_data.errors import UsageError


@dataclass(frozen=True)
class FlareConfig:
    """Sizes of a model; the defaults are those of the paper's LPBF model (Table 2: 625k parameters).

    Args:
        in_dim: Numbers a point comes with; 3 for its coordinates.
        out_dim: Numbers predicted at a point.
        channels: C, width of the model.
        num_blocks: Blocks, each a mixer and a pointwise network.
        num_heads: H; it divides C.
        num_latents: M, latent tokens a head.
        projection_layers: Residual layers in the input and output projections.
        mixer_layers: Residual layers in the key and value networks.
        pointwise_layers: Residual layers in the pointwise network of a block.
        initial_deviation: Standard deviation of the weights of linear layers before training. 0.02 is what the paper's
            code has; with few cases and little time 0.08, near to PyTorch's own for this width, learns much sooner.
        mixer: How to mix: triton for the GPU's kernels, sdpa for two attention calls, reference for matrices written
            out, auto for the kernels where they can run and sdpa elsewhere. With the kernels, pointwise networks of 64
            or 128 channels run in one kernel each under 16-bit precision, with the LayerNorm before them.
    """

    in_dim: int = 3
    out_dim: int = 1
    channels: int = 64
    num_blocks: int = 8
    num_heads: int = 8
    num_latents: int = 128
    projection_layers: int = 2
    mixer_layers: int = 3
    pointwise_layers: int = 3
    initial_deviation: float = 0.02
    mixer: Implementation = "auto"

    def __post_init__(self) -> None:
        check_sizes(self, names=("mixer",))
        if self.mixer not in IMPLEMENTATIONS:
            raise UsageError(f"the model's mixer must be one of {', '.join(IMPLEMENTATIONS)}, not {self.mixer!r}")


class Flare(Backbone):
    """FLARE: blocks between an input and an output projection.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: FlareConfig = FlareConfig()) -> None:
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
