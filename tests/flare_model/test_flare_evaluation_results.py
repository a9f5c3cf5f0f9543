"""What an evaluation writes and prints: files that belong together, pictures drawn from them, tables and notes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from flare_model.data.splits import Split
from flare_model.evaluate import evaluate
from flare_model.judging import judge as judging
from flare_model.judging.tables import show
from pipelines.build import build
from tests.netfabb_cases import Part, write_part


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.usefixtures("drawn_charts")
def test_pictures_are_drawn_from_stored_results(
    box_dataset: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = str(trained_run), tmp_path / "kept"
    evaluate(run, box_dataset, worst=2, out=str(tmp_path / "whole"))
    whole = pictures(tmp_path / "whole")
    assert len([name for name in whole if name.startswith("worst/")]) == 2
    evaluate(run, box_dataset, worst=0, out=str(out))
    hits = {record.measures.recoater_interference for record in Split(box_dataset, "test").records.values()}
    curves = {"interference.png"} if len(hits) == 2 else set()
    assert pictures(out).keys() == {"displacement_z_relative_l2.png", "displacement_z_error.png"} | curves

    def judge(*_: object) -> None:
        raise AssertionError("the split was judged again")

    monkeypatch.setattr(judging, "judge", judge)
    (out / "displacement_z_error.png").unlink()
    evaluate(run, box_dataset, worst=2, out=str(out))
    assert pictures(out) == whole
    rows = [r for r in pq.read_table(out / "cases.parquet").to_pylist() if r["predictor"] == "model"]
    worst = max(rows, key=lambda r: r["relative_l2"])["case_id"]
    evaluate(run, box_dataset, worst=1, out=str(out))
    assert [p.name for p in (out / "worst").iterdir()] == [f"displacement_z_{worst}.png"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("predictions.parquet", None),
        ("cases.parquet", b"another"),
        pytest.param("cases.parquet", None, marks=pytest.mark.slow),
        pytest.param("predictions.parquet", b"another", marks=pytest.mark.slow),
    ],
)
def test_missing_or_changed_results_are_computed_again(
    box_dataset: str, trained_run: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    evaluate(str(trained_run), box_dataset, worst=0, out=str(tmp_path))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    evaluate(str(trained_run), box_dataset, worst=0, out=str(tmp_path))
    assert (tmp_path / name).read_bytes() == whole


@pytest.fixture(scope="module")
def hit_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of ten parts, all of which the blade hits."""
    folder = tmp_path_factory.mktemp("hit")
    for number in range(10):
        cell = (6.0 + 0.1 * number, 6.0, 12.0)
        write_part(
            folder / "cases", Part(f"3000{number:02d}_11b839a{number}_1", shape=(2, 2, 2), cell=cell, clearance=60.0)
        )
    splits = "train=6,validation=2,test=2"
    build(
        [str(folder / "cases")], out=str(folder / "lpbf"), workers=0, time_limit=math.inf, splits=splits, no_report=True
    )
    return str(folder / "lpbf")


def test_another_data_set_is_noted_and_its_pictures_replace_the_old_ones(
    box_dataset: str, hit_dataset: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(str(trained_run), box_dataset, worst=2, out=str(tmp_path))
    (tmp_path / "mine.png").touch()
    assert "note: by its digest, this isn't the data set" not in capsys.readouterr().out
    evaluate(str(trained_run), hit_dataset, worst=1, out=str(tmp_path))
    said = capsys.readouterr().out
    assert (
        "note: by its digest, this isn't the data set that the model was trained on: its cases may have been trained on"
        in said
    )
    case_ids = Split(hit_dataset, "test").case_ids
    (drawn,) = (tmp_path / "worst").iterdir()
    assert drawn.stem.removeprefix("displacement_z_") in case_ids
    assert (tmp_path / "mine.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["trained_on_this_data"] is False


def test_the_reason_for_a_missing_threshold_is_printed(
    hit_dataset: str, box_dataset: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(str(trained_run), hit_dataset, worst=0, out=str(tmp_path / "hit"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("recoater interference")]
    assert "no part of the validation split is without interference" in line
    evaluate(str(trained_run), box_dataset, split="validation", worst=0, out=str(tmp_path / "validation"))
    assert "no threshold, and so no recall" in capsys.readouterr().out


def test_tables_fit_80_columns_and_notes_use_the_singular() -> None:
    rows = {
        "relative_l2": 0.12345, "relative_l2_median": 1.1, "published": 0.25, "mean_error": 1234.5,
        "p95_error": 12345.0, "max_error": 123456.0, "r2": -12.3456, "without_truth": 1,
    }  # fmt: skip
    summary = {
        "scores": {
            "von_mises_stress": {
                "model": rows,
                "zero": rows | {"relative_l2": 1.0},
                "mean": rows | {"relative_l2": 1.1},
            }
        },
        "trained_on_this_data": True,
        "interference": {
            "target": "displacement_z",
            "by_threshold": {"hits": 1, "found": 1, "clear": 1, "false_alarms": 1, "stated_false_alarm_rate": 0.125},
        },
    }
    file = io.StringIO()
    show(summary, "a/run on data", Console(file=file, width=80, soft_wrap=True))
    lines = file.getvalue().splitlines()
    table = lines[1:8]
    assert max(map(len, table)) <= 80
    heads = " ".join(" ".join(table[:3]).split())
    for word in ("relative", "published", "L2", "median", "figure", "largest", "R²", "MPa"):
        assert word in heads
    assert "…" not in heads
    assert "-12.3456" in table[4]
    assert lines[8].startswith("note: 1 case has no relative error")
    assert lines[9] == (
        "recoater interference from displacement_z, by a threshold from validation for at most 12.5 % false alarms: "
        "1 of 1 hit found, 1 false alarm in 1 part without one"
    )
    narrow = io.StringIO()
    show(summary, "a/run on data", Console(file=narrow, width=40, soft_wrap=True))
    assert narrow.getvalue() == file.getvalue()


@pytest.mark.parametrize(
    ("model", "zero", "mean", "said"),
    [(0.4, 1.0, 1.3, ""), (1.0, 1.0, 1.3, "predict zero"), (1.2, 1.0, 1.1, "predict zero and predict mean"),
     (None, None, None, "")],
)  # fmt: skip
def test_a_model_no_better_than_predicting_zero_is_noted(
    model: float | None, zero: float | None, mean: float | None, said: str
) -> None:
    names = ("relative_l2_median", "published", "mean_error", "p95_error", "max_error", "r2")
    rest = dict.fromkeys(names) | {"without_truth": 0}
    errors = {"model": model, "zero": zero, "mean": mean}
    scores = {name: rest | {"relative_l2": error} for name, error in errors.items()}
    summary = {"scores": {"displacement_z": scores}, "trained_on_this_data": True, "interference": None}
    file = io.StringIO()
    show(summary, "a/run on data", Console(file=file, width=200))
    assert file.getvalue().count("no better than") == bool(said)
    assert not said or f"at displacement_z the model is no better than {said}: " in file.getvalue()
