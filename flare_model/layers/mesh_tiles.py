"""Joined meshes in rows of one length: padded, a row a mesh, or cut into tiles, many rows a mesh.

B meshes, ΣN points of all meshes together, R rows of L slots, C channels. The sizes of padded meshes must be known;
those of tiles need not be, and sums over meshes can be taken of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor

_LENGTH: Final = 256
"""Slots of a tile. Meshes end within one, so that half a tile a mesh is empty on average."""


@dataclass(frozen=True)
class PointRows:
    """Mapping between joined points and rows of one length.

    Attributes:
        index: Index of the joined point in each slot, [R, L]; of any point where a slot is empty.
        exists: True where a slot has a point, [R, L].
        slot: Slot of each joined point in the flattened rows, [ΣN].
    """

    index: Tensor
    exists: Tensor
    slot: Tensor

    @classmethod
    def padded(cls, offsets: Tensor, sizes: tuple[int, ...]) -> PointRows:
        """A row a mesh, on the device of the offsets.

        Args:
            offsets: First point of each mesh and the end of the last, [B + 1].
            sizes: Points of each mesh.
        """
        along = torch.arange(max(sizes), device=offsets.device)
        exists = along < offsets.diff()[:, None]
        index = torch.where(exists, offsets[:-1, None] + along, offsets[:-1, None])
        mesh = mesh_of_points(offsets, sum(sizes))
        return cls(index, exists, _slots(mesh * max(sizes), mesh, offsets))

    def to_rows(self, x: Tensor) -> Tensor:
        """[ΣN, …] to [R, L, …]; empty slots hold values of another point, and pass no gradient."""
        rows: Tensor = _ToRows.apply(x, self.index, self.slot)  # type: ignore[no-untyped-call]
        return rows

    def to_points(self, rows: Tensor) -> Tensor:
        """[R, L, …] to [ΣN, …]."""
        x: Tensor = _ToPoints.apply(rows, self.index, self.exists, self.slot)  # type: ignore[no-untyped-call]
        return x


@dataclass(frozen=True)
class MeshTiles(PointRows):
    """Many rows a mesh, each of one mesh.

    Attributes:
        membership: 1 where a row is of a mesh, 0 elsewhere, [B, R], float32.
    """

    membership: Tensor

    @classmethod
    def of(cls, offsets: Tensor, num_points: int, length: int = _LENGTH) -> Self:
        """Cut meshes, on the device of their offsets.

        Args:
            offsets: First point of each mesh and the end of the last, [B + 1].
            num_points: ΣN.
            length: L.
        """
        meshes = torch.arange(offsets.shape[0] - 1, device=offsets.device)
        ends = ((offsets.diff() + length - 1) // length).cumsum(0)
        firsts = torch.cat([ends.new_zeros(1), ends])
        # As many rows as there can be; those after the last tile are empty.
        rows = torch.arange(num_points // length + meshes.shape[0], device=offsets.device)
        owner = torch.bucketize(rows, ends, right=True)
        mesh_of_row = owner.clamp(max=meshes.shape[0] - 1)
        along = torch.arange(length, device=offsets.device)
        index = (offsets[mesh_of_row] + (rows - firsts[mesh_of_row]) * length)[:, None] + along
        exists = (index < offsets[mesh_of_row + 1, None]) & (owner == mesh_of_row)[:, None]
        mesh = mesh_of_points(offsets, num_points)
        slot = _slots(firsts[mesh] * length, mesh, offsets)
        return cls(index.clamp(max=num_points - 1), exists, slot, (meshes[:, None] == owner).float())

    def total(self, parts: Tensor) -> Tensor:
        """Sums over the rows of each mesh, [R, …] to [B, …], float32 at least: in the same order in every run."""
        return _multiply(self.membership, parts)

    def spread(self, sums: Tensor) -> Tensor:
        """Values of meshes to each of their rows, [B, …] to [R, …], float32 at least."""
        return _multiply(self.membership.T, sums)


def mesh_of_points(offsets: Tensor, num_points: int) -> Tensor:
    """Number of the mesh of each joined point, [ΣN]."""
    points = torch.arange(num_points, device=offsets.device)
    return torch.bucketize(points, offsets[1:], right=True)


def _slots(row_starts: Tensor, mesh: Tensor, offsets: Tensor) -> Tensor:
    """Slot of each point, from that of the first of its mesh."""
    return row_starts + torch.arange(mesh.shape[0], device=offsets.device) - offsets[mesh]


def _multiply(matrix: Tensor, rows: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        wide = torch.promote_types(rows.dtype, torch.float32)
        return (matrix.to(wide) @ rows.to(wide).flatten(1)).view(-1, *rows.shape[1:])


class _ToRows(torch.autograd.Function):
    """Gather by index. Each point has one slot, so its gradient is a gather too: sums would need atomics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, slot: Tensor) -> Tensor:
        """Rows of points by the index of each slot."""
        ctx.save_for_backward(slot)
        return x[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of each point's slot."""
        (slot,) = ctx.saved_tensors
        return gradient.flatten(0, 1)[slot], None, None


class _ToPoints(torch.autograd.Function):
    """Gather by slot; the gradient of an empty slot is 0."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, exists: Tensor, slot: Tensor) -> Tensor:
        """Points by the slot of each."""
        ctx.save_for_backward(index, exists)
        return rows.flatten(0, 1)[slot]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of each slot's point, 0 where it is empty."""
        index, exists = ctx.saved_tensors
        return gradient[index] * exists[(..., *[None] * (gradient.dim() - 1))], None, None, None
