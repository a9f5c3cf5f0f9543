"""The command: the same bytes whoever works, going on after a kill, archives, failures, and refusals."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from filelock import FileLock

from lpbf_data.durable import sha256_of_tree
from lpbf_data.errors import GeometryError, UsageError
from lpbf_data.remarks import Treatment
from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest
from pipelines.build import build
from pipelines.building.engine import SERIAL, Resources
from pipelines.netfabb.run import NetfabbRun
from pipelines.simulate import run_simulation, simulate
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.parts.outcomes import CaseOutcome
from pipelines.simulation.physics import iterations
from pipelines.simulation.physics import stiffness as stiffness_module
from pipelines.simulation.request import SimulationOptions, SimulationRequest, check_request
from pipelines.simulation.results.archives import plan_archives
from pipelines.simulation.results.failures import FailureKind, plan_failure
from pipelines.sources.case_files import open_case
from pipelines.sources.finding import find_cases
from tests.commands import run_here
from tests.pipelines.vtk_oracle import VtkFrames

QUICK = ("plate", "bracket", "ribbed_plate", "cantilever", "clevis")  # families of few triangles
SMALL = SimulationOptions(cases=5, points=100, seed=11, families=QUICK)


def run_small(out: Path, options: SimulationOptions = SMALL, resources: Resources = SERIAL) -> tuple[CaseOutcome, ...]:
    return run_simulation(check_request(str(out), options), resources)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("simulated") / "small"
    run_small(out)
    return out


def visible(out: Path) -> dict[str, str]:
    """Digest of each case folder or archive."""
    return {p.name: sha256_of_tree(p)[0] if p.is_dir() else str(p.read_bytes()) for p in sorted(out.iterdir())} | {
        ".simulate": ""
    }


def options(**changes: object) -> SimulationOptions:
    return SimulationOptions(**({"cases": 5, "points": 100, "seed": 11, "families": QUICK} | changes))  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_bytes_whoever_works(small: Path, tmp_path: Path) -> None:
    run_small(tmp_path / "two", resources=Resources(workers=2))
    assert len(visible(small)) == 6
    assert visible(small) == visible(tmp_path / "two")
    run_small(tmp_path / "other", options(cases=2, seed=12))
    assert set(visible(tmp_path / "other").values()) & set(visible(small).values()) == {""}


def test_multigrid_too_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stiffness_module, "_DENSE_RATE", 1.0)  # so that it is chosen for small parts
    for name in ("first", "second"):
        outcomes = run_small(tmp_path / name, options(cases=2, points=600))
        assert all(outcome.status == "completed" for outcome in outcomes)
    assert visible(tmp_path / "first") == visible(tmp_path / "second")


def test_a_killed_run_goes_on_and_ends_the_same(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "pipelines.simulate", "--out", str(out), "--cases", "5", "--points", "100"]
    command += ["--families", ",".join(QUICK)]
    process = subprocess.Popen(
        [*command, "--seed", "11", "--workers", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list((out / ".simulate/outcomes").glob("*.json"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list((out / ".simulate/outcomes").glob("*.json")))
    assert 2 <= done <= 5
    for folder in out.glob("*_*"):  # nothing half-written in sight
        assert "END Autodesk AM Process Simulation" in (folder / "mechanical.out").read_text()
    before = {p.name: p.stat().st_ino for p in out.glob("*_*")}
    outcomes = run_small(out)
    assert len(outcomes) == 5
    assert visible(out) == visible(small)
    finished = {p.stem for p in (out / ".simulate/outcomes").glob("*.json")}
    kept = {name: (out / name).stat().st_ino for name in before if name in finished}
    assert sum(before[name] == inode for name, inode in kept.items()) >= done - 1  # they weren't simulated again


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_from_the_terminal_ends_it_in_one_line(tmp_path: Path) -> None:
    """It reaches every process of the group, and one of them reports it."""
    out = tmp_path / "out"
    # What was started in the background ignores interrupts, and so would what it starts.
    heed = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    words = [sys.executable, "-m", "pipelines.simulate", "--out", str(out), "--cases", "40", "--points", "300"]
    words = [sys.executable, "-c", heed, *words, "--workers", "2"]
    process = subprocess.Popen(words, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((out / ".simulate/outcomes").glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted"


def test_a_run_can_be_extended_and_says_where_it_goes_on(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = tmp_path / "grown"
    said = []
    for cases in (2, 5, 5):
        run_small(grown, options(cases=cases))
        said.append([line for line in capsys.readouterr().err.splitlines() if "goes on" in line])
    assert said == [[], [f"{grown} goes on: 2 of 5 cases are there"], []]
    assert visible(grown) == visible(small)


def test_archives_hold_the_same_cases_with_fixed_times(small: Path, tmp_path: Path) -> None:
    run_small(tmp_path / "packed", options(cases=3, archive=True))
    outcomes = run_small(tmp_path / "packed", options(archive=True))
    assert len(outcomes) == 5
    archives = sorted(p.name for p in (tmp_path / "packed").glob("*.zip"))
    assert archives == ["data_0-3.zip", "data_3-5.zip"]
    for name in archives:
        with zipfile.ZipFile(tmp_path / "packed" / name) as archive:
            assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            assert all(info.filename.startswith("SandBox/") for info in archive.infolist())
            archive.extractall(tmp_path / "unpacked")
    unpacked = {p.name: sha256_of_tree(p)[0] for p in (tmp_path / "unpacked/SandBox").iterdir()}
    plain = visible(small)
    assert unpacked == {name: digest for name, digest in plain.items() if name in unpacked}
    assert len(unpacked) == 5
    run_small(tmp_path / "again", options(cases=3, archive=True))
    first = "data_0-3.zip"
    assert (tmp_path / "again" / first).read_bytes() == (tmp_path / "packed" / first).read_bytes()


def test_archives_hold_a_hundred_cases_each() -> None:
    assert plan_archives(0, 250) == [(0, 100), (100, 200), (200, 250)]


def test_build_counts_what_the_simulator_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = options(failure_rate=0.3, seed=21)
    outcomes = run_small(tmp_path / "out", wanted)
    failed = {one.case_id for one in outcomes if one.status == "failed"}
    beyond = {one.case_id: set(one.rejected_by) for one in outcomes if one.rejected_by}
    assert failed
    assert beyond
    build([str(tmp_path / "out")], out=str(tmp_path / "set"), workers=0, time_limit=math.inf, no_report=True)
    records = decode_manifest((tmp_path / "set" / MANIFEST_NAME).read_bytes()).records
    assert len(records) == 5
    assert {record.case_id for record in records if record.status == "failed"} == failed
    found = {r.case_id: {x.criterion for x in r.rejections} for r in records if r.status == "rejected"}
    assert found == beyond
    card = (tmp_path / "set" / "README.md").read_text()
    assert "simulated by this project" in card
    assert "not by NetFabb" in card


def test_vtk_reads_every_frame_of_every_completed_case(tmp_path: Path) -> None:
    outcomes = run_small(tmp_path, options(cases=3, seed=2))
    completed = [one.case_id for one in outcomes if one.status == "completed"]
    assert len(completed) == 3
    for case_id in completed:
        vtk = VtkFrames(tmp_path / case_id / "results" / "mechanical.case")
        for frame in range(len(vtk.times)):
            points, cells, of_points, of_cells = vtk.read(frame)
            assert len(of_points) == 13
            assert len(of_cells) == 1
            assert cells.max() < len(points)


def test_failures_end_as_the_readers_know_them(tmp_path: Path) -> None:
    wanted = options(cases=3, points=80, failure_rate=1.0, seed=0)
    outcomes = run_small(tmp_path, wanted)
    assert all(one.status == "failed" and one.asked_for for one in outcomes)
    kinds = {one.case_id: plan_failure(wanted.seed, one.case_id, 1.0) for one in outcomes}
    assert {failure.kind for failure in kinds.values() if failure} == set(FailureKind)
    for location in find_cases([tmp_path]).locations:
        failure = kinds[location.case_id]
        assert failure is not None
        names = set(open_case(location).sizes)
        log = open_case(location).read("mechanical.out").decode()
        assert ("Analysis terminated" in log) == (failure.kind is not FailureKind.KILLED)
        assert "Analysis completed" not in log
        assert ("results/mechanical.case" in names) == (failure.kind is FailureKind.TERMINATED)
        with pytest.raises(Exception, match=r"terminated|stops before"):
            NetfabbRun(location.case_id, open_case(location))


def test_how_many_fail_depends_on_the_rate() -> None:
    names = [f"{n}_0" for n in range(2000)]
    for rate in (0.0, 0.27, 1.0):
        share = sum(plan_failure(0, name, rate) is not None for name in names) / len(names)
        assert share == pytest.approx(rate, abs=0.03)


def test_a_surface_of_the_users_own_is_simulated(tmp_path: Path) -> None:
    mesh = trimesh.creation.annulus(r_min=8, r_max=14, height=12)
    mesh.apply_translation((3, 4, 5))
    mesh.export(tmp_path / "my ring.stl")
    status = simulate(str(tmp_path / "out"), stl=[str(tmp_path / "my ring.stl")], points=400, workers=0)
    assert status == 0
    case = tmp_path / "out" / "my_ring"
    final = NetfabbRun("my_ring", open_case(find_cases([case]).locations[0])).read_case(("displacement",))
    assert final.points[:, 2].min() == 0
    assert 9 < final.points[:, 2].max() < 13
    assert 0.01 < abs(final.fields["displacement"]).max() < 1


def test_each_body_of_a_file_is_a_case_and_nothing_is_lost_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big, small = trimesh.creation.box((0.02, 0.02, 0.02)), trimesh.creation.box((0.008, 0.008, 0.008))
    small.apply_translation((0.04, 0, 0.01))
    pair = trimesh.util.concatenate([big, small])
    pair.faces = np.concatenate([pair.faces, pair.faces[:1]])
    pair.export(tmp_path / "pair.stl")
    top = trimesh.creation.box(bounds=[(0, 0, 0.02), (0.04, 0.04, 0.03)])
    legs = [trimesh.creation.box(bounds=[(x, x, 0), (x + 1e-3, x + 1e-3, 0.021)]) for x in (0.0033, 0.0351)]
    trimesh.boolean.union([top, *legs], engine="manifold").export(tmp_path / "table.stl")
    files = [str(tmp_path / name) for name in ("pair.stl", "table.stl")]
    for _ in range(2):  # the second time from what is kept
        assert simulate(str(tmp_path / "out"), stl=files, points=400, workers=0, units="m") == 0
        said = capsys.readouterr().out
        assert "repaired: facets that were there more than once were merged (pair.stl: 1)" in said
        assert "one part a body, each put on the build plate by itself (pair.stl: 2 bodies)" in said
        assert "walls of 1 mm" in said
    for name, size in (("pair_1", 20), ("pair_2", 8)):
        case = NetfabbRun(name, open_case(find_cases([tmp_path / "out" / name]).locations[0])).read_case(())
        np.testing.assert_allclose(np.ptp(case.points, axis=0), size, rtol=0.1)
        assert case.points[:, 2].min() == 0
    kept = json.loads((tmp_path / "out/.simulate/outcomes/table.json").read_text())["remarks"]
    assert kept
    kinds = {one["kind"] for one in json.loads((tmp_path / "out/.simulate/remarks.json").read_text())}
    assert kinds == {"merged_facets", "several_bodies"}
    with pytest.raises(UsageError, match="with units m, not cm; choose"):
        simulate(str(tmp_path / "out"), stl=files, points=400, workers=0, units="cm")


def test_what_was_changed_on_the_way_to_a_mesh_reaches_log_manifest_card_and_report(tmp_path: Path) -> None:
    part = trimesh.creation.box((20, 20, 20))
    part.faces = np.concatenate([part.faces, part.faces[:1]])
    part.export(tmp_path / "doubled.stl")
    trimesh.creation.box((25, 25, 10)).export(tmp_path / "clean.stl")
    files = [str(tmp_path / name) for name in ("doubled.stl", "clean.stl")]
    assert simulate(str(tmp_path / "runs"), stl=files, points=300, workers=0) == 0
    log = (tmp_path / "runs/doubled/mechanical.out").read_text(encoding="utf-8")
    assert "merged_facets" in log
    assert str(tmp_path) not in log
    assert "LPBF remark" not in (tmp_path / "runs/clean/mechanical.out").read_text(encoding="utf-8")
    assert (
        build([str(tmp_path / "runs")], out=str(tmp_path / "lpbf"), workers=0, time_limit=math.inf, splits="train=1")
        == 0
    )
    manifest = decode_manifest((tmp_path / "lpbf/manifest.parquet").read_bytes())
    (remark,) = (one for one in manifest.remarks if one.kind == "merged_facets")
    assert (remark.treatment, remark.count, remark.examples) == (Treatment.REPAIRED, 1, ("doubled: doubled.stl: 1",))
    assert {r.case_id: [one.kind for one in r.remarks] for r in manifest.records} == {
        "clean": [],
        "doubled": ["merged_facets"],
    }
    card = (tmp_path / "lpbf/README.md").read_text(encoding="utf-8")
    assert "\n## What was changed on the way\n" in card
    assert f"| repaired | 1 | {remark.sentence} | doubled: doubled.stl: 1 |" in card
    page = (tmp_path / "lpbf/report.html").read_text(encoding="utf-8")
    assert remark.sentence in page
    assert json.loads((tmp_path / "lpbf/build.json").read_text(encoding="utf-8"))["remarks"] == [
        one.as_dict() for one in manifest.remarks
    ]


def test_a_surface_that_is_not_watertight_is_refused_before_work_starts(tmp_path: Path) -> None:
    mesh = trimesh.creation.box()
    mesh.faces = mesh.faces[:-2]
    mesh.export(tmp_path / "open.stl")
    with pytest.raises(GeometryError, match="not watertight"):
        simulate(str(tmp_path / "out"), stl=[str(tmp_path / "open.stl")], workers=0)
    assert not (tmp_path / "out").exists()


def test_a_part_that_cannot_be_meshed_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    blocks = [trimesh.creation.box(extents=(4, 4, 4)) for _ in range(2)]
    blocks[1].apply_translation((40, 0, 0))
    bar = trimesh.creation.box(extents=(40, 0.02, 0.02))
    bar.apply_translation((20, 0.011, 0.013))
    trimesh.util.concatenate([*blocks, bar]).export(tmp_path / "apart.stl")
    trimesh.creation.box(extents=(8, 6, 5)).export(tmp_path / "good.stl")
    surfaces = tuple(str(tmp_path / name) for name in ("apart.stl", "good.stl"))
    bad, good = run_small(tmp_path / "out", options(stl=surfaces, points=300))
    assert (bad.status, good.status) == ("failed", "completed")
    assert "falls apart" in bad.reason
    log = (tmp_path / "out/apart/mechanical.out").read_text()
    assert "The part can't be meshed" in log
    assert "Analysis terminated" in log


def test_a_solver_that_gives_up_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stiffness_module, "_DENSE_RATE", 1.0)
    monkeypatch.setattr(iterations, "_MAX_ITERATIONS", 1)
    outcomes = run_small(tmp_path, options(cases=2, points=900))
    assert all(one.status == "failed" and not one.asked_for for one in outcomes)
    assert all("did not converge" in one.reason for one in outcomes)
    for one in outcomes:
        assert "Analysis terminated" in (tmp_path / one.case_id / "mechanical.out").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cases": 0}, "--cases"),
        ({"points": 3}, "--points"),
        ({"seed": -1}, "--seed"),
        ({"failure_rate": 1.5}, "--failure_rate"),
        ({"failure_rate": float("nan")}, "--failure_rate"),
        ({"material": "cheese"}, "--material"),
        ({"families": ("gear", "sprocket")}, "--families sprocket"),
        ({"families": ()}, "--families"),
        ({"stl": ("nowhere.stl",)}, "nowhere.stl"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_request(str(tmp_path / "out"), options(**change))
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="PyTorch finds no GPU of NVIDIA here"):
        check_request(str(tmp_path / "out"), options(device="cuda"))


def test_a_gpu_whose_memory_is_used_up_leaves_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    asked = options(cases=1, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("pipelines.simulation.physics.build_simulation.BuildSimulation.frames", full)
    with pytest.raises(UsageError, match="memory is used up; run the same command with fewer --workers"):
        run_small(tmp_path / "out", asked)
    assert not list((tmp_path / "out/.simulate").rglob("outcomes/*.json"))


def test_where_it_is_solved_is_part_of_what_a_folder_was_simulated_with() -> None:
    plain, there = (
        SimulationRequest(Path("out"), options(device=name), MATERIALS["Ti64"], (), {}).configuration
        for name in ("cpu", "cuda")
    )
    assert there == plain | {"device": "cuda"} != plain


def test_two_surfaces_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        trimesh.creation.box().export(tmp_path / folder / "part.stl")
    with pytest.raises(UsageError, match="the name part"):
        check_request(str(tmp_path / "out"), options(stl=(str(tmp_path / "a/part.stl"), str(tmp_path / "b/part.stl"))))


def test_a_folder_keeps_to_what_it_was_simulated_with(tmp_path: Path) -> None:
    run_small(tmp_path / "out", options(cases=1))
    with pytest.raises(UsageError, match="was simulated with seed 11, not 12; choose another --out"):
        run_small(tmp_path / "out", options(cases=1, seed=12))
    with pytest.raises(UsageError, match=r"with other families, points 100, not 300; choose"):
        run_small(tmp_path / "out", options(cases=2, points=300, families=("plate",)))
    assert json.loads((tmp_path / "out/.simulate/request.json").read_text())["seed"] == 11


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        run_small(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="is a file"):
        run_small(tmp_path / "thesis.txt")


def test_two_simulations_do_not_share_a_folder(tmp_path: Path) -> None:
    run_small(tmp_path, options(cases=1))
    with FileLock(tmp_path / ".simulate/lock"), pytest.raises(UsageError, match="another simulation works"):
        run_small(tmp_path)


def test_the_command_prints_its_counts(tmp_path: Path) -> None:
    command = ["pipelines.simulate", "--out", str(tmp_path / "out"), "--cases", "3"]
    command += ["--points", "100", "--workers", "0", "--families", "gear,flange", "--encoding", "ascii"]
    done = run_here(*command)
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout
    assert "within the published limits" in done.stdout
    assert len(list((tmp_path / "out").glob("*_*"))) == 3
    refused = run_here(*command[:-2], "--encoding", "morse")
    assert refused.returncode == 2
    assert "morse" in refused.stderr
