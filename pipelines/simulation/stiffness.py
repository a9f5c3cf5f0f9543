"""The stiffness of a part that grows: solvers for the cells that are there, from the bottom up to some height.

Two ways, chosen by what they would cost. `PlaneCholesky` eliminates the nodes of one level after the other; a
new layer extends the factor that is there already, so a whole build costs one factorisation. `Multigrid` is for levels
too large for dense blocks: conjugate gradients with smoothed aggregation, whose near-nullspace are rigid-body modes.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import pyamg
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from lpbf_data.cached import cached_property
from lpbf_data.errors import LpbfError
from lpbf_data.geometry.voxelize import VoxelMesh

TOLERANCE: Final = 1e-6
"""Relative residual to which the equations of multigrid are solved."""

_MOST_ITERATIONS: Final = 1000
_SPRING: Final = 1e-9
# Share of a cell's stiffness that ties every node to its place, as loose powder does. It matters only where a piece
# hangs on nothing, or by an edge: loads of inherent strains balance on each piece, so nothing pulls at the springs.
_DENSE_RATE: Final = 3e10  # operations a second of the dense kernels on one core
_MULTIGRID_RATE: Final = 4e4  # degrees of freedom a second, for one hierarchy and two solutions
_HIERARCHY: Final[dict[str, Any]] = {
    "max_coarse": 150,
    "coarse_solver": "splu",
    "improve_candidates": None,  # the rigid-body modes are exact; smoothing them triples the time of the set-up
}
_NEARLY_CUBES: Final[dict[str, Any]] = {
    "strength": ("symmetric", {"theta": 0.0}),
    "presmoother": ("block_gauss_seidel", {"sweep": "forward"}),
    "postsmoother": ("block_gauss_seidel", {"sweep": "backward"}),
}
_STRETCHED: Final[dict[str, Any]] = {"strength": ("symmetric", {"theta": 0.08})}
_STRETCHED_FROM: Final = 2.5  # aspect ratio from which coarsening must look at directions
_LARGEST_BLOCKS: Final = 4e9  # bytes


class SolverError(LpbfError):
    """Equations that could not be solved; the run ends as failed."""


class Stiffness(Protocol):
    """The stiffness of the cells below some height, with part of the nodes held."""

    def extend(self, cell_planes: int) -> None:
        """Add cells up to (not including) a plane of cells.

        Raises:
            SolverError: If the equations can't be factored.
        """
        ...

    def solve(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacements [n, 3] under nodal forces [n, 3] on the nodes that are there; held ones don't move.

        Raises:
            SolverError: If no solution is found.
        """
        ...


def plane_starts(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the first item of each plane, and of the end; items are sorted by plane.

    Args:
        levels: Plane of each item, [n].
    """
    return np.searchsorted(levels, np.arange(int(levels[-1]) + 2))


def _spring(stiffness: NDArray[np.float64]) -> float:
    return _SPRING * float(np.diag(stiffness).mean())


def _dofs(nodes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Degrees of freedom of nodes: [..., k] to [..., 3 k]."""
    wide = 3 * nodes[..., None].astype(np.int64) + np.arange(3)
    return wide.reshape(*nodes.shape[:-1], -1)


class PlaneCholesky:
    """Block Cholesky factor, plane by plane; adding cells on top extends it.

    Args:
        mesh: The whole part.
        stiffness: Stiffness of a cell, [24, 24].
        held: Which nodes of the lowest plane don't move.
    """

    def __init__(self, mesh: VoxelMesh, stiffness: NDArray[np.float64], held: NDArray[np.bool_]) -> None:
        self._mesh, self._stiffness, self._spring = mesh, stiffness, _spring(stiffness)
        self._nodes = plane_starts(mesh.point_levels)
        self._cells = plane_starts(mesh.indices[:, 2])
        self._free = np.repeat(~held, 3)
        self._factors: list[NDArray[np.float64]] = []
        self._couplings: list[NDArray[np.float64]] = []
        self._open = self._spring * np.eye(int(self._free.sum()))
        self._top: NDArray[np.float64] = np.empty((0, 0))

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
        self._open[np.diag_indices_from(self._open)] += self._spring

    def _blocks(self, plane: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Stiffness of a plane of cells: lower nodes, upper nodes, upper with lower."""
        cells = self._mesh.cells[self._cells[plane] : self._cells[plane + 1]]
        dofs = _dofs(cells - self._nodes[plane])
        size, lower = (3 * int(self._nodes[plane + k] - self._nodes[plane]) for k in (2, 1))
        rows, columns = np.repeat(dofs, 24, axis=1).ravel(), np.tile(dofs, (1, 24)).ravel()
        values = np.tile(self._stiffness.ravel(), len(cells))
        matrix = sp.csr_matrix((values, (rows, columns)), shape=(size, size))
        kept = np.flatnonzero(self._free) if plane == 0 else np.arange(lower)
        below = matrix[:, :lower][:, kept]
        return below[kept].toarray(), matrix[lower:, lower:].toarray(), below[lower:].toarray()

    def solve(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        wanted = forces.ravel()
        ends = 3 * self._nodes
        parts: list[NDArray[np.float64]] = []
        factors = [*self._factors, self._top]
        for plane, factor in enumerate(factors):
            right = wanted[ends[plane] : ends[plane + 1]]
            right = right[self._free] if plane == 0 else right - self._couplings[plane - 1].T @ parts[-1]
            parts.append(solve_triangular(factor, right, lower=True, check_finite=False))
        for plane in reversed(range(len(factors))):
            right = parts[plane]
            if plane + 1 < len(factors):
                right = right - self._couplings[plane] @ parts[plane + 1]
            parts[plane] = solve_triangular(factors[plane], right, lower=True, trans=1, check_finite=False)
        base = np.zeros(len(self._free))
        base[self._free] = parts[0]
        return np.concatenate([base, *parts[1:]]).reshape(-1, 3)


class Multigrid:
    """Conjugate gradients with an algebraic multigrid hierarchy that is made anew for each height.

    Args:
        mesh: The whole part.
        stiffness: Stiffness of a cell, [24, 24].
        held: Which nodes of the lowest plane don't move.
    """

    def __init__(self, mesh: VoxelMesh, stiffness: NDArray[np.float64], held: NDArray[np.bool_]) -> None:
        self._mesh, self._stiffness, self._spring = mesh, stiffness, _spring(stiffness)
        self._nodes = plane_starts(mesh.point_levels)
        self._cells = plane_starts(mesh.indices[:, 2])
        self._free = np.ones(mesh.num_points, dtype=bool)
        self._free[: len(held)] = ~held
        self._matrix: sp.bsr_matrix | None = None
        self._hierarchy: Any = None

    @cached_property
    def _pattern(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the blocks of the whole matrix, and the block of each pair of corners of each cell."""
        cells = self._mesh.cells.astype(np.int64)
        pairs = cells[:, :, None] * self._mesh.num_points + cells[:, None, :]
        keys, block_of = np.unique(pairs, return_inverse=True)
        rows, columns = np.divmod(keys, self._mesh.num_points)
        return rows, columns, block_of.ravel()

    def _assemble(self, num_cells: int, active: NDArray[np.bool_]) -> sp.bsr_matrix:
        rows, columns, block_of = self._pattern
        used = block_of[: 64 * num_cells]
        number = np.cumsum(active) - 1
        chosen = active[rows] & active[columns] & (np.bincount(used, minlength=len(rows)) > 0)
        blocks = np.empty((int(chosen.sum()), 3, 3))
        corners = self._stiffness.reshape(8, 3, 8, 3)
        for i in range(3):
            for j in range(3):
                weights = np.tile(corners[:, i, :, j].ravel(), num_cells)
                blocks[:, i, j] = np.bincount(used, weights=weights, minlength=len(rows))[chosen]
        rows, columns = number[rows[chosen]], number[columns[chosen]]
        blocks[rows == columns] += self._spring * np.eye(3)
        count = int(active.sum())
        starts = np.searchsorted(rows, np.arange(count + 1))
        return sp.bsr_matrix((blocks, columns, starts), shape=(3 * count, 3 * count))

    def extend(self, cell_planes: int) -> None:
        active = self._free.copy()
        active[self._nodes[cell_planes + 1] :] = False
        self._matrix = self._assemble(int(self._cells[cell_planes]), active)
        # Spectral radii are estimated from random vectors: without this, equal runs would differ in the last digits.
        np.random.seed(0)  # noqa: NPY002 (the generator that pyamg draws from)
        stretched = max(self._mesh.spacing) > _STRETCHED_FROM * min(self._mesh.spacing)
        options = _HIERARCHY | (_STRETCHED if stretched else _NEARLY_CUBES)
        modes = rigid_body_modes(self._mesh.points[active])
        self._hierarchy = pyamg.smoothed_aggregation_solver(self._matrix, B=modes, **options)

    def solve(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        free = self._free[: len(forces)]
        right = forces[free].ravel()
        moved = np.zeros_like(forces)
        size = float(np.linalg.norm(right))
        if size == 0:
            return moved
        solution = self._hierarchy.solve(right, tol=TOLERANCE, maxiter=_MOST_ITERATIONS, accel="cg")
        residual = float(np.linalg.norm(right - self._matrix @ solution)) / size
        if not residual < 10 * TOLERANCE:
            raise SolverError(
                f"the displacements did not converge: residual {residual:.1e} after {_MOST_ITERATIONS} iterations"
            )
        moved[free] = solution.reshape(-1, 3)
        return moved


def rigid_body_modes(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The six rigid-body motions of points, [3 n, 6]: three translations, three small rotations about the centroid.

    Args:
        points: Coordinates, [n, 3].
    """
    x, y, z = (points - points.mean(axis=0)).T
    modes = np.zeros((len(points), 3, 6))
    for axis in range(3):
        modes[:, axis, axis] = 1
    modes[:, 1, 3], modes[:, 2, 3] = -z, y
    modes[:, 0, 4], modes[:, 2, 4] = z, -x
    modes[:, 0, 5], modes[:, 1, 5] = -y, x
    return modes.reshape(-1, 6)


def make_stiffness(mesh: VoxelMesh, stiffness: NDArray[np.float64], held: NDArray[np.bool_], layers: int) -> Stiffness:
    """The cheaper of the two solvers for a part.

    Args:
        mesh: The whole part.
        stiffness: Stiffness of a cell, [24, 24].
        held: Which nodes of the lowest plane don't move.
        layers: How often the stiffness will be extended.
    """
    size = 3.0 * np.diff(plane_starts(mesh.point_levels))
    dense = float((1 / 3 * size**3).sum() + (size[:-1] ** 2 * size[1:] + size[:-1] * size[1:] ** 2).sum())
    multigrid = 3.0 * mesh.num_points * (layers + 1) / 2 / _MULTIGRID_RATE
    memory = 8.0 * float((size**2).sum() + (size[:-1] * size[1:]).sum())
    cheaper = dense / _DENSE_RATE <= multigrid and memory <= _LARGEST_BLOCKS
    return (PlaneCholesky if cheaper else Multigrid)(mesh, stiffness, held)
