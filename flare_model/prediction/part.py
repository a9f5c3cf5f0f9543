"""A part to predict on, and the options of meshing a surface.

N points, E cells of one part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.geometry.hexahedra import hex_aspect_ratio
from lpbf_data.geometry.surface_formats import Units
from lpbf_data.remarks import Remark

_CORNERS: Final = 8

if TYPE_CHECKING:
    from lpbf_data.geometry.closed_surface import Surface
    from lpbf_data.geometry.mesh_check import MeshCheck


@dataclass(frozen=True)
class FromSurface:
    """The surface that a part was meshed from.

    Attributes:
        surface: Its surface, in the coordinates of the mesh, mm.
        check: How well the mesh represents the surface.
        unit: Unit that its file was read in.
        unit_told: Whether the file or the caller stated it; else mm is assumed.
        body: Which body of its file, from 1.
        bodies: How many bodies the file has.
        moved: What was added to the coordinates of the file, mm.
        unit_doubtful: Whether mm is assumed and no part that machines build is of that size.
    """

    surface: Surface
    check: MeshCheck
    unit: str
    unit_told: bool
    body: int = 1
    bodies: int = 1
    moved: tuple[float, float, float] = (0.0, 0.0, 0.0)
    unit_doubtful: bool = False


@dataclass(frozen=True)
class Part:
    """A part to predict on.

    Attributes:
        name: Name of the part, as its file or the manifest says; files for it are named by `FileNames`.
        points: Coordinates in mm, [N, 3] float32.
        cells: Zero-based hexahedra, [E, 8] int32.
        fields: Fields at the points, by name of field or component, [N] or [N, components].
        material: Its material, where known.
        remarks: What was left out, guessed or repaired on reading it, and where its mesh differs from its surface.
        origin: The surface that it was meshed from; None where it came as a mesh.
    """

    name: str
    points: NDArray[np.float32]
    cells: NDArray[np.int32]
    fields: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    material: str | None = None
    remarks: tuple[Remark, ...] = ()
    origin: FromSurface | None = None

    @property
    def aspect_ratio(self) -> float:
        """Aspect ratio of the worst cell."""
        return float(hex_aspect_ratio(self.points, self.cells).max())

    def column(self, name: str, field_name: str, components: Sequence[int]) -> NDArray[np.float32] | None:
        """A field, or components of one, as [N, components]; None where it isn't known, or has other components."""
        if name in self.fields:
            values = np.asarray(self.fields[name], np.float32).reshape(len(self.points), -1)
            return values if values.shape[1] == len(components) else None
        if field_name in self.fields:
            values = np.asarray(self.fields[field_name], np.float32).reshape(len(self.points), -1)
            return values[:, list(components)] if max(components) < values.shape[1] else None
        return None


@dataclass(frozen=True)
class Unreadable:
    """A part that can't be read: its name, the error, and remarks on reading its file."""

    name: str
    error: LpbfError
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class Meshing:
    """Options of meshing a surface.

    Attributes:
        num_points: Points that the mesh should have.
        centre: Move the middle of the part to x = y = 0; its lowest point always comes to z = 0. A part that reaches
            out of the build volume is moved in any case where it would fit then.
        units: Unit of lengths in files of surfaces; None for the one that a file states, or mm.
        refined: Where that mesh isn't quite the part, take the first that is, with up to four times as many points.
    """

    num_points: int = 2000
    centre: bool = False
    units: Units | None = None
    refined: bool = False


DEFAULT_MESHING: Final = Meshing()


def check_points(points: int | None) -> None:
    """Refuse a number of points for a mesh, as given on a command line, that is too small for a single cell.

    Args:
        points: The number; None where it is left to the command.

    Raises:
        UsageError: If it is less than the corners of one cell.
    """
    if points is not None and points < _CORNERS:
        raise UsageError(f"--points must be {_CORNERS} or more, not {points}")
