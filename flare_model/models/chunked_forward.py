"""FLARE's forward pass over a mesh of millions of points, in chunks of points: exact, and with bounded memory.

Of all that FLARE does, only encoding looks at more than one point. A block is one pass over the chunks: each is
decoded, goes through what is pointwise, and is encoded for the next block. Kept are the hidden numbers of all points
and the latents of two blocks. Keys are computed twice, to encode and to decode, in place of being kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn

from flare_model.layers.chunked_mixing import ChunkedMixing
from flare_model.layers.layout import Layout
from flare_model.layers.mixer import FlareMixer
from flare_model.models.backbone import Block, add_after_norm
from flare_model.models.mesh_model import full_precision

LARGE: Final = 1 << 20
GPU_LARGE: Final = 1 << 22
"""Meshes of more points are predicted on in chunks."""

CHUNK: Final = 1 << 14
GPU_CHUNK: Final = 1 << 21
"""Points of a chunk: on a CPU so few that its caches hold much of them, on a GPU so many that launching takes less time
than computing."""


def takes_chunks(blocks: Sequence[Block], inputs: Tensor, layout: Layout) -> bool:
    """Whether a forward pass is done in chunks: for one large mesh, where no gradient is asked for.

    Args:
        blocks: The model's blocks.
        inputs: [B, N, in_dim] or [ΣN, in_dim].
        layout: How the points divide into meshes.
    """
    # Traced graphs are for any number of points, so that it isn't looked at there.
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    if inputs.shape[-2] <= (LARGE if inputs.device.type == "cpu" else GPU_LARGE):
        return False
    one = layout.offsets.shape[0] == 2 if layout.offsets is not None else inputs.shape[0] == 1
    if not one or layout.mask is not None or layout.ranks is not None:
        return False
    return all(_goes_in_chunks(block) for block in blocks)


def _goes_in_chunks(block: Block) -> bool:
    """Whether its mixer only encodes and decodes, and no hook looks at whole meshes, as spectra do."""
    mixer = block.mixer
    if not isinstance(mixer, FlareMixer) or not mixer.as_published:
        return False
    return not any(one._forward_hooks or one._forward_pre_hooks for one in (block, mixer, mixer.mixing))


def compute_in_chunks(
    enter: Callable[[Tensor], Tensor], blocks: Sequence[Block], leave: Callable[[Tensor], Tensor], inputs: Tensor
) -> Tensor:
    """The forward pass of one mesh.

    Args:
        enter: The projection of inputs onto C channels, in full precision.
        blocks: The blocks; `takes_chunks` says which.
        leave: From C channels to what is predicted, in full precision.
        inputs: [N, in_dim].

    Returns:
        [N, out_dim].
    """
    length = CHUNK if inputs.device.type == "cpu" else GPU_CHUNK
    chunks = [slice(start, start + length) for start in range(0, len(inputs), length)]
    hidden: Tensor | None = None
    mixing = _start(blocks[0])
    for chunk in chunks:
        with full_precision(inputs):
            entered = enter(inputs[chunk])
        hidden = entered.new_empty(len(inputs), entered.shape[1]) if hidden is None else hidden
        hidden[chunk] = entered
        _encode(blocks[0], mixing, hidden[chunk])
    assert hidden is not None
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        next_mixing = None if following is None else _start(following)
        for chunk in chunks:
            hidden[chunk] = _follow(block, mixing, hidden[chunk])
            if following is not None and next_mixing is not None:
                _encode(following, next_mixing, hidden[chunk])
        mixing = mixing if next_mixing is None else next_mixing
    with full_precision(inputs):
        return torch.cat([leave(hidden[chunk].to(inputs.dtype)) for chunk in chunks])


def _start(block: Block) -> ChunkedMixing:
    mixer = cast("FlareMixer", block.mixer)
    return ChunkedMixing(mixer.latent_queries * mixer.scale, mixer.implementation)


def _encode(block: Block, mixing: ChunkedMixing, x: Tensor) -> None:
    """Add a chunk [n, C] to what a block's latents see."""
    mixer = cast("FlareMixer", block.mixer)
    keys, values = mixer.project(cast("nn.LayerNorm", block.mixer_norm), x)
    mixing.encode(_by_heads(mixer, keys), _by_heads(mixer, values))


def _follow(block: Block, mixing: ChunkedMixing, x: Tensor) -> Tensor:
    """A chunk [n, C] behind a block, all of whose points have been encoded."""
    mixer = cast("FlareMixer", block.mixer)
    keys = mixer.keys.after_norm(cast("nn.LayerNorm", block.mixer_norm), x)
    x = mixer.add_output(x, mixing.decode(_by_heads(mixer, keys)).flatten(-2))
    return add_after_norm(block.pointwise_norm, block.pointwise, x)


def _by_heads(mixer: FlareMixer, projected: Tensor) -> Tensor:
    """[n, C] as [n, H, D]."""
    return projected.reshape(len(projected), mixer.num_heads, -1)
