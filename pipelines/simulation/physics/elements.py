"""Matrices of one box-shaped element; all cells of a mesh are alike, so they share them.

Displacements are trilinear with incompatible modes (Wilson et al. 1973, Taylor et al. 1976): three quadratic bubbles a
component, condensed out of the element. On boxes this element passes the patch test and bends without locking, which
matters where a wall is one cell thick. Integration and shape functions are scikit-fem's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from skfem import Basis, BilinearForm, ElementHex1, ElementVector, MeshHex
from skfem.helpers import dot, grad
from skfem.models.elasticity import lame_parameters

from lpbf_data.geometry.hexahedra import HEX8_CORNERS

STRAINS: Final = ("xx", "yy", "zz", "xy", "xz", "yz")
"""Order of strains and stresses; shear strains are engineering strains, twice the tensor's."""


class _BubbleHex(ElementHex1):  # type: ignore[misc]
    """The trilinear hexahedron with a bubble x (1 - x) along each axis, which doesn't vanish on its neighbours."""

    interior_dofs = 3
    maxdeg = 4
    dofnames = ("u", "a", "b", "c")
    doflocs = np.concatenate([ElementHex1.doflocs, np.full((3, 3), 0.5)])

    def lbasis(self, X: NDArray[np.float64], i: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # noqa: N803
        """Value and gradient of basis function i at points of the reference cube."""
        if i < 8:
            value, gradient = super().lbasis(X, i)
            return value, np.asarray(gradient)
        axis = i - 8
        slope = np.zeros_like(X)
        slope[axis] = 4 - 8 * X[axis]
        return 4 * X[axis] * (1 - X[axis]), slope


@dataclass(frozen=True)
class ElasticElement:
    """Matrices of a box of a linear elastic material; displacements are ordered corner by corner, x y z within.

    Attributes:
        stiffness: [24, 24], N/mm.
        load: Nodal forces of an element with held nodes for each unit of stress-free strain, [24, 6].
        strain: Strains at the corners from displacements, [8, 6, 24].
        elasticity: Stress from strain, [6, 6], MPa.
    """

    stiffness: NDArray[np.float64]
    load: NDArray[np.float64]
    strain: NDArray[np.float64]
    elasticity: NDArray[np.float64]

    def forces(self, moved: NDArray[np.float64], first: int = 0) -> NDArray[np.float64]:  # noqa: ARG002 (equal cells)
        """Forces [e, 24] that displacements of the corners of cells, [e, 24], take; number `first` is the first."""
        return moved @ self.stiffness

    def initial_strain_forces(self, strains: NDArray[np.float64]) -> NDArray[np.float64]:
        """Nodal forces [e, 24] that stress-free strains [e, 6] exert where all nodes are held."""
        return strains @ self.load.T

    def corner_strains(self, moved: NDArray[np.float64]) -> NDArray[np.float64]:
        """Strains at the corners of cells, [e, 8, 6], from displacements of the corners, [e, 24]."""
        return (moved @ self.strain.reshape(48, 24).T).reshape(-1, 8, 6)


@dataclass(frozen=True)
class ThermalElement:
    """Matrices of a box for heat conduction.

    Attributes:
        conduction: For a conductivity of 1, [8, 8].
        volume: mm³.
    """

    conduction: NDArray[np.float64]
    volume: float


def _box(spacing: tuple[float, float, float]) -> MeshHex:
    return MeshHex.init_tensor(*(np.array([0.0, size]) for size in spacing))


def _corner_order(mesh: MeshHex) -> NDArray[np.intp]:
    """For each corner in the order of VTK, its number in scikit-fem's mesh of one cell."""
    unit = (mesh.p / mesh.p.max(axis=1, keepdims=True)).T
    return np.array([int(np.argmin(np.abs(unit - corner).sum(axis=1))) for corner in HEX8_CORNERS])


def _strains_at(basis: Basis) -> NDArray[np.float64]:
    """Strains at the quadrature points from all degrees of freedom, [points, 6, dofs]."""
    local = np.stack([function[0].grad[:, :, 0, :] for function in basis.basis])  # [function, i, j, point]
    gradients = local[np.argsort(basis.element_dofs[:, 0])]
    rows = [gradients[:, i, i] for i in range(3)]
    rows += [gradients[:, i, j] + gradients[:, j, i] for i, j in ((0, 1), (0, 2), (1, 2))]
    return np.transpose(np.stack(rows), (2, 0, 1))


def elasticity_matrix(young: float, poisson: float) -> NDArray[np.float64]:
    """Stress from strain for an isotropic material, [6, 6], in the order of `STRAINS`.

    Args:
        young: Young's modulus, MPa.
        poisson: Poisson's ratio.
    """
    lam, mu = lame_parameters(young, poisson)
    matrix = np.zeros((6, 6))
    matrix[:3, :3] = lam
    matrix[np.arange(3), np.arange(3)] += 2 * mu
    matrix[np.arange(3, 6), np.arange(3, 6)] = mu
    return matrix


def elastic_element(spacing: tuple[float, float, float], young: float, poisson: float) -> ElasticElement:
    """Matrices of an elastic box.

    Args:
        spacing: Its edges, mm.
        young: Young's modulus, MPa.
        poisson: Poisson's ratio.
    """
    mesh = _box(spacing)
    element = ElementVector(_BubbleHex())
    basis = Basis(mesh, element, intorder=4)
    elasticity, strains, weights = elasticity_matrix(young, poisson), _strains_at(basis), basis.dx[0]
    full = np.einsum("qsd,qse,q->de", strains, elasticity @ strains, weights, optimize=True)
    outer = basis.nodal_dofs[:, _corner_order(mesh)].T.ravel()
    inner = basis.interior_dofs.ravel()
    bubbles = -np.linalg.solve(full[np.ix_(inner, inner)], full[np.ix_(inner, outer)])
    stiffness = full[np.ix_(outer, outer)] + full[np.ix_(outer, inner)] @ bubbles
    load = np.einsum("qsd,st,q->dt", strains[:, :, outer], elasticity, weights)
    corners = _strains_at(Basis(mesh, element, quadrature=(_reference_corners(mesh), np.ones(8))))
    strain = corners[:, :, outer] + corners[:, :, inner] @ bubbles
    return ElasticElement((stiffness + stiffness.T) / 2, load, strain, elasticity)


def _reference_corners(mesh: MeshHex) -> NDArray[np.float64]:
    """Coordinates of the corners, in VTK's order, on scikit-fem's reference cube, [3, 8]."""
    points = (HEX8_CORNERS * mesh.p.max(axis=1)).T
    return np.asarray(mesh.mapping().invF(points[:, None, :], tind=np.array([0])))[:, 0, :]


@BilinearForm  # type: ignore[untyped-decorator]
def _laplace(u: object, v: object, _: object) -> object:
    return dot(grad(u), grad(v))


def thermal_element(spacing: tuple[float, float, float]) -> ThermalElement:
    """Matrices of a box for heat conduction.

    Args:
        spacing: Its edges, mm.
    """
    mesh = _box(spacing)
    basis = Basis(mesh, ElementHex1(), intorder=2)
    order = basis.nodal_dofs[0, _corner_order(mesh)]
    conduction = _laplace.assemble(basis).toarray()[np.ix_(order, order)]
    return ThermalElement((conduction + conduction.T) / 2, float(np.prod(spacing)))
