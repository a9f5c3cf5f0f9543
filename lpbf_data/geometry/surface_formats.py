"""Files of surfaces that can be read and units that they can be in; light, since command lines name them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

SURFACE_SUFFIXES: Final = (".stl", ".obj", ".ply", ".3mf", ".off")
"""Files of closed surfaces that are read."""

Units = Literal["um", "mm", "cm", "m", "inch", "ft"]
"""Units of length that a file can be in."""

MILLIMETRES: Final[Mapping[str, float]] = MappingProxyType(
    {"um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4, "ft": 304.8}
)
"""How long each unit is, in mm."""

USUAL_EXTENTS: Final = (1.0, 1000.0)
"""mm; the largest extent of parts that machines build lies between these, else the file may be in another unit."""

SMALL_EXTENT: Final = 10.0
"""mm; printed parts are rarely smaller than this along all axes, and a file that states no unit may be in inches."""
