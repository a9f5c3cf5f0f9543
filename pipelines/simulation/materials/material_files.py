"""Materials from YAML files: values, where they come from, and how layers of the material shrink.

    based_on: Inc625            # a material of our table that fills what isn't given; without it, everything is given
    name: Inc625-mine
    young: 150000               # MPa
    expansion: 1.28e-5          # 1/K
    conductivity: [[25, 0.0100], [200, 0.0125]]     # °C, W/(mm K)
    process: {layer_thickness: 0.03, dwell: 12}
    calibration:
      name: our machine
      strain: -0.0041
      source: cantilever of 3 March, fitted
    sources: [data sheet of the powder]

Keys are the attributes of `Material`, `Process`, `Calibration` and `WallRule`. A file without a calibration has
`measured`, for its own thermal expansion. Files that `pipelines.calibrate` writes have a key `fit` too, which says for
people how the calibration was found; nothing is read from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

from lpbf_data.errors import UsageError
from lpbf_data.shrinkage import (
    EXPANSION_RANGE,
    MATERIAL_ALIASES,
    MATERIAL_SUFFIXES,
    STRAIN_RANGE,
    number_of,
    read_material_values,
    text_of,
)
from pipelines.simulation.materials.calibrations import CALIBRATIONS, Calibration, measured
from pipelines.simulation.materials.inherent_strain import WallRule
from pipelines.simulation.materials.material import MATERIALS, Material, Process

_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "cut_height": (0.0, 10.0),
    "cut_stiffness": (1e-3, 1.0),
    "young": (1.0, 1e7),
    "poisson": (0.0, 0.49),
    "yield_strength": (0.0, 1e5),
    "expansion": EXPANSION_RANGE,
    "density": (1e-9, 1e-3),
    "strain": STRAIN_RANGE,
    "group_thickness": (0.01, 1000.0),
    "fewest_groups": (1, 1000),
    "power": (0.0, 1e5),
    "velocity": (1e-3, 1e6),
    "hatch": (1e-4, 10.0),
    "layer_thickness": (1e-3, 10.0),
    "dwell": (0.0, 1e5),
    "absorption": (0.0, 1.0),
    "beam_diameter": (1e-4, 100.0),
    "convection": (0.0, 1.0),
    "ambient": (-270.0, 2000.0),
    "recoater_tolerance": (0.0, 100.0),
    "reach": (1e-3, 100.0),
    "onset": (-1.0, 1.0),
    "full": (-1.0, 2.0),
    "normal": (0.0, 1.0),
    "along": (0.0, 1.0),
}
"""Values between which a number makes sense, in the unit of its attribute."""


def choose_material(name: str, calibration: str | None = None) -> Material:
    """A material of our table or of a YAML file.

    Args:
        name: Its name, or the file.
        calibration: A named calibration instead of its own; None for its own.

    Raises:
        UsageError: If there is no such material or calibration, or the file is wrong.
    """
    if calibration is not None and calibration not in CALIBRATIONS:
        raise UsageError(f"unknown --calibration {calibration}; known are: {', '.join(CALIBRATIONS)}")
    name = MATERIAL_ALIASES.get(name, name)
    if name not in MATERIALS and Path(name).suffix.lower() not in MATERIAL_SUFFIXES:
        raise UsageError(f"unknown --material {name}; known are: {', '.join(MATERIALS)}, or a YAML file")
    material = MATERIALS[name] if name in MATERIALS else load_material(Path(name))
    return material if calibration is None else material.calibrated(calibration)


def load_material(path: Path) -> Material:
    """Read a material.

    Args:
        path: A YAML file.

    Raises:
        UsageError: If it can't be read, or a value is missing, unknown or out of range.
    """
    content = read_material_values(path)
    try:
        return _material(content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def material_values(material: Material) -> dict[str, Any]:
    """Everything that a material file says, in plain values; `load_material` reads it back from YAML.

    Args:
        material: The material.
    """
    return _plain(asdict(material))  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _material(content: dict[Any, Any]) -> Material:
    given = dict(content)
    given.pop("fit", None)
    base = given.pop("based_on", None)
    if base is not None and (not isinstance(base, str) or base not in MATERIALS):
        raise UsageError(f"unknown based_on {base}; known are: {', '.join(MATERIALS)}")
    known = MATERIALS.get(base) if base is not None else None
    process = _values(Process, given.pop("process", {}), known.process if known else Process())
    shrinkage = given.pop("calibration", None)
    values = _checked(Material, given, known)
    expansion = values["expansion"]
    calibration = _calibration(shrinkage, expansion) if shrinkage is not None else measured(expansion)
    return Material(**values | {"process": process, "calibration": calibration})


def _calibration(content: Any, expansion: float) -> Calibration:
    if isinstance(content, str):
        if content not in CALIBRATIONS:
            raise UsageError(f"unknown calibration {content}; known are: {', '.join(CALIBRATIONS)}")
        return CALIBRATIONS[content](expansion)
    if not isinstance(content, dict) or not {"name", "strain", "source"} <= content.keys():
        raise UsageError("a calibration is a known name, or has at least a name, a strain and a source")
    given = dict(content)
    walls = given.pop("walls", None)
    base: Calibration = _values(Calibration, given, measured(expansion))
    if base.name in CALIBRATIONS and base != CALIBRATIONS[base.name](expansion) and walls is None:
        raise UsageError(f"a calibration of other values can't be called {base.name}")
    return base if walls is None else replace(base, walls=_values(WallRule, walls, None))


def _values(kind: type[Any], content: Any, base: Any) -> Any:
    if not isinstance(content, dict):
        raise UsageError(f"a {kind.__name__.lower()} is given by names and values, not by {content!r}")
    values = _checked(kind, content, base)
    return kind(**values)


def _checked(kind: type[Any], content: dict[Any, Any], base: Any) -> dict[str, Any]:
    """Values of a class's attributes: those given, checked, and the rest from another of its kind."""
    names = [one.name for one in fields(kind)]
    if unknown := [str(key) for key in content if key not in names]:
        raise UsageError(f"unknown {', '.join(unknown)}; known are: {', '.join(names)}")
    values = {name: getattr(base, name) for name in names} if base is not None else {}
    values |= {name: _value(name, value) for name, value in content.items()}
    nested = {"process", "calibration", "walls"}
    if missing := [name for name in names if name not in values and name not in nested]:
        raise UsageError(f"{', '.join(missing)} must be given, or based_on")
    return values


def _value(name: str, value: Any) -> Any:
    if name in ("name", "machine", "source"):
        return text_of(name, value)
    if name == "sources":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UsageError("sources must be a list of texts")
        return tuple(value)
    if name == "at_once":
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be true or false")
        return value
    if name in ("conductivity", "specific_heat"):
        return _table(name, value)
    number = number_of(name, value, *_RANGES[name])
    if name == "fewest_groups":
        return round(number)
    return number


def _table(name: str, value: Any) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and len(row) == 2 for row in value):
        raise UsageError(f"{name} must be a list of pairs of temperature and value")
    table = tuple(
        (number_of(name, row[0], -math.inf, math.inf), number_of(name, row[1], -math.inf, math.inf)) for row in value
    )
    temperatures = [row[0] for row in table]
    if sorted(set(temperatures)) != temperatures or min(row[1] for row in table) <= 0:
        raise UsageError(f"{name} must have rising temperatures and values above 0")
    return table
