"""Hexahedra with moved corners: patch test, closed forms, and the simulator on them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import spsolve

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.voxel_mesh import VoxelMesh, mesh_of_mask
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.physics import mechanics as mechanics_module
from pipelines.simulation.physics import stiffness as stiffness_module
from pipelines.simulation.physics.build_simulation import BuildSimulation
from pipelines.simulation.physics.elements import elastic_element, elasticity_matrix
from pipelines.simulation.physics.floating_pieces import free_motions
from pipelines.simulation.physics.mechanics import Mechanics
from pipelines.simulation.physics.moved_elements import MovedElements, elements_of, moved_elements, moved_mesh
from pipelines.simulation.physics.multigrid.solver import Multigrid
from pipelines.simulation.physics.plane_cholesky import PlaneCholesky
from tests.pipelines.test_simulation_mechanics import POISSON, YOUNG, block, no_strain, overhang

pytestmark = pytest.mark.numeric

GRADIENT = np.array([[1.0, 0.4, -0.2], [0.3, -0.7, 0.5], [-0.1, 0.2, 0.6]])


def distorted(mesh: VoxelMesh, by: float, seed: int = 0) -> VoxelMesh:
    """Every point moved by up to a share of a cell's edges, those on the surface too."""
    shift = np.random.default_rng(seed).uniform(-by, by, (mesh.num_points, 3)) * mesh.spacing
    return moved_mesh(mesh, shift)


def assemble(mesh: VoxelMesh, elements: MovedElements) -> sp.csr_matrix:
    dofs = (3 * mesh.cells[:, :, None].astype(int) + np.arange(3)).reshape(-1, 24)
    rows, columns = np.repeat(dofs, 24, axis=1).ravel(), np.tile(dofs, (1, 24)).ravel()
    size = 3 * mesh.num_points
    return sp.csr_matrix((elements.stiffness.ravel(), (rows, columns)), shape=(size, size))


def of_gradient(gradient: NDArray[np.float64]) -> NDArray[np.float64]:
    """Strain of a linear displacement, [6]."""
    both = gradient + gradient.T
    return np.array([*np.diag(gradient), both[0, 1], both[0, 2], both[1, 2]])


def test_on_a_box_it_is_the_element_of_boxes() -> None:
    spacing = (2.0, 0.7, 1.1)
    mesh = block(2, 1, 1, spacing)
    one = elastic_element(spacing, YOUNG, POISSON)
    found = moved_elements(mesh.points[mesh.cells], YOUNG, POISSON)
    for k in range(2):
        np.testing.assert_allclose(found.stiffness[k], one.stiffness, atol=1e-11 * one.stiffness.max())
        np.testing.assert_allclose(found.load[k], one.load, atol=1e-11 * one.load.max())
    moved = np.random.default_rng(0).normal(size=(2, 24))
    strains = np.random.default_rng(1).normal(size=(2, 6))
    np.testing.assert_allclose(found.corner_strains(moved), one.corner_strains(moved), atol=1e-12)
    np.testing.assert_allclose(found.forces(moved), one.forces(moved), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(
        found.initial_strain_forces(strains), one.initial_strain_forces(strains), rtol=1e-9, atol=1e-6
    )


def test_the_patch_test_on_distorted_cells() -> None:
    """With the surface moved linearly the inside follows, and the strain is the same everywhere."""
    mesh = distorted(block(3, 4, 3, (1.0, 0.8, 1.3)), 0.25)
    elements = moved_elements(mesh.points[mesh.cells], YOUNG, POISSON)
    inner = np.bincount(mesh.cells.ravel(), minlength=mesh.num_points) == 8
    linear = mesh.points @ GRADIENT.T
    free = np.repeat(inner, 3)
    matrix, found = assemble(mesh, elements), linear.ravel().copy()
    found[free] = spsolve(matrix[free][:, free].tocsc(), -(matrix[free][:, ~free] @ found[~free]))
    np.testing.assert_allclose(found.reshape(-1, 3), linear, atol=1e-11)
    strains = elements.corner_strains(found.reshape(-1, 3)[mesh.cells].reshape(-1, 24))
    np.testing.assert_allclose(strains, np.broadcast_to(of_gradient(GRADIENT), strains.shape), atol=1e-10)


def test_energy_load_and_motions_of_one_distorted_cell() -> None:
    mesh = distorted(block(1, 1, 1, (2.0, 0.7, 1.1)), 0.2, seed=3)
    corners = mesh.points[mesh.cells]
    element = moved_elements(corners, YOUNG, POISSON)
    values = np.linalg.eigvalsh(element.stiffness[0])
    assert np.abs(values[:6]).max() < 1e-9 * values[-1]
    assert values[6] > 1e-4 * values[-1]
    # Of a constant strain the energy is that of the volume, and a load does the work of its stress.
    (volume,) = volumes(corners)
    moved = (corners @ GRADIENT.T).reshape(1, 24)
    strain, elasticity = of_gradient(GRADIENT), elasticity_matrix(YOUNG, POISSON)
    assert (moved @ element.forces(moved).T).item() == pytest.approx(volume * strain @ elasticity @ strain, rel=1e-9)
    wanted = np.array([[1.0, -2.0, 0.5, 0.3, 0.7, -0.4]])
    work = (moved @ element.initial_strain_forces(wanted).T).item()
    assert work == pytest.approx(volume * strain @ elasticity @ wanted[0], rel=1e-9)


def volumes(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """By the divergence theorem over the six bilinear faces, each by Gauss points, [e]."""
    faces = ((0, 3, 2, 1), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7))
    found, gauss = np.zeros(len(corners)), (-1 / np.sqrt(3), 1 / np.sqrt(3))
    for face, s, t in itertools.product(faces, gauss, gauss):
        a, b, c, d = (corners[:, k] for k in face)
        low, high = (1 - s) * a + (1 + s) * b, (1 - s) * d + (1 + s) * c
        along_s = ((1 - t) * (b - a) + (1 + t) * (c - d)) / 4
        place = ((1 - t) * low + (1 + t) * high) / 4
        found += np.einsum("ei,ei->e", place, np.cross(along_s, (high - low) / 4)) / 3
    return found


def test_a_beam_of_skew_cells_bends_nearly_as_the_closed_form_says() -> None:
    """Two layers (Timoshenko 1925, as for boxes), with every other plane of nodes along the beam leaning by a third."""
    planes, spacing, strain = 4, (1.0, 1.0, 0.5), -1e-3
    mesh = block(40, 1, planes, spacing)
    lean = np.zeros((mesh.num_points, 3))
    inside = (mesh.point_indices[:, 0] % 40 > 0) & (mesh.point_indices[:, 0] % 2 == 1)
    lean[inside, 0] = (mesh.points[inside, 2] / (planes * spacing[2]) - 0.5) * 0.33
    skew = moved_mesh(mesh, lean)
    mechanics = Mechanics(skew, elements_of(skew, YOUNG, POISSON), no_strain(skew), (planes,))
    mechanics.add_layer(np.zeros(skew.num_cells))
    mechanics.shrink_layer()
    mechanics.release()
    state = mechanics.heat(np.where(skew.indices[:, 2] >= planes - 1, strain, 0.0))
    thickness, m = planes * spacing[2], 1 / (planes - 1)
    expected = 6 * abs(strain) * (1 + m) ** 2 / (thickness * (3 * (1 + m) ** 2 + (1 + m) * (m**2 + 1 / m)))
    line = (np.abs(mesh.points[:, 0] - 20) < 10.1) & (mesh.point_indices[:, 2] == 0) & (mesh.point_indices[:, 1] == 0)
    curvature = 2 * np.polyfit(skew.points[line, 0], state.displacement[line, 2], 2)[0]
    assert curvature == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("kind", [PlaneCholesky, Multigrid])
def test_boxes_moved_into_longer_boxes_are_those_boxes(
    kind: type[PlaneCholesky | Multigrid], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of the mechanics, pieces that hang on nothing and a softened cut included, with a matrix a cell."""
    monkeypatch.setattr(stiffness_module, "_DENSE_RATE", 1e30 if kind is PlaneCholesky else 1e-30)
    # Iterations go on beyond what a simulation needs, so that where they end is no matter of a processor's rounding.
    for bound in ("_GOAL", "_MIN_MOVE"):
        monkeypatch.setattr(mechanics_module, bound, 0.1 * getattr(mechanics_module, bound))
    mesh = overhang()
    longer = mesh_of_mask(_mask(mesh), mesh.origin, (1.3, 1.2, 0.8))
    moved = moved_mesh(mesh, longer.points - mesh.points)
    strains = np.random.default_rng(0).normal(-3e-3, 1e-3, (mesh.num_cells, 6))
    states = []
    for one in (longer, moved):
        mechanics = Mechanics(one, elements_of(one, YOUNG, POISSON), strains, (2, 4, 6))
        for planes in (2, 4, 6):
            mechanics.add_layer(np.full(int((mesh.indices[:, 2] < planes).sum()), 1e-3))
            mechanics.shrink_layer()
        mechanics.heat(0.0)
        states.append(mechanics.release(kept=np.where(mesh.indices[:, 2] == 0, 0.1, 1.0)))
    assert isinstance(elements_of(moved, YOUNG, POISSON), MovedElements)
    for name in ("displacement", "strain", "stress", "inherent"):
        one, other = (getattr(state, name) for state in states)
        scale = np.abs(one).max()
        np.testing.assert_allclose(other, one, atol=(1e-7 if kind is PlaneCholesky else 1e-3) * scale)


def _mask(mesh: VoxelMesh) -> NDArray[np.bool_]:
    mask = np.zeros(mesh.shape, bool)
    mask[tuple(mesh.indices.T)] = True
    return mask


def test_motions_that_nothing_resists_with_a_matrix_a_cell() -> None:
    mesh = overhang()
    moved = distorted(mesh, 0.1)
    assert free_motions(moved, 6, elements_of(moved, YOUNG, POISSON).stiffness) is None
    free = free_motions(moved, 4, elements_of(moved, YOUNG, POISSON).stiffness)
    assert free is not None
    assert free.shape[1] == 6  # the tip that hangs on nothing


def test_the_field_of_a_moved_part_is_another_and_follows_the_move() -> None:
    """Twice the move changes the field twice as much, but for what is of second order; none changes nothing."""
    mask = np.zeros((8, 3, 5), bool)
    mask[:2], mask[:, :, 3:] = True, True
    mesh = mesh_of_mask(mask, (0, 0, 0), (2.0, 2.0, 1.0))
    x, _, z = mesh.points.T
    shift = 0.03 * np.stack([0 * x, z / 5, (x / 8) ** 2], axis=1)
    fields = []
    for share in (0.0, 1.0, 2.0):
        simulation = BuildSimulation(moved_mesh(mesh, share * shift), MATERIALS["Ti64"])
        fields.append([*simulation.frames()][-1].state.displacement)
    plain = [*BuildSimulation(mesh, MATERIALS["Ti64"]).frames()][-1].state.displacement
    np.testing.assert_allclose(fields[0], plain, atol=1e-9)
    first, second = (field - fields[0] for field in fields[1:])
    size = np.linalg.norm(first)
    assert size > 1e-3 * np.linalg.norm(plain)
    assert np.linalg.norm(second - 2 * first) < 0.1 * size


def test_a_cell_that_would_be_turned_inside_out_is_told_where() -> None:
    mesh = block(3, 3, 3)
    shift = np.zeros((mesh.num_points, 3))
    shift[(mesh.points == (1, 1, 1)).all(axis=1)] = (1.2, 0, 0)
    with pytest.raises(GeometryError, match=r"cells would be turned inside out, one at x 1\.\d+, y"):
        moved_mesh(mesh, shift)
