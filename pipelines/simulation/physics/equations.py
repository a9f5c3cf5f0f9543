"""What both solvers of a growing part share: how its base moves, what ties its nodes, and what they are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pipelines.simulation.physics.iterations import Preconditioning

SPRING: Final = 1e-9
# Share of a cell's stiffness that ties every node to where it is, as loose powder does. It matters only where a piece
# hangs on nothing, or by an edge: loads of inherent strains balance on each piece, so nothing pulls at the springs.


@dataclass(frozen=True)
class BaseConstraint:
    """How the nodes of a part's lowest plane move: a linear map from unknowns, each a displacement along x, y and z.

    Attributes:
        points: Where the unknowns are, mm, [q, 3].
        weights: Displacement of the nodes from that of the unknowns, sparse, [nodes of the lowest plane, q].
        stiffness: What resists the unknowns, [3 q, 3 q], N/mm; None for nothing.
    """

    points: NDArray[np.float64]
    weights: sp.csr_matrix
    stiffness: NDArray[np.float64] | None = None

    @property
    def size(self) -> int:
        """Number of unknowns, of three components each."""
        return len(self.points)

    def reduce(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        """Forces on the unknowns and the nodes above, [q + above, 3], from those on all nodes.

        Args:
            forces: Forces on nodes, those of the lowest plane first, [n, 3].
        """
        base = self.weights.shape[0]
        return np.concatenate([self.weights.T @ forces[:base], forces[base:]])

    def expand(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacement of all nodes, [n, 3], from that of the unknowns and the nodes above.

        Args:
            moved: Displacement of the unknowns, then of the nodes above, [q + above, 3].
        """
        return np.concatenate([self.weights @ moved[: self.size], moved[self.size :]])


class Stiffness(Protocol):
    """The stiffness of the cells below some height on their constrained base.

    Attributes:
        known: How well `approximate` knows the stiffness, where that can be badly.
    """

    known: Preconditioning | None

    def extend(self, cell_planes: int) -> None:
        """Add cells up to (not including) a plane of cells.

        Raises:
            SolverError: If the equations can't be factored.
        """
        ...

    def push(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """Forces [q + above, 3] that displacements of the base's unknowns and the nodes above take, without springs.

        Args:
            moved: [q + above, 3].
        """
        ...

    def solve(self, forces: NDArray[np.float64], goal: float) -> NDArray[np.float64]:
        """Displacements [q + above, 3] of the base's unknowns and the nodes above under as many forces.

        Args:
            forces: On the unknowns and the nodes above, [q + above, 3].
            goal: Norm of the forces that may stay out of balance.

        Raises:
            SolverError: If no solution is found.
        """
        ...

    def approximate(self, forces: NDArray[np.float64]) -> NDArray[np.float64]:
        """What `solve` gives, or something near to it at less cost: a symmetric preconditioner."""
        ...

    def approximate_halved(self, forces: NDArray[np.float64], plane: int) -> NDArray[np.float64]:
        """A symmetric preconditioner for when a plane of cells has half of its stiffness and those above have none.

        Args:
            forces: On the unknowns and the nodes above, [q + above, 3]; 0 on nodes above the plane.
            plane: The plane of cells, one of those that the last extension added.

        Raises:
            SolverError: If there is none.
        """
        ...


def plane_starts(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the first item of each plane, and of the end; items are sorted by plane.

    Args:
        levels: Plane of each item, [n].
    """
    return np.searchsorted(levels, np.arange(int(levels[-1]) + 2))


def spring_of(stiffness: NDArray[np.float64]) -> float:
    """The spring that ties a node to where it is, N/mm, along each axis.

    Args:
        stiffness: Stiffness of a cell, [24, 24], or of each, [e, 24, 24].
    """
    return SPRING * float(np.diagonal(stiffness, axis1=-2, axis2=-1).mean())
