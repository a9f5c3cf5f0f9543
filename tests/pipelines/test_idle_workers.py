"""Workers that all do nothing are started anew, busy ones are left alone; short tasks wait for no long one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipelines.building.engine import Engine, Resources, open_engine
from pipelines.building.idle_workers import IdleWorkers, WorkerProcesses

LIMIT = 3.0


@pytest.fixture(scope="module")
def opened() -> Iterator[Engine]:
    with open_engine(Resources(workers=2), idle_limit=LIMIT) as started:
        yield started


@pytest.fixture
def engine(opened: Engine) -> Engine:
    """With both workers, of which the test before may have ended some."""
    deadline = time.monotonic() + 60
    while opened.num_workers < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return opened


def hang_the_first_time(marker: Path | None, *, stop: bool = False) -> int:
    if marker is not None and not marker.exists():
        marker.touch()
        if stop:
            os.kill(os.getpid(), signal.SIGSTOP)  # no thread of it answers any more
        time.sleep(3600)
    return os.getpid()


def stop_the_first_time(marker: Path | None) -> int:
    return hang_the_first_time(marker, stop=True)


def test_a_worker_that_hangs_is_started_anew(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [None, tmp_path / "marker", None, None, None, None]
    assert len(list(engine.map(hang_the_first_time, tasks))) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the workers did nothing for 3 s and are started anew") == 1
    assert "hang_the_first_time" in said  # where it stood


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_process_that_does_not_answer_is_started_anew(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.building.engine._TIME_TO_FETCH", 1.0)  # it may have results that nobody has yet
    assert len(list(engine.map(stop_the_first_time, [None, tmp_path / "marker", None]))) == 3
    assert capsys.readouterr().err.count("are started anew") == 1


def keep_a_core_busy(seconds: float) -> int:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return os.getpid()


def test_a_worker_that_is_busy_for_longer_is_left_alone(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(engine.map(keep_a_core_busy, [2.5 * LIMIT]))) == 1
    assert "started anew" not in capsys.readouterr().err


def wait(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@pytest.mark.parametrize("tasks", [[1.2, 0.0, 0.0], [1.2] + 6 * [0.0]])
def test_short_tasks_do_not_wait_behind_a_long_one(engine: Engine, tasks: list[float]) -> None:
    """One process works on the long one, the other on all of the rest, however few there are."""
    found = list(engine.map(wait, tasks))
    assert sorted(Counter(found).values()) == [1, len(tasks) - 1]
    assert Counter(found)[found[-1]] == 1  # the long one ends last


class SilentClient:
    """Its workers don't tell where they stand."""

    def __init__(self) -> None:
        self.scheduler = self

    def call_stack(self, **_: Any) -> None:
        raise NotImplementedError

    def sync(self, *_: Any, **__: Any) -> None:
        raise TimeoutError


class Watched:
    """Two workers whose processor time and clock the test sets."""

    def __init__(self, limit: float = 100.0) -> None:
        self.now, self.kills = 0.0, 0
        self.used = {1: 0.0, 2: 0.0}
        self.idle = IdleWorkers(SilentClient(), limit, self, lambda: self.now)  # type: ignore[arg-type]

    def cpu_seconds(self) -> dict[int, float]:
        return dict(self.used)

    def kill(self) -> None:
        self.kills += 1

    def pass_by(self, seconds: float, *shares: float, step: float = 1.0) -> int:
        """Let time pass in which the workers use these shares of a core; returns how often they were started anew."""
        before = self.kills
        for _ in range(round(seconds / step)):
            self.now += step
            for number, share in enumerate(shares, 1):
                self.used[number] += share * step
            self.idle.look()
        return self.kills - before


@pytest.mark.parametrize(("shares", "restarts"), [((0.05, 0.06), 1), ((0.05, 0.3), 0), ((1.0, 0.0), 0)])
def test_what_counts_as_doing_nothing(shares: tuple[float, float], restarts: int) -> None:
    assert Watched().pass_by(150, *shares) == restarts


def test_a_process_that_ends_while_it_is_looked_at_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: psutil.Process) -> None:
        raise psutil.NoSuchProcess(1)

    nannies = {number: SimpleNamespace(pid=pid) for number, pid in enumerate((os.getpid(), None, 2**22 + 1))}
    processes = WorkerProcesses(SimpleNamespace(cluster=SimpleNamespace(workers=nannies)))  # type: ignore[arg-type]
    assert list(processes.cpu_seconds()) == [os.getpid()]
    monkeypatch.setattr(psutil.Process, "cpu_times", gone)
    assert processes.cpu_seconds() == {}


def test_the_limit_doubles_until_a_result_comes() -> None:
    watched = Watched()
    assert [watched.pass_by(102, 0.05, 0.05), watched.pass_by(150, 0.05, 0.05), watched.pass_by(60, 0.05, 0.05)] == [
        1,
        0,
        1,
    ]
    watched.idle.result_came()
    assert watched.pass_by(102, 0.05, 0.05) == 1


def test_a_result_a_new_process_or_a_pause_begins_the_time_anew() -> None:
    for what in ("result", "process", "pause"):
        watched = Watched()
        assert watched.pass_by(90, 0.05, 0.05) == 0
        if what == "result":
            watched.idle.result_came()
        elif what == "process":
            watched.used = {1: watched.used[1], 3: 0.0}
        else:
            watched.now += 3600  # the machine slept
        assert watched.pass_by(90) == 0, what
        assert watched.pass_by(20) == 1, what


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux alone counts what processes wait for")
def test_a_worker_that_gets_no_processor_on_a_busy_machine_is_not_idle() -> None:
    """One that works at the lowest priority beside another that never stops, both on the same core."""
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{core}}}); os.nice(%d)\nwhile True: pass"
    busy, starved = (subprocess.Popen([sys.executable, "-c", code % nice]) for nice in (0, 19))
    nannies = {0: SimpleNamespace(pid=starved.pid)}
    processes = WorkerProcesses(SimpleNamespace(cluster=SimpleNamespace(workers=nannies)))  # type: ignore[arg-type]
    try:
        time.sleep(1.0)
        before, cpu = processes.cpu_seconds()[starved.pid], sum(psutil.Process(starved.pid).cpu_times()[:2])
        time.sleep(2.0)
        alone = sum(psutil.Process(starved.pid).cpu_times()[:2]) - cpu
        assert processes.cpu_seconds()[starved.pid] - before > 1.5
        assert alone < 1.5, "it was to get little of the core"
    finally:
        for one in (busy, starved):
            one.kill()
            one.wait()
