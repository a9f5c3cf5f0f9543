"""Closed surfaces as parts: placed on the plate, meshed as the simulator does, and compared with their meshes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.prediction.part import FromSurface, Meshing, Part, Unreadable
from lpbf_data.case.schema import BUILD_VOLUME
from lpbf_data.errors import GeometryError
from lpbf_data.remarks import Remark, Treatment

if TYPE_CHECKING:
    from lpbf_data.geometry.closed_surface import Surface
    from lpbf_data.geometry.surface_files import SurfaceFile
    from lpbf_data.geometry.voxel_mesh import VoxelMesh

LAYER: Final = 0.04
"""Thickness of a powder layer, mm; heights of hexahedra are multiples of it, as in the published data set (G.2)."""


def mesh_bodies(
    path: Path, file: SurfaceFile, meshing: Meshing, part_name: str | None = None
) -> Iterator[Part | Unreadable]:
    """The bodies of a file as parts.

    Args:
        path: The file.
        file: Its bodies and remarks.
        meshing: How surfaces become meshes.
        part_name: Name of the part, to which the numbers of several bodies are added; that of the file by default.

    Returns:
        A part a body, or why one can't be meshed.

    Raises:
        GeometryError: If the only one can't be meshed.
    """
    from lpbf_data.geometry.faithful_mesh import remarks_on

    stem = path.stem if part_name is None else part_name
    shifts, moved = _shifts(path.name, [body.bounds for body in file.bodies], centre=meshing.centre)
    for number, (body, shift) in enumerate(zip(file.bodies, shifts, strict=True), 1):
        name = stem if len(file.bodies) == 1 else f"{stem}_{number}"
        remarks = file.remarks + moved if number == 1 else ()
        try:
            placed = replace(body, vertices=body.vertices - shift)
            part = mesh_surface(
                placed, name, meshing.num_points, refined=meshing.refined, propose=not file.unit_doubtful
            )
        except GeometryError as error:
            what = "" if name == stem else f"body {name}: "
            refused = GeometryError(f"{path}: {what}{_with_unit_hint(str(error), file)}")
            if len(file.bodies) == 1:
                raise refused from error
            yield Unreadable(name, refused, remarks)
            continue
        assert part.origin is not None
        x, y, z = (0.0 - float(one) for one in shift)  # no -0.0
        origin = replace(
            part.origin,
            unit=file.unit,
            unit_told=file.unit_told,
            body=number,
            bodies=len(file.bodies),
            moved=(x, y, z),
            unit_doubtful=file.unit_doubtful,
        )
        on_mesh = part.remarks
        if file.unit_doubtful:  # more points don't mend a wrong unit
            on_mesh = remarks_on(origin.check, name, advise=False)
        yield replace(part, remarks=remarks + on_mesh, origin=origin)


def _with_unit_hint(problem: str, file: SurfaceFile) -> str:
    """Why a body can't be meshed, after the hint at another unit where its size is unusual.

    Where the unit is doubtful, what is wrong with the mesh, and how many points it needs, say nothing of the part.
    """
    hints = [one.sentence for one in file.remarks if one.kind == "unusual_size"]
    if not hints:
        return problem
    if file.unit_doubtful:
        return f"{hints[0]}, if in {file.unit}, --units {file.unit}; read in {file.unit} it can't be meshed"
    return f"{hints[0]}; {problem}"


def _shifts(
    name: str, bounds: Sequence[NDArray[np.float64]], *, centre: bool
) -> tuple[list[NDArray[np.float64]], tuple[Remark, ...]]:
    """Vector that is subtracted from the coordinates of each body, and a remark where bodies are moved along the plate.

    The lowest point of a body comes to z = 0. Along x and y bodies stay where they are within the build volume; else
    all together are moved to the middle of the plate, or each by itself where they don't fit together.

    Args:
        name: The file.
        bounds: Least and largest coordinates of each body, mm, [2, 3].
        centre: Move each body to the middle of the plate.
    """
    half = np.array(BUILD_VOLUME[:2])
    low, high = np.min([b[0] for b in bounds], axis=0), np.max([b[1] for b in bounds], axis=0)
    feet = [np.array([0.0, 0.0, b[0, 2]]) for b in bounds]
    middles = [np.append((b[0] + b[1])[:2] / 2, b[0, 2]) for b in bounds]
    if centre:
        return middles, ()
    if (high[:2] <= half).all() and (low[:2] >= -half).all():
        return feet, ()
    if ((high - low)[:2] <= 2 * half).all():
        middle = np.append((low + high)[:2] / 2, 0.0)
        sentence = "what lay out of the build volume was moved so that its middle stands on the middle of the plate"
        return [foot + middle for foot in feet], (Remark(Treatment.CHANGED, "moved", sentence, 1, (name,)),)
    fits = [bool((np.ptp(b, axis=0)[:2] <= 2 * half).all()) for b in bounds]
    sentence = "parts that lay out of the build volume were moved to the middle of the plate, each by itself"
    moved = (Remark(Treatment.CHANGED, "moved", sentence, sum(fits), (name,)),) if any(fits) else ()
    return middles, moved


def mesh_surface(surface: Surface, name: str, num_points: int, *, refined: bool = False, propose: bool = True) -> Part:
    """Mesh a surface that stands where it is to be built.

    Args:
        surface: The surface, its lowest point at z = 0, mm.
        name: Name of the part.
        num_points: Points that the mesh should have.
        refined: Whether up to four times as many are tried until the mesh is quite the part.
        propose: Whether to find a number of points that gives a mesh without differences, where this one has some.

    Raises:
        GeometryError: If it can't be meshed, or only as another part.
    """
    from lpbf_data.geometry.faithful_mesh import mesh_and_check
    from lpbf_data.geometry.voxelize import voxelize_to_size

    def mesher(of: Surface, count: int) -> VoxelMesh:
        return voxelize_to_size(of, count, layer=LAYER)

    mesh, check, differences = mesh_and_check(surface, num_points, name, mesher, refined=refined, propose=propose)
    origin = FromSurface(surface, check, "mm", unit_told=True)
    return Part(name, mesh.points.astype(np.float32), mesh.cells, remarks=differences, origin=origin)
