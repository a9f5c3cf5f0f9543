"""What a calibration was asked for, checked before any simulation starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from lpbf_data.durable import sha256_of_file, sha256_of_tree
from lpbf_data.errors import UsageError
from lpbf_data.geometry.closed_surface import Surface, on_build_plate
from lpbf_data.geometry.faithful_mesh import mesh_faithfully
from lpbf_data.geometry.surface_files import load_bodies
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.geometry.voxelize import voxelize, voxelize_to_size
from lpbf_data.remarks import Remark, Treatment
from pipelines.calibrating.cuts import held_by
from pipelines.calibrating.experiment import Experiment
from pipelines.calibrating.measured_file import read_measured
from pipelines.calibrating.measured_points import locate_measured
from pipelines.calibrating.netfabb_result import read_result
from pipelines.calibrating.options import CalibrationOptions, check_options
from pipelines.calibrating.parametrisation import Parametrisation, choose_parameters
from pipelines.simulation.materials.material import Material
from pipelines.simulation.materials.material_files import choose_material
from pipelines.simulation.parts.corpus import MIN_PLANES
from pipelines.simulation.parts.named_parts import NamedPart, digest_of_surface, named_part

POINTS: Final = 5000
"""Points of the mesh of a surface file, by default."""


@dataclass(frozen=True)
class CalibrationRequest:
    """What was asked for, checked.

    Attributes:
        out: The material file to write.
        name: Name of its calibration.
        experiment: The build that was measured.
        parametrisation: The material, and what is fitted.
        cut: What was cut.
        fitted_on: What it is fitted on, with digests of the files, for the material file.
        said: The same in a few words, for sources.
        remarks: What was guessed or repaired.
    """

    out: Path
    name: str
    experiment: Experiment
    parametrisation: Parametrisation
    cut: str
    fitted_on: Mapping[str, str]
    said: str
    remarks: tuple[Remark, ...]


def check_request(out: str, options: CalibrationOptions) -> CalibrationRequest:
    """Check options, read what was measured, mesh the part.

    Args:
        out: The material file to write.
        options: The options.

    Raises:
        UsageError: If an option is impossible, or the measured values can't be those of the part.
        GeometryError: If the surface can't be meshed.
    """
    path, name = check_options(out, options)
    if options.netfabb is not None:
        return _on_netfabb(path, name, options)
    return _on_measured(path, name, options)


def _on_measured(path: Path, name: str, options: CalibrationOptions) -> CalibrationRequest:
    assert options.material is not None
    material = choose_material(options.material, options.calibration)
    parameters = choose_parameters(options.fit or ("strain",))
    known = named_part(options.part) if options.part is not None else None
    table = _table(options, known, material)
    measured = read_measured(table)
    surface, remarks = (known.surface(), ()) if known is not None else _one_body(options)
    if known is not None and known.process is not None and options.measured is None:
        material = replace(material, process=known.process)
        sentence = "the process of the material gave way to the one with which the measured part was built"
        remarks = (Remark(Treatment.CHANGED, "process", sentence, 1, (str(options.part),)),)
    mesh, meshed = _mesh(surface, material, options, known.cell if known is not None else None)
    cut = options.cut or (known.cut if known is not None else "all")
    held = held_by(cut, mesh)
    on_mesh = measured.coordinates - [0, 0, surface.bounds[0, 2] + mesh.lowered * mesh.spacing[2]]
    interpolation = locate_measured(mesh, measured, on_mesh)
    reference = options.reference or ("nominal" if held is None else "before_cut")
    fitted_on = {"measured": table.name, "measured_sha256": sha256_of_file(table)} | _identity(options, surface)
    short = fitted_on["measured_sha256"][:12]
    said = f"{len(measured)} measured values of {table.name} (SHA-256 {short}) on {fitted_on['part']}"
    return CalibrationRequest(
        path,
        name,
        Experiment(mesh, measured, interpolation, held, reference),
        Parametrisation(material, parameters),
        cut,
        MappingProxyType(fitted_on),
        said,
        (*measured.remarks, *remarks, *meshed),
    )


def _table(options: CalibrationOptions, known: NamedPart | None, material: Material) -> Path:
    """The table of measured values: the one that was given, or the package's own of a part known by name."""
    if options.measured is not None:
        return Path(options.measured)
    assert known is not None
    if material.name not in known.measured:
        has = f"; it has those in: {', '.join(known.measured)}" if known.measured else ""
        raise UsageError(
            f"the package has no measured values of {options.part} in {material.name}{has}; give --measured FILE.csv"
        )
    return known.measured[material.name]


def _identity(options: CalibrationOptions, surface: Surface) -> dict[str, str]:
    """The part as the material file names it."""
    if options.part is not None:
        return {"part": options.part, "part_sha256": digest_of_surface(surface)}
    path = Path(options.stl or "")
    return {"part": path.name, "part_sha256": sha256_of_file(path)}


def _one_body(options: CalibrationOptions) -> tuple[Surface, tuple[Remark, ...]]:
    path = Path(options.stl or "")
    if not path.is_file():
        raise UsageError(f"the surface file {path} doesn't exist")
    read = load_bodies(path, options.units)
    if len(read.bodies) != 1:
        raise UsageError(f"{path} holds {len(read.bodies)} bodies; give a file with the one that was measured")
    return read.bodies[0], read.remarks


def _mesh(
    surface: Surface, material: Material, options: CalibrationOptions, cell: float | None
) -> tuple[VoxelMesh, tuple[Remark, ...]]:
    """A mesh of a part, with cells of a size where one is known and no number of points is asked for."""
    layer, standing = material.process.layer_thickness, on_build_plate(surface)
    if cell is not None and options.points is None:
        return voxelize(standing, (cell, max(1, int(cell / layer + 1e-6)) * layer)), ()
    name = options.part or Path(options.stl or "").name
    return mesh_faithfully(
        standing,
        options.points or POINTS,
        name,
        lambda one, count: voxelize_to_size(one, count, layer=layer, planes=MIN_PLANES),
    )


def _on_netfabb(path: Path, name: str, options: CalibrationOptions) -> CalibrationRequest:
    folder = Path(options.netfabb or "")
    result = read_result(folder, options.material, options.calibration or "netfabb", options.units)
    parameters = choose_parameters(options.fit or ("strain", "normal", "along"))
    mesh, measured = result.mesh, result.measured
    interpolation = locate_measured(mesh, measured, measured.coordinates)
    digest = sha256_of_tree(folder)[0]
    fitted_on = {"netfabb": folder.resolve().name, "netfabb_sha256": digest, "solver": result.solver}
    points = f"the final displacements of {result.num_points:,} points"
    said = f"{points} of {fitted_on['netfabb']} (SHA-256 {digest[:12]}), solver {result.solver}"
    return CalibrationRequest(
        path,
        name,
        Experiment(mesh, measured, interpolation, None, "nominal"),
        Parametrisation(result.material, parameters),
        "all",
        MappingProxyType(fitted_on),
        said,
        result.remarks,
    )
