"""Overhangs of a part in an orientation: the area at less than 45 degrees, and the volume for supports under it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.geometry.closed_surface import Surface

ANGLE: Final = 45.0
"""Degrees from the plate below which a face that looks down is taken for an overhang."""

_ON_PLATE: Final = 0.05  # mm: faces that lie so low stand on the plate


@dataclass(frozen=True)
class Overhangs:
    """Overhangs of a part.

    Attributes:
        area: Area of the faces that look down at less than 45 degrees from the plate and don't stand on it, mm².
        support_volume: Volume straight below overhanging material, down to the next material or the plate, mm³.
        height: Height of the part, mm.
    """

    area: float
    support_volume: float
    height: float


def overhangs_of(
    surface: Surface, points: NDArray[np.floating[Any]], cells: NDArray[np.integer[Any]], angle: float = ANGLE
) -> Overhangs:
    """Overhangs of a part that stands on the plate.

    Args:
        surface: Its surface, for the area.
        points: Points of its mesh in mm, [N, 3], for the volume.
        cells: Zero-based hexahedra, [E, 8], boxes along the axes.
        angle: Degrees from the plate up to which a face counts.

    Raises:
        CaseError: If the mesh is none of boxes.
    """
    from lpbf_data.geometry.box_grid import BoxGrid

    corners = surface.vertices[surface.triangles]
    normals = surface.area_vectors()
    areas = np.linalg.norm(normals, axis=1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        down = np.nan_to_num(-normals[:, 2] / (2 * areas))
    low = surface.vertices[:, 2].min()
    stands = corners[:, :, 2].max(axis=1) <= low + _ON_PLATE
    hangs = (down > np.cos(np.radians(angle)) + 1e-9) & ~stands
    grid = BoxGrid.of(points, cells)
    # Empty voxels with solid somewhere above them in their column.
    above = np.logical_or.accumulate(grid.solid[:, :, ::-1], axis=2)[:, :, ::-1]
    room = np.einsum("i,j,k,ijk->", *grid.sizes, above & ~grid.solid)
    return Overhangs(float(areas[hangs].sum()), float(room), float(np.ptp(surface.vertices[:, 2])))
