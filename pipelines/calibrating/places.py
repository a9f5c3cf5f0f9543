"""Measured places on a mesh: which nodes speak for them, and whether they lie on the part at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lpbf_data.errors import UsageError
from lpbf_data.geometry.voxelize import VoxelMesh
from lpbf_data.remarks import Remark, Treatment
from pipelines.calibrating.measured_file import Measured

_NEIGHBOURS: Final = 27
_SHOWN: Final = 3
_SLACK: Final = 1e-6  # of a cell: a point at just a cell's distance is on the part
_UNITS: Final = {
    "metres": 1000.0,
    "inches": 25.4,
    "centimetres": 10.0,
    "micrometres": 1e-3,
    "thousandths of an inch": 0.0254,
}


@dataclass(frozen=True)
class Sampling:
    """How values at places come from values at nodes, trilinear.

    Attributes:
        nodes: [n, 8].
        weights: [n, 8]; the sum over a place is 1.
        distance: From the place to the mesh, mm, [n].
    """

    nodes: NDArray[np.int64]
    weights: NDArray[np.float64]
    distance: NDArray[np.float64]

    def of(self, moved: NDArray[np.float64], components: NDArray[np.int64]) -> NDArray[np.float64]:
        """A component of a displacement at each place, [n].

        Args:
            moved: Displacement of the nodes, [N, 3].
            components: 0, 1 or 2, [n].
        """
        values: NDArray[np.float64] = (self.weights * moved[self.nodes, components[:, None]]).sum(axis=1)
        return values


def sample(mesh: VoxelMesh, places: NDArray[np.float64]) -> Sampling:
    """Find the cell of each place, the nearest one where it lies outside the mesh.

    Args:
        mesh: The mesh.
        places: mm, [n, 3].
    """
    spacing = np.array(mesh.spacing)
    middles = mesh.indices + 0.5
    inside = (places - mesh.origin) / spacing
    count = min(_NEIGHBOURS, mesh.num_cells)
    near = cKDTree(middles).query(inside, k=count)[1].reshape(len(places), count)
    apart = np.maximum(np.abs(inside[:, None] - middles[near]) - 0.5, 0) * spacing
    lengths = np.linalg.norm(apart, axis=2)
    best = lengths.argmin(axis=1)
    cells = near[np.arange(len(places)), best]
    share = np.clip(inside - mesh.indices[cells], 0, 1)
    corners = mesh.point_indices[mesh.cells[cells]] - mesh.indices[cells][:, None]
    weights = np.where(corners == 1, share[:, None], 1 - share[:, None]).prod(axis=2)
    return Sampling(mesh.cells[cells].astype(np.int64), weights, lengths.min(axis=1))


def check_places(mesh: VoxelMesh, measured: Measured, places: NDArray[np.float64]) -> tuple[Sampling, list[Remark]]:
    """Where the measured places lie in the mesh.

    Args:
        mesh: The mesh.
        measured: What was measured.
        places: Its places, in the mesh's coordinates, [n, 3].

    Raises:
        UsageError: If one lies off the part by more than a cell; where another unit would put them on it, it says so.
    """
    found, cell = sample(mesh, places), max(mesh.spacing)
    off = np.flatnonzero(found.distance > cell * (1 + _SLACK))
    if len(off) == 0:
        return found, _suspicion(mesh, places)
    if unit := _unit_that_fits(mesh, places):
        raise UsageError(
            f"the measured points aren't on the part in mm, but would be if they were in {unit}: multiply x_mm, y_mm "
            f"and z_mm by {_UNITS[unit]:g} (or say the unit of the surface file by --units)"
        )
    names = ", ".join(f"{measured.points[k]} by {found.distance[k]:.3g} mm" for k in off[:_SHOWN])
    raise UsageError(
        f"{len(off):,} of {len(places):,} measured values lie off the part by more than a cell of {cell:.3g} mm "
        f"({names}{', …' if len(off) > _SHOWN else ''}); points span {_spans(places)}, the part {_spans(mesh.points)}: "
        "use the coordinates of the surface file, its foot on the plate"
    )


def _unit_that_fits(mesh: VoxelMesh, places: NDArray[np.float64]) -> str | None:
    cell = max(mesh.spacing) * (1 + _SLACK)
    return next((name for name, factor in _UNITS.items() if sample(mesh, factor * places).distance.max() <= cell), None)


def _suspicion(mesh: VoxelMesh, places: NDArray[np.float64]) -> list[Remark]:
    """A remark where all points lie in a corner of the part, and all over it in another unit."""
    size, spread = np.ptp(mesh.points, axis=0), np.ptp(places, axis=0)
    unit = _unit_that_fits(mesh, places)
    if unit is None or float((spread / size).max()) > 1.5 / _UNITS[unit] or _UNITS[unit] < 1:
        return []
    sentence = f"places were read in mm; they lie in a small corner of the part, and all over it if they are in {unit}"
    return [Remark(Treatment.GUESSED, "units_of_places", sentence)]


def _spans(points: NDArray[np.float64]) -> str:
    low, high = points.min(axis=0), points.max(axis=0)
    return ", ".join(f"{axis} {low[k]:.4g} to {high[k]:.4g}" for k, axis in enumerate("xyz")) + " mm"


def unit_of_factor(factor: float) -> str | None:
    """The unit in which values were given that are so many times too large, where one is near; None where none is.

    Args:
        factor: Given over expected values, above 0.
    """
    far = {name: abs(math.log(factor * known)) for name, known in _UNITS.items()}
    name = min(far, key=lambda unit: far[unit])
    return name if far[name] < math.log(3) else None
