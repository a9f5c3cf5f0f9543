"""The stiffness of a part that grows: solvers for the cells that are there, from the bottom up to some height.

Two ways, chosen by what they would cost. `PlaneCholesky` eliminates the nodes of one level after the other; a
new layer extends the factor that is there already, so a whole build costs one factorisation. `Multigrid` is for levels
too large for dense blocks: conjugate gradients with smoothed aggregation, whose near-nullspace are rigid-body modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import pyamg
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from lpbf_data.cached_property import cached_property
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.physics.floating_pieces import (
    RigidMotions,
    floating_pieces,
    rigid_body_modes,
    rigid_motions,
)
from pipelines.simulation.physics.iterations import Preconditioning, SolverError, conjugate_gradients

_SPRING: Final = 1e-9
# Share of a cell's stiffness that ties every node to where it is, as loose powder does. It matters only where a piece
# hangs on nothing, or by an edge: loads of inherent strains balance on each piece, so nothing pulls at the springs.
_DENSE_RATE: Final = 3e10  # operations per second of the dense kernels on one core
_MULTIGRID_RATE: Final = 4e4  # degrees of freedom per second, for one hierarchy and two solutions
_HIERARCHY: Final[dict[str, Any]] = {
    "max_coarse": 150,
    "coarse_solver": "splu",
    "smooth": ("jacobi", {"omega": 4 / 3, "weighting": "local"}),  # needs no spectral radius, nor random vectors for it
    "improve_candidates": None,  # the rigid-body modes are exact; smoothing them triples the time of the set-up
}
_NEARLY_CUBES: Final[dict[str, Any]] = {
    "strength": ("symmetric", {"theta": 0.0}),
    "presmoother": ("gauss_seidel", {"sweep": "forward"}),
    "postsmoother": ("gauss_seidel", {"sweep": "backward"}),
}
_STRETCHED: Final[dict[str, Any]] = {
    "strength": ("symmetric", {"theta": 0.08}),
    "presmoother": ("gauss_seidel", {"sweep": "symmetric"}),
    "postsmoother": ("gauss_seidel", {"sweep": "symmetric"}),
}
_STRETCHED_FROM: Final = 2.5  # aspect ratio from which coarsening must look at directions
_PRECONDITIONER: Final = np.float32  # half the memory to go through; conjugate gradients around it are in float64
_LOOSE_SPRING: Final = 1e-4
# Share of a cell's stiffness that holds floating pieces in the preconditioner, whose 24 bits would lose a smaller one;
# their rigid motions are solved for beside it.
_MAX_BLOCKS: Final = 4e9  # bytes


@dataclass(frozen=True)
class BaseConstraint:
    """How the nodes of a part's lowest plane move: a linear map from unknowns, each a displacement along x, y and z.

    Attributes:
        points: Where the unknowns are, mm, [q, 3].
        weights: Displacement of the nodes from that of the unknowns, sparse, [nodes of the lowest plane, q].
        stiffness: What resists the unknowns, [3 q, 3 q], N/mm; None for nothing.
    """

    points: NDArray[np.float64]
    weights: sp.csr_matrix
    stiffness: NDArray[np.float64] | None = None

    @property
    def size(self) -> int:
        """Number of unknowns, of three components each."""
        return len(self.points)

    def reduce(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        """Forces on the unknowns and the nodes above, [q + above, 3], from those on all nodes.

        Args:
            forces: Forces on nodes, those of the lowest plane first, [n, 3].
        """
        base = self.weights.shape[0]
        return np.concatenate([self.weights.T @ forces[:base], forces[base:]])

    def expand(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacement of all nodes, [n, 3], from that of the unknowns and the nodes above.

        Args:
            moved: Displacement of the unknowns, then of the nodes above, [q + above, 3].
        """
        return np.concatenate([self.weights @ moved[: self.size], moved[self.size :]])


class Stiffness(Protocol):
    """The stiffness of the cells below some height on their constrained base.

    Attributes:
        known: How well `approximate` knows the stiffness, where that can be badly.
    """

    known: Preconditioning | None

    def extend(self, cell_planes: int) -> None:
        """Add cells up to (not including) a plane of cells.

        Raises:
            SolverError: If the equations can't be factored.
        """
        ...

    def solve(self, forces: NDArray[np.float64], goal: float) -> NDArray[np.float64]:
        """Displacements [q + above, 3] of the base's unknowns and the nodes above under as many forces.

        Args:
            forces: On the unknowns and the nodes above, [q + above, 3].
            goal: Norm of the forces that may stay out of balance.

        Raises:
            SolverError: If no solution is found.
        """
        ...

    def approximate(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        """What `solve` gives, or something near to it at less cost: a symmetric preconditioner."""
        ...


def plane_starts(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the first item of each plane, and of the end; items are sorted by plane.

    Args:
        levels: Plane of each item, [n].
    """
    return np.searchsorted(levels, np.arange(int(levels[-1]) + 2))


def _spring(stiffness: NDArray[np.float64]) -> float:
    return _SPRING * float(np.diagonal(stiffness, axis1=-2, axis2=-1).mean())


def _dofs(nodes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Degrees of freedom of nodes: [..., k] to [..., 3 k]."""
    wide = 3 * nodes[..., None].astype(np.int64) + np.arange(3)
    return wide.reshape(*nodes.shape[:-1], -1)


class PlaneCholesky:
    """Block Cholesky factor, plane by plane; adding cells on top extends it.

    Args:
        mesh: The whole part.
        stiffness: Stiffness of a cell, [24, 24], or of each, [e, 24, 24].
        constraint: What it stands on.
        springs: What ties nodes above the lowest plane to where they are, N/mm along each axis, [n, 3]; nothing by
            default.
    """

    def __init__(
        self,
        mesh: VoxelMesh,
        stiffness: NDArray[np.float64],
        constraint: BaseConstraint,
        springs: NDArray[np.float64] | None = None,
    ) -> None:
        self._mesh, self._stiffness = mesh, stiffness
        self._nodes = plane_starts(mesh.point_levels)
        self._cells = plane_starts(mesh.indices[:, 2])
        self._springs = np.full((mesh.num_points, 3), _spring(stiffness))
        if springs is not None:
            self._springs += springs
        self._ends = 3 * np.concatenate([[0], self._nodes[1:] - self._nodes[1] + constraint.size])
        self._weights = sp.kron(constraint.weights, sp.eye(3), format="csr")
        self._factors: list[NDArray[np.float64]] = []
        self._couplings: list[NDArray[np.float64]] = []
        self._open = _spring(stiffness) * np.eye(3 * constraint.size)
        if constraint.stiffness is not None:
            self._open += constraint.stiffness
        self._top: NDArray[np.float64] = np.empty((0, 0))
        self.known: Preconditioning | None = None

    @property
    def top_stiffness(self) -> NDArray[np.float64]:
        """What the nodes of the uppermost plane feel when all below them are in equilibrium."""
        return self._open

    def extend(self, cell_planes: int) -> None:
        try:
            for plane in range(len(self._factors), cell_planes):
                self._eliminate(plane)
            self._top = cholesky(self._open, lower=True, check_finite=False)
        except LinAlgError as error:
            raise SolverError(f"the stiffness can't be factored ({error})") from error

    def _eliminate(self, plane: int) -> None:
        """Factor a plane of nodes and carry it over to the one above."""
        lower, upper, coupling = self._blocks(plane)
        factor = cholesky(self._open + lower, lower=True, overwrite_a=True, check_finite=False)
        carried = solve_triangular(factor, coupling.T, lower=True, overwrite_b=True, check_finite=False)
        self._factors.append(factor)
        self._couplings.append(carried)
        self._open = upper - carried.T @ carried
        tied = self._springs[self._nodes[plane + 1] : self._nodes[plane + 2]]
        self._open[np.diag_indices_from(self._open)] += tied.ravel()

    def _blocks(self, plane: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Stiffness of a plane of cells: lower nodes, upper nodes, upper with lower."""
        cells = self._mesh.cells[self._cells[plane] : self._cells[plane + 1]]
        dofs = _dofs(cells - self._nodes[plane])
        size, lower = (3 * int(self._nodes[plane + k] - self._nodes[plane]) for k in (2, 1))
        rows, columns = np.repeat(dofs, 24, axis=1).ravel(), np.tile(dofs, (1, 24)).ravel()
        if self._stiffness.ndim == 2:
            values = np.tile(self._stiffness.ravel(), len(cells))
        else:
            values = self._stiffness[self._cells[plane] : self._cells[plane + 1]].ravel()
        matrix = sp.csr_matrix((values, (rows, columns)), shape=(size, size))
        upper = matrix[lower:, lower:].toarray()
        below, coupling = matrix[:lower, :lower], matrix[lower:, :lower]
        if plane == 0:
            below, coupling = self._weights.T @ below @ self._weights, coupling @ self._weights
        return below.toarray(), upper, coupling.toarray()

    def solve(self, forces: NDArray[np.float64], goal: float = 0.0) -> NDArray[np.float64]:  # noqa: ARG002 (exact)
        return self.approximate(forces)

    def approximate(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        wanted = forces.ravel()
        parts: list[NDArray[np.float64]] = []
        factors = [*self._factors, self._top]
        for plane, factor in enumerate(factors):
            right = wanted[self._ends[plane] : self._ends[plane + 1]]
            if plane:
                right = right - self._couplings[plane - 1].T @ parts[-1]
            parts.append(solve_triangular(factor, right, lower=True, check_finite=False))
        for plane in reversed(range(len(factors))):
            right = parts[plane]
            if plane + 1 < len(factors):
                right = right - self._couplings[plane] @ parts[plane + 1]
            parts[plane] = solve_triangular(factors[plane], right, lower=True, trans=1, check_finite=False)
        return np.concatenate(parts).reshape(-1, 3)


class Multigrid:
    """Conjugate gradients with an algebraic multigrid hierarchy that is made anew for each height.

    Args:
        mesh: The whole part.
        stiffness: Stiffness of a cell, [24, 24], or of each, [e, 24, 24].
        constraint: What it stands on.
    """

    def __init__(self, mesh: VoxelMesh, stiffness: NDArray[np.float64], constraint: BaseConstraint) -> None:
        self._mesh, self._stiffness, self._spring = mesh, stiffness, _spring(stiffness)
        self._nodes = plane_starts(mesh.point_levels)
        self._cells = plane_starts(mesh.indices[:, 2])
        self._constraint = constraint
        self._matrix: Any = None
        self._hierarchy: Any = None
        self._loose: RigidMotions | None = None
        self.known: Preconditioning | None = None

    @cached_property
    def _pattern(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the blocks of the whole matrix, and the block of each pair of corners of each cell."""
        cells = self._mesh.cells.astype(np.int64)
        pairs = cells[:, :, None] * self._mesh.num_points + cells[:, None, :]
        keys, block_of = np.unique(pairs, return_inverse=True)
        rows, columns = np.divmod(keys, self._mesh.num_points)
        return rows, columns, block_of.ravel()

    def _assemble(self, num_cells: int, num_points: int) -> sp.bsr_matrix:
        rows, columns, block_of = self._pattern
        used = block_of[: 64 * num_cells]
        chosen = np.bincount(used, minlength=len(rows)) > 0
        blocks = np.empty((int(chosen.sum()), 3, 3))
        corners = self._stiffness[:num_cells] if self._stiffness.ndim == 3 else self._stiffness[None]
        corners = corners.reshape(-1, 8, 3, 8, 3)
        for i in range(3):
            for j in range(3):
                weights = np.resize(corners[:, :, i, :, j], 64 * num_cells)
                blocks[:, i, j] = np.bincount(used, weights=weights, minlength=len(rows))[chosen]
        rows, columns = rows[chosen], columns[chosen]
        blocks[rows == columns] += self._spring * np.eye(3)
        base = int(self._nodes[1])
        low = (rows < base) | (columns < base)
        shift, size = self._constraint.size - base, num_points - base + self._constraint.size
        above = _block_matrix(rows[~low] + shift, columns[~low] + shift, blocks[~low], size)
        return above + self._on_base(_block_matrix(rows[low], columns[low], blocks[low], num_points))

    def _on_base(self, low: sp.bsr_matrix) -> sp.bsr_matrix:
        """What couples the lowest plane, in the base's unknowns, with what resists these."""
        above = low.shape[0] // 3 - int(self._nodes[1])
        whole = sp.kron(sp.block_diag([self._constraint.weights, sp.eye(above)]), sp.eye(3), format="csr")
        mapped = whole.T @ low.tocsr() @ whole
        if self._constraint.stiffness is not None:
            mapped = mapped + sp.block_diag([self._constraint.stiffness, sp.csr_matrix((3 * above, 3 * above))])
        return mapped.tobsr((3, 3))

    def extend(self, cell_planes: int) -> None:
        num_points, num_cells = int(self._nodes[cell_planes + 1]), int(self._cells[cell_planes])
        self._matrix = self._assemble(num_cells, num_points)
        # Spectral radii are estimated from random vectors: without this, equal runs would differ in the last digits.
        np.random.seed(0)  # noqa: NPY002 (the generator that pyamg draws from)
        stretched = max(self._mesh.spacing) > _STRETCHED_FROM * min(self._mesh.spacing)
        options = _HIERARCHY | (_STRETCHED if stretched else _NEARLY_CUBES)
        coordinates = np.concatenate([self._constraint.points, self._mesh.points[self._nodes[1] : num_points]])
        shift = self._constraint.size - int(self._nodes[1])
        pieces = [nodes + shift for nodes in floating_pieces(self._mesh, cell_planes)]
        try:
            self._loose = rigid_motions(self._matrix, coordinates, pieces)
        except LinAlgError as error:
            raise SolverError(f"pieces that hang on nothing can't be solved for ({error})") from error
        modes = rigid_body_modes(coordinates)
        nothing_holds = self._constraint.stiffness is None and self._constraint.size == int(self._nodes[1])
        self.known = Preconditioning(np.linalg.qr(modes)[0] if nothing_holds else None)
        held = self._hold(pieces) if pieces else self._matrix
        self._hierarchy = pyamg.smoothed_aggregation_solver(held, B=modes, **options)
        for level in self._hierarchy.levels[:-1]:  # in rows of numbers, not blocks: Gauss-Seidel is three times as fast
            for name in ("A", "P", "R"):
                setattr(level, name, getattr(level, name).tocsr().astype(_PRECONDITIONER))

    def _hold(self, pieces: list[NDArray[np.int64]]) -> sp.bsr_matrix:
        """The matrix with floating pieces tied to where they are."""
        springs = np.zeros(self._matrix.shape[0] // 3)
        springs[np.concatenate(pieces)] = self._spring * (_LOOSE_SPRING / _SPRING)
        return (self._matrix + sp.diags(np.repeat(springs, 3))).tobsr((3, 3))

    def solve(self, forces: NDArray[np.float64], goal: float) -> NDArray[np.float64]:
        def apply(moved: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(self._matrix @ moved.ravel()).reshape(-1, 3)

        if self._loose is None:
            return conjugate_gradients(apply, self.approximate, forces, goal, known=self.known)
        # Floating pieces are in balance as a whole before the iterations, all through them and, to rounding, after.
        moved = self._loose.move(forces.ravel()).reshape(-1, 3)
        rest = forces - apply(moved)
        moved += conjugate_gradients(apply, self.approximate, rest, goal, known=self.known)
        moved += self._loose.move((forces - apply(moved)).ravel()).reshape(-1, 3)
        return moved

    def approximate(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._loose is None:
            return self._approximate(forces.ravel()).reshape(-1, 3)
        return self._loose.precondition(forces.ravel(), self._approximate).reshape(-1, 3)

    def _approximate(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        size = float(np.abs(forces).max()) or 1.0
        right = (forces / size).astype(_PRECONDITIONER)
        return size * self._cycle(0, right).astype(np.float64)

    def _cycle(self, number: int, right: NDArray[np.float32]) -> NDArray[np.float32]:
        """A V-cycle from zero, from a level of the hierarchy downwards (pyamg's own looks at residuals besides)."""
        levels = self._hierarchy.levels
        level = levels[number]
        if number == len(levels) - 1:
            lowest = self._hierarchy.coarse_solver(level.A, right.astype(np.float64))
            return np.asarray(lowest).ravel().astype(_PRECONDITIONER)
        moved = np.zeros_like(right)
        level.presmoother(level.A, moved, right)
        moved += level.P @ self._cycle(number + 1, level.R @ (right - level.A @ moved))
        level.postsmoother(level.A, moved, right)
        return moved


def _block_matrix(
    rows: NDArray[np.int64], columns: NDArray[np.int64], blocks: NDArray[np.float64], size: int
) -> sp.bsr_matrix:
    """A matrix of 3 x 3 blocks whose rows are in order."""
    starts = np.searchsorted(rows, np.arange(size + 1))
    return sp.bsr_matrix((blocks, columns, starts), shape=(3 * size, 3 * size))


def make_stiffness(
    mesh: VoxelMesh, stiffness: NDArray[np.float64], constraint: BaseConstraint, layers: int
) -> Stiffness:
    """The cheaper of the two solvers for a part.

    Args:
        mesh: The whole part.
        stiffness: Stiffness of a cell, [24, 24], or of each, [e, 24, 24].
        constraint: What it stands on.
        layers: How often the stiffness will be extended.
    """
    size = 3.0 * np.diff(plane_starts(mesh.point_levels))
    size[0] = 3.0 * constraint.size
    dense = float((1 / 3 * size**3).sum() + (size[:-1] ** 2 * size[1:] + size[:-1] * size[1:] ** 2).sum())
    multigrid = float(size.sum()) * (layers + 1) / 2 / _MULTIGRID_RATE
    memory = 8.0 * float((size**2).sum() + (size[:-1] * size[1:]).sum())
    cheaper = dense / _DENSE_RATE <= multigrid and memory <= _MAX_BLOCKS
    return (PlaneCholesky if cheaper else Multigrid)(mesh, stiffness, constraint)
