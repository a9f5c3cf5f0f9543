"""From one level of a hierarchy to the next: smoothed aggregation, with rigid-body motions of each aggregate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from pyamg.aggregation.aggregate import standard_aggregation
from pyamg.aggregation.tentative import fit_candidates
from pyamg.strength import symmetric_strength_of_connection

from pipelines.simulation.physics.multigrid import block_kernels
from pipelines.simulation.physics.multigrid.block_rows import LANES, BlockRows

MODES: Final = 6
"""Rigid-body motions of an aggregate."""

_OMEGA: Final = 4 / 3
_COARSE: Final = LANES[MODES]
_ROOM: Final = 40  # neighbours of an aggregate that there is room for at first


@dataclass(frozen=True)
class Transfer:
    """A smoothed prolongator P, in blocks of s x 6; s is 3 or 6.

    Attributes:
        row: Where the blocks of each node begin, [n + 1].
        column: Aggregates, [p].
        rows_of_blocks: The blocks, each of s rows of 8, flat.
        columns_of_blocks: The same, each of six columns of 4 (s = 3) or 8, flat.
        size: s.
        aggregates: How many there are, m.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    rows_of_blocks: NDArray[np.float32]
    columns_of_blocks: NDArray[np.float32]
    size: int
    aggregates: int

    def restrict(self, fine: NDArray[np.float32]) -> NDArray[np.float32]:
        """P' times forces on the nodes, padded and flat, as forces on the aggregates, [8 m]."""
        coarse = np.empty(_COARSE * self.aggregates, dtype=np.float32)
        block_kernels.restrict(self.row, self.column, self.rows_of_blocks, self.size, fine, coarse)
        return coarse

    def prolong(self, coarse: NDArray[np.float32], fine: NDArray[np.float32]) -> None:
        """Add P times motions of the aggregates, [8 m], to those of the nodes, padded and flat."""
        add = block_kernels.prolong_threes if self.size == 3 else block_kernels.prolong_sixes
        add(self.row, self.column, self.columns_of_blocks, coarse, fine)


def coarsen(
    matrix: sp.bsr_matrix, rows: BlockRows, modes: NDArray[np.float64], theta: float
) -> tuple[Transfer, sp.bsr_matrix, NDArray[np.float64]]:
    """The way to the next level, the matrix there and its rigid-body motions, [6 m, 6].

    Args:
        matrix: In blocks of s x s, n nodes; s is 3 or 6.
        rows: The same.
        modes: Rigid-body motions of the nodes, [s n, 6].
        theta: Nodes i and j are aggregated only if |A_ij| is more than theta times the root of |A_ii| |A_jj|.
    """
    aggregates, _ = standard_aggregation(symmetric_strength_of_connection(matrix, theta))
    tentative, coarse_modes = fit_candidates(aggregates, modes)
    starts, columns, values = _smoothed(rows, tentative)
    coarse = _coarse_matrix(rows, starts, columns, values, aggregates.shape[1])
    size = rows.size
    by_rows = values.astype(np.float32)
    by_columns = np.zeros((len(columns), MODES, LANES[size]), dtype=np.float32)
    by_columns[:, :, :size] = by_rows.reshape(-1, size, _COARSE)[:, :, :MODES].transpose(0, 2, 1)
    transfer = Transfer(starts, columns, by_rows, by_columns.ravel(), size, aggregates.shape[1])
    return transfer, coarse, coarse_modes


def _smoothed(rows: BlockRows, tentative: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Starts, aggregates and blocks of T - 4/3 D⁻¹ A T; D has the sums of the absolute values of A's rows."""
    nodes, size = len(rows.kind), rows.size
    there = np.diff(tentative.indptr) > 0  # nodes that nothing holds strongly are of no aggregate
    group = np.zeros(nodes, dtype=np.int64)
    group[there] = tentative.indices
    blocks = np.zeros((nodes, size, _COARSE))
    blocks[there, :, :MODES] = tentative.data
    counts = block_kernels.count_aggregates(rows.row, rows.column, group)
    starts = np.concatenate([[0], np.cumsum(counts)])
    columns, values = np.empty(starts[-1], dtype=np.int64), np.empty(size * _COARSE * starts[-1])
    sums = rows.sums_of_sizes()
    weight = np.divide(_OMEGA, sums, out=np.zeros_like(sums), where=sums > 0)
    block_kernels.smooth_prolongator(
        rows.row, rows.column, rows.begin, rows.block, blocks.ravel(), weight, group, starts, columns, values
    )
    return starts, columns, values


def _coarse_matrix(
    rows: BlockRows, starts: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float64], size: int
) -> sp.bsr_matrix:
    """P' A P, [6 m, 6 m]."""
    keys, found = block_kernels.triple_product(
        rows.row, rows.column, rows.begin, rows.block, starts, columns, values, 1 << (_ROOM * size).bit_length()
    )
    order = np.argsort(keys)
    line, column = np.divmod(keys[order], size)
    ends = np.searchsorted(line, np.arange(size + 1))
    data = np.ascontiguousarray(found.reshape(-1, MODES, _COARSE)[order][:, :, :MODES])
    shape = (MODES * size, MODES * size)
    return sp.bsr_matrix((data, column.astype(np.int32), ends.astype(np.int32)), shape=shape)
