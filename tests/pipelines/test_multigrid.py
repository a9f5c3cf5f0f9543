"""Tests of the simulator's multigrid: its kernels against SciPy and pyamg."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyamg
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyamg.amg_core.relaxation import gauss_seidel

from lpbf_data.geometry.voxel_mesh import VoxelMesh, mesh_of_mask
from pipelines.simulation.physics.elements import elastic_element
from pipelines.simulation.physics.equations import BaseConstraint
from pipelines.simulation.physics.floating_pieces import rigid_body_modes
from pipelines.simulation.physics.multigrid import block_kernels, transfer
from pipelines.simulation.physics.multigrid.block_rows import LANES, BlockRows, Product, Smoother
from pipelines.simulation.physics.multigrid.hierarchy import Hierarchy
from pipelines.simulation.physics.multigrid.solver import Multigrid
from pipelines.simulation.physics.plane_cholesky import PlaneCholesky


def random_matrix(size: int, nodes: int, seed: int) -> sp.bsr_matrix:
    """A symmetric, positive definite matrix in blocks, of which some rows are equal but for their place."""
    rng = np.random.default_rng(seed)
    places = sp.random(nodes, nodes, 0.2, random_state=rng) + sp.eye(nodes)
    pattern = ((places + places.T) != 0).astype(float).tobsr((1, 1))
    block = np.round(rng.standard_normal((size, size)), 1)
    data = np.repeat((block + block.T)[None], len(pattern.indices), axis=0)
    rows = np.repeat(np.arange(nodes), np.diff(pattern.indptr))
    data[rows == pattern.indices] += 3 * size * nodes * np.eye(size)
    return sp.bsr_matrix((data, pattern.indices, pattern.indptr), shape=(size * nodes, size * nodes))


def part(shape: tuple[int, int, int] = (6, 5, 9)) -> tuple[sp.bsr_matrix, NDArray[np.float64]]:
    """Stiffness and rigid-body motions of a block with a hole."""
    filled = np.ones(shape, dtype=bool)
    filled[2:4, 2:3] = False
    mesh = mesh_of_mask(filled, (0, 0, 0), (0.5, 0.6, 0.7))
    base = int(np.count_nonzero(mesh.point_levels == 0))
    solver = Multigrid(mesh, elastic_element(mesh.spacing, 1e5, 0.3).stiffness, clamped(mesh, base))
    solver.extend(shape[2])
    return solver._matrix, rigid_body_modes(mesh.points)


def clamped(mesh: VoxelMesh, base: int) -> BaseConstraint:
    return BaseConstraint(mesh.points[:base], sp.eye(base, format="csr"), 1e5 * np.eye(3 * base))


def padded(values: NDArray[Any], size: int) -> NDArray[np.float32]:
    whole = np.zeros((len(values) // size, LANES[size]), dtype=np.float32)
    whole[:, :size] = values.reshape(-1, size)
    return whole.ravel()


def bare(values: NDArray[Any], size: int) -> NDArray[Any]:
    return np.asarray(values.reshape(-1, LANES[size])[:, :size]).ravel()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([3, 6]), st.integers(1, 40), st.integers(0, 1000))
def test_sweeps_and_residuals_are_those_of_pyamg(size: int, nodes: int, seed: int) -> None:
    matrix = random_matrix(size, nodes, seed)
    plain = matrix.tocsr().astype(np.float32)
    right = np.random.default_rng(seed).standard_normal(size * nodes).astype(np.float32)
    smoother = Smoother(BlockRows.of(matrix))
    moved, wanted = padded(np.zeros(size * nodes), size), np.zeros(size * nodes, dtype=np.float32)
    for backward in (False, True, False):
        smoother.sweep(moved, padded(right, size), backward=backward)
        start, end, step = (size * nodes - 1, -1, -1) if backward else (0, size * nodes, 1)
        gauss_seidel(plain.indptr, plain.indices, plain.data, wanted, right, start, end, step)
        assert np.allclose(bare(moved, size), wanted, atol=2e-6 * np.abs(wanted).max())
    rest = bare(smoother.residual(moved, padded(right, size)), size)
    assert np.allclose(rest, right - plain @ bare(moved, size), atol=1e-4)
    assert not moved.reshape(-1, LANES[size])[:, size:].any()


def test_numbers_that_nothing_decides_stay_as_they_are() -> None:
    matrix = random_matrix(6, 12, 1).toarray()
    matrix[[9, 40]] = 0
    matrix[:, [9, 40]] = 0
    smoother = Smoother(BlockRows.of(sp.bsr_matrix(matrix, blocksize=(6, 6))))
    moved = padded(np.arange(72.0), 6)
    smoother.sweep(moved, padded(np.ones(72), 6), backward=False)
    assert np.isfinite(moved).all()
    assert bare(moved, 6)[[9, 40]].tolist() == [9, 40]


def test_products_are_those_of_the_matrix() -> None:
    matrix, _ = part()
    moved = np.random.default_rng(0).standard_normal((matrix.shape[0] // 3, 3))
    found = Product(BlockRows.of(matrix))(moved)
    assert np.allclose(found.ravel(), matrix @ moved.ravel(), rtol=0, atol=1e-9 * np.abs(found).max())


def test_rows_that_are_equal_are_stored_once() -> None:
    matrix, _ = part((12, 9, 11))
    rows = BlockRows.of(matrix)
    assert len(rows.first) < 0.2 * len(rows.kind)
    for node in range(len(rows.kind)):
        count = rows.row[node + 1] - rows.row[node]
        stored = rows.block[rows.begin[node] : rows.begin[node] + count]
        assert np.array_equal(stored, matrix.data[rows.row[node] : rows.row[node + 1]])


@pytest.mark.parametrize(("theta", "room"), [(0.0, 40), (0.08, 40), (0.0, 1)])
def test_levels_are_those_of_pyamg(theta: float, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_ROOM", room)
    matrix, modes = part()
    strength = ("symmetric", {"theta": theta})
    smooth = ("jacobi", {"omega": 4 / 3, "weighting": "local"})
    made = pyamg.smoothed_aggregation_solver(
        matrix, B=modes, strength=strength, smooth=smooth, improve_candidates=None, max_coarse=5, max_levels=3
    )
    for level, size in zip(made.levels[:-1], (3, 6), strict=True):
        move, matrix, modes = transfer.coarsen(matrix, BlockRows.of(matrix), modes, theta)
        wanted, following = level.P.toarray(), made.levels[1 if size == 3 else 2]
        assert np.allclose(matrix.toarray(), following.A.toarray(), atol=1e-9 * abs(following.A).max())
        assert np.allclose(modes, following.B)
        coarse = np.random.default_rng(1).standard_normal(wanted.shape[1]).astype(np.float32)
        fine = padded(np.ones(wanted.shape[0]), size)
        move.prolong(padded(coarse, 6), fine)
        assert np.allclose(bare(fine, size), 1 + wanted @ coarse, atol=1e-4)
        assert np.allclose(bare(move.restrict(fine), 6), wanted.T @ bare(fine, size), atol=1e-3)


def test_a_node_that_nothing_holds_is_of_no_aggregate() -> None:
    matrix, modes = part()
    whole = matrix.toarray()
    whole[30:33] = whole[:, 30:33] = 0
    whole[30:33, 30:33] = np.eye(3)
    loose = sp.bsr_matrix(whole, blocksize=(3, 3))
    move, coarse, _ = transfer.coarsen(loose, BlockRows.of(loose), modes, 0.0)
    assert np.isfinite(coarse.toarray()).all()
    fine = padded(np.zeros(len(modes)), 3)
    move.prolong(np.ones(8 * move.aggregates, dtype=np.float32), fine)
    assert not bare(fine, 3)[30:33].any()


@pytest.mark.parametrize("stretched", [False, True])
def test_the_cycle_is_symmetric_and_near_the_inverse(stretched: bool) -> None:
    matrix, modes = part()
    hierarchy = Hierarchy(matrix, BlockRows.of(matrix), modes, stretched=stretched)
    rng = np.random.default_rng(2)
    one, other = rng.standard_normal((2, matrix.shape[0] // 3, 3))
    assert np.vdot(other, hierarchy.cycle(one)) == pytest.approx(np.vdot(one, hierarchy.cycle(other)), rel=1e-3)
    moved, forces = np.zeros_like(one), (matrix @ one.ravel()).reshape(-1, 3)
    for _ in range(30):
        moved += hierarchy.cycle(forces - (matrix @ moved.ravel()).reshape(-1, 3))
    assert np.abs(moved - one).max() < 0.01 * np.abs(one).max()


def test_a_kernel_is_compiled_where_nothing_can_be_kept() -> None:
    space: dict[str, Any] = {}
    exec("def twice(x):\n    return 2 * x", space)  # of no file: Numba has no place to keep it
    assert block_kernels.kernel(space["twice"])(4) == 8


def test_rows_are_equal_only_with_equal_values_and_as_many_blocks() -> None:
    rng = np.random.default_rng(3)
    own, beside = 9 * np.eye(3), rng.standard_normal((3, 3))
    dense = np.kron(np.eye(6), own)
    for node, value in ((1, beside), (3, beside), (5, beside + 1e-12)):
        dense[3 * node : 3 * node + 3, 3 * node - 3 : 3 * node] = value
    plain = sp.bsr_matrix(dense, blocksize=(3, 3))
    # Row 2 has a block of zeros more than row 0, and the same values else.
    blocks = np.insert(plain.data, plain.indptr[3], 0.0, axis=0)
    columns = np.insert(plain.indices, plain.indptr[3], 5)
    starts = plain.indptr + (np.arange(7) > 2)
    matrix = sp.bsr_matrix((blocks, columns, starts), shape=(18, 18))
    rows = BlockRows.of(matrix)
    kinds = rows.kind.tolist()
    assert kinds[0] == kinds[4] != kinds[2]
    assert kinds[1] == kinds[3] != kinds[5]
    moved = rng.standard_normal((6, 3))
    assert np.allclose(Product(rows)(moved).ravel(), matrix @ moved.ravel(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 0.3)])
def test_cells_of_different_stiffness_are_solved_for_as_by_cholesky(spacing: tuple[float, float, float]) -> None:
    mesh = mesh_of_mask(np.ones((5, 4, 12), dtype=bool), (0, 0, 0), spacing)
    base = int(np.count_nonzero(mesh.point_levels == 0))
    stiffness = elastic_element(mesh.spacing, 1e5, 0.3).stiffness
    shares = np.random.default_rng(4).uniform(0.5, 2.0, mesh.num_cells)
    solvers = [
        kind(mesh, shares[:, None, None] * stiffness, clamped(mesh, base)) for kind in (Multigrid, PlaneCholesky)
    ]
    for planes in (4, 12):
        for solver in solvers:
            solver.extend(planes)
        forces = np.random.default_rng(planes).standard_normal((30 * (planes + 1), 3))
        found, wanted = (solver.solve(forces, 1e-9) for solver in solvers)
        assert np.abs(found - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_stretched_cells_are_aggregated_by_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    plain = Hierarchy.__init__

    def tell(self: Hierarchy, *arguments: Any, stretched: bool) -> None:
        plain(self, *arguments, stretched=stretched)
        told.append((stretched, self._turns, self._levels[0][1].aggregates))

    monkeypatch.setattr(Hierarchy, "__init__", tell)
    for spacing in ((1.0, 1.0, 1.0), (1.0, 1.0, 0.3)):
        mesh = mesh_of_mask(np.ones((8, 8, 8), dtype=bool), (0, 0, 0), spacing)
        base = int(np.count_nonzero(mesh.point_levels == 0))
        Multigrid(mesh, elastic_element(mesh.spacing, 1e5, 0.3).stiffness, clamped(mesh, base)).extend(8)
    assert [(stretched, turns) for stretched, turns, _ in told] == [(False, (False,)), (True, (False, True))]
    assert told[1][2] > 1.2 * told[0][2]


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_forces_of_any_size_are_solved_for(scale: float) -> None:
    matrix, modes = part()
    hierarchy = Hierarchy(matrix, BlockRows.of(matrix), modes, stretched=False)
    forces = np.random.default_rng(5).standard_normal((matrix.shape[0] // 3, 3))
    assert np.allclose(hierarchy.cycle(scale * forces) / scale, hierarchy.cycle(forces), rtol=1e-4, atol=1e-12)


def test_floating_pieces_are_held_in_the_hierarchy(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[sp.bsr_matrix, BlockRows]] = []
    plain = Hierarchy.__init__

    def keep(self: Hierarchy, matrix: sp.bsr_matrix, rows: BlockRows, *arguments: Any, stretched: bool) -> None:
        given.append((matrix, rows))
        plain(self, matrix, rows, *arguments, stretched=stretched)

    monkeypatch.setattr(Hierarchy, "__init__", keep)
    mask = np.ones((9, 5, 7), dtype=bool)
    mask[5:7] = False
    mask[7:, :, :3] = False  # a piece in powder
    mesh = mesh_of_mask(mask, (0, 0, 0), (1, 1, 1))
    base = int(np.count_nonzero(mesh.point_levels == 0))
    solver = Multigrid(mesh, elastic_element(mesh.spacing, 1e5, 0.3).stiffness, clamped(mesh, base))
    solver.extend(7)
    (held, rows), free = given[0], solver._matrix
    springs = (held - free).tocsr().diagonal()
    assert np.count_nonzero(springs) == 3 * np.count_nonzero(mesh.points[:, 0] >= 7)
    moved = np.random.default_rng(6).standard_normal((mesh.num_points, 3))
    assert np.allclose(Product(rows)(moved).ravel(), held @ moved.ravel())
    assert np.allclose(solver._product(moved).ravel(), free @ moved.ravel())


def test_a_kernel_whose_kept_code_is_broken_is_compiled_anew(tmp_path: Path) -> None:
    """In processes of their own: code is kept for whole programs."""
    source = """
from pipelines.simulation.physics.multigrid.block_kernels import kernel

@kernel
def twice(x):
    return 2 * x
"""
    (tmp_path / "kept.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-c", "import kept; print(kept.twice(4))"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "NUMBA_CACHE_DIR": ""}
    for spoil in (b"", b"\x80", None):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == "8\n"
        kept = [path for path in tmp_path.rglob("*") if path.suffix in {".nbi", ".nbc"}]
        assert len(kept) == 2
        for path in kept:
            path.write_bytes(path.read_bytes()[:60] if spoil is None else spoil)
