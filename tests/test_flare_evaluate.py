"""Metrics against their formulas, evaluation against an independent computation, interference against counting."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flare_model import evaluate as evaluate_module
from flare_model import from_pretrained
from flare_model.evaluate import evaluate
from flare_model.interference import (
    Risk,
    assess,
    choose_threshold,
    detect,
    detect_by_rule,
    ranking_quality,
    risk_target,
)
from flare_model.metrics import RelativeL2, published_lpbf_error, relative_l2
from flare_model.recipe import Recipe
from flare_model.scores import score_case, summarise
from flare_model.train import train
from lpbf_data import load_dataset
from lpbf_data.errors import LpbfError, UsageError
from tests.flare_support import TINY

pytest_plugins = ["tests.flare_fixtures"]
pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(2)), elements=st.floats(-100, 100, width=32))


def test_relative_error_is_a_ratio_of_norms_case_by_case() -> None:
    truth = torch.tensor([[3.0], [4.0], [1.0]])
    prediction = torch.tensor([[3.0], [5.0], [0.0]])
    assert relative_l2(prediction, truth, torch.tensor([0, 2, 3])).tolist() == pytest.approx([1 / 5, 1.0])


def test_the_published_figure_is_another_one() -> None:
    """0.34213·‖ŷ - y‖ / ‖0.34213·y + 0.45099‖, from the numbers of one case."""
    truth, prediction = torch.tensor([[0.1], [-0.2]]), torch.tensor([[0.0], [0.0]])
    wanted = 0.34213 * math.hypot(0.1, 0.2) / math.hypot(0.34213 * 0.1 + 0.45099, 0.34213 * -0.2 + 0.45099)
    assert published_lpbf_error(prediction, truth, torch.tensor([0, 2])).item() == pytest.approx(wanted)
    assert relative_l2(prediction, truth, torch.tensor([0, 2])).item() == pytest.approx(1.0)


@given(SMALL, SMALL)
def test_an_error_is_never_no_number(first: np.ndarray, second: np.ndarray) -> None:
    count = min(len(first), len(second))
    truth, prediction = torch.from_numpy(first[:count]), torch.from_numpy(second[:count])
    offsets = torch.tensor([0, count])
    error = relative_l2(prediction, truth, offsets).item()
    assert not math.isnan(error)
    if not truth.any():
        assert error == (math.inf if prediction.any() else 0)
    found = RelativeL2.of(prediction, truth, offsets)
    assert (found.cases, found.without_truth) == ((1, 0) if float(truth.norm()) > 0 else (0, 1))


def test_a_number_that_is_none_is_not_hidden() -> None:
    values = torch.tensor([[1.0], [math.nan]])
    assert relative_l2(values, torch.ones(2, 1), torch.tensor([0, 2])).isnan().all()


def test_errors_of_batches_add_up() -> None:
    truth, prediction = torch.randn(9, 1), torch.randn(9, 1)
    whole = RelativeL2.of(prediction, truth, torch.tensor([0, 2, 5, 9]))
    parts = RelativeL2.of(prediction[:5], truth[:5], torch.tensor([0, 2, 5]))
    parts += RelativeL2.of(prediction[5:], truth[5:], torch.tensor([0, 4]))
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.cases == whole.cases == 3
    assert math.isnan(RelativeL2().mean)


def test_half_precision_is_summed_in_full() -> None:
    truth = torch.full((100_000, 1), 0.1, dtype=torch.bfloat16)
    assert relative_l2(truth * 2, truth, torch.tensor([0, 100_000])).item() == pytest.approx(1.0, rel=1e-3)


def test_scores_of_a_case_are_in_micrometres() -> None:
    truth = np.array([[0.1], [0.2], [0.3]], np.float32)
    (model, zero) = score_case("a", "displacement_z", "mm", truth, {"model": truth + 0.01, "zero": truth * 0}, [0.2])
    assert model.mean_error == pytest.approx(10, rel=1e-4)
    assert model.max_error == pytest.approx(10, rel=1e-4)
    assert zero.relative_l2 == pytest.approx(1)
    assert zero.squared_errors == pytest.approx((0.01 + 0.04 + 0.09) * 1e6, rel=1e-5)
    assert zero.squared_deviations == pytest.approx(0.02 * 1e6, rel=1e-5)
    assert zero.published is not None
    summary = summarise([model])
    assert summary.r2 == pytest.approx(1 - 3 * 0.01**2 / 0.02, rel=1e-4)
    assert summary.root_mean_square_error == pytest.approx(10, rel=1e-4)


def test_scores_of_a_vector_are_lengths_and_of_stresses_in_their_unit() -> None:
    truth = np.zeros((2, 3), np.float32)
    (row,) = score_case("a", "displacement", "mm", truth, {"model": truth + np.float32([0.003, 0, 0.004])}, [0.0] * 3)
    assert row.mean_error == pytest.approx(5, rel=1e-4)
    assert row.relative_l2 is None
    assert row.published is None
    (row,) = score_case(
        "a", "von_mises_stress", "MPa", np.ones((2, 1), np.float32), {"model": np.zeros((2, 1), "f4")}, [0.0]
    )
    assert row.mean_error == 1
    assert summarise([row]).without_truth == 0


def test_the_summary_is_what_an_independent_computation_gives(
    box_dataset: str, trained_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert evaluate(str(trained_run), box_dataset) == 0
    said = capsys.readouterr().out
    summary = json.loads((trained_run / "evaluation/test/summary.json").read_text())
    surrogate = from_pretrained(trained_run)
    mean = surrogate.usage.normalisation.target_mean[0]
    errors: dict[str, list[float]] = {"model": [], "zero": [], "mean": []}
    published, lengths, squares, deviations = [], [], 0.0, 0.0
    for sample in load_dataset(box_dataset, "test", format="torch"):
        truth = sample["y"].double().numpy()[:, 0]
        with torch.no_grad():
            prediction = surrogate(sample["pos"]).double().numpy()[:, 0]
        for name, values in (("model", prediction), ("zero", 0 * truth), ("mean", mean + 0 * truth)):
            errors[name].append(np.linalg.norm(values - truth) / np.linalg.norm(truth))
        published.append(0.34213 * np.linalg.norm(prediction - truth) / np.linalg.norm(0.34213 * truth + 0.45099))
        lengths.append(np.abs(prediction - truth) * 1000)
        squares += ((prediction - truth) ** 2).sum()
        deviations += ((truth - mean) ** 2).sum()
    found = summary["scores"]["displacement_z"]
    for name, values in errors.items():
        assert found[name]["relative_l2"] == pytest.approx(np.mean(values), rel=1e-5)
    assert found["model"]["published"] == pytest.approx(np.mean(published), rel=1e-5)
    assert found["model"]["mean_error"] == pytest.approx(np.mean([v.mean() for v in lengths]), rel=1e-4)
    assert found["model"]["p95_error"] == pytest.approx(np.mean([np.quantile(v, 0.95) for v in lengths]), rel=1e-4)
    assert found["model"]["max_error"] == pytest.approx(max(v.max() for v in lengths), rel=1e-4)
    assert found["model"]["r2"] == pytest.approx(1 - squares / deviations, rel=1e-4)
    assert found["zero"]["relative_l2"] == pytest.approx(1.0)
    assert found["model"]["cases"] == 2
    rows = pq.read_table(trained_run / "evaluation/test/cases.parquet").to_pylist()
    assert len(rows) == 6
    assert {row["predictor"] for row in rows} == {"model", "zero", "mean"}
    assert "published figure" in said
    assert "predict zero" in said
    for name in ("displacement_z_relative_l2.png", "displacement_z_error.png"):
        assert (trained_run / "evaluation/test" / name).read_bytes().startswith(b"\x89PNG")


def test_the_test_split_is_read_once(
    box_dataset: str,
    trained_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    evaluate(str(trained_run), box_dataset, out=str(tmp_path / "kept"))
    first = capsys.readouterr().out

    def judge(*_: object) -> None:
        raise AssertionError("the split was read again")

    monkeypatch.setattr(evaluate_module, "judge", judge)
    evaluate(str(trained_run), box_dataset, out=str(tmp_path / "kept"))
    assert capsys.readouterr().out == first
    with pytest.raises(AssertionError, match="read again"):
        evaluate(str(trained_run), box_dataset, out=str(tmp_path / "kept"), false_alarms=0.5)


def test_several_seeds_and_targets_and_the_risk_field(
    box_dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = ["build_clearance_min", "displacement"]
    train(box_dataset, out=str(tmp_path), model=TINY, targets=targets, seed=[0, 1], recipe=Recipe(epochs=1))
    capsys.readouterr()
    evaluate(str(tmp_path), box_dataset)
    said = capsys.readouterr().out
    summaries = [json.loads((tmp_path / f"seed-{s}/evaluation/test/summary.json").read_text()) for s in (0, 1)]
    values = [s["scores"]["displacement"]["model"]["relative_l2"] for s in summaries]
    assert f"displacement, relative_l2: {np.mean(values):.4g} ± {np.std(values, ddof=1):.2g} over 2 seeds" in said
    assert summaries[0]["interference"]["target"] == "build_clearance_min"
    assert "by the solver's rule" in said
    rule = summaries[0]["interference"]["by_the_solvers_rule"]
    records = load_dataset(box_dataset, "test").samples.tensors.reader
    hits = [r.measures.recoater_interference for r in evaluate_module.Split(box_dataset, "test").records.values()]
    assert len(records) == len(hits) == rule["hits"] + rule["clear"]
    assert rule["hits"] == sum(hits)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "nowhere"}, "no split 'nowhere'"),
        ({"checkpoint": "/nonexistent"}, "neither a folder"),
        ({"data": "/nonexistent"}, "nonexistent"),
        ({"false_alarms": 1.5}, "--false_alarms"),
        ({"worst": -1}, "--worst"),
        ({"accelerator": "tpu"}, "--accelerator"),
    ],
)
def test_impossible_requests_are_refused(
    box_dataset: str, trained_run: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    request = {"checkpoint": str(trained_run), "data": box_dataset, "out": str(tmp_path / "out")} | options
    with pytest.raises(LpbfError, match=words):
        evaluate(**request)
    assert not (tmp_path / "out").exists()


def risks(*rows: tuple[float, bool]) -> list[Risk]:
    return [Risk(str(i), score, hit, None) for i, (score, hit) in enumerate(rows)]


def test_detection_counts_hits_and_false_alarms() -> None:
    found = detect(risks((1, True), (3, True), (2, False), (0, False), (5, False)), 1.5)
    assert (found.hits, found.found, found.clear, found.false_alarms) == (2, 1, 3, 2)
    assert found.recall == 0.5
    assert found.false_alarm_rate == pytest.approx(2 / 3)
    nothing = detect([], 0.0)
    assert nothing.recall is None
    assert nothing.false_alarm_rate is None


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1), st.floats(0, 0.99))
def test_a_threshold_keeps_the_rate_of_false_alarms_and_is_the_lowest(
    rows: list[tuple[float, bool]], rate: float
) -> None:
    seen = risks(*rows)
    threshold = choose_threshold(seen, rate)
    found = detect(seen, threshold)
    assert found.false_alarms <= rate * found.clear + 1e-6
    lower = [r.score for r in seen if not r.hit and r.score < threshold]
    if lower and math.isfinite(threshold):
        assert detect(seen, max(lower)).false_alarms > rate * found.clear - 1e-6


def test_the_solvers_rule_is_a_clearance_below_the_tolerance() -> None:
    prediction = np.array([[90.0], [79.0]], np.float32)
    assert assess("a", "build_clearance_min", prediction, hit=True, tolerance=None).by_rule is True
    assert assess("a", "build_clearance_min", prediction, hit=True, tolerance=70.0).by_rule is False
    up = assess("a", "displacement", np.array([[9, 9, 0.1], [0, 0, 0.3]], np.float32), hit=False, tolerance=None)
    assert up.score == pytest.approx(0.3)
    assert up.by_rule is None
    assert detect_by_rule([up]) is None
    assert risk_target(["temperature"]) is None
    assert risk_target(["displacement_z", "build_clearance_min"]) == "build_clearance_min"


def test_ranking_quality_counts_pairs() -> None:
    assert ranking_quality(risks((1, False), (2, True), (2, False), (0, True))) == pytest.approx((1 + 0.5) / 4)
    assert ranking_quality(risks((1, True))) is None


def test_a_checkpoint_of_another_data_set_says_what_is_missing(trained_run: Path, tmp_path: Path) -> None:
    from pipelines.build import build
    from tests.flare_support import write_cases

    data = str(tmp_path / "lpbf")
    build([str(write_cases(tmp_path / "cases", 3))], out=data, workers=0, splits="train=1", fields=["temperature"])
    with pytest.raises(UsageError, match="no field 'displacement'"):
        evaluate(str(trained_run), data, split="train")
