"""The common structure of models: an input projection, blocks of mixing and pointwise networks, an output projection.

B meshes, N points, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, cast

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from flare_model.layers.layout import Layout
from flare_model.layers.pointwise import is_hooked, normalise
from flare_model.models.mesh_model import MeshModel, full_precision
from flare_model.sizes import Implementation

_CHUNK: Final = 1 << 19
"""Points of a chunk under activation checkpointing."""


class SeparableMixer(Protocol):
    """A mixer in three parts, of which only the second, `mix`, depends on more than one point."""

    def project(self, norm: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """Pointwise: from norm(x) to what is mixed."""

    def mix(self, *projected: Tensor, layout: Layout) -> Tensor:
        """Mix the points of each mesh."""

    def add_output(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Pointwise: x + the mixer's output, from what `mix` returns."""


class Block(nn.Module):
    """A mixer and a pointwise network, each after a norm and with a residual connection (FLARE, equation 10).

    Args:
        channels: C.
        mixer: Called with x and a [Layout][flare_model.layers.layout.Layout]; the only step between points.
        pointwise: Called with x.
        norm: Makes the norm before each, from C.

    Either may have methods `after_norm` and `add_after_norm`, as [ResMLP][flare_model.layers.pointwise.ResMLP] has:
    they are called with the LayerNorm and its input, so that one kernel can do both and, with the second, add the input
    as well. A module with hooks is called as any other. A mixer with a true `tiled` gets joined meshes cut into
    [tiles][flare_model.layers.mesh_tiles.MeshTiles]; one with a true `separable` is a `SeparableMixer`, as
    [FlareMixer][flare_model.layers.mixer.FlareMixer] is, and saves memory under activation checkpointing.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        pointwise: nn.Module,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.mixer_norm = norm(channels)
        self.mixer = mixer
        self.pointwise_norm = norm(channels)
        self.pointwise = pointwise

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[B, N, C] or [ΣN, C] to the same."""
        x = add_after_norm(self.mixer_norm, self.mixer, x, layout)
        return add_after_norm(self.pointwise_norm, self.pointwise, x)

    def forward_in_chunks(self, x: Tensor, layout: Layout) -> Tensor:
        """`forward` with activation checkpointing: all but the mixing is computed in chunks of points.

        Of each chunk only the input is kept, and the rest computed again in the backward pass. A mixer that isn't
        separable is computed whole.
        """
        if not getattr(self.mixer, "separable", False):
            return self.forward(x, layout)
        mixer = cast("SeparableMixer", self.mixer)
        projected = in_chunks(lambda part: mixer.project(self.mixer_norm, part), x)

        def follow(x: Tensor, mixed: Tensor) -> tuple[Tensor]:
            return (add_after_norm(self.pointwise_norm, self.pointwise, mixer.add_output(x, mixed)),)

        (out,) = in_chunks(follow, x, mixer.mix(*projected, layout=layout))
        return out


def add_after_norm(norm: nn.Module, module: nn.Module, x: Tensor, *more: object) -> Tensor:
    """Returns x + module(norm(x), ...), by the module's own `add_after_norm` or `after_norm` where it has one."""
    for name in () if is_hooked(module) else ("add_after_norm", "after_norm"):
        own = getattr(module, name, None)
        if own is not None:
            out: Tensor = own(norm, x, *more)
            return out if name == "add_after_norm" else x + out
    called: Tensor = module(norm(x), *more)
    return x + called


def in_chunks(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Apply a pointwise function in chunks, and recompute each in the backward pass (activation checkpointing).

    When the model is compiled, chunks are computed once: its compiler can't take a number of checkpoints that depends
    on the number of points. Blocks are recomputed there as everywhere.

    Args:
        function: Takes tensors [..., N, C] and returns such.
        tensors: What it takes.
    """
    chunks = zip(*(torch.split(tensor, _CHUNK, dim=-2) for tensor in tensors), strict=True)
    if torch.compiler.is_compiling():
        parts = [function(*chunk) for chunk in chunks]
    else:
        parts = [torch.utils.checkpoint.checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(part, dim=-2) for part in zip(*parts, strict=True))


class Backbone(MeshModel):
    """Blocks between two projections; inputs and outputs are those of the [contract][flare_model.models.contract].

    Args:
        in_dim: Numbers a point comes with: its coordinates and its features.
        channels: C.
        input_projection: Projects in_dim onto C.
        blocks: The blocks.
        output_projection: Projects the normalised C channels onto the predicted numbers.
    """

    def __init__(
        self,
        in_dim: int,
        channels: int,
        input_projection: nn.Module,
        blocks: Iterable[Block],
        output_projection: nn.Module,
    ) -> None:
        super().__init__(in_dim)
        self.enter = input_projection  # checkpoints name weights by these attributes
        self.blocks = nn.ModuleList(blocks)
        self._tiled = any(getattr(block.mixer, "tiled", False) for block in self.blocks)
        self.norm = nn.LayerNorm(channels)
        self.leave = output_projection
        self.activation_checkpointing = False
        """Keep only the input of each block, and recompute the rest in the backward pass, in chunks of points."""

    def compute(self, inputs: Tensor, layout: Layout) -> Tensor:
        """[B, N, in_dim] or [ΣN, in_dim] to [B, N, out_dim] or [ΣN, out_dim]."""
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        with full_precision(inputs):
            hidden = in_chunks(lambda part: (self.enter(part),), inputs)[0] if recompute else self.enter(inputs)
        for block in self.blocks:
            if recompute:
                forward = cast("Block", block).forward_in_chunks
                hidden = torch.utils.checkpoint.checkpoint(forward, hidden, layout, use_reentrant=False)
            else:
                hidden = block(hidden, layout)
        with full_precision(inputs):
            hidden = hidden.to(inputs.dtype)
            return (
                in_chunks(lambda part: (self.predict_from(part),), hidden)[0]
                if recompute
                else self.predict_from(hidden)
            )

    def predict_from(self, hidden: Tensor) -> Tensor:
        """From hidden numbers [..., C] behind the last block to predictions [..., out_dim]."""
        implementation: Implementation = getattr(self.leave, "implementation", "sdpa")
        out: Tensor = self.leave(normalise(self.norm, hidden, implementation))
        return out
