"""The stiffness of a growing part by a block Cholesky factor: the nodes of one level after the other are eliminated."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.physics.equations import BaseConstraint, plane_starts, spring_of
from pipelines.simulation.physics.iterations import Preconditioning, SolverError


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
        self._springs = np.full((mesh.num_points, 3), spring_of(stiffness))
        if springs is not None:
            self._springs += springs
        self._ends = 3 * np.concatenate([[0], self._nodes[1:] - self._nodes[1] + constraint.size])
        self._weights = sp.kron(constraint.weights, sp.eye(3), format="csr")
        self._factors: list[NDArray[np.float64]] = []
        self._couplings: list[NDArray[np.float64]] = []
        self._open = spring_of(stiffness) * np.eye(3 * constraint.size)
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
