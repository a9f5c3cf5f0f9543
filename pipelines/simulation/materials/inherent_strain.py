"""Inherent strain of every cell once its layer has cooled: less along walls where a source says so.

In the plane of the layers it is the same in all directions inside a part. Along walls it depends on how much of the
neighbourhood in the plane of the layer is powder: with s from 0 (inside) to 1 (at an edge or in a thin wall) and the
directions of the walls there, J (a tensor of trace 1, n ⊗ n at a single straight wall of normal n),

    strain = e [I - s (along I + (normal - along) J)]
    s = (share of powder within `reach` - onset) / (full - onset), within 0 and 1

Along z it is zero: the top of a layer is free while it cools.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve

from lpbf_data.geometry.voxel_mesh import VoxelMesh

_FINER = 8  # pieces of an edge of a cell, by which its share of the neighbourhood is found


@dataclass(frozen=True, slots=True)
class WallRule:
    """How much less a layer shrinks near walls.

    Attributes:
        reach: Radius of the neighbourhood in the plane of the layer, mm.
        onset: Share of powder in it from which the strain becomes less.
        full: Share of powder at which it is least.
        normal: Share by which the strain normal to a wall is then less.
        along: The same along the wall.
    """

    reach: float
    onset: float
    full: float
    normal: float
    along: float


def cell_strains(mesh: VoxelMesh, in_plane: float, rule: WallRule | None) -> NDArray[np.float64]:
    """Inherent strain of each cell, [e, 6], in the order of `elements.STRAINS`.

    Args:
        mesh: The part.
        in_plane: Strain along x and y inside the part.
        rule: How it is less along walls; None if it isn't.
    """
    strains = np.zeros((mesh.num_cells, 6))
    strains[:, :2] = in_plane
    if rule is not None:
        share, walls = near_walls(mesh, rule)
        relief = share[:, None, None] * (rule.along * np.eye(2) + (rule.normal - rule.along) * walls)
        strains[:, 0] *= 1 - relief[:, 0, 0]
        strains[:, 1] *= 1 - relief[:, 1, 1]
        strains[:, 3] = -2 * in_plane * relief[:, 0, 1]
    return strains


def near_walls(mesh: VoxelMesh, rule: WallRule) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each cell s, its share of the reduction at walls, [e], and J, the directions of the walls, [e, 2, 2].

    Args:
        mesh: The part.
        rule: The rule.
    """
    kernel = _disc(rule.reach, mesh.spacing)
    margin = np.array([kernel.shape[0], kernel.shape[1]])
    solid = np.zeros((*(np.array(mesh.shape[:2]) + 2 * margin), mesh.shape[2]))
    indices = (mesh.indices[:, 0] + margin[0], mesh.indices[:, 1] + margin[1], mesh.indices[:, 2])
    solid[indices] = 1
    powder = 1 - convolve(solid, kernel[:, :, None], mode="constant")
    slopes = np.gradient(powder, *mesh.spacing[:2], axis=(0, 1))
    products = [convolve(a * b, kernel[:, :, None], mode="constant")[indices] for a, b in _pairs(slopes)]
    walls = np.stack([products[0], products[1], products[1], products[2]], axis=1).reshape(-1, 2, 2)
    sizes = np.trace(walls, axis1=1, axis2=2)
    even = sizes < 1e-12 / rule.reach**2
    walls = np.where(even[:, None, None], np.eye(2) / 2, walls / np.where(even, 1.0, sizes)[:, None, None])
    return np.clip((powder[indices] - rule.onset) / (rule.full - rule.onset), 0, 1), walls


def _pairs(slopes: list[NDArray[np.float64]]) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    x, y = slopes
    return [(x, x), (x, y), (y, y)]


def _disc(reach: float, spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """Share that each cell around one has in the disc about its centre; the sum is 1."""
    counts = [math.ceil(reach / size - 0.5) if reach > size / 2 else 0 for size in spacing[:2]]
    axes = [
        (np.arange((2 * count + 1) * _FINER) + 0.5) * size / _FINER - (count + 0.5) * size
        for count, size in zip(counts, spacing[:2], strict=True)
    ]
    inside = axes[0][:, None] ** 2 + axes[1] ** 2 <= reach**2
    pieces = inside.reshape(2 * counts[0] + 1, _FINER, 2 * counts[1] + 1, _FINER).sum(axis=(1, 3))
    kernel: NDArray[np.float64] = pieces / pieces.sum()
    return kernel
