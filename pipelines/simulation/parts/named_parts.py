"""Parts that are known by name: specimens from whose deflection after a cut a machine is calibrated.

`amb2018_bridge` is test AMB2018-01 of NIST's AM-Bench 2018 (https://www.nist.gov/ambench/amb2018-01-description): 75 x
5 x 12.5 mm on twelve legs and an end block. The legs are cut free, the block stays on the plate, and the rise of eleven
ridges on the top is measured against its height before the cut. `cantilever` is the comb on which machines are usually
calibrated: an arm on thin walls, and a block that stays on the plate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from manifold3d import CrossSection, Manifold

from lpbf_data.errors import UsageError
from lpbf_data.geometry.closed_surface import Surface, surface_of_arrays
from pipelines.simulation.materials.material import Process
from pipelines.simulation.parts.solids import box, cut, settle, union

RIDGES: Final = tuple(0.5 + 7.0 * number for number in range(11))
"""Middle of each ridge of the bridge, mm along it."""

_GAPS: Final = (5.0, 7.5, 12.0)  # left ends of the 2 mm gaps between legs, every 14 mm
_MEASURED: Final = Path(__file__).parent / "measured"

# EOS M270: 195 W, 800 mm/s, 20 µm layers of 52 s each, of which half is scanning four parts.
BRIDGE_PROCESS: Final = Process(machine="M270", power=195.0, layer_thickness=0.02, dwell=40.0)
"""How NIST built the bridges."""


@dataclass(frozen=True)
class NamedPart:
    """A specimen.

    Attributes:
        surface: Makes its surface.
        cut: Which nodes of its foot are cut from the plate before it is measured.
        cell: Edge of a cell that meets its walls, mm.
        process: How those that were measured were built; None for the process of the material.
        measured: File of the measured values, by material of our table.
    """

    surface: Callable[[], Surface]
    cut: str
    cell: float
    process: Process | None
    measured: Mapping[str, Path]


def bridge() -> Surface:
    """AMB2018-01, its long side along x."""
    plan = CrossSection([[(0, 0), (72.5, 0), (75, 2.5), (72.5, 5), (0, 5)]])
    body = settle(plan.extrude(12.0))
    for period in range(4):
        for left in _GAPS:
            x = left + 14.0 * period
            # The gap closes from its right side at 45 degrees, from 5 mm up.
            gap = CrossSection([[(x, -1), (x + 2, -1), (x + 2, 5), (x, 7)]]).extrude(7.0)
            body = cut(body, gap.rotate((90, 0, 0)).translate((0, 6, 0)))
    for middle in RIDGES:
        body = settle(body + Manifold.cube((1.0, 5.0, 0.5)).translate((middle - 0.5, 0, 12.0)))
    return _surface(body)


def cantilever() -> Surface:
    """An arm of 60 x 10 x 3 mm on walls of 1 mm, 6 mm high and 2 mm apart, and a block of 9 mm at its right end."""
    walls = [box((x, x + 1.0), (0, 10), (0, 6.5)) for x in np.arange(0.0, 50.0, 3.0)]
    return _surface(union(box((0, 60), (0, 10), (6, 9)), box((51, 60), (0, 10), (0, 6.5)), *walls))


def _surface(body: Manifold) -> Surface:
    mesh = body.to_mesh64()
    return surface_of_arrays(np.asarray(mesh.vert_properties)[:, :3], mesh.tri_verts)


NAMED_PARTS: Final[Mapping[str, NamedPart]] = MappingProxyType(
    {
        "amb2018_bridge": NamedPart(
            bridge,
            "x<56",
            0.5,
            BRIDGE_PROCESS,
            MappingProxyType(
                {name: _MEASURED / f"amb2018_bridge_{name}.csv" for name in ("Inc625", "15-5PH")},
            ),
        ),
        "cantilever": NamedPart(cantilever, "x<50.5", 1.0, None, MappingProxyType({})),
    }
)
"""Every part that is known by name."""


def named_part(name: str) -> NamedPart:
    """A part by its name.

    Args:
        name: A key of `NAMED_PARTS`.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in NAMED_PARTS:
        raise UsageError(f"unknown --part {name}; known are: {', '.join(NAMED_PARTS)}")
    return NAMED_PARTS[name]


def digest_of_surface(surface: Surface) -> str:
    """SHA-256 of a surface's corners and triangles.

    Args:
        surface: The surface.
    """
    content = surface.vertices.astype("<f8").tobytes() + surface.triangles.astype("<i8").tobytes()
    return hashlib.sha256(content).hexdigest()
