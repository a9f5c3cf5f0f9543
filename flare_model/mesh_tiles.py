"""Joined meshes cut into tiles of one length, each of one mesh: sums over every mesh whose size no host has to know.

B meshes, ΣN points of all meshes together, T tiles of L places, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

_LENGTH: Final = 256
"""Places of a tile. Meshes end within one, so that half of one a mesh is empty."""


@dataclass(frozen=True)
class MeshTiles:
    """Where joined points go in tiles and come back from.

    Attributes:
        index: Number of the joined point at each place, [T, L]; any point where there is none.
        exists: True where there is one, [T, L].
        place: Place of each joined point in the flattened tiles, [ΣN].
        members: 1 where a tile is of a mesh, 0 elsewhere, [B, T], float32.
    """

    index: Tensor
    exists: Tensor
    place: Tensor
    members: Tensor

    @classmethod
    def of(cls, offsets: Tensor, num_points: int, length: int = _LENGTH) -> MeshTiles:
        """Cut meshes, on the device of their offsets.

        Args:
            offsets: First point of each mesh and the end of the last, [B + 1].
            num_points: ΣN.
            length: L.
        """
        meshes = torch.arange(offsets.shape[0] - 1, device=offsets.device)
        ends = ((offsets.diff() + length - 1) // length).cumsum(0)
        firsts = torch.cat([ends.new_zeros(1), ends])
        # As many as there can be; those behind the last are empty.
        tiles = torch.arange(num_points // length + meshes.shape[0], device=offsets.device)
        owner = torch.bucketize(tiles, ends, right=True)
        mine = owner.clamp(max=meshes.shape[0] - 1)
        along = torch.arange(length, device=offsets.device)
        index = (offsets[mine] + (tiles - firsts[mine]) * length)[:, None] + along
        exists = (index < offsets[mine + 1, None]) & (owner == mine)[:, None]
        points = torch.arange(num_points, device=offsets.device)
        mesh = torch.bucketize(points, offsets[1:], right=True)
        place = firsts[mesh] * length + points - offsets[mesh]
        members = (meshes[:, None] == owner).float()
        return cls(index.clamp(max=num_points - 1), exists, place, members)

    def cut(self, x: Tensor) -> Tensor:
        """[ΣN, C] to [T, L, C]; where there is no point stands that of another, from which no gradient comes back."""
        tiles: Tensor = _Cut.apply(x, self.index, self.place)  # type: ignore[no-untyped-call]
        return tiles

    def join(self, tiles: Tensor) -> Tensor:
        """[T, L, C] to [ΣN, C]."""
        x: Tensor = _Join.apply(tiles, self.index, self.exists, self.place)  # type: ignore[no-untyped-call]
        return x

    def total(self, parts: Tensor) -> Tensor:
        """Sums over the tiles of each mesh, [T, …] to [B, …], float32 at least: in the same order in every run."""
        return _multiply(self.members, parts)

    def spread(self, sums: Tensor) -> Tensor:
        """What belongs to a mesh to each of its tiles, [B, …] to [T, …], float32 at least."""
        return _multiply(self.members.T, sums)


def _multiply(matrix: Tensor, rows: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        wide = torch.promote_types(rows.dtype, torch.float32)
        return (matrix.to(wide) @ rows.to(wide).flatten(1)).view(-1, *rows.shape[1:])


class _Cut(torch.autograd.Function):
    """Gather by index. Each point has one place, so its gradient is gathered too: sums would need atomics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return gradient.flatten(0, 1)[place], None, None


class _Join(torch.autograd.Function):
    """Gather by place; the gradient of a place without a point is 0."""

    @staticmethod
    def forward(ctx: Any, tiles: Tensor, index: Tensor, exists: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(index, exists)
        return tiles.flatten(0, 1)[place]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        index, exists = ctx.saved_tensors
        return gradient[index] * exists[..., None], None, None, None
