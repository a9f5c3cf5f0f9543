"""What does a simulated case cost in seconds of one core, and how does that grow with the number of points?

    python -m tests.benchmarks.simulate

One part in eight groups of layers is simulated at 1,000 to 20,000 points, from its parameters to files on disk; of
three runs the one with the least processor time counts. The processor's seconds are what is judged, because other work
may run beside; elapsed seconds are stored too. Compared are two limits: 2 s for 2,000 points, and growth by a power of
1.2.

Needs no GPU and no data. The result goes to results/simulate.json.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from lpbf_data.durable import flush_tree
from lpbf_data.geometry.closed_surface import Surface
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.geometry.voxelize import voxelize
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.parts.corpus import part_surface
from pipelines.simulation.physics.build_simulation import BuildSimulation
from pipelines.simulation.results.result_writer import ResultWriter
from pipelines.simulation.results.run_log import RunNames
from tests.benchmarks.machine import describe_machine, save_result

SIZES: Final = (1000, 2000, 5000, 10_000, 20_000)
GROUPS: Final = 8
REPEATS: Final = 3
FAMILY: Final = "ribbed_plate"
PARAMETERS: Final = {
    "width": 40.0,
    "thickness": 5.0,
    "ribs": 3.0,
    "rib_height": 15.0,
    "rib_thickness": 5.0,
    "holes": 2.0,
    "hole_radius": 3.0,
}
LARGEST_SECONDS: Final = 2.0  # allowed for a case of 2,000 points
LARGEST_EXPONENT: Final = 1.2  # allowed for seconds over points


def mesh_for(surface: Surface, points: int) -> tuple[VoxelMesh, int]:
    """A mesh of about so many points, and the refinement with which its groups of layers are as thick at every size."""
    group = round(float(np.ptp(surface.bounds[:, 2])) / GROUPS / 0.16) * 0.16
    refinement = 0 if points < 4000 else 1  # so that cells are about cubes
    width = 4.0
    for _ in range(12):
        mesh = voxelize(surface, (width, group / 2**refinement))
        width *= (mesh.num_points / points) ** 0.45
    return mesh, refinement


def simulate_part(points: int, folder: Path) -> dict[str, Any]:
    """Simulate one case, from its parameters to flushed files."""
    started, wall = time.process_time(), time.perf_counter()
    surface = part_surface(FAMILY, PARAMETERS, 0)
    mesh, refinement = mesh_for(surface, points)
    simulation = BuildSimulation(mesh, MATERIALS["Ti64"], refinement=refinement)
    writer = ResultWriter(folder, RunNames("", "test.stl"), simulation)
    writer.write_setup(surface)
    for frame in simulation.frames():
        writer.write_frame(frame)
    writer.write_thermal()
    writer.write_results()
    writer.write_global_clearance()
    flush_tree(folder)
    assert len(simulation.groups) == GROUPS
    return {
        "points": mesh.num_points,
        "groups": len(simulation.groups),
        "files": sum(1 for p in folder.rglob("*") if p.is_file()),
        "cpu_seconds": round(time.process_time() - started, 3),
        "wall_seconds": round(time.perf_counter() - wall, 3),
    }


def main() -> None:
    """Measure every size, take the fastest of three runs, save."""
    rows = []
    with tempfile.TemporaryDirectory() as base, threadpool_limits(limits=1):
        simulate_part(SIZES[0], Path(base, "warm"))
        for points in SIZES:
            runs = []
            for _ in range(REPEATS):
                folder = Path(base, "case")
                shutil.rmtree(folder, ignore_errors=True)
                runs.append(simulate_part(points, folder))
            rows.append(min(runs, key=lambda run: run["cpu_seconds"]))
            print(rows[-1])
    logs = np.log([[row["points"], row["cpu_seconds"]] for row in rows])
    exponent = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    ends = float((logs[-1, 1] - logs[0, 1]) / (logs[-1, 0] - logs[0, 0]))
    result = {
        "machine": describe_machine(("numpy", "scipy", "pyamg", "numba", "scikit-fem", "manifold3d")),
        "cases": rows,
        "exponent_of_all_sizes": round(exponent, 3),
        "exponent_between_the_ends": round(ends, 3),
        "seconds_allowed_at_2000_points": LARGEST_SECONDS,
        "exponent_allowed": LARGEST_EXPONENT,
        "within_both": bool(rows[1]["cpu_seconds"] < LARGEST_SECONDS and max(exponent, ends) <= LARGEST_EXPONENT),
    }
    print(save_result("simulate", result), exponent, ends)


if __name__ == "__main__":
    main()
