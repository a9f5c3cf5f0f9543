"""One case from plan to files: mesh the part, run the build, write its results, and say what came of it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from lpbf_data.case.case import Case
from lpbf_data.case.record import CaseRecord, SourceRef
from lpbf_data.durable import flush_tree, write_durably
from lpbf_data.errors import GeometryError
from lpbf_data.geometry.layer_groups import choose_refinement
from lpbf_data.geometry.mesh_check import check_mesh, mesh_faithfully, remarks_on
from lpbf_data.geometry.surface_files import load_bodies
from lpbf_data.geometry.surface_formats import Units
from lpbf_data.geometry.voxelize import Surface, VoxelMesh, on_build_plate, voxelize_to_size
from lpbf_data.remarks import Remark
from pipelines.measuring.measure import measure_case
from pipelines.netfabb.run import BuildReduction
from pipelines.selection.filters import Filters, active_limits, reject
from pipelines.simulation import run_log
from pipelines.simulation.build_simulation import FULL_CLEARANCE, BuildSimulation, Frame
from pipelines.simulation.choices import EncodingName
from pipelines.simulation.corpus import PartPlan, part_surface
from pipelines.simulation.failures import FailureKind, PlannedFailure, cut_short
from pipelines.simulation.fields import von_mises
from pipelines.simulation.materials import Material
from pipelines.simulation.named_parts import named_part
from pipelines.simulation.result_writer import ResultWriter
from pipelines.simulation.run_log import RunNames
from pipelines.simulation.stiffness import SolverError

_CUBES = 1.0  # aspect ratio of the cells of a part that came as a file
_FEWEST_PLANES = 2  # of cells: one alone shrinks freely when it is cut, and would not warp
_FAR = 4.0  # times as many points as were asked for: a sign that thin walls force the cells to be narrow
_MESHING, _SOLVING, _ASKED_FOR = 2001, 2002, 2003  # numbers of errors in logs


@dataclass(frozen=True)
class SurfacePart:
    """A body of a surface file.

    Attributes:
        path: The file.
        body: Its number in the file, from 0.
        units: Unit of the file's lengths; None for what it states, or mm.
    """

    path: Path
    body: int = 0
    units: Units | None = None


@dataclass(frozen=True)
class KnownPart:
    """A part that is known by name.

    Attributes:
        name: A key of `named_parts.NAMED_PARTS`.
    """

    name: str


@dataclass(frozen=True)
class CaseTask:
    """A case to simulate.

    Attributes:
        case_id: Its name.
        part: The part: drawn, a body of a surface file, or known by name.
        num_points: Points that its mesh should have.
        material: The material.
        encoding: Binary or text results.
        interactive: Whether file names start with the case's name, as in interactive runs.
        failure: How it is to fail, if it is.
        staging: Folder in which it is written.
        target: Folder to which it is moved when it is whole.
        outcomes: Folder that takes what came of it.
    """

    case_id: str
    part: PartPlan | SurfacePart | KnownPart
    num_points: int
    material: Material
    encoding: EncodingName
    interactive: bool
    failure: PlannedFailure | None
    staging: Path
    target: Path
    outcomes: Path


@dataclass(frozen=True)
class CaseOutcome:
    """What came of a case.

    Attributes:
        case_id: The case.
        status: Whether it was completed.
        reason: Why it wasn't.
        asked_for: Whether the failure was asked for.
        rejected_by: Limits of the published data set that it exceeds.
        num_points: Points of the finished part.
        height: mm.
        displacement_z_max: mm.
        recoater_clearance_min: Percent of a layer.
        remarks: What differs between mesh and surface.
    """

    case_id: str
    status: Literal["completed", "failed"]
    reason: str = ""
    asked_for: bool = False
    rejected_by: tuple[str, ...] = field(default_factory=tuple)
    num_points: int = 0
    height: float = 0.0
    displacement_z_max: float = 0.0
    recoater_clearance_min: float = 0.0
    remarks: tuple[Remark, ...] = ()


class _StoppedError(Exception):
    """The run ends here, for a reason that its log gives."""

    def __init__(self, code: int, reason: str, *, silent: bool = False) -> None:
        self.code, self.reason, self.silent = code, reason, silent
        super().__init__(reason)


def outcome_path(folder: Path, case_id: str) -> Path:
    """File that tells what came of a case.

    Args:
        folder: Folder of the outcomes.
        case_id: The case.
    """
    return folder / f"{case_id}.json"


def load_outcome(folder: Path, case_id: str) -> CaseOutcome | None:
    """What came of a case in an earlier run; None when it isn't finished.

    Args:
        folder: Folder of the outcomes.
        case_id: The case.
    """
    path = outcome_path(folder, case_id)
    if not path.exists():
        return None
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    remarks = tuple(Remark.from_dict(stored) for stored in content.get("remarks", ()))
    return CaseOutcome(**{**content, "rejected_by": tuple(content["rejected_by"]), "remarks": remarks})


def run_case(task: CaseTask) -> CaseOutcome:
    """Simulate a case and put its folder in place; the folder is there whole or not at all.

    Args:
        task: The case.

    Returns:
        What came of it; a part that can't be meshed or solved is a failed run, not an error.
    """
    folder = task.staging / task.case_id
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "results").mkdir(parents=True)
    with threadpool_limits(limits=1):
        outcome = _Run(task, folder).run()
    flush_tree(folder)
    target = task.target / task.case_id
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
    stored = asdict(outcome) | {"remarks": [remark.as_dict() for remark in outcome.remarks]}
    content = json.dumps(stored, indent=1) + "\n"
    write_durably(outcome_path(task.outcomes, task.case_id), content.encode("utf-8"))
    return outcome


class _Run:
    """The run of one case; its log grows as it goes on."""

    def __init__(self, task: CaseTask, folder: Path) -> None:
        self.task, self.folder = task, folder
        prefix = f"{task.case_id}_" if task.interactive else ""
        self.remarks: tuple[Remark, ...] = ()
        self.read_remarks: tuple[Remark, ...] = ()  # told by the command before the cases begin; here for the log
        self.names = RunNames(prefix, f"{task.case_id}.stl" if task.interactive else "test.stl")
        self.logs = {kind: run_log.log_opening(kind, self.names) for kind in ("mechanical", "thermal")}

    def run(self) -> CaseOutcome:
        try:
            return self._simulate()
        except _StoppedError as stop:
            if not stop.silent:
                self.logs["mechanical"] += run_log.log_failure(stop.code, stop.reason)
            return CaseOutcome(self.task.case_id, "failed", reason=stop.reason, asked_for=self.task.failure is not None)
        finally:
            for kind, text in self.logs.items():
                (self.folder / f"{self.names.prefix}{kind}.out").write_bytes(text.encode("utf-8"))

    def _mesh(self) -> tuple[Surface, VoxelMesh]:
        task, layer = self.task, self.task.material.process.layer_thickness
        try:
            if isinstance(task.part, PartPlan):
                surface = part_surface(task.part.family, task.part.parameters, task.part.up)
                mesh = _mesh_near(surface, task.num_points, task.part.aspect_ratio, layer)
                self.remarks += remarks_on(check_mesh(surface, mesh), task.case_id)
                return surface, mesh
            surface = self._known_surface(task.part)
            mesh, remarks = mesh_faithfully(
                surface, task.num_points, task.case_id, lambda one, n: _mesh_near(one, n, _CUBES, layer)
            )
            self.remarks += remarks
            return surface, mesh
        except GeometryError as error:
            raise _StoppedError(_MESHING, f"The part can't be meshed: {error}") from error

    def _known_surface(self, part: SurfacePart | KnownPart) -> Surface:
        """A surface that isn't drawn, on the build plate."""
        if isinstance(part, KnownPart):
            return on_build_plate(named_part(part.name).surface())
        read = load_bodies(part.path, part.units)
        self.read_remarks = read.remarks
        if part.body >= len(read.bodies):
            raise GeometryError(f"{part.path} has changed since the simulation began; start it again")
        return on_build_plate(read.bodies[part.body])

    def _simulate(self) -> CaseOutcome:
        if self.task.failure is not None and self.task.failure.kind is FailureKind.PREPARATION:
            raise _StoppedError(_ASKED_FOR, "The part could not be prepared (a failure that was asked for)")
        surface, mesh = self._mesh()
        known = self.task.material.calibration
        refinement = choose_refinement(mesh.num_planes, mesh.spacing[2], known.group_thickness, known.fewest_groups)
        simulation = BuildSimulation(mesh, self.task.material, refinement=refinement)
        writer = ResultWriter(self.folder, self.names, simulation, self.task.encoding)
        self._write_setup(writer, surface)
        try:
            last = self._write_frames(writer)
        except SolverError as error:
            writer.write_results()
            raise _StoppedError(_SOLVING, f"The solver gave up: {error}") from error
        writer.write_results()
        writer.write_global_clearance()
        writer.write_text("mechanical_recoater.txt", run_log.recoater_table(simulation.passes))
        return self._outcome(simulation, last)

    def _write_setup(self, writer: ResultWriter, surface: Surface) -> None:
        simulation = writer.simulation
        writer.write_setup(surface)
        text = run_log.log_material(simulation.material, simulation.process, simulation.mesh, simulation.refinement)
        text += run_log.log_surface(surface, self.names.stl) + run_log.log_mesh(simulation, surface)
        self.logs["mechanical"] += run_log.log_remarks([*self.read_remarks, *self.remarks], self.task.case_id)
        for kind in self.logs:
            self.logs[kind] += text
            content = run_log.input_file(kind, simulation, self.names, ascii_results=self.task.encoding == "ascii")
            writer.write_text(f"{kind}.in", content)

    def _write_frames(self, writer: ResultWriter) -> Frame:
        """Write every frame, and tell the log; the last frame is returned."""
        simulation, frames = writer.simulation, writer.simulation.frames()
        for group in simulation.groups:
            pair = list(itertools.islice(frames, 2))
            if group.number == 1:
                self.logs["thermal"] += run_log.thermal_log_steps(simulation)
                writer.write_thermal()
            for frame in pair:
                writer.write_frame(frame)
            self.logs["mechanical"] += run_log.log_group(simulation, group, pair, self.names)
            self._fail_if_asked(writer, group.number)
        pair = list(frames)
        for frame in pair:
            writer.write_frame(frame)
        self.logs["mechanical"] += run_log.log_end(simulation, pair, self.names)
        return pair[-1]

    def _fail_if_asked(self, writer: ResultWriter, group: int) -> None:
        failure = self.task.failure
        if failure is None or group < 1 + int(failure.share * len(writer.simulation.groups)):
            return
        if failure.kind is FailureKind.TERMINATED:
            writer.write_results()
            raise _StoppedError(
                _ASKED_FOR, f"The solver stopped after layer group {group} (a failure that was asked for)"
            )
        cut_short(self.folder / "results" / f"{self.names.prefix}mechanical00_{2 * group}.dis.ens", failure.share)
        raise _StoppedError(_ASKED_FOR, f"killed after layer group {group}, as was asked for", silent=True)

    def _outcome(self, simulation: BuildSimulation, last: Frame) -> CaseOutcome:
        record = reject(_record(self.task.case_id, simulation, last), active_limits(Filters()))
        assert record.measures is not None
        return CaseOutcome(
            self.task.case_id,
            "completed",
            rejected_by=tuple(rejection.criterion for rejection in record.rejections),
            num_points=record.measures.num_points,
            height=record.measures.height,
            displacement_z_max=record.measures.displacement_z_max,
            recoater_clearance_min=record.measures.recoater_clearance_min,
            remarks=self.remarks,
        )


def _mesh_near(surface: Surface, num_points: int, aspect_ratio: float, layer: float) -> VoxelMesh:
    """The mesh that comes closest to a number of points.

    Thin walls may be whole only with cells so narrow that there would be hundreds of times as many points; then the
    cells get lower, down to cubes.
    """
    best: VoxelMesh | None = None
    while best is None or best.num_points > _FAR * num_points:
        mesh = voxelize_to_size(surface, num_points, aspect_ratio, layer=layer, planes=_FEWEST_PLANES)
        if best is None or mesh.num_points < best.num_points:
            best = mesh
        if aspect_ratio <= _CUBES:
            break
        aspect_ratio = max(_CUBES, aspect_ratio / 2)
    return best


def _record(case_id: str, simulation: BuildSimulation, last: Frame) -> CaseRecord:
    """The measures that a reader of the results should find."""
    fields: dict[str, NDArray[np.float32]] = {
        "displacement": last.state.displacement.astype(np.float32),
        "von_mises_stress": von_mises(last.state.stress).astype(np.float32),
    }
    case = Case(case_id, simulation.mesh.points.astype(np.float32), simulation.mesh.cells, fields)
    least = min((one.clearance for one in simulation.passes), default=FULL_CLEARANCE)
    none = np.empty(0, dtype=np.float32)
    build = BuildReduction(none, none, min(least, FULL_CLEARANCE), None)
    measures = measure_case(case, build, simulation.process.recoater_tolerance)
    return CaseRecord(case_id=case_id, source=SourceRef(case_id, "."), measures=measures)
