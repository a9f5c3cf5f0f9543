"""Lumped layers: which cells are added at a time, and when.

NetFabb adds several powder layers at once: an element spans a whole number of them, a group of elements a power of two
of elements. A group takes, for each of its powder layers, the time to scan its cross-section and the dwell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from lpbf_data.errors import UsageError
from lpbf_data.geometry.voxelize import VoxelMesh
from pipelines.simulation.materials import Process

GROUP_THICKNESS: Final = 2.5
"""Thickness in mm that a group of layers comes near to: the lumped layer of the published data set."""

FIRST_STEP: Final = 0.01
"""Time of the first frame, s."""
STEP: Final = 0.1
"""Time between the end of a group and the first frame of the next, s."""
COOLING: Final = 50_000.0
"""Time for cooling, and again for the cut, s."""

_DEEPEST: Final = 4
_FEWEST_GROUPS: Final = 4


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """A group of powder layers that is added at once.

    Attributes:
        number: From 1.
        first_plane: Lowest plane of cells.
        end_plane: Plane of cells above the highest one.
        bottom: Height of its lower side, mm.
        top: Height of its upper side, mm.
        powder_layers: Powder layers in it.
        area: Mean cross-section, mm².
        start: Time at which it is added, s.
        duration: Time it takes, s.
        scanning: Part of that in which the laser is on, s.
    """

    number: int
    first_plane: int
    end_plane: int
    bottom: float
    top: float
    powder_layers: int
    area: float
    start: float
    duration: float
    scanning: float

    @property
    def end(self) -> float:
        """Time at which it is finished, s."""
        return self.start + self.duration


def choose_refinement(mesh: VoxelMesh) -> int:
    """How often a group is halved to give a cell, so that groups come near to `GROUP_THICKNESS`.

    A low part gets thinner groups: one that is added at once shrinks freely when it is cut, and wouldn't warp.

    Args:
        mesh: The part.
    """
    planes = int(mesh.indices[:, 2].max()) + 1
    wanted = round(math.log2(GROUP_THICKNESS / mesh.spacing[2]))
    return max(0, min(wanted, _DEEPEST, int(math.log2(planes / _FEWEST_GROUPS)) if planes >= _FEWEST_GROUPS else 0))


def layers_per_cell(cell_height: float, process: Process) -> int:
    """Powder layers that a cell spans.

    Raises:
        UsageError: If it isn't a whole number.
    """
    layers = cell_height / process.layer_thickness
    if abs(layers - round(layers)) > 1e-6 * layers or round(layers) < 1:
        raise UsageError(f"cells of {cell_height} mm don't hold a whole number of {process.layer_thickness} mm layers")
    return round(layers)


def plan_layers(mesh: VoxelMesh, process: Process, refinement: int) -> tuple[LayerGroup, ...]:
    """Divide a mesh into groups of layers.

    Args:
        mesh: The part; its bottom stands on the build plate.
        process: Process parameters.
        refinement: A group holds 2^refinement planes of cells.
    """
    height = mesh.spacing[2]
    per_cell = layers_per_cell(height, process)
    planes = int(mesh.indices[:, 2].max()) + 1
    cells_in = np.bincount(mesh.indices[:, 2], minlength=planes)
    area = mesh.spacing[0] * mesh.spacing[1]
    groups: list[LayerGroup] = []
    time = 0.0
    for number, first in enumerate(range(0, planes, 2**refinement), start=1):
        end = min(first + 2**refinement, planes)
        powder_layers = (end - first) * per_cell
        mean_area = float(cells_in[first:end].mean()) * area
        scanning = powder_layers * mean_area / (process.hatch * process.velocity)
        duration = powder_layers * process.dwell + scanning
        start = time + (FIRST_STEP if number == 1 else STEP)
        groups.append(
            LayerGroup(
                number, first, end, first * height, end * height, powder_layers, mean_area, start, duration, scanning
            )
        )
        time = groups[-1].end
    return tuple(groups)
