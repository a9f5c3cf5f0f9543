"""The benchmarks that surrogates are measured on: their published files, schemas of their points, and splits.

Names, shapes and splits are those of Geo-FNO's, FNO's and DrivAerML's files, and of the code that papers compare by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from lpbf_data.case.point_schema import PointSchema
from lpbf_data.case.schema import VECTOR, FieldSpec

SAMPLES: Final = "samples"
CHANNELS: Final = "channels"

FINE, COARSE, EVERY = 421, 85, 5
"""Points along a side of Darcy's square as stored, as papers take them, and every how many those are."""


@dataclass(frozen=True)
class Column:
    """One number per point, and where it lies.

    Attributes:
        name: Column of the data set.
        file: Name of the file; of several with `{}` for 1 (training) and 2 (test).
        axes: What its axes are: their lengths, SAMPLES, or CHANNELS for one or more.
        channel: Which of the second axis; None where that is no axis of channels.
        bounds: Least and largest value that make sense: others have another unit, or are something else.
        key: Name of the array in the file.
    """

    name: str
    file: str
    axes: tuple[int | str, ...]
    channel: int | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    key: str = ""


@dataclass(frozen=True)
class System:
    """A system that surrogates are measured on.

    Attributes:
        home: Where its files lie below the root of all data, as upstream code has them.
        columns: Its arrays.
        points: Schema of the point set.
        test: The test's samples: the last of all, those behind the training's, or those of a second file.
        standardised: Whether models see standardised coordinates.
    """

    home: str
    columns: tuple[Column, ...]
    points: PointSchema
    test: Literal["last", "next", "file"]
    standardised: bool = False


def _points(name: str, unit: str, *fields: tuple[str, str, str], **others: Any) -> PointSchema:
    specs = tuple(FieldSpec(field, (), of, "point", words) for field, of, words in fields)
    names = tuple(spec.name for spec in specs)
    return PointSchema(name, ("x", "y"), unit, specs, names[:-1], names[-1:], **others)


_C_GRID, _PIPE_GRID, _SQUARE = (221, 51), (129, 129), (COARSE, COARSE)
_ELASTIC, _MAT = "Random_UnitCell_{}_10.npy", "piececonst_r*_N*_smooth{}.mat"

SYSTEMS: Final[Mapping[str, System]] = {
    "elasticity": System(
        "Geo-FNO/elasticity/Meshes",
        (
            Column("x", _ELASTIC.format("XY"), (972, 2, SAMPLES), 0, (-0.01, 1.01)),
            Column("y", _ELASTIC.format("XY"), (972, 2, SAMPLES), 1, (-0.01, 1.01)),
            Column("stress", _ELASTIC.format("sigma"), (972, SAMPLES), None, (-1e5, 1e5)),
        ),
        _points("elasticity", "1", ("stress", "1", "stress of an incompressible solid around a hole")),
        "last",
    ),
    "airfoil": System(
        "Geo-FNO/airfoil/naca",
        (
            Column("x", "NACA_Cylinder_X.npy", (SAMPLES, *_C_GRID), None, (-100, 100)),
            Column("y", "NACA_Cylinder_Y.npy", (SAMPLES, *_C_GRID), None, (-100, 100)),
            Column("mach_number", "NACA_Cylinder_Q.npy", (SAMPLES, 5, *_C_GRID), 4, (0, 10)),
        ),
        _points("airfoil", "chord", ("mach_number", "1", "Mach number around an airfoil"), grid=_C_GRID),
        "next",
    ),
    "pipe": System(
        "Geo-FNO/pipe",
        (
            Column("x", "Pipe_X.npy", (SAMPLES, *_PIPE_GRID), None, (-100, 100)),
            Column("y", "Pipe_Y.npy", (SAMPLES, *_PIPE_GRID), None, (-100, 100)),
            Column("velocity", "Pipe_Q.npy", (SAMPLES, CHANNELS, *_PIPE_GRID), 0, (-100, 100)),
        ),
        _points("pipe", "1", ("velocity", "1", "horizontal velocity of the flow in a pipe"), grid=_PIPE_GRID),
        "next",
        standardised=True,
    ),
    "darcy": System(
        "FNO/darcy",
        (
            Column("permeability", _MAT, (SAMPLES, *_SQUARE), None, (1e-6, 1e6), "coeff"),
            Column("pressure", _MAT, (SAMPLES, *_SQUARE), None, (-1, 10), "sol"),
        ),
        _points(
            "darcy", "1", ("permeability", "1", "permeability of a porous medium"),
            ("pressure", "1", "pressure of the flow through it"), grid=_SQUARE,
        ),
        "file",
    ),
}  # fmt: skip
"""Systems whose samples lie in arrays, with the sizes of the published files."""

CARS: Final = PointSchema(
    "drivaerml",
    VECTOR,
    "m",
    (
        FieldSpec("pressure", (), "m2 s-2", "point", "kinematic pressure on a car"),
        FieldSpec("wall_shear_stress", VECTOR, "m2 s-2", "point", "kinematic wall shear stress"),
    ),
    (),
    ("pressure",),
    scales={
        "x": (-0.9425, 5.075),
        "y": (-1.1314, 2.2631),
        "z": (-0.3176, 1.5621),
        "pressure": (-229.845718, 269.598572),
    },
)
"""Surfaces of cars, with the published bounds of their centres, and mean and deviation of their pressure."""
