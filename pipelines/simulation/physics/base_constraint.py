"""Boundary conditions at the base of a part: how the nodes of its lowest plane may move, and what resists.

The displacements of those nodes are linear in a smaller number of unknowns: none where they are clamped, those that the
cut sets free, or the nodes on the top of an elastic block of build plate, between which the part's nodes lie.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from lpbf_data.geometry.voxel_mesh import VoxelMesh, mesh_of_mask
from pipelines.simulation.physics.elements import elastic_element
from pipelines.simulation.physics.equations import BaseConstraint
from pipelines.simulation.physics.plane_cholesky import PlaneCholesky
from pipelines.simulation.physics.thermal import PLATE_LEVELS

_COLUMNS: Final = 64  # of the block's cells, about
_MAX_ALONG: Final = 32
_MAX_PLANES: Final = 10
_HOLD: Final = 1e6  # times the stiffness of a cell: a spring that holds a node where it is


def base_size(mesh: VoxelMesh) -> int:
    """Nodes of the lowest plane.

    Args:
        mesh: The part.
    """
    return int(np.searchsorted(mesh.point_levels, 1))


def clamped(mesh: VoxelMesh) -> BaseConstraint:
    """A base that is clamped.

    Args:
        mesh: The part.
    """
    return BaseConstraint(np.zeros((0, 3)), sp.csr_matrix((base_size(mesh), 0)))


def cut_free(mesh: VoxelMesh, held: NDArray[np.bool_] | None = None) -> BaseConstraint:
    """A base that is free but for some nodes.

    Args:
        mesh: The part.
        held: Nodes of the lowest plane that don't move; none by default.
    """
    base = base_size(mesh)
    free = np.arange(base) if held is None else np.flatnonzero(~held)
    ones = (np.ones(len(free)), (free, np.arange(len(free))))
    return BaseConstraint(mesh.points[free], sp.csr_matrix(ones, shape=(base, len(free))))


def kept_by_cut(mesh: VoxelMesh, height: float, stiffness: float) -> NDArray[np.float64]:
    """Share of its stiffness that each cell keeps when the part is cut off, [e]; those across the limit by proportion.

    Args:
        mesh: The part.
        height: Height up to which the metal is softened, mm.
        stiffness: Share of its stiffness that this metal keeps.
    """
    below = np.clip(height / mesh.spacing[2] - mesh.indices[:, 2], 0.0, 1.0)
    kept: NDArray[np.float64] = 1.0 - (1.0 - stiffness) * below
    return kept


class ElasticPlate:
    """The block of build plate below a part's bounding box.

    Its lower side is held. At its sides the plate around it leaves it no way outwards: below the top their nodes don't
    move along their normals. NetFabb's plates are held so.

    Args:
        mesh: The part.
        young: Young's modulus of the plate, MPa.
        poisson: Its Poisson's ratio.

    Attributes:
        constraint: Of the part's base to the block.
        block: Its mesh.
    """

    def __init__(self, mesh: VoxelMesh, young: float, poisson: float) -> None:
        self.block = _block_below(mesh)
        self._element = elastic_element(self.block.spacing, young, poisson)
        hold = _HOLD * float(np.diag(self._element.stiffness).mean())
        springs = np.where(_on_sides(self.block), hold, 0.0)
        self._factor = PlaneCholesky(self.block, self._element.stiffness, clamped(self.block), springs)
        self._factor.extend(self.block.shape[2])
        top = self.block.points[self._top]
        weights = _interpolation(self.block, mesh.points[: base_size(mesh)])[:, self._top]
        self.constraint = BaseConstraint(top, weights, self._factor.top_stiffness)

    @property
    def _top(self) -> slice:
        count = (self.block.shape[0] + 1) * (self.block.shape[1] + 1)
        return slice(self.block.num_points - count, self.block.num_points)

    def free_shape(self, expansion: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacement of the block's nodes when nothing stands on it, [p, 3].

        Args:
            expansion: Thermal expansion at `thermal.PLATE_LEVELS`.
        """
        middles = self.block.points[self.block.cells].mean(axis=1)[:, 2] - self._height
        strain = np.interp(middles, PLATE_LEVELS, expansion)
        load = np.outer(strain, self._element.load[:, :3].sum(axis=1))
        flat = self.block.cells.ravel()
        forces = [np.bincount(flat, weights=load[:, axis::3].ravel()) for axis in range(3)]
        return self._moved(np.stack(forces, axis=1))

    def shape_under(self, top: NDArray[np.float64], free: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacement of all nodes of the block from that of its top, [p, 3].

        Args:
            top: Displacement of the nodes of the top, [q, 3].
            free: What `free_shape` gives for its temperature.
        """
        forces = np.zeros_like(free)
        difference = top - free[self._top]
        forces[self._top] = (self._factor.top_stiffness @ difference.ravel()).reshape(-1, 3)
        return free + self._moved(forces)

    def at(self, points: NDArray[np.float64], moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacement at other points of the block, [n, 3], trilinear.

        Args:
            points: Coordinates, mm, [n, 3].
            moved: Displacement of the block's nodes, [p, 3].
        """
        return np.asarray(_interpolation(self.block, points) @ moved)

    @property
    def _height(self) -> float:
        return self.block.origin[2] - PLATE_LEVELS[0]

    def _moved(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        base = base_size(self.block)
        return np.concatenate([np.zeros((base, 3)), self._factor.approximate(forces[base:])])


def _block_below(mesh: VoxelMesh) -> VoxelMesh:
    extent = np.multiply(mesh.spacing, mesh.shape)[:2]
    size = math.sqrt(float(extent.prod()) / _COLUMNS)
    across = [min(_MAX_ALONG, max(1, round(length / size))) for length in extent]
    depth = PLATE_LEVELS[-1] - PLATE_LEVELS[0]
    planes = min(_MAX_PLANES, max(2, round(depth / size)))
    spacing = (float(extent[0]) / across[0], float(extent[1]) / across[1], depth / planes)
    origin = (mesh.origin[0], mesh.origin[1], mesh.origin[2] + PLATE_LEVELS[0])
    return mesh_of_mask(np.ones((*across, planes), dtype=bool), origin, spacing)


def _on_sides(block: VoxelMesh) -> NDArray[np.bool_]:
    """Which nodes of a block lie on the two sides across x, and across y, below its top, [p, 3]."""
    indices, counts = block.point_indices, np.array(block.shape)
    sides: NDArray[np.bool_] = (indices == 0) | (indices == counts)
    sides[:, 2] = False
    sides[indices[:, 2] == counts[2]] = False
    return sides


def _interpolation(block: VoxelMesh, points: NDArray[np.float64]) -> sp.csr_matrix:
    """Trilinear weights of a block's nodes at points in it."""
    counts = np.array(block.shape)
    positions = np.clip((points - block.origin) / block.spacing, 0, counts)
    low = np.minimum(np.floor(positions + 1e-9).astype(np.int64), counts - 1)
    share = positions - low
    rows, columns, weights = [], [], []
    wide, deep = counts[0] + 1, (counts[0] + 1) * (counts[1] + 1)
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(np.array(corner) == 1, share, 1 - share).prod(axis=1)
        i, j, k = (low + corner).T
        used = weight > 1e-12
        rows.append(np.flatnonzero(used))
        columns.append((i + wide * j + deep * k)[used])
        weights.append(weight[used])
    content = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return sp.csr_matrix(content, shape=(len(points), block.num_points))
