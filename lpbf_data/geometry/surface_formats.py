"""Files of surfaces that can be read and units that they can be in; light, since command lines name them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

SURFACE_SUFFIXES: Final = (".stl", ".obj", ".ply", ".3mf", ".off")
"""Files of closed surfaces that are read."""

_CAD_SUFFIXES: Final = frozenset(
    (
        ".3dm", ".asm", ".catpart", ".catproduct", ".dwg", ".dxf", ".f3d", ".f3z", ".fcstd", ".iam", ".iges", ".igs",
        ".ipt", ".jt", ".par", ".prt", ".sat", ".sldasm", ".sldprt", ".step", ".stp", ".x_b", ".x_t",
    )
)  # fmt: skip


def cad_advice(suffix: str) -> str:
    """What to do with a file of a CAD system, whose curved faces aren't triangles yet; empty for other files.

    >>> cad_advice(".STEP")
    'a .STEP file holds no triangles; export it as STL, OBJ, PLY, OFF or 3MF from your CAD'

    Args:
        suffix: Suffix of the file, with its dot.
    """
    if suffix.lower() not in _CAD_SUFFIXES:
        return ""
    return f"a {suffix} file holds no triangles; export it as STL, OBJ, PLY, OFF or 3MF from your CAD"


Units = Literal["um", "mm", "cm", "m", "inch", "ft"]
"""Units of length that a file can be in."""

MILLIMETRES: Final[Mapping[str, float]] = MappingProxyType(
    {"um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4, "ft": 304.8}
)
"""How long each unit is, in mm."""

UNIT_SPELLINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict(zip(MILLIMETRES, MILLIMETRES, strict=True)),
        **dict.fromkeys(("µm", "μm", "micron", "microns"), "um"),
        **dict.fromkeys(("in", "inches", '"'), "inch"),
        **dict.fromkeys(("foot", "feet"), "ft"),
        **{
            f"{prefix}{word}": unit
            for prefix, unit in (("micro", "um"), ("milli", "mm"), ("centi", "cm"), ("", "m"))
            for word in ("metre", "metres", "meter", "meters")
        },
    }
)
"""Spellings of the units on command lines, in small letters."""

USUAL_EXTENTS: Final = (1.0, 1000.0)
"""mm; the largest extent of parts that machines build lies between these, else the file may be in another unit."""

SMALL_EXTENT: Final = 10.0
"""mm; printed parts are rarely smaller than this along all axes, and a file that states no unit may be in inches."""
