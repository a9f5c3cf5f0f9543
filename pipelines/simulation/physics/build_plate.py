"""The build plate as NetFabb's meshes show it: coarse boxes below the part's bounding box, halved towards the part."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lpbf_data.cached_property import cached_property
from lpbf_data.geometry.hexahedra import HEX8_CORNERS
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.physics.thermal import PLATE_LEVELS


@dataclass(frozen=True)
class PlatedMesh:
    """A part with the build plate below it; nodes of the plate come first, but for those that the part has too.

    Attributes:
        part: The part.
        plate_points: Nodes of the plate that the part doesn't have, mm, [p, 3].
        plate_levels: Index of each of them in `thermal.PLATE_LEVELS`, [p].
        plate_cells: Cells of the plate, [c, 8]; they count the plate's nodes first, then the part's.
    """

    part: VoxelMesh
    plate_points: NDArray[np.float64]
    plate_levels: NDArray[np.int64]
    plate_cells: NDArray[np.int32]

    @cached_property
    def points(self) -> NDArray[np.float32]:
        """Nodes of plate and part, mm."""
        return np.concatenate([self.plate_points, self.part.points]).astype(np.float32)

    @cached_property
    def cells(self) -> NDArray[np.int32]:
        """Cells of plate and part."""
        return np.concatenate([self.plate_cells, self.part.cells + np.int32(len(self.plate_points))])


def add_build_plate(part: VoxelMesh) -> PlatedMesh:
    """Put a build plate below a part.

    Args:
        part: The part; its bottom is the top of the plate.
    """
    size = np.multiply(part.spacing, part.shape)[:2]
    corner_sets: list[NDArray[np.float64]] = []
    for slab, (low, high) in enumerate(itertools.pairwise(PLATE_LEVELS)):
        count = 2**slab
        columns = np.array(list(itertools.product(range(count), range(count), (0,))))
        corners = (columns[:, None, :] + HEX8_CORNERS) / (count, count, 1)
        heights = part.origin[2] + low + corners[..., 2:] * (high - low)
        corner_sets.append(np.concatenate([part.origin[:2] + corners[..., :2] * size, heights], axis=2))
    return _share_nodes(part, np.concatenate(corner_sets))


def _share_nodes(part: VoxelMesh, corners: NDArray[np.float64]) -> PlatedMesh:
    """Number the corners of the plate's cells; where the part has a node, that one is used."""

    def keys(points: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.rint(points * 1e4).astype(np.int64)

    base = part.points[part.point_indices[:, 2] == 0]
    unique, first, number = np.unique(keys(corners.reshape(-1, 3)), axis=0, return_index=True, return_inverse=True)
    of_part = {tuple(key): index for index, key in enumerate(keys(base).tolist())}
    shared = np.array([of_part.get(tuple(key), -1) for key in unique.tolist()])
    own = np.flatnonzero(shared < 0)
    target = np.where(shared < 0, np.cumsum(shared < 0) - 1, shared + len(own))
    points = corners.reshape(-1, 3)[first[own]]
    levels = np.argmin(np.abs(points[:, 2:] - part.origin[2] - np.array(PLATE_LEVELS)), axis=1)
    return PlatedMesh(part, points, levels, target[number.ravel()].reshape(-1, 8).astype(np.int32))
