"""Pieces of a growing part that aren't connected to it yet: their rigid motions, which iterative solvers can't find.

The lowest cells of an overhang lie in powder until the part below reaches them. Nothing but springs of a billionth of a
cell's stiffness holds such a piece, or one that touches others along an edge alone, so that the smallest force left out
of balance would carry it away. Its rigid-body motions are solved for directly, in float64, and the iterations never see
them (deflation; balancing preconditioner of Mandel 1993, https://doi.org/10.1002/cnm.1640090307). While a plane of
cells shrinks there aren't even springs: motions that no force decides aren't made, and the piece stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import ndimage
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh

from lpbf_data.geometry.voxel_mesh import VoxelMesh

_UNRESISTED: Final = 1e-12
"""Share of a cell's stiffness below which a motion meets no force; one that an edge resists has more than 1e-7."""


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


def floating_pieces(mesh: VoxelMesh, cell_planes: int) -> list[NDArray[np.int64]]:
    """Nodes of each piece of the lowest planes of cells that no chain of faces ties to the build plate.

    Args:
        mesh: The whole part.
        cell_planes: How many planes of cells are there.
    """
    cells, piece, floating = _pieces(mesh, cell_planes)
    return [np.unique(cells[piece == number]) for number in floating]


def _pieces(mesh: VoxelMesh, cell_planes: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cells of the lowest planes, [c, 8], the piece that each is of, [c], and the pieces that float."""
    there = mesh.indices[:, 2] < cell_planes
    indices, cells = tuple(mesh.indices[there].T), mesh.cells[there].astype(np.int64)
    grid = np.zeros((*(mesh.indices[:, :2].max(axis=0) + 1), cell_planes), dtype=bool)
    grid[indices] = True
    labels, count = ndimage.label(grid)  # pieces hang together by faces
    floating = np.setdiff1d(np.arange(1, count + 1), labels[..., 0])
    return cells, labels[indices], floating


def free_motions(mesh: VoxelMesh, cell_planes: int, stiffness: NDArray[np.float64]) -> sp.csr_matrix | None:
    """Motions of floating pieces that no force resists, orthonormal columns, [3 n, k]; None where there are none.

    A piece that touches others along an edge alone turns about it and does nothing else freely: what the cells across
    resist is left to them.

    Args:
        mesh: The whole part, n nodes.
        cell_planes: How many planes of cells are there.
        stiffness: Stiffness of a cell, [24, 24], or of each of the mesh, [e, 24, 24].
    """
    cells, piece, floating = _pieces(mesh, cell_planes)
    if not len(floating):
        return None
    nodes = [np.unique(cells[piece == number]) for number in floating]
    modes = _modes(mesh.points, nodes)
    # Cells of a piece move with it: only those that touch a piece and aren't of it resist.
    across = np.zeros(len(cells), dtype=bool)
    for number, mine in zip(floating, nodes, strict=True):
        across |= np.isin(cells, mine).any(axis=1) & (piece != number)
    small = np.zeros((modes.shape[1],) * 2)
    for number in np.flatnonzero(across):
        moved = modes[(3 * cells[number][:, None] + np.arange(3)).ravel()].toarray()
        small += moved.T @ (stiffness if stiffness.ndim == 2 else stiffness[number]) @ moved
    resisted, directions = eigh((small + small.T) / 2, (modes.T @ modes).toarray())
    free = sp.csr_matrix(modes @ directions[:, resisted < _UNRESISTED * np.trace(stiffness, axis1=-2, axis2=-1).mean()])
    return free if free.shape[1] else None


def _modes(coordinates: NDArray[np.float64], pieces: list[NDArray[np.int64]]) -> sp.csr_matrix:
    """The six rigid-body motions of each piece, orthonormal in it, [3 m, 6 pieces]."""
    rows, columns, values = [], [], []
    for number, piece in enumerate(pieces):
        modes = np.linalg.qr(rigid_body_modes(coordinates[piece]))[0]
        dofs = (3 * piece[:, None] + np.arange(3)).ravel()
        rows.append(np.repeat(dofs, 6))
        columns.append(np.tile(6 * number + np.arange(6), len(dofs)))
        values.append(modes.ravel())
    joined = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sp.csr_matrix(joined, shape=(3 * len(coordinates), 6 * len(pieces)))


@dataclass(frozen=True)
class RigidMotions:
    """Rigid-body motions of floating pieces, and the small system that decides them.

    Attributes:
        modes: The motions Z, orthonormal in each piece, sparse, [n, k].
        pushed: Forces that they meet, A Z, sparse, [n, k].
        factor: Cholesky factor of Zᵀ A Z, as SciPy's `cho_factor` gives it.
    """

    modes: sp.csr_matrix
    pushed: sp.csr_matrix
    factor: tuple[NDArray[np.float64], bool]

    def move(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacements Z (Zᵀ A Z)⁻¹ Zᵀ f, [n], after which no piece is pushed or turned as a whole.

        Args:
            forces: Forces f, [n].
        """
        moved: NDArray[np.float64] = self.modes @ cho_solve(self.factor, self.modes.T @ forces)
        return moved

    def precondition(
        self, forces: NDArray[np.float64], approximate: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """Displacements from forces by a preconditioner, projected so that it leaves out rigid motions; symmetric.

        Args:
            forces: [n].
            approximate: The preconditioner for all else, [n] to [n].
        """
        share = cho_solve(self.factor, self.modes.T @ forces)
        guess = approximate(forces - self.pushed @ share)
        moved: NDArray[np.float64] = guess + self.modes @ (share - cho_solve(self.factor, self.pushed.T @ guess))
        return moved


def rigid_motions(
    matrix: sp.spmatrix, coordinates: NDArray[np.float64], pieces: list[NDArray[np.int64]]
) -> RigidMotions | None:
    """What moves floating pieces as a whole; None where there are none.

    Args:
        matrix: The stiffness A, [3 m, 3 m], positive definite.
        coordinates: Where its unknowns are, mm, [m, 3].
        pieces: Unknowns of each piece.

    Raises:
        LinAlgError: If the motions are linearly dependent.
    """
    if not pieces:
        return None
    modes = _modes(coordinates, pieces)
    pushed = sp.csr_matrix(matrix @ modes)
    small = (modes.T @ pushed).toarray()
    if not np.isfinite(small).all():
        raise LinAlgError("the motions of loose pieces are no numbers")
    return RigidMotions(modes, pushed, cho_factor((small + small.T) / 2, lower=True))
