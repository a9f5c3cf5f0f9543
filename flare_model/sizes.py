"""Sizes of the models of this package, without torch: the options of a command are known before it is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from lpbf_data.errors import UsageError

Implementation = Literal["auto", "sdpa", "triton", "reference"]
IMPLEMENTATIONS: Final = ("auto", "sdpa", "triton", "reference")
"""Ways to compute the same mixing: a choice of the machine, and no part of a model or its checkpoints."""

_LARGEST: Final = 1 << 20
_DEEPEST: Final = 1 << 10
"""No size of a model is larger, no model deeper; a checkpoint that says so is damaged or hostile."""

_WIDEST: Final = 10.0


def check_sizes(config: Any) -> None:
    """Refuse sizes that no model can have.

    Args:
        config: A dataclass of whole numbers with `channels` and `num_heads` among them; names that end in "_layers"
            may be 0. Names that end in "_deviation" are numbers above 0.

    Raises:
        UsageError: If one is out of range, or the heads don't divide the channels.
    """
    for name, value in vars(config).items():
        if name.endswith("_deviation"):
            if not (isinstance(value, float) and 0 < value < _WIDEST):
                raise UsageError(f"the model's {name} must be a number above 0 and below {_WIDEST:g}, not {value!r}")
            continue
        least = 0 if name.endswith("_layers") else 1
        most = _DEEPEST if name.endswith(("_layers", "_blocks")) else _LARGEST
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"the model's {name} must be a whole number from {least} to {most}, not {value!r}")
    if config.channels % config.num_heads:
        raise UsageError(
            f"the model's channels ({config.channels}) must be a multiple of its heads ({config.num_heads})"
        )


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

    def __post_init__(self) -> None:
        check_sizes(self)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a model; the defaults are those of the paper (Table 2: 660k parameters).

    Args:
        in_dim: Numbers a point comes with; 3 for its coordinates.
        out_dim: Numbers predicted at a point.
        channels: C, width of the model (C.3: 80).
        num_blocks: Blocks, each a mixer and a pointwise network (C.3: 8).
        num_heads: H; it divides C (C.3: 5, so that D = 16).
        mlp_ratio: Width of the pointwise networks' hidden layer over C (C.3: 4).
        projection_layers: Residual layers in the projections, which are those of FLARE (C.3).
        initial_deviation: As FLARE's.
    """

    in_dim: int = 3
    out_dim: int = 1
    channels: int = 80
    num_blocks: int = 8
    num_heads: int = 5
    mlp_ratio: int = 4
    projection_layers: int = 2
    initial_deviation: float = 0.02

    def __post_init__(self) -> None:
        check_sizes(self)


@dataclass(frozen=True)
class TransolverConfig:
    """Sizes of a model; the defaults are those of the FLARE paper's comparison (Table 2: 713k parameters).

    Table 2 gives the count alone. These sizes, those of Transolver's own scripts for its irregular and 2D benchmarks,
    give 713,665 parameters for 2 inputs.

    Args:
        in_dim: Numbers a point comes with; 3 for its coordinates.
        out_dim: Numbers predicted at a point.
        channels: C, width of the model.
        num_blocks: Blocks, each a mixer and a pointwise network.
        num_heads: H; it divides C.
        num_slices: G, slices a head.
        mlp_ratio: Width of the pointwise networks' hidden layer over C.
        initial_deviation: As FLARE's, of a normal distribution cut off at 2.
    """

    in_dim: int = 3
    out_dim: int = 1
    channels: int = 128
    num_blocks: int = 8
    num_heads: int = 8
    num_slices: int = 64
    mlp_ratio: int = 1
    initial_deviation: float = 0.02

    def __post_init__(self) -> None:
        check_sizes(self)
