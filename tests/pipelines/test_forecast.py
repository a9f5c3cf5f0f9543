"""`--plan`: its estimates agree with what a build takes, and it changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import pipelines.building.forecast
from lpbf_data.case.record import CaseRecord
from pipelines.build import run_build
from pipelines.building.engine import SERIAL
from pipelines.building.forecast import Forecast, forecast
from pipelines.building.request import BuildRequest, check_request
from pipelines.building.workspace import load_reductions
from pipelines.selection.filters import Filters
from tests.commands import run_here
from tests.netfabb_cases import Part, write_part


def asked_for(folder: Path, out: str = "out", **changes: object) -> BuildRequest:
    options: dict[str, object] = {
        "filters": Filters(), "splits": "train=1", "seed": 0, "design_id": "auto", "fields": ["displacement"],
        "formats": ["parquet", "zarr"], "time_limit": 60.0,
    }  # fmt: skip
    return check_request([str(folder / "a"), str(folder / "b")], str(folder / out), **(options | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ids that run against the order of the folders, sizes that differ from case to case, and some to be rejected."""
    tmp_path = tmp_path_factory.mktemp("forecast")
    for i in range(20):
        cell = (4.0, 1.0, 1.0) if i % 4 == 0 else (1.0, 1.0, 1.0)
        part = Part(f"{900 - i}_11b839a{i:x}_1"[:14], shape=(4 + i, 7, 6), cell=cell, clearance=50.0 + i)
        write_part(tmp_path / ("a" if i < 10 else "b"), part)
    return tmp_path


def size_of(*paths: Path) -> int:
    return sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())


@dataclass(frozen=True)
class Planned:
    """A forecast with what its trial stored, and the build."""

    told: Forecast
    least_clearances: dict[str, float]
    left_behind: bool
    records: tuple[CaseRecord, ...]


@pytest.fixture(scope="module")
def planned(sources: Path) -> Planned:
    stored: dict[str, float] = {}
    original = pipelines.building.forecast.write_staged_shard

    def look(task: pipelines.building.forecast.ShardTask) -> object:
        result = original(task)
        assert not result.failures
        for case in task.plan.cases:
            stored[case.record.case_id] = float(load_reductions(task.measured, case.ref)[0].min())
        return result

    asked = asked_for(sources)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines.building.forecast, "write_staged_shard", look)
        told = forecast(asked, SERIAL)
    left_behind = (sources / "out").exists()
    return Planned(told, stored, left_behind, tuple(run_build(asked)))


def test_what_is_told_is_what_a_build_takes(sources: Path, planned: Planned) -> None:
    told, records = planned.told, planned.records
    assert not planned.left_behind
    assert told.cases == 20
    assert told.sampled == 5
    kept = sum(record.status == "kept" for record in records) / len(records)
    assert told.kept == pytest.approx(kept, abs=0.25)
    data = size_of(sources / "out" / "data", sources / "out" / "lpbf.zarr")
    assert 0.5 * data < told.data_bytes < 2 * data
    assert 0.6 * size_of(sources / "out" / ".build") < told.workspace_bytes < 1.6 * size_of(sources / "out" / ".build")
    assert told.seconds > 0


def test_reductions_in_a_plan_are_those_of_their_cases(planned: Planned) -> None:
    """What the trial would store is what a build stores."""
    clearances = {r.case_id: r.measures.recoater_clearance_min for r in planned.records if r.measures is not None}
    stored = planned.least_clearances
    assert len(stored) >= 3
    assert stored == {case_id: pytest.approx(clearances[case_id]) for case_id in stored}


def test_where_nothing_is_kept_there_is_no_data_set(sources: Path) -> None:
    told = forecast(asked_for(sources, filters=Filters(max_points=1), out="none"), SERIAL)
    assert not (sources / "none").exists()
    assert (told.kept, told.data_bytes) == (0.0, 0.0)
    assert told.workspace_bytes > 0


def test_the_command_tells_and_does_nothing(sources: Path) -> None:
    before = sorted(sources.rglob("*"))
    words = ["--src", str(sources / "a"), "--out", str(sources / "new"), "--plan", "--workers", "0"]
    done = run_here("pipelines.build", *words)
    assert done.returncode == 0, done.stderr
    assert "nothing was done" in done.stdout
    assert "10 in 10 folders and archives" in done.stdout
    assert sorted(sources.rglob("*")) == before
