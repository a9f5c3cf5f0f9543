"""The simulator's physics against formulas and finer meshes: layers on a beam, a block of plate, walls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from lpbf_data.geometry.voxel_mesh import VoxelMesh, mesh_of_mask
from pipelines.simulation.materials.inherent_strain import WallRule, cell_strains
from pipelines.simulation.physics import base_constraint
from pipelines.simulation.physics.base_constraint import ElasticPlate
from pipelines.simulation.physics.elements import elastic_element
from pipelines.simulation.physics.mechanics import Mechanics
from pipelines.simulation.physics.thermal import PLATE_LEVELS

pytestmark = pytest.mark.numeric

YOUNG, POISSON = 150_000.0, 0.278


def curvature_of_a_grown_beam(finer: int, planes_of_a_group: int) -> float:
    """Curvature of a beam 1.5 mm high after it has grown to 3 mm by layers that want to shrink by 0.001."""
    base, added, spacing = 6 * finer, 6 * finer, (1.0, 1.0, 0.25 / finer)
    mask = np.ones((60, 1, 1 + base + added), dtype=bool)
    mask[2:, :, 0] = False  # the beam stands on one end and is free along the rest
    mesh = mesh_of_mask(mask, (0.0, 0.0, 0.0), spacing)
    strains = np.zeros((mesh.num_cells, 6))
    strains[mesh.indices[:, 2] > base, 0] = -1e-3
    ends = (1 + base, *range(1 + base + planes_of_a_group, 1 + base + added + 1, planes_of_a_group))
    mechanics = Mechanics(mesh, elastic_element(spacing, YOUNG, POISSON), strains, ends)
    for _ in ends:
        mechanics.add_layer(0.0)
        state = mechanics.shrink_layer()
    line = (mesh.point_indices[:, 1] == 0) & (mesh.point_indices[:, 2] == 1) & (np.abs(mesh.points[:, 0] - 30) < 15.1)
    return float(2 * np.polyfit(mesh.points[line, 0], state.displacement[line, 2], 2)[0])


@pytest.mark.parametrize("planes_of_a_group", [1, 3])
def test_thin_layers_that_grow_on_a_free_beam_bend_it_as_stoney_says(planes_of_a_group: int) -> None:
    # A layer of thickness dy that wants to shrink by e pulls with E e dy at half the height y of a beam whose stiffness
    # is E y³ / 12, so the curvature grows by 6 e dy / y² (Stoney); from h0 to h that is 6 e (1 / h0 - 1 / h).
    exact = 6e-3 * (1 / 1.5 - 1 / 3)
    coarse, fine = (abs(curvature_of_a_grown_beam(finer, planes_of_a_group) / exact - 1) for finer in (1, 2))
    assert fine < 0.01
    assert math.log2(coarse / fine) > 1.7  # falls with the square of the planes' thickness


SIDE, THIN, PULL = 60.0, 0.4, 500.0  # of a thin layer that covers its block of plate, mm; its force, N/mm
WAVES = 2 * math.pi / SIDE * np.array([1, 2])
DEPTH = PLATE_LEVELS[-1] - PLATE_LEVELS[0]


def wave_of_a_plate(k: float) -> tuple[float, float, float]:
    """U, W and S of (U sin kx, W cos kx) and the stress S cos kx, for the top of a plate under a shear k sin kx.

    Plane strain: displacements are a sum of the gradients of cos kx exp(+-kz) and of Papkovich's
    (3 - 4 nu) psi e_z - z grad psi with the same harmonic functions; the lower side is held, no force is normal to the
    upper one.
    """
    kappa = 3 - 4 * POISSON
    lam, mu = YOUNG * POISSON / ((1 + POISSON) * (1 - 2 * POISSON)), YOUNG / (2 * (1 + POISSON))

    def rows(z: float) -> NDArray[np.float64]:
        """U, W and their derivatives of the four solutions, [4, 4]."""
        columns = []
        for s in (k, -k):
            f = math.exp(s * z)
            columns.append([-k * f, s * f, -k * s * f, s * s * f])
            columns.append([k * z * f, (kappa - s * z) * f, k * (1 + s * z) * f, (kappa * s - s - s * s * z) * f])
        return np.array(columns).T

    (u, w, du, dw), held = rows(0.0), rows(-DEPTH)
    shear, normal = mu * (du - k * w), lam * k * u + (lam + 2 * mu) * dw
    shares = np.linalg.solve(np.stack([held[0], held[1], normal, shear]), [0, 0, 0, k])
    return float(u @ shares), float(w @ shares), float(((lam + 2 * mu) * k * u + lam * dw) @ shares)


def first_wave_of_our_plate(pulls: NDArray[np.float64], stretches: NDArray[np.float64]) -> NDArray[np.float64]:
    """Amplitudes along x and z of the longer wave, along the middle of the simulator's block of plate.

    The layer pulls along x with the sum of pulls (1 - cos kx), none at its ends, and not along y: from that and the
    plate's own stretch follow the strains that it wants to take.
    """
    mesh = mesh_of_mask(np.ones((40, 40, 1), dtype=bool), (0.0, 0.0, 0.0), (SIDE / 40, SIDE / 40, THIN))
    plate = ElasticPlate(mesh, YOUNG, POISSON)
    phase = np.cos(mesh.points[mesh.cells].mean(axis=1)[:, :1] * WAVES)
    elastic = (1 - phase) @ pulls / (YOUNG * THIN)
    strains = np.zeros((mesh.num_cells, 6))
    strains[:, 0], strains[:, 1] = phase @ stretches - elastic, POISSON * elastic
    mechanics = Mechanics(mesh, elastic_element(mesh.spacing, YOUNG, POISSON), strains, (1,), plate, at_once=True)
    mechanics.add_layer(0.0)
    state = mechanics.shrink_layer()
    x = np.unique(plate.block.points[:, 0])
    moved = plate.at(np.stack([x, np.full(len(x), SIDE / 2), np.zeros(len(x))], axis=1), state.plate)
    sines, cosines = np.sin(np.outer(x, WAVES)), np.cos(np.outer(x, [0, *WAVES]))
    along = np.linalg.lstsq(sines, moved[:, 0], rcond=None)[0]
    up = np.linalg.lstsq(cosines, moved[:, 2], rcond=None)[0]
    return np.array([along[0], up[1]])


def test_a_plate_below_a_layer_that_shrinks_in_waves_moves_as_the_closed_form_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long, short = (wave_of_a_plate(float(k)) for k in WAVES)
    # Two waves, so that the sides of the block feel no stress at their upper edges, where nothing holds them.
    pulls = PULL * np.array([1.0, -long[2] / short[2]])
    stretches = WAVES * pulls * (long[0], short[0])
    exact = PULL * np.array(long[:2])
    coarse = first_wave_of_our_plate(pulls, stretches)
    monkeypatch.setattr(base_constraint, "_COLUMNS", 256)
    monkeypatch.setattr(base_constraint, "_MAX_PLANES", 20)
    fine = first_wave_of_our_plate(pulls, stretches)
    off, finer = np.abs(coarse / exact - 1), np.abs(fine / exact - 1)
    assert (finer < 0.6 * off).all()
    assert (finer < [0.04, 0.12]).all()
    assert (2 * fine - coarse) / exact == pytest.approx(np.ones(2), abs=0.03)  # as ever smaller cells would give it


def test_a_plate_that_is_warm_lifts_the_part_as_a_block_between_walls() -> None:
    # Nothing moves sideways in its middle, so that every slice of height dz grows by (1 + nu) / (1 - nu) alpha dT dz.
    mesh = mesh_of_mask(np.ones((40, 40, 1), dtype=bool), (0.0, 0.0, 0.0), (1.5, 1.5, 0.4))
    plate = ElasticPlate(mesh, YOUNG, POISSON)
    expansion = np.linspace(0.0, 2e-3, len(PLATE_LEVELS))
    moved = plate.at(np.array([[30.0, 30.0, 0.0]]), plate.free_shape(expansion))[0]
    grown = (1 + POISSON) / (1 - POISSON) * float(np.trapezoid(expansion, PLATE_LEVELS))
    assert moved[2] == pytest.approx(grown, rel=0.02)
    assert np.abs(moved[:2]).max() < 1e-6 * moved[2]


def dish(mesh: VoxelMesh) -> NDArray[np.float64]:
    """Heights of five nodes of the plate's top under a layer that has shrunk, from its centre to an edge, mm."""
    plate = ElasticPlate(mesh, YOUNG, POISSON)
    strains = cell_strains(mesh, -8e-3, None)
    mechanics = Mechanics(mesh, elastic_element(mesh.spacing, YOUNG, POISSON), strains, (2,), plate, at_once=True)
    mechanics.add_layer(0.0)
    state = mechanics.shrink_layer()
    line = np.stack([np.linspace(10, 20, 5), np.full(5, 10.0), np.full(5, mesh.origin[2])], axis=1)
    return plate.at(line, state.plate)[:, 2]


def test_a_plate_dishes_under_a_shrinking_layer_as_a_finer_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((20, 20, 2), dtype=bool)
    mask[3:17, 3:17] = True
    mask[0, 0] = mask[-1, -1] = True  # so that the block of plate is wider than the layer
    mesh = mesh_of_mask(mask, (0.0, 0.0, 0.0), (1.0, 1.0, 0.8))
    coarse = dish(mesh)
    monkeypatch.setattr(base_constraint, "_COLUMNS", 256)
    monkeypatch.setattr(base_constraint, "_MAX_PLANES", 20)
    fine = dish(mesh)
    assert np.ptp(fine) > 0.01  # mm: the edges of the layer pull the plate up, its middle is pushed down
    assert (fine.argmin(), fine.argmax()) == (0, 4)
    assert np.abs(coarse - fine).max() < 0.1 * np.ptp(fine)


def test_strain_near_a_straight_wall_follows_the_segment_of_a_disc() -> None:
    rule = WallRule(reach=2.5, onset=0.05, full=0.6, normal=0.6, along=0.3)
    mesh = mesh_of_mask(np.ones((40, 40, 1), dtype=bool), (0.0, 0.0, 0.0), (0.25, 0.25, 0.4))
    strain = -8e-3
    strains = cell_strains(mesh, strain, rule)
    row = mesh.indices[:, 1] == 20
    for place, found in zip(mesh.indices[row, 0], strains[row], strict=True):
        distance = (min(place, 39 - place) + 0.5) * 0.25
        inside = distance < rule.reach
        angle = math.acos(distance / rule.reach) if inside else 0.0
        powder = (angle - math.sin(angle) * math.cos(angle)) / math.pi
        share = min(max((powder - rule.onset) / (rule.full - rule.onset), 0.0), 1.0)
        assert found[0] == pytest.approx(strain * (1 - share * rule.normal), rel=0.02)
        assert found[1] == pytest.approx(strain * (1 - share * rule.along), rel=0.02)
        assert np.abs(found[2:]).max() < 2e-3 * abs(strain)
    # In a corner both walls count alike, and the strain along the diagonal differs from that across it.
    corner = strains[(mesh.indices[:, :2] == 0).all(axis=1)][0]
    assert corner[0] == pytest.approx(corner[1], rel=1e-9)
    assert corner[3] != 0.0
