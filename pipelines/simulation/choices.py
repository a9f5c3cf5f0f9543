"""Words that options of a simulation may be, without what acts on them: the command line knows them at once."""

from __future__ import annotations

from typing import Final, Literal

EncodingName = Literal["binary", "ascii"]
CalibrationName = Literal["measured", "netfabb"]
Naming = Literal["batch", "interactive"]
DrawName = Literal["published", "balanced"]
Results = Literal["whole", "lean"]
DeviceName = Literal["cpu", "cuda"]

POINT_LIMITS: Final = (50, 200_000)
"""Least and largest number of points that `--points` may ask for."""

FAMILY_NAMES: Final = (
    "plate", "ribbed_plate", "flange", "bracket", "bridge", "tee", "truss", "housing", "cantilever", "heat_sink",
    "gear", "shaft", "clevis", "impeller",
)  # fmt: skip
"""Families of parts that are drawn from by default: all of `parts.families`, in its order."""
