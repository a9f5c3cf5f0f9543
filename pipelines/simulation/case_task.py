"""One case from plan to files: mesh the part, run the build, write its results and its outcome."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from lpbf_data.case.case import Case
from lpbf_data.case.record import CaseRecord, SourceRef
from lpbf_data.case.schema import FULL_CLEARANCE
from lpbf_data.durable import flush_tree
from lpbf_data.errors import GeometryError, UsageError
from lpbf_data.geometry.closed_surface import Surface, on_build_plate
from lpbf_data.geometry.faithful_mesh import mesh_faithfully, remarks_on
from lpbf_data.geometry.layer_groups import choose_refinement
from lpbf_data.geometry.mesh_check import check_mesh
from lpbf_data.geometry.surface_files import load_bodies
from lpbf_data.geometry.surface_formats import Units
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.geometry.voxelize import voxelize_to_size
from lpbf_data.remarks import Remark
from pipelines.measuring.measure import measure_case
from pipelines.netfabb.run import BuildReduction
from pipelines.netfabb.solver_log import PartOrigin, write_origin
from pipelines.selection.filters import Filters, active_limits, reject
from pipelines.simulation.choices import DeviceName, EncodingName, Results
from pipelines.simulation.materials.material import Material
from pipelines.simulation.parts.corpus import MIN_PLANES, PartPlan, part_surface
from pipelines.simulation.parts.draws import MAX_CANDIDATES, CandidateStream
from pipelines.simulation.parts.named_parts import named_part
from pipelines.simulation.parts.outcomes import CaseOutcome, store_outcome
from pipelines.simulation.parts.trial import FAILED, FAR, NOT_SURVIVED, CandidateRejectedError, Trial, height_of
from pipelines.simulation.physics.build_simulation import BuildSimulation, Frame
from pipelines.simulation.physics.fields import von_mises
from pipelines.simulation.physics.iterations import SolverError
from pipelines.simulation.results import run_log
from pipelines.simulation.results.failures import FailureKind, PlannedFailure, cut_short, failure_of
from pipelines.simulation.results.result_writer import ResultWriter
from pipelines.simulation.results.run_log import RunNames

_CUBES = 1.0  # aspect ratio of the cells of a part that came as a file
_MESHING, _SOLVING, _ASKED_FOR, _NOT_SURVIVED, _NONE_ACCEPTED = 2001, 2002, 2003, 2004, 2005  # of errors in logs


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
        part: The part: drawn, a body of a surface file, known by name, or the first accepted one of a stream of
            candidates.
        num_points: Points that its mesh should have, where no plan says so.
        material: The material.
        encoding: Binary or text results.
        interactive: Whether file names start with the case's name, as in interactive runs.
        failure: How it is to fail, if it is.
        staging: Folder in which it is written.
        target: Folder to which it is moved when it is whole.
        outcomes: Folder that takes its outcome.
        results: All result files, or those alone that a data set is built from.
    """

    case_id: str
    part: PartPlan | SurfacePart | KnownPart | CandidateStream
    num_points: int
    material: Material
    encoding: EncodingName
    interactive: bool
    failure: PlannedFailure | None
    staging: Path
    target: Path
    outcomes: Path
    results: Results = "whole"
    device: DeviceName = "cpu"


class _StoppedError(Exception):
    """The run ends here, for a reason that its log gives."""

    def __init__(self, code: int, reason: str, *, silent: bool = False) -> None:
        self.code, self.reason, self.silent = code, reason, silent
        super().__init__(reason)


def run_case(task: CaseTask) -> CaseOutcome:
    """Simulate a case and rename its folder into the output; the folder is there whole or not at all.

    Args:
        task: The case.

    Returns:
        Its outcome; a part that can't be meshed or solved is a failed run, not an error.
    """
    folder = task.staging / task.case_id
    with threadpool_limits(limits=1):
        outcome = _run_stream(task, folder) if isinstance(task.part, CandidateStream) else _run_anew(task, folder)
    flush_tree(folder)
    target = task.target / task.case_id
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
    store_outcome(task.outcomes, outcome)
    return outcome


def _run_anew(task: CaseTask, folder: Path, trial: Trial | None = None) -> CaseOutcome:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "results").mkdir(parents=True)
    return _Run(task, folder, trial).run()


def _run_stream(task: CaseTask, folder: Path) -> CaseOutcome:
    """The first candidate that is accepted; one that is to fail on purpose, or was accepted before, is the only one."""
    stream = task.part
    assert isinstance(stream, CandidateStream)
    passed_over: Counter[str] = Counter()
    for number in range(MAX_CANDIDATES) if stream.chosen is None else (stream.chosen,):
        plan, threshold = stream.candidate(number)
        no_choice = stream.chosen is not None or task.failure is not None
        trial = None if task.failure is not None else Trial(stream, None if no_choice else threshold)
        try:
            outcome = _run_anew(dataclasses.replace(task, part=plan), folder, trial)
        except CandidateRejectedError as error:
            passed_over[str(error)] += 1
            continue
        if outcome.status == "completed" or no_choice:
            return dataclasses.replace(outcome, candidate=number, passed_over=dict(sorted(passed_over.items())))
        passed_over[FAILED if outcome.survived else NOT_SURVIVED] += 1
    reason = f"None of {MAX_CANDIDATES} candidates was accepted; choose other --families or another --draw"
    shutil.rmtree(folder)
    folder.mkdir()
    outcome = _Run(task, folder).end(_NONE_ACCEPTED, reason)
    return dataclasses.replace(outcome, passed_over=dict(sorted(passed_over.items())))


class _Run:
    """The run of one case; its log grows as it goes on."""

    def __init__(self, task: CaseTask, folder: Path, trial: Trial | None = None) -> None:
        self.task, self.folder, self.trial = task, folder, trial
        prefix = f"{task.case_id}_" if task.interactive else ""
        self.remarks: tuple[Remark, ...] = ()
        self.read_remarks: tuple[Remark, ...] = ()  # the command prints them before the cases begin; here for the log
        self.names = RunNames(prefix, f"{task.case_id}.stl" if task.interactive else "test.stl")
        self.logs = {kind: run_log.log_opening(kind, self.names) for kind in ("mechanical", "thermal")}

    def run(self) -> CaseOutcome:
        try:
            return self._simulate()
        except _StoppedError as stop:
            return self._stopped(stop)
        finally:
            self._write_logs()

    def end(self, code: int, reason: str) -> CaseOutcome:
        """A run that ends before it begins."""
        outcome = self._stopped(_StoppedError(code, reason))
        self._write_logs()
        return outcome

    def _stopped(self, stop: _StoppedError) -> CaseOutcome:
        if not stop.silent:
            self.logs["mechanical"] += run_log.log_failure(stop.code, stop.reason)
        asked_for, survived = self.task.failure is not None, stop.code != _NOT_SURVIVED
        return CaseOutcome(self.task.case_id, "failed", reason=stop.reason, asked_for=asked_for, survived=survived)

    def _write_logs(self) -> None:
        for kind, text in self.logs.items():
            (self.folder / f"{self.names.prefix}{kind}.out").write_bytes(text.encode("utf-8"))

    def _mesh(self) -> tuple[Surface, VoxelMesh]:
        task, layer = self.task, self.task.material.process.layer_thickness
        try:
            if isinstance(task.part, PartPlan):
                plan = task.part
                surface = part_surface(
                    *(plan.family, plan.parameters, plan.up),
                    height=plan.height,
                    tilt=plan.tilt,
                    sized_for=plan.sized_for,
                )
                mesh = _mesh_near(surface, plan.num_points, plan.aspect_ratio, layer)
                self.remarks += remarks_on(check_mesh(surface, mesh), task.case_id)
                return surface, mesh
            assert not isinstance(task.part, CandidateStream)
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
        if self.trial is not None:
            assert isinstance(self.task.part, PartPlan)
            self.trial.check_mesh(mesh, self.task.part)
        known = self.task.material.calibration
        refinement = choose_refinement(mesh.num_planes, mesh.spacing[2], known.group_thickness, known.fewest_groups)
        simulation = BuildSimulation(mesh, self.task.material, refinement=refinement, device=self.task.device)
        writer = ResultWriter(self.folder, self.names, simulation, self.task.encoding, self.task.results)
        self._write_setup(writer, surface)
        try:
            last = self._write_frames(writer)
        except SolverError as error:
            writer.write_results()
            raise _StoppedError(_SOLVING, f"The solver gave up: {error}") from error
        except RuntimeError as error:
            # Not the part's fault, and no outcome of it: the same command goes on with what isn't done.
            if self.task.device == "cpu" or type(error).__name__ != "OutOfMemoryError":
                raise
            raise UsageError("the GPU's memory is used up; run the same command with fewer --workers") from error
        outcome = self._outcome(simulation, last[-1])
        if outcome.origin is not None:
            self.logs["mechanical"] += write_origin(outcome.origin)
        self.logs["mechanical"] += run_log.log_end(simulation, last, self.names)
        writer.write_results()
        writer.write_global_clearance()
        writer.write_text("mechanical_recoater.txt", run_log.recoater_table(simulation.passes))
        return outcome

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

    def _write_frames(self, writer: ResultWriter) -> list[Frame]:
        """Write every frame, and tell the log of all but the last two, which are returned."""
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
            self._check_survival(writer, pair)
            if self.trial is not None and _hits(simulation):
                self.trial.check(height_of(simulation.mesh), hit=True)
        pair = list(frames)
        for frame in pair:
            writer.write_frame(frame)
        self._check_survival(writer, pair)
        return pair

    def _check_survival(self, writer: ResultWriter, frames: Sequence[Frame]) -> None:
        """End the run where no build would go on."""
        for frame in frames:
            if reason := failure_of(frame.state.displacement, frame.clearance):
                writer.write_results()
                raise _StoppedError(_NOT_SURVIVED, reason)

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
        weight = None if self.trial is None else self.trial.weight(record)
        return CaseOutcome(
            self.task.case_id,
            "completed",
            rejected_by=tuple(rejection.criterion for rejection in record.rejections),
            num_points=record.measures.num_points,
            height=record.measures.height,
            displacement_z_max=record.measures.displacement_z_max,
            recoater_clearance_min=record.measures.recoater_clearance_min,
            recoater_interference=record.measures.recoater_interference,
            remarks=self.remarks,
            origin=self._origin(weight),
        )

    def _origin(self, weight: float | None) -> PartOrigin | None:
        if not isinstance(self.task.part, PartPlan):
            return None
        draw = None if self.trial is None else self.trial.stream.draw
        return PartOrigin(self.task.part.family, draw, weight)


def _mesh_near(surface: Surface, num_points: int, aspect_ratio: float, layer: float) -> VoxelMesh:
    """The mesh that comes closest to a number of points.

    Thin walls may be whole only with cells so narrow that there would be hundreds of times as many points; then the
    cells get lower, down to cubes.
    """
    best: VoxelMesh | None = None
    while best is None or best.num_points > FAR * num_points:
        mesh = voxelize_to_size(surface, num_points, aspect_ratio, layer=layer, planes=MIN_PLANES)
        if best is None or mesh.num_points < best.num_points:
            best = mesh
        if aspect_ratio <= _CUBES:
            break
        aspect_ratio = max(_CUBES, aspect_ratio / 2)
    return best


def _hits(simulation: BuildSimulation) -> bool:
    """Whether the blade has met the part so far."""
    return any(one.clearance < simulation.process.recoater_tolerance for one in simulation.passes)


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
