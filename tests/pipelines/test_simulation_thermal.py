"""Heat: where it goes, against lumped bodies in closed form; and the recoater's rule against NetFabb's own output."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from lpbf_data.geometry.layer_groups import choose_refinement
from lpbf_data.geometry.voxel_mesh import VoxelMesh, mesh_of_mask
from pipelines.netfabb.run import NetfabbRun
from pipelines.simulation.materials.material import MATERIALS, Material, Process
from pipelines.simulation.physics.blade_pass import clearance_percent, pass_over
from pipelines.simulation.physics.layers import LayerGroup, plan_layers
from pipelines.simulation.physics.thermal import Heat, temperature_history
from pipelines.sources.case_files import FolderFiles

pytestmark = pytest.mark.numeric

COLD = 25.0


def bridge() -> VoxelMesh:
    mask = np.ones((8, 5, 7), bool)
    mask[2:6, :, :4] = False
    return mesh_of_mask(mask, (0, 0, 0), (2.0, 2.0, 2.0))


@pytest.mark.parametrize("name", list(MATERIALS))
def test_what_comes_in_is_stored_or_lost(name: str) -> None:
    material = MATERIALS[name]
    groups = plan_layers(bridge(), material.process, 0)
    for group, heat in zip(groups, temperature_history(bridge(), groups, material, material.process), strict=True):
        expected = material.process.absorption * material.process.power * group.scanning
        assert heat.absorbed == pytest.approx(expected)
        assert heat.stored + heat.lost == pytest.approx(heat.absorbed, rel=1e-6)
        assert heat.lost > 0
        assert heat.nodes.min() > COLD


def test_without_the_laser_everything_stays_cold() -> None:
    material = MATERIALS["Ti64"]
    process = dataclasses.replace(material.process, power=0.0)
    for heat in temperature_history(bridge(), plan_layers(bridge(), process, 1), material, process):
        assert np.allclose(heat.nodes, COLD)
        assert np.allclose(heat.plate, COLD)


def conducting_well(material: Material) -> Material:
    """So well that part and plate are at one temperature."""
    return dataclasses.replace(material, conductivity=((20.0, 1e3),))


def test_a_body_at_one_temperature_follows_its_heat_balance() -> None:
    # One step of the implicit Euler method for C dT/dt = Q - h A (T - cold), worked out by hand.
    process = Process()
    material = conducting_well(MATERIALS["Inc625"])
    mesh = mesh_of_mask(np.ones((5, 4, 1), bool), (0, 0, 0), (2.0, 2.0, 2.0))
    (group,) = plan_layers(mesh, process, 0)
    (heat,) = temperature_history(mesh, (group,), material, process)
    length, width, height, plate = 10.0, 8.0, 2.0, 25.0
    volume = length * width * (height + plate)
    capacity = material.density * material.specific_heat_at(COLD) * volume
    area = length * width * 2 + 2 * (length + width) * (height + plate)  # top, bottom and sides
    power = process.absorption * process.power * group.scanning / group.duration
    risen = power / (capacity / group.duration + process.convection * area)
    assert np.allclose(heat.nodes - COLD, risen, rtol=1e-3)
    assert np.allclose(heat.plate - COLD, risen, rtol=1e-3)


def test_heat_flows_down_through_a_tall_column() -> None:
    mesh = mesh_of_mask(np.ones((3, 3, 20), bool), (0, 0, 0), (2.0, 2.0, 2.4))
    material = MATERIALS["Ti64"]
    heat = temperature_history(mesh, plan_layers(mesh, material.process, 0), material, material.process)[-1]
    by_height = [heat.nodes[mesh.point_indices[:, 2] == level].mean() for level in range(21)]
    assert by_height[-1] > by_height[0] > heat.plate[0]


def test_groups_take_the_time_that_netfabb_gives_them() -> None:
    # From the log of step2: 80 layers of 40 µm with 20 s of dwell and 290.765 mm² to scan end at 1890.765 s.
    mask = np.ones((10, 10, 1), bool)
    edge = math.sqrt(290.765196858226) / 10
    mesh = mesh_of_mask(np.repeat(mask, 4, axis=2), (0, 0, 0), (edge, edge, 0.8))
    (group,) = plan_layers(mesh, Process(), 2)
    assert group.powder_layers == 80
    assert group.scanning == pytest.approx(290.765196858226)
    assert group.duration == pytest.approx(1890.765196858226)


@pytest.mark.parametrize(("planes", "height", "expected"), [(40, 0.6, 2), (25, 2.4, 0), (8, 0.6, 1), (3, 0.6, 0)])
def test_groups_are_about_two_and_a_half_millimetres_or_four(planes: int, height: float, expected: int) -> None:
    mesh = mesh_of_mask(np.ones((2, 2, planes), bool), (0, 0, 0), (1, 1, height))
    assert mesh.num_planes == planes
    assert choose_refinement(mesh.num_planes, mesh.spacing[2]) == expected


def test_fresh_material_cools_what_it_lies_on() -> None:
    mesh, material = bridge(), MATERIALS["Ti64"]
    groups = plan_layers(mesh, material.process, 0)
    heat = Heat(mesh, material, material.process)
    first = heat.build(groups[0])
    silent = dataclasses.replace(groups[1], scanning=0.0)
    assert heat.build(silent).nodes.max() < first.nodes.max()


def test_clearance_follows_netfabbs_rule(samples: Path) -> None:
    # The rule was read off this part; here it is held against every point of both groups that were measured.
    run = NetfabbRun("step2", FolderFiles(samples / "binary/step2"))
    for number, frame in ((1, 1), (2, 3)):
        case = run.read_case(("displacement", "recoater_clearance"), frame=frame)
        bottom, top = 3.2 * (number - 1), 3.2 * number
        group = LayerGroup(number, 0, 4, bottom, top, 80, 1.0, 0.0, 1.0, 1.0)
        surface = np.abs(case.points[:, 2] - top) < 1e-3
        rise = case.fields["displacement"][surface, 2].astype(np.float64)
        ours = clearance_percent(rise, group.top - group.bottom, Process())
        assert np.allclose(ours, case.fields["recoater_clearance"][surface], atol=2e-3)


def test_the_pass_of_the_blade_reads_as_in_netfabbs_table() -> None:
    # Row of step2's recoater file: 69.719 %, 3.212112 mm deformed, blade at 3.24 mm, 3.2 mm undeformed.
    group = LayerGroup(1, 0, 4, 0.0, 3.2, 80, 1.0, 0.0, 1.0, 1.0)
    rise = np.array([0.05, 0.012112 / math.sqrt(0.04 / 3.2)])
    blade = pass_over(rise, group.top - group.bottom, group, Process())
    assert blade.clearance == pytest.approx(69.72, abs=0.01)
    assert blade.deformed_top == pytest.approx(3.212112, abs=1e-6)
    assert (blade.blade, blade.top) == pytest.approx((3.24, 3.2))
