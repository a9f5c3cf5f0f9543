"""Tests of the simulator's solvers' products, and of what Cholesky makes of a plane of half stiffness."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from lpbf_data.geometry.voxel_mesh import VoxelMesh, mesh_of_mask
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.physics import stiffness as stiffness_module
from pipelines.simulation.physics.base_constraint import ElasticPlate, cut_free
from pipelines.simulation.physics.build_simulation import BuildSimulation
from pipelines.simulation.physics.dense_blocks import blocks_on
from pipelines.simulation.physics.elements import elastic_element
from pipelines.simulation.physics.equations import BaseConstraint
from pipelines.simulation.physics.iterations import SolverError
from pipelines.simulation.physics.multigrid.solver import Multigrid
from pipelines.simulation.physics.plane_cholesky import PlaneCholesky

pytestmark = pytest.mark.numeric

YOUNG, POISSON = 1e5, 0.3


def block_with_a_hole() -> VoxelMesh:
    filled = np.ones((5, 4, 6), dtype=bool)
    filled[2:4, 1:2, 1:4] = False
    return mesh_of_mask(filled, (0.0, 0.0, 0.0), (0.5, 0.6, 0.7))


def constraint_of(mesh: VoxelMesh, base: str) -> BaseConstraint:
    return ElasticPlate(mesh, YOUNG, POISSON).constraint if base == "plate" else cut_free(mesh)


def dense_stiffness(mesh: VoxelMesh, constraint: BaseConstraint, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """The stiffness without springs, assembled cell by cell, when each cell has a share of its own."""
    own = elastic_element(mesh.spacing, YOUNG, POISSON).stiffness
    whole = np.zeros((3 * mesh.num_points,) * 2)
    for cell, part in zip(mesh.cells, share, strict=True):
        dofs = (3 * cell[:, None] + np.arange(3)).ravel()
        whole[np.ix_(dofs, dofs)] += part * own
    above = mesh.num_points - constraint.weights.shape[0]
    onto = sp.kron(sp.block_diag([constraint.weights, sp.eye(above)]), sp.eye(3)).toarray()
    reduced: NDArray[np.float64] = onto.T @ whole @ onto
    if constraint.stiffness is not None:
        size = 3 * constraint.size
        reduced[:size, :size] += constraint.stiffness
    return reduced


DEVICES = ("cpu", "cpu:0", *(["cuda"] if torch.cuda.is_available() else []))
"""The processor by LAPACK, by PyTorch, and a GPU."""


@pytest.mark.parametrize("base", ["plate", "free"])
@pytest.mark.parametrize("kind", [*DEVICES, "multigrid"])
def test_a_solver_pushes_as_the_assembled_matrix_does(kind: str, base: str) -> None:
    mesh = block_with_a_hole()
    constraint = constraint_of(mesh, base)
    own = elastic_element(mesh.spacing, YOUNG, POISSON).stiffness
    solver: PlaneCholesky | Multigrid = Multigrid(mesh, own, constraint)
    if kind != "multigrid":
        solver = PlaneCholesky(mesh, own, constraint, blocks=blocks_on(kind))
    exact = dense_stiffness(mesh, constraint, np.ones(mesh.num_cells))
    moved = np.random.default_rng(1).standard_normal((len(exact) // 3, 3))
    for planes in (2, 6):  # grown in two steps
        solver.extend(planes)
    expected = (exact @ moved.ravel()).reshape(-1, 3)
    np.testing.assert_allclose(solver.push(moved), expected, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("plane", [2, 3, 4])
def test_a_plane_of_half_stiffness_is_solved_exactly(plane: int, device: str) -> None:
    mesh = block_with_a_hole()
    constraint = constraint_of(mesh, "plate")
    own = elastic_element(mesh.spacing, YOUNG, POISSON).stiffness
    solver = PlaneCholesky(mesh, own, constraint, halves=True, blocks=blocks_on(device))
    for planes in (2, 5):  # a group of two planes, then one of three
        solver.extend(planes)
    levels = mesh.indices[:, 2]
    exact = dense_stiffness(mesh, constraint, np.where(levels < plane, 1.0, np.where(levels == plane, 0.5, 0.0)))
    there = 3 * (constraint.size + int(np.searchsorted(mesh.point_levels, plane + 2) - constraint.weights.shape[0]))
    grown = 3 * (constraint.size + int(np.searchsorted(mesh.point_levels, 6) - constraint.weights.shape[0]))
    forces = np.random.default_rng(2).standard_normal(grown)
    forces[there:] = 0
    expected = np.linalg.solve(exact[:there, :there], forces[:there])
    found = solver.approximate_halved(forces.reshape(-1, 3), plane).ravel()
    np.testing.assert_allclose(found[:there], expected, atol=1e-5 * np.abs(expected).max())
    assert not found[there:].any()
    full = dense_stiffness(mesh, constraint, np.where(levels < 5, 1.0, 0.0))[:grown, :grown]
    expected = np.linalg.solve(full, forces)
    np.testing.assert_allclose(
        solver.solve(forces.reshape(-1, 3)).ravel(), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("device", DEVICES[1:])
def test_a_build_by_pytorch_is_that_by_lapack(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stiffness_module, "_DENSE_RATE", 1e30)
    monkeypatch.setattr(stiffness_module, "_GPU_RATE", 1e30)
    filled = np.ones((4, 4, 8), dtype=bool)
    filled[:2, :, :4] = False
    filled[0, 0, 1:4] = True  # hangs on nothing until the fifth plane
    mesh = mesh_of_mask(filled, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    one, other = (
        list(BuildSimulation(mesh, MATERIALS["Ti64"], refinement=1, device=name).frames()) for name in ("cpu", device)
    )
    scale = max(np.abs(frame.state.displacement).max() for frame in one)
    for here, there in zip(one, other, strict=True):
        np.testing.assert_allclose(there.state.displacement, here.state.displacement, atol=1e-6 * scale)
        np.testing.assert_allclose(there.temperature, here.temperature, rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_matrix_that_is_not_positive_definite_is_an_error(device: str) -> None:
    blocks = blocks_on(device)
    with pytest.raises(SolverError, match="can't be factored"):
        blocks.factor(blocks.array(np.diag([1.0, -1.0, 1.0])))


def test_planes_that_are_not_halved_keep_nothing_for_it() -> None:
    mesh = block_with_a_hole()
    stiffness = elastic_element(mesh.spacing, YOUNG, POISSON).stiffness
    solver = PlaneCholesky(mesh, stiffness, constraint_of(mesh, "free"))
    solver.extend(6)
    with pytest.raises(KeyError):
        solver.approximate_halved(np.ones((mesh.num_points, 3)), 5)
