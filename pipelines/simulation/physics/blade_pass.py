"""Whether the recoater blade will touch the part.

The blade passes one powder layer above the nominal height of the part. NetFabb adds many powder layers at once, which
exaggerates how far an edge rises, and so it scales the displacement of a group by the square root of powder layer over
group. That rule isn't documented; it is read off NetFabb's own output, where it holds to 1e-7 mm on both groups that
were measured (README.md beside this file).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.simulation.materials.material import Process
from pipelines.simulation.physics.layers import LayerGroup


@dataclass(frozen=True, slots=True)
class RecoaterPass:
    """What the blade finds above a finished group of layers.

    Attributes:
        group: Number of the group.
        time: s.
        clearance: Least clearance, percent of a powder layer.
        deformed_top: Height of the highest point, mm, scaled as above.
        blade: Height of the blade, mm.
        top: Nominal height, mm.
    """

    group: int
    time: float
    clearance: float
    deformed_top: float
    blade: float
    top: float


def clearance_percent(rise: NDArray[np.float64], thickness: float, process: Process) -> NDArray[np.float64]:
    """Clearance above points of the top surface of a group, percent of a powder layer.

    Args:
        rise: Upward displacement, mm, [n].
        thickness: Thickness of what shrank at once, mm.
        process: Process parameters.
    """
    layer = process.layer_thickness
    scale = math.sqrt(layer / thickness)
    return 100.0 * (1.0 - rise * scale / layer)


def pass_over(rise: NDArray[np.float64], thickness: float, group: LayerGroup, process: Process) -> RecoaterPass:
    """The pass of the blade over a group of layers.

    Args:
        rise: Upward displacement of its top surface, mm, [n].
        thickness: Thickness of what shrank at once, mm.
        group: The group that was just built.
        process: Process parameters.
    """
    least = float(clearance_percent(rise, thickness, process).min())
    blade = group.top + process.layer_thickness
    return RecoaterPass(
        group.number, group.end, least, blade - process.layer_thickness * least / 100.0, blade, group.top
    )
