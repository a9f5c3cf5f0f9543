"""Options of a calibration, and what of them can be judged before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lpbf_data.errors import UsageError
from lpbf_data.geometry.surface_formats import MILLIMETRES, Units
from lpbf_data.shrinkage import MATERIAL_SUFFIXES, MAX_NAME_LENGTH
from pipelines.simulation.choices import POINT_LIMITS, CalibrationName

Reference = Literal["before_cut", "nominal"]
"""From where displacements count: the part before the cut, or its nominal shape."""


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
        fit: Parameters to fit.
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


def check_options(out: str, options: CalibrationOptions) -> tuple[Path, str]:
    """Check options without reading a file.

    Args:
        out: The material file to write.
        options: The options.

    Returns:
        The file, and the name of its calibration.

    Raises:
        UsageError: If an option is impossible, or options don't go together.
    """
    if options.points is not None and not POINT_LIMITS[0] <= options.points <= POINT_LIMITS[1]:
        raise UsageError(f"--points must be {POINT_LIMITS[0]} to {POINT_LIMITS[1]:,}, not {options.points}")
    if options.units is not None and options.units not in MILLIMETRES:
        raise UsageError(f"unknown --units {options.units}; known are: {', '.join(MILLIMETRES)}")
    _check_sources(options)
    return _check_output(out, options.name)


def _check_output(out: str, name: str | None) -> tuple[Path, str]:
    path = Path(out)
    if path.suffix.lower() not in MATERIAL_SUFFIXES:
        raise UsageError(f"--out {out} must be a YAML file: {' or '.join(MATERIAL_SUFFIXES)}")
    if path.exists():
        raise UsageError(f"--out {out} exists; choose another name, or remove it")
    name = path.stem if name is None else name.strip()
    if not name or not name.isprintable() or len(name) > MAX_NAME_LENGTH:
        raise UsageError(f"--name must be a line of at most {MAX_NAME_LENGTH} letters")
    if name in get_args(CalibrationName):
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
