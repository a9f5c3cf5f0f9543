"""Conjugate gradients, and when they may stop: by the displacement that is left, not by forces alone.

A part that bends easily, a thin tilted plate above all, is moved far by forces that are small beside those of its
shrinking layers, and a preconditioner that misses such motions shows little of them: forces and corrections stay small
for dozens of iterations while hundredths of a millimetre are missing. The iterations tell how much they miss: they make
the Lanczos vectors of the preconditioned matrix, whose least eigenvalue (the least of a small tridiagonal matrix) says
by how much the preconditioner falls short for the motion that it knows worst.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh_tridiagonal

from lpbf_data.errors import LpbfError

_MAX_ITERATIONS: Final = 1000
_MAX_REMAINDER: Final = 1e-3  # mm; as estimated, which is more than is really left in most solutions
_TRIAL: Final = 1 / 30
"""How much further the first solution goes, by its corrections, to meet motions that the usual end doesn't show."""

_NOTHING: Final = 1e-300


class SolverError(LpbfError):
    """Equations that could not be solved; the run ends as failed."""


@dataclass
class Preconditioning:
    """How well a preconditioner knows a matrix.

    Attributes:
        rigid: Motions that nothing resists and that count for nothing, orthonormal, [3 n, k]; None for none.
        least: Least eigenvalue of the preconditioned matrix that solutions with it have met so far; None before the
            first.
    """

    rigid: NDArray[np.float64] | None = None
    least: float | None = None


@dataclass
class _Ending:
    """Whether a solution whose forces or corrections are small enough may end.

    Attributes:
        known: What is known of the preconditioner.
        learns: Whether the solution is of the matrix that the preconditioner is for, and so teaches about it.
        diagonal: Diagonal of the tridiagonal (Lanczos) matrix of the iterations so far.
        beside: Its off-diagonal.
        usual: Displacement where the solution would have ended, [n, 3], and its correction; None before.
    """

    known: Preconditioning
    learns: bool
    diagonal: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    usual: tuple[NDArray[np.float64], float] | None = None
    _last: tuple[float, float] = (1.0, 0.0)

    def saw(self, step: float, turn: float) -> None:
        """Take in the coefficients of an iteration: alpha (`step`) and beta (`turn`) of conjugate gradients."""
        before, _ = self._last
        if self.diagonal:
            self.beside.append(math.sqrt(max(turn, 0.0)) / before)
        self.diagonal.append(1 / step + (turn / before if self.diagonal else 0.0))
        self._last = step, turn

    def least(self) -> float:
        """Least eigenvalue that this solution or those before it have met."""
        found = 1.0 if self.known.least is None else self.known.least
        diagonal, beside = np.array(self.diagonal), np.array(self.beside)
        if not (np.isfinite(diagonal).all() and np.isfinite(beside).all()):
            return _NOTHING  # the solution has failed and must not end
        if len(diagonal):
            found = min(found, float(eigvalsh_tridiagonal(diagonal, beside, select="i", select_range=(0, 0))[0]))
        return max(found, _NOTHING)

    def found(self, moved: NDArray[np.float64], correction: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The displacement to end with, [n, 3], or None to go on.

        The first solution goes on for some iterations after its usual end, to learn how far off the preconditioner is.
        If that shows no motion that is missing, the displacement at the usual end is returned.
        """
        if self.known.rigid is not None:
            flat = correction.ravel()
            correction = flat - self.known.rigid @ (self.known.rigid.T @ flat)
        left, least = float(np.abs(correction).max()), self.least()
        if self.usual is None:
            self.usual = moved.copy(), left
        first = self.learns and self.known.least is None
        if not left <= least * _MAX_REMAINDER or (first and not left <= _TRIAL * self.usual[1]):
            return None
        if self.learns:
            self.known.least = least
        return self.usual[0] if self.usual[1] <= least * _MAX_REMAINDER else moved


def conjugate_gradients(
    apply: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    approximate: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    forces: NDArray[np.float64],
    goal: float,
    least_move: float = 0.0,
    known: Preconditioning | None = None,
) -> NDArray[np.float64]:
    """Displacements under forces, both [n, 3], by preconditioned conjugate gradients.

    Args:
        apply: Forces from displacements: symmetric, positive definite.
        approximate: Displacements from forces, nearly: the preconditioner.
        forces: The forces.
        goal: Norm of the forces that may stay out of balance.
        least_move: Displacement, by its largest component, that isn't worth another iteration, mm.
        known: What is known of the preconditioner, where it can be far off; the displacement that is left then has to
            be small too. With a `goal` the matrix is the preconditioner's own, and the solution adds to what is known.

    Raises:
        SolverError: If neither gets so small.
    """
    moved, rest = np.zeros_like(forces), forces.copy()
    direction, size = np.zeros_like(forces), 1.0
    ending = None if known is None else _Ending(known, learns=goal > 0)
    for _ in range(_MAX_ITERATIONS):
        balanced = float(np.linalg.norm(rest)) <= goal
        if balanced and ending is None:
            return moved
        guess = approximate(rest)
        if balanced or float(np.abs(guess).max()) <= least_move or (ending is not None and ending.usual is not None):
            if ending is None:
                return moved
            if (found := ending.found(moved, guess)) is not None:
                return found
        size, before = float(np.vdot(rest, guess)), size
        turn = size / before
        direction = guess + turn * direction
        pushed = apply(direction)
        step = size / float(np.vdot(direction, pushed))
        if ending is not None:
            ending.saw(step, turn)
        moved += step * direction
        rest -= step * pushed
    left = float(np.linalg.norm(rest)) / float(np.linalg.norm(forces))
    raise SolverError(f"the displacements did not converge: residual {left:.1e} after {_MAX_ITERATIONS} iterations")
