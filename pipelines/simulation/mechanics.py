"""Displacements and stresses of a part that grows layer by layer: the modified inherent strain method.

Small strains, linear elasticity. With u the displacement of the nodes, w that of an element's nodes since the element
was added, and e* its stress-free strain (inherent strain, once its layer has shrunk, and thermal expansion):

    strain = B w        stress = C (B w - e*)        sum over elements of B' stress = 0 at every free node

New nodes start at their nominal place with u = 0, so an element is born free of stress wherever the part below it has
moved by then. Each change of e* leaves forces out of balance; one linear solution brings them back, and every solution
starts from all forces that are out of balance, so that errors don't add up over the layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.geometry.voxelize import VoxelMesh
from pipelines.simulation.elements import ElasticElement
from pipelines.simulation.stiffness import (
    SolverError,
    Stiffness,
    make_stiffness,
    plane_starts,
    rigid_body_modes,
)

LARGEST_IMBALANCE: Final = 1e-5
"""Largest relative force out of balance that a solution may leave."""


@dataclass(frozen=True)
class MechanicalState:
    """The part at one moment; nodes and cells that are there come first in the mesh.

    Attributes:
        displacement: mm, [n, 3].
        strain: Elastic strain, mean over the elements at a node, [n, 6]; order of `elements.STRAINS`.
        stress: MPa, the same way, [n, 6].
        inherent: Inherent strain of the cells that have shrunk, mean over the elements at a node, [n, 6].
        imbalance: Force out of balance at the free nodes, relative to the largest force of stress-free strains so far.
    """

    displacement: NDArray[np.float64]
    strain: NDArray[np.float64]
    stress: NDArray[np.float64]
    inherent: NDArray[np.float64]
    imbalance: float


class Mechanics:
    """A part on its build plate.

    Args:
        mesh: The whole part.
        element: Matrices of a cell.
        inherent_strain: Strain along x, y and z of a layer that has shrunk.
        layer_ends: For each group of layers, the plane of cells above it.
    """

    def __init__(
        self,
        mesh: VoxelMesh,
        element: ElasticElement,
        inherent_strain: tuple[float, float, float],
        layer_ends: tuple[int, ...],
    ) -> None:
        self._mesh, self._element = mesh, element
        self._inherent = np.array([*inherent_strain, 0.0, 0.0, 0.0])
        self._layer_ends = layer_ends
        self._node_planes = plane_starts(mesh.point_levels)
        self._cell_planes = plane_starts(mesh.indices[:, 2])
        self._base = int(self._node_planes[1])
        self._held = np.ones(self._base, dtype=bool)
        self._stiffness: Stiffness = make_stiffness(mesh, element.stiffness, self._held, len(layer_ends))
        self._displacement = np.zeros((mesh.num_points, 3))
        self._birth = np.zeros((mesh.num_cells, 8, 3))
        self._free_strain = np.zeros((mesh.num_cells, 6))
        self._shrunk = np.zeros(mesh.num_cells, dtype=bool)
        self._lift = self._largest_pull = 0.0
        self._layers = self.num_cells = 0
        self.num_points = self._base

    def add_layer(self, thermal_strain: NDArray[np.float64], lift: float) -> MechanicalState:
        """Add the next group of layers, warm and not yet shrunk.

        Args:
            thermal_strain: Thermal expansion of each cell that is there afterwards, [e].
            lift: Height by which the top of the build plate has risen, mm.

        Raises:
            SolverError: If equilibrium isn't found.
        """
        planes = self._layer_ends[self._layers]
        before, self.num_cells = self.num_cells, int(self._cell_planes[planes])
        self.num_points = int(self._node_planes[planes + 1])
        self._layers += 1
        new = slice(before, self.num_cells)
        self._birth[new] = self._displacement[self._mesh.cells[new]]
        self._stiffness.extend(planes)
        return self.heat(thermal_strain, lift)

    def shrink_layer(self) -> MechanicalState:
        """Impose the inherent strain on the cells that don't have it yet.

        Raises:
            SolverError: If equilibrium isn't found.
        """
        new = ~self._shrunk[: self.num_cells]
        self._free_strain[: self.num_cells][new] += self._inherent
        self._shrunk[: self.num_cells] = True
        return self._balance()

    def heat(self, thermal_strain: NDArray[np.float64] | float, lift: float) -> MechanicalState:
        """Change the temperature.

        Args:
            thermal_strain: Thermal expansion of each cell that is there, [e].
            lift: Height by which the top of the build plate has risen, mm.

        Raises:
            SolverError: If equilibrium isn't found.
        """
        cells = slice(0, self.num_cells)
        inherent = np.where(self._shrunk[cells, None], self._inherent, 0.0)
        self._free_strain[cells] = inherent
        self._free_strain[cells, :3] += np.reshape(thermal_strain, (-1, 1))
        self._displacement[: self.num_points, 2] += lift - self._lift
        self._lift = lift
        return self._balance()

    def release(self, held: NDArray[np.bool_] | None = None) -> MechanicalState:
        """Cut the part from the build plate.

        Args:
            held: Nodes of the lowest plane that stay on the plate; none by default. If there are none, rigid-body
                motion is removed: the sum of squared displacements over all nodes becomes least.

        Raises:
            SolverError: If equilibrium isn't found.
        """
        self._held = np.zeros(self._base, dtype=bool) if held is None else held
        self._stiffness = make_stiffness(self._mesh, self._element.stiffness, self._held, 1)
        self._stiffness.extend(self._layer_ends[self._layers - 1])
        state = self._balance()
        if not self._held.any():
            moved = self._displacement[: self.num_points]
            moved -= rigid_body_motion(self._mesh.points[: self.num_points], moved)
            state = replace(state, displacement=moved.copy())
        return state

    def _stretch(self) -> NDArray[np.float64]:
        """Displacement of each cell's corners since the cell was added, [e, 24]."""
        cells = self._mesh.cells[: self.num_cells]
        return (self._displacement[cells] - self._birth[: self.num_cells]).reshape(-1, 24)

    def _forces(self) -> NDArray[np.float64]:
        """Forces out of balance at the nodes, [n, 3]."""
        pull = self._free_strain[: self.num_cells] @ self._element.load.T
        forces = pull - self._stretch() @ self._element.stiffness
        flat = self._mesh.cells[: self.num_cells].ravel()
        summed = [np.bincount(flat, weights=forces[:, axis::3].ravel(), minlength=self.num_points) for axis in range(3)]
        self._largest_pull = max(self._largest_pull, float(np.linalg.norm(pull)))
        return np.stack(summed, axis=1)

    def _imbalance(self, forces: NDArray[np.float64]) -> float:
        free = np.concatenate([forces[: self._base][~self._held], forces[self._base :]])
        return float(np.linalg.norm(free)) / self._largest_pull if self._largest_pull else 0.0

    def _balance(self) -> MechanicalState:
        forces = self._forces()
        if self._imbalance(forces) > 0:
            self._displacement[: self.num_points] += self._stiffness.solve(forces)
            forces = self._forces()
        imbalance = self._imbalance(forces)
        if not imbalance < LARGEST_IMBALANCE:
            raise SolverError(f"forces stay out of balance by a share of {imbalance:.1e}")
        strain = self._nodal_strain()
        stress = strain @ self._element.elasticity
        moved = self._displacement[: self.num_points].copy()
        return MechanicalState(moved, strain, stress, self._nodal_inherent_strain(), imbalance)

    def _nodal_strain(self) -> NDArray[np.float64]:
        """Elastic strain at the corners of the cells, averaged over the cells at each node, [n, 6]."""
        cells = self._mesh.cells[: self.num_cells].ravel()
        corners = self._stretch() @ self._element.strain.reshape(48, 24).T
        elastic = corners.reshape(-1, 8, 6) - self._free_strain[: self.num_cells, None, :]
        count = np.bincount(cells, minlength=self.num_points)
        flat = elastic.reshape(-1, 6)
        sums = [np.bincount(cells, weights=flat[:, k], minlength=self.num_points) for k in range(6)]
        return np.stack(sums, axis=1) / count[:, None]

    def _nodal_inherent_strain(self) -> NDArray[np.float64]:
        """Inherent strain of the cells, averaged over the cells at each node, [n, 6]."""
        cells = self._mesh.cells[: self.num_cells]
        count = np.bincount(cells.ravel(), minlength=self.num_points)
        shrunk = np.bincount(cells[self._shrunk[: self.num_cells]].ravel(), minlength=self.num_points)
        return np.outer(shrunk / count, self._inherent)


def rigid_body_motion(points: NDArray[np.float64], displacement: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rigid-body motion (small rotation) that is nearest to a displacement, in the sense of least squares, [n, 3].

    Args:
        points: Coordinates, [n, 3].
        displacement: [n, 3].
    """
    modes = rigid_body_modes(points)
    shares = np.linalg.lstsq(modes, displacement.ravel(), rcond=None)[0]
    return (modes @ shares).reshape(-1, 3)
