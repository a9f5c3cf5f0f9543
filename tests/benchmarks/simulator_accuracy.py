"""How near is the simulator to NetFabb and to NIST's bridges, and what does it cost? All figures in one file.

    LPBF_NETFABB_SAMPLES=folder python -m tests.benchmarks.simulator_accuracy [before|after] [pieces]

Pieces are, all by default:

- `parts`: NetFabb's two parts on NetFabb's cells, with both calibrations, beside NetFabb's results;
- `users`: the same as a user would simulate them, with `pipelines.simulate --stl`, on about 1,100 points;
- `IN625`, `15-5PH`: NIST's bridges with the calibration `measured`, beside the measured rises;
- `program`: both bridges with the calibration `netfabb`, which was made without them;
- `spread`: the IN625 bridge with groups of layers of three thicknesses;
- `cost`: processor time of a part from its parameters to files, over that of the version in `REFERENCE`, which runs in
  turn with today's from a git worktree.

Each piece is written to the JSON file as soon as it is measured, beside what was there. `before` writes to
simulator_accuracy_before.json, for figures that a change is to be compared with; `after` is the default.

Needs `binary/step2` and `ascii/meshes2` of github.com/kevinferg/netfabb-tools in the folder for `parts` and `users`,
git for `cost`, and no GPU. The result goes to results/simulator_accuracy.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree

from lpbf_data.case.case import Case
from lpbf_data.geometry.layer_groups import PlaneGroup, choose_refinement
from lpbf_data.geometry.surface_files import load_surface
from lpbf_data.geometry.voxelize import voxelize
from lpbf_data.shrinkage import MEASURED_COOLING
from pipelines.netfabb.run import NetfabbRun
from pipelines.simulate import simulate
from pipelines.simulation.materials.calibrations import netfabb
from pipelines.simulation.materials.material import MATERIALS, Material
from pipelines.simulation.physics.build_simulation import BuildSimulation
from pipelines.simulation.physics.fields import von_mises
from pipelines.simulation.physics.layers import time_groups
from pipelines.simulation.results.identity import VERSION
from pipelines.sources.case_files import FolderFiles
from tests.benchmarks import compare_amb2018 as bridge
from tests.benchmarks.compare_netfabb import CELL, PARTS, REFINEMENT, matching_points
from tests.benchmarks.machine import RESULTS, describe_machine, save_result

CALIBRATIONS: Final = ("measured", "netfabb")
USER_POINTS: Final = 1100
"""Points that a user asks for; NetFabb's meshes have 1,031 and 3,227 points."""

LEAST_CLEARANCE: Final = 69.719
"""Least clearance that NetFabb reports for step2, percent."""

REFERENCE: Final = "acc8ec5"
"""Commit whose cost today's is compared with."""

FINEST: Final = 0.5
GROUPS: Final = (FINEST, 1.0, 2.5)
"""Thicknesses of the bridge's groups of layers in mm, all on the same cells."""

_FIELDS: Final = ("displacement", "von_mises_stress")


def material(name: str, calibration: str) -> Material:
    """A material with one of the named calibrations."""
    return MATERIALS[name].calibrated(calibration)


def agreement(ours: NDArray[np.float64], theirs: NDArray[np.float32]) -> dict[str, float | None]:
    """Correlation, and ratio of the largest magnitudes; where ours is rounding alone, the ratio alone."""
    ratio = float(np.abs(ours).max() / np.abs(theirs).max())
    moved = ratio > 1e-4
    return {
        "correlation": round(float(np.corrcoef(ours, theirs)[0, 1]), 3) if moved else None,
        "ratio_of_largest": round(ratio, 3),
    }


def figures(
    moved: NDArray[np.float64], stress: NDArray[np.float64], theirs: Case, others: NDArray[np.intp]
) -> dict[str, Any]:
    """Compare the final displacement along z and x, and the von Mises stress, at NetFabb's points `others`."""
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
    """Compare a part with cells, groups of layers and process as in NetFabb's input files."""
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
    """Compare the result of `pipelines.simulate --stl … --material Inc625 --points 1100` at all of NetFabb's points."""
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
    # Some of NetFabb's points lie outside of our voxels: they get the value of our nearest point.
    nearest = cKDTree(ours.points).query(theirs.points[~inside])[1]
    found[~inside] = values[nearest]
    result = figures(found[:, :3], found[:, 3], theirs, np.arange(theirs.num_points))
    return {"our_points": ours.num_points, "points_outside_our_mesh": int((~inside).sum())} | result


def first_ridge(name: str, made_of: Material, groups: list[PlaneGroup] | None = None) -> dict[str, float]:
    """Rise of the bridge's first ridge, also over the measured one; by default with the groups that users get."""
    measured = bridge.STEELS[name][1]
    mesh = voxelize(bridge.bridge(), (bridge.CELL, bridge.CELL))
    known = made_of.calibration
    refinement = choose_refinement(mesh.num_planes, bridge.CELL, known.group_thickness, known.fewest_groups)
    simulation = BuildSimulation(mesh, made_of, bridge.PROCESS, refinement=refinement)
    if groups is not None:
        simulation.groups = time_groups(mesh, bridge.PROCESS, groups)
    *_, before, after = simulation.frames(held=bridge.held_nodes(mesh))
    rise = bridge.ridge_rise(mesh, before, after)
    found = {
        "rise_mm": round(rise[0], 4),
        "over_measured": round(rise[0] / measured[0], 3),
        "correlation_of_ridges": round(float(np.corrcoef(rise, measured)[0, 1]), 4),
    }
    print(name, known.name, known.strain, len(simulation.groups), "groups", found, flush=True)
    return found


def groups_of(thickness: float) -> list[PlaneGroup]:
    """The bridge's planes of cells in groups of a thickness in mm, of any whole number of planes."""
    size, planes = round(thickness / bridge.CELL), round(bridge.HEIGHT / bridge.CELL)
    return [PlaneGroup(n, low, min(low + size, planes)) for n, low in enumerate(range(0, planes, size), start=1)]


def cooled_by(name: str, kelvin: float) -> Material:
    """An alloy of the bridges whose layers shrink by their thermal contraction over a temperature difference."""
    made_of = material(bridge.STEELS[name][0], "measured")
    strain = -made_of.expansion * kelvin
    return dataclasses.replace(made_of, calibration=dataclasses.replace(made_of.calibration, strain=strain))


def bridge_of(name: str) -> dict[str, Any]:
    """A bridge with the cooling of the calibration `measured`, and with one that would fit its own first ridge.

    The second is estimated by proportion. Rises are linear in the cooling, so the two determine every other one.
    """
    first = first_ridge(name, cooled_by(name, MEASURED_COOLING), groups_of(FINEST))
    guess = round(MEASURED_COOLING / first["over_measured"], 1)
    second = first_ridge(name, cooled_by(name, guess), groups_of(FINEST))
    slope = (second["rise_mm"] - first["rise_mm"]) / (guess - MEASURED_COOLING)
    meets = MEASURED_COOLING + (bridge.STEELS[name][1][0] - first["rise_mm"]) / slope
    return {
        f"{MEASURED_COOLING:g} K": first,
        f"{guess:g} K": second,
        "rise_mm_a_kelvin": round(slope, 6),
        "kelvin_that_meet_it": round(meets, 1),
    }


def program() -> dict[str, Any]:
    """Both bridges with the calibration `netfabb`, which was made without them."""
    return {name: first_ridge(name, material(known, "netfabb")) for name, (known, _) in bridge.STEELS.items()}


def left_out(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """First ridges relative to the measured ones, by what the strain was calibrated on."""
    known = {name: result[name] for name in bridge.STEELS}

    def over(name: str, kelvin: float) -> float:
        first = known[name][f"{MEASURED_COOLING:g} K"]["rise_mm"]
        rise = first + known[name]["rise_mm_a_kelvin"] * (kelvin - MEASURED_COOLING)
        return round(rise / bridge.STEELS[name][1][0], 3)

    kelvins = {f"on {name}": dict.fromkeys(known, known[name]["kelvin_that_meet_it"]) for name in known}
    kelvins["on both, `measured`"] = dict.fromkeys(known, MEASURED_COOLING)
    kelvins["on NetFabb, its strain layer by layer"] = {
        name: -netfabb(MATERIALS[made_of].expansion).strain / MATERIALS[made_of].expansion
        for name, (made_of, _) in bridge.STEELS.items()
    }
    table = {source: {name: over(name, kelvin) for name, kelvin in row.items()} for source, row in kelvins.items()}
    table["on NetFabb, `netfabb`"] = {name: result["program"][name]["over_measured"] for name in known}
    return table


def spread() -> dict[str, Any]:
    """The IN625 bridge with groups of three thicknesses: range of the rises, relative to their mean."""
    made_of = material("Inc625", "measured")
    rises = {f"{size} mm": first_ridge("IN625", made_of, groups_of(size))["rise_mm"] for size in GROUPS}
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
    """Least processor seconds of several simulations of a part of so many points, with the code in a folder."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _MEASURE_COST, str(points), str(repeats)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def cost() -> dict[str, Any]:
    """Processor seconds of today's code and of the reference, run in turns, and their ratio; the least counts."""
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


PIECES: Final[dict[str, Callable[[], Any]]] = {
    "parts": lambda: {c: {p: on_netfabbs_cells(p, c) for p in PARTS} for c in CALIBRATIONS},
    "users": lambda: {c: {p: as_users_type_it(p, c) for p in PARTS} for c in CALIBRATIONS},
    **{name: partial(bridge_of, name) for name in bridge.STEELS},
    "program": program,
    "spread": spread,
    "cost": cost,
}
"""Pieces that can be measured by themselves."""


def main() -> None:
    """Measure the pieces that were asked for; the others stay in the file."""
    words = sys.argv[1:]
    if unknown := set(words) - {"before", "after", *PIECES}:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; pieces are {', '.join(PIECES)}")
    name = "simulator_accuracy_before" if "before" in words else "simulator_accuracy"
    known = RESULTS / f"{name}.json"
    for piece in [word for word in words if word in PIECES] or list(PIECES):
        started = time.perf_counter()
        found = PIECES[piece]()
        print(piece, json.dumps(found, indent=1), flush=True)
        # Read only now: another piece may have been measured meanwhile.
        result: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
        result[piece] = found
        machine = describe_machine(("numpy", "scipy", "pyamg", "numba"))
        seconds_taken = round(time.perf_counter() - started)
        result.setdefault("measured", {})[piece] = {"simulator": VERSION, "seconds": seconds_taken, "machine": machine}
        if all(one in result for one in (*bridge.STEELS, "program")):
            result["left_out"] = left_out(result)
        save_result(name, result)


if __name__ == "__main__":
    main()
