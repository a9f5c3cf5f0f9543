"""NetFabb's conventions: which files, which frames, is it good, and the build reduced onto the part."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from lpbf_data.case.schema import SOLVER_FIELDS
from lpbf_data.errors import CaseError, FailureReason
from lpbf_data.remarks import Remark, Treatment
from pipelines.ensight import Dialect, Encoding, write_geometry, write_variable
from pipelines.netfabb.matching_points import PointIndex
from pipelines.netfabb.run import VARIABLES, NetfabbRun
from pipelines.netfabb.solver_log import read_log, write_remarks
from pipelines.sources.case_files import open_case
from pipelines.sources.finding import find_cases
from tests.netfabb_cases import TERMINATED, Part, field_values, part_mesh, write_part, zip_folder
from tests.pipelines.vtk_oracle import VtkFrames


def run_of(folder: Path) -> NetfabbRun:
    (location,) = find_cases([folder]).locations
    return NetfabbRun(location.case_id, open_case(location))


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("encoding", [Encoding.BINARY, Encoding.ASCII])
def test_reads_the_finished_part(tmp_path: Path, interactive: bool, encoding: Encoding) -> None:
    part = Part("p1", interactive=interactive, dialect=Dialect(encoding))
    run = run_of(write_part(tmp_path, part))
    case = run.read_case(SOLVER_FIELDS)
    points, cells = part_mesh(part, part.shape[2], plate=False)
    np.testing.assert_array_equal(case.points, points)
    np.testing.assert_array_equal(case.cells, cells)
    for field, name in VARIABLES.items():
        expected = np.asarray(field_values(part, name, points, cells, run.num_frames - 1))
        if expected.shape[1:] == (6,):
            expected = expected[:, [0, 1, 2, 3, 5, 4]]  # NetFabb's order has the last two exchanged
        np.testing.assert_allclose(case.fields[field], expected, rtol=1e-6, atol=1e-37)
    assert run.num_frames == 8
    assert run.num_build_frames == 6
    info = run.info()
    assert (info.material, info.machine, info.layer_thickness) == ("ti64", "AM250", 0.04)
    assert (info.layers_per_element, info.recoater_tolerance, info.supports) == (20, 80.0, False)
    assert (info.solver_version, info.solver_build, info.stl) == ("24.0.18", "24.0.0.120", "test.stl")


def test_any_frame_can_be_read(tmp_path: Path) -> None:
    part = Part("p1")
    root = write_part(tmp_path, part)
    oracle = VtkFrames(root / "mechanical.case")
    run = run_of(root)
    for frame in range(run.num_frames):
        case = run.read_case(["displacement"], frame)
        points, cells, data, _ = oracle.read(frame)
        np.testing.assert_array_equal(case.points, points)
        np.testing.assert_array_equal(case.cells, cells)
        np.testing.assert_array_equal(case.fields["displacement"], data["Displacement"])
    with pytest.raises(CaseError, match="frame 8"):
        run.read_case(["displacement"], 8)


def test_build_is_reduced_onto_the_part(tmp_path: Path) -> None:
    part = Part("p1", clearance=63.5)
    run = run_of(write_part(tmp_path, part))
    case = run.read_case(["displacement"])
    build = run.reduce_build(case.points)
    # Slow and plain: every point, every build frame.
    for i, point in enumerate(case.points):
        clearances, upward = [], []
        for frame in range(run.num_build_frames):
            state = run.read_case(["displacement", "recoater_clearance"], frame)
            where = np.flatnonzero((state.points == point).all(axis=1))
            if len(where):
                clearances.append(state.fields["recoater_clearance"][where[0]])
                upward.append(state.fields["displacement"][where[0], 2])
        assert build.clearance_min[i] == min(clearances)
        assert build.displacement_z_max[i] == max(upward)
    assert build.least_clearance == 63.5
    assert build.least_clearance_height == 1.0


def _doubled(points: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mesh whose cells share no points: each corner is there once for every cell that it belongs to."""
    return points[cells.ravel()], np.arange(cells.size, dtype=np.int32).reshape(-1, 8)


def test_points_that_coincide_give_the_least_clearance_and_the_largest_rise(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("p1"))
    results, run = root / "results", run_of(root)
    rng = np.random.default_rng(0)
    least: dict[bytes, float] = {}
    most: dict[bytes, float] = {}
    meshes = [_doubled(g.points, g.cells) for g in (run.geometry(frame) for frame in range(run.num_frames))]
    for frame, (points, cells) in enumerate(meshes):
        number = run.case_file.geometry_index(frame) + 1
        (results / f"mechanical_{number}.geo").write_bytes(write_geometry(points, cells))
        moved = rng.normal(size=(len(points), 3)).astype(np.float32)
        clearance = rng.uniform(60, 100, len(points)).astype(np.float32)
        (results / f"mechanical00_{frame + 1}.dis.ens").write_bytes(write_variable(moved))
        (results / f"mechanical00_{frame + 1}.rct.ens").write_bytes(write_variable(clearance))
        for place, height, rise in zip(points, clearance, moved[:, 2], strict=True):
            if frame < run.num_build_frames:
                key = bytes(place + np.float32(0))
                least[key] = min(least.get(key, np.inf), height)
                most[key] = max(most.get(key, -np.inf), rise)
    finished = meshes[-1][0]
    build = run_of(root).reduce_build(finished)
    keys = [bytes(place + np.float32(0)) for place in finished]
    np.testing.assert_array_equal(build.clearance_min, [least[key] for key in keys])
    np.testing.assert_array_equal(build.displacement_z_max, [most[key] for key in keys])


def test_numbers_as_fortran_prints_them_in_log_input_and_case_file(part_folder: Path) -> None:
    before = run_of(part_folder)
    log, control = part_folder / "mechanical.out", part_folder / "mechanical.in"
    log.write_text(log.read_text().replace("4.000000000000000E-002", ".4000000000000000D-01"))
    control.write_text(control.read_text(encoding="utf-8").replace("80, 0", "8.0D+01, 0"), encoding="utf-8")
    case_file = part_folder / "results/mechanical.case"
    case_file.write_text(re.sub(r"(\d)E([+-]\d\d)$", r"\1D\2", case_file.read_text(), flags=re.MULTILINE))
    run = run_of(part_folder)
    assert "D+0" in case_file.read_text()
    assert run.case_file.frames.times == before.case_file.frames.times
    assert (run.log.layer_thickness, run.input.recoater_tolerance) == (0.04, 80.0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_texts_of_old_macs_say_the_same(part_folder: Path, encoding: str) -> None:
    before = run_of(part_folder)
    told = (before.log, before.input, before.case_file)
    for path in [p for p in part_folder.rglob("*mechanical.*") if p.suffix in (".out", ".in", ".case")]:
        path.write_bytes(path.read_text(encoding="utf-8").replace("\n", "\r").encode(encoding))
    run = run_of(part_folder)
    assert (run.log, run.input, run.case_file) == told
    assert run.input.recoater_tolerance == 80.0
    assert run.remarks == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_degrees_and_micrometres_in_any_encoding(part_folder: Path, encoding: str) -> None:
    log, control = part_folder / "mechanical.out", part_folder / "mechanical.in"
    case_file = part_folder / "results/mechanical.case"
    texts = {
        log: log.read_text().lstrip("\n").replace("= ti64", "= ti64 (25 °C)"),
        control: control.read_text(encoding="utf-8"),
        case_file: "# 25 °C\n" + case_file.read_text(),
    }
    for path, text in texts.items():
        path.write_bytes(text.encode(encoding))
    run = run_of(part_folder)
    assert (run.log.completed, run.log.num_runs, run.log.material) == (True, 1, "ti64 (25 °C)")
    assert (run.input.process, run.input.machine) == ("Autodesk Ti64 AM250 40 µm", "AM250")
    assert run.input.recoater_tolerance == 80.0
    assert run.read_case(["displacement"]).num_points == 48
    assert [remark.kind for remark in run.remarks] == ["case_file_encoding"] * (encoding == "cp1252")


def test_full_clearance_has_no_height(tmp_path: Path) -> None:
    run = run_of(write_part(tmp_path, Part("p1", clearance=100)))
    build = run.reduce_build(run.read_case(["displacement"]).points)
    assert (build.least_clearance, build.least_clearance_height) == (100.0, None)


def test_the_last_run_in_the_log_counts(tmp_path: Path) -> None:
    good, bad = (
        write_part(tmp_path / n, Part("p", verdict=v)) for n, v in (("a", Part("x").verdict), ("b", TERMINATED))
    )
    good_log, bad_log = ((root / "mechanical.out").read_text() for root in (good, bad))
    (good / "mechanical.out").write_text(bad_log + good_log)
    (bad / "mechanical.out").write_text(good_log + bad_log)
    assert run_of(good).num_frames == 8
    with pytest.raises(CaseError) as caught:
        run_of(bad)
    assert caught.value.reason is FailureReason.SOLVER_TERMINATED
    assert "can't be meshed" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no run"),
        ("Autodesk AM Process Simulation v24\nworking\n", "stops before the end of the analysis, at 'working'"),
        ("Autodesk AM Process Simulation v24\nAnalysis completed\n", "stops before its last line"),
        ("Autodesk AM Process Simulation v24\nAnalysis terminated\nEND Autodesk AM Process Simulation\n", "terminated"),
    ],
)
def test_bad_logs(text: str, said: str) -> None:
    log = read_log(text)
    assert not log.completed
    assert said in log.complaint


@pytest.mark.parametrize(
    ("remove", "reason"),
    [
        ("mechanical.out", FailureReason.MISSING_FILE),
        ("results/mechanical_4.geo", FailureReason.MISSING_FILE),
        ("results/mechanical00_8.dis.ens", FailureReason.MISSING_FILE),
        ("results/mechanical00_3.rct.ens", FailureReason.MISSING_FILE),
    ],
)
def test_missing_files_are_named(part_folder: Path, remove: str, reason: FailureReason) -> None:
    (part_folder / remove).unlink()

    def read_everything() -> None:
        run = run_of(part_folder)
        run.reduce_build(run.read_case(["displacement"]).points)

    with pytest.raises(CaseError) as caught:
        read_everything()
    assert caught.value.reason is reason
    assert caught.value.path == remove


def test_a_field_of_another_mesh_is_told_from_a_cut_one(part_folder: Path) -> None:
    results = part_folder / "results"
    shutil.copy(results / "mechanical00_1.svm.ens", results / "mechanical00_8.svm.ens")
    with pytest.raises(CaseError) as caught:
        run_of(part_folder).read_case(["von_mises_stress"])
    assert caught.value.reason is FailureReason.SIZE_MISMATCH
    assert "mechanical_1.geo" in str(caught.value)
    data = (results / "mechanical00_8.dis.ens").read_bytes()
    (results / "mechanical00_8.dis.ens").write_bytes(data[:-4])
    with pytest.raises(CaseError) as caught:
        run_of(part_folder).read_case(["displacement"])
    assert caught.value.reason is FailureReason.TRUNCATED_FILE


def test_a_part_that_was_not_released_is_refused(part_folder: Path) -> None:
    results = part_folder / "results"
    shutil.copy(results / "mechanical_3.geo", results / "mechanical_4.geo")
    with pytest.raises(CaseError) as caught:
        run_of(part_folder).read_case([])
    assert caught.value.reason is FailureReason.PART_NOT_RELEASED


def test_points_that_no_build_frame_has_are_refused(part_folder: Path) -> None:
    run = run_of(part_folder)
    points = run.read_case([]).points.copy()
    points[3, 0] += 1e-4
    with pytest.raises(CaseError, match="1 points of the finished part") as caught:
        run.reduce_build(points)
    assert caught.value.reason is FailureReason.INCONSISTENT_FRAMES


def test_a_missing_variable_is_named(part_folder: Path) -> None:
    path = part_folder / "results/mechanical.case"
    path.write_text(path.read_text().replace("Temperature", "Heat"))
    with pytest.raises(CaseError, match="'Temperature'") as caught:
        run_of(part_folder).read_case(["temperature"])
    assert caught.value.reason is FailureReason.MISSING_VARIABLE


def test_points_are_found_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    points = rng.integers(-50, 50, (4000, 3)).astype(np.float32) / 8
    points[0], points[1] = (0.0, 1.0, 2.0), (-0.0, 1.0, 2.0)
    index = PointIndex(points)
    some = points[rng.permutation(len(points))[:1000]]
    here, there = index.match(np.concatenate([some, some + np.float32(0.01)]))
    np.testing.assert_array_equal(points[here], some[there[there < 1000]])
    assert set(there.tolist()) == set(range(1000))
    marks = np.zeros(len(points), np.float32)
    marks[here] = 1
    wanted = set(map(bytes, some + np.float32(0)))
    expected = [bytes(p + np.float32(0)) in wanted for p in points]
    np.testing.assert_array_equal(index.spread(marks), expected)


REAL = {
    "step2": (3227, 1408, -0.0849, 0.0611, 1670.51, 69.719, 3.2, True),
    "meshes2": (1031, 408, -0.00665, 0.00206, 485.82, 100.0, None, False),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_real_output_equals_vtk_in_every_array_of_every_frame(samples: Path, tmp_path: Path, packed: bool) -> None:
    source = zip_folder(tmp_path / "data_0-2.zip", samples) if packed else samples
    locations = find_cases([source]).locations
    assert {location.case_id for location in locations} == set(REAL)
    for location in locations:
        run = NetfabbRun(location.case_id, open_case(location))
        folder = next(path for path in samples.rglob(location.case_id) if path.is_dir())
        oracle = VtkFrames(folder / f"{location.case_id}_mechanical.case")
        assert run.num_frames == len(oracle.times)
        for frame in range(run.num_frames):
            points, cells, point_data, cell_data = oracle.read(frame)
            geometry = run.geometry(frame)
            np.testing.assert_array_equal(geometry.points, points)
            np.testing.assert_array_equal(geometry.cells, cells)
            case = run.read_case(SOLVER_FIELDS, frame)
            for field, name in VARIABLES.items():
                theirs = {**point_data, **cell_data}[name]
                # VTK takes a file to be in the manual's order and exchanges the last two for its own; NetFabb's files
                # are in VTK's order, so what VTK calls yz and xz after that is xz and yz.
                np.testing.assert_array_equal(case.fields[field], theirs)


def test_real_output_has_the_known_measures(samples: Path) -> None:
    from pipelines.measuring.convert import measure_location

    for location in find_cases([samples]).locations:
        points, cells, low, high, stress, clearance, height, hit = REAL[location.case_id]
        record = measure_location(location).record
        assert record.failure is None
        assert record.measures is not None
        m = record.measures
        assert (m.num_points, m.num_cells) == (points, cells)
        assert record.statistics["displacement_z"].minimum == pytest.approx(low, rel=5e-3)
        assert m.displacement_z_max == pytest.approx(high, rel=5e-3)
        assert m.von_mises_stress_max == pytest.approx(stress, rel=1e-5)
        assert m.recoater_clearance_min == pytest.approx(clearance, abs=5e-4)
        assert m.recoater_clearance_min_height == (pytest.approx(height) if height else None)
        assert m.recoater_interference is hit
        assert (record.run.material, record.run.solver_version) == ("inc625", "24.0.18")


def test_remarks_in_logs_are_read_and_what_only_looks_like_one_is_not() -> None:
    remarks = [
        Remark(Treatment.REPAIRED, "merged_facets", "facets of 1 µm² were merged", 3, ("part.stl: 3",)),
        Remark(Treatment.CHANGED, "mesh_differs", "the mesh differs", 1, ("walls of 1 mm are 0.9 cells thick",)),
    ]
    run = "Autodesk AM Process Simulation v24\n"
    for end in ("\n", "\r\n"):
        assert read_log((run + write_remarks(remarks)).replace("\n", end)).remarks == tuple(remarks)
    # Of the last run only, and never more than a screenful.
    assert read_log(run + write_remarks(remarks) + run).remarks == ()
    assert len(read_log(run + write_remarks(remarks[:1] * 10_000)).remarks) == 50
    good = remarks[0].as_dict()
    bad = ({"treatment": "eaten"}, {"count": "3"}, {"count": 0}, {"examples": None}, {"sentence": "\x1b[2J"})
    lines = [json.dumps(good | changed) for changed in bad]
    lines += ["{}", "[]", "{" * 3000, "null", json.dumps(good | {"sentence": "x" * 5000})]
    assert read_log(run + "".join(f"LPBF remark: {line}\n" for line in lines)).remarks == ()
