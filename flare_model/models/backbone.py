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
from flare_model.layers.pointwise import is_hooked
from flare_model.models.mesh_model import MeshModel, full_precision

_CHUNK: Final = 1 << 19
"""Points of a chunk under activation checkpointing."""

_MANY: Final = 1 << 24
"""With more points than these, activation checkpointing keeps the input of every second block."""


class SeparableMixer(Protocol):
    """A mixer in three parts, of which only the second, `mix`, depends on more than one point."""

    def project(self, norm: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """Pointwise: from norm(x) to what is mixed."""

    def mix(self, *projected: Tensor, layout: Layout) -> Tensor:
        """Mix the points of each mesh."""

    @property
    def leave(self) -> Callable[[Tensor], Tensor]:
        """Pointwise: from what `mix` returns to the mixer's output; checkpoints name weights by this attribute.

        A method `add_output(x, mixed)`, where there is one, is called in its place: it adds x to that output.
        """


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
            add_output = getattr(mixer, "add_output", None)
            x = x + mixer.leave(mixed) if add_output is None else add_output(x, mixed)
            return (add_after_norm(self.pointwise_norm, self.pointwise, x),)

        (out,) = in_chunks(follow, x, mixer.mix(*projected, layout=layout))
        return out


def add_after_norm(norm: nn.Module, module: nn.Module, x: Tensor, *more: object) -> Tensor:
    """Returns x + module(norm(x), ...), by the module's own `add_after_norm` or `after_norm` where it has one.

    Where a class has one of them and its base the other, that of the class is taken.
    """
    names = [name for one in type(module).__mro__ for name in ("add_after_norm", "after_norm") if name in vars(one)]
    if not names or is_hooked(module):
        called: Tensor = module(norm(x), *more)
        return x + called
    out: Tensor = getattr(module, names[0])(norm, x, *more)
    return out if names[0] == "add_after_norm" else x + out


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


def _forward_in_chunks(blocks: list[Block], x: Tensor, layout: Layout) -> Tensor:
    """Blocks that are recomputed together; of several, each is recomputed once more by itself."""
    if len(blocks) == 1:
        return blocks[0].forward_in_chunks(x, layout)
    for block in blocks:
        x = torch.utils.checkpoint.checkpoint(block.forward_in_chunks, x, layout, use_reentrant=False)
    return x


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
        """Keep only the input of each block, and recompute the rest in the backward pass, in chunks of points.

        With more than 16,777,216 points the input of every second block alone: less memory, one more forward pass.
        """

    def compute(self, inputs: Tensor, layout: Layout) -> Tensor:
        """[B, N, in_dim] or [ΣN, in_dim] to [B, N, out_dim] or [ΣN, out_dim]."""
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        with full_precision(inputs):
            hidden = in_chunks(lambda part: (self.enter(part),), inputs)[0] if recompute else self.enter(inputs)
        if recompute:
            for blocks in self._checkpointed(hidden):
                hidden = torch.utils.checkpoint.checkpoint(
                    _forward_in_chunks, blocks, hidden, layout, use_reentrant=False
                )
        else:
            for block in self.blocks:
                hidden = block(hidden, layout)
        with full_precision(inputs):
            hidden = hidden.to(inputs.dtype)
            return (
                in_chunks(lambda part: (self.predict_from(part),), hidden)[0]
                if recompute
                else self.predict_from(hidden)
            )

    def _checkpointed(self, hidden: Tensor) -> list[list[Block]]:
        """The blocks by those that are recomputed together, for hidden numbers [..., C]."""
        blocks = [cast("Block", block) for block in self.blocks]
        # A compiled model is for any number of points.
        many = not torch.compiler.is_compiling() and hidden.numel() > _MANY * hidden.shape[-1]
        length = 2 if many else 1
        return [blocks[start : start + length] for start in range(0, len(blocks), length)]

    def predict_from(self, hidden: Tensor) -> Tensor:
        """From hidden numbers [..., C] behind the last block to predictions [..., out_dim]."""
        out: Tensor = self.leave(self.norm(hidden))
        return out
