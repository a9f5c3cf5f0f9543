"""Displacements and stresses of a part that grows layer by layer: the modified inherent strain method.

Small strains, linear elasticity. With u the displacement of the nodes, w that of an element's nodes since the element
was added, and e* its stress-free strain (inherent strain, once its layer has shrunk, and thermal expansion):

    strain = B w        stress = C (B w - e*)        sum over elements of B' stress = 0 at every free node

The top of a new group of layers is at its nominal height, its lower side where the part below has moved by then;
between, the nodes lie on a straight line. An element is free of stress in the shape in which it is added. Each change
of e* leaves forces out of balance; one linear solution balances them, and every solution starts from all forces that
are out of balance, so that errors don't add up over the layers.

NetFabb lets a group shrink at once, and the answer then moves with its thickness. Here its planes of cells shrink one
after the other, each on those below, before those above have any stiffness. What lies at a height of t in a plane has
been there for a share of 1 - t of the plane's motion, in the mean one half (the midpoint rule): while it shrinks, a
plane counts with half of its stiffness, and afterwards its strain is that of half of its motion. So the answer doesn't
depend on how planes are grouped, and it moves with the square of their thickness.

The cut may soften metal near the build plate: its cells keep a share of their stiffness and of their
stress. Written as above, w and e* shrink by that share, and the rest of the strain stays as a permanent one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.physics.base_constraint import ElasticPlate, clamped, cut_free
from pipelines.simulation.physics.dense_blocks import HOST, Blocks
from pipelines.simulation.physics.elements import ElasticElement
from pipelines.simulation.physics.equations import BaseConstraint, Stiffness, plane_starts
from pipelines.simulation.physics.floating_pieces import free_motions, rigid_body_modes
from pipelines.simulation.physics.iterations import SolverError, conjugate_gradients
from pipelines.simulation.physics.moved_elements import MovedElements
from pipelines.simulation.physics.stiffness import make_stiffness

MAX_IMBALANCE: Final = 1e-4
"""Largest relative force out of balance that a solution may leave."""

_GOAL: Final = 2e-5  # the same for what a solution aims at; iterations go on where displacements would be far off yet
_MIN_MOVE: Final = 1e-5  # mm; what is left of a plane's motion is balanced with the whole group


@dataclass(frozen=True)
class MechanicalState:
    """The part at one moment; nodes and cells that are there come first in the mesh.

    Attributes:
        displacement: mm, [n, 3].
        strain: Elastic strain, mean over the elements at a node, [n, 6]; order of `elements.STRAINS`.
        stress: MPa, the same way, [n, 6].
        inherent: Inherent strain of the cells that have shrunk, and what a cut made permanent, mean over the elements
            at a node, [n, 6].
        rise: Upward displacement when what shrank last has shrunk at once, for the recoater's rule, mm, [n].
        plate: Displacement of the nodes of the plate's block, mm, [p, 3]; none without one.
        imbalance: Force out of balance at the free nodes, relative to the largest force of stress-free strains so far.
    """

    displacement: NDArray[np.float64]
    strain: NDArray[np.float64]
    stress: NDArray[np.float64]
    inherent: NDArray[np.float64]
    rise: NDArray[np.float64]
    plate: NDArray[np.float64]
    imbalance: float


class Mechanics:
    """A part on its build plate.

    Args:
        mesh: The whole part.
        element: Matrices of a cell, or of each.
        inherent: Strain that each cell takes when its layer shrinks, [e, 6].
        layer_ends: For each group of layers, the plane of cells above it.
        plate: The block of plate below it; clamped without one.
        at_once: Whether a group shrinks at once, as NetFabb's do, instead of layer by layer.
        blocks: Where dense blocks of the stiffness lie and are worked on.
    """

    def __init__(
        self,
        mesh: VoxelMesh,
        element: ElasticElement | MovedElements,
        inherent: NDArray[np.float64],
        layer_ends: tuple[int, ...],
        plate: ElasticPlate | None = None,
        *,
        at_once: bool = False,
        blocks: Blocks = HOST,
    ) -> None:
        self._blocks = blocks
        self._mesh, self._element, self._inherent, self._plate = mesh, element, inherent, plate
        self._layer_ends, self._at_once = layer_ends, at_once
        self._planes_of_a_group = int(np.diff((0, *layer_ends)).max())
        self._node_planes = plane_starts(mesh.point_levels)
        self._cell_planes = plane_starts(mesh.indices[:, 2])
        self._base = int(self._node_planes[1])
        self._constraint: BaseConstraint = clamped(mesh) if plate is None else plate.constraint
        self._base_moved = np.zeros((self._constraint.size, 3))
        self._plate_free = np.zeros((0 if plate is None else plate.block.num_points, 3))
        self._stiffness: Stiffness = make_stiffness(
            mesh, element.stiffness, self._constraint, len(layer_ends), halves=not at_once, blocks=blocks
        )
        self._displacement = np.zeros((mesh.num_points, 3))
        self._rise = np.zeros(mesh.num_points)
        self._birth = np.zeros((mesh.num_cells, 8, 3))
        self._free_strain = np.zeros((mesh.num_cells, 6))
        self._thermal = np.zeros(mesh.num_cells)
        self._shrunk = np.zeros(mesh.num_cells, dtype=bool)
        self._permanent = np.zeros((0, 8, 6))  # strain at the corners of the first cells
        self._largest_load = 0.0
        self._layers = self.num_cells = 0
        self.num_points = self._base

    def add_layer(
        self, thermal_strain: NDArray[np.float64], plate_expansion: NDArray[np.float64] | None = None
    ) -> MechanicalState:
        """Add the next group of layers, warm and not yet shrunk.

        Args:
            thermal_strain: Thermal expansion of each cell that is there afterwards, [e].
            plate_expansion: Thermal expansion of the plate at `thermal.PLATE_LEVELS`; none by default.

        Raises:
            SolverError: If equilibrium isn't found.
        """
        planes = self._layer_ends[self._layers]
        before, self.num_cells = self.num_cells, int(self._cell_planes[planes])
        first = self._layer_ends[self._layers - 1] if self._layers else 0
        self.num_points = int(self._node_planes[planes + 1])
        self._layers += 1
        self._rise = np.zeros(self.num_points)
        new = slice(before, self.num_cells)
        self._birth[new] = self._straight_line(first, first + (self._planes_of_a_group if self._at_once else 1))[
            self._mesh.cells[new]
        ]
        self._stiffness.extend(planes)
        return self.heat(thermal_strain, plate_expansion)

    def _straight_line(self, first: int, end: int) -> NDArray[np.float64]:
        """Initial displacement of a new group's nodes: lower side on the part below, top at nominal height, [n, 3].

        The uppermost group may end lower than it would have to; its nodes lie on the same line.
        """
        moved = self._displacement[: self.num_points].copy()
        indices = self._mesh.point_indices[: self.num_points]
        old = np.flatnonzero((self._mesh.point_levels[: self.num_points] <= first) & (indices[:, 2] == first))
        lower = np.zeros((*(np.array(self._mesh.shape[:2]) + 1), 3))
        lower[indices[old, 0], indices[old, 1]] = moved[old]
        new = np.flatnonzero(self._mesh.point_levels[: self.num_points] > first)
        share = np.maximum(end - indices[new, 2], 0) / (end - first)
        moved[new] = share[:, None] * lower[indices[new, 0], indices[new, 1]]
        self._displacement[new] = moved[new]
        return moved

    def shrink_layer(self) -> MechanicalState:
        """Impose the inherent strain on the cells that don't have it yet.

        Raises:
            SolverError: If equilibrium isn't found.
        """
        if self._at_once:
            self._impose(np.flatnonzero(~self._shrunk[: self.num_cells]))
        else:
            first = self._layer_ends[self._layers - 2] if self._layers > 1 else 0
            for plane in range(first, self._layer_ends[self._layers - 1]):
                self._shrink_plane(plane)
        return self._balance()

    def _impose(self, cells: NDArray[np.intp]) -> None:
        self._shrunk[cells] = True
        self._set_free_strain(cells)

    def _set_free_strain(self, cells: NDArray[np.intp] | slice) -> None:
        self._free_strain[cells] = np.where(self._shrunk[cells, None], self._inherent[cells], 0.0)
        self._free_strain[cells, :3] += self._thermal[cells, None]

    def _shrink_plane(self, plane: int) -> None:
        """Let a plane of cells shrink with half of its stiffness, those above it having none (see above)."""
        mine = slice(int(self._cell_planes[plane]), int(self._cell_planes[plane + 1]))
        self._impose(np.arange(mine.start, mine.stop))
        share = np.zeros((self.num_cells, 1))
        share[: mine.start], share[mine] = 1.0, 0.5
        there = int(self._node_planes[plane + 2])  # nodes on cells with any stiffness
        forces = self._residual()
        forces[there - self._base + self._constraint.size :] = 0.0
        free = free_motions(self._mesh, plane + 1, self._element.stiffness)
        moved = self._solve_softened(forces, share, free, plane)
        motion = self._constraint.expand(moved)
        stretch = self._stretch() + share * motion[self._mesh.cells[: self.num_cells]].reshape(-1, 24)
        # The top of the plane and what is above it are laid at their heights after this motion.
        old = self._mesh.point_indices[: self.num_points, 2] <= plane
        self._base_moved += moved[: self._constraint.size]
        self._displacement[: self.num_points][old] += motion[old]
        self._rise = np.where(old, 0.0, motion[:, 2])
        born = self._displacement[self._mesh.cells[: self.num_cells]] - stretch.reshape(-1, 8, 3)
        self._birth[: self.num_cells] = born

    def heat(
        self, thermal_strain: NDArray[np.float64] | float, plate_expansion: NDArray[np.float64] | None = None
    ) -> MechanicalState:
        """Change the temperature.

        Args:
            thermal_strain: Thermal expansion of each cell that is there, [e].
            plate_expansion: Thermal expansion of the plate at `thermal.PLATE_LEVELS`; none by default.

        Raises:
            SolverError: If equilibrium isn't found.
        """
        self._thermal[: self.num_cells] = thermal_strain
        warm = np.flatnonzero(self._shrunk[: self.num_cells]) if not self._at_once else slice(0, self.num_cells)
        self._set_free_strain(warm)
        if self._plate is not None:
            if plate_expansion is None or not plate_expansion.any():
                self._plate_free = np.zeros_like(self._plate_free)
            else:
                self._plate_free = self._plate.free_shape(plate_expansion)
        return self._balance()

    def release(
        self, held: NDArray[np.bool_] | None = None, kept: NDArray[np.float64] | None = None
    ) -> MechanicalState:
        """Cut the part from the build plate.

        Args:
            held: Nodes of the lowest plane that stay on the plate; none by default. If there are none, rigid-body
                motion is removed: the sum of squared displacements over all nodes becomes least.
            kept: Share of its stiffness that each cell keeps where it is cut, more than 0, [e]; all of it by default.

        Raises:
            SolverError: If equilibrium isn't found.
        """
        self._constraint, self._plate = cut_free(self._mesh, held), None
        self._base_moved = np.zeros((self._constraint.size, 3))
        self._stiffness = make_stiffness(self._mesh, self._element.stiffness, self._constraint, 1, blocks=self._blocks)
        self._stiffness.extend(self._layer_ends[self._layers - 1])
        if kept is not None and kept.min() < 1.0:
            self._soften(np.where(self._on_held(held), 1.0, kept[: self.num_cells])[:, None])
        state = self._balance()
        if held is None or not held.any():
            moved = self._displacement[: self.num_points]
            moved -= rigid_body_motion(self._mesh.points[: self.num_points], moved)
            state = replace(state, displacement=moved.copy())
        return state

    def _on_held(self, held: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Which cells stand, however high, on nodes that stay on the plate, [e]."""
        columns = np.zeros(self._mesh.shape[:2], dtype=bool)
        if held is not None:
            lowest = slice(0, int(self._cell_planes[1]))
            on_them = held[self._mesh.cells[lowest, :4]].all(axis=1)
            columns[tuple(self._mesh.indices[lowest, :2][on_them].T)] = True
        indices = self._mesh.indices[: self.num_cells]
        return np.asarray(columns[indices[:, 0], indices[:, 1]])

    def _soften(self, share: NDArray[np.float64]) -> None:
        """Equilibrium of a freed part whose cells keep a share of their stiffness and of their stress, [e, 1]."""
        cells = self._mesh.cells[: self.num_cells]
        moved = self._displacement[cells]
        self._birth[: self.num_cells] = moved - share[:, :, None] * (moved - self._birth[: self.num_cells])
        self._free_strain[: self.num_cells] *= share
        self._inherent = np.concatenate([share * self._inherent[: self.num_cells], self._inherent[self.num_cells :]])
        motion = self._solve_softened(self._residual(), share)
        self._move(motion)
        self._birth[: self.num_cells] += (1 - share[:, :, None]) * self._constraint.expand(motion)[cells]
        self._permanent = (1 - share[:, :, None]) * self._element.corner_strains(self._stretch() / share)

    def _stretch(self) -> NDArray[np.float64]:
        """Displacement of each cell's corners since the cell was added, [e, 24]."""
        cells = self._mesh.cells[: self.num_cells]
        return (self._displacement[cells] - self._birth[: self.num_cells]).reshape(-1, 24)

    def _at_nodes(self, forces: NDArray[np.float64], first: int = 0) -> NDArray[np.float64]:
        """Forces of as many cells [e, 24], from the first one or a later one on, summed at the nodes, [n, 3]."""
        flat = self._mesh.cells[first : first + len(forces)].ravel()
        summed = [np.bincount(flat, weights=forces[:, axis::3].ravel(), minlength=self.num_points) for axis in range(3)]
        return np.stack(summed, axis=1)

    def _residual(self) -> NDArray[np.float64]:
        """Forces out of balance at the base's unknowns and the nodes above, [q + above, 3]."""
        load = self._element.initial_strain_forces(self._free_strain[: self.num_cells])
        residual = self._constraint.reduce(self._at_nodes(load - self._element.forces(self._stretch())))
        largest = float(np.linalg.norm(load))
        if self._constraint.stiffness is not None:
            free = self._plate_free[-self._constraint.size :]
            held = self._constraint.stiffness @ np.stack([self._base_moved - free, free]).reshape(2, -1).T
            residual[: self._constraint.size] -= held[:, 0].reshape(-1, 3)
            largest = math.hypot(largest, float(np.linalg.norm(held[:, 1])))
        self._largest_load = max(self._largest_load, largest)
        return residual

    def _without(self, free: sp.csr_matrix | None, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Forces or displacements [q + above, 3] without those along motions of nodes, orthonormal, [3 n, k]."""
        if free is None:
            return values
        unresisted, whole = free[3 * self._base : 3 * self.num_points], values.copy()
        part = whole[self._constraint.size :]
        part -= (unresisted @ (unresisted.T @ part.ravel())).reshape(-1, 3)
        return whole

    def _solve_softened(
        self,
        forces: NDArray[np.float64],
        share: NDArray[np.float64],
        free: sp.csr_matrix | None = None,
        plane: int | None = None,
    ) -> NDArray[np.float64]:
        """Displacement [q + above, 3] when cells have only a share of their stiffness, [e, 1].

        Conjugate gradients. The preconditioner is the whole stiffness or, if it is a `plane` of cells that has half of
        it, what the solver makes of that. Where there is no stiffness nothing pulls, and motions of nodes that nothing
        resists, `free`, [3 n, k], aren't made.
        """
        changed = np.flatnonzero(share != 1)
        first, end = (int(changed[0]), int(changed[-1]) + 1) if len(changed) else (0, 0)
        cells, lost = self._mesh.cells[first:end], 1 - share[first:end]

        def apply(moved: NDArray[np.float64]) -> NDArray[np.float64]:
            corners = self._constraint.expand(moved)[cells].reshape(-1, 24)
            missing = self._at_nodes(lost * self._element.forces(corners, first), first)
            return self._stiffness.push(moved) - self._constraint.reduce(missing)

        def approximate(rest: NDArray[np.float64]) -> NDArray[np.float64]:
            solver = self._stiffness
            guess = solver.approximate(rest) if plane is None else solver.approximate_halved(rest, plane)
            return self._without(free, guess)

        known = self._stiffness.known
        return conjugate_gradients(apply, approximate, self._without(free, forces), 0.0, _MIN_MOVE, known)

    def _move(self, moved: NDArray[np.float64]) -> None:
        self._base_moved += moved[: self._constraint.size]
        self._displacement[: self.num_points] += self._constraint.expand(moved)

    def _imbalance(self, residual: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(residual)) / self._largest_load if self._largest_load else 0.0

    def _balance(self) -> MechanicalState:
        residual = self._residual()
        if self._imbalance(residual) > _GOAL:
            self._move(self._stiffness.solve(residual, _GOAL * self._largest_load))
            residual = self._residual()
        imbalance = self._imbalance(residual)
        if not imbalance < MAX_IMBALANCE:
            raise SolverError(f"forces stay out of balance by a share of {imbalance:.1e}")
        strain = self._nodal_strain()
        stress = strain @ self._element.elasticity
        moved = self._displacement[: self.num_points].copy()
        plate = self._plate_free
        if self._plate is not None:
            plate = self._plate.shape_under(self._base_moved, self._plate_free)
        rise = moved[:, 2] + self._rise
        return MechanicalState(moved, strain, stress, self._nodal_inherent_strain(), rise, plate, imbalance)

    def _nodal_strain(self) -> NDArray[np.float64]:
        """Elastic strain at the corners of the cells, averaged over the cells at each node, [n, 6]."""
        corners = self._element.corner_strains(self._stretch())
        return self._nodal_mean(corners - self._free_strain[: self.num_cells, None, :])

    def _nodal_inherent_strain(self) -> NDArray[np.float64]:
        """Inherent and permanent strain of the cells, averaged over the cells at each node, [n, 6]."""
        there = np.where(self._shrunk[: self.num_cells, None], self._inherent[: self.num_cells], 0.0)
        corners = np.repeat(there[:, None, :], 8, axis=1)
        corners[: len(self._permanent)] += self._permanent
        return self._nodal_mean(corners)

    def _nodal_mean(self, corners: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over the cells at each node, [n, 6], of values at the cells' corners, [e, 8, 6]."""
        cells = self._mesh.cells[: self.num_cells].ravel()
        count = np.bincount(cells, minlength=self.num_points)
        flat = corners.reshape(-1, 6)
        sums = [np.bincount(cells, weights=flat[:, k], minlength=self.num_points) for k in range(6)]
        return np.stack(sums, axis=1) / count[:, None]


def rigid_body_motion(points: NDArray[np.float64], displacement: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rigid-body motion (small rotation) that is nearest to a displacement, in the sense of least squares, [n, 3].

    Args:
        points: Coordinates, [n, 3].
        displacement: [n, 3].
    """
    modes = rigid_body_modes(points)
    shares = np.linalg.lstsq(modes, displacement.ravel(), rcond=None)[0]
    return (modes @ shares).reshape(-1, 3)
