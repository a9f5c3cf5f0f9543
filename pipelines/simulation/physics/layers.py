"""Lumped layers in time: when a group of layers is added, and how long it takes.

Which planes of cells make a group, [layer_groups](../../lpbf_data/geometry/layer_groups.py) says. A group takes, for
each of its powder layers, the time to scan its cross-section and the dwell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lpbf_data.geometry.layer_groups import PlaneGroup, group_planes, layers_per_cell
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.materials.material import Process

FIRST_STEP: Final = 0.01
"""Time of the first frame, s."""
STEP: Final = 0.1
"""Time between the end of a group and the first frame of the next, s."""
COOLING: Final = 50_000.0
"""Time for cooling, and again for the cut, s."""


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


def plan_layers(mesh: VoxelMesh, process: Process, refinement: int) -> tuple[LayerGroup, ...]:
    """Divide a mesh into groups of layers, each with the time at which it is added.

    Args:
        mesh: The part; its bottom stands on the build plate.
        process: Process parameters.
        refinement: A group holds 2^refinement planes of cells.

    Raises:
        UsageError: If a cell doesn't span a whole number of powder layers.
    """
    return time_groups(mesh, process, group_planes(mesh.num_planes, refinement))


def time_groups(mesh: VoxelMesh, process: Process, planned: Sequence[PlaneGroup]) -> tuple[LayerGroup, ...]:
    """Groups of planes of cells, each with the time at which it is added.

    Args:
        mesh: The part.
        process: Process parameters.
        planned: Groups that cover all planes, from the bottom up.

    Raises:
        UsageError: If a cell doesn't span a whole number of powder layers.
    """
    height = mesh.spacing[2]
    per_cell = layers_per_cell(height, process.layer_thickness)
    cells_in = np.bincount(mesh.indices[:, 2], minlength=mesh.num_planes)
    area = mesh.spacing[0] * mesh.spacing[1]
    groups: list[LayerGroup] = []
    time = 0.0
    for added in planned:
        number, first, end = added.number, added.first_plane, added.end_plane
        powder_layers = added.num_planes * per_cell
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
