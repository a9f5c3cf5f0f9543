"""Meshes that are still the part that they were made of: finer ones are tried where the first isn't."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface
from lpbf_data.geometry.mesh_check import (
    EXTENT_REPORTED,
    USUAL_MAX_POINTS,
    VOLUME_REPORTED,
    MeshCheck,
    Walls,
    check_mesh,
    find_walls,
)
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.remarks import Remark, Treatment

_TRIALS: Final = (1, 2, 4)  # times as many points as were asked for, to keep a part whole
_FINE_TRIALS: Final = (1, 1.12, 1.25, 1.4, 1.6, 2, 2.5, 3.2, 4)  # so close that faces of walls meet other cells
_STEP: Final = 1.12  # from a number of points that is tried for a proposal to the next
_MAX_WORK: Final = 600_000  # points and triangles of all meshes that are tried for a proposal: about two seconds
_MIN_POINTS: Final = 100  # fewer aren't proposed
_MANY: Final = 1.5  # times as many points as were asked for, from which on it is reported

Mesher = Callable[[Surface, int], VoxelMesh]
"""Makes a mesh of a surface with about so many points."""


def remarks_on(check: MeshCheck, name: str, *, advise: bool = True) -> tuple[Remark, ...]:
    """What differs between mesh and surface, as a remark.

    Args:
        check: The comparison.
        name: The part, as the remark names it.
        advise: Whether the remark says how many points would help.
    """
    differences = check.differences()
    if not differences:
        return ()
    sentence = (
        f"the mesh differs from the surface, in volume (by over {VOLUME_REPORTED:.0%}), in size (by over "
        f"{EXTENT_REPORTED:.0%}) or at thin walls"
    )
    example = f"{name}: {', '.join(differences)}"
    if advise:
        sentence += "; mesh it with another number of points (--points)"
        example += f"; {check.advice()}"
    return (Remark(Treatment.CHANGED, "mesh_differs", sentence, 1, (example,)),)


def mesh_faithfully(
    surface: Surface, num_points: int, name: str, mesher: Mesher
) -> tuple[VoxelMesh, tuple[Remark, ...]]:
    """Mesh a surface as `mesh_and_check` does; returns the mesh and the remarks."""
    mesh, _, remarks = mesh_and_check(surface, num_points, name, mesher)
    return mesh, remarks


def mesh_and_check(
    surface: Surface, num_points: int, name: str, mesher: Mesher, *, refined: bool = False, propose: bool = True
) -> tuple[VoxelMesh, MeshCheck, tuple[Remark, ...]]:
    """Mesh a surface so that the mesh is still the part, with up to four times as many points as were asked for.

    Args:
        surface: The surface.
        num_points: Points that the mesh should have.
        name: The part, as remarks name it.
        mesher: Makes a mesh of a surface with about so many points.
        refined: Whether to go on to finer meshes until one is quite the part; else, or where none is, the first mesh
            that is still the part is taken.
        propose: Whether to find a number of points that gives a mesh without differences, where this one has some.

    Returns:
        The mesh, the comparison with the surface, and what differs from that or from what was asked for.

    Raises:
        GeometryError: If it can't be meshed, or only as another part.
    """
    trials = _Trials(surface, mesher, propose=propose)
    first: _Trial | None = None
    taken: _Trial | None = None
    for times in _FINE_TRIALS if refined else _TRIALS:
        trial = trials.mesh(round(times * num_points))
        if trial is None or trial.check.is_another_part:
            continue
        first = first or trial
        if trial.check.is_quite_the_part or not refined:
            taken = trial
            break
    taken = taken or first
    if first is None or taken is None:
        raise trials.refusal()
    check = trials.with_proposal(taken)
    return taken.mesh, check, _remarks_on_trials(check, first.check, name, num_points, refined=taken is not first)


@dataclass(frozen=True)
class _Trial:
    """A mesh with the number of points that was asked for, and how it compares."""

    asked: int
    mesh: VoxelMesh
    check: MeshCheck


class _Trials:
    """Meshes of a surface with various numbers of points.

    Args:
        surface: The surface.
        mesher: Makes a mesh of it with about so many points.
        propose: Whether further ones may be made to find how many points to propose.
    """

    def __init__(self, surface: Surface, mesher: Mesher, *, propose: bool) -> None:
        self._surface = surface
        self._mesher = mesher
        self._propose = propose
        self._walls: Walls | None = None
        self._last: _Trial | None = None
        self._max_asked = 0
        self._max_tried = 0
        self._work = 0
        self._trouble: GeometryError | None = None

    def mesh(self, num_points: int) -> _Trial | None:
        """A mesh with about so many points; None where none can be made."""
        self._max_asked = max(self._max_asked, num_points)
        try:
            mesh = self._mesher(self._surface, num_points)
        except GeometryError as error:
            self._trouble = self._trouble or error
            return None
        self._walls = self._walls or find_walls(self._surface)
        self._last = _Trial(num_points, mesh, check_mesh(self._surface, mesh, self._walls))
        return self._last

    def with_proposal(self, trial: _Trial) -> MeshCheck:
        """The check of a mesh, with the number of points that gives one without differences if it has some."""
        if not trial.check.differences():
            return trial.check
        needed = self._find_enough(trial)
        return replace(trial.check, needed_points=needed, points_tried=self._max_tried)

    def refusal(self) -> GeometryError:
        """Why none of the meshes that were made is the part, and what would help."""
        if self._last is not None:
            check = self.with_proposal(self._last)
            found = ", ".join(check.differences())
            return GeometryError(f"the mesh of {check.num_points:,} points has {found}; {check.advice()}")
        assert self._trouble is not None
        trouble = self._trouble
        needed = self._find_enough(None)
        return (
            trouble
            if needed is None
            else GeometryError(f"{trouble} (--points {needed} gives a mesh that represents the part)")
        )

    def _find_enough(self, trial: _Trial | None) -> int | None:
        """How many points to ask for to get a mesh without differences; None where no number that was tried is enough.

        More points than were tried before come first, then fewer: their cells may fit the walls better.

        Args:
            trial: The mesh that has differences; None where none could be made.
        """
        last, count = trial and self._last, self._max_asked
        while count < USUAL_MAX_POINTS and self._has_time():
            count = min(_round_up(self._next(count, last)), USUAL_MAX_POINTS)
            last = self._try(count)
            if last is None:
                break
            if _is_right(last):
                return count
        last = trial
        while last is not None and not last.check.has_thin_walls and self._has_time():
            count = _round_down(min(last.asked / _STEP, USUAL_MAX_POINTS))
            if count < _MIN_POINTS:
                break
            last = self._try(count)
            if last is not None and _is_right(last):
                return count
        return None

    def _has_time(self) -> bool:
        return self._propose and self._work + len(self._surface.triangles) <= _MAX_WORK

    def _try(self, num_points: int) -> _Trial | None:
        trial = self.mesh(num_points)
        self._work += len(self._surface.triangles) + (num_points if trial is None else trial.mesh.num_points)
        self._max_tried = max(self._max_tried, num_points)
        return trial

    def _next(self, num_points: int, last: _Trial | None) -> float:
        """The number of points to try next: so many more that walls thinner than a cell come near to one."""
        if last is not None:
            growth = max(last.check.cells_across or 0, 1e-3) ** -2 if last.check.has_thin_walls else 1
            return max(growth, _STEP) * max(num_points, last.mesh.num_points)
        wall = find_walls(self._surface).thinnest((1, 1, 1))
        return max(_STEP * num_points, self._surface.volume / (0.7 * wall[0] ** 3) if wall else 0)


def _is_right(trial: _Trial) -> bool:
    """Whether a mesh has no differences, and not many more points than are usual."""
    check = trial.check
    return not check.differences() and check.num_points <= _STEP * USUAL_MAX_POINTS


def _remarks_on_trials(
    taken: MeshCheck, first: MeshCheck, name: str, num_points: int, *, refined: bool
) -> tuple[Remark, ...]:
    """What differs from the surface, and that there are more points than were asked for or than the first mesh had."""
    remarks = remarks_on(taken, name)
    if refined:
        sentence = "a part was meshed with more points than by default, so that volume, extents and walls are its own"
        example = f"{name}: {taken.num_points:,}, where {first.num_points:,} had {', '.join(first.lost())}"
        return *remarks, Remark(Treatment.CHANGED, "refined", sentence, 1, (example,))
    if taken.num_points > _MANY * num_points:
        sentence = "a part was meshed with more points than were asked for, to keep thin walls whole"
        example = f"{name}: {taken.num_points:,} instead of {num_points:,}"
        return *remarks, Remark(Treatment.CHANGED, "more_points", sentence, 1, (example,))
    return remarks


def _round_up(points: float) -> int:
    """A number of points, rounded up to two significant digits.

    >>> _round_up(2345.6), _round_up(9)
    (2400, 9)
    """
    digits = _unit(points)
    return math.ceil(points / digits) * digits


def _round_down(points: float) -> int:
    digits = _unit(points)
    return math.floor(points / digits) * digits


def _unit(points: float) -> int:
    """What the second digit of a number of points counts."""
    return int(10 ** max(0, int(math.log10(max(points, 1))) - 1))
