"""Intervals by split conformal prediction: their coverage, their widths against constant ones, files and output."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import meshio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare_model.checkpoints.files import WEIGHTS_NAME
from flare_model.checkpoints.surrogate import from_pretrained
from flare_model.data.intervals import (
    INTERVALS_NAME,
    LARGE_PART_POINTS,
    ColumnInterval,
    Intervals,
    part_scale,
    read_intervals,
    regressors,
    write_intervals,
)
from flare_model.data.normalisation import Normalisation
from flare_model.data.splits import Split
from flare_model.evaluate import evaluate
from flare_model.judging.conformal import (
    PartResiduals,
    calibrate,
    conformal_quantile,
    coverage,
    min_designs,
    part_residuals,
)
from flare_model.judging.interval_calibration import (
    families_of,
    read_families,
    validation_collector,
    validation_intervals,
)
from flare_model.judging.judge import interference_of, judge
from flare_model.predict import predict
from lpbf_data.durable import sha256_of_file
from lpbf_data.errors import LpbfError, SchemaError, StoreError
from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest, encode_manifest
from pipelines.build import build
from tests.flare_model.flare_support import run_training, write_cases

NORM = Normalisation(target_mean=(0.0, 80.0), target_std=(0.1, 20.0))
COLUMNS = ("displacement_z", "build_clearance_min")


def random_parts(count: int, seed: int, *, bodies: int = 1, alike: bool = False) -> list[PartResiduals]:
    """Parts with errors of a tenth of their displacements, which range over a factor of 50, or with equal errors."""
    draw, found = np.random.default_rng(seed), []
    for number in range(count):
        size, points = float(np.exp(draw.uniform(-4, 0))), draw.uniform(0, 20, (int(draw.integers(20, 90)), 3))
        known = np.stack([size * np.sin(points[:, 0]), 80 + 20 * size * np.cos(points[:, 2])], axis=1)
        error = 0.1 * (0.2 if alike else size * draw.uniform(0.5, 1.5))
        truth = known + error * draw.normal(size=known.shape) * [1.0, 20.0]
        name, design = f"{seed}-{number}", f"{seed}-{number // bodies}"
        found.append(part_residuals(name, design, COLUMNS, points, None, known, truth, NORM))
    return found


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=5), min_size=1, max_size=12), st.floats(0.05, 0.95))
def test_the_quantile_is_the_least_score_that_enough_designs_stay_below(
    scores: list[list[float]], level: float
) -> None:
    groups = [str(number // 2) for number in range(len(scores))]
    found = conformal_quantile([np.array(s) for s in scores], groups, level)

    def below(value: float) -> float:
        shares: dict[str, list[float]] = {}
        for part, group in zip(scores, groups, strict=True):
            shares.setdefault(group, []).append(float(np.mean(np.array(part) <= value)))
        return sum(np.mean(s) for s in shares.values()) / (len(shares) + 1)

    enough = [value for part in scores for value in part if below(value) >= level - 1e-8]
    assert found == (min(enough) if enough else np.inf)


def test_intervals_have_their_stated_coverage() -> None:
    """Over many draws of calibration and new parts, which are exchangeable: at least 90 %, and hardly more."""
    points, parts = [], []
    for seed in range(25):
        intervals = calibrate(random_parts(45, seed), 0.9, "")
        assert isinstance(intervals, Intervals)
        found = coverage(intervals, random_parts(60, 1000 + seed), {})["displacement_z"]
        points.append(found["points_inside"])
        parts.append(found["parts_inside"])
    for shares in (points, parts):
        error = np.std(shares) / np.sqrt(len(shares))
        assert 0.9 - 3 * error <= np.mean(shares) <= 0.9 + 1 / 31 + 3 * error


def test_a_scale_that_predicts_the_errors_makes_intervals_narrow() -> None:
    intervals = calibrate(random_parts(300, 1, bodies=2), 0.9, "")
    assert isinstance(intervals, Intervals)
    assert intervals.designs == 150
    found = coverage(intervals, random_parts(200, 2), {f"2-{i}": "arch" if i % 2 else "box" for i in range(150)})
    for column in COLUMNS:
        assert found[column]["holds"]
        assert found[column]["over_constant_width"] < 0.75
        assert sum(group["parts"] for group in found[column]["by_size"].values()) == 200
        assert {name: group["parts"] for name, group in found[column]["by_family"].items()} == {"arch": 75, "box": 75}
    # Errors of clearances in percent are twenty times those of displacements in mm.
    ratio = found["build_clearance_min"]["half_width"] / found["displacement_z"]["half_width"]
    assert ratio == pytest.approx(20, rel=0.3)


def test_a_scale_that_predicts_nothing_makes_intervals_no_wider() -> None:
    """Where errors are the same everywhere, so are the widths, up to what few designs can't rule out."""
    intervals = calibrate(random_parts(90, 3, alike=True), 0.9, "")
    assert isinstance(intervals, Intervals)
    found = coverage(intervals, random_parts(60, 4, alike=True), {})["displacement_z"]
    assert found["over_constant_width"] == pytest.approx(1, abs=0.05)
    assert found["half_width"] == pytest.approx(1.645 * 0.02, rel=0.05)  # 90 % of a normal distribution


def test_large_parts_have_intervals_of_their_own_where_enough_designs_are_large(tmp_path: Path) -> None:
    """Parts of 20,000 points, one in six, have three times the errors: of them 90 % have to lie inside as well."""

    def of_both_sizes(count: int, seed: int) -> list[PartResiduals]:
        found = random_parts(count, seed)
        return [
            replace(
                part,
                num_points=20_000 if number % 6 == 0 else 2_000,
                residuals={k: v * (3 if number % 6 == 0 else 1) for k, v in part.residuals.items()},
            )
            for number, part in enumerate(found)
        ]

    intervals = calibrate(of_both_sizes(400, 7), 0.9, "")
    assert isinstance(intervals, Intervals)
    assert (
        intervals.column_interval("displacement_z", 20_000).point
        > 2 * intervals.column_interval("displacement_z", 2_000).point
    )
    others = of_both_sizes(300, 8)
    for some in (
        [p for p in others if p.num_points > LARGE_PART_POINTS],
        [p for p in others if p.num_points <= LARGE_PART_POINTS],
    ):
        assert coverage(intervals, some, {})["displacement_z"]["points_inside"] == pytest.approx(0.9, abs=0.05)
    write_intervals(tmp_path, intervals)
    assert read_intervals(tmp_path) == intervals
    few = calibrate(of_both_sizes(100, 9), 0.9, "")
    assert isinstance(few, Intervals)
    assert few.large == {}
    assert few.column_interval("displacement_z", 20_000) == few.column_interval("displacement_z", 2_000)


def shrinking_parts(count: int, seed: int) -> list[PartResiduals]:
    """Parts that shrink towards their middle: which side moves farther depends on a hundredth of the displacement."""
    draw, found = np.random.default_rng(seed), []
    columns = ("displacement_x", "displacement_y", "displacement_z")
    norm = Normalisation(target_mean=(0.0,) * 3, target_std=(0.1,) * 3)
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, 4)] * 3), axis=-1).reshape(-1, 3)
    for number in range(count):
        known, truth = (-0.2 * points * (1 + 0.01 * draw.normal(size=points.shape)) for _ in range(2))
        found.append(
            part_residuals(f"{seed}-{number}", f"{seed}-{number}", columns, 10 * points, None, known, truth, norm)
        )
    return found


def test_an_extreme_of_uncertain_sign_has_the_interval_of_its_size() -> None:
    """In half of the parts the extreme has another sign than predicted: values differ by 0.4, their sizes by 0.01."""
    parts, others = shrinking_parts(60, 5), shrinking_parts(60, 6)
    intervals = calibrate(parts, 0.9, "")
    assert isinstance(intervals, Intervals)
    flipped = [np.subtract(*part.extremes["displacement_x"]) for part in parts]
    assert np.mean(np.abs(flipped) > 0.3) > 0.3
    found = coverage(intervals, others, {})
    for column in ("displacement_x", "displacement_z"):
        assert found[column]["part_half_width"] < 0.015
        assert found[column]["parts_inside"] > 0.8
        sideways = {"sideways"} if column.endswith("x") else set()
        assert found[column]["peaks_inside"].keys() == {"largest", "least"} | sideways
        assert min(found[column]["peaks_inside"].values()) > 0.8
        assert max(intervals.columns[column].peaks.values()) * 0.2 < 1
    clearance = calibrate(random_parts(60, 5), 0.9, "")
    assert isinstance(clearance, Intervals)
    assert clearance.columns["build_clearance_min"].peaks == {}


def test_intervals_need_enough_designs() -> None:
    assert calibrate(random_parts(8, 0), 0.9, "") == "90% intervals need 9 validation designs, and there are 8"
    few = calibrate(random_parts(9, 0), 0.9, "")
    assert isinstance(few, Intervals)
    assert few.columns["displacement_z"].coefficients == ()
    residuals = [np.abs(part.residuals["displacement_z"]) for part in random_parts(9, 0)]
    assert few.columns["displacement_z"].constant == pytest.approx(max(map(np.max, residuals)))
    assert [min_designs(level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]


@given(st.floats(0.01, 100), st.integers(0, 2**31))
def test_the_scale_does_not_depend_on_the_unit_of_predictions(factor: float, seed: int) -> None:
    """Predictions and standard deviations in another unit give the same inputs of the residual model."""
    draw = np.random.default_rng(seed)
    points, values = draw.uniform(0, 9, (7, 3)), draw.normal(size=(7, 1))
    plain = regressors(points, None, values, 0, Normalisation(target_std=(0.3,)))
    other = regressors(points, None, values * factor, 0, Normalisation(target_std=(0.3 * factor,)))
    np.testing.assert_allclose(plain, other, rtol=1e-9, atol=1e-9)
    assert np.isfinite(regressors(points, None, 0 * values, 0, Normalisation())).all()


def test_intervals_are_read_as_written_or_refused(tmp_path: Path) -> None:
    assert read_intervals(tmp_path) is None
    intervals = Intervals(
        0.9, "abc", {"displacement_z": ColumnInterval((0.1, 0.2), 1.0, 2.0, 0.05, {"least": 3.0})}, 40
    )
    write_intervals(tmp_path, intervals)
    assert read_intervals(tmp_path) == intervals
    content = json.loads((tmp_path / INTERVALS_NAME).read_text())
    for wrong in ({"intervals_version": 99}, {"columns": {"a": {"point": 1}}}, {"columns": []}, {"level": "much"}):
        (tmp_path / INTERVALS_NAME).write_text(json.dumps(content | wrong))
        with pytest.raises(SchemaError, match="doesn't hold the intervals"):
            read_intervals(tmp_path)
    content["columns"]["displacement_z"]["point"] = float("nan")
    (tmp_path / INTERVALS_NAME).write_text(json.dumps(content))
    with pytest.raises(SchemaError, match="isn't finite"):
        read_intervals(tmp_path)


def test_families_are_read_from_a_table(tmp_path: Path) -> None:
    (tmp_path / "families.csv").write_text("case_id,family\n1_a_1,arch\n")
    assert read_families(str(tmp_path / "families.csv")) == {"1_a_1": "arch"}
    assert read_families(None) == {}
    (tmp_path / "other.csv").write_text("case,family\n1,arch\n")
    for name in ("other.csv", "none.csv"):
        with pytest.raises(StoreError, match=r"--families .* case_id and family"):
            read_families(str(tmp_path / name))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two targets, evaluated on a data set of nine validation designs."""
    root = tmp_path_factory.mktemp("sure")
    data = str(root / "lpbf")
    cases = write_cases(root / "cases", 16)
    assert (
        build(
            [str(cases)], out=data, workers=0, time_limit=math.inf, splits="train=4,validation=9,test=3", no_report=True
        )
        == 0
    )
    run = run_training(data, root / "run", targets=["displacement", "build_clearance_min"], features=["solid_above"])
    assert evaluate(str(run), data, worst=0) == 0
    return run, data


def test_an_evaluation_writes_intervals_and_their_coverage(evaluated: tuple[Path, str]) -> None:
    run, _ = evaluated
    intervals = read_intervals(run)
    assert intervals is not None
    assert intervals == read_intervals(run / "evaluation/test")
    assert intervals.weights_sha256 == sha256_of_file(run / WEIGHTS_NAME)
    summary = json.loads((run / "evaluation/test/summary.json").read_text())
    columns = ["displacement_x", "displacement_y", "displacement_z", "build_clearance_min"]
    assert list(intervals.columns) == list(summary["intervals"]["columns"]) == columns
    both = summary["over_all"]["model"]
    scores = [summary["scores"][name]["model"]["relative_l2"] for name in ("displacement", "build_clearance_min")]
    assert both["relative_l2"] == pytest.approx(np.mean(scores))


def test_threshold_and_intervals_predict_the_validation_split_once(evaluated: tuple[Path, str]) -> None:
    run, data = evaluated
    surrogate, test, calls = from_pretrained(run), Split(data, "test"), []
    surrogate.register_forward_hook(lambda *_: calls.append(1))
    _, risks = judge(surrogate, test)
    seen = validation_collector(surrogate, test)
    assert seen is not None
    calls.clear()
    found = interference_of(surrogate, test, risks, 0.1, 0, seen)
    once = validation_intervals(surrogate, test, 0.9, "", seen)
    assert found is not None
    assert len(calls) == 9
    alone = validation_intervals(surrogate, test, 0.9, "", validation_collector(surrogate, test))
    assert once == alone


def test_families_are_read_from_the_manifest(evaluated: tuple[Path, str], tmp_path: Path) -> None:
    _, data = evaluated
    assert families_of(Split(data, "test")) == {}
    shutil.copytree(data, tmp_path / "named")
    manifest = decode_manifest((tmp_path / "named" / MANIFEST_NAME).read_bytes())
    records = [replace(r, run=replace(r.run, family=f"like {r.case_id}")) for r in manifest.records]
    (tmp_path / "named" / MANIFEST_NAME).write_bytes(encode_manifest(records, manifest.remarks))
    split = Split(str(tmp_path / "named"), "test")
    assert families_of(split) == {name: f"like {name}" for name in split.case_ids}


def test_a_prediction_comes_with_its_intervals(
    evaluated: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = evaluated
    assert predict(str(run), [data], out=str(tmp_path / "out"), pictures=False) == 0
    assert "extreme displacement_z" in capsys.readouterr().out
    intervals, surrogate = read_intervals(run), from_pretrained(run)
    assert intervals is not None
    told = json.loads((tmp_path / "out" / INTERVALS_NAME).read_text())
    assert told["level"] == 0.9
    assert len(told["parts"]) == 3
    for name, part in told["parts"].items():
        mesh = meshio.read(tmp_path / "out" / f"{name}.vtu")
        found, half = (mesh.point_data[f"displacement_{what}"] for what in ("predicted", "half_width"))
        clearance = mesh.point_data["build_clearance_min_predicted"]
        both = np.column_stack([found, clearance])
        # Of so few designs no residual model is fitted: it has no coefficients.
        assert intervals.columns["displacement_z"].coefficients == ()
        inputs = regressors(mesh.points, None, both, 2, surrogate.usage.normalisation)
        wanted = intervals.columns["displacement_z"].point * intervals.scales("displacement_z", inputs)
        np.testing.assert_allclose(half[:, 2], wanted, rtol=1e-5)
        assert part["displacement_z"]["unit"] == "µm"
        extreme = found[np.argmax(np.abs(found[:, 2])), 2]
        assert part["displacement_z"]["extreme"] == pytest.approx(1000 * extreme, rel=1e-5)
        assert part["displacement_z"]["half_width"] == pytest.approx(
            1000 * intervals.columns["displacement_z"].part * part_scale(intervals.scales("displacement_z", inputs))
        )
        assert part["build_clearance_min"]["extreme"] == pytest.approx(clearance.min(), rel=1e-6)


def test_intervals_of_other_weights_are_left_out_with_a_warning(
    evaluated: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = evaluated
    other = tmp_path / "run"
    other.mkdir()
    for name in (WEIGHTS_NAME, "config.json", INTERVALS_NAME):
        shutil.copy(run / name, other / name)
    content = json.loads((other / INTERVALS_NAME).read_text())
    (other / INTERVALS_NAME).write_text(json.dumps(content | {"weights_sha256": "0" * 64}))
    assert predict(str(other), [data], out=str(tmp_path / "out"), pictures=False) == 0
    assert "are of other weights, and are left out" in capsys.readouterr().err
    assert not (tmp_path / "out" / INTERVALS_NAME).exists()


def test_the_reason_for_missing_intervals_is_printed(
    evaluated: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = evaluated
    evaluate(str(run), data, split="validation", out=str(tmp_path / "validation"), worst=0)
    assert "no intervals: the validation split, from which they come, is the one" in capsys.readouterr().out
    evaluate(str(run), data, coverage=0.95, out=str(tmp_path / "more"), worst=0)
    assert "no intervals: 95% intervals need 19 validation designs, and there are 9" in capsys.readouterr().out
    with pytest.raises(LpbfError, match="--coverage must lie between 0 and 1"):
        evaluate(str(run), data, coverage=1.0)
