"""Measured points on a mesh: from which nodes they are interpolated, and whether they lie on the part at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lpbf_data.errors import UsageError
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.calibrating.measured_file import Measured

_NEIGHBOURS: Final = 27
_SHOWN: Final = 3
_SPREAD: Final = 0.3  # of the part, over which measured points are spread at least
_CORNER: Final = 0.12  # of the part, in which coordinates in another unit lie
_SLACK: Final = 1e-6  # of a cell: a point at just a cell's distance is on the part
_UNITS: Final = {
    "metres": 1000.0,
    "inches": 25.4,
    "centimetres": 10.0,
    "micrometres": 1e-3,
    "thousandths of an inch": 0.0254,
}


@dataclass(frozen=True)
class Interpolation:
    """Trilinear interpolation of values at measured points from values at nodes of a mesh.

    Attributes:
        nodes: The eight corners of the cell of each point, [n, 8].
        weights: Of their values, [n, 8]; the sum over the corners is 1.
        distance: From the point to the mesh, mm, [n].
    """

    nodes: NDArray[np.int64]
    weights: NDArray[np.float64]
    distance: NDArray[np.float64]

    def component_of(self, displacement: NDArray[np.float64], components: NDArray[np.int64]) -> NDArray[np.float64]:
        """One component of a displacement at each point, mm, [n].

        Args:
            displacement: Of the nodes, mm, [N, 3].
            components: 0, 1 or 2, [n].
        """
        values: NDArray[np.float64] = (self.weights * displacement[self.nodes, components[:, None]]).sum(axis=1)
        return values


def interpolation_at(mesh: VoxelMesh, coordinates: NDArray[np.float64]) -> Interpolation:
    """Find the cell that holds each point, the nearest one where it lies outside the mesh.

    Args:
        mesh: The mesh.
        coordinates: Of the points, mm, [n, 3].
    """
    spacing = np.array(mesh.spacing)
    middles = mesh.indices + 0.5
    inside = (coordinates - mesh.origin) / spacing
    count = min(_NEIGHBOURS, mesh.num_cells)
    near = cKDTree(middles).query(inside, k=count)[1].reshape(len(coordinates), count)
    apart = np.maximum(np.abs(inside[:, None] - middles[near]) - 0.5, 0) * spacing
    lengths = np.linalg.norm(apart, axis=2)
    best = lengths.argmin(axis=1)
    cells = near[np.arange(len(coordinates)), best]
    share = np.clip(inside - mesh.indices[cells], 0, 1)
    corners = mesh.point_indices[mesh.cells[cells]] - mesh.indices[cells][:, None]
    weights = np.where(corners == 1, share[:, None], 1 - share[:, None]).prod(axis=2)
    return Interpolation(mesh.cells[cells].astype(np.int64), weights, lengths.min(axis=1))


def locate_measured(mesh: VoxelMesh, measured: Measured, coordinates: NDArray[np.float64]) -> Interpolation:
    """Find the measured points in the mesh.

    Args:
        mesh: The mesh.
        measured: What was measured.
        coordinates: Of its points, in the coordinates of the mesh, mm, [n, 3].

    Raises:
        UsageError: If one lies off the part by more than a cell, or if they would lie all over the part in another
            unit and now lie in a corner of it.
    """
    found, cell = interpolation_at(mesh, coordinates), max(mesh.spacing)
    off = np.flatnonzero(found.distance > cell * (1 + _SLACK))
    unit = _unit_that_fits(mesh, coordinates)
    if unit is not None and (len(off) or _in_a_corner(mesh, coordinates)):
        where = "aren't on the part" if len(off) else f"all lie in a small corner of the part ({_spans(coordinates)})"
        raise UsageError(
            f"the measured points {where} if they are in mm, but all over it if they are in {unit}: multiply x_mm, "
            f"y_mm and z_mm by {_UNITS[unit]:g} (or say the unit of the surface file by --units)"
        )
    if len(off) == 0:
        return found
    names = ", ".join(f"{measured.points[k]} by {found.distance[k]:.3g} mm" for k in off[:_SHOWN])
    raise UsageError(
        f"{len(off):,} of {len(coordinates):,} measured values lie off the part by more than a cell of {cell:.3g} mm "
        f"({names}{', …' if len(off) > _SHOWN else ''}); points span {_spans(coordinates)}, the part "
        f"{_spans(mesh.points)}: use the coordinates of the surface file, its foot on the plate"
    )


def _unit_that_fits(mesh: VoxelMesh, coordinates: NDArray[np.float64]) -> str | None:
    """The unit in which all points lie on the part and are spread over it."""
    cell, size = max(mesh.spacing) * (1 + _SLACK), np.ptp(mesh.points, axis=0)
    for name, factor in _UNITS.items():
        spread = factor * np.ptp(coordinates, axis=0) / size
        if spread.max() > _SPREAD and interpolation_at(mesh, factor * coordinates).distance.max() <= cell:
            return name
    return None


def _in_a_corner(mesh: VoxelMesh, coordinates: NDArray[np.float64]) -> bool:
    return float((np.ptp(coordinates, axis=0) / np.ptp(mesh.points, axis=0)).max()) < _CORNER


def _spans(points: NDArray[np.float64]) -> str:
    low, high = points.min(axis=0), points.max(axis=0)
    return ", ".join(f"{axis} {low[k]:.4g} to {high[k]:.4g}" for k, axis in enumerate("xyz")) + " mm"


def units_of_factor(factor: float) -> str:
    """Units in which values may be that are so many times too large, in words; empty where none is near.

    Args:
        factor: Given over expected values, above 0.
    """
    return " or ".join(name for name, known in _UNITS.items() if abs(math.log(factor * known)) < math.log(3))
