"""What a calibration was asked for, checked before any simulation starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from lpbf_data.durable import sha256_of_file, sha256_of_tree
from lpbf_data.errors import UsageError
from lpbf_data.geometry.mesh_check import mesh_faithfully
from lpbf_data.geometry.surface_files import load_bodies
from lpbf_data.geometry.surface_formats import MILLIMETRES, Units
from lpbf_data.geometry.voxelize import Surface, VoxelMesh, on_build_plate, voxelize, voxelize_to_size
from lpbf_data.remarks import Remark
from pipelines.calibrating.cuts import held_by
from pipelines.calibrating.experiment import Experiment, Reference
from pipelines.calibrating.measured_file import Measured, read_measured
from pipelines.calibrating.netfabb_result import read_result
from pipelines.calibrating.places import check_places
from pipelines.calibrating.shrinkage import Shrinkage, choose_numbers
from pipelines.simulation.calibrations import CALIBRATIONS
from pipelines.simulation.material_files import LONGEST_NAME, MATERIAL_SUFFIXES, choose_material
from pipelines.simulation.materials import Material
from pipelines.simulation.named_parts import digest_of_surface, named_part

POINTS: Final = 5000
"""Points of the mesh of a surface file, by default."""

_POINTS: Final = (50, 200_000)
_FEWEST_PLANES: Final = 2


@dataclass(frozen=True)
class CalibrationOptions:
    """Options as they were given; None and () for what is left to choose.

    Attributes:
        measured: Table of measured values.
        stl: Surface file of the part.
        part: A part that is known by name, instead.
        netfabb: Folder of a result of NetFabb, instead of all three.
        material: Material to start from.
        calibration: Calibration to start from.
        fit: Numbers to fit.
        cut: What is cut from the plate.
        reference: From where displacements count.
        units: Unit of lengths in the surface file.
        points: Points of the mesh.
        name: Name of the calibration.
    """

    measured: str | None = None
    stl: str | None = None
    part: str | None = None
    netfabb: str | None = None
    material: str | None = None
    calibration: str | None = None
    fit: tuple[str, ...] = ()
    cut: str | None = None
    reference: Reference | None = None
    units: Units | None = None
    points: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class CalibrationRequest:
    """What was asked for, checked.

    Attributes:
        out: The material file to write.
        name: Name of its calibration.
        experiment: The build that was measured.
        shrinkage: The material, and what is fitted.
        cut: What was cut.
        fitted_on: What it is fitted on, with digests of the files, for the material file.
        said: The same in a few words, for sources.
        remarks: What was guessed or repaired.
    """

    out: Path
    name: str
    experiment: Experiment
    shrinkage: Shrinkage
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
        CaseError: If NetFabb's result can't be read.
    """
    path, name = _check_output(out, options.name)
    _check_sources(options)
    if options.netfabb is not None:
        return _on_netfabb(path, name, options)
    return _on_measured(path, name, options)


def _check_output(out: str, name: str | None) -> tuple[Path, str]:
    path = Path(out)
    if path.suffix.lower() not in MATERIAL_SUFFIXES:
        raise UsageError(f"--out {out} must be a YAML file: {' or '.join(MATERIAL_SUFFIXES)}")
    if path.exists():
        raise UsageError(f"--out {out} exists; choose another name, or remove it")
    name = path.stem if name is None else name.strip()
    if not name or not name.isprintable() or len(name) > LONGEST_NAME:
        raise UsageError(f"--name must be a line of at most {LONGEST_NAME} letters")
    if name in CALIBRATIONS:
        raise UsageError(f"a calibration of your own can't be called {name}; choose another --name")
    return path, name


def _check_sources(options: CalibrationOptions) -> None:
    if options.netfabb is not None:
        given = {name: getattr(options, name) for name in ("measured", "stl", "part", "cut", "reference", "points")}
        if others := [f"--{name}" for name, value in given.items() if value is not None]:
            raise UsageError(f"--netfabb says all by itself; leave out {', '.join(others)}")
        return
    if options.stl is None and options.part is None:
        raise UsageError("give the part: --stl FILE with --measured FILE.csv, --part NAME, or --netfabb FOLDER")
    if options.stl is not None and options.part is not None:
        raise UsageError("--stl and --part are two parts; give one")
    if options.stl is not None and options.measured is None:
        raise UsageError("--measured FILE.csv is missing: what was measured on the part")
    if options.material is None:
        raise UsageError("--material is missing: what the part is made of, such as Inc625, or a YAML file")
    if options.points is not None and not _POINTS[0] <= options.points <= _POINTS[1]:
        raise UsageError(f"--points must be {_POINTS[0]} to {_POINTS[1]:,}, not {options.points}")
    if options.units is not None and options.units not in MILLIMETRES:
        raise UsageError(f"unknown --units {options.units}; known are: {', '.join(MILLIMETRES)}")


def _on_measured(path: Path, name: str, options: CalibrationOptions) -> CalibrationRequest:
    assert options.material is not None
    material = choose_material(options.material, options.calibration)
    numbers = choose_numbers(options.fit or ("strain",))
    known = named_part(options.part) if options.part is not None else None
    table = Path(options.measured) if options.measured is not None else None
    if table is None:
        assert known is not None
        if material.name not in known.measured:
            has = f"; there are for: {', '.join(known.measured)}" if known.measured else ""
            raise UsageError(
                f"no measured values of {options.part} in {material.name} come along{has}; give --measured FILE.csv"
            )
        table = known.measured[material.name]
    measured = read_measured(table)
    if known is not None and known.process is not None:
        material = replace(material, process=known.process)
    surface, remarks = (known.surface(), ()) if known is not None else _one_body(options)
    mesh, meshed = _mesh(surface, material, options, known.cell if known is not None else None)
    cut = options.cut or (known.cut if known is not None else "all")
    held = held_by(cut, mesh)
    on_mesh = measured.places - [0, 0, surface.bounds[0, 2] + mesh.lowered * mesh.spacing[2]]
    sampling, guessed = check_places(mesh, measured, on_mesh)
    reference = options.reference or ("nominal" if held is None else "before_cut")
    part = {"part": options.part, "part_sha256": digest_of_surface(surface)}
    if options.stl is not None:
        part = {"part": Path(options.stl).name, "part_sha256": sha256_of_file(Path(options.stl))}
    fitted_on = {"measured": table.name, "measured_sha256": sha256_of_file(table)} | part
    said = f"{len(measured)} measured values of {table.name} (SHA-256 {fitted_on['measured_sha256'][:12]}) on {part['part']}"
    return CalibrationRequest(
        path,
        name,
        Experiment(mesh, measured, sampling, held, reference),
        Shrinkage(material, numbers),
        cut,
        MappingProxyType(fitted_on),
        said,
        (*measured.remarks, *remarks, *meshed, *guessed),
    )


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
        lambda one, count: voxelize_to_size(one, count, layer=layer, planes=_FEWEST_PLANES),
    )


def _on_netfabb(path: Path, name: str, options: CalibrationOptions) -> CalibrationRequest:
    folder = Path(options.netfabb or "")
    result = read_result(folder, options.material, options.calibration or "netfabb", options.units)
    numbers = choose_numbers(options.fit or ("strain", "normal", "along"))
    mesh, measured = result.mesh, result.measured
    sampling, guessed = check_places(mesh, measured, measured.places)
    digest = sha256_of_tree(folder)[0]
    fitted_on = {"netfabb": folder.resolve().name, "netfabb_sha256": digest, "solver": result.solver}
    said = f"the final displacements of {result.num_points:,} points of {fitted_on['netfabb']} (SHA-256 {digest[:12]}), solver {result.solver}"
    return CalibrationRequest(
        path,
        name,
        Experiment(mesh, measured, sampling, None, "nominal"),
        Shrinkage(result.material, numbers),
        "all",
        MappingProxyType(fitted_on),
        said,
        (*result.remarks, *guessed),
    )
