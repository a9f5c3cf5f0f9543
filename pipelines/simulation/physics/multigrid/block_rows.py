"""Matrices of small blocks whose equal rows are stored once, for smoothing.

A node's row of the stiffness depends on which of the eight cells around it are there: where all cells have the same
stiffness, a part of a hundred thousand nodes has some hundred distinct rows on the finest level. These stay in the
processor's cache, where whole matrices have to come from memory again for each sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pipelines.simulation.physics.multigrid import block_kernels

LANES: Final = {3: 4, 6: 8}
"""Numbers that a node's vector is padded to, by those that it has."""


@dataclass(frozen=True)
class BlockRows:
    """A symmetric matrix of n x n blocks, of 3 x 3 or 6 x 6 numbers each; every row has its diagonal block.

    Attributes:
        row: Where the neighbours of each row begin in `column`, [n + 1].
        column: Neighbours, in rising order, [blocks].
        kind: Which distinct row each row equals, [n].
        first: First row of each kind, [k].
        begin: Where the blocks of each row begin in `block`, [n].
        block: Blocks of the distinct rows, [b, 3, 3] or [b, 6, 6].
        own: Which of its blocks is on the diagonal, for each distinct row, [k].
    """

    row: NDArray[np.integer[Any]]
    column: NDArray[np.integer[Any]]
    kind: NDArray[np.int64]
    first: NDArray[np.int64]
    begin: NDArray[np.int64]
    block: NDArray[np.float64]
    own: NDArray[np.int64]

    @classmethod
    def of(cls, matrix: sp.bsr_matrix) -> BlockRows:
        """Find the distinct rows of a matrix.

        Args:
            matrix: In square blocks, with all those of the diagonal.
        """
        matrix.sort_indices()
        counts = np.diff(matrix.indptr)
        rows = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(rows)) - matrix.indptr[rows]
        own = place[rows == matrix.indices]
        # Rows that are equal have the same sum of values times random numbers; whether these are, is looked at below.
        weights = np.random.default_rng(0).standard_normal((int(counts.max()), *matrix.blocksize))
        weighted = np.einsum("kij,kij->k", matrix.data, weights[place])
        sums = np.bincount(rows, weights=weighted, minlength=len(counts))
        _, first, kind = np.unique(sums, return_index=True, return_inverse=True)
        same = (counts == counts[first[kind]]) & (own == own[first[kind]])
        alike = np.flatnonzero(same[rows])
        like = matrix.indptr[first[kind[rows[alike]]]] + place[alike]
        same[rows[alike[(matrix.data[alike] != matrix.data[like]).any(axis=(1, 2))]]] = False
        # In the order of the rows, so that one row after the other is read from memory.
        first, kind = np.unique(np.where(same, first[kind], np.arange(len(counts))), return_inverse=True)
        ends = np.concatenate([[0], np.cumsum(counts[first])])
        chosen = np.arange(ends[-1]) + np.repeat(matrix.indptr[first] - ends[:-1], counts[first])
        return cls(matrix.indptr, matrix.indices, kind, first, ends[kind], matrix.data[chosen], own[first])

    @property
    def size(self) -> int:
        """Numbers a node."""
        return int(self.block.shape[1])

    def own_blocks(self) -> NDArray[np.float64]:
        """The diagonal block of each distinct row, [k, 3, 3] or [k, 6, 6]."""
        return np.asarray(self.block[self.begin[self.first] + self.own])

    def sums_of_sizes(self) -> NDArray[np.float64]:
        """Sum of the absolute values of each row of numbers, [n, 3] or [n, 6]."""
        sums = np.add.reduceat(np.abs(self.block).sum(axis=2), self.begin[self.first])
        return np.asarray(sums[self.kind])


class Product:
    """A matrix ready for products with vectors of float64.

    Args:
        rows: The matrix, in blocks of 3 x 3.
    """

    def __init__(self, rows: BlockRows) -> None:
        self._rows, (self._start, self._value) = rows, _padded(rows, np.float64)

    def __call__(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """The matrix times displacements, both [n, 3]."""
        rows, padded = self._rows, np.zeros((len(moved), LANES[3]))
        padded[:, :3] = moved
        found = np.empty_like(padded)
        block_kernels.product_threes(self._start, rows.row, rows.column, self._value, padded.ravel(), found.ravel())
        return found[:, :3]


class Smoother:
    """Gauss-Seidel sweeps and residuals of a matrix, in float32.

    Args:
        rows: The matrix.
    """

    def __init__(self, rows: BlockRows) -> None:
        self._rows, (self._start, self._value) = rows, _padded(rows, np.float32)
        own, size = rows.own_blocks(), rows.size
        self._forward, self._backward = _inverse(np.tril(own)), _inverse(np.triu(own))
        threes = size == 3
        self._sweep = block_kernels.sweep_threes if threes else block_kernels.sweep_sixes
        self._product = block_kernels.product_threes if threes else block_kernels.product_sixes

    def sweep(self, moved: NDArray[np.float32], right: NDArray[np.float32], *, backward: bool) -> None:
        """Improve a solution by a sweep over all numbers.

        Args:
            moved: The solution, [n, 4] or [n, 8], flat; changed.
            right: Right-hand side, padded with zeros in the same way.
            backward: From the last number to the first.
        """
        rows, inverse = self._rows, self._backward if backward else self._forward
        self._sweep(self._start, rows.row, rows.column, self._value, rows.kind, inverse, moved, right, backward)

    def residual(self, moved: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """What a solution leaves of the right-hand side.

        Args:
            moved: The solution, [n, 4] or [n, 8], flat.
            right: Right-hand side, padded with zeros in the same way.
        """
        rows, found = self._rows, np.empty_like(right)
        self._product(self._start, rows.row, rows.column, self._value, moved, found)
        return right - found


def _padded(rows: BlockRows, dtype: type[np.float32 | np.float64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Where the values of each row begin, [n], and the values of the distinct rows, as the kernels take them."""
    size, lanes = rows.size, LANES[rows.size]
    padded = np.zeros((len(rows.block), size, lanes), dtype=dtype)
    padded[:, :, :size] = rows.block.transpose(0, 2, 1)
    return rows.begin * size * lanes, padded.ravel()


def _inverse(triangles: NDArray[np.float64]) -> NDArray[np.float32]:
    """Inverses of triangular blocks; numbers whose diagonal is 0, which nothing decides, are left as they are."""
    size = triangles.shape[1]
    undecided = np.diagonal(triangles, axis1=1, axis2=2) == 0
    whole = np.where(undecided[:, :, None] | undecided[:, None, :], np.eye(size), triangles)
    found = np.where(undecided[:, :, None], 0.0, np.linalg.inv(whole))
    return found.astype(np.float32)
