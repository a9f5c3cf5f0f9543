"""Closed surfaces from files: every body of a file for itself, in mm, and what was guessed or repaired on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface, surface_of_arrays
from lpbf_data.geometry.face_counts import check_face_count
from lpbf_data.geometry.ply import read_ply
from lpbf_data.geometry.polygon_text import read_obj, read_off
from lpbf_data.geometry.stl import read_stl
from lpbf_data.geometry.surface_formats import (
    MILLIMETRES,
    SMALL_EXTENT,
    SURFACE_SUFFIXES,
    USUAL_EXTENTS,
    Units,
    cad_advice,
)
from lpbf_data.geometry.surface_repair import repair, shells_of
from lpbf_data.geometry.threemf import read_3mf
from lpbf_data.remarks import Remark, Treatment

_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_MAX_BODIES: Final = 200
_MAX_PAIRS: Final = 20_000_000
_MAX_COMPARED: Final = 2_000  # pairs of shells; beyond, those whose boxes overlap count as one body


@dataclass(frozen=True)
class SurfaceFile:
    """What a file of surfaces holds.

    Attributes:
        bodies: One closed surface a body, in mm, in order of their least x, y and z. Shells that overlap or touch are
            one body, and so are a body and its cavities.
        remarks: What was guessed or repaired.
        unit: Unit that its lengths were read in.
        unit_told: Whether the file states that unit, or the caller did; else mm is assumed.
        unit_doubtful: Whether mm is assumed and no part that machines build is of that size.
    """

    bodies: tuple[Surface, ...]
    remarks: tuple[Remark, ...]
    unit: str = "mm"
    unit_told: bool = True
    unit_doubtful: bool = False


def load_bodies(path: Path, units: Units | None = None) -> SurfaceFile:
    """Read the bodies of a file.

    Args:
        path: An STL, OBJ, PLY, OFF or 3MF file.
        units: Unit of its lengths; by default the one that a 3MF states, and mm for the others, which state none.

    Raises:
        GeometryError: If it can't be read, isn't closed, or holds more bodies than a bound.
    """
    try:
        surface, remarks, unit, is_stated = _load(path, units)
        bodies = bodies_of(surface)
        if len(bodies) > _MAX_BODIES:
            raise GeometryError(f"it holds {len(bodies):,} bodies; at most {_MAX_BODIES} are read")
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error
    extent = max(float(np.ptp(body.bounds, axis=0).max()) for body in bodies)
    remarks += _unusual(extent, unit, path.name, is_stated=is_stated)
    if len(bodies) > 1:
        sentence = "a file with several bodies became one part a body, each put on the build plate by itself"
        remarks.append(
            Remark(Treatment.CHANGED, "several_bodies", sentence, 1, (f"{path.name}: {len(bodies)} bodies",))
        )
    is_doubtful = not is_stated and not USUAL_EXTENTS[0] <= extent <= USUAL_EXTENTS[1]
    return SurfaceFile(bodies, tuple(remarks), unit, is_stated, is_doubtful)


def load_surface(path: Path, units: Units | None = None) -> Surface:
    """Read all that a file holds as one surface; see `load_bodies`.

    Args:
        path: The file.
        units: Unit of its lengths.

    Raises:
        GeometryError: If it can't be read or isn't closed.
    """
    try:
        return _load(path, units)[0]
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def _load(path: Path, units: Units | None) -> tuple[Surface, list[Remark], str, bool]:
    """The surface, remarks, the unit, and whether the file or the caller stated it."""
    remarks: list[Remark] = []
    stated: str | None = None
    suffix = path.suffix.lower()
    if suffix not in SURFACE_SUFFIXES:
        raise GeometryError(cad_advice(suffix) or f"surfaces are read from {', '.join(SURFACE_SUFFIXES)} files")
    _check_fetched(path)
    loose: list[NDArray[np.float64]] = []  # handed on without keeping it: memory is bounded
    try:
        if suffix == ".stl":
            corners, remarks = read_stl(path)
        elif suffix == ".3mf":
            corners, stated, remarks = read_3mf(path)
        else:
            check_face_count(path)
            corners, remarks = {".obj": read_obj, ".off": read_off, ".ply": read_ply}[suffix](path)
    except OSError as error:
        raise GeometryError(f"it can't be read: {error.strerror or error}") from error
    except (ValueError, OverflowError) as error:
        raise GeometryError(f"it holds a number that can't be read ({error}); save it again") from error
    loose.append(corners)
    del corners
    surface, repaired = repair(loose.pop(), path.name)
    unit = units or stated or "mm"
    if units and stated and units != stated:
        sentence = f"lengths of a file that states {stated} were read in {units}, as was asked for"
        remarks.append(Remark(Treatment.CHANGED, "units", sentence, 1, (path.name,)))
    surface = replace(surface, vertices=surface.vertices * MILLIMETRES[unit])
    is_stated = bool(units or stated)
    return surface, [*remarks, *repaired], unit, is_stated


def _check_fetched(path: Path) -> None:
    """Refuse the pointer that Git LFS leaves in a working copy instead of a large file."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise GeometryError(f"it can't be read: {error.strerror or error}") from error
    if start == _POINTER:
        raise GeometryError("it is a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")


def _unusual(extent: float, unit: str, name: str, *, is_stated: bool) -> list[Remark]:
    """A remark where the largest extent of a body, in mm, is such that lengths may be in another unit."""
    smallest, largest = USUAL_EXTENTS
    may_be_inches = unit == "mm" and not is_stated and smallest <= extent < SMALL_EXTENT
    if smallest <= extent <= largest and not may_be_inches:
        return []
    read = f"lengths were read in {unit}" + ("" if is_stated else ", since the file states no unit")
    example = f"{name}: {extent:.3g} mm"
    if may_be_inches:
        sentence = (
            f"{read}, and the part is less than {SMALL_EXTENT:g} mm wide; if they are in inches, use --units inch"
        )
        example += f", in inches it would be {MILLIMETRES['inch'] * extent:.3g} mm"
    elif extent < smallest:
        sentence = (
            f"{read}, and the part is less than {smallest:g} mm wide; if they are in metres, use --units m, "
            "if in inches, --units inch"
        )
    else:
        sentence = (
            f"{read}, and the part is more than {largest:,.0f} mm wide; if they are in micrometres, use --units um"
        )
    return [Remark(Treatment.GUESSED, "unusual_size", sentence, 1, (example,))]


def bodies_of(surface: Surface) -> tuple[Surface, ...]:
    """The bodies of a surface, in order of their least x, y and z.

    Args:
        surface: Any number of shells.

    Returns:
        Closed surfaces. Shells that overlap, touch or lie in one another belong to one body, as long as their solids
        are connected; a loose piece in a cavity is a body of its own.

    Raises:
        GeometryError: If there are too many shells to compare.
    """
    shell = shells_of(surface.triangles)
    count = int(shell.max()) + 1
    if count == 1:
        return (surface,)
    groups = _groups(surface, shell, count)
    found = []
    for number in range(int(groups.max()) + 1):
        own = surface.triangles[(groups == number)[shell]]
        found.append(surface_of_arrays(surface.vertices, own))
    return tuple(sorted(found, key=lambda body: tuple(body.bounds[0])))


def _groups(surface: Surface, shell: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Number of the body of each shell."""
    low, high = np.full((count, 3), np.inf), np.full((count, 3), -np.inf)
    for k in range(3):
        np.minimum.at(low, shell, surface.vertices[surface.triangles[:, k]])
        np.maximum.at(high, shell, surface.vertices[surface.triangles[:, k]])
    if count * count > _MAX_PAIRS:
        raise GeometryError(f"it holds {count:,} separate shells, more than a part has; is it a scan or a simulation?")
    near = np.ones((count, count), bool)
    for axis in range(3):
        near &= (low[:, None, axis] <= high[None, :, axis]) & (low[None, :, axis] <= high[:, None, axis])
    pairs = np.argwhere(np.triu(near, 1))
    if len(pairs) <= _MAX_COMPARED:
        solids = [_solid(surface, surface.triangles[shell == n]) if (pairs == n).any() else None for n in range(count)]
        pairs = np.array([pair for pair in pairs.tolist() if _hang_together(solids, *pair)], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(count, count))
    groups: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def _hang_together(solids: Sequence[tuple[Any, bool] | None], first: int, second: int) -> bool:
    """Whether two shells whose boxes overlap make one solid; of shells that manifold doesn't take it is assumed."""
    one, other = solids[first], solids[second]
    if one is None or other is None:
        return True
    if not (one[1] or other[1]):
        return False  # two cavities
    if one[1] != other[1]:  # a cavity belongs to what contains it
        cavity, solid = (other[0], one[0]) if one[1] else (one[0], other[0])
        return _within(cavity, solid)
    least, most = sorted((one[0], other[0]), key=lambda solid: float(solid.volume()))
    if not _within(least, most):
        return len((least + most).decompose()) < 2
    cavities = [found[0] for found in solids if found is not None and not found[1]]
    return not any(_within(least, cavity) and _within(cavity, most) for cavity in cavities)


def _within(inner: Any, outer: Any) -> bool:
    """Whether most of a solid lies in another."""
    return bool((inner - outer).volume() < 0.01 * inner.volume())


def _solid(surface: Surface, triangles: NDArray[np.int64]) -> Any:
    """A shell as manifold's solid, and whether it faces outwards; None where manifold refuses it."""
    import manifold3d

    used, numbers = np.unique(triangles, return_inverse=True)
    numbers = numbers.reshape(-1, 3)
    vertices = surface.vertices[used]
    a, b, c = (vertices[numbers[:, k]] for k in range(3))
    outward = float(np.einsum("ij,ij->", a - vertices.mean(0), np.cross(b - a, c - a))) > 0
    mesh = manifold3d.Mesh64(vertices, (numbers if outward else numbers[:, ::-1]).astype(np.uint64).copy())
    solid = manifold3d.Manifold(mesh)
    return (solid, outward) if solid.status() == manifold3d.Error.NoError else None
