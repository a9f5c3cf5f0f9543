"""FLARE's token mixing of one mesh whose points come in chunks, without gradients.

Only the encoding depends on more than one point, and only through sums over points: chunks are encoded one after the
other and merged, as processes that share a mesh do with theirs.

n points of a chunk, H heads, D channels a head, M latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flare_model.data.point_ranks import merge_latents
from flare_model.layers.backend import compute_dtype, mix_by_kernels
from flare_model.layers.divided_meshes import decode_points, encode_points
from flare_model.sizes import Implementation


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
        else:
            with torch.autocast(keys.device.type, enabled=False):
                packed = encode_points(self._queries, keys, values, mask=None)
            part = packed[..., :-1], packed[..., -1]
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
        with torch.autocast(keys.device.type, enabled=False):
            return decode_points(self._queries, keys, latents, mask=None)[0]

    def _takes_kernels(self, keys: Tensor) -> bool:
        _, num_latents, depth = self._queries.shape
        by_kernels: bool = mix_by_kernels(self._implementation, keys.device, keys.dtype, depth, num_latents)
        return by_kernels
