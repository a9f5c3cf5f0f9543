"""How near is the simulator to a measurement? NIST's bridge AMB2018-01 in IN625 and in 15-5PH steel.

    python -m tests.benchmarks.compare_amb2018        # in the root of the repository

A bridge of 75 x 5 x 12.5 mm stands on twelve legs and an end block. The legs are cut from the plate by wire EDM, the
end block stays on it, and the rise of eleven ridges on the top is measured against their height before the cut.
Simulated rises, with thick and with thin groups of layers, are compared with the measured ones. The calibration is
`measured`, whose single strain was chosen for these two bridges: agreement here is one of a fit, not of a prediction.

Geometry and measurement: NIST AM-Bench 2018, test AMB2018-01 and result CHAL-AMB2018-01-PD
(https://www.nist.gov/ambench/amb2018-01-description, https://www.nist.gov/ambench/chal-amb2018-01-pd); Phan et al.
2019, "Elastic Residual Strain and Stress Measurements and Corresponding Part Deflections of 3D Additive Manufacturing
Builds of IN625 AM-Bench Artifacts", Integrating Materials and Manufacturing Innovation 8:318-334, figure 16.

Needs no GPU and no data: the measurement comes with the package. The result goes to results/compare_amb2018.json, the
picture to pipelines/simulation/pictures/amb2018.png.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.geometry.voxelize import voxelize
from pipelines.calibrating.measured_file import read_measured
from pipelines.simulation.materials.material import MATERIALS, Material
from pipelines.simulation.parts.named_parts import BRIDGE_PROCESS, NAMED_PARTS, RIDGES, bridge
from pipelines.simulation.physics.build_simulation import BuildSimulation, Frame
from pipelines.simulation.results.identity import VERSION
from tests.benchmarks.figures import line_figure
from tests.benchmarks.machine import describe_machine, save_result


def measured_rise(name: str) -> tuple[float, ...]:
    """Rise of each ridge of a bridge as NIST measured it, mm."""
    return tuple(map(float, read_measured(NAMED_PARTS["amb2018_bridge"].measured[name]).values))


MEASURED: Final = measured_rise("Inc625")
"""Rise of each ridge of part AMB2018-01-625-CBM-B1-P3 after the cut, mm."""

MEASURED_15_5: Final = measured_rise("15-5PH")
"""The same for 15-5PH steel (part AMB2018-01-15.5-CBM-B3-P3)."""

STEELS: Final = {"IN625": ("Inc625", MEASURED), "15-5PH": ("15-5PH", MEASURED_15_5)}
"""NIST's name of each material: its name in our table of materials, and the measured rises."""

VOLUME: Final = 3732.5
"""Volume of NIST's STL file of the part, mm³."""

CELL: Final = 0.5
"""Edge of a cell, mm: the height of a ridge, and 25 powder layers."""

HEIGHT: Final = 12.5
"""Height of the bridge with its ridges, mm."""

_BLOCK: Final = 56.0  # x of the begin of the end block, mm
PROCESS: Final = BRIDGE_PROCESS


def ridge_rise(mesh: VoxelMesh, before: Frame, after: Frame) -> list[float]:
    """Mean rise of the top of each ridge, mm."""
    top = mesh.points[:, 2] > HEIGHT - 1e-6
    rise = after.state.displacement[:, 2] - before.state.displacement[:, 2]
    return [float(rise[top & (np.abs(mesh.points[:, 0] - x) < 0.51)].mean()) for x in RIDGES]


def held_nodes(mesh: VoxelMesh) -> NDArray[np.bool_]:
    """Which nodes of the lowest plane stay on the plate after the cut."""
    held: NDArray[np.bool_] = mesh.points[mesh.point_levels == 0, 0] > _BLOCK - 1e-6
    return held


def simulate(mesh: VoxelMesh, material: Material, measured: tuple[float, ...]) -> dict[str, Any]:
    """Simulate the bridge with thick and with thin groups of layers, and compare it with the measured rises in mm."""
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
    """Simulate both bridges, compare, save, and draw the picture."""
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
            "machine": describe_machine(("numpy", "scipy", "pyamg", "numba")),
            "simulator": VERSION,
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
