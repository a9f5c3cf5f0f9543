"""`--plan`: its estimates agree with what a build takes, and it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.build import run_build
from pipelines.building.engine import SERIAL
from pipelines.building.forecast import forecast
from pipelines.building.request import BuildRequest, check_request
from pipelines.selection.filters import Filters
from tests.commands import run_here
from tests.netfabb_cases import Part, write_part


def asked_for(folder: Path, **changes: object) -> BuildRequest:
    options: dict[str, object] = {
        "filters": Filters(), "splits": "train=1", "seed": 0, "design_id": "auto", "fields": ["displacement"],
        "formats": ["parquet", "zarr"], "time_limit": 60.0,
    }  # fmt: skip
    return check_request([str(folder / "a"), str(folder / "b")], str(folder / "out"), **(options | changes))  # type: ignore[arg-type]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Ids that run against the order of the folders, sizes that differ from case to case, and some to be rejected."""
    for i in range(20):
        cell = (4.0, 1.0, 1.0) if i % 4 == 0 else (1.0, 1.0, 1.0)
        part = Part(f"{900 - i}_11b839a{i:x}_1"[:14], shape=(4 + i, 7, 6), cell=cell, clearance=50.0 + i)
        write_part(tmp_path / ("a" if i < 10 else "b"), part)
    return tmp_path


def size_of(*paths: Path) -> int:
    return sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())


def test_what_is_told_is_what_a_build_takes(sources: Path) -> None:
    asked = asked_for(sources)
    told = forecast(asked, SERIAL)
    assert not (sources / "out").exists()
    assert told.cases == 20
    assert told.sampled == 5
    records = run_build(asked)
    kept = sum(record.status == "kept" for record in records) / len(records)
    assert told.kept == pytest.approx(kept, abs=0.25)
    data = size_of(sources / "out" / "data", sources / "out" / "lpbf.zarr")
    assert 0.5 * data < told.data_bytes < 2 * data
    assert 0.6 * size_of(sources / "out" / ".build") < told.workspace_bytes < 1.6 * size_of(sources / "out" / ".build")
    assert told.seconds > 0


def test_reductions_in_a_plan_are_those_of_their_cases(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trial would store is what a build stores."""
    import pipelines.building.forecast

    stored: dict[str, float] = {}
    original = pipelines.building.forecast.write_staged_shard

    def look(task: pipelines.building.forecast.ShardTask) -> object:
        from pipelines.building.workspace import load_reductions

        result = original(task)
        assert not result.failures
        for case in task.plan.cases:
            stored[case.record.case_id] = float(load_reductions(task.measured, case.ref)[0].min())
        return result

    monkeypatch.setattr(pipelines.building.forecast, "write_staged_shard", look)
    asked = asked_for(sources)
    forecast(asked, SERIAL)
    clearances = {r.case_id: r.measures.recoater_clearance_min for r in run_build(asked) if r.measures is not None}
    assert len(stored) >= 3
    assert stored == {case_id: pytest.approx(clearances[case_id]) for case_id in stored}


def test_where_nothing_is_kept_there_is_no_data_set(sources: Path) -> None:
    told = forecast(asked_for(sources, filters=Filters(max_points=1)), SERIAL)
    assert (told.kept, told.data_bytes) == (0.0, 0.0)
    assert told.workspace_bytes > 0


def test_the_command_tells_and_does_nothing(sources: Path) -> None:
    before = sorted(sources.rglob("*"))
    words = ["--src", str(sources / "a"), "--out", str(sources / "out"), "--plan", "--workers", "0"]
    done = run_here("pipelines.build", *words)
    assert done.returncode == 0, done.stderr
    assert "nothing was done" in done.stdout
    assert "10 in 10 folders and archives" in done.stdout
    assert sorted(sources.rglob("*")) == before
