"""How long do builds that multigrid solves take beside an earlier version's, and do both give the same?

    git worktree add ../earlier 712ea3d
    python -m tests.benchmarks.simulator_speed --earlier ../earlier

Parts of the simulator's plain corpus, one after the other, are built to their end by this version and by that in the
folder --earlier, in processes of their own that take turns, with one thread each. Told are the processor time of a
build without what a process loads and compiles, and how far the final displacements are apart. The time to load and
compile is told apart: at the first run on a machine, and when compiled code is found on disk.

Needs no GPU and no data. The result is results/simulator_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.benchmarks.machine import describe_machine, save_result

SEED: Final = 77
POINTS: Final = 14_000
PARTS: Final = (6, 3, 9, 1)
"""Numbers of parts in a corpus of that seed and median number of points."""

HERE: Final = Path(__file__).parents[2]

BUILD: Final = """
import json, sys, time
import numpy as np
from lpbf_data.geometry.layer_groups import choose_refinement
from lpbf_data.geometry.voxel_mesh import mesh_of_mask
from lpbf_data.geometry.voxelize import voxelize_to_size
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.parts.corpus import part_surface, plan_corpus
from pipelines.simulation.physics.build_simulation import BuildSimulation
from pipelines.simulation.physics import stiffness

seed, points, number, out = *map(int, sys.argv[1:4]), sys.argv[4]
material = MATERIALS["Ti64"]
known = material.calibration

def build(mesh):
    refinement = choose_refinement(mesh.num_planes, mesh.spacing[2], known.group_thickness, known.fewest_groups)
    simulation = BuildSimulation(mesh, material, refinement=refinement)
    for frame in simulation.frames():
        pass
    return frame

rate, begin = stiffness._DENSE_RATE, time.process_time()
stiffness._DENSE_RATE = 1.0  # multigrid for the small part too
build(mesh_of_mask(np.ones((7, 6, 9), dtype=bool), (0, 0, 0), (1, 1, 0.8)))
stiffness._DENSE_RATE, loaded = rate, time.process_time() - begin
plan = plan_corpus(seed, number + 1, points)[number]
surface = part_surface(
    plan.family, plan.parameters, plan.up, height=plan.height, tilt=plan.tilt, sized_for=plan.sized_for
)
mesh = voxelize_to_size(surface, plan.num_points, plan.aspect_ratio, layer=0.04, planes=2)
begin = time.process_time()
frame = build(mesh)
seconds = time.process_time() - begin
np.save(out, frame.state.displacement)
found = {"seconds": seconds, "loading_and_compiling": loaded, "family": plan.family, "points": mesh.num_points}
print(json.dumps(found))
"""


def build(tree: Path, number: int, out: Path, cache: Path) -> dict[str, Any]:
    """Build a part by the code in a folder.

    Args:
        tree: The folder.
        number: The part.
        out: Where its displacement goes, a file of NumPy.
        cache: Where compiled code is kept.
    """
    path = os.pathsep.join([str(tree), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(SEED), str(POINTS), str(number), str(out)], cwd=tree, check=False,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the version in {tree} can't build part {number}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(earlier: Path, number: int, folder: Path) -> dict[str, Any]:
    """A part by both versions."""
    rows, fields = {}, []
    for name, tree in (("this", HERE), ("earlier", earlier)):
        rows[name] = build(tree, number, folder / f"{name}.npy", folder / f"cache {name}")
        fields.append(np.load(folder / f"{name}.npy"))
    row = {
        "family": rows["this"]["family"],
        "points": rows["this"]["points"],
        "cpu_seconds": {name: round(one["seconds"], 2) for name, one in rows.items()},
        "earlier_over_this": round(rows["earlier"]["seconds"] / rows["this"]["seconds"], 2),
        "largest_displacement_mm": round(float(np.abs(fields[1]).max()), 4),
        "largest_difference_mm": round(float(np.abs(fields[0] - fields[1]).max()), 6),
    }
    print(row, flush=True)
    return row


def main(earlier: Path) -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fresh, kept = (build(HERE, PARTS[0], folder / "one.npy", folder / "cache this") for _ in range(2))
        loading = {
            "compiled": round(fresh["loading_and_compiling"], 2),
            "found on disk": round(kept["loading_and_compiling"], 2),
        }
        rows = [compare(earlier, number, folder) for number in PARTS]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=earlier, capture_output=True, text=True, check=True
    )
    result = {
        "machine": describe_machine(("numpy", "scipy", "pyamg", "numba")),
        "earlier": commit.stdout.strip(),
        "seconds_of_a_process_before_its_first_part": loading,
        "parts": rows,
    }
    save_result("simulator_speed", result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earlier", type=Path, required=True, help="folder with an earlier version of this repository")
    main(parser.parse_args().earlier)
