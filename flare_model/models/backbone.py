"""What all models share: a projection in, blocks of token mixing and pointwise networks, a projection out.

B meshes, N points, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol, Self, cast

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from flare_model.checkpoints.files import Description
from flare_model.checkpoints.hub import Pretrained
from flare_model.checkpoints.restore_model import restore_model
from flare_model.checkpoints.spec import spec_of
from flare_model.layers.layout import Layout
from lpbf_data.errors import UsageError

_CHUNK: Final = 1 << 19
"""Points of a chunk, where the backward pass computes things again."""


class SplitMixer(Protocol):
    """A mixer in three parts, of which only the second looks at more than one point."""

    @property
    def leave(self) -> Callable[[Tensor], Tensor]:
        """Of single points: what `mix` returns, to what the mixer returns."""

    def project(self, norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, ...]:
        """Of single points: norm(x) to what is mixed."""

    def mix(self, *projected: Tensor, layout: Layout) -> Tensor:
        """Let points meet."""


class Block(nn.Module):
    """A mixer and a pointwise network, each behind a LayerNorm and beside a residual (FLARE, equation 10).

    Args:
        channels: C.
        mixer: Called with x and a [Layout][flare_model.layers.layout.Layout]; the only place where points meet.
        pointwise: Called with x.

    Either may have a method `behind`, as [ResMLP][flare_model.layers.pointwise.ResMLP] has: it is called with the
    LayerNorm and what enters that, so that one kernel can do both. A mixer with a true `tiled` gets joined meshes cut
    into [tiles][flare_model.layers.mesh_tiles.MeshTiles]; one with a true `splits` is a `SplitMixer`, as
    [FlareMixer][flare_model.layers.mixer.FlareMixer] is, and saves memory where activations are computed again.
    """

    def __init__(self, channels: int, mixer: nn.Module, pointwise: nn.Module) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(channels)
        self.mixer = mixer
        self.pointwise_norm = nn.LayerNorm(channels)
        self.pointwise = pointwise

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[B, N, C] or [ΣN, C] to the same."""
        x = x + _behind(self.mixer_norm, self.mixer, x, layout)
        return x + _behind(self.pointwise_norm, self.pointwise, x)

    def forward_in_chunks(self, x: Tensor, layout: Layout) -> Tensor:
        """The same, with all but the mixing itself in chunks of points, of which nothing but their input is kept.

        A mixer that doesn't split is computed whole.
        """
        if not getattr(self.mixer, "splits", False):
            return self.forward(x, layout)
        mixer = cast("SplitMixer", self.mixer)
        projected = in_chunks(lambda part: mixer.project(self.mixer_norm, part), x)

        def follow(x: Tensor, mixed: Tensor) -> tuple[Tensor]:
            x = x + mixer.leave(mixed)
            return (x + _behind(self.pointwise_norm, self.pointwise, x),)

        (out,) = in_chunks(follow, x, mixer.mix(*projected, layout=layout))
        return out


def _behind(norm: nn.LayerNorm, module: nn.Module, x: Tensor, *more: object) -> Tensor:
    """module(norm(x), ...), by the module itself where it can take in a norm."""
    behind = getattr(module, "behind", None)
    out: Tensor = module(norm(x), *more) if behind is None else behind(norm, x, *more)
    return out


def in_chunks(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Apply a function of single points in chunks, and compute each again in the backward pass.

    When the model is compiled, chunks are computed once: its compiler can't take a number of checkpoints that depends
    on the number of points. Blocks are computed again there as everywhere.

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


class Backbone(nn.Module, Pretrained):
    """Blocks between two projections; see [protocol][flare_model.models.contract] for what goes in and out.

    Args:
        in_dim: Numbers a point comes with: its coordinates and its features.
        channels: C.
        enter: Projects in_dim onto C.
        blocks: The blocks.
        leave: Projects C, normalised, onto what is predicted.
    """

    def __init__(self, in_dim: int, channels: int, enter: nn.Module, blocks: Iterable[Block], leave: nn.Module) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.enter = enter
        self.blocks = nn.ModuleList(blocks)
        self._tiled = any(getattr(block.mixer, "tiled", False) for block in self.blocks)
        self.norm = nn.LayerNorm(channels)
        self.leave = leave
        self.activation_checkpointing = False
        """Keep only what enters each block, and compute the rest again in the backward pass, in chunks of points."""

    def forward(
        self, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Predict at every point.

        Args:
            points: Coordinates, [B, N, 3] for equal or padded meshes; [ΣN, 3] for joined ones, or for a single mesh.
            features: What else is known of the points, as many numbers a point as in_dim leaves.
            offsets: First point of each joined mesh and the end of the last, [B + 1].
            mask: True where a point exists, [B, N]; for padded meshes.

        Returns:
            [B, N, out_dim] or [ΣN, out_dim]; where the mask is False it means nothing.

        Raises:
            UsageError: If the shapes don't fit together.
        """
        known = points if features is None else torch.cat([points, features], dim=-1)
        if known.shape[-1] != self.in_dim:
            raise UsageError(f"the model takes {self.in_dim} numbers a point, but got {known.shape[-1]}")
        single = known.dim() == 2 and offsets is None
        if single:
            known = known.unsqueeze(0)
        layout = Layout.of(known, offsets, mask, tiled=self._tiled)
        if mask is not None:
            # What fills a mesh up may be anything, and a weight of 0 times NaN is NaN.
            known = known.masked_fill(~mask.unsqueeze(-1), 0.0)
        again = self.activation_checkpointing and torch.is_grad_enabled()
        # Both projections keep float32 under autocast: in 16 bits a coordinate of 30 mm is off by up to 0.06 mm, and a
        # prediction has two digits. They are pointwise and a twentieth of the work.
        with torch.autocast(known.device.type, enabled=False):
            hidden = in_chunks(lambda part: (self.enter(part),), known)[0] if again else self.enter(known)
        for block in self.blocks:
            if again:
                forward = cast("Block", block).forward_in_chunks
                hidden = torch.utils.checkpoint.checkpoint(forward, hidden, layout, use_reentrant=False)
            else:
                hidden = block(hidden, layout)
        with torch.autocast(known.device.type, enabled=False):
            hidden = hidden.to(known.dtype)
            out = in_chunks(lambda part: (self._predict(part),), hidden)[0] if again else self._predict(hidden)
        return out.squeeze(0) if single else out

    def _predict(self, hidden: Tensor) -> Tensor:
        """[..., C] to [..., out_dim]."""
        out: Tensor = self.leave(self.norm(hidden))
        return out

    def description(self) -> Description:
        """What a checkpoint says of it."""
        return Description(spec_of(self))

    def stored_weights(self) -> dict[str, Tensor]:
        """What to store."""
        return dict(self.state_dict())

    @classmethod
    def restored(cls, weights: dict[str, Tensor], description: Description, *, folder: Path, trust: str | None) -> Self:
        """The bare model of a checkpoint, whether it was stored alone or as part of a surrogate."""
        model = restore_model(weights, description.model, folder=folder, trust=trust)
        if not isinstance(model, cls):
            raise UsageError(f"the checkpoint {folder} holds a {type(model).__name__}, not a {cls.__name__}")
        return model
