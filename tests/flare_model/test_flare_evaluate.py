"""Metrics against their formulas, evaluation against an independent computation, interference against counting."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flare_model import from_pretrained
from flare_model.checkpoints import hub as pretrained
from flare_model.checkpoints.files import WEIGHTS_NAME, read_checkpoint, write_checkpoint
from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.metrics import (
    RelativeL2,
    floor_of,
    has_truth,
    published_lpbf_error,
    relative_l2,
    relative_l2_loss,
)
from flare_model.data.splits import Split
from flare_model.evaluate import evaluate
from flare_model.judging import judge as judging
from flare_model.judging.interference import (
    HitScore,
    assess,
    choose_threshold,
    detect,
    detect_by_rule,
    ranking_quality,
    risk_target,
)
from flare_model.judging.scores import score_case, summarise
from flare_model.predict import predict
from flare_model.train import train
from flare_model.training.recipe import Recipe
from lpbf_data import load_dataset
from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.geometry.hexahedra import hex_edges
from lpbf_data.stores.predictions import PredictionFile
from pipelines.build import build
from pipelines.report import report
from pipelines.reporting.gallery_parts import KeptCases, judge_predictions
from tests.data_hub_server import serve_hub
from tests.data_support import make_case
from tests.flare_model.flare_support import TINY, write_cases
from tests.rounding import SINGLE

pytestmark = pytest.mark.numeric

# Predictions and truths are float32: the smaller their differences, the fewer correct digits these have.
NEAR = 2**8 * SINGLE

SMALL = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(2)), elements=st.floats(-100, 100, width=32))


def test_relative_error_is_a_ratio_of_norms_case_by_case() -> None:
    truth = torch.tensor([[3.0], [4.0], [1.0]])
    prediction = torch.tensor([[3.0], [5.0], [0.0]])
    assert relative_l2(prediction, truth, torch.tensor([0, 2, 3])).tolist() == pytest.approx([1 / 5, 1.0])


def test_the_published_figure_is_not_the_relative_error() -> None:
    """0.34213·‖ŷ - y‖ / ‖0.34213·y + 0.45099‖, from the numbers of one case."""
    truth, prediction = torch.tensor([[0.1], [-0.2]]), torch.tensor([[0.0], [0.0]])
    wanted = 0.34213 * math.hypot(0.1, 0.2) / math.hypot(0.34213 * 0.1 + 0.45099, 0.34213 * -0.2 + 0.45099)
    assert published_lpbf_error(prediction, truth, torch.tensor([0, 2])).item() == pytest.approx(wanted)
    assert relative_l2(prediction, truth, torch.tensor([0, 2])).item() == pytest.approx(1.0)


@given(SMALL, SMALL)
def test_the_relative_error_of_finite_numbers_is_never_nan(first: np.ndarray, second: np.ndarray) -> None:
    count = min(len(first), len(second))
    truth, prediction = torch.from_numpy(first[:count]), torch.from_numpy(second[:count])
    offsets = torch.tensor([0, count])
    error = relative_l2(prediction, truth, offsets).item()
    assert not math.isnan(error)
    if not truth.any():
        assert error == (math.inf if prediction.any() else 0)
    found = RelativeL2.of(prediction, truth, offsets)
    assert (found.cases, found.without_truth) == ((1, 0) if truth.any() else (0, 1))


def test_nan_in_a_prediction_gives_an_error_of_nan() -> None:
    values = torch.tensor([[1.0], [math.nan]])
    assert relative_l2(values, torch.ones(2, 1), torch.tensor([0, 2])).isnan().all()


def test_a_truth_of_rounding_noise_has_no_relative_error() -> None:
    """A solver leaves 1e-9 mm where nothing moves; an error of 20 µm would be a relative one of 20 million."""
    truth = torch.tensor([[0.1], [-0.2], [1e-9], [-1e-9]])
    prediction = (truth + 0.02).requires_grad_()
    offsets, floor = torch.tensor([0, 2, 4]), floor_of([0.1])
    assert has_truth(truth, offsets, floor).tolist() == [True, False]
    found = RelativeL2.of(prediction.detach(), truth, offsets, floor)
    assert (found.cases, found.without_truth) == (1, 1)
    wanted = math.hypot(0.02, 0.02) / math.hypot(0.1, 0.2)
    assert found.mean == pytest.approx(wanted, rel=NEAR)
    loss = relative_l2_loss(prediction, truth, offsets, floor)
    loss.backward()
    assert loss.item() == pytest.approx(wanted / 2, rel=NEAR)
    assert prediction.grad is not None
    assert prediction.grad[2:].abs().max() == 0
    assert prediction.grad[:2].abs().min() > 0
    nothing = torch.zeros(2, 1)
    relative_l2_loss(nothing.clone().requires_grad_(), nothing, torch.tensor([0, 2])).backward()
    (row,) = score_case("a", "displacement_z", "mm", truth[2:].numpy(), {"model": truth[:2].numpy()}, [0.0], floor)
    assert row.relative_l2 is None


def test_errors_of_batches_add_up() -> None:
    truth, prediction = torch.randn(9, 1), torch.randn(9, 1)
    whole = RelativeL2.of(prediction, truth, torch.tensor([0, 2, 5, 9]))
    parts = RelativeL2.of(prediction[:5], truth[:5], torch.tensor([0, 2, 5]))
    parts += RelativeL2.of(prediction[5:], truth[5:], torch.tensor([0, 4]))
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.cases == whole.cases == 3
    assert math.isnan(RelativeL2().mean)


def test_half_precision_is_summed_in_higher_precision() -> None:
    truth = torch.full((100_000, 1), 0.1, dtype=torch.bfloat16)
    assert relative_l2(truth * 2, truth, torch.tensor([0, 100_000])).item() == pytest.approx(1.0, rel=NEAR)


def test_scores_of_a_case_are_in_micrometres() -> None:
    truth = np.array([[0.1], [0.2], [0.3]], np.float32)
    (model, zero) = score_case("a", "displacement_z", "mm", truth, {"model": truth + 0.01, "zero": truth * 0}, [0.2])
    assert model.mean_error == pytest.approx(10, rel=NEAR)
    assert model.max_error == pytest.approx(10, rel=NEAR)
    assert zero.relative_l2 == pytest.approx(1)
    assert zero.squared_errors == pytest.approx((0.01 + 0.04 + 0.09) * 1e6, rel=NEAR)
    assert zero.squared_deviations == pytest.approx(0.02 * 1e6, rel=NEAR)
    assert zero.published is not None
    summary = summarise([model])
    assert summary.r2 == pytest.approx(1 - 3 * 0.01**2 / 0.02, rel=NEAR)
    assert summary.root_mean_square_error == pytest.approx(10, rel=NEAR)


def test_scores_of_a_vector_are_lengths_and_of_stresses_in_their_unit() -> None:
    truth = np.zeros((2, 3), np.float32)
    (row,) = score_case("a", "displacement", "mm", truth, {"model": truth + np.float32([0.003, 0, 0.004])}, [0.0] * 3)
    assert row.mean_error == pytest.approx(5, rel=NEAR)
    assert row.relative_l2 is None
    assert row.published is None
    (row,) = score_case(
        "a", "von_mises_stress", "MPa", np.ones((2, 1), np.float32), {"model": np.zeros((2, 1), "f4")}, [0.0]
    )
    assert row.mean_error == 1
    assert summarise([row]).without_truth == 0


@pytest.mark.usefixtures("drawn_charts")
def test_the_summary_is_what_an_independent_computation_gives(
    box_dataset: str, trained_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert evaluate(str(trained_run), box_dataset, worst=1) == 0
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
        assert found[name]["relative_l2"] == pytest.approx(np.mean(values), rel=NEAR)
    assert found["model"]["published"] == pytest.approx(np.mean(published), rel=NEAR)
    assert found["model"]["mean_error"] == pytest.approx(np.mean([v.mean() for v in lengths]), rel=NEAR)
    assert found["model"]["p95_error"] == pytest.approx(np.mean([np.quantile(v, 0.95) for v in lengths]), rel=NEAR)
    assert found["model"]["max_error"] == pytest.approx(max(v.max() for v in lengths), rel=NEAR)
    assert found["model"]["r2"] == pytest.approx(1 - squares / deviations, rel=NEAR)
    assert found["zero"]["relative_l2"] == pytest.approx(1.0)
    assert found["model"]["cases"] == 2
    rows = pq.read_table(trained_run / "evaluation/test/cases.parquet").to_pylist()
    assert len(rows) == 6
    assert {row["predictor"] for row in rows} == {"model", "zero", "mean"}
    assert "published" in said
    assert "predict zero" in said
    assert "note: by its digest, this isn't the data set" not in said
    for name in ("displacement_z_relative_l2.png", "displacement_z_error.png"):
        assert (trained_run / "evaluation/test" / name).read_bytes().startswith(b"\x89PNG")
    worst = max((r for r in rows if r["predictor"] == "model"), key=lambda r: r["relative_l2"])["case_id"]
    assert (trained_run / f"evaluation/test/worst/displacement_z_{worst}.png").stat().st_size > 5000


def test_the_report_shows_what_was_evaluated(box_dataset: str, tmp_path: Path) -> None:
    """From training to the report's page: the report reads the file that `evaluate` writes."""
    targets = ["von_mises_stress", "displacement"]
    train(box_dataset, out=str(tmp_path / "run"), model=TINY, targets=targets, recipe=Recipe(epochs=1))
    evaluate(str(tmp_path / "run"), box_dataset, worst=0)
    path = tmp_path / "run/evaluation/test/predictions.parquet"
    assert report(box_dataset, predictions=str(path), out=str(tmp_path / "page.html")) == 0
    kept = PredictionFile(path)
    assert kept.columns == ("von_mises_stress", "displacement_x", "displacement_y", "displacement_z")
    surrogate = from_pretrained(tmp_path / "run")
    for sample in load_dataset(box_dataset, "test", format="torch", fields=["displacement"]):
        with torch.no_grad():
            expected = surrogate(sample["pos"]).numpy()
        found = kept.read(sample["case_id"], len(expected))
        bounds = NEAR * np.abs(expected).max(axis=0)
        assert (np.abs(np.stack(list(found.values()), axis=1) - expected) <= bounds).all()
    summary = json.loads((tmp_path / "run/evaluation/test/summary.json").read_text())
    deviations = judge_predictions(KeptCases(DatasetFolder(box_dataset)), kept)
    stress = [d.relative_l2 for d in deviations if d.column == "von_mises_stress" and d.relative_l2 is not None]
    assert np.mean(stress) == pytest.approx(summary["scores"]["von_mises_stress"]["model"]["relative_l2"], rel=NEAR)
    assert f"von_mises_stress {np.mean(stress):.4f}" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_test_split_is_read_once(
    box_dataset: str,
    trained_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    evaluate(str(trained_run), box_dataset, worst=0, out=str(tmp_path / "kept"))
    first, said = capsys.readouterr()
    assert "already" not in said

    def judge(*_: object) -> None:
        raise AssertionError("the split was read again")

    monkeypatch.setattr(judging, "judge", judge)
    evaluate(str(trained_run), box_dataset, worst=0, out=str(tmp_path / "kept"))
    again, said = capsys.readouterr()
    assert again == first
    assert f"{tmp_path / 'kept'} holds this evaluation already; only pictures that are missing are drawn\n" in said
    with pytest.raises(AssertionError, match="read again"):
        evaluate(str(trained_run), box_dataset, worst=0, out=str(tmp_path / "kept"), false_alarms=0.5)


def test_the_test_split_is_read_once_under_any_name_of_the_checkpoint(
    box_dataset: str, trained_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As an id on the hub, as a folder, and as the same folder spelled otherwise; other weights are evaluated anew."""
    copy, kept = tmp_path / "copy", str(tmp_path / "kept")
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(trained_run / name, copy)
    read: list[str] = []

    def judge(surrogate: Surrogate, split: Split, *rest: Any) -> Any:
        read.append(split.name)
        return judge_itself(surrogate, split, *rest)

    judge_itself = judging.judge
    monkeypatch.setattr(judging, "judge", judge)
    monkeypatch.setattr(pretrained, "snapshot_download", lambda name, **_: {"someone/model": str(copy)}[name])
    for name in ("someone/model", "someone/model", str(trained_run), f"{trained_run}/../{trained_run.name}/"):
        evaluate(name, box_dataset, worst=0, out=kept)
        assert read.count("test") == 1
    weights, description = read_checkpoint(copy)
    write_checkpoint(copy, {name: values + 0.01 for name, values in weights.items()}, description)
    evaluate("someone/model", box_dataset, worst=0, out=kept)
    assert read.count("test") == 2


def test_several_seeds_and_targets_are_summarised_with_interference(
    box_dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = ["build_clearance_min", "displacement"]
    train(box_dataset, out=str(tmp_path), model=TINY, targets=targets, seed=[0, 1], recipe=Recipe(epochs=1))
    capsys.readouterr()
    evaluate(str(tmp_path), box_dataset, worst=0)
    said = capsys.readouterr().out
    summaries = [json.loads((tmp_path / f"seed-{s}/evaluation/test/summary.json").read_text()) for s in (0, 1)]
    values = [s["scores"]["displacement"]["model"]["relative_l2"] for s in summaries]
    assert f"displacement, relative_l2: {np.mean(values):.4g} ± {np.std(values, ddof=1):.2g} over 2 seeds" in said
    seeds = json.loads((tmp_path / "evaluation/test/seeds.json").read_text())
    found = seeds["scores"]["displacement"]
    assert found["relative_l2"]["mean"] == pytest.approx(np.mean(values))
    assert found["relative_l2"]["standard_deviation"] == pytest.approx(np.std(values, ddof=1))
    assert found["published"] is None
    assert [Path(name).name for name in seeds["seeds"]] == ["seed-0", "seed-1"]
    assert "validation" in json.loads((tmp_path / "seeds.json").read_text())  # the file of the training is unchanged
    evaluate(str(tmp_path), box_dataset, worst=0, out=str(tmp_path / "elsewhere"))
    assert json.loads((tmp_path / "elsewhere/seeds.json").read_text()) == seeds
    assert summaries[0]["interference"]["target"] == "build_clearance_min"
    assert "by the solver's rule" in said
    rule = summaries[0]["interference"]["by_the_solvers_rule"]
    records = load_dataset(box_dataset, "test").samples.tensors.reader
    hits = [r.measures.recoater_interference for r in Split(box_dataset, "test").records.values()]
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


def hit_scores(*rows: tuple[float, bool]) -> list[HitScore]:
    return [HitScore(str(i), score, hit, None) for i, (score, hit) in enumerate(rows)]


def test_detection_counts_hits_and_false_alarms() -> None:
    found = detect(hit_scores((1, True), (3, True), (2, False), (0, False), (5, False)), 1.5)
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
    seen = hit_scores(*rows)
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
    assert ranking_quality(hit_scores((1, False), (2, True), (2, False), (0, True))) == pytest.approx((1 + 0.5) / 4)
    assert ranking_quality(hit_scores((1, True))) is None


def test_a_data_set_without_the_targets_field_is_refused(trained_run: Path, tmp_path: Path) -> None:
    data = str(tmp_path / "lpbf")
    build(
        [str(write_cases(tmp_path / "cases", 3))],
        out=data,
        workers=0,
        time_limit=math.inf,
        splits="train=1",
        fields=["temperature"],
        no_report=True,
    )
    with pytest.raises(UsageError, match="no field 'displacement'"):
        evaluate(str(trained_run), data, split="train")


def write_published(folder: Path) -> str:
    """Write five parts in the layout of the published data set: an index in Parquet, and a compressed npz a case."""
    (folder / "data").mkdir(parents=True)
    for split, seeds in (("train", range(3)), ("test", range(3, 5))):
        (folder / split).mkdir()
        rows = []
        for seed in seeds:
            case = make_case(seed, case_id=f"c{seed}")
            edges, name = hex_edges(case.cells), f"{split}/c{seed}.npz"
            fields = {"temp": "temperature", "vmstr": "von_mises_stress"}
            np.savez_compressed(
                folder / name,
                pos=case.points,
                edge_index=edges,
                elems=case.cells,
                disp=case.fields["displacement"],
                **{short: case.fields[long][:, None] for short, long in fields.items()},
            )
            sizes = {"num_nodes": case.num_points, "num_edges": edges.shape[1]}
            rows.append({"case_id": f"c{seed}", "file": name, **sizes, "metadata": "{}"})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"data/{split}-00000-of-00001.parquet")
    return str(folder)


def test_the_published_layout_is_trained_on_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_published(tmp_path / "hub")
    assert train(data, out=str(tmp_path / "run"), model=TINY, recipe=Recipe(epochs=2)) == 0
    assert "no validation split" in capsys.readouterr().out
    surrogate = from_pretrained(tmp_path / "run")
    assert surrogate.usage.envelope is None
    truth = np.concatenate([make_case(seed).fields["displacement"][:, 2] for seed in range(3)])
    assert surrogate.usage.normalisation.target_mean[0] == pytest.approx(float(truth.astype(float).mean()), rel=NEAR)
    capsys.readouterr()
    assert evaluate(str(tmp_path / "run"), data, worst=1) == 0
    assert "note: by its digest, this isn't the data set" not in capsys.readouterr().out
    assert len(list((tmp_path / "run/evaluation/test/worst").glob("displacement_z_c*.png"))) == 1
    summary = json.loads((tmp_path / "run/evaluation/test/summary.json").read_text())
    assert summary["scores"]["displacement_z"]["zero"]["relative_l2"] == pytest.approx(1)
    assert summary["interference"] is None
    with serve_hub({"user/published": {"main": Path(data)}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        assert evaluate(str(tmp_path / "run"), "user/published", worst=1, out=str(tmp_path / "hub-out")) == 0
    assert len(list((tmp_path / "hub-out/worst").glob("displacement_z_c*.png"))) == 1


def test_a_prediction_repeats_the_verdict_on_its_model_and_why_it_has_no_intervals(
    box_dataset: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    for name in (WEIGHTS_NAME, "config.json"):
        shutil.copy(trained_run / name, run / name)

    def doubts() -> list[str]:
        capsys.readouterr()
        assert predict(str(run), [box_dataset], out=str(out), pictures=False) == 0
        printed = [line.removeprefix("warning: ") for line in capsys.readouterr().err.splitlines()]
        told: list[str] = json.loads((out / "answers.json").read_text())["model"]["doubts"]
        assert printed == told
        return told

    unknown = "how sure predictions are isn't known: "
    makes = "python -m flare_model.evaluate makes it, from a data set with a validation split"
    assert doubts() == [f"{unknown}the checkpoint has no intervals.json; {makes}"]
    assert evaluate(str(run), box_dataset, worst=0) == 0
    few = f"{unknown}90% intervals need 9 validation designs, and there are 2"
    assert doubts() == [few]
    path = run / "evaluation/test/summary.json"
    summary = json.loads(path.read_text())
    summary["scores"]["displacement_z"]["model"]["relative_l2"] = 1.0
    summary["scores"]["displacement_z"]["mean"]["relative_l2"] = 0.9
    path.write_text(json.dumps(summary))
    said = "by its evaluation on the test split, the model is no better than predict zero and predict mean at"
    assert doubts() == [f"{said} displacement_z: train it longer, or on more cases", few]
    summary["identity"]["weights_sha256"] = "0" * 64  # an evaluation of other weights says nothing of these
    path.write_text(json.dumps(summary))
    assert doubts() == [f"{unknown}the checkpoint has no intervals.json; {makes}"]
