"""Workers that hang are found and started anew; workers that are busy are left alone; short tasks wait for none."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.building.engine import Engine, Resources, open_engine

LIMIT = 3.0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_engine(Resources(workers=2), idle_limit=LIMIT) as started:
        yield started


def hang_the_first_time(marker: Path | None) -> int:
    if marker is not None and not marker.exists():
        marker.touch()
        time.sleep(3600)
    return os.getpid()


def test_a_worker_that_hangs_is_started_anew(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    tasks = [None, tmp_path / "marker", None, None, None, None]
    assert len(list(engine.map(hang_the_first_time, tasks))) == 6
    assert time.monotonic() - began > LIMIT
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("1 worker did nothing for ") == 1
    assert "hang_the_first_time" in said  # where it stood


def keep_a_core_busy(seconds: float) -> int:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return os.getpid()


def test_a_worker_that_is_busy_for_longer_is_left_alone(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(engine.map(keep_a_core_busy, [2.5 * LIMIT]))) == 1
    assert "did nothing" not in capsys.readouterr().err


def wait(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@pytest.mark.parametrize("tasks", [[1.2, 0.0, 0.0], [1.2] + 6 * [0.0]])
def test_short_tasks_do_not_wait_behind_a_long_one(engine: Engine, tasks: list[float]) -> None:
    """One process works on the long one, the other on all of the rest, however few there are."""
    found = list(engine.map(wait, tasks))
    assert sorted(Counter(found).values()) == [1, len(tasks) - 1]
    assert Counter(found)[found[-1]] == 1  # the long one ends last
