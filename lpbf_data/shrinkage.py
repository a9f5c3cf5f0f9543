"""Inherent shrinkage of the layers of a material, which both the simulator and a surrogate's predictions need.

Values that both need are defined here; the simulator's own are in `pipelines.simulation.materials`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from lpbf_data.errors import UsageError

MATERIAL_SUFFIXES: Final = (".yaml", ".yml")
"""How names of material files end."""

MAX_NAME_LENGTH: Final = 60
"""Letters that the name of a material or of a calibration may have."""

MATERIAL_ALIASES: Final[Mapping[str, str]] = MappingProxyType({"IN625": "Inc625"})  # as NIST calls it

EXPANSIONS: Final[Mapping[str, float]] = MappingProxyType(
    {"Ti64": 8.6e-6, "Inc625": 1.28e-5, "SS316L": 1.572e-5, "15-5PH": 1.08e-5, "AlSi10Mg": 2.05e-5}
)
"""Coefficient of thermal expansion near room temperature of every named material, 1/K.

Sources: `pipelines.simulation.materials`.
"""

MEASURED_COOLING: Final = 330.0
"""Temperature difference in K whose thermal contraction meets the first ridge of both AM-Bench bridges best."""

NETFABB_STRAIN: Final = -0.0086782
"""In-plane inherent strain of the cells inside two NetFabb results; the same at all heights to within 1e-8."""

NETFABB_EXPANSION: Final = 1.28e-5
"""Coefficient of thermal expansion of the material of these two results, 1/K."""

STRAIN_RANGE: Final = (-0.1, 0.0)
EXPANSION_RANGE: Final = (0.0, 1e-3)

_MAX_FILE_BYTES: Final = 1_000_000  # bytes


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """How much layers of a material shrink.

    Attributes:
        material: Name of the material.
        calibration: Name of the calibration.
        strain: Inherent strain along x and y of a layer inside a part; negative.
        expansion: Coefficient of thermal expansion, 1/K.
        at_once: Whether a group of layers shrinks as a whole, or its strain is reduced at walls, as in NetFabb;
            otherwise layers shrink one after the other, with the same strain everywhere.
        layer: Powder layer, mm; None where the material's file doesn't say.
        tolerance: Clearance below which the recoater interferes, percent of a layer; None where the file doesn't say.
    """

    material: str
    calibration: str
    strain: float
    expansion: float
    at_once: bool
    layer: float | None = None
    tolerance: float | None = None

    @property
    def label(self) -> str:
        """Material and calibration in a few words."""
        return f"{self.material} ({self.calibration})"


def strain_of(calibration: str, expansion: float) -> float:
    """Strain of a layer inside a part by a named calibration.

    Args:
        calibration: measured or netfabb.
        expansion: Coefficient of thermal expansion of the material, 1/K.

    Raises:
        UsageError: If there is no such calibration.

    >>> round(strain_of("measured", 1e-5), 6)
    -0.0033
    """
    if calibration == "measured":
        return -expansion * MEASURED_COOLING
    if calibration == "netfabb":
        return NETFABB_STRAIN * expansion / NETFABB_EXPANSION
    raise UsageError(f"unknown calibration {calibration}; known are: {', '.join(CALIBRATION_NAMES)}")


CALIBRATION_NAMES: Final = ("measured", "netfabb")


def read_material_values(path: Path) -> dict[Any, Any]:
    """Names and values of a material file, unchecked.

    Args:
        path: A YAML file.

    Raises:
        UsageError: If it can't be read, or holds something else.
    """
    import yaml

    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{path} is larger than a material file can be")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"the material file {path} can't be read: there is no such file; name one that python -m "
            f"pipelines.calibrate wrote, or one of {', '.join(EXPANSIONS)}"
        ) from error
    except OSError as error:
        raise UsageError(f"the material file {path} can't be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"the material file {path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} isn't a material file: it must hold names and values")
    return content


def number_of(name: str, value: Any, low: float, high: float) -> float:
    """A number of a material file.

    Args:
        name: What it is called there.
        value: What YAML gives.
        low: Least that makes sense.
        high: Largest that makes sense.

    Raises:
        UsageError: If it is no finite number, or beyond these.
    """
    # YAML reads 1e-5 (without a point) as text.
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{name} must be a number, not {value!r}")
    if not low <= number <= high:
        raise UsageError(f"{name} must be {low:g} to {high:g}, not {number:g}")
    return number


def text_of(name: str, value: Any) -> str:
    """A line of text of a material file.

    Raises:
        UsageError: If it isn't one, or is too long for a name.
    """
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise UsageError(f"{name} must be a line of text")
    if name == "name" and len(value) > MAX_NAME_LENGTH:
        raise UsageError(f"a name has at most {MAX_NAME_LENGTH} letters")
    return value.strip()


def shrinkage_of(name: str) -> Shrinkage:
    """How much layers shrink, of a named material or of a material file.

    Args:
        name: A material (Inc625), a material with a calibration (Inc625 (netfabb)) as cards and manifests have them,
            or a YAML file as `pipelines.calibrate` writes it.

    Raises:
        UsageError: If there is no such material, or the file is wrong.
    """
    if Path(name).suffix.lower() in MATERIAL_SUFFIXES:
        return _of_file(Path(name))
    parts = re.fullmatch(r"(?P<material>[^()]+?)(?: \((?P<calibration>[^()]+)\))?", name.strip())
    known = {key.lower(): key for key in EXPANSIONS} | {key.lower(): to for key, to in MATERIAL_ALIASES.items()}
    material = known.get(parts["material"].lower()) if parts else None
    if parts is None or material is None:
        raise UsageError(f"unknown material {name}; known are: {', '.join(EXPANSIONS)}, or a YAML file")
    return _by_name(material, parts["calibration"] or "measured")


def _by_name(material: str, calibration: str, expansion: float | None = None) -> Shrinkage:
    expansion = EXPANSIONS[material] if expansion is None else expansion
    strain = strain_of(calibration, expansion)
    return Shrinkage(material, calibration, strain, expansion, at_once=calibration == "netfabb")


def _of_file(path: Path) -> Shrinkage:
    content = read_material_values(path)
    try:
        return _of_values(content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _of_values(content: Mapping[Any, Any]) -> Shrinkage:
    base = content.get("based_on")
    if base is not None and (not isinstance(base, str) or base not in EXPANSIONS):
        raise UsageError(f"unknown based_on {base}; known are: {', '.join(EXPANSIONS)}")
    if "expansion" not in content and base is None:
        raise UsageError(
            "it names neither expansion nor based_on, so that nobody knows how much its layers shrink; write it with "
            "python -m pipelines.calibrate"
        )
    expansion = number_of("expansion", content["expansion"], *EXPANSION_RANGE) if "expansion" in content else None
    material = text_of("name", content.get("name", base))
    found = _calibration(material, content.get("calibration", "measured"), expansion or EXPANSIONS[str(base)])
    process = content.get("process", {})
    if not isinstance(process, Mapping):
        raise UsageError(f"a process is given by names and values, not by {process!r}")
    optional = {"layer": ("layer_thickness", 1e-3, 10.0), "tolerance": ("recoater_tolerance", 0.0, 100.0)}
    read = {
        ours: number_of(name, process[name], low, high)
        for ours, (name, low, high) in optional.items()
        if name in process
    }
    return Shrinkage(found.material, found.calibration, found.strain, found.expansion, found.at_once, **read)


def _calibration(material: str, content: Any, expansion: float) -> Shrinkage:
    if isinstance(content, str):
        return _by_name(material, content, expansion)
    if not isinstance(content, Mapping):
        raise UsageError(f"a calibration is a known name, or names and values, not {content!r}")
    if "strain" not in content:
        raise UsageError("its calibration has no strain; write it with python -m pipelines.calibrate")
    strain = number_of("strain", content["strain"], *STRAIN_RANGE)
    name = text_of("name", content.get("name", "unnamed"))
    at_once = content.get("at_once") is True or content.get("walls") is not None
    return Shrinkage(material, name, strain, expansion, at_once)
