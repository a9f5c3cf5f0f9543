"""Groups of cases: measured again under kills and beside another part, on a growing cluster, with a case that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from lpbf_data.errors import CaseError, FailureReason, UsageError
from lpbf_data.stores.manifest import decode_manifest
from pipelines.build import run_build, run_part
from pipelines.building.attempts import has_nanny, run_within
from pipelines.building.case_process import CaseProcess
from pipelines.building.engine import Engine, Resources, open_engine
from pipelines.building.groups import GroupTask, measure_group, plan_groups
from pipelines.building.request import BuildShare as Share
from pipelines.building.shards import ShardTask, plan_shards, write_staged_shard
from pipelines.building.stages import measured_cases
from pipelines.building.workspace import MeasuredRef, Workspace, load_reductions
from pipelines.measuring.convert import measure_location
from pipelines.sources.finding import find_cases
from tests.netfabb_cases import Part, write_part
from tests.pipelines.tasks_that_end import double_or_end
from tests.pipelines.test_build import request, tree, write_parts

Reductions = tuple[NDArray[np.float32], ...]

MEASURE_AND_DIE = """
import os, pickle, signal, sys
from pathlib import Path

import pipelines.building.groups

task = pickle.loads(Path(sys.argv[1]).read_bytes())
left = int(sys.argv[2])

def look(event, arguments):
    global left
    if event == "os.rename":
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

sys.addaudithook(look)
pipelines.building.groups.measure_group(task)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "work", "out")
    with made.locked():
        pass
    return made


@pytest.fixture
def task(tmp_path: Path, workspace: Workspace) -> GroupTask:
    """Two cases of one size, whose first one ran out of time."""
    write_part(tmp_path / "src", Part("a", clearance=10.0))
    write_part(tmp_path / "src", Part("b", clearance=70.0))
    group = _one_group(tmp_path / "src", workspace)
    (workspace.attempts / group.key).write_text("run\nlimit 0\n")
    assert measure_group(group).failures == 1
    workspace.forget_attempts()
    return group


def _one_group(src: Path, workspace: Workspace) -> GroupTask:
    locations = tuple(sorted(find_cases([str(src)]).locations, key=lambda x: x.case_id))
    return GroupTask("key", locations, workspace.measured, workspace.attempts, 60.0)


def refs_of(workspace: Workspace) -> dict[str, MeasuredRef]:
    return {ref.record.case_id: ref for ref in workspace.load_measured(transient=True).values()}


def right_reductions(task: GroupTask) -> dict[str, Reductions]:
    found = {x.case_id: measure_location(x).reductions for x in task.locations}
    return {case_id: values for case_id, values in found.items() if values is not None}


def assert_own(workspace: Workspace, task: GroupTask, refs: dict[str, MeasuredRef]) -> None:
    """Every measured case has the reductions of its own build."""
    expected = right_reductions(task)
    assert not np.array_equal(expected["a"][0], expected["b"][0])
    for case_id, ref in refs.items():
        if ref.record.failure is None:
            for stored, right in zip(load_reductions(workspace.measured, ref), expected[case_id], strict=True):
                np.testing.assert_array_equal(stored, right)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_group_measured_again_and_killed(tmp_path: Path, workspace: Workspace, task: GroupTask, renames: int) -> None:
    import pickle

    (tmp_path / "task").write_bytes(pickle.dumps(task))
    words = [sys.executable, "-c", MEASURE_AND_DIE, str(tmp_path / "task"), str(renames)]
    done = subprocess.run(words, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == (-signal.SIGKILL if renames < 2 else 0)
    refs = refs_of(workspace)
    assert refs["a"].record.failure is None if renames == 2 else refs["a"].record.failure is not None
    assert refs["b"].record.failure is None
    assert_own(workspace, task, refs)
    with workspace.locked():  # what no records name is removed, and nothing else
        assert len(list(workspace.measured.iterdir())) == 2
    assert_own(workspace, task, refs_of(workspace))


def test_a_group_measured_again_beside_a_part_that_writes(
    tmp_path: Path, workspace: Workspace, task: GroupTask
) -> None:
    """The other part has looked up its cases; then the group is measured again; then the other part writes."""
    cases, _ = measured_cases(task.locations, workspace.load_measured())
    assert list(cases) == ["b"]
    assert measure_group(task).failures == 0
    assert_own(workspace, task, {"b": cases["b"].ref})
    assert_own(workspace, task, refs_of(workspace))
    asked = request(tmp_path / "src", tmp_path / "out")
    (plan,) = plan_shards({"b": "train"}, cases, asked.specs)
    write_staged_shard(ShardTask(plan, ("parquet",), workspace.measured, workspace.shards))
    stored = pq.read_table(next(workspace.shards.glob("*.parquet")))["build_clearance_min"][0].as_py()
    np.testing.assert_array_equal(np.float32(stored), right_reductions(task)["b"][0])


def test_a_workspace_of_an_earlier_version_is_measured_anew(tmp_path: Path) -> None:
    """It kept the reductions of a group under the name of the group, where another run could replace them."""
    write_part(tmp_path / "src", Part("a", clearance=10.0))
    write_part(tmp_path / "src", Part("b", clearance=70.0))
    asked = request(tmp_path / "src", tmp_path / "out")
    run_build(asked)
    expected = tree(tmp_path / "out")
    measured = tmp_path / "out" / ".build" / "measured"
    for path in measured.glob("*.parquet"):
        table = pq.read_table(path)
        metadata = {k: v for k, v in table.schema.metadata.items() if k != b"lpbf_reductions"}
        pq.write_table(table.replace_schema_metadata(metadata), path)
        (old,) = measured.glob(f"{path.stem}.*.arrow")
        batches = pa.ipc.open_file(pa.memory_map(str(old))).read_all()
        old.unlink()
        wrong = batches.set_column(0, "build_clearance_min", pa.array(np.full(len(batches), 5, np.float32)))
        with pa.ipc.new_file(str(measured / f"{path.stem}.arrow"), wrong.schema) as writer:
            writer.write_table(wrong)
    for path in (tmp_path / "out" / ".build" / "shards").iterdir():
        path.unlink()
    run_build(asked)
    assert tree(tmp_path / "out") == expected
    assert not list(measured.glob("key.arrow"))


ALL_THERE = threading.Event()
"""All workers that a cluster of this process was asked for have joined."""


def _who_works(number: int) -> str:
    from distributed import get_worker

    if number == 0:
        assert ALL_THERE.wait(120)
    time.sleep(0.2)
    return str(get_worker().address)


@pytest.mark.parametrize("workers", [4, 12])
def test_a_cluster_that_grows_from_one(workers: int) -> None:
    """The first task waits until the others have joined, so that nobody is done before they are there."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        engine = Engine(client, may_grow=True)
        assert engine.num_workers == 1
        assert engine.workers_to_plan_for >= 4
        most = [0]
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.05):
                busy = client.processing()
                most[0] = max(most[0], sum(len(tasks) > 0 for tasks in busy.values()))

        def join() -> None:
            client.wait_for_workers(workers, timeout=120)
            ALL_THERE.set()

        ALL_THERE.clear()
        threads = [threading.Thread(target=target) for target in (watch, join)]
        for thread in threads:
            thread.start()
        cluster.scale(workers)
        try:
            addresses = list(engine.map(_who_works, range(80)))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert len(addresses) == 80
    assert len(set(addresses)) == workers
    assert most[0] == workers


def test_without_any_worker_left_the_build_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker and what would start it again are gone; the tasks would wait for ever."""
    from distributed import Client, LocalCluster

    monkeypatch.setattr("pipelines.building.engine._NO_WORKER", 0.5)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(0)
        while client.scheduler_info(n_workers=-1)["workers"]:
            time.sleep(0.05)
        with pytest.raises(UsageError, match="no worker process has been there for 1 s"):
            list(Engine(client).map(abs, range(3)))


def _die_once(marker: str) -> int:
    """Kill this worker the first time; its number the second time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_a_worker_that_is_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The only worker is killed; on a busy machine the next one takes longer than a build waits without any."""
    monkeypatch.setattr("pipelines.building.engine._NO_WORKER", 1.0)
    with open_engine(Resources(workers=1)) as engine:
        assert list(engine.map(_die_once, [str(tmp_path / "marker")])) != [os.getpid()]


def test_workers_that_never_join_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_is_worker_starting", lambda _: True)
    engine = Engine()
    engine._look_after_workers(599.0, waiting=False)
    with pytest.raises(UsageError, match="for 601 s: all of them died and those that were started didn't join"):
        engine._look_after_workers(601.0, waiting=False)


def test_groups_of_a_cluster_do_not_follow_its_first_worker(tmp_path: Path) -> None:
    """Few cases and one worker, that more will join: groups must be so many that all have work."""
    locations = [_fake(i) for i in range(100)]
    assert len(plan_groups(locations, Engine().workers_to_plan_for, tmp_path, tmp_path, 60.0)) == 4
    assert len(plan_groups(locations, 64, tmp_path, tmp_path, 60.0)) == 100


def _fake(number: int) -> object:
    from lpbf_data.case.record import SourceRef
    from pipelines.sources.case_files import CaseLocation

    return CaseLocation(f"c{number}", "/data/x.zip", "x", SourceRef("x.zip", "x"), "s")


SLOW_DISK = """
import sys, time

def look(event, arguments):
    if event == "open" and str(arguments[0]).replace("\\\\", "/").endswith("/b/results/mechanical00_8.dis.ens"):
        time.sleep(3600)

sys.addaudithook(look)
"""


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])  # 0: in this very process
def test_a_case_that_hangs_ends_alone(tmp_path: Path, workers: int) -> None:
    """Whoever opens one of its files waits, as on a disk that doesn't answer, in this process and in workers."""
    for name in "abc":
        write_part(tmp_path / "src", Part(name))
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "sitecustomize.py").write_text(SLOW_DISK)
    program = f"""
from pipelines.build import run_build
from pipelines.building.engine import Resources
from pipelines.building.request import check_request
from pipelines.selection.filters import Filters
if __name__ == "__main__":
    asked = check_request(
        [{str(tmp_path / "src")!r}], {str(tmp_path / "out")!r}, filters=Filters(), splits="train=1", seed=0,
        design_id="auto", fields=["displacement"], formats=["parquet"], time_limit=3.0,
    )
    for record in run_build(asked, Resources(workers={workers})):
        print(record.case_id, record.status, record.failure and record.failure.failure_reason, flush=True)
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "disk"), str(Path(__file__).parents[2])])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["a kept None", "b failed time_limit", "c kept None"]
    records = run_build(request(tmp_path / "src", tmp_path / "out", fields=["displacement"], formats=["parquet"]))
    assert all(record.status == "kept" for record in records)


NATIVE_HANG = """
import ctypes, sys

def look(event, arguments):
    if event == "open" and str(arguments[0]).replace("\\\\", "/").endswith("/b/results/mechanical00_8.dis.ens"):
        ctypes.PyDLL(None).sleep(3600)  # keeps the interpreter: no other thread gets a turn

sys.addaudithook(look)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sleep of the C library")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])  # 0: in a process of its own
def test_native_code_that_hangs_ends_alone(tmp_path: Path, workers: int) -> None:
    """The command stays, with and without workers, though nothing of Python runs any more where the case is read."""
    for name in "abc":
        write_part(tmp_path / "src", Part(name))
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(NATIVE_HANG)
    words = ["--src", str(tmp_path / "src"), "--out", str(tmp_path / "out"), "--workers", str(workers)]
    words += ["--time_limit", "3", "--no_report", "--filters.preset", "all"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.build", *words],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "hook"), str(Path(__file__).parents[2])])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = decode_manifest((tmp_path / "out" / "manifest.parquet").read_bytes()).records
    told = {record.case_id: record.failure and record.failure.failure_reason for record in records}
    assert told == {"a": None, "b": FailureReason.TIME_LIMIT, "c": None}
    assert "more than 3 s" in done.stdout


def test_a_process_beside_this_one_answers_in_order_and_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.building.case_process.MAX_ENDS", 2)
    with CaseProcess() as beside:
        assert list(beside.map(double_or_end, [5, 1, 2])) == [10, 2, 4]
        with pytest.raises(UsageError, match="2 processes ended while they worked on a task"):
            list(beside.map(double_or_end, [3]))
        with pytest.raises(CaseError, match="four is gone") as caught:
            list(beside.map(double_or_end, [4]))
        assert caught.value.reason is FailureReason.MISSING_FILE
        assert list(beside.map(double_or_end, [7])) == [14]


def test_python_that_runs_for_ever_is_stopped() -> None:
    running = threading.Event()

    def forever() -> None:
        running.set()
        while True:
            sum(range(100))

    assert not has_nanny()
    with pytest.raises(CaseError) as caught:
        run_within(0.2, forever)
    assert running.is_set()
    assert caught.value.reason is FailureReason.TIME_LIMIT
    deadline = time.monotonic() + 60
    while any(thread.name == "case" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name == "case" for thread in threading.enumerate())


def test_what_a_case_raises_or_gives_comes_through() -> None:
    assert run_within(60.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        run_within(60.0, lambda: 1 // 0)


def test_shards_that_could_not_be_written_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.building.stages

    src = write_parts(tmp_path / "src", 8)
    asked = request(src, tmp_path / "out")
    original = pipelines.building.stages.select

    def select_and_change(*arguments: object) -> object:
        for path in src.glob("*_3/results/*.ens"):
            os.utime(path, (1, 1))
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipelines.building.stages, "select", select_and_change)
    said = run_part(asked, Share(1, 1))
    staged = len(list((tmp_path / "out" / ".build" / "shards").glob("*.json")))
    assert f"part 1 of 1: {staged} of {staged + 1} shards written; 1 not" in said
    assert "_3: " in said
    monkeypatch.undo()
    assert all(record.status == "kept" for record in run_build(asked))


def test_the_manifest_is_gone_for_good_before_a_shard_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut must not bring back the old manifest beside new shards: its removal is flushed first."""
    import pipelines.building.targets

    src = write_parts(tmp_path / "src", 8)
    run_build(request(src, tmp_path / "out"))
    manifest = tmp_path / "out" / "manifest.parquet"
    done: list[str] = []
    flush, move = pipelines.building.targets.flush_folder, pipelines.building.targets._move

    def flushed(path: Path) -> None:
        flush(path)
        if path == manifest.parent and not manifest.exists():
            done.append("removal flushed")

    def moved(source: Path, target: Path) -> None:
        done.append("moved")
        move(source, target)

    monkeypatch.setattr(pipelines.building.targets, "flush_folder", flushed)
    monkeypatch.setattr(pipelines.building.targets, "_move", moved)
    run_build(request(src, tmp_path / "out", seed=1, splits="train=0.25,test=0.75"))
    assert "moved" in done
    assert done[0] == "removal flushed"
