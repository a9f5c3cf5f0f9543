"""FLARE, to the last parameter: the model of "FLARE: Fast Low-rank Attention Routing Engine".

B meshes, N points, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flare_model.mixer import mix, mix_ragged
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

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name.endswith("_layers") else 1
            if value < least:
                raise UsageError(f"the model's {name} must be at least {least}, not {value}")
        if self.channels % self.num_heads:
            raise UsageError(
                f"the model's channels ({self.channels}) must be a multiple of its heads ({self.num_heads})"
            )


class ResMLP(nn.Module):
    """A residual pointwise network (appendix A).

    Args:
        in_dim: Numbers that come in.
        hidden: Width of the residual layers.
        out_dim: Numbers that go out.
        layers: Residual layers.
        input_residual: Add the input to the first layer where the widths agree.
        output_residual: Add the last hidden state to the output where the widths agree.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int,
        out_dim: int,
        layers: int,
        *,
        input_residual: bool = True,
        output_residual: bool = True,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(in_dim, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.leave = nn.Linear(hidden, out_dim)
        self.input_residual = input_residual and in_dim == hidden
        self.output_residual = output_residual and hidden == out_dim

    def forward(self, x: Tensor) -> Tensor:
        """[…, in_dim] to […, out_dim]."""
        hidden = F.gelu(self.enter(x), approximate="tanh")
        if self.input_residual:
            hidden = x + hidden
        for layer in self.layers:
            hidden = hidden + F.gelu(layer(hidden), approximate="tanh")
        out: Tensor = self.leave(hidden)
        return out + hidden if self.output_residual else out


class FlareMixer(nn.Module):
    """Token mixing through latents (section 3.2): learned queries, keys and values from deep networks.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: FlareConfig) -> None:
        super().__init__()
        width, heads = config.channels, config.num_heads
        self.num_heads = heads
        self.latent_queries = nn.Parameter(torch.empty(heads, config.num_latents, width // heads))
        self.keys = ResMLP(width, width, width, config.mixer_layers)
        self.values = ResMLP(width, width, width, config.mixer_layers)
        self.leave = nn.Linear(width, width)

    def forward(self, x: Tensor, offsets: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """[B, N, C] to the same, or [ΣN, C] with offsets."""
        keys = self.keys(x).unflatten(-1, (self.num_heads, -1))
        values = self.values(x).unflatten(-1, (self.num_heads, -1))
        queries = self.latent_queries.to(keys.dtype)
        if offsets is not None:
            mixed = mix_ragged(queries, keys, values, offsets)
        else:
            mixed = mix(queries, keys.transpose(1, 2), values.transpose(1, 2), mask).transpose(1, 2)
        out: Tensor = self.leave(mixed.flatten(-2))
        return out


class FlareBlock(nn.Module):
    """A mixer and a pointwise network, each behind a LayerNorm and beside a residual (equation 10).

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: FlareConfig) -> None:
        super().__init__()
        width = config.channels
        self.mixer_norm = nn.LayerNorm(width)
        self.mixer = FlareMixer(config)
        self.pointwise_norm = nn.LayerNorm(width)
        self.pointwise = ResMLP(width, width, width, config.pointwise_layers)

    def forward(self, x: Tensor, offsets: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """[B, N, C] to the same, or [ΣN, C] with offsets."""
        x = x + self.mixer(self.mixer_norm(x), offsets, mask)
        out: Tensor = x + self.pointwise(self.pointwise_norm(x))
        return out


class Flare(nn.Module):
    """FLARE: blocks between an input and an output projection.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: FlareConfig) -> None:
        super().__init__()
        self.config = config
        width, layers = config.channels, config.projection_layers
        self.enter = ResMLP(config.in_dim, width, width, layers, input_residual=False)
        self.blocks = nn.ModuleList(FlareBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = ResMLP(width, width, config.out_dim, layers, output_residual=False)
        self.apply(_initialise)

    def forward(self, x: Tensor, offsets: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Predict at every point.

        Args:
            x: What is known of the points: [B, N, in_dim], or [ΣN, in_dim] with offsets.
            offsets: First point of each mesh and the end of the last, [B + 1].
            mask: True where a point exists, [B, N]; for padded batches.

        Returns:
            [B, N, out_dim] or [ΣN, out_dim].
        """
        hidden = self.enter(x)
        for block in self.blocks:
            hidden = block(hidden, offsets, mask)
        out: Tensor = self.leave(self.norm(hidden))
        return out


def _initialise(module: nn.Module) -> None:
    """Weights of linear layers N(0, 0.02), biases 0, latent queries N(0, 0.1)."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, FlareMixer):
        nn.init.normal_(module.latent_queries, std=0.1)
