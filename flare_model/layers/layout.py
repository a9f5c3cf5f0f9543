"""How the points of a batch divide into meshes, and attention that never leaves a mesh.

B meshes, N points, ΣN points of all meshes together.

Sizes are taken by `shape` and not by `len`, which would make constants of them in an exported model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from flare_model.layers.mesh_tiles import MeshTiles, PointRows, mesh_of_points
from lpbf_data.errors import UsageError

if TYPE_CHECKING:
    from flare_model.data.point_ranks import PointRanks

_MAX_PADDING: Final = 1.5
"""Joined meshes are padded when that makes them at most so much longer; otherwise they are taken one by one."""

_INTEGERS: Final = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Layout:
    """How the points of a batch divide into meshes; made once a forward pass, used by every mixer.

    Attributes:
        offsets: First point of each joined mesh and the end of the last, [B + 1]; None for a batch [B, N].
        mask: True where a point exists, [B, N]; for padded batches.
        sizes: Points of each joined mesh, where the host knows them.
        padding: Set where joined meshes are better padded than taken one by one.
        tiles: Joined meshes cut into tiles, for mixers that sum over meshes.
        ranks: Processes that share the points of every mesh, of which this one has the points given; None where it has
            all points.
    """

    offsets: Tensor | None = None
    mask: Tensor | None = None
    sizes: tuple[int, ...] | None = None
    padding: PointRows | None = None
    tiles: MeshTiles | None = None
    ranks: PointRanks | None = None

    @classmethod
    def of(
        cls,
        points: Tensor,
        offsets: Tensor | None,
        mask: Tensor | None,
        *,
        tiled: bool = False,
        ranks: PointRanks | None = None,
    ) -> Layout:
        """The layout of a batch.

        Args:
            points: [B, N, …], or [ΣN, …] with offsets.
            offsets: First point of each mesh and the end of the last, [B + 1], on any device.
            mask: True where a point exists, [B, N].
            tiled: Cut joined meshes into tiles, rather than pad them.
            ranks: The processes that share the points of every mesh; a mesh may then have none of them here.

        Raises:
            UsageError: If the shapes don't fit together, or a mesh has no points. Where the host can't know the offsets
                without waiting, or a graph is recorded, they are checked on their device: wrong ones end as errors of
                the device, later. Exported models check nothing.
        """
        if offsets is None:
            if mask is not None:
                _check_mask(mask, points)
            return cls(mask=mask, ranks=ranks)
        if points.dim() != 2 or mask is not None:
            raise UsageError(
                "joined meshes are points [ΣN, …] with offsets; padded ones [B, N, …] with a mask: not both"
            )
        if offsets.dim() != 1 or offsets.shape[0] < 2 or offsets.dtype not in _INTEGERS:
            raise UsageError(
                "offsets must be two or more whole numbers, the first point of each mesh and the end of the last, "
                f"in 32 or 64 bits: not {tuple(offsets.shape)} of {str(offsets.dtype).removeprefix('torch.')}"
            )
        offsets = offsets.contiguous()
        one, sizes = offsets.shape[0] == 2, None
        if torch.compiler.is_compiling() or (offsets.is_cuda and (_capturing() or one)):
            # Reading the sizes would break the graph, or wait for the device; one mesh needs none.
            _assert_rising(offsets, points.shape[0], 1 if ranks is None else 0)
        else:
            sizes = _checked_sizes(offsets, points.shape[0], 1 if ranks is None else 0)
        if one:
            return cls(offsets=offsets, ranks=ranks)
        offsets = offsets.to(points.device)
        tiles = MeshTiles.of(offsets, points.shape[0]) if tiled else None
        if sizes is None or _capturing():
            return cls(offsets=offsets, tiles=tiles, ranks=ranks)
        worthwhile = not tiled and min(sizes) > 0 and max(sizes) * len(sizes) <= _MAX_PADDING * points.shape[0]
        padding = PointRows.padded(offsets, sizes) if worthwhile else None
        return cls(offsets=offsets, sizes=sizes, padding=padding, tiles=tiles, ranks=ranks)

    def attend(self, function: Callable[..., Tensor], *tensors: Tensor, of_meshes: Sequence[Tensor] = ()) -> Tensor:
        """Apply a function of whole meshes to every mesh of the batch.

        Args:
            function: Takes tensors [B, N, …], then those of meshes, and `mask`, [B, N] or None; returns [B, N, …].
            tensors: What it takes, laid out as this layout says.
            of_meshes: What it takes that belongs to whole meshes, [B, …].

        Returns:
            Its result, laid out in the same way.
        """
        if self.offsets is None:
            return function(*tensors, *of_meshes, mask=self.mask)
        if self.offsets.shape[0] == 2:
            return function(*(t.unsqueeze(0) for t in tensors), *of_meshes, mask=None).squeeze(0)
        if self.sizes is None:
            apply_masked, owner = self._masked_meshes(*tensors)
            mixed = apply_masked(function, *of_meshes)
            mesh_of_point = owner.view(1, -1, *[1] * (mixed.dim() - 2)).expand(1, *mixed.shape[1:])
            return mixed.gather(0, mesh_of_point).squeeze(0)
        if self.padding is not None:
            cut = map(self.padding.to_rows, tensors)
            return self.padding.to_points(function(*cut, *of_meshes, mask=self.padding.exists))
        parts = self._each_mesh(function, tensors, of_meshes)
        return torch.cat([part.squeeze(0) for part in parts])

    def apply_joined(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Apply a function that finds the meshes of the batch itself, as the kernels do.

        Args:
            function: Takes tensors [B, N, …] and `mask`, [B, N] or None; or [ΣN, …] and `offsets`, [B + 1]. Returns
                the same.
            tensors: What it takes, laid out as this layout says.

        Returns:
            Its result, laid out in the same way.

        Raises:
            UsageError: If there are no points.
        """
        if self.ranks is None and tensors[0].shape[0 if self.offsets is not None else 1] == 0:
            raise UsageError("there is nothing to mix: every mesh needs a point")
        if self.offsets is None:
            return function(*tensors, mask=self.mask, offsets=None)
        if self.offsets.shape[0] == 2:
            return function(*(t.unsqueeze(0) for t in tensors), mask=None, offsets=None).squeeze(0)
        return function(*tensors, mask=None, offsets=self.offsets)

    def has_no_meshes(self, points: Tensor) -> bool:
        """Whether tensors [B, N, …] are of no meshes."""
        return self.offsets is None and points.shape[0] == 0

    def reduce(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Apply a function that reduces every mesh to a tensor of one size, such as its latents.

        Args:
            function: Takes tensors [B, N, …] and `mask`, [B, N] or None; returns [B, …].
            tensors: What it takes, laid out as this layout says.

        Returns:
            Its result, [B, …].
        """
        if self.offsets is None:
            return function(*tensors, mask=self.mask)
        if self.offsets.shape[0] == 2:
            return function(*(t.unsqueeze(0) for t in tensors), mask=None)
        if self.sizes is None:
            apply_masked, _ = self._masked_meshes(*tensors)
            return apply_masked(function)
        if self.padding is not None:
            return function(*map(self.padding.to_rows, tensors), mask=self.padding.exists)
        return torch.cat(self._each_mesh(function, tensors))

    def _each_mesh(
        self, function: Callable[..., Tensor], tensors: Sequence[Tensor], of_meshes: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Results for each mesh alone."""
        assert self.sizes is not None
        cut = zip(
            *(torch.split(t, list(self.sizes)) for t in tensors), *(torch.split(t, 1) for t in of_meshes), strict=True
        )
        count = len(tensors)
        return [function(*(t.unsqueeze(0) for t in mesh[:count]), *mesh[count:], mask=None) for mesh in cut]

    def _masked_meshes(self, *tensors: Tensor) -> tuple[Callable[..., Tensor], Tensor]:
        """Every mesh as a mask over all points: B times the work, but one compiled graph for all sizes.

        Returns:
            A callable that applies a function to these, and the mesh of each point, [ΣN].

        Raises:
            UsageError: If a CUDA graph is recorded.
        """
        assert self.offsets is not None
        if not torch.compiler.is_compiling() and _capturing():
            raise UsageError(
                "this way of mixing reads where meshes end, which isn't possible within a CUDA graph: train without "
                "--recipe.step_graphs; or, in 16 bits, with the Transformer or a mixer that the kernels compute"
            )
        offsets = self.offsets.to(tensors[0].device)
        owner = mesh_of_points(offsets, tensors[0].shape[0])
        meshes = torch.arange(offsets.shape[0] - 1, device=offsets.device)
        expanded = [t.unsqueeze(0).expand(offsets.shape[0] - 1, *t.shape) for t in tensors]

        def apply(function: Callable[..., Tensor], *of_meshes: Tensor) -> Tensor:
            return function(*expanded, *of_meshes, mask=owner == meshes[:, None])

        return apply, owner


def _check_mask(mask: Tensor, points: Tensor) -> None:
    if mask.shape != points.shape[:2]:
        raise UsageError(f"the mask must be {tuple(points.shape[:2])}, but is {tuple(mask.shape)}")
    if mask.dtype != torch.bool:
        raise UsageError(f"the mask must be of bool, True where a point exists, not of {mask.dtype}")


def _checked_sizes(offsets: Tensor, num_points: int, least: int) -> tuple[int, ...]:
    """Points of each mesh, which the host knows then."""
    bounds = offsets.tolist()
    sizes = tuple(b - a for a, b in itertools.pairwise(bounds))
    if bounds[0] != 0 or bounds[-1] != num_points or min(sizes) < least:
        raise UsageError(
            f"offsets must rise from 0 to the number of points, {num_points}, with a point or more in every mesh; "
            f"they are {bounds}"
        )
    return sizes


def _assert_rising(offsets: Tensor, num_points: int, least: int) -> None:
    """The same check on the device, without waiting for it; the sizes stay unknown."""
    if not torch.compiler.is_exporting():
        rising = (offsets[0] == 0) & (offsets[-1] == num_points) & (offsets.diff() >= least).all()
        torch._assert_async(rising, "offsets must rise from 0 to the number of points")


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
