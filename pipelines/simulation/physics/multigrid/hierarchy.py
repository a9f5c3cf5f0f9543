"""A multigrid hierarchy by smoothed aggregation, and its V-cycle.

pyamg says what is aggregated; prolongators, products and smoothing are this project's kernels, which give what pyamg's
do, but for rounding, in less time. Smoothing is Gauss-Seidel in float32 on all levels: half the memory to go through,
and conjugate gradients around it are in float64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from pyamg.multilevel import coarse_grid_solver

from pipelines.simulation.physics.multigrid.block_rows import LANES, BlockRows, Smoother
from pipelines.simulation.physics.multigrid.transfer import MODES, Transfer, coarsen

_MAX_COARSE: Final = 150  # nodes of a level that is solved directly


class Hierarchy:
    """A preconditioner for the stiffness of a part.

    Args:
        matrix: The stiffness, in blocks of 3 x 3, n nodes.
        rows: The same.
        modes: Rigid-body motions, [3 n, 6].
        stretched: Whether the cells are so stretched that coarsening must look at directions.
    """

    def __init__(self, matrix: sp.bsr_matrix, rows: BlockRows, modes: NDArray[np.float64], *, stretched: bool) -> None:
        theta = 0.08 if stretched else 0.0
        self._turns = (False, True) if stretched else (False,)  # of the sweeps before the correction: backward?
        self._levels: list[tuple[Smoother, Transfer]] = []
        while matrix.shape[0] // matrix.blocksize[0] > _MAX_COARSE:
            smoother = Smoother(rows)
            transfer, matrix, modes = coarsen(matrix, rows, modes, theta)
            self._levels.append((smoother, transfer))
            rows = BlockRows.of(matrix)
        self._lowest, self._solve_lowest = matrix, coarse_grid_solver("splu")

    def cycle(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacements from forces, nearly, both [n, 3]: a V-cycle from zero."""
        size = float(np.abs(forces).max()) or 1.0
        if not self._levels:
            return size * self._directly(forces / size).reshape(-1, 3)
        right = np.zeros((len(forces), LANES[3]), dtype=np.float32)
        right[:, :3] = forces / size
        moved = self._correction(0, right.ravel())
        return size * moved.reshape(-1, LANES[3])[:, :3].astype(np.float64)

    def _directly(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self._solve_lowest(self._lowest, right.ravel())).ravel()

    def _correction(self, number: int, right: NDArray[np.float32]) -> NDArray[np.float32]:
        """A V-cycle from zero, from a level of the hierarchy downwards."""
        if number == len(self._levels):
            moved = np.zeros((len(right) // LANES[MODES], LANES[MODES]), dtype=np.float32)
            exact = self._directly(right.reshape(moved.shape)[:, :MODES].astype(np.float64))
            moved[:, :MODES] = exact.reshape(-1, MODES)
            return moved.ravel()
        smoother, transfer = self._levels[number]
        moved = np.zeros_like(right)
        for backward in self._turns:
            smoother.sweep(moved, right, backward=backward)
        rest = smoother.residual(moved, right)
        transfer.prolong(self._correction(number + 1, transfer.restrict(rest)), moved)
        for backward in reversed(self._turns):
            smoother.sweep(moved, right, backward=not backward)
        return moved
