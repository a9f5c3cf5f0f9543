"""The stiffness of a growing part by a block Cholesky factor: the nodes of one level after the other are eliminated.

A plane of cells that shrinks with half of its stiffness (see `mechanics`) changes the equations of the two levels of
nodes around it alone: all below is eliminated already, and conjugate gradients for that plane are of two levels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.physics.equations import BaseConstraint, plane_starts, spring_of
from pipelines.simulation.physics.iterations import Preconditioning, SolverError, conjugate_gradients

_LEAST_MOVE: Final = 1e-8
"""mm; iterations of two levels cost little, so they go on until no forces are left to balance afterwards."""


def _dofs(nodes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Degrees of freedom of nodes: [..., k] to [..., 3 k]."""
    wide = 3 * nodes[..., None].astype(np.int64) + np.arange(3)
    return wide.reshape(*nodes.shape[:-1], -1)


@dataclass(frozen=True)
class _GrownPlane:
    """A plane of cells, and what the nodes below it felt before it was there.

    Attributes:
        below: Stiffness of its lower nodes without it, [l, l].
        lower: What it adds to them, sparse, [l, l].
        upper: Its stiffness at its upper nodes, sparse, [u, u].
        coupling: Between upper and lower nodes, sparse, [u, l].
    """

    below: NDArray[np.float64]
    lower: sp.csr_matrix
    upper: sp.csr_matrix
    coupling: sp.csr_matrix

    def push_halved(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """Forces on its nodes, [l + u], when it has half of its stiffness, from their displacements."""
        low, high = np.split(moved, [len(self.below)])
        pushed = self.below @ low + 0.5 * (self.lower @ low + self.coupling.T @ high)
        return np.concatenate([pushed, 0.5 * (self.coupling @ low + self.upper @ high)])


class PlaneCholesky:
    """Block Cholesky factor, plane by plane; adding cells on top extends it.

    Args:
        mesh: The whole part.
        stiffness: Stiffness of a cell, [24, 24], or of each, [e, 24, 24].
        constraint: What it stands on.
        springs: What ties nodes above the lowest plane to where they are, N/mm along each axis, [n, 3]; nothing by
            default.
        halves: Whether `approximate_halved` will be asked for the planes of the last extension; what it needs is kept.
    """

    def __init__(
        self,
        mesh: VoxelMesh,
        stiffness: NDArray[np.float64],
        constraint: BaseConstraint,
        springs: NDArray[np.float64] | None = None,
        *,
        halves: bool = False,
    ) -> None:
        self._mesh, self._stiffness, self._halves = mesh, stiffness, halves
        self._nodes = plane_starts(mesh.point_levels)
        self._cells = plane_starts(mesh.indices[:, 2])
        self._springs = np.full((mesh.num_points, 3), spring_of(stiffness))
        if springs is not None:
            self._springs += springs
        self._ends = 3 * np.concatenate([[0], self._nodes[1:] - self._nodes[1] + constraint.size])
        self._ties = np.full((constraint.size, 3), spring_of(stiffness))  # as in what is factored, unknowns first
        self._ties = np.concatenate([self._ties, self._springs[self._nodes[1] :]])
        self._weights = sp.kron(constraint.weights, sp.eye(3), format="csr")
        self._factors: list[NDArray[np.float64]] = []
        self._couplings: list[NDArray[np.float64]] = []
        self._open = np.diag(self._ties[: constraint.size].ravel())
        if constraint.stiffness is not None:
            self._open += constraint.stiffness
        self._top: NDArray[np.float64] = np.empty((0, 0))
        self._grown: dict[int, _GrownPlane] = {}  # of the last extension
        self.known: Preconditioning | None = None

    @property
    def top_stiffness(self) -> NDArray[np.float64]:
        """What the nodes of the uppermost plane feel when all below them are in equilibrium."""
        return self._open

    def extend(self, cell_planes: int) -> None:
        self._grown.clear()
        try:
            for plane in range(len(self._factors), cell_planes):
                self._eliminate(plane)
            self._top = self._factor_of(self._open)
        except LinAlgError as error:
            raise SolverError(f"the stiffness can't be factored ({error})") from error

    def _eliminate(self, plane: int) -> None:
        """Factor a plane of nodes and carry it over to the one above."""
        lower, upper, coupling = self._blocks(plane)
        if self._halves:
            self._grown[plane] = _GrownPlane(self._open, lower, upper, coupling)
        factor = cholesky(self._open + lower.toarray(), lower=True, overwrite_a=True, check_finite=False)
        carried = solve_triangular(factor, coupling.toarray().T, lower=True, overwrite_b=True, check_finite=False)
        self._factors.append(factor)
        self._couplings.append(carried)
        self._open = upper.toarray() - carried.T @ carried
        tied = self._springs[self._nodes[plane + 1] : self._nodes[plane + 2]]
        self._open[np.diag_indices_from(self._open)] += tied.ravel()

    def _blocks(self, plane: int) -> tuple[sp.csr_matrix, sp.csr_matrix, sp.csr_matrix]:
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
        below, coupling = matrix[:lower, :lower], matrix[lower:, :lower]
        if plane == 0:
            below, coupling = self._weights.T @ below @ self._weights, coupling @ self._weights
        return below, matrix[lower:, lower:], coupling

    def push(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        # L (L' u): each level's part of L' u, then of L times that.
        flat, factors = moved.ravel(), [*self._factors, self._top]
        levels = [flat[start:end] for start, end in itertools.pairwise(self._ends[: len(factors) + 1])]
        parts = [factor.T @ own for factor, own in zip(factors, levels, strict=True)]
        for level, carried in enumerate(self._couplings):
            parts[level] += carried @ levels[level + 1]
        pushed = [factor @ part for factor, part in zip(factors, parts, strict=True)]
        for level, carried in enumerate(self._couplings):
            pushed[level + 1] += carried.T @ parts[level]
        return np.concatenate(pushed).reshape(-1, 3) - self._ties[: len(moved)] * moved

    def solve(self, forces: NDArray[np.float64], goal: float = 0.0) -> NDArray[np.float64]:  # noqa: ARG002 (exact)
        return self.approximate(forces)

    def approximate(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        factors, wanted = [*self._factors, self._top], forces.ravel()
        parts = self._eliminated(wanted, len(factors) - 1)
        parts.append(_solve_transposed(factors[-1], _solve(factors[-1], self._left(wanted, parts))))
        return self._completed(parts).reshape(-1, 3)

    def approximate_halved(self, forces: NDArray[np.float64], plane: int) -> NDArray[np.float64]:
        # Exact but for the springs. Nodes above the plane, on which nothing pulls, stay where they are.
        wanted = forces.ravel()
        parts = self._eliminated(wanted, plane)
        right = np.concatenate([self._left(wanted, parts), wanted[self._ends[plane + 1] : self._ends[plane + 2]]])
        factor, carried = self._factors[plane], self._couplings[plane]
        top = self._top if plane + 1 == len(self._factors) else self._factor_of(self._grown[plane + 1].below)

        def approximate(rest: NDArray[np.float64]) -> NDArray[np.float64]:
            low = _solve(factor, rest[: len(factor)])
            high = _solve_transposed(top, _solve(top, rest[len(factor) :] - carried.T @ low))
            return np.concatenate([_solve_transposed(factor, low - carried @ high), high])

        moved = conjugate_gradients(self._grown[plane].push_halved, approximate, right, 0.0, _LEAST_MOVE)
        low, high = np.split(moved, [len(factor)])
        found = np.zeros_like(wanted)
        found[: self._ends[plane + 1]] = self._completed([*parts, low])
        found[self._ends[plane + 1] : self._ends[plane + 2]] = high
        return found.reshape(-1, 3)

    def _factor_of(self, stiffness: NDArray[np.float64]) -> NDArray[np.float64]:
        try:
            factor: NDArray[np.float64] = cholesky(stiffness, lower=True, check_finite=False)
        except LinAlgError as error:
            raise SolverError(f"the stiffness can't be factored ({error})") from error
        return factor

    def _eliminated(self, wanted: NDArray[np.float64], levels: int) -> list[NDArray[np.float64]]:
        """Forward substitution on the lowest levels of nodes."""
        parts: list[NDArray[np.float64]] = []
        for level in range(levels):
            parts.append(_solve(self._factors[level], self._left(wanted, parts)))
        return parts

    def _left(self, wanted: NDArray[np.float64], parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Forces on the level above those that are eliminated."""
        level = len(parts)
        right = wanted[self._ends[level] : self._ends[level + 1]]
        return right - self._couplings[level - 1].T @ parts[-1] if level else right

    def _completed(self, parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Backward substitution: displacements of all levels, from the uppermost's and what is eliminated below it."""
        found = [parts[-1]]
        for level in reversed(range(len(parts) - 1)):
            right = parts[level] - self._couplings[level] @ found[-1]
            found.append(_solve_transposed(self._factors[level], right))
        return np.concatenate(found[::-1])


def _solve(factor: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(solve_triangular(factor, right, lower=True, check_finite=False))


def _solve_transposed(factor: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(solve_triangular(factor, right, lower=True, trans=1, check_finite=False))
