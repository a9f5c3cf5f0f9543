"""Flow through a porous medium by the published recipe: random permeability on a square, and the pressure in it.

The recipe is that of the Fourier neural operator's data (zongyi-li/fourier_neural_operator, data_generation/darcy at
2421c8f1: GRF.m, demo.m, solve_gwf.m), with 3 and 12 as values as in its files; demo.m has 4 and 12. Its peculiarities
are kept: the permeability is interpolated from the centres of the cells to a grid of nodes by a cubic spline, which
overshoots where it jumps, and the pressure back to the centres, where it isn't quite 0 along the boundary.
"""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
import pyamg
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.fft import idctn
from scipy.interpolate import RectBivariateSpline
from scipy.sparse.linalg import spsolve

SIZE: Final = 421
"""Cells along each side in the published files."""

PERMEABILITIES: Final = (3.0, 12.0)
"""Where the random field is negative, and where it isn't."""

_EXPONENT, _SHIFT = 2.0, 3.0  # of the field's covariance (-Δ + 9)⁻², without its mean, no flux at the boundary
_TOLERANCE: Final = 1e-10  # force out of balance, relative


def permeability(random: np.random.Generator, size: int = SIZE) -> NDArray[np.float64]:
    """A random medium at the centres of the cells, [size, size].

    Args:
        random: Where it is drawn from.
        size: Cells along each side.
    """
    waves = np.pi * np.arange(size)
    falling = _SHIFT ** (_EXPONENT - 1) * (waves[:, None] ** 2 + waves**2 + _SHIFT**2) ** (-_EXPONENT / 2)
    strengths = size * falling * random.standard_normal((size, size))
    strengths[0, 0] = 0.0
    return np.where(idctn(strengths, type=2, norm="ortho") >= 0, PERMEABILITIES[1], PERMEABILITIES[0])


def pressure(medium: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pressure u at the centres of the cells, [size, size]: -∇·(a ∇u) = 1, u = 0 on the boundary.

    Args:
        medium: Permeability a at the centres, [size, size].
    """
    size = len(medium)
    centres, nodes = (np.arange(size) + 0.5) / size, np.linspace(0, 1, size)
    there = np.zeros((size, size))
    there[1:-1, 1:-1] = solve(RectBivariateSpline(centres, centres, medium)(nodes, nodes))
    found: NDArray[np.float64] = RectBivariateSpline(nodes, nodes, there)(centres, centres).T
    return found


def solve(medium: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pressure at the inner nodes of a grid, [m - 2, m - 2], by differences between five nodes and multigrid.

    Args:
        medium: Permeability at the nodes, [m, m].
    """
    inner = len(medium) - 2
    matrix, right = difference_matrix(medium), np.ones(inner**2)
    hierarchy = pyamg.ruge_stuben_solver(matrix, max_coarse=200)
    with warnings.catch_warnings(record=True):  # the residual says what came of it
        found = hierarchy.solve(right, tol=_TOLERANCE, accel="cg", maxiter=100)
    if not np.linalg.norm(matrix @ found - right) <= 10 * _TOLERANCE * inner:
        found = spsolve(matrix.tocsc(), right)  # where the spline overshoots far enough for a permeability below 0
    solution: NDArray[np.float64] = found.reshape(inner, inner)
    return solution


def difference_matrix(medium: NDArray[np.float64]) -> sp.csr_matrix:
    """The matrix of -∇·(a ∇u) at the inner nodes, with means of neighbouring nodes as permeability between them.

    Args:
        medium: Permeability at the nodes, [m, m].
    """
    inner = len(medium) - 2
    down, along = (medium[1:] + medium[:-1])[:, 1:-1] / 2, (medium[:, 1:] + medium[:, :-1])[1:-1] / 2
    middle = down[:-1] + down[1:] + along[:, :-1] + along[:, 1:]
    beside = along[:, 1:].copy()
    beside[:, -1] = 0.0  # rows of nodes end there
    below, next_to = -down[1:-1].ravel(), -beside.ravel()[:-1]
    matrix = sp.diags([middle.ravel(), below, below, next_to, next_to], [0, inner, -inner, 1, -1], format="csr")
    return matrix * (inner + 1) ** 2
