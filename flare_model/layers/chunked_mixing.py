"""FLARE's token mixing of one mesh whose points come in chunks, without gradients.

Only the encoding depends on more than one point, and only through sums over points: chunks are encoded one after the
other and merged, as processes that share a mesh do with theirs.

n points of a chunk, H heads, D channels a head, M latents.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from flare_model.data.point_ranks import merge_latents
from flare_model.layers.backend import compute_dtype, mix_by_cpu_kernels, mix_by_kernels
from flare_model.layers.divided_meshes import decode_points, encode_points
from flare_model.sizes import Implementation

_ATTENTION: Final = "_scaled_dot_product_flash_attention_for_cpu"


class ChunkedMixing:
    """The mixing of one mesh: first all chunks are encoded, then each is decoded.

    Args:
        queries: Latent queries, [H, M, D].
        implementation: As for [mix_meshes][flare_model.layers.mixer.mix_meshes].
    """

    def __init__(self, queries: Tensor, implementation: Implementation) -> None:
        self._queries, self._implementation = queries, implementation
        self._latents: tuple[Tensor, Tensor] | None = None

    def encode(self, keys: Tensor, values: Tensor) -> None:
        """Add a chunk.

        Args:
            keys: Keys of its points, [n, H, D].
            values: As the keys.
        """
        dtype = compute_dtype(keys)
        keys, values = keys.to(dtype)[None], values.to(dtype)[None]
        by_kernels = self._takes_kernels(keys)
        if by_kernels:
            from flare_model.kernels import mixing

            part = mixing.encode(self._queries, keys, values)
        elif mix_by_cpu_kernels(self._implementation, self._queries, keys, values):
            from flare_model.kernels.cpu import mixing as cpu_mixing

            part = cpu_mixing.encode(self._queries, keys, values)
        else:
            with torch.autocast(keys.device.type, enabled=False):
                part = _encode_by_attention(self._queries, keys, values)
        if self._latents is not None:
            pairs = (torch.stack(pair) for pair in zip(self._latents, part, strict=True))
            part = merge_latents(*pairs, binary=by_kernels and dtype != torch.float32)
        self._latents = part

    def decode(self, keys: Tensor) -> Tensor:
        """Mixed values of the points of a chunk, [n, H, D], from their keys.

        Args:
            keys: [n, H, D].
        """
        assert self._latents is not None
        keys = keys.to(compute_dtype(keys))[None]
        latents = self._latents[0].to(torch.promote_types(keys.dtype, torch.float32))
        if self._takes_kernels(keys):
            from flare_model.kernels import mixing

            return mixing.decode(self._queries, keys, latents)[0]
        if mix_by_cpu_kernels(self._implementation, self._queries, keys, keys):
            from flare_model.kernels.cpu import mixing as cpu_mixing

            return cpu_mixing.decode(self._queries, keys, latents)[0]
        with torch.autocast(keys.device.type, enabled=False):
            return decode_points(self._queries, keys, latents, mask=None)[0]

    def _takes_kernels(self, keys: Tensor) -> bool:
        _, num_latents, depth = self._queries.shape
        by_kernels: bool = mix_by_kernels(self._implementation, keys.device, keys.dtype, depth, num_latents)
        return by_kernels


def _encode_by_attention(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [B, H, M, D] and their logsumexps [B, H, M] of keys and values [B, N, H, D].

    On a CPU by PyTorch's attention, of which only an operator without a public name gives the logsumexps; it takes a
    fifth of the time of explicit matrices, which are taken where this version of PyTorch has no such operator.
    """
    attend = getattr(torch.ops.aten, _ATTENTION, None)
    if keys.device.type != "cpu" or attend is None:
        packed = encode_points(queries, keys, values, mask=None)
        return packed[..., :-1], packed[..., -1]
    # Latents of chunks are merged before they are rounded to 16 bits.
    wide = torch.promote_types(keys.dtype, torch.float32)
    latents = queries.to(keys.dtype).to(wide).expand(len(keys), -1, -1, -1)
    found: tuple[Tensor, Tensor] = attend(
        latents, keys.to(wide).transpose(1, 2), values.to(wide).transpose(1, 2), scale=1.0
    )
    return found
