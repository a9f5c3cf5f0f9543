"""How near the simulator is to NetFabb and to NIST's bridges, and what it costs: every figure in one table.

    LPBF_NETFABB_SAMPLES=folder python -m tests.benchmarks.simulator_accuracy [before|after] [parts users bridges cost]

`before` names the JSON file simulator_accuracy_before, for figures that a change is held against. The folder holds
`binary/step2` and `ascii/meshes2` of github.com/kevinferg/netfabb-tools. The cost is that of a part from its parameters
to files, over the cost of the same part with the version in `REFERENCE`, run in turns from a worktree of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree

from lpbf_data.case.case import Case
from lpbf_data.geometry.layer_groups import PlaneGroup
from lpbf_data.geometry.surface_files import load_surface
from lpbf_data.geometry.voxelize import voxelize
from pipelines.netfabb.run import NetfabbRun
from pipelines.simulate import simulate
from pipelines.simulation.materials.calibrations import MEASURED_COOLING, netfabb
from pipelines.simulation.materials.material import MATERIALS, Material
from pipelines.simulation.physics.build_simulation import BuildSimulation
from pipelines.simulation.physics.fields import von_mises
from pipelines.simulation.physics.layers import time_groups
from pipelines.sources.case_files import FolderFiles
from tests.benchmarks import compare_amb2018 as bridge
from tests.benchmarks.compare_netfabb import CELL, PARTS, REFINEMENT, matching_points
from tests.benchmarks.machine import RESULTS, describe_machine, save_result

CALIBRATIONS: Final = ("measured", "netfabb")
USER_POINTS: Final = 1100
"""What a user asks for: NetFabb's meshes have 1,031 and 3,227 points."""

LEAST_CLEARANCE: Final = 69.719
"""Least clearance that NetFabb reports for step2, percent."""

REFERENCE: Final = "acc8ec5"
"""Commit whose cost is the measure."""

GROUPS: Final = (0.5, 1.0, 2.5)
"""Thickness of the bridge's groups in mm, all of the same cells."""

_FIELDS: Final = ("displacement", "von_mises_stress")


def material(name: str, calibration: str) -> Material:
    """A material with one of the named calibrations."""
    return MATERIALS[name].calibrated(calibration)


def agreement(ours: NDArray[np.float64], theirs: NDArray[np.float32]) -> dict[str, float | None]:
    """Correlation, and ratio of the largest values by size."""
    ratio = float(np.abs(ours).max() / np.abs(theirs).max())
    moved = ratio > 1e-4
    return {
        "correlation": round(float(np.corrcoef(ours, theirs)[0, 1]), 3) if moved else None,
        "ratio_of_largest": round(ratio, 3),
    }


def figures(
    moved: NDArray[np.float64], stress: NDArray[np.float64], theirs: Case, others: NDArray[np.intp]
) -> dict[str, Any]:
    """The final state at NetFabb's points `others`: along z and x, and von Mises stress."""
    real = theirs.fields["displacement"][others]
    mises = theirs.fields["von_mises_stress"][others].ravel()
    quantiles = {
        f"over_netfabb_{q}%": round(float(np.percentile(stress, q) / np.percentile(mises, q)), 3) for q in (50, 95)
    }
    return {
        "points_compared": len(others),
        "z": agreement(moved[:, 2], real[:, 2]),
        "x": agreement(moved[:, 0], real[:, 0]),
        "von_mises": agreement(stress, mises) | quantiles,
    }


def netfabb_run(name: str) -> NetfabbRun:
    """NetFabb's result for one of the two parts."""
    folder = Path(os.environ["LPBF_NETFABB_SAMPLES"], PARTS[name])
    return NetfabbRun(folder.name, FolderFiles(folder))


def surface_file(name: str) -> Path:
    """The part's STL file."""
    return next(Path(os.environ["LPBF_NETFABB_SAMPLES"], PARTS[name]).glob("*.stl"))


def on_netfabbs_cells(name: str, calibration: str) -> dict[str, Any]:
    """A part meshed, grouped and processed as NetFabb's input files say."""
    mesh = voxelize(load_surface(surface_file(name)), CELL)
    simulation = BuildSimulation(mesh, material("Inc625", calibration), refinement=REFINEMENT)
    *_, last = simulation.frames()
    theirs = netfabb_run(name).read_case(_FIELDS)
    ours, others = matching_points(mesh.points, theirs.points)
    result = figures(last.state.displacement[ours], von_mises(last.state.stress)[ours], theirs, others)
    least = min((one.clearance for one in simulation.passes), default=None)
    if name == "step2" and least is not None:
        result["clearance"] = {"least_percent": round(least, 2), "off_by": round(least - LEAST_CLEARANCE, 2)}
    return result


def _interpolated(
    case: Case, values: NDArray[np.float64], points: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values of a mesh of equal boxes at other points, trilinear, and which points lie in the mesh."""
    axes = [np.unique(case.points[:, k].round(4)) for k in range(3)]
    grid = np.full((*(len(axis) for axis in axes), values.shape[1]), np.nan)
    places = tuple(np.searchsorted(axes[k], case.points[:, k].round(4) - 1e-6) for k in range(3))
    grid[places] = values
    found = RegularGridInterpolator(tuple(axes), grid, bounds_error=False)(points)
    return found, np.isfinite(found).all(axis=1)


def as_users_type_it(name: str, calibration: str) -> dict[str, Any]:
    """`pipelines.simulate --stl … --material Inc625 --points 1100` at NetFabb's points, where ours has material."""
    with tempfile.TemporaryDirectory() as folder:
        simulate(
            folder,
            stl=[str(surface_file(name))],
            material="Inc625",
            calibration=calibration,  # type: ignore[arg-type]
            points=USER_POINTS,
            workers=0,
        )
        place = next(path for path in Path(folder).iterdir() if path.is_dir() and not path.name.startswith("."))
        ours = NetfabbRun(place.name, FolderFiles(place)).read_case(_FIELDS)
    theirs = netfabb_run(name).read_case(_FIELDS)
    values = np.concatenate([ours.fields["displacement"], ours.fields["von_mises_stress"].reshape(-1, 1)], axis=1)
    found, inside = _interpolated(ours, values.astype(np.float64), theirs.points.astype(np.float64))
    # Steps of the voxels leave some of NetFabb's points outside our mesh: the nearest node speaks for them.
    nearest = cKDTree(ours.points).query(theirs.points[~inside])[1]
    found[~inside] = values[nearest]
    result = figures(found[:, :3], found[:, 3], theirs, np.arange(theirs.num_points))
    return {"our_points": ours.num_points, "points_outside_our_mesh": int((~inside).sum())} | result


def first_ridge(name: str, made_of: Material, thickness: float = 0.5) -> dict[str, float]:
    """Rise of the bridge's first ridge over the measured one."""
    measured = bridge.STEELS[name][1]
    mesh = voxelize(bridge.bridge(), (bridge.CELL, bridge.CELL))
    simulation = BuildSimulation(mesh, made_of, bridge.PROCESS)
    simulation.groups = time_groups(mesh, bridge.PROCESS, groups_of(mesh.num_planes, round(thickness / bridge.CELL)))
    *_, before, after = simulation.frames(held=bridge.held_nodes(mesh))
    rise = bridge.ridge_rise(mesh, before, after)
    return {
        "rise_mm": round(rise[0], 4),
        "over_measured": round(rise[0] / measured[0], 3),
        "correlation_of_ridges": round(float(np.corrcoef(rise, measured)[0, 1]), 4),
    }


def groups_of(planes: int, size: int) -> list[PlaneGroup]:
    """Groups of so many planes of cells, also where that is no power of two."""
    starts = range(0, planes, size)
    return [PlaneGroup(number, low, min(low + size, planes)) for number, low in enumerate(starts, start=1)]


def bridges(calibration: str) -> dict[str, Any]:
    """Both alloys with a calibration, and the spread over the thickness of groups."""
    result: dict[str, Any] = {}
    for name, (known_as, _) in bridge.STEELS.items():
        result[name] = first_ridge(name, material(known_as, calibration))
        print(calibration, name, result[name], flush=True)
    if calibration == "measured":
        result["cooling_kelvin"] = MEASURED_COOLING
        over = {name: float(result[name]["over_measured"]) for name in bridge.STEELS}
        result["left_out"] = left_out(over, MEASURED_COOLING)
    return result


def left_out(over_measured: dict[str, float], cooling: float) -> dict[str, dict[str, float]]:
    """What the first ridges would be over the measured ones had a source not been used; rises follow the strain.

    Args:
        over_measured: Ratio of each alloy with thermal contraction over some temperature difference.
        cooling: That temperature difference, K.
    """
    first, second = over_measured
    over_netfabb = {}
    for name, (known_as, _) in bridge.STEELS.items():
        expansion = MATERIALS[known_as].expansion
        over_netfabb[name] = round(over_measured[name] * netfabb(expansion).strain / (-expansion * cooling), 3)
    return {
        "calibrated on the other alloy": {
            first: round(over_measured[first] / over_measured[second], 3),
            second: round(over_measured[second] / over_measured[first], 3),
        },
        "calibrated on NetFabb alone": over_netfabb,
    }


def spread(calibration: str) -> dict[str, Any]:
    """The IN625 bridge with three thicknesses of groups: largest difference over the mean."""
    made_of = material("Inc625", calibration)
    rises = {f"{size} mm": first_ridge("IN625", made_of, size)["rise_mm"] for size in GROUPS}
    values = np.array(list(rises.values()))
    return {"rise_mm": rises, "spread": round(float(np.ptp(values) / values.mean()), 4)}


_MEASURE_COST: Final = """
import sys, tempfile
from pathlib import Path
from threadpoolctl import threadpool_limits
from tests.benchmarks.simulate import simulate_part
with tempfile.TemporaryDirectory() as base, threadpool_limits(limits=1):
    simulate_part(1000, Path(base, "warm"))
    print(min(simulate_part(int(sys.argv[1]), Path(base, str(k)))["cpu_seconds"] for k in range(int(sys.argv[2]))))
"""


def seconds(folder: Path, points: int, repeats: int) -> float:
    """Seconds of one core for a part of so many points with the code in a folder."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _MEASURE_COST, str(points), str(repeats)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def cost() -> dict[str, Any]:
    """Seconds of today's code over those of the reference, in turns; the least of each counts."""
    here = Path(__file__).resolve().parents[2]
    result: dict[str, Any] = {"reference": REFERENCE}
    with tempfile.TemporaryDirectory() as base:
        tree = Path(base, "reference")
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(tree), REFERENCE], cwd=here, check=True, capture_output=True
        )
        try:
            for points, repeats in ((2000, 3), (20_000, 1)):
                runs = [(seconds(tree, points, repeats), seconds(here, points, repeats)) for _ in range(3)]
                reference, ours = (min(run[k] for run in runs) for k in range(2))
                result[f"{points} points"] = {
                    "reference_cpu_seconds": round(reference, 3),
                    "cpu_seconds": round(ours, 3),
                    "ratio": round(ours / reference, 2),
                }
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=here, check=True)
    return result


def main() -> None:
    """Measure what was asked for, keep the rest of the file."""
    words = sys.argv[1:]
    name = "simulator_accuracy_before" if "before" in words else "simulator_accuracy"
    jobs: dict[str, Callable[[], Any]] = {
        "parts": lambda: {c: {p: on_netfabbs_cells(p, c) for p in PARTS} for c in CALIBRATIONS},
        "users": lambda: {c: {p: as_users_type_it(p, c) for p in PARTS} for c in CALIBRATIONS},
        "bridges": lambda: {c: bridges(c) for c in CALIBRATIONS},
        "spread": lambda: spread("measured"),
        "cost": cost,
    }
    known = RESULTS / f"{name}.json"
    result: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    for job in [word for word in words if word in jobs] or list(jobs):
        result[job] = jobs[job]()
        print(job, json.dumps(result[job], indent=1), flush=True)
        result["machine"] = describe_machine(("numpy", "scipy", "pyamg"))
        save_result(name, result)


if __name__ == "__main__":
    main()
