"""Faults, for real: processes killed, schedulers restarted, disks that fill, sources that vanish, bits that flip."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from lpbf_data.case.record import SourceRef
from lpbf_data.errors import CaseError, FailureReason, UsageError
from pipelines.build import run_build, run_part
from pipelines.building.attempts import Attempts
from pipelines.building.engine import Resources
from pipelines.building.groups import plan_groups
from pipelines.building.request import BuildShare as Share
from pipelines.building.request import parse_share
from pipelines.building.targets import remove_path
from pipelines.sources.case_files import CaseLocation
from tests.commands import run_here
from tests.forked import Program, end_all
from tests.forked import command as run_module
from tests.netfabb_cases import Part, write_part, zip_folder
from tests.pipelines.forked_builds import Builds
from tests.pipelines.test_build import request, tree, write_parts

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "kills.json"
ANYWHERE = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
}
"""Environment of processes that import this project whatever folder they stand in."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen parts, half of them in an archive."""
    src = tmp_path_factory.mktemp("faults") / "netfabb_out"
    write_parts(src, 12)
    for i in range(12):
        write_part(src.parent / "packed", Part(f"{200 + i}_11b839a{i:x}_1", shape=(2 + i % 5, 2 + i // 5, 4)))
    zip_folder(src / "data_0-12.zip", src.parent / "packed")
    return src


@pytest.fixture(scope="module")
def undisturbed(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "lpbf"
    run_build(request(parts, out))
    return tree(out)


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def options(src: Path | str, out: Path | str, *more: str, report: bool = False) -> list[str]:
    words = ["--src", str(src), "--out", str(out), "--splits", "train=0.5,test=0.5"]
    return [*words, *([] if report else ["--no_report"]), *more]


def kill_builds(src: Path, folder: Path, kills: int, seed: int, *more: str, reports: bool = True) -> dict[str, int]:
    """Kill builds at random moments until there were `kills`; each finished one must have the bytes of one left alone.

    `more` are options of every build. With `reports`, every fifth data set gets its report as well, which takes longer
    than all the rest, and the last build has workers. How long a whole build takes is told by the last one that was
    left alone, for what else the machine does changes.
    """
    rng = random.Random(seed)
    untouched = True
    done = {"kills": 0, "kills_at_work": 0, "finished_builds": 0}
    expected, seconds = {}, {}
    number = 0
    with Builds(folder / "said.txt") as builds:
        for report in (False, True)[: 1 + reports]:
            out = folder / f"undisturbed_{report}"
            started = time.monotonic()
            assert builds.run(options(src, out, "--workers", "0", *more, report=report)) == 0, builds.said.read_text()
            expected[report], seconds[report] = tree(out), 1.2 * (time.monotonic() - started)
        while done["kills"] < kills:
            out, report = folder / f"out{number}", reports and number % 5 == 2
            words = options(src, out, "--workers", rng.choice(["0", "0", "0", "2"]), *more, report=report)
            started = time.monotonic()
            status = builds.run(words, rng.uniform(0.05, seconds[report]))
            if status is None:
                done["kills"] += 1
                done["kills_at_work"] += (out / ".build").is_dir()
                untouched = False
                continue
            if untouched:
                seconds[report] = 1.2 * (time.monotonic() - started)
            untouched = True
            assert status == 0, builds.said.read_text()
            assert tree(out) == expected[report]
            done["finished_builds"] += 1
            shutil.rmtree(out)
            number += 1
        last = folder / f"out{number}"
        report = reports and number % 5 == 2
        words = options(src, last, "--workers", "2" if reports else "0", *more, report=report)
        assert builds.run(words) == 0, builds.said.read_text()
        assert tree(last) == expected[report]
    done["finished_builds"] += 1
    return done


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kills", [2, *(pytest.param(kills, marks=pytest.mark.slow) for kills in (5, 50))])
def test_kills_and_the_same_bytes(parts: Path, tmp_path: Path, kills: int) -> None:
    """The few meet builds without reports, and without a process beside them, whose start takes most of the time."""
    many = kills >= 50
    seed = 0 if kills > 2 else 46  # which draws builds without workers, and moments in the midst of them
    done = kill_builds(parts, tmp_path, kills, seed, *(() if many else ("--time_limit", "inf")), reports=many)
    assert done["kills"] == kills
    assert done["kills_at_work"] > 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_kills_and_the_same_bytes(parts: Path, tmp_path: Path) -> None:
    done = kill_builds(parts, tmp_path, 200, 1)
    assert done["kills"] == 200
    RESULT.write_text(json.dumps(done | {"identical": True}, indent=2) + "\n")


def test_a_killed_worker_is_replaced(parts: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    killed: list[int] = []
    stop = threading.Event()

    def kill_workers() -> None:
        while not stop.is_set() and len(killed) < 2:
            workers = []
            with contextlib.suppress(psutil.Error):  # processes come and go while they are looked at
                children = psutil.Process().children(recursive=True)
                workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
            if workers and list((tmp_path / "lpbf" / ".build" / "attempts").glob("*")):
                workers[-1].kill()
                killed.append(workers[-1].pid)
                time.sleep(0.3)
            time.sleep(0.001)

    killer = threading.Thread(target=kill_workers)
    killer.start()
    try:
        run_build(request(parts, tmp_path / "lpbf"), Resources(workers=2))
    finally:
        stop.set()
        killer.join()
    assert killed
    assert tree(tmp_path / "lpbf") == undisturbed


class Cluster:
    """A real scheduler and two real workers on the loopback interface; they stand in a folder of their own."""

    def __init__(self, port: int, folder: Path) -> None:
        self.address = f"tcp://127.0.0.1:{port}"
        worker = ("dask_worker", self.address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
        commands = [("dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"), worker, worker]
        self.programs = [
            Program(
                run_module, folder.parent / "said_by_cluster", f"distributed.cli.{name}", *words,
                environment=ANYWHERE, folder=folder,
            )
            for name, *words in commands
        ]  # fmt: skip

    def kill(self) -> None:
        for program in self.programs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.end()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_scheduler_that_dies_and_comes_back(parts: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """The build names its folders as it sees them; the workers stand elsewhere."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere" / "deep"
    here.mkdir()
    elsewhere.mkdir(parents=True)
    port = free_port()
    cluster = Cluster(port, elsewhere)
    out = here / "lpbf"
    words = ["pipelines.build", *options(os.path.relpath(parts, here), "lpbf", "--scheduler", cluster.address)]
    try:
        build = Program(run_module, tmp_path / "said", *words, environment=ANYWHERE, folder=here)
        deadline = time.monotonic() + 120
        while not list(out.glob(".build/attempts/*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        cluster.kill()
        assert build.end(180) == 1, build.text()
        assert "run the same command again" in build.text()
        cluster = Cluster(port, elsewhere)
        written: list[dict[Path, int]] = []
        for number in range(2):
            again = Program(run_module, tmp_path / f"said{number}", *words, environment=ANYWHERE, folder=here)
            assert again.end() == 0, again.text() + (tmp_path / "elsewhere" / "said_by_cluster").read_text()
            written.append({path: path.stat().st_ino for path in out.glob("data/*.parquet")})
    finally:
        cluster.kill()
    assert tree(out) == undisturbed
    assert written[0] == written[1]  # the workers found the shards of the first in place
    assert not any(elsewhere.iterdir())


def test_a_cluster_from_a_yaml_file(parts: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    described = tmp_path / "cluster.yaml"
    described.write_text(
        "class: distributed.LocalCluster\n"
        "init: {n_workers: 0, threads_per_worker: 1, processes: false, dashboard_address: ':0'}\n"
        "workers: 2\n"
    )
    run_build(request(parts, tmp_path / "lpbf"), Resources(cluster=str(described)))
    assert tree(tmp_path / "lpbf") == undisturbed
    described.write_text("class: no.such.Cluster\n")
    with pytest.raises(UsageError, match=r"no\.such\.Cluster"):
        run_build(request(parts, tmp_path / "other"), Resources(cluster=str(described)))
    with pytest.raises(UsageError, match="neither slurm nor"):
        run_build(request(parts, tmp_path / "other"), Resources(cluster=str(tmp_path / "none.yaml")))
    with pytest.raises(UsageError, match="one of them"):
        Resources(scheduler="tcp://x:1", cluster="slurm")


@pytest.mark.parametrize("twice", [False, True], ids=["measured in parts", "measured and written in parts"])
def test_parts_in_any_order_join_to_the_same_bytes(
    parts: Path, undisturbed: dict[str, str], tmp_path: Path, twice: bool
) -> None:
    asked = request(parts, tmp_path / "lpbf")
    order = [3, 1, 4, 2]
    with pytest.raises(UsageError, match="aren't measured yet"):
        run_build(asked, only_join=True)
    said = [run_part(asked, Share(i, 4)) for i in order]
    assert "are left to other parts" in said[0]
    assert "--finalise joins them" in said[-1]
    if twice:
        said = [run_part(asked, Share(i, 4)) for i in order]
        assert all("shards written" in sentence for sentence in said)
    run_build(asked, only_join=True)
    assert tree(tmp_path / "lpbf") == undisturbed


def test_a_build_says_where_measuring_goes_on(
    parts: Path, undisturbed: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lpbf"
    told = re.search(r"(\d+) cases measured; (\d+) are left", run_part(request(parts, out), Share(1, 3)))
    assert told is not None
    measured, left = int(told[1]), int(told[2])
    assert measured > 0 < left
    said = [capsys.readouterr().err]
    for _ in range(2):
        run_build(request(parts, out))
        said.append(capsys.readouterr().err)
    found = [[line for line in text.splitlines() if "goes on" in line] for text in said]
    assert found == [[], [f"measuring goes on from case {measured} of {measured + left}"], []]
    assert tree(out) == undisturbed


def test_parts_at_the_same_time(parts: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "lpbf"
    said = tmp_path / "said"
    for _ in range(2):
        words = options(parts, out, "--workers", "0", "--time_limit", "inf")
        programs = [Program(run_module, said, "pipelines.build", *words, "--part", f"{i}/2") for i in (1, 2)]
        assert end_all(programs, 120) == [0, 0], programs[0].text()
    run_build(request(parts, out), only_join=True)
    assert tree(out) == undisturbed


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "a/b", "1/", "-1/3"])
def test_impossible_parts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--part must be i/N"):
        parse_share(text)


def test_a_million_cases_stay_under_ten_thousand_tasks() -> None:
    place = SourceRef("x.zip", "x")
    locations = [CaseLocation(f"c{i}", f"/data/{i // 500}.zip", "x", place, "s") for i in range(1_000_000)]
    tasks = plan_groups(locations, 64, Path(), Path(), 60.0)
    assert len(tasks) <= 4000
    assert sum(len(task.locations) for task in tasks) == 1_000_000
    # Cases of one archive lie together: an archive is opened by few groups.
    assert sum(len({x.container for x in task.locations}) for task in tasks) < 10_000


def test_a_disk_that_fills(parts: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(disk)]
    mounted = run_command(*mount) if shutil.which("mount") else None
    if mounted is None or mounted.returncode:
        pytest.skip("can't mount a small disk here")
    try:
        for workers in ("0", "1"):
            done = run_here("pipelines.build", *options(parts, disk / "lpbf", "--workers", workers))
            assert done.returncode == 1, done.stdout
            assert "No space left" in done.stderr
            assert "run the same command again" in done.stderr
            assert not (disk / "lpbf" / "manifest.parquet").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert run_here("pipelines.build", *options(parts, disk / "lpbf", "--workers", "0")).returncode == 0
        assert tree(disk / "lpbf") == undisturbed
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_archive_that_vanishes_between_listing_and_reading(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = tmp_path / "src"
    shutil.copytree(parts, src)
    import pipelines.building.groups

    original = plan_groups

    def plan_and_remove(*arguments: object) -> object:
        (src / "data_0-12.zip").unlink()
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipelines.building.groups, "plan_groups", plan_and_remove)
    records = run_build(request(src, tmp_path / "out"))
    failed = [r for r in records if r.failure is not None]
    assert len(failed) == 12
    assert {r.failure.failure_reason for r in failed if r.failure} == {FailureReason.UNREADABLE_FILE}
    assert sum(r.status == "kept" for r in records) == 12
    # The archive comes back: the cases that failed for want of it are tried again.
    monkeypatch.undo()
    shutil.copy(parts / "data_0-12.zip", src)
    records = run_build(request(src, tmp_path / "out"))
    assert all(r.failure is None for r in records)


def test_a_flipped_bit_is_repaired_by_the_next_build(parts: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "lpbf"
    run_build(request(parts, out))
    for victim in (next((out / "data").iterdir()), next(out.glob("lpbf.zarr/*/*/points/c/0/0"))):
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        assert tree(out) != undisturbed
        run_build(request(parts, out))
        assert tree(out) == undisturbed


def test_cases_that_take_too_long_are_set_aside(tmp_path: Path) -> None:
    for name in "ab":  # each ends a process
        write_part(tmp_path / "src", Part(name, shape=(12, 12, 8)))
    records = run_build(request(tmp_path / "src", tmp_path / "out", time_limit=0.001), Resources(workers=1))
    assert [r.failure.failure_reason for r in records if r.failure] == [FailureReason.TIME_LIMIT] * 2
    assert "more than 0.001 s" in str(records[0].failure)
    # With time enough they are tried again.
    records = run_build(request(tmp_path / "src", tmp_path / "out", time_limit=600.0))
    assert all(r.status == "kept" for r in records)


def test_a_case_that_kills_two_processes_is_set_aside(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    program = f"""
import os, signal
from pathlib import Path
from pipelines.building.attempts import Attempts
attempts = Attempts(Path({str(journal)!r}), 60.0)
for case in range(3):
    with attempts.at(case):
        if case == 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], check=False)
        assert done.returncode == -signal.SIGKILL
    attempts = Attempts(journal, 60.0)
    with attempts.at(0):
        pass
    with pytest.raises(CaseError) as caught, attempts.at(1):
        pass
    assert caught.value.reason is FailureReason.WORKER_KILLED
    with attempts.at(2):
        pass


def test_a_case_that_hangs_ends_its_process_once(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    program = f"""
import time
from pathlib import Path
from pipelines.building.attempts import Attempts
attempts = Attempts(Path({str(journal)!r}), 0.2)
with attempts.at(0):
    pass
with attempts.at(1):
    time.sleep(60)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 75
    assert time.monotonic() - started < 30
    attempts = Attempts(journal, 0.2)
    with pytest.raises(CaseError) as caught, attempts.at(1):
        pass
    assert caught.value.reason is FailureReason.TIME_LIMIT


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_parts(src, 4)

    def largest(**options: object) -> float:
        (record,) = (r for r in run_build(request(src, out, **options)) if r.case_id.endswith("_0"))
        assert record.measures is not None
        return record.measures.displacement_max

    before = largest()
    victim = next(src.glob("*_0/results/mechanical00_6.dis.ens"))
    data = bytearray(victim.read_bytes())
    data[244:248] = np.float32(2).tobytes()  # mm, at the first point
    victim.write_bytes(data)
    assert before < 1
    assert 2 <= largest() < 3
    # The same size and time hide a change from a glance, but not from --digest.
    stat = victim.stat()
    data[244:248] = np.float32(3).tobytes()
    victim.write_bytes(data)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert 2 <= largest() < 3
    assert largest(digest=True) >= 3


def test_a_folder_in_which_threads_still_write_is_removed(tmp_path: Path) -> None:
    """As Zarr's do where one of several writes found the disk full."""
    folder = tmp_path / "part"
    folder.mkdir()
    stop = time.monotonic() + 0.4

    def write_on(number: int) -> None:
        while time.monotonic() < stop:
            with contextlib.suppress(OSError):
                file = folder / f"{number}.partial"
                file.touch()
                file.unlink()

    threads = [threading.Thread(target=write_on, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    remove_path(folder)
    for thread in threads:
        thread.join()
    assert not folder.exists()
