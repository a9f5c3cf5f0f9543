"""The simulator against a measurement: the AM-Bench bridge AMB2018-01 in IN625, cut from its plate by wire EDM.

    python -m tests.benchmarks.compare_amb2018

Geometry and measurement: NIST AM-Bench 2018, test AMB2018-01 and result CHAL-AMB2018-01-PD
(https://www.nist.gov/ambench/amb2018-01-description, https://www.nist.gov/ambench/chal-amb2018-01-pd); Phan et al.
2019, "Elastic Residual Strain and Stress Measurements and Corresponding Part Deflections of 3D Additive Manufacturing
Builds of IN625 AM-Bench Artifacts", Integrating Materials and Manufacturing Innovation 8:318-334, figure 16.

A bridge of 75 x 5 x 12.5 mm stands on twelve legs and an end block. The legs are cut free, the end block stays on the
plate, and the rise of eleven ridges on the top is measured against its height before the cut. Nothing is tuned.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from manifold3d import CrossSection, Manifold
from numpy.typing import NDArray

from lpbf_data.geometry.voxelize import Surface, VoxelMesh, surface_of_arrays, voxelize
from pipelines.simulation.build_simulation import BuildSimulation, Frame
from pipelines.simulation.materials import MATERIALS, Material, Process
from tests.benchmarks.figures import line_figure
from tests.benchmarks.machine import describe_machine, save_result

RIDGES: Final = tuple(0.5 + 7.0 * number for number in range(11))
"""Middle of each ridge, mm along the bridge."""

MEASURED: Final = (1.276, 0.997, 0.754, 0.551, 0.387, 0.250, 0.146, 0.065, 0.012, 0.000, 0.003)
"""Rise of each ridge of part AMB2018-01-625-CBM-B1-P3 after the cut, mm."""

MEASURED_15_5: Final = (1.168, 0.914, 0.695, 0.516, 0.358, 0.231, 0.133, 0.076, 0.008, 0.002, -0.001)
"""The same for 15-5PH steel (part AMB2018-01-15.5-CBM-B3-P3)."""

STEELS: Final = {"IN625": ("Inc625", MEASURED), "15-5PH": ("15-5PH", MEASURED_15_5)}
"""Names of the materials at NIST: name in our table, measured rise."""

VOLUME: Final = 3732.5
"""Volume of NIST's STL file of the part, mm³."""

CELL: Final = 0.5
"""Edge of a cell, mm: the height of a ridge, and 25 powder layers."""

_GAPS: Final = (5.0, 7.5, 12.0)  # left ends of the 2 mm gaps between legs, every 14 mm
_BLOCK: Final = 56.0  # where the end block begins
# EOS M270: 195 W, 800 mm/s, 20 µm layers of 52 s each, of which half is scanning four parts.
PROCESS: Final = Process(machine="M270", power=195.0, layer_thickness=0.02, dwell=40.0)


def bridge() -> Surface:
    """The part, its long side along x."""
    plan = CrossSection([[(0, 0), (72.5, 0), (75, 2.5), (72.5, 5), (0, 5)]])
    body = plan.extrude(12.0)
    for period in range(4):
        for left in _GAPS:
            x = left + 14.0 * period
            # The gap closes from its right side at 45 degrees, from 5 mm up.
            gap = CrossSection([[(x, -1), (x + 2, -1), (x + 2, 5), (x, 7)]]).extrude(7.0)
            body = body - gap.rotate((90, 0, 0)).translate((0, 6, 0))
    for middle in RIDGES:
        body = body + Manifold.cube((1.0, 5.0, 0.5)).translate((middle - 0.5, 0, 12.0))
    mesh = body.to_mesh64()
    return surface_of_arrays(np.asarray(mesh.vert_properties)[:, :3], mesh.tri_verts)


def ridge_rise(mesh: VoxelMesh, before: Frame, after: Frame) -> list[float]:
    """Mean rise of the top of each ridge, mm."""
    top = mesh.points[:, 2] > 12.5 - 1e-6
    rise = after.state.displacement[:, 2] - before.state.displacement[:, 2]
    return [float(rise[top & (np.abs(mesh.points[:, 0] - x) < 0.51)].mean()) for x in RIDGES]


def held_nodes(mesh: VoxelMesh) -> NDArray[np.bool_]:
    """Which nodes of the lowest plane the cut leaves on the plate."""
    held: NDArray[np.bool_] = mesh.points[mesh.point_levels == 0, 0] > _BLOCK - 1e-6
    return held


def simulate(mesh: VoxelMesh, material: Material, measured: tuple[float, ...]) -> dict[str, Any]:
    """The bridge with thick and with thin groups of layers, beside what was measured."""
    results = {}
    for refinement in (1, 0):
        simulation = BuildSimulation(mesh, material, PROCESS, refinement=refinement)
        started = time.process_time()
        frames = list(simulation.frames(held=held_nodes(mesh)))
        rise = ridge_rise(mesh, frames[-2], frames[-1])
        fit = float(np.dot(rise, measured) / np.dot(rise, rise))
        results[f"groups of layers of {CELL * 2**refinement} mm"] = {
            "points": mesh.num_points,
            "layer_groups": len(simulation.groups),
            "rise_mm": [round(value, 4) for value in rise],
            "ridge_1_ratio": round(rise[0] / measured[0], 3),
            "correlation": round(float(np.corrcoef(rise, measured)[0, 1]), 5),
            "factor_that_would_fit_best": round(fit, 3),
            "rms_difference_after_that_mm": round(float(np.sqrt(np.mean((fit * np.array(rise) - measured) ** 2))), 4),
            "cpu_seconds": round(time.process_time() - started, 1),
        }
    return results


def main() -> None:
    """Simulate, compare, draw."""
    surface = bridge()
    assert abs(surface.volume - VOLUME) < 0.1, surface.volume
    mesh = voxelize(surface, (CELL, CELL))
    results, curves = {}, {}
    for name, (known_as, measured) in STEELS.items():
        material = MATERIALS[known_as]
        simulated = simulate(mesh, material, measured)
        results[name] = {
            "inherent_strain": material.inherent_strain,
            "measured_mm": measured,
            "simulated": simulated,
        }
        curves[f"measured, {name}"] = measured
        curves |= {f"simulated, {name}, {groups}": content["rise_mm"] for groups, content in simulated.items()}
        print(name, simulated)
    save_result(
        "compare_amb2018",
        {
            "machine": describe_machine(("numpy", "scipy", "pyamg")),
            "process": dataclasses.asdict(PROCESS),
            "x_mm": RIDGES,
            "materials": results,
        },
    )
    line_figure(
        Path("pipelines/simulation/pictures/amb2018.png"),
        RIDGES,
        curves,
        x="distance from the free end [mm]",
        y="rise after the cut [mm]",
        title="AM-Bench AMB2018-01 bridge",
    )


if __name__ == "__main__":
    main()
