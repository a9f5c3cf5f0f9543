"""How near is the simulator to NetFabb? Two real parts, simulated from their STL files with the calibration `netfabb`.

    LPBF_NETFABB_SAMPLES=folder python -m tests.benchmarks.compare_netfabb        # in the root of the repository

The folder holds `binary/step2` and `ascii/meshes2` of github.com/kevinferg/netfabb-tools (example-result-files), which
are inputs and results of NetFabb. Cells, layer groups and process are those of NetFabb's input files; the material is
Inc625 of our table. Fields are compared at the points that both meshes have.

Needs these files, and no GPU. The result goes to results/compare_netfabb.json, pictures to
pipelines/simulation/pictures/netfabb_step2.png and netfabb_meshes2.png.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lpbf_data.case.case import Case
from lpbf_data.geometry.render import Panel, render_panels
from lpbf_data.geometry.surface_files import load_surface
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.geometry.voxelize import voxelize
from pipelines.netfabb.run import NetfabbRun
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.physics.build_simulation import BuildSimulation, Frame
from pipelines.simulation.physics.fields import von_mises
from pipelines.sources.case_files import FolderFiles
from tests.benchmarks.machine import describe_machine, save_result

PARTS: Final = {"step2": "binary/step2", "meshes2": "ascii/meshes2"}
CELL: Final = (0.625, 0.8)  # width that NetFabb fits to the bounding box, and height of 20 powder layers
REFINEMENT: Final = 2  # *PBLR 2: groups of four planes of cells
PICTURE: Final = Path("pipelines/simulation/pictures/netfabb.png")
_SAME_PLACE: Final = 2e-3  # mm
_ROUNDING: Final = 1e-4  # of the largest value


def matching_points(ours: NDArray[np.float64], theirs: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Indices of our points, [N, 3] in mm, and of NetFabb's, [M, 3] in mm, that coincide."""
    distance, nearest = cKDTree(ours).query(theirs, distance_upper_bound=_SAME_PLACE)
    found = np.isfinite(distance)
    return nearest[found], np.flatnonzero(found)


def compare_fields(ours: NDArray[np.float64], theirs: NDArray[np.float32]) -> dict[str, float | None]:
    """Correlation of ours with theirs, ratio of the largest magnitudes, and the factor on ours that fits theirs best.

    Where our values are rounding errors alone, correlation and factor are None.
    """
    ratio = float(np.abs(ours).max() / np.abs(theirs).max())
    moved = ratio > _ROUNDING
    return {
        "correlation": round(float(np.corrcoef(ours, theirs)[0, 1]), 3) if moved else None,
        "ratio_of_maxima": round(ratio, 3),
        "best_factor": round(float(ours @ theirs / (ours @ ours)), 3) if moved else None,
        "ours_least": round(float(ours.min()), 5),
        "ours_largest": round(float(ours.max()), 5),
        "netfabb_least": round(float(theirs.min()), 5),
        "netfabb_largest": round(float(theirs.max()), 5),
    }


def inherent_strain_of(case: Case) -> dict[str, Any]:
    """The inherent strain in a NetFabb result: its field "elastic strain" less the elastic strain of its stress.

    That field holds the inherent strain too; the elastic part follows from the stress by Hooke's law. Mean and standard
    deviation along x, y and z are over the points of the part more than 2 mm above the plate.
    """
    material = MATERIALS["Inc625"].calibrated("netfabb")
    stress, strain = (case.fields[n].astype(np.float64) for n in ("cauchy_stress", "elastic_strain"))
    trace = stress[:, :3].sum(axis=1, keepdims=True)
    elastic = ((1 + material.poisson) * stress[:, :3] - material.poisson * trace) / material.young
    whole, heights = strain[:, :3] - elastic, case.points[:, 2].round(2)
    rest = whole[heights > 2.0]
    return {
        "mean": rest.mean(axis=0).round(5).tolist(),
        "standard_deviation": rest.std(axis=0).round(5).tolist(),
        "mean_along_x_by_height": {
            f"{height:g} mm": round(float(whole[heights == height, 0].mean()), 5)
            for height in np.unique(heights[heights >= 0])
        },
    }


def compare_part(name: str, folder: Path) -> tuple[dict[str, Any], list[Panel]]:
    """Simulate a part and compare it with NetFabb's result; also panels for a picture of both."""
    mesh = voxelize(load_surface(next(folder.glob("*.stl"))), CELL)
    simulation = BuildSimulation(mesh, MATERIALS["Inc625"].calibrated("netfabb"), refinement=REFINEMENT)
    frames = list(simulation.frames())
    run = NetfabbRun(folder.name, FolderFiles(folder))
    theirs = run.read_case(("displacement", "von_mises_stress"))
    ours, others = matching_points(mesh.points, theirs.points)
    moved = frames[-1].state.displacement
    result: dict[str, Any] = {
        "our_points": mesh.num_points,
        "our_cells_before_netfabb_merges_them": mesh.num_cells,
        "netfabb_points": theirs.num_points,
        "points_compared": len(ours),
        "temperature_C": _temperatures(run, mesh, frames),
        "recoater_clearance_percent": [round(one.clearance, 3) for one in simulation.passes],
        "netfabb_inherent_strain": inherent_strain_of(run.read_case(("cauchy_stress", "elastic_strain"), frame=-2)),
        "our_inherent_strain": list(MATERIALS["Inc625"].calibrated("netfabb").inherent_strain),
    }
    for axis, label in enumerate("xyz"):
        values = theirs.fields["displacement"][others, axis]
        result[f"final_displacement_{label}_mm"] = compare_fields(moved[ours, axis], values)
    stress = von_mises(frames[-1].state.stress)[ours]
    result["final_von_mises_stress_MPa"] = compare_fields(stress, theirs.fields["von_mises_stress"][others])
    own = Case(name, mesh.points.astype(np.float32), mesh.cells, {"displacement": moved.astype(np.float32)})
    return result, [Panel(theirs, f"{name}, NetFabb"), Panel(own, f"{name}, this simulator")]


def _temperatures(run: NetfabbRun, mesh: VoxelMesh, frames: list[Frame]) -> list[dict[str, list[float]]]:
    """Least and largest temperature, °C, after each group of layers; NetFabb writes 25 °C for the last group."""
    rows = []
    for index in range(0, len(frames) - 2, 2):
        theirs = run.read_case(("temperature",), frame=index)
        _, others = matching_points(mesh.points, theirs.points)
        values = theirs.fields["temperature"][others]
        rows.append(
            {
                "ours": [
                    round(float(frames[index].temperature.min()), 1),
                    round(float(frames[index].temperature.max()), 1),
                ],
                "netfabb": [round(float(values.min()), 1), round(float(values.max()), 1)],
            }
        )
    return rows


def main() -> None:
    """Compare both parts, save the figures and a picture of each."""
    samples = os.environ.get("LPBF_NETFABB_SAMPLES", "")
    if not Path(samples, PARTS["step2"]).is_dir():
        sys.exit("LPBF_NETFABB_SAMPLES doesn't name a folder with binary/step2 and ascii/meshes2")
    results: dict[str, Any] = {}
    for name, place in PARTS.items():
        results[name], panels = compare_part(name, Path(samples, place))
        render_panels(panels, PICTURE.with_name(f"netfabb_{name}.png"), panel_size=(460, 360))
    results["step2"]["netfabb_recoater_clearance_percent"] = [69.719, 103.954]  # its recoater file
    save_result(
        "compare_netfabb", {"machine": describe_machine(("numpy", "scipy", "pyamg", "numba")), "parts": results}
    )


if __name__ == "__main__":
    main()
