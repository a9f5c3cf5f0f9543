"""NetFabb's result folders: from files to a `Case`.

The conventions that make a folder of EnSight files a simulated part: how files are called in batch and interactive
runs, whether the run is good, which geometry a frame lies on, where the build ends, and how the whole build is reduced
onto the finished part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from lpbf_data.cached_property import cached_property
from lpbf_data.case.case import Case
from lpbf_data.case.record import RunInfo
from lpbf_data.case.schema import BUILD_FIELDS, FIELDS, FULL_CLEARANCE, SYMMETRIC_TENSOR, FieldSpec
from lpbf_data.case.tensor_order import ENSIGHT_ORDER, VTK_ORDER, TensorOrder, order_by_principal_values, reorder
from lpbf_data.errors import CaseError, FailureReason
from lpbf_data.geometry.hexahedra import hex_corner_volumes
from lpbf_data.remarks import Remark, Treatment
from pipelines.ensight import (
    COMPONENTS,
    CaseFile,
    Dialect,
    Geometry,
    count_values,
    read_case_file,
    read_geometry,
    read_points,
    read_variable,
)
from pipelines.ensight.case_file import is_utf8
from pipelines.netfabb.matching_points import PointIndex
from pipelines.netfabb.run_files import RunFiles
from pipelines.netfabb.solver_log import InputSummary, LogSummary, read_input, read_log
from pipelines.sources.case_files import CaseFiles

VARIABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "displacement": "Displacement",
        "temperature": "Temperature",
        "von_mises_stress": "von_Mises_stress",
        "cauchy_stress": "Cauchy_stress",
        "principal_stress_max": "Principal_stress_max",
        "principal_stress_mid": "Principal_stress_mid",
        "principal_stress_min": "Principal_stress_min",
        "principal_stress_direction_max": "Principal_stress_direction_max",
        "principal_stress_direction_mid": "Principal_stress_direction_mid",
        "principal_stress_direction_min": "Principal_stress_direction_min",
        "elastic_strain": "Elastic_strain",
        "recoater_clearance": "Recoater_clearance_%",
        "recoater_status": "Recoater_status",
        "structure_type": "Structure_type",
    }
)
"""Name of each field in NetFabb's case file."""

NETFABB_ORDER: Final = VTK_ORDER
"""Order of the components of symmetric tensors in NetFabb's files: the last two are exchanged against the manual's."""

TensorBasis = Literal["solver", "checked", "data", "unconfirmed"]
"""Why tensors are read in an order: the solver's known one, with nothing beside the tensors to check it by; the same,
checked by the principal stresses in the same files; the principal stresses, against the solver's known order; the
solver's known order although the principal stresses fit neither."""

# The project's own simulator wrote the manual's order until its files became like NetFabb's.
_ORDER_OF_SOLVER: Final[Mapping[str, TensorOrder]] = MappingProxyType({"0.1.0-lpbf": ENSIGHT_ORDER})
_PRINCIPAL: Final = ("principal_stress_max", "principal_stress_mid", "principal_stress_min")
_SUPPORTS: Final = (4.0, 5.0)
_NONE: Final = np.empty(0, dtype=np.intp)
_BELOW_PLATE: Final = -1e-3  # mm; the finished part stands on z = 0


@dataclass(frozen=True, slots=True)
class BuildReduction:
    """The whole build, reduced onto the points of the finished part.

    Attributes:
        clearance_min: Least recoater clearance over the build frames in which a point exists, percent, [N].
        displacement_z_max: Largest upward displacement over the same frames, mm, [N].
        least_clearance: Least clearance of all points and build frames, percent.
        least_clearance_height: Height at which it occurs, mm; None when the clearance was never below 100 %.
    """

    clearance_min: NDArray[np.float32]
    displacement_z_max: NDArray[np.float32]
    least_clearance: float
    least_clearance_height: float | None


class NetfabbRun:
    """The results of one run: frames as cases, and the build reduced onto the finished part.

    Args:
        case_id: Name of the case.
        files: Its files.

    Raises:
        CaseError: If the run isn't good, the folder holds several, or the case file is missing or malformed.

    Attributes:
        files: Its files, and which of them were read so far.
        remarks: What was guessed, changed or repaired so far; readers add theirs.
    """

    def __init__(self, case_id: str, files: CaseFiles) -> None:
        self.case_id = case_id
        self.files = RunFiles(files)
        self.remarks: list[Remark] = []
        self.log = self._check_log()
        self.case_file, self._folder = self._read_case_file()

    def _check_log(self) -> LogSummary:
        name = self.files.named("mechanical.out")
        if name is None:
            raise CaseError(
                FailureReason.MISSING_FILE, "the solver's log is missing", path=f"{self.files.prefix}mechanical.out"
            )
        log = read_log(self.files.text(name))
        if not log.completed:
            raise CaseError(FailureReason.SOLVER_TERMINATED, log.complaint, path=name)
        self.remarks += log.remarks
        return log

    def _read_case_file(self) -> tuple[CaseFile, str]:
        inner, outer = self.files.named("mechanical.case", "results"), self.files.named("mechanical.case")
        name = inner or outer
        if name is None:
            missing = f"results/{self.files.prefix}mechanical.case"
            raise CaseError(FailureReason.MISSING_FILE, "the case file is missing", path=missing)
        data = self.files.read(name)
        self._case_name = name
        case_file = read_case_file(data, name)
        if not is_utf8(data):
            sentence = "case files that aren't UTF-8, read as Windows-1252"
            self.remarks.append(Remark(Treatment.GUESSED, "case_file_encoding", sentence, examples=(name,)))
        return case_file, "results/" if inner else ""

    @cached_property
    def input(self) -> InputSummary:
        """What the input file tells; empty without one."""
        name = self.files.named("mechanical.in")
        return read_input(self.files.text(name)) if name else InputSummary()

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.case_file.frames.times)

    @property
    def num_build_frames(self) -> int:
        """Number of frames written while layers were added: all before cooling and release from the plate."""
        if self.log.frames == self.num_frames and self.log.build_frames < self.num_frames:
            return self.log.build_frames
        return max(self.num_frames - 2, 0)

    def check_complete(self) -> None:
        """Look whether every file that the case file names is there; none is opened.

        Raises:
            CaseError: If one is missing, which a copy that was cut short looks like.
        """
        case = self.case_file
        names = {case.geometry_file(index) for index in range(self._num_geometries)}
        names |= {case.variable_file(name, frame) for name in case.variables for frame in range(self.num_frames)}
        missing = sorted(name for name in names if self.files.resolved(self._folder + name) not in self.files.sizes)
        if missing:
            others = f", and {len(missing) - 1:,} others" if len(missing) > 1 else ""
            detail = f"the file is missing{others}"
            raise CaseError(FailureReason.MISSING_FILE, detail, path=self._folder + missing[0])

    def _frame(self, frame: int) -> int:
        index = frame + self.num_frames if frame < 0 else frame
        if not 0 <= index < self.num_frames:
            detail = f"frame {frame} was asked for, the run has {self.num_frames}"
            raise CaseError(FailureReason.INCONSISTENT_STEPS, detail)
        return index

    def _geometry_name(self, frame: int) -> str:
        return self._folder + self.case_file.geometry_file(self.case_file.geometry_index(frame))

    def _variable(self, name: str, frame: int, dialect: Dialect, count: int) -> NDArray[np.float32]:
        """Values of a field at a frame: [count] or [count, components]."""
        spec = FIELDS[name]
        variable = self.case_file.variables.get(VARIABLES[name])
        if variable is None:
            detail = f"the case file has no variable {VARIABLES[name]!r}"
            raise CaseError(FailureReason.MISSING_VARIABLE, detail, path=self._case_name)
        if COMPONENTS[variable.kind] != spec.num_components or variable.location != spec.location:
            detail = f"{variable.name} is a {variable.kind} per {variable.location}"
            raise CaseError(FailureReason.MALFORMED_FILE, detail, path=self._case_name)
        path = self._folder + self.case_file.variable_file(variable.name, frame)
        data = self.files.read(path)
        try:
            values = read_variable(
                data,
                dialect,
                count=count,
                num_components=spec.num_components,
                location=spec.location,
                path=path,
            )
        except CaseError as error:
            if error.reason is FailureReason.TRUNCATED_FILE:
                self._explain_mismatch(data, dialect, spec, count, error)
            raise
        return reorder(values, self.tensor_order[0], SYMMETRIC_TENSOR) if spec.num_components == 6 else values

    @cached_property
    def tensor_order(self) -> tuple[TensorOrder, TensorBasis | None]:
        """Order of the components of symmetric tensors in the files, and why; None where the run has no stress tensors.

        A convention isn't believed: the finished part's stress tensors must have the principal stresses beside them.
        """
        known = _ORDER_OF_SOLVER.get(self.log.solver_version or "", NETFABB_ORDER)
        if VARIABLES["cauchy_stress"] not in self.case_file.variables:
            return known, None
        try:
            found = self._order_in_data()
        except ValueError:
            return known, "unconfirmed"
        if found is None:
            return known, "solver"
        return found, "checked" if found == known else "data"

    def _order_in_data(self) -> TensorOrder | None:
        """The order that principal stresses tell; None where they aren't there, or tell nothing.

        Raises:
            ValueError: If they fit no order.
        """
        frame, variables = self.num_frames - 1, self.case_file.variables
        read = []
        try:
            name = self._geometry_name(frame)
            points, dialect = read_points(self.files.look(name), name)
            for field, width in (("cauchy_stress", 6), *((field, 1) for field in _PRINCIPAL)):
                variable = variables.get(VARIABLES[field])
                if variable is None or COMPONENTS[variable.kind] != width or variable.location != "point":
                    return None
                path = self._folder + self.case_file.variable_file(variable.name, frame)
                data = self.files.look(path)
                read.append(read_variable(data, dialect, count=len(points), num_components=width, path=path))
        except CaseError:
            return None  # a file that can't be read is reported when it is asked for
        return order_by_principal_values(read[0], np.stack(read[1:], axis=1))

    def _explain_mismatch(self, data: bytes, dialect: Dialect, spec: FieldSpec, count: int, error: CaseError) -> None:
        """A field that is too short for its geometry but fits another one was not cut off: it is of that mesh."""
        held = count_values(data, dialect, num_components=spec.num_components)
        if held is None:
            return
        for index in range(self._num_geometries):
            name = self._folder + self.case_file.geometry_file(index)
            geometry = read_geometry(self.files.look(name), name)
            if held == len(geometry.points if spec.location == "point" else geometry.cells):
                detail = f"the file holds {held:,} values, its geometry has {count:,}; they fit {name}"
                raise CaseError(FailureReason.SIZE_MISMATCH, detail, path=error.path, offset=error.offset) from error

    @property
    def _num_geometries(self) -> int:
        number = self.case_file.geometry_time_set
        return 1 if number is None else len(self.case_file.time_sets[number].times)

    def geometry(self, frame: int = -1) -> Geometry:
        """The mesh that a frame lies on.

        Args:
            frame: Index of the frame; negative ones count from the end.
        """
        name = self._geometry_name(self._frame(frame))
        return read_geometry(self.files.read(name), name)

    def read_case(self, fields: Iterable[str], frame: int = -1) -> Case:
        """The state at a frame as a `Case`; by default the last one, the finished part.

        Args:
            fields: Names of fields that the solver writes; reductions over the build among them are left out.
            frame: Index of the frame; negative ones count from the end.

        Raises:
            CaseError: If a file is missing, malformed, or doesn't fit the others, or a cell is inverted.
        """
        index = self._frame(frame)
        geometry = self.geometry(index)
        if index == self.num_frames - 1:
            _check_released(geometry, self._geometry_name(index))
        _check_cells(geometry, self._geometry_name(index))
        counts = {"point": len(geometry.points), "cell": len(geometry.cells)}
        values = {
            name: self._variable(name, index, geometry.dialect, counts[FIELDS[name].location])
            for name in fields
            if name not in BUILD_FIELDS
        }
        return Case(self.case_id, geometry.points, geometry.cells, values)

    def reduce_build(self, points: NDArray[np.float32]) -> BuildReduction:
        """Reduce all build frames onto the points of the finished part.

        Args:
            points: Points of the finished part, [N, 3].

        Raises:
            CaseError: If a file is missing or malformed, or a point occurs in no build frame.
        """
        index = PointIndex(points)
        clearance = np.full(len(points), np.inf, dtype=np.float32)
        upward = np.full(len(points), -np.inf, dtype=np.float32)
        least, height = FULL_CLEARANCE, None
        name, frame_points, dialect, here, there = "", np.empty((0, 3), np.float32), Dialect(), _NONE, _NONE
        for frame in range(self.num_build_frames):
            if self._geometry_name(frame) != name:
                name, before = self._geometry_name(frame), frame_points
                frame_points, dialect = read_points(self.files.read(name), name)
                here, there = _match_grown(index, frame_points, before, here, there)
            count = len(frame_points)
            frame_clearance = self._variable("recoater_clearance", frame, dialect, count)
            frame_upward = self._variable("displacement", frame, dialect, count)[:, 2]
            np.minimum.at(clearance, here, frame_clearance[there])  # points of the frame may coincide
            np.maximum.at(upward, here, frame_upward[there])
            lowest = int(frame_clearance.argmin())
            if frame_clearance[lowest] < least:
                least, height = float(frame_clearance[lowest]), float(frame_points[lowest, 2])
        clearance, upward = index.spread(clearance), index.spread(upward)
        if not np.isfinite(upward).all():
            missing = np.flatnonzero(~np.isfinite(upward))
            x, y, z = points[missing[0]].tolist()
            detail = f"{len(missing):,} points of the finished part occur in no build frame, one at ({x}, {y}, {z})"
            raise CaseError(FailureReason.INCONSISTENT_FRAMES, detail, path=self._geometry_name(self.num_frames - 1))
        return BuildReduction(clearance, upward, least, height)

    def has_supports(self) -> bool | None:
        """Whether the last build frame holds support structures; None when the run doesn't write the types."""
        if self.num_build_frames == 0 or VARIABLES["structure_type"] not in self.case_file.variables:
            return None
        frame = self.num_build_frames - 1
        geometry = self.geometry(frame)
        types = self._variable("structure_type", frame, geometry.dialect, len(geometry.cells))
        return bool(np.isin(types, _SUPPORTS).any())

    def info(self) -> RunInfo:
        """How the case was simulated."""
        order, basis = self.tensor_order
        return RunInfo(
            solver_version=self.log.solver_version,
            solver_build=self.log.solver_build,
            material=self.log.material,
            machine=self.input.machine,
            process=self.input.process,
            layer_thickness=self.log.layer_thickness,
            layers_per_element=self.log.layers_per_element,
            recoater_tolerance=self.input.recoater_tolerance,
            supports=self.has_supports(),
            num_frames=self.num_frames,
            stl=self.input.stl or self._stl(),
            tensor_order=" ".join(order) if basis else None,
            tensor_order_basis=basis,
            family=self.log.origin.family,
            draw=self.log.origin.draw,
            weight=self.log.origin.weight,
        )

    def _stl(self) -> str | None:
        return next((name for name in sorted(self.files.sizes) if name.lower().endswith(".stl")), None)


def _match_grown(
    index: PointIndex,
    points: NDArray[np.float32],
    before: NDArray[np.float32],
    here: NDArray[np.intp],
    there: NDArray[np.intp],
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match the points of a frame; where they begin with those of the frame before, only the new ones are looked up."""
    known = len(before)
    if known == 0 or not np.array_equal(points[:known], before):
        return index.match(points)
    new_here, new_there = index.match(points[known:])
    return np.concatenate((here, new_here)), np.concatenate((there, new_there + known))


def _check_cells(geometry: Geometry, path: str) -> None:
    if len(geometry.cells) == 0 or len(geometry.points) == 0:
        raise CaseError(FailureReason.EMPTY_MESH, "the mesh has no cells", path=path)
    volumes = hex_corner_volumes(geometry.points, geometry.cells)
    if not (volumes > 0).all():
        worst = int(volumes.argmin())
        kind = "inverted" if volumes[worst] < 0 else "degenerate"
        raise CaseError(FailureReason.DEGENERATE_CELL, f"cell {worst} is {kind}", path=path)


def _check_released(geometry: Geometry, path: str) -> None:
    if len(geometry.points) and float(geometry.points[:, 2].min()) < _BELOW_PLATE:
        detail = "the last frame still holds the build plate; the part was not released"
        raise CaseError(FailureReason.PART_NOT_RELEASED, detail, path=path)
