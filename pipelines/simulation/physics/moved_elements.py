"""Matrices of hexahedra whose corners were moved, one set per cell: the boxes' element on any shape.

Displacements are trilinear on the reference cube, with the same incompatible modes. Gradients of the modes are taken
with the Jacobian at the middle of the cell and scaled by its determinant over that at the point (Taylor, Beresford,
Wilson 1976): they then do no work against any constant stress, so that cells of any shape pass the patch test; on a box
the element is that of `elements`. Integration is by 2 x 2 x 2 Gauss points, which is exact on boxes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.hexahedra import HEX8_CORNERS
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.physics.elements import ElasticElement, elastic_element, elasticity_matrix

_CORNERS: Final = 2.0 * HEX8_CORNERS - 1.0  # of the reference cube, from -1 to 1
_GAUSS: Final = np.array(list(itertools.product((-1 / math.sqrt(3), 1 / math.sqrt(3)), repeat=3)))  # weights are 1
_SHEARS: Final = ((0, 1), (0, 2), (1, 2))
_TOGETHER: Final = 2048
"""Cells whose matrices are made at once."""


@dataclass(frozen=True)
class MovedMesh(VoxelMesh):
    """A mesh of boxes whose points were moved; planes and columns of cells are counted as before the move.

    Attributes:
        coordinates: Of the points, mm, [N, 3].
    """

    coordinates: NDArray[np.float64] | None = None

    @property
    def points(self) -> NDArray[np.float64]:
        """Coordinates in mm, [N, 3]."""
        assert self.coordinates is not None
        return self.coordinates


def moved_mesh(mesh: VoxelMesh, shift: NDArray[np.float64]) -> MovedMesh:
    """A mesh with moved points.

    Args:
        mesh: Boxes.
        shift: mm, [N, 3].

    Raises:
        GeometryError: If a cell is turned inside out at a corner.
    """
    moved = MovedMesh(
        *(mesh.origin, mesh.spacing, mesh.shape, mesh.indices, mesh.left_out, mesh.lowered, mesh.surplus),
        coordinates=mesh.points + shift,
    )
    corners = moved.points[moved.cells]
    broken = np.zeros(len(corners), bool)
    for local in _CORNERS:
        broken |= np.linalg.det(_jacobians(corners, local)) <= 0
    if broken.any():
        x, y, z = corners[broken][0].mean(axis=0)
        raise GeometryError(
            f"{int(broken.sum()):,} cells would be turned inside out, one at x {x:.2f}, y {y:.2f}, z {z:.2f} mm: the "
            "displacement is larger than the part there can be moved by; mesh it with fewer points, or thicken it"
        )
    return moved


@dataclass(frozen=True)
class MovedElements:
    """Matrices of hexahedra of a linear elastic material, for the first cells of a mesh as many as are asked for.

    Attributes:
        stiffness: [e, 24, 24], N/mm.
        load: Nodal forces of a cell with held nodes for each unit of stress-free strain, [e, 24, 6].
        bubbles: Incompatible modes from the corners' displacements, [e, 9, 24].
        corners: Coordinates of the corners, mm, [e, 8, 3].
        elasticity: Stress from strain, [6, 6], MPa.
    """

    stiffness: NDArray[np.float64]
    load: NDArray[np.float64]
    bubbles: NDArray[np.float64]
    corners: NDArray[np.float64]
    elasticity: NDArray[np.float64]

    def forces(self, moved: NDArray[np.float64], first: int = 0) -> NDArray[np.float64]:
        """Forces [e, 24] that displacements of the corners, [e, 24], take; number `first` is the first."""
        return _each(self.stiffness[first:], moved)

    def initial_strain_forces(self, strains: NDArray[np.float64]) -> NDArray[np.float64]:
        """Nodal forces [e, 24] that stress-free strains [e, 6] exert where all nodes are held."""
        return _each(self.load, strains)

    def corner_strains(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """Strains at the corners, [e, 8, 6], from displacements of the corners, [e, 24]."""
        found = np.empty((len(moved), 8, 6))
        for start in range(0, len(moved), _TOGETHER):
            here = slice(start, min(start + _TOGETHER, len(moved)))
            modes = _each(self.bubbles[here], moved[here])
            middle = _jacobians(self.corners[here], np.zeros(3))
            for k, local in enumerate(_CORNERS):
                nodes, inner, _ = _strains_at(self.corners[here], middle, local)
                found[here, k] = _each(nodes, moved[here]) + _each(inner, modes)
        return found


def _each(matrices: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products of the first matrices with as many vectors, [e, n]."""
    found: NDArray[np.float64] = np.matmul(matrices[: len(vectors)], vectors[:, :, None])[:, :, 0]
    return found


def elements_of(mesh: VoxelMesh, young: float, poisson: float) -> ElasticElement | MovedElements:
    """Matrices of the cells of a mesh: one for all where they are equal boxes.

    Args:
        mesh: The mesh.
        young: Young's modulus, MPa.
        poisson: Poisson's ratio.
    """
    if isinstance(mesh, MovedMesh):
        return moved_elements(mesh.points[mesh.cells], young, poisson)
    return elastic_element(mesh.spacing, young, poisson)


def moved_elements(corners: NDArray[np.float64], young: float, poisson: float) -> MovedElements:
    """Matrices of hexahedra.

    Args:
        corners: Coordinates in the order of VTK, mm, [e, 8, 3].
        young: Young's modulus, MPa.
        poisson: Poisson's ratio.
    """
    count, elasticity = len(corners), elasticity_matrix(young, poisson)
    stiffness, load, bubbles = np.empty((count, 24, 24)), np.empty((count, 24, 6)), np.empty((count, 9, 24))
    for start in range(0, count, _TOGETHER):
        here = slice(start, start + _TOGETHER)
        stiffness[here], load[here], bubbles[here] = _matrices(corners[here], elasticity)
    return MovedElements(stiffness, load, bubbles, corners, elasticity)


def _matrices(
    corners: NDArray[np.float64], elasticity: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Stiffness, load and bubbles of a few cells; the bubbles are condensed out of each."""
    count = len(corners)
    outer, cross, inner = np.zeros((count, 24, 24)), np.zeros((count, 9, 24)), np.zeros((count, 9, 9))
    load = np.zeros((count, 24, 6))
    middle = _jacobians(corners, np.zeros(3))
    for local in _GAUSS:
        nodes, modes, volume = _strains_at(corners, middle, local)
        stressed = volume[:, None, None] * (elasticity @ nodes)
        outer += np.swapaxes(nodes, 1, 2) @ stressed
        cross += np.swapaxes(modes, 1, 2) @ stressed
        inner += np.swapaxes(modes, 1, 2) @ (volume[:, None, None] * (elasticity @ modes))
        load += np.swapaxes(stressed, 1, 2)
    bubbles = np.asarray(-np.linalg.solve(inner, cross), np.float64)
    stiffness = outer + np.swapaxes(cross, 1, 2) @ bubbles
    return (stiffness + np.swapaxes(stiffness, 1, 2)) / 2, load, bubbles


def _jacobians(corners: NDArray[np.float64], local: NDArray[np.float64]) -> NDArray[np.float64]:
    """Derivatives of the coordinates by those of the reference cube, [e, reference, coordinate]."""
    found: NDArray[np.float64] = np.einsum("ck,eci->eki", _slopes(local), corners)
    return found


def _slopes(local: NDArray[np.float64]) -> NDArray[np.float64]:
    """Derivatives of the corners' functions at a point of the reference cube, [8, 3]."""
    factors = 1 + _CORNERS * local
    others = [factors[:, (k + 1) % 3] * factors[:, (k + 2) % 3] for k in range(3)]
    return _CORNERS * np.stack(others, axis=1) / 8


def _strains_at(
    corners: NDArray[np.float64], middle: NDArray[np.float64], local: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Strains at a point of the reference cube from the corners' displacements [e, 6, 24] and from the modes [e, 6, 9].

    Args:
        corners: [e, 8, 3].
        middle: Jacobians at the middle of the cells, [e, 3, 3].
        local: That point, in coordinates from -1 to 1, [3].

    Returns:
        Both, and the determinant of the Jacobian, [e].
    """
    jacobian = _jacobians(corners, local)
    volume = np.linalg.det(jacobian)
    slopes = np.swapaxes(np.linalg.solve(jacobian, np.broadcast_to(_slopes(local).T, (len(corners), 3, 8))), 1, 2)
    # Of 1 - x² on the reference cube along each axis.
    bent = np.linalg.solve(middle, np.broadcast_to(np.diag(-2 * local), middle.shape))
    bent = np.swapaxes(bent, 1, 2) * (np.linalg.det(middle) / volume)[:, None, None]
    return _strain_matrix(slopes), _strain_matrix(bent), volume


def _strain_matrix(slopes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Strains of functions whose gradients are given, [e, f, 3], times a displacement each: [e, 6, 3 f]."""
    count, functions = slopes.shape[:2]
    found = np.zeros((count, 6, functions, 3))
    for k in range(3):
        found[:, k, :, k] = slopes[:, :, k]
    for row, (i, j) in enumerate(_SHEARS, 3):
        found[:, row, :, i] = slopes[:, :, j]
        found[:, row, :, j] = slopes[:, :, i]
    return found.reshape(count, 6, 3 * functions)
