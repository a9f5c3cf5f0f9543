"""The stiffness of a growing part by conjugate gradients with a multigrid hierarchy, made anew for each height."""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import LinAlgError

from lpbf_data.cached_property import cached_property
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.physics.equations import SPRING, BaseConstraint, plane_starts, spring_of
from pipelines.simulation.physics.floating_pieces import (
    RigidMotions,
    floating_pieces,
    rigid_body_modes,
    rigid_motions,
)
from pipelines.simulation.physics.iterations import Preconditioning, SolverError, conjugate_gradients
from pipelines.simulation.physics.multigrid import block_kernels
from pipelines.simulation.physics.multigrid.block_rows import BlockRows, Product
from pipelines.simulation.physics.multigrid.hierarchy import Hierarchy

_STRETCHED_FROM: Final = 2.5  # aspect ratio from which coarsening must look at directions
_LOOSE_SPRING: Final = 1e-4
# Share of a cell's stiffness that holds floating pieces in the preconditioner, whose 24 bits would lose a smaller one;
# their rigid motions are solved for beside it.


class Multigrid:
    """Conjugate gradients with an algebraic multigrid hierarchy that is made anew for each height.

    Args:
        mesh: The whole part.
        stiffness: Stiffness of a cell, [24, 24], or of each, [e, 24, 24].
        constraint: What it stands on.
    """

    def __init__(self, mesh: VoxelMesh, stiffness: NDArray[np.float64], constraint: BaseConstraint) -> None:
        self._mesh, self._stiffness, self._spring = mesh, stiffness, spring_of(stiffness)
        self._nodes = plane_starts(mesh.point_levels)
        self._cells = plane_starts(mesh.indices[:, 2])
        self._constraint = constraint
        self._matrix: sp.bsr_matrix  # with the hierarchy and the product, from `extend`
        self._hierarchy: Hierarchy
        self._product: Product
        self._low: sp.bsr_matrix | None = None
        self._loose: RigidMotions | None = None
        self.known: Preconditioning | None = None

    @cached_property
    def _added(self) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
        """Blocks of the whole matrix, which of them there are, and how many cells they are of; springs are in them."""
        rows, columns, _, _ = self._pattern
        blocks = np.zeros((len(rows), 3, 3))
        blocks[rows == columns] = self._spring * np.eye(3)
        return blocks, np.zeros(len(rows), dtype=bool), 0

    @cached_property
    def _pattern(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The blocks of the whole matrix.

        Their rows and columns, the block of each pair of corners of each cell, [e, 64], and which blocks couple nodes
        above the lowest plane alone.
        """
        cells = self._mesh.cells.astype(np.int64)
        pairs = cells[:, :, None] * self._mesh.num_points + cells[:, None, :]
        keys, block_of = np.unique(pairs, return_inverse=True)
        rows, columns = np.divmod(keys, self._mesh.num_points)
        base = int(self._nodes[1])
        return rows, columns, block_of.reshape(-1, 64), (rows >= base) & (columns >= base)

    def _assemble(self, num_cells: int, num_points: int) -> sp.bsr_matrix:
        rows, columns, block_of, above = self._pattern
        blocks, there, before = self._added
        own = self._stiffness[before:num_cells] if self._stiffness.ndim == 3 else self._stiffness[None]
        own = own.reshape(-1, 8, 3, 8, 3).transpose(0, 1, 3, 2, 4).reshape(-1, 64, 3, 3)
        block_kernels.add_cells(block_of[before:num_cells], own, blocks, there)
        self._added = blocks, there, num_cells
        if self._low is None:
            low = np.flatnonzero(there & ~above)
            self._low = self._base_matrix(_block_matrix(rows[low], columns[low], blocks[low], int(self._nodes[2])))
        kept = np.flatnonzero(there & above)
        shift = self._constraint.size - int(self._nodes[1])
        return _joined(self._low, rows[kept] + shift, columns[kept] + shift, blocks, kept, num_points + shift)

    def _base_matrix(self, low: sp.bsr_matrix) -> sp.bsr_matrix:
        """What couples the lowest plane, in the base's unknowns, with what resists these: the same at all heights."""
        nodes = int(self._nodes[2] - self._nodes[1])
        whole = sp.kron(sp.block_diag([self._constraint.weights, sp.eye(nodes)]), sp.eye(3), format="csr")
        mapped = whole.T @ low.tocsr() @ whole
        if self._constraint.stiffness is not None:
            mapped = mapped + sp.block_diag([self._constraint.stiffness, sp.csr_matrix((3 * nodes, 3 * nodes))])
        found = mapped.tobsr((3, 3))
        found.sort_indices()
        return found

    def extend(self, cell_planes: int) -> None:
        num_points, num_cells = int(self._nodes[cell_planes + 1]), int(self._cells[cell_planes])
        self._matrix = self._assemble(num_cells, num_points)
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
        rows = BlockRows.of(self._matrix)
        self._product = Product(rows)
        held, held_rows = self._matrix, rows
        if pieces:
            held = self._hold(pieces)
            held_rows = BlockRows.of(held)
        stretched = max(self._mesh.spacing) > _STRETCHED_FROM * min(self._mesh.spacing)
        self._hierarchy = Hierarchy(held, held_rows, modes, stretched=stretched)

    def _hold(self, pieces: list[NDArray[np.int64]]) -> sp.bsr_matrix:
        """The matrix with floating pieces tied to where they are."""
        springs = np.zeros(self._matrix.shape[0] // 3)
        springs[np.concatenate(pieces)] = self._spring * (_LOOSE_SPRING / SPRING)
        return (self._matrix + sp.diags(np.repeat(springs, 3))).tobsr((3, 3))

    def push(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        of_springs = self._constraint.reduce(self._spring * self._constraint.expand(moved))
        return self._product(moved) - of_springs

    def solve(self, forces: NDArray[np.float64], goal: float) -> NDArray[np.float64]:
        if self._loose is None:
            return conjugate_gradients(self._product, self.approximate, forces, goal, known=self.known)
        # Floating pieces are in balance as a whole before the iterations, all through them and, to rounding, after.
        moved = self._loose.move(forces.ravel()).reshape(-1, 3)
        rest = forces - self._product(moved)
        moved += conjugate_gradients(self._product, self.approximate, rest, goal, known=self.known)
        moved += self._loose.move((forces - self._product(moved)).ravel()).reshape(-1, 3)
        return moved

    def approximate(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._loose is None:
            return self._hierarchy.cycle(forces)

        def cycle(flat: NDArray[np.float64]) -> NDArray[np.float64]:
            return self._hierarchy.cycle(flat.reshape(-1, 3)).ravel()

        return self._loose.precondition(forces.ravel(), cycle).reshape(-1, 3)

    def approximate_halved(self, forces: NDArray[np.float64], plane: int) -> NDArray[np.float64]:  # noqa: ARG002
        return self.approximate(forces)


def _block_matrix(
    rows: NDArray[np.int64], columns: NDArray[np.int64], blocks: NDArray[np.float64], size: int
) -> sp.bsr_matrix:
    """A matrix of 3 x 3 blocks whose rows are in order."""
    starts = np.searchsorted(rows, np.arange(size + 1))
    return sp.bsr_matrix((blocks, columns, starts), shape=(3 * size, 3 * size))


def _joined(
    low: sp.bsr_matrix,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    blocks: NDArray[np.float64],
    chosen: NDArray[np.int64],
    size: int,
) -> sp.bsr_matrix:
    """A matrix of the first rows and columns, and blocks behind its own in each row; blocks are copied once.

    Args:
        low: That matrix.
        rows: Rows of the other blocks, in order.
        columns: Their columns, in order in each row.
        blocks: Blocks to choose from, [b, 3, 3].
        chosen: Which of them these are.
        size: Rows of the whole.
    """
    lines, width = len(low.indptr) - 1, len(low.indices)
    own = np.searchsorted(rows, np.arange(size + 1))
    starts = own + np.concatenate([low.indptr, np.full(size - lines, width)])
    all_columns, all_blocks = np.empty(width + len(rows), dtype=np.int32), np.empty((width + len(rows), 3, 3))
    shared = int(own[lines])  # blocks in the rows that `low` has too
    all_columns[width + shared :] = columns[shared:]
    np.take(blocks, chosen[shared:], axis=0, out=all_blocks[width + shared :], mode="clip")
    place = np.arange(width) + np.repeat(starts[:lines] - low.indptr[:-1], np.diff(low.indptr))
    all_columns[place], all_blocks[place] = low.indices, low.data
    place = np.arange(shared) + np.repeat(low.indptr[1:], np.diff(own[: lines + 1]))
    all_columns[place], all_blocks[place] = columns[:shared], blocks[chosen[:shared]]
    return sp.bsr_matrix((all_blocks, all_columns, starts), shape=(3 * size, 3 * size))
