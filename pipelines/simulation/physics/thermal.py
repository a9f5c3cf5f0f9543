"""Temperatures of a part that grows on its build plate: transient heat conduction.

    density · specific heat · dT/dt = div(conductivity · grad T) + q        on the cells that are there
    heat lost = convection · (T - ambient)                                  on every free face

Each group of layers is heated, evenly over its volume and over the time that it takes, by the share of the laser's
energy that it absorbs. Fresh material starts at ambient temperature. Time is stepped by the implicit Euler method with
lumped capacities. The build plate below the part's bounding box conducts along z and is at one temperature across; it
loses heat at its sides and bottom. All this is what NetFabb's input asks for (cards *CONV, *DDM! and *SBXY), and the
powder around the part conducts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import cg

from lpbf_data.geometry.hexahedra import HEX8_FACES
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.materials.material import Material, Process
from pipelines.simulation.physics.dense_blocks import iterate_on_device, sparse_tensor
from pipelines.simulation.physics.elements import thermal_element
from pipelines.simulation.physics.equations import plane_starts
from pipelines.simulation.physics.iterations import SolverError
from pipelines.simulation.physics.layers import LayerGroup

PLATE_LEVELS: Final = (-25.0, -12.5, -6.25, -3.125, 0.0)
"""Heights of the build plate's planes of nodes, mm."""

_STEPS: Final = 1  # a group of layers
_TOLERANCE: Final = 1e-9
_NEIGHBOURS: Final = np.array([[0, 0, -1], [0, 0, 1], [0, -1, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]])
"""Steps in the grid through the faces of `HEX8_FACES`."""


@dataclass(frozen=True)
class LayerTemperature:
    """Temperatures at the end of a group of layers, and where the heat went.

    Attributes:
        nodes: °C at the nodes that are there, [n].
        plate: °C at `PLATE_LEVELS`.
        absorbed: Energy that came in while the group was built, J.
        lost: Energy that went out at free faces, J.
        stored: Energy by which the part and its plate became richer, J.
    """

    nodes: NDArray[np.float64]
    plate: NDArray[np.float64]
    absorbed: float
    lost: float
    stored: float


class Heat:
    """A part on its build plate, as a conductor of heat.

    Args:
        mesh: The whole part.
        material: Material of part and plate.
        process: Process parameters.
        device: Where temperatures are solved for: `cpu`, or a device of PyTorch such as `cuda`.
    """

    def __init__(self, mesh: VoxelMesh, material: Material, process: Process, device: str = "cpu") -> None:
        self._mesh, self._material, self._process = mesh, material, process
        self._solve = _solve if device == "cpu" else partial(_solve_on, device)
        self._element = thermal_element(mesh.spacing)
        self._cells_at = plane_starts(mesh.indices[:, 2])
        self._nodes_at = plane_starts(mesh.point_levels)
        extent = np.multiply(mesh.spacing, mesh.shape)
        self._plate_area, self._plate_girth = float(extent[0] * extent[1]), 2 * float(extent[0] + extent[1])
        levels = len(PLATE_LEVELS)
        # All nodes on the plate share its uppermost unknown.
        self._unknown = np.maximum(np.arange(mesh.num_points) - int(self._nodes_at[1]) + levels, levels - 1)
        self._unknown[: self._nodes_at[1]] = levels - 1
        self._temperature = np.full(levels, process.ambient)
        self._capacity = self._plate_capacity()

    def _plate_capacity(self) -> NDArray[np.float64]:
        """Volume at each level of the plate, mm³."""
        volume = np.zeros(len(PLATE_LEVELS))
        slabs = np.diff(PLATE_LEVELS) * self._plate_area / 2
        volume[:-1] += slabs
        volume[1:] += slabs
        return volume

    def build(self, group: LayerGroup) -> LayerTemperature:
        """Add a group of layers and follow the temperature to its end.

        Args:
            group: The group; groups come in their order.

        Raises:
            SolverError: If a temperature isn't found.
        """
        num_cells = int(self._cells_at[group.end_plane])
        cells = self._unknown[self._mesh.cells[:num_cells]]
        new = cells[self._cells_at[group.first_plane] :]
        self._add_material(new)
        mean = float(self._capacity @ self._temperature / self._capacity.sum())
        heat_capacity = self._material.density * self._material.specific_heat_at(mean) * self._capacity
        conduction = self._material.conductivity_at(mean) * self._conduction(cells)
        convection = self._process.convection * self._free_area(cells, num_cells)
        energy = self._process.absorption * self._process.power * group.scanning
        source = np.bincount(new.ravel(), minlength=len(self._capacity)) * (energy / group.duration / new.size)
        start, lost = self._temperature, 0.0
        step = group.duration / _STEPS
        matrix = (conduction + sp.diags(heat_capacity / step + convection)).tocsr()
        for _ in range(_STEPS):
            right = heat_capacity / step * self._temperature + convection * self._process.ambient + source
            self._temperature = self._solve(matrix, right, self._temperature)
            lost += step * float(convection @ (self._temperature - self._process.ambient))
        stored = float(heat_capacity @ (self._temperature - start))
        nodes = self._temperature[self._unknown[: self._nodes_at[group.end_plane + 1]]]
        return LayerTemperature(nodes, self._temperature[: len(PLATE_LEVELS)], energy, lost, stored)

    def _add_material(self, new: NDArray[np.int64]) -> None:
        """Mix fresh material at ambient temperature into the unknowns."""
        count = int(new.max()) + 1
        volume = np.zeros(count)
        volume[: len(self._capacity)] = self._capacity
        added = np.bincount(new.ravel(), minlength=count) * (self._element.volume / 8)
        temperature = np.full(count, self._process.ambient)
        temperature[: len(self._temperature)] = self._temperature
        self._temperature = (volume * temperature + added * self._process.ambient) / (volume + added)
        self._capacity = volume + added

    def _conduction(self, cells: NDArray[np.int64]) -> sp.csr_matrix:
        """Conduction matrix for a conductivity of 1."""
        size = len(self._capacity)
        rows, columns = np.repeat(cells, 8, axis=1).ravel(), np.tile(cells, (1, 8)).ravel()
        values = np.tile(self._element.conduction.ravel(), len(cells))
        part = sp.coo_matrix((values, (rows, columns)), shape=(size, size))
        bars = self._plate_area / np.diff(PLATE_LEVELS)
        lower = np.arange(len(bars))
        rows = np.concatenate([lower, lower + 1, lower, lower + 1])
        columns = np.concatenate([lower, lower + 1, lower + 1, lower])
        plate = sp.coo_matrix((np.concatenate([bars, bars, -bars, -bars]), (rows, columns)), shape=(size, size))
        return (part + plate).tocsr()

    def _free_area(self, cells: NDArray[np.int64], num_cells: int) -> NDArray[np.float64]:
        """Area that each unknown has in contact with the surroundings, mm²."""
        area = np.zeros(len(self._capacity))
        spacing = np.array(self._mesh.spacing)
        for face, corners, covered in zip(_NEIGHBOURS, HEX8_FACES, self._covered(num_cells), strict=True):
            size = float(np.prod(spacing[face == 0]))
            touched = cells[~covered][:, corners].ravel()
            area += np.bincount(touched, minlength=len(area)) * (size / 4)
        side = np.diff(PLATE_LEVELS) * self._plate_girth / 2
        levels = len(PLATE_LEVELS)
        area[: levels - 1] += side
        area[1:levels] += side
        area[0] += self._plate_area
        footprint = int(self._cells_at[1]) * spacing[0] * spacing[1]
        area[levels - 1] += self._plate_area - footprint
        return area

    def _covered(self, num_cells: int) -> list[NDArray[np.bool_]]:
        """For each direction, whether a cell has a neighbour (or the plate) there."""
        indices = self._mesh.indices[:num_cells] + 1
        grid = np.zeros(indices.max(axis=0) + 2, dtype=bool)
        grid[tuple(indices.T)] = True
        grid[:, :, 0] = True
        return [grid[tuple((indices + step).T)] for step in _NEIGHBOURS]


def _solve(matrix: sp.csr_matrix, right: NDArray[np.float64], guess: NDArray[np.float64]) -> NDArray[np.float64]:
    scaling = sp.diags(1 / matrix.diagonal())
    solution, status = cg(matrix, right, x0=guess, rtol=_TOLERANCE, maxiter=20 * len(right) + 100, M=scaling)
    if status != 0 or not np.isfinite(solution).all():
        raise SolverError("the temperatures did not converge")
    return np.asarray(solution)


def _solve_on(
    device: str, matrix: sp.csr_matrix, right: NDArray[np.float64], guess: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same by PyTorch; the device isn't waited for in every iteration."""
    import torch

    def there(numbers: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(numbers).to(device)

    whole = sparse_tensor(matrix, torch.device(device))
    wanted, start, scaling = there(right), there(guess), there(1 / matrix.diagonal())
    goal, turns = (_TOLERANCE * torch.linalg.vector_norm(wanted)) ** 2, 20 * len(right) + 100
    moved = iterate_on_device(whole.__matmul__, scaling.__mul__, wanted - whole @ start, turns, goal)
    solution = np.asarray((start + moved).cpu().numpy())
    if not np.linalg.norm(right - matrix @ solution) <= 10 * _TOLERANCE * np.linalg.norm(right):
        raise SolverError("the temperatures did not converge")
    return solution


def temperature_history(
    mesh: VoxelMesh, groups: Sequence[LayerGroup], material: Material, process: Process, device: str = "cpu"
) -> tuple[LayerTemperature, ...]:
    """Temperatures at the end of every group of layers.

    Args:
        mesh: The part.
        groups: Its groups of layers.
        material: Material of part and plate.
        process: Process parameters.
        device: Where temperatures are solved for: `cpu`, or a device of PyTorch such as `cuda`.

    Raises:
        SolverError: If a temperature isn't found.
    """
    heat = Heat(mesh, material, process, device)
    return tuple(heat.build(group) for group in groups)
