"""A result of NetFabb as measured values: the final displacement at its points, on cells of the size of its finest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import CaseError, UsageError
from lpbf_data.geometry.closed_surface import Surface, on_build_plate
from lpbf_data.geometry.surface_files import load_surface
from lpbf_data.geometry.surface_formats import Units
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.geometry.voxelize import voxelize
from lpbf_data.remarks import Remark
from pipelines.calibrating.measured_file import Measured
from pipelines.netfabb.run import NetfabbRun
from pipelines.simulation.materials.material import MATERIALS, Material
from pipelines.simulation.materials.material_files import choose_material
from pipelines.sources.case_files import FolderFiles

_MAX_POINTS: Final = 200_000
_GAP: Final = 1e-3  # mm: coordinates nearer to each other are the same


@dataclass(frozen=True)
class NetfabbResult:
    """A result, ready to be fitted to.

    Attributes:
        measured: Displacements along x, y and z at every point.
        mesh: The part, in cells of the size of NetFabb's finest.
        material: Its material and layers.
        solver: Version of the solver.
        num_points: Points of NetFabb's mesh.
        remarks: What was guessed or repaired.
    """

    measured: Measured
    mesh: VoxelMesh
    material: Material
    solver: str
    num_points: int
    remarks: tuple[Remark, ...]


def read_result(folder: Path, material: str | None, calibration: str, units: Units | None) -> NetfabbResult:
    """Read a result.

    Args:
        folder: Its folder.
        material: The material; by default the one in our table that the log names.
        calibration: Calibration to start from.
        units: Unit of lengths in the surface file.

    Raises:
        UsageError: If there is no folder, no result that can be read, no surface file or no known material.
        GeometryError: If the surface can't be meshed.
    """
    if not folder.is_dir():
        raise UsageError(f"--netfabb {folder} isn't a folder of results")
    try:
        run = NetfabbRun(folder.resolve().name, FolderFiles(str(folder)))
        case = run.read_case(("displacement",))
    except CaseError as error:
        raise UsageError(f"{folder} holds no result that can be fitted to: {error}") from error
    if case.num_points > _MAX_POINTS:
        raise UsageError(f"{folder} has {case.num_points:,} points; at most {_MAX_POINTS:,} can be fitted to")
    surfaces = sorted(folder.glob("*.[sS][tT][lL]"))
    if len(surfaces) != 1:
        raise UsageError(f"{folder} holds {len(surfaces)} STL files; it must hold the part's")
    made_of = _material(folder, run.log.material, material).calibrated(calibration)
    if run.log.layer_thickness:
        made_of = replace(made_of, process=replace(made_of.process, layer_thickness=run.log.layer_thickness))
    coordinates = case.points.astype(np.float64)
    layer = made_of.process.layer_thickness
    surface = on_build_plate(load_surface(surfaces[0], units))
    height = max(1, round(_finest(coordinates[:, 2]) / layer)) * layer
    mesh = voxelize(surface, (_width(surface, coordinates), height))
    moved = case.fields["displacement"].astype(np.float64)
    names = tuple(f"point {number}" for number in range(len(coordinates)) for _ in range(3))
    components = np.tile(np.arange(3), len(coordinates))
    measured = Measured(names, np.repeat(coordinates, 3, axis=0), components, moved.ravel(), None)
    version = run.log.solver_version or "unknown"
    return NetfabbResult(measured, mesh, made_of, version, case.num_points, tuple(run.remarks))


def _material(folder: Path, logged: str | None, asked_for: str | None) -> Material:
    if asked_for is not None:
        return choose_material(asked_for)
    said = "".join((logged or "").lower().split())
    found = [name for name in MATERIALS if name.lower() in said]
    if len(found) != 1:
        raise UsageError(
            f"the log of {folder} names the material {logged or 'nothing'}, which isn't in our table; say what it is "
            f"by --material: {', '.join(MATERIALS)}, or a YAML file"
        )
    return MATERIALS[found[0]]


def _width(surface: Surface, coordinates: NDArray[np.float64]) -> float:
    """A width of cells that gives as many along x and along y as the result has, if there is one."""
    size = np.ptp(surface.bounds, axis=0)[:2]
    finest = np.array([_finest(coordinates[:, 0]), _finest(coordinates[:, 1])])
    counts = np.maximum(np.rint(size / finest), 1)
    low, high = float((size / (counts + 0.5)).max()), float((size / (counts - 0.5)).min())
    return (low + high) / 2 if low < high else float(finest.min())


def _finest(coordinates: NDArray[np.float64]) -> float:
    """Least distance between planes of points."""
    gaps = np.diff(np.unique(coordinates))
    gaps = gaps[gaps > _GAP]
    if len(gaps) == 0:
        raise UsageError("the points of the result lie in a plane")
    return float(gaps.min())
