"""Sizes of the models of this package; this module doesn't import torch, so that commands show their options fast."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args, get_type_hints

from lpbf_data.errors import UsageError

Implementation = Literal["auto", "sdpa", "triton", "reference"]
IMPLEMENTATIONS: Final = ("auto", "sdpa", "triton", "reference")
"""Ways to compute the same mixing; which one is taken depends on the machine and isn't stored in checkpoints."""

_MAX_SIZE: Final = 1 << 20
_MAX_LAYERS: Final = 1 << 10
"""Upper bounds on sizes and numbers of layers; a checkpoint that states more is damaged or malicious."""

_MAX_DEVIATION: Final = 10.0

_GRID_COORDINATES: Final = 2
"""Number of coordinates of a point of a grid."""


def check_sizes(config: Any) -> None:
    """Refuse sizes that no model can have.

    Args:
        config: A dataclass with `channels` and `num_heads` among its whole numbers; names that end in "_layers" or
            begin with "grid_" may be 0. Names that end in "_deviation" are numbers above 0. Switches are true or false,
            words those of their Literal.

    Raises:
        UsageError: If one is out of range, or the heads don't divide the channels.
    """
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if isinstance(field.default, bool):
            _check(isinstance(value, bool), name, "true or false", value)
        elif isinstance(field.default, str):
            words = get_args(get_type_hints(type(config))[name])
            _check(value in words, name, f"one of {', '.join(words)}", value)
        elif name.endswith("_deviation"):
            fits = isinstance(value, float) and 0 < value < _MAX_DEVIATION
            _check(fits, name, f"a number above 0 and below {_MAX_DEVIATION:g}", value)
        else:
            minimum = 0 if name.endswith("_layers") or name.startswith("grid_") else 1
            maximum = _MAX_LAYERS if name.endswith(("_layers", "_blocks")) else _MAX_SIZE
            fits = isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum
            _check(fits, name, f"a whole number from {minimum} to {maximum}", value)
    if config.channels % config.num_heads:
        raise UsageError(
            f"the model's channels ({config.channels}) must be a multiple of its heads ({config.num_heads})"
        )


def _check(fits: bool, name: str, wanted: str, value: object) -> None:  # noqa: FBT001 (what is checked)
    if not fits:
        raise UsageError(f"the model's {name} must be {wanted}, not {value!r}")


def _check_even_heads(config: Any) -> None:
    """Refuse heads of an odd number of channels: fused attention in FP32 takes none, and all scores would be written.

    Raises:
        UsageError: If the heads have an odd number of channels.
    """
    if (depth := config.channels // config.num_heads) % 2:
        raise UsageError(
            f"the model's heads have an odd number of channels, {depth} ({config.channels} channels over "
            f"{config.num_heads} heads), which fused attention on GPUs doesn't take in FP32; choose channels and heads "
            "so that it is even"
        )


@dataclass(frozen=True)
class FlareConfig:
    """Sizes of a model; the defaults are those of the paper's LPBF model (Table 2: 625k parameters).

    Args:
        in_dim: Number of coordinates and features of a point; 3 for coordinates alone.
        out_dim: Number of values predicted at a point.
        channels: C, width of the model.
        num_blocks: Blocks, each a mixer and a pointwise network.
        num_heads: H; it divides C.
        num_latents: M, latent tokens a head.
        projection_layers: Residual layers in the input and output projections.
        mixer_layers: Residual layers in the key and value networks.
        pointwise_layers: Residual layers in the pointwise network of a block.
        initial_deviation: Standard deviation of the weights of linear layers before training. 0.02 is what the paper's
            code has; with few cases and little time 0.08, near to PyTorch's own for this width, learns much sooner.
        separate_decoding: Ablation (E): separate latents and keys for decoding. The paper's model has the same latents
            and keys for encoding and decoding, and gains nothing by separate ones.
        scaled_scores: Ablation (F): scores times 1/√D, as Transformers have it; the paper's are not scaled.
        pointwise: Ablation (F): the pointwise network of a block, a ResMLP as in the paper, or the usual mlp.
        mlp_ratio: Width of the hidden layer of that mlp over C; unused where `pointwise` is a ResMLP.
        latent_layers: Ablation (Table 1): blocks of self-attention and mlp (ratio 4) among the latents, between
            encoding and decoding, as in the published code; the paper's model has none. With these or with
            separate_decoding attention calls mix, on GPUs too: there are no kernels for them.
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
    separate_decoding: bool = False
    scaled_scores: bool = False
    pointwise: Literal["resmlp", "mlp"] = "resmlp"
    mlp_ratio: int = 4
    latent_layers: int = 0

    def __post_init__(self) -> None:
        check_sizes(self)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a model; the defaults are those of the paper (Table 2: 660k parameters).

    Args:
        in_dim: Number of coordinates and features of a point; 3 for coordinates alone.
        out_dim: Number of values predicted at a point.
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
        in_dim: Number of coordinates and features of a point; 3 for coordinates alone.
        out_dim: Number of values predicted at a point.
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


@dataclass(frozen=True)
class GridTransolverConfig:
    """Sizes of Transolver with convolution; the defaults are those of its Darcy benchmark, as Transolver released it.

    Args:
        in_dim: Number of coordinates and features of a point; the first two are its coordinates.
        out_dim: Number of values predicted at a point.
        channels: C, width of the model.
        num_blocks: Blocks, each a mixer and a pointwise network.
        num_heads: H; it divides C.
        num_slices: G, slices a head.
        mlp_ratio: Width of the pointwise networks' hidden layer over C.
        grid_rows: Points of a grid along the first index, which varies slowest.
        grid_columns: Points of a grid along the second.
        unified_positions: Replace the coordinates of a point by its distances on the index grid to 8 × 8 reference
            positions; other inputs of a point are kept.
        initial_deviation: As Transolver's, of linear layers; convolutions start as PyTorch's do.
    """

    in_dim: int = 3
    out_dim: int = 1
    channels: int = 128
    num_blocks: int = 8
    num_heads: int = 8
    num_slices: int = 64
    mlp_ratio: int = 1
    grid_rows: int = 85
    grid_columns: int = 85
    unified_positions: bool = True
    initial_deviation: float = 0.02

    def __post_init__(self) -> None:
        check_sizes(self)
        _check_even_heads(self)
        _check_grid(self)
        if self.unified_positions and self.in_dim <= _GRID_COORDINATES:
            raise UsageError(
                f"with unified_positions a model with {self.in_dim} inputs a point would not see its input at "
                "all: distances on the index grid replace the coordinates, and there is no other input; switch "
                "unified_positions off, or give it a feature"
            )


@dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of a PerceiverIO; the defaults are those of the paper (C.3, Table 2: 1.93m parameters).

    Args:
        in_dim: Number of coordinates and features of a point; 3 for coordinates alone.
        out_dim: Number of values predicted at a point.
        channels: C, width of the model (C.3: 128).
        num_blocks: Blocks of self-attention among the latents (C.3: 8).
        num_heads: H; it divides C (C.3: 8).
        num_latents: M (C.3: 1,024; the published code has 512 in its later states).
        mlp_ratio: Width of the blocks' hidden layer over C (the published code: 4).
        projection_layers: Residual layers in the projections, which are those of FLARE (C.3).
        initial_deviation: As FLARE's.
    """

    in_dim: int = 3
    out_dim: int = 1
    channels: int = 128
    num_blocks: int = 8
    num_heads: int = 8
    num_latents: int = 1024
    mlp_ratio: int = 4
    projection_layers: int = 2
    initial_deviation: float = 0.02

    def __post_init__(self) -> None:
        check_sizes(self)
        _check_even_heads(self)


@dataclass(frozen=True)
class LNOConfig:
    """Sizes of a latent neural operator; the defaults are those that give the paper's 762k parameters (Table 2).

    Args:
        in_dim: Number of coordinates and features of a point; 3 for coordinates alone.
        out_dim: Number of values predicted at a point.
        channels: C, width of the model (C.3: 192 for elasticity, else 128).
        num_blocks: Blocks among the latents (C.3: 8 for pipe and airfoil, else 4; Table 2's count has 4 for these too).
        num_heads: H; it divides C.
        num_modes: M, latents (C.3: 256).
        residual_layers: Residual layers of each pointwise network (C.3: 3 for elasticity, else 4; code and counts: 2).
        mlp_ratio: Width of the blocks' hidden layer over C.
    """

    in_dim: int = 3
    out_dim: int = 1
    channels: int = 128
    num_blocks: int = 4
    num_heads: int = 8
    num_modes: int = 256
    residual_layers: int = 2
    mlp_ratio: int = 2

    def __post_init__(self) -> None:
        check_sizes(self)
        _check_even_heads(self)


@dataclass(frozen=True)
class GNOTConfig:
    """Sizes of a GNOT; the defaults are those of the paper's comparison (Table 2: 4.87m parameters).

    Args:
        in_dim: Number of coordinates and features of a point; 3 for coordinates alone.
        out_dim: Number of values predicted at a point.
        channels: C, width of the model.
        num_blocks: Blocks.
        num_heads: H; it divides C.
        num_experts: Networks that a gate weighs at each point.
        expert_ratio: Width of the experts' and gates' hidden layers over C.
        flow: Which inputs a block gets. nsl, as in Neural-Solver-Library, whose GNOT the paper compared with: the same
            trunk in every block, and the output of the block before as keys and values; or original, as in GNOT's own
            code: the trunk is the output of the block before, and keys and values stay the same.
        unified_positions: Give trunk and keys, in place of the inputs of a point, its distances on the index grid to
            8 × 8 reference positions, as the published counts of Darcy, airfoil and pipe have it; the gates alone see
            the inputs then.
        grid_rows: Points of that grid along the first index, which varies slowest; without unified_positions 0.
        grid_columns: Points of that grid along the second.
        initial_deviation: As Transolver's.
    """

    in_dim: int = 3
    out_dim: int = 1
    channels: int = 128
    num_blocks: int = 8
    num_heads: int = 8
    num_experts: int = 3
    expert_ratio: int = 2
    flow: Literal["nsl", "original"] = "nsl"
    unified_positions: bool = False
    grid_rows: int = 0
    grid_columns: int = 0
    initial_deviation: float = 0.02

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.unified_positions:
            _check_grid(self)


@dataclass(frozen=True)
class FlarePlusPlusConfig:
    """Sizes of a FLARE++ (arXiv:2608.11519); the defaults are those of its published LPBF launcher.

    Args:
        in_dim: Number of coordinates and features of a point; 3 for coordinates alone.
        out_dim: Number of values predicted at a point.
        channels: C, width of the model.
        num_blocks: Blocks, each a mixer and a pointwise network.
        num_heads: H; it divides C.
        num_latents: M, latent tokens a head.
        mlp_ratio: Width of the pointwise networks' hidden layer over C.
        projection_layers: Residual layers in the projections, which are those of FLARE.
        norm: layer for LayerNorm, as published for FP32; rms for RMSNorm, as published for 16 bits.
        initial_deviation: As FLARE's.
    """

    in_dim: int = 3
    out_dim: int = 1
    channels: int = 128
    num_blocks: int = 2
    num_heads: int = 8
    num_latents: int = 64
    mlp_ratio: int = 2
    projection_layers: int = 2
    norm: Literal["layer", "rms"] = "layer"
    initial_deviation: float = 0.02

    def __post_init__(self) -> None:
        check_sizes(self)
        _check_even_heads(self)


def _check_grid(config: Any) -> None:
    if not (config.grid_rows > 1 and config.grid_columns > 1):
        raise UsageError(
            f"the model's grid must have 2 rows and columns at least, not {config.grid_rows} × {config.grid_columns}; "
            "give grid_rows and grid_columns"
        )
