"""The layer solver against closed forms and independent sums."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import spsolve

from lpbf_data.geometry.voxel_mesh import VoxelMesh, mesh_of_mask
from pipelines.simulation.materials.inherent_strain import cell_strains
from pipelines.simulation.materials.material import MATERIALS, Material
from pipelines.simulation.physics import iterations
from pipelines.simulation.physics import stiffness as stiffness_module
from pipelines.simulation.physics.base_constraint import clamped, cut_free, kept_by_cut
from pipelines.simulation.physics.build_simulation import BuildSimulation, Frame
from pipelines.simulation.physics.elements import ElasticElement, elastic_element, elasticity_matrix
from pipelines.simulation.physics.floating_pieces import free_motions, rigid_body_modes
from pipelines.simulation.physics.iterations import Preconditioning, SolverError, conjugate_gradients
from pipelines.simulation.physics.layers import LayerGroup
from pipelines.simulation.physics.mechanics import Mechanics, rigid_body_motion
from pipelines.simulation.physics.multigrid.solver import Multigrid
from pipelines.simulation.physics.plane_cholesky import PlaneCholesky

pytestmark = pytest.mark.numeric

YOUNG, POISSON = 110e3, 0.3


def block(nx: int, ny: int, nz: int, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> VoxelMesh:
    return mesh_of_mask(np.ones((nx, ny, nz), bool), (0, 0, 0), spacing)


def no_strain(mesh: VoxelMesh) -> NDArray[np.float64]:
    return np.zeros((mesh.num_cells, 6))


def overhang() -> VoxelMesh:
    """A column with an arm, a hole, and a tip that hangs on nothing until the arm comes."""
    mask = np.zeros((7, 3, 6), bool)
    mask[:2] = True
    mask[:, :, 4:] = True
    mask[6, :, 2:4] = True
    mask[1, 1, 2] = False
    return mesh_of_mask(mask, (0, 0, 0), (1.0, 1.2, 0.8))


def assemble(mesh: VoxelMesh, matrix: NDArray[np.float64], shares: NDArray[np.float64] | None = None) -> sp.csr_matrix:
    """The stiffness of a whole part, or of shares of its cells, summed here a second time."""
    values = np.outer(np.ones(mesh.num_cells) if shares is None else shares, matrix.ravel()).ravel()
    dofs = (3 * mesh.cells[:, :, None].astype(int) + np.arange(3)).reshape(-1, 24)
    rows, columns = np.repeat(dofs, 24, axis=1).ravel(), np.tile(dofs, (1, 24)).ravel()
    size = 3 * mesh.num_points
    return sp.csr_matrix((values, (rows, columns)), shape=(size, size))


def cells_at(mesh: VoxelMesh) -> NDArray[np.int64]:
    return np.bincount(mesh.cells.ravel(), minlength=mesh.num_points)


def test_a_constant_strain_is_exact() -> None:
    mesh = overhang()
    element = elastic_element(mesh.spacing, YOUNG, POISSON)
    gradient = np.random.default_rng(0).normal(size=(3, 3))
    linear = (mesh.points @ gradient.T).ravel()
    forces = (assemble(mesh, element.stiffness) @ linear).reshape(-1, 3)
    inner = cells_at(mesh) == 8
    assert inner.any()
    assert np.abs(forces[inner]).max() < 1e-9 * np.abs(forces).max()
    strain = element.strain @ linear.reshape(-1, 3)[mesh.cells[0]].ravel()
    symmetric = (gradient + gradient.T) / 2
    expected = [*np.diag(symmetric), *(2 * symmetric[i, j] for i, j in ((0, 1), (0, 2), (1, 2)))]
    assert np.allclose(strain, expected)


def test_an_element_has_six_motions_without_force_and_bends_exactly() -> None:
    spacing = (2.0, 0.7, 1.1)
    element = elastic_element(spacing, YOUNG, POISSON)
    values = np.linalg.eigvalsh(element.stiffness)
    assert np.abs(values[:6]).max() < 1e-9 * values[-1]
    assert values[6] > 1e-4 * values[-1]
    x, y, z = ((mesh := block(1, 1, 1, spacing)).points - mesh.points.mean(axis=0))[mesh.cells[0]].T
    bent = np.stack([x * z, -POISSON * y * z, -(x**2) / 2 + POISSON * (y**2 - z**2) / 2], axis=1).ravel()
    inertia = spacing[1] * spacing[2] ** 3 / 12
    assert bent @ element.stiffness @ bent == pytest.approx(YOUNG * inertia * spacing[0], rel=1e-10)


def manufactured_error(n: int) -> float:
    """L2 error on a unit cube of n cells an edge whose whole surface is held."""
    mesh = block(n, n, n, (1 / n, 1 / n, 1 / n))
    stiffness = assemble(mesh, elastic_element(mesh.spacing, YOUNG, POISSON).stiffness)
    lam, mu = YOUNG * POISSON / ((1 + POISSON) * (1 - 2 * POISSON)), YOUNG / (2 * (1 + POISSON))
    s, c = np.sin(math.pi * mesh.points.T), np.cos(math.pi * mesh.points.T)
    exact = np.stack([s[0] * s[1] * s[2], np.zeros(mesh.num_points), np.zeros(mesh.num_points)], axis=1)
    # -div(stress) of the displacement (sin πx sin πy sin πz, 0, 0)
    force = np.stack(
        [
            math.pi**2 * (lam + 4 * mu) * s[0] * s[1] * s[2],
            -(math.pi**2) * (lam + mu) * c[0] * c[1] * s[2],
            -(math.pi**2) * (lam + mu) * c[0] * s[1] * c[2],
        ],
        axis=1,
    )
    load = (force * cells_at(mesh)[:, None] / (8 * n**3)).ravel()
    inner = np.repeat(cells_at(mesh) == 8, 3)
    found = np.zeros(3 * mesh.num_points)
    found[inner] = spsolve(stiffness[inner][:, inner].tocsc(), load[inner])
    return float(np.sqrt(np.square(found.reshape(-1, 3) - exact).sum() / n**3))


def test_the_error_of_a_manufactured_solution_falls_with_the_square_of_the_cell() -> None:
    errors = [manufactured_error(n) for n in (4, 8, 16)]
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(rates) > 1.9, (errors, rates)


@pytest.mark.parametrize("upper_planes", [1, 4])
def test_two_layers_bend_as_timoshenko_says(upper_planes: int) -> None:
    # Timoshenko 1925, "Analysis of bi-metal thermostats": one layer wants to shrink, the other doesn't. With a thin
    # upper layer this is Stoney's formula for a beam.
    planes, length, spacing = 8, 80, (1.0, 0.5, 0.25)
    mesh = block(length, 2, planes, spacing)
    mechanics = Mechanics(mesh, elastic_element(spacing, YOUNG, POISSON), no_strain(mesh), (planes,))
    mechanics.add_layer(np.zeros(mesh.num_cells))
    mechanics.shrink_layer()
    mechanics.release()
    strain = -1e-3
    state = mechanics.heat(np.where(mesh.indices[:, 2] >= planes - upper_planes, strain, 0.0))
    thickness = planes * spacing[2]
    m = upper_planes / (planes - upper_planes)
    expected = 6 * abs(strain) * (1 + m) ** 2 / (thickness * (3 * (1 + m) ** 2 + (1 + m) * (m**2 + 1 / m)))
    curvature = curvature_along(mesh, state.displacement)
    assert curvature == pytest.approx(expected, rel=0.02)  # the upper layer shrinks, so the ends rise


def curvature_along(mesh: VoxelMesh, displacement: NDArray[np.float64]) -> float:
    """Curvature of the lower edge of a beam along x, away from its ends, where stresses build up."""
    middle = np.abs(mesh.points[:, 0] - mesh.points[:, 0].mean()) < 20.1
    line = middle & (mesh.point_indices[:, 1] == 1) & (mesh.point_indices[:, 2] == 0)
    return float(2 * np.polyfit(mesh.points[line, 0], displacement[line, 2], 2)[0])


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_metal_that_gives_way_at_the_cut_bends_as_a_softer_strip(share: float) -> None:
    # Timoshenko's two strips of unequal moduli: the lower half keeps a share of its stiffness, the upper half shrinks.
    planes, spacing, strain = 8, (1.0, 0.5, 0.25), -1e-3
    mesh = block(80, 2, planes, spacing)
    element = elastic_element(spacing, YOUNG, POISSON)
    upper = mesh.indices[:, 2] >= planes // 2
    strains = no_strain(mesh)
    strains[upper, :3] = strain
    mechanics = Mechanics(mesh, element, strains, (planes,), at_once=True)
    mechanics.add_layer(np.zeros(mesh.num_cells))
    mechanics.shrink_layer()
    kept = kept_by_cut(mesh, planes // 2 * spacing[2], share)
    assert np.allclose(kept, np.where(upper, 1.0, share), rtol=0, atol=1e-12)
    state = mechanics.release(None, kept)
    n, m, thickness = 1 / share, 1.0, planes * spacing[2]
    expected = 6 * -strain * (1 + m) ** 2 / (thickness * (3 * (1 + m) ** 2 + (1 + m * n) * (m**2 + 1 / (m * n))))
    assert curvature_along(mesh, state.displacement) == pytest.approx(expected, rel=0.02)
    # What is written as strain, elastic and permanent together, is that of the displacement; stress is what is kept.
    lowest = (mesh.point_indices[:, 2] == 0) & (np.abs(mesh.points[:, 0] - 40) < 0.1)
    along = np.gradient(state.displacement[(mesh.point_indices[:, 1:] == [1, 0]).all(axis=1), 0], spacing[0])[40]
    assert (state.strain + state.inherent)[lowest, 0] == pytest.approx(along, rel=0.02)
    assert state.strain[lowest, 0] == pytest.approx(share * along, rel=0.02)


def test_cells_over_nodes_that_stay_on_the_plate_keep_their_stiffness() -> None:
    mesh = block(10, 2, 4, (2.0, 2.0, 0.4))
    held = mesh.points[mesh.point_levels == 0, 0] > 11.9
    material = MATERIALS["Inc625"].calibrated("netfabb")
    *_, before, after = BuildSimulation(mesh, material).frames(held=held)
    given = np.abs(after.state.inherent - before.state.inherent).max(axis=1)
    assert given[mesh.points[:, 0] > 12.1].max() == 0.0
    assert given[(mesh.points[:, 0] < 11.9) & (mesh.points[:, 2] < 0.9)].min() > 1e-5


def test_every_layer_starts_at_its_nominal_height() -> None:
    # In the middle of a wide plate nothing moves sideways: a layer that wants to shrink by e sinks by
    # 2 nu / (1 - nu) e of its height, and those below don't feel it.
    spacing, e = (2.0, 2.0, 0.5), 2e-3
    mesh = block(24, 24, 3, spacing)
    strains = cell_strains(mesh, -e, None)
    mechanics = Mechanics(mesh, elastic_element(spacing, YOUNG, POISSON), strains, (1, 2, 3), at_once=True)
    for planes in (1, 2, 3):
        mechanics.add_layer(np.zeros(24 * 24 * planes))
        state = mechanics.shrink_layer()
    middle = (np.abs(mesh.points[:, :2] - 24.0) < 0.1).all(axis=1)
    sunk = -2 * POISSON / (1 - POISSON) * e * spacing[2]
    heights = mesh.points[middle, 2]
    assert np.allclose(state.displacement[middle, 2], np.where(heights > 0, sunk, 0.0), atol=abs(sunk) * 0.02)
    assert np.allclose(state.stress[middle][:, 0], YOUNG / (1 - POISSON) * e, rtol=0.02)


def test_rigid_body_motion_is_removed_and_nothing_else() -> None:
    mesh = overhang()
    rng = np.random.default_rng(1)
    rigid = (rigid_body_modes(mesh.points) @ rng.normal(size=6)).reshape(-1, 3)
    assert np.allclose(rigid_body_motion(mesh.points, rigid), rigid)
    shape = rng.normal(size=(mesh.num_points, 3))
    rest = shape - rigid_body_motion(mesh.points, shape)
    assert np.allclose(rest + rigid - rigid_body_motion(mesh.points, rest + rigid), rest)


@pytest.mark.parametrize("held", [True, False])
def test_both_solvers_agree_with_a_third(held: bool) -> None:
    mesh = overhang()
    element = elastic_element(mesh.spacing, YOUNG, POISSON)
    base = np.full(int((mesh.point_levels == 0).sum()), held)
    foot = clamped(mesh) if held else cut_free(mesh)
    pulled = (element.load @ [-1e-2, -1e-2, 0, 0, 0, 0]).reshape(8, 3)
    forces = np.stack(
        [
            np.bincount(mesh.cells.ravel(), weights=np.tile(pulled[:, k], mesh.num_cells), minlength=mesh.num_points)
            for k in range(3)
        ],
        axis=1,
    )
    solutions = []
    for kind in (PlaneCholesky, Multigrid):
        solver = kind(mesh, element.stiffness, foot)
        for planes in range(1, 7):
            solver.extend(planes)
        moved = foot.expand(solver.solve(foot.reduce(forces), 1e-7 * float(np.linalg.norm(forces))))
        solutions.append(moved - (0 if held else rigid_body_motion(mesh.points, moved)))
    free = np.repeat(np.concatenate([~base, np.ones(mesh.num_points - len(base), bool)]), 3)
    matrix = assemble(mesh, element.stiffness) + 1e-9 * YOUNG * sp.eye(3 * mesh.num_points)
    third = np.zeros(3 * mesh.num_points)
    third[free] = spsolve(matrix[free][:, free].tocsc(), forces.ravel()[free])
    expected = third.reshape(-1, 3)
    expected = expected - (0 if held else rigid_body_motion(mesh.points, expected))
    for moved in solutions:
        assert np.abs(moved - expected).max() < 1e-5 * np.abs(expected).max()


def hanging_stubs() -> VoxelMesh:
    """A wall with stubs beside it that hang on nothing until a roof comes; one touches the wall along an edge."""
    mask = np.zeros((25, 12, 10), bool)
    mask[:4] = True
    mask[:, :, 8:] = True
    for x in range(7, 25, 4):
        for y in range(0, 12, 4):
            mask[x : x + 2, y : y + 3, 3:] = True
    mask[4, 4:7, :4] = False
    mask[:4, :, 5:7] = False
    mask[3, :, 5:7] = True
    mask[4:6, 8:, 7:] = True
    mask[3, 8:, 7] = False
    return mesh_of_mask(mask, (0, 0, 0), (1.0, 1.2, 0.8))


@pytest.mark.parametrize("planes", [4, 6, 8, 10])
def test_pieces_that_hang_on_nothing_stay_where_they_are(planes: int) -> None:
    mesh = hanging_stubs()
    element = elastic_element(mesh.spacing, YOUNG, POISSON)
    cells = mesh.indices[:, 2] < planes
    strains = np.random.default_rng(planes).normal(0, 5e-3, (int(cells.sum()), 6))
    pulled = (strains @ element.load.T).reshape(-1, 8, 3)
    there = mesh.point_levels <= planes
    forces = np.stack(
        [np.bincount(mesh.cells[cells].ravel(), pulled[..., k].ravel(), int(there.sum())) for k in range(3)], axis=1
    )
    moved = []
    for kind, goal in ((PlaneCholesky, 0.0), (Multigrid, 1e-5)):
        solver = kind(mesh, element.stiffness, clamped(mesh))
        for plane in range(1, planes + 1):
            if plane == planes or kind is PlaneCholesky:
                solver.extend(plane)
        moved.append(solver.solve(clamped(mesh).reduce(forces), goal * float(np.linalg.norm(forces))))
    exact, iterated = moved
    assert np.abs(exact).max() < 1.0
    assert np.abs(iterated - exact).max() < 2e-3 * np.abs(exact).max()


def test_motions_that_nothing_resists_are_those_without_stiffness() -> None:
    """Against the null space of the whole matrix: a stub turns about the edge that it touches, another is all free."""
    mask = np.zeros((8, 3, 4), bool)
    mask[:2, :, :2] = True
    mask[2, :, 2:] = True  # touches the column along an edge
    mask[4:6, 1, 2:] = True  # touches nothing
    mask[7] = True
    mesh = mesh_of_mask(mask, (0, 0, 0), (1.0, 1.2, 0.8))
    element = elastic_element(mesh.spacing, YOUNG, POISSON)
    above = np.repeat(mesh.point_levels > 0, 3)
    matrix = assemble(mesh, element.stiffness)[above][:, above]
    values, vectors = np.linalg.eigh(matrix.toarray())
    null = vectors[:, values < 1e-9 * values[-1]]
    free = free_motions(mesh, 4, element.stiffness)
    assert free is not None
    motions = free.toarray()
    assert not motions[~above].any()
    assert null.shape[1] == motions.shape[1] == 1 + 6
    np.testing.assert_allclose(motions.T @ motions, np.eye(7), atol=1e-12)
    np.testing.assert_allclose(null @ (null.T @ motions[above]), motions[above], atol=1e-6)
    assert free_motions(mesh, 2, element.stiffness) is None


def without_shrinkage(material: Material) -> Material:
    return dataclasses.replace(material, calibration=dataclasses.replace(material.calibration, strain=0.0))


def test_no_strain_gives_no_displacement() -> None:
    material = without_shrinkage(MATERIALS["Ti64"])
    cold = dataclasses.replace(material.process, power=0.0)
    frames = list(BuildSimulation(block(6, 4, 5, (2.0, 2.0, 2.0)), material, cold).frames())
    assert len(frames) == 12
    for frame in frames:
        assert not frame.state.displacement.any()
        assert not frame.state.stress.any()


def test_warmth_alone_leaves_nothing_behind() -> None:
    # Without inherent strain only temperature moves the part: after cooling no stress stays in the first group, which
    # was born on the cold plate, and the plate is back where it was.
    material = without_shrinkage(MATERIALS["Ti64"].calibrated("netfabb"))
    frames = list(BuildSimulation(block(6, 4, 1, (2.0, 2.0, 2.0)), material).frames())
    warm, cooled = frames[0], frames[-2]
    assert warm.state.displacement[:, 2].max() > 1e-3
    assert np.abs(cooled.state.displacement).max() < 1e-6 * np.abs(warm.state.displacement).max()


def test_a_symmetric_part_moves_symmetrically() -> None:
    mask = np.ones((8, 6, 5), bool)
    mask[2:6, :, :3] = False
    mesh = mesh_of_mask(mask, (-8, -6, 0), (2.0, 2.0, 2.0))
    frames = list(BuildSimulation(mesh, MATERIALS["Inc625"]).frames())
    place = {tuple(p): i for i, p in enumerate(mesh.points.round(6).tolist())}
    for frame in frames:
        points = mesh.points[: frame.num_points].round(6)
        moved, size = frame.state.displacement, np.abs(frame.state.displacement).max()
        for flip in ((-1, 1, 1), (1, -1, 1)):
            twin = [place[tuple(p)] for p in (points * flip).tolist()]
            assert np.abs(moved[twin] * flip - moved).max() < 1e-6 * size
        assert frame.state.imbalance < 1e-6


def test_forces_balance_at_every_layer() -> None:
    """Internal forces summed anew from the frames alone: births on straight lines, temperatures and strains."""
    mesh, material = overhang(), MATERIALS["Inc625"].calibrated("netfabb")
    simulation = BuildSimulation(mesh, material, material.process, refinement=1)
    element = elastic_element(mesh.spacing, material.young, material.poisson)
    strains = cell_strains(mesh, material.calibration.strain, material.calibration.walls)
    birth = np.zeros((mesh.num_cells, 8, 3))
    before = np.zeros((0, 3))
    known = 0
    for frame in simulation.frames():
        if frame.num_cells > known:
            born = born_on_lines(mesh, before, simulation.groups[frame.group - 1])
            birth[known : frame.num_cells] = born[mesh.cells[known : frame.num_cells]]
            known = frame.num_cells
        before = frame.state.displacement
        if frame.phase == "cut":
            continue  # its rigid-body motion was removed; the next test looks at it
        worst = imbalance(simulation, element, strains, frame, birth)
        assert worst < 1e-6, (frame.number, worst)


def born_on_lines(mesh: VoxelMesh, before: NDArray[np.float64], group: LayerGroup) -> NDArray[np.float64]:
    """Displacement with which the nodes of a group are born, node by node."""
    born = np.zeros((mesh.num_points, 3))
    born[: len(before)] = before
    old = {tuple(place): number for number, place in enumerate(mesh.point_indices[: len(before)].tolist())}
    for number in range(len(before), mesh.num_points):
        x, y, z = mesh.point_indices[number].tolist()
        below = old.get((x, y, group.first_plane))
        if below is not None:
            born[number] = before[below] * max(0.0, 1 - (z - group.first_plane) / 2)
    return born


def imbalance(
    simulation: BuildSimulation,
    element: ElasticElement,
    strains: NDArray[np.float64],
    frame: Frame,
    birth: NDArray[np.float64],
) -> float:
    mesh, material = simulation.mesh, simulation.material
    newest = simulation.groups[frame.group - 1].first_plane
    total = np.zeros((frame.num_points, 3))
    scale = 0.0
    for number, cell in enumerate(mesh.cells[: frame.num_cells]):
        warmth = frame.temperature[cell].mean() - simulation.process.ambient
        strain = np.array([1, 1, 1, 0, 0, 0]) * material.expansion * warmth
        if frame.phase != "added" or mesh.indices[number, 2] < newest:
            strain += strains[number]
        stretch = (frame.state.displacement[cell] - birth[number]).ravel()
        force = (element.stiffness @ stretch - element.load @ strain).reshape(8, 3)
        scale += float(np.square(element.load @ strain).sum())
        total[cell] += force
    free = mesh.point_levels[: frame.num_points] > 0
    return float(np.linalg.norm(total[free]) / math.sqrt(scale))


@pytest.mark.parametrize("layer_ends", [(1, 2, 3, 4, 5, 6), (2, 4, 6), (6,)])
@pytest.mark.parametrize("multigrid", [False, True])
def test_layers_that_shrink_one_after_the_other_move_as_a_sum_of_solutions(
    monkeypatch: pytest.MonkeyPatch, layer_ends: tuple[int, ...], multigrid: bool
) -> None:
    # Each plane's motion from a sparse solution of its own: cells below it count whole, its own by half. Groups of any
    # number of planes come out alike.
    monkeypatch.setattr(stiffness_module, "_DENSE_RATE", 1.0 if multigrid else 1e30)
    mesh = overhang()
    element = elastic_element(mesh.spacing, YOUNG, POISSON)
    strains = cell_strains(mesh, -4e-3, None)
    mechanics = Mechanics(mesh, element, strains, layer_ends)
    for _ in layer_ends:
        mechanics.add_layer(0.0)
        state = mechanics.shrink_layer()
    expected = np.zeros((mesh.num_points, 3))
    for plane in range(6):
        own, below = mesh.indices[:, 2] == plane, mesh.indices[:, 2] < plane
        matrix = assemble(mesh, element.stiffness, below + 0.5 * own) + 1e-9 * YOUNG * sp.eye(3 * mesh.num_points)
        pull = (strains * own[:, None]) @ element.load.T
        forces = np.stack(
            [np.bincount(mesh.cells.ravel(), weights=pull[:, k::3].ravel()) for k in range(3)], axis=1
        ).ravel()
        free = np.repeat((mesh.point_levels > 0) & (mesh.point_levels <= plane + 1), 3)
        motion = np.zeros(3 * mesh.num_points)
        motion[free] = spsolve(matrix[free][:, free].tocsc(), forces[free])
        laid = mesh.point_indices[:, 2] <= plane
        expected[laid] += motion.reshape(-1, 3)[laid]
    # Cells that hang on nothing until others come turn freely; only what they leave behind is compared.
    firm = mesh.points[:, 0] < 4.5
    assert np.abs(state.displacement - expected)[firm].max() < 3e-3 * np.abs(expected[firm]).max()


def test_a_freed_part_holds_no_net_force_and_no_rigid_motion() -> None:
    mesh = overhang()
    last = list(BuildSimulation(mesh, MATERIALS["Inc625"]).frames())[-1]
    assert last.state.imbalance < 1e-6
    leftover = rigid_body_motion(mesh.points, last.state.displacement)
    assert np.abs(leftover).max() < 1e-9 * np.abs(last.state.displacement).max()


def test_nodes_that_the_cut_leaves_on_the_plate_stay() -> None:
    mesh = block(10, 2, 4, (2.0, 2.0, 1.0))
    held = mesh.points[mesh.point_levels == 0, 0] > 15.9
    frames = list(BuildSimulation(mesh, MATERIALS["Inc625"]).frames(held=held))
    base = np.flatnonzero(mesh.point_levels == 0)
    assert np.array_equal(frames[-1].state.displacement[base[held]], frames[-2].state.displacement[base[held]])
    assert np.abs(frames[-1].state.displacement[base[~held]]).max() > 1e-4


def test_stress_is_elasticity_times_elastic_strain() -> None:
    frames = list(BuildSimulation(overhang(), MATERIALS["Ti64"]).frames())
    matrix = elasticity_matrix(MATERIALS["Ti64"].young, MATERIALS["Ti64"].poisson)
    for frame in frames:
        assert np.allclose(frame.state.stress, frame.state.strain @ matrix)


def test_a_solution_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterations, "_MAX_ITERATIONS", 1)
    monkeypatch.setattr(stiffness_module, "_DENSE_RATE", 1.0)  # multigrid looks cheaper
    with pytest.raises(SolverError, match="did not converge"):
        list(BuildSimulation(block(8, 8, 8, (2.0, 2.0, 2.0)), MATERIALS["Ti64"]).frames())


def iterated(
    values: NDArray[np.float64], forces: NDArray[np.float64], known: Preconditioning | None, goal: float = 1e-5
) -> NDArray[np.float64]:
    """A solution of a diagonal matrix whose preconditioner takes it for the identity."""
    return conjugate_gradients(lambda u: values * u, lambda f: f, forces, goal, 0.0 if goal else 1e-5, known)


@pytest.mark.parametrize("goal", [1e-5, 0.0])
def test_iterations_go_on_where_much_displacement_is_left(goal: float) -> None:
    # A few motions meet a ten-thousandth of what the preconditioner takes them for, as a thin tilted plate's bending.
    rng = np.random.default_rng(1)
    values = rng.uniform(0.2, 1.0, (200, 3))
    forces = rng.normal(0, 1e-2, (200, 3))
    values[:2], forces[:2] = rng.uniform(1e-4, 4e-4, (2, 3)), 3e-6
    exact = forces / values
    assert np.abs(iterated(values, forces, None, goal) - exact).max() > 0.005
    known = Preconditioning()
    iterated(values, forces, known)
    assert known.least == pytest.approx(values.min(), rel=0.5)
    assert np.abs(iterated(values, forces, known, goal) - exact).max() < 1e-3


def test_iterations_end_as_ever_where_little_displacement_is_left() -> None:
    rng = np.random.default_rng(2)
    values, forces = rng.uniform(0.2, 1.0, (200, 3)), rng.normal(0, 1e-2, (200, 3))
    known = Preconditioning()
    for _ in range(2):
        for goal in (1e-5, 0.0):
            assert np.array_equal(iterated(values, forces, known, goal), iterated(values, forces, None, goal))
    assert known.least == pytest.approx(values.min(), rel=0.1)


def test_motions_that_nothing_holds_do_not_count_as_displacement_that_is_left() -> None:
    # A part that was cut free moves as a whole by little more than nothing's force; that motion is taken out later.
    rng = np.random.default_rng(3)
    values, forces = rng.uniform(0.2, 1.0, (200, 3)), rng.normal(0, 1e-2, (200, 3))
    values[0, 0], forces[0, 0] = 1e-7, 1e-8
    rigid = np.zeros((600, 1))
    rigid[0] = 1
    blind = iterated(values, forces, Preconditioning(rigid))
    moved = np.flatnonzero((blind != iterated(values, forces, None)).any(axis=1))
    assert set(moved) <= {0}


def test_iterations_that_fail_on_their_way_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterations, "_MAX_ITERATIONS", 50)
    rng = np.random.default_rng(4)
    values, forces = rng.uniform(0.2, 1.0, (200, 3)), rng.normal(0, 1e-2, (200, 3))
    usual, corrections = itertools.count(), itertools.count()

    def counted(left: NDArray[np.float64]) -> NDArray[np.float64]:
        next(usual)
        return left

    conjugate_gradients(lambda u: values * u, counted, forces, 1e-5)
    last = next(usual)  # how many corrections it would have made

    def failing(left: NDArray[np.float64]) -> NDArray[np.float64]:
        return left * (np.nan if next(corrections) > last else 1.0)

    with pytest.raises(SolverError, match="did not converge"), np.errstate(invalid="ignore"):
        conjugate_gradients(lambda u: values * u, failing, forces, 1e-5, 0.0, Preconditioning())
