"""The stiffness of a growing part by a block Cholesky factor: the nodes of one level after the other are eliminated.

A plane of cells that shrinks with half of its stiffness (see `mechanics`) changes the equations of the two levels of
nodes around it alone: all below is eliminated already, and conjugate gradients for that plane are of two levels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.physics.dense_blocks import HOST, Array, Blocks, Carried, Factor
from pipelines.simulation.physics.equations import BaseConstraint, plane_starts, spring_of
from pipelines.simulation.physics.iterations import Preconditioning


def _dofs(nodes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Degrees of freedom of nodes: [..., k] to [..., 3 k]."""
    wide = 3 * nodes[..., None].astype(np.int64) + np.arange(3)
    return wide.reshape(*nodes.shape[:-1], -1)


@dataclass(frozen=True)
class _CellPlane:
    """Stiffness of a plane of cells.

    Attributes:
        lower: At its lower nodes, sparse, [l, l].
        upper: At its upper nodes, sparse, [u, u].
        coupling: Between upper and lower nodes, sparse, [u, l].
    """

    lower: sp.csr_matrix
    upper: sp.csr_matrix
    coupling: sp.csr_matrix

    def push(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Forces on its lower and its upper nodes from their displacements."""
        return self.lower @ low + self.coupling.T @ high, self.coupling @ low + self.upper @ high

    def matrices(self) -> tuple[sp.csr_matrix, ...]:
        """At lower nodes, at upper ones, upper with lower and lower with upper."""
        return self.lower, self.upper, self.coupling, self.coupling.T.tocsr()


class PlaneCholesky:
    """Block Cholesky factor, plane by plane; adding cells on top extends it.

    Args:
        mesh: The whole part.
        stiffness: Stiffness of a cell, [24, 24], or of each, [e, 24, 24].
        constraint: What it stands on.
        springs: What ties nodes above the lowest plane to where they are, N/mm along each axis, [n, 3]; nothing by
            default.
        halves: Whether `approximate_halved` will be asked for the planes of the last extension; what it needs is kept.
        blocks: Where the dense blocks lie and are worked on.
    """

    def __init__(
        self,
        mesh: VoxelMesh,
        stiffness: NDArray[np.float64],
        constraint: BaseConstraint,
        springs: NDArray[np.float64] | None = None,
        *,
        halves: bool = False,
        blocks: Blocks = HOST,
    ) -> None:
        self._mesh, self._stiffness, self._halves, self._at = mesh, stiffness, halves, blocks
        self._nodes = plane_starts(mesh.point_levels)
        self._cells = plane_starts(mesh.indices[:, 2])
        self._springs = np.full((mesh.num_points, 3), spring_of(stiffness))
        if springs is not None:
            self._springs += springs
        self._ends = 3 * np.concatenate([[0], self._nodes[1:] - self._nodes[1] + constraint.size])
        self._weights = sp.kron(constraint.weights, sp.eye(3), format="csr")
        self._factors: list[Factor] = []
        self._couplings: list[Carried] = []
        self._planes: list[_CellPlane] = []
        self._resisted = constraint.stiffness
        base = np.diag(np.full(3 * constraint.size, spring_of(stiffness)))
        if constraint.stiffness is not None:
            base += constraint.stiffness
        self._open: Array = blocks.array(base)
        self._top: Factor
        # Of the last extension: what lower nodes of a plane felt before it was there, and factors of that.
        self._before: dict[int, Array] = {}
        self._tops: dict[int, Factor] = {}
        self._sent: dict[int, tuple[Array, ...]] = {}  # matrices of a plane, where they are worked on
        self.known: Preconditioning | None = None

    @property
    def top_stiffness(self) -> NDArray[np.float64]:
        """What the nodes of the uppermost plane feel when all below them are in equilibrium."""
        return self._at.host(self._open)

    def extend(self, cell_planes: int) -> None:
        for known in (self._before, self._tops, self._sent):
            known.clear()
        for plane in range(len(self._factors), cell_planes):
            self._eliminate(plane)
        self._top = self._at.factor(self._open + 0.0)

    def _eliminate(self, plane: int) -> None:
        """Factor a plane of nodes and carry it over to the one above."""
        grown = self._cell_plane(plane)
        if self._halves:
            self._before[plane] = self._open
        factor = self._at.factor(self._open + self._at.dense(grown.lower))
        carried = factor.carry(grown.coupling)
        self._planes.append(grown)
        self._factors.append(factor)
        self._couplings.append(carried)
        tied = self._springs[self._nodes[plane + 1] : self._nodes[plane + 2]]
        self._open = self._at.dense(grown.upper + sp.diags(tied.ravel())) - carried.taken()

    def _cell_plane(self, plane: int) -> _CellPlane:
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
        return _CellPlane(below.tocsr(), matrix[lower:, lower:], coupling.tocsr())

    def push(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        pushed = np.zeros(moved.size)
        levels, forces = (self._levels_of(numbers.ravel()) for numbers in (moved, pushed))
        if self._resisted is not None:
            forces[0] += self._resisted @ levels[0]
        for level, plane in enumerate(self._planes):
            low, high = plane.push(levels[level], levels[level + 1])
            forces[level] += low
            forces[level + 1] += high
        return pushed.reshape(-1, 3)

    def solve(self, forces: NDArray[np.float64], goal: float = 0.0) -> NDArray[np.float64]:  # noqa: ARG002 (exact)
        return self.approximate(forces)

    def approximate(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        wanted = self._levels(forces)
        parts = self._eliminated(wanted, len(self._factors))
        parts.append(self._top.solve_transposed(self._top.solve(self._left(wanted, parts))))
        return self._at.host(self._at.joined(self._completed(parts))).reshape(-1, 3)

    def approximate_halved(self, forces: NDArray[np.float64], plane: int) -> NDArray[np.float64]:
        # Exact but for the springs. Nodes above the plane, on which nothing pulls, stay where they are.
        wanted = self._levels(forces)
        parts = self._eliminated(wanted, plane)
        factor, carried, top = self._factors[plane], self._couplings[plane], self._top_of(plane)
        size = int(self._ends[plane + 1] - self._ends[plane])
        if plane not in self._sent:
            self._sent[plane] = tuple(map(self._at.sparse, self._planes[plane].matrices()))
        lower, upper, coupling, transposed = self._sent[plane]
        before = self._before[plane]

        def apply(moved: Array) -> Array:
            low, high = moved[:size], moved[size:]
            pushed = before @ low + 0.5 * (lower @ low + transposed @ high)
            return self._at.joined([pushed, 0.5 * (coupling @ low + upper @ high)])

        def approximate(rest: Array) -> Array:
            low = factor.solve(rest[:size])
            high = top.solve_transposed(top.solve(rest[size:] - carried.times_transposed(low)))
            return self._at.joined([factor.solve_transposed(low - carried.times(high)), high])

        right = self._at.joined([self._left(wanted, parts), wanted[plane + 1]])
        moved = self._at.iterate(apply, approximate, right)
        completed = [*self._completed([*parts, moved[:size]]), moved[size:]]
        found = np.zeros(forces.size)
        found[: self._ends[plane + 2]] = self._at.host(self._at.joined(completed))
        return found.reshape(-1, 3)

    def _top_of(self, plane: int) -> Factor:
        """Factor of what the upper nodes of a plane of cells feel when none is above it."""
        if plane + 1 == len(self._factors):
            return self._top
        if plane not in self._tops:
            self._tops[plane] = self._at.factor(self._before[plane + 1] + 0.0)
        return self._tops[plane]

    def _levels_of(self, numbers: Array) -> list[Array]:
        """Numbers of the unknowns and the nodes above, flat, level by level."""
        ends = self._ends[: len(self._factors) + 2]
        return [numbers[start:end] for start, end in itertools.pairwise(ends)]

    def _levels(self, numbers: NDArray[np.float64]) -> list[Array]:
        """The same where they are worked on, from [q + above, 3]."""
        return self._levels_of(self._at.array(numbers.ravel()))

    def _eliminated(self, wanted: list[Array], levels: int) -> list[Array]:
        """Forward substitution on the lowest levels of nodes."""
        parts: list[Array] = []
        for level in range(levels):
            parts.append(self._factors[level].solve(self._left(wanted, parts)))
        return parts

    def _left(self, wanted: list[Array], parts: list[Array]) -> Array:
        """Forces on the level above those that are eliminated."""
        level = len(parts)
        return wanted[level] - self._couplings[level - 1].times_transposed(parts[-1]) if level else wanted[level]

    def _completed(self, parts: list[Array]) -> list[Array]:
        """Backward substitution: displacements of all levels, from the uppermost's and what is eliminated below it."""
        found = [parts[-1]]
        for level in reversed(range(len(parts) - 1)):
            right = parts[level] - self._couplings[level].times(found[-1])
            found.append(self._factors[level].solve_transposed(right))
        return found[::-1]
