"""Tables and figures that the benchmarks of the paper's figures make from measurements, and which they measure."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.benchmarks import darcy_league, darcy_runs, paper_ablations, paper_scaling, paper_spectrum
from tests.benchmarks.paper_scaling import Layer, Measurement


def test_scaling_measures_what_is_new_and_leaves_out_what_takes_too_long(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    words = ["--out", str(out), "--accelerator", "cpu", "--only", "vanilla", "physics", "--precisions", "fp32"]
    paper_scaling.run(paper_scaling.parse([*words, "--least", "64", "--most", "64"]))
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {"fp32/vanilla-0/64", "fp32/physics-64/64", "fp32/physics-256/64"}
    assert all(row["ms"] > 0 for row in rows.values())
    paper_scaling.run(paper_scaling.parse([*words, "--least", "64", "--most", "256", "--longest", "0"]))
    again = json.loads(out.read_text())
    assert {key: again["rows"][key] for key in rows} == rows
    assert again["rows"]["fp32/vanilla-0/256"]["left_out"].startswith("a step would take about")
    assert again["rows"]["fp32/physics-64/256"]["ms"] > 0
    (head, _, vanilla, *_) = paper_scaling.tables_of(again)
    assert head == "| fp32: ms, GiB | 64 | 256 |"
    assert vanilla.endswith("| a step would take about 0 s |")
    (sentence, *_) = paper_scaling.ratios_of(again)
    assert sentence.startswith("fp32, 64 points: vanilla attention takes ")
    paper_scaling.draw(again, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_quadratic_attention_is_expected_to_take_four_times_as_long_for_twice_the_points() -> None:
    rows = {
        str(n): {"precision": "bf16", "method": "vanilla", "rank": 0, "points": n, "ms": ms}
        for n, ms in ((1024, 1.0), (4096, 20.0), (65536, 1e6))
    }
    at = [paper_scaling.expected_seconds(rows, Measurement("bf16", Layer("vanilla"), n)) for n in (1024, 8192)]
    assert at == [None, pytest.approx(0.08)]
    assert paper_scaling.expected_seconds(rows, Measurement("bf16", Layer("physics", 64), 8192)) is None


def test_a_first_call_that_loads_libraries_is_not_the_time_of_a_layer() -> None:
    """On a GPU such a call took 2 s, and all larger meshes were expected to take four times as long each."""

    class GivenTimes(paper_scaling.Clock):
        times = iter([2063.0, 0.4, 0.6, 0.5, *[0.5] * paper_scaling.MOST])

        def once(self, call: Callable[[], Any]) -> float:
            call()
            return next(self.times)

    clock = GivenTimes(torch.device("cpu"))
    assert clock.median(lambda: None) == (0.5, paper_scaling.MOST)
    clock.times = iter([9000.0, 7000.0])
    assert clock.median(lambda: None) == (7000.0, 1)


def test_a_failed_measurement_is_recorded() -> None:
    row = paper_scaling.row_of(Measurement("fp32", Layer("flare_kernels", 2000), 16), torch.device("cpu"), {}, 1.0)
    assert "UsageError" in row["failed"]
    assert paper_scaling._cell(row) == "failed"


@pytest.mark.parametrize(("precision", "method"), [("bf16", "vanilla"), ("bf16", "flare_calls"), ("fp32", "physics")])
def test_layers_have_the_sizes_of_their_figure(precision: str, method: str) -> None:
    layer = Layer(method, 64)
    channels, _ = paper_scaling.SIZES[precision][method.partition("_")[0]]
    assert layer.build(precision).leave.out_features == channels


def test_each_model_of_the_ablations_is_trained_once() -> None:
    sizes = paper_ablations.sizes_of(["5", "9", "10"])
    assert len(sizes) == 9 + 4 + 4 + 3
    assert sizes[0] == paper_ablations.NORMAL
    asked = {"steps": 100, "precision": "recipe", "deviation": 0.08}
    keys = {paper_ablations.key_of(one, asked, 0) for one in sizes}
    assert len(keys) == len(sizes)
    assert "b8-m256-h16-k3-p3-100-steps-recipe-from-0.08-seed-0" in keys


def test_figures_of_ablations_use_trainings_with_the_latest_options(tmp_path: Path) -> None:
    runs: dict[str, Any] = {}
    for steps in (10, 100):
        for sizes in paper_ablations.sizes_of(["5", "9", "10"]):
            error = sizes["num_blocks"] / 1000 + sizes["num_latents"] / 1e6 + sizes["num_heads"] / 1e5 + 1 / steps
            runs[f"{steps}-{sizes}"] = {
                "sizes": sizes, "asked": {"steps": steps}, "test_relative_l2": error, "parameters": 7, "ms_a_step": 2.0,
            }  # fmt: skip
    content = {"runs": runs, "asked": {"steps": 100}}
    lines = paper_ablations.tables_of(content)
    assert lines[0] == "| relative L2 × 1e-3 | M = 16 | M = 64 | M = 256 |"
    assert lines[2] == "| 2 blocks | 12.2 | 12.2 | 12.4 |"
    assert "| 4 heads of 16 channels | 18.3 | 7 | 2.0 |" in lines
    heads = paper_ablations.curve(content, "num_heads", [16, 4])
    assert heads == [(16, pytest.approx(0.018416)), (4, pytest.approx(0.018296))]
    paper_ablations.draw(content, tmp_path / "ablations.png")
    assert (tmp_path / "ablations.png").stat().st_size > 1000


def test_epochs_fit_into_the_time_of_all_trainings_that_share_gpus() -> None:
    pace, steps = {"a": 10.0, "b": 2.0}, {"a": 500, "b": 250}
    assert darcy_league.epochs_in(1, pace, steps, gpus=1) == 10  # 5.5 s an epoch of both
    assert darcy_league.epochs_in(1, pace, steps, gpus=2) == 12  # 5 s an epoch of the slower one
    assert darcy_league.epochs_in(0.01, pace, steps, gpus=1) == 1


def test_the_table_of_darcy_has_the_papers_errors_too() -> None:
    run = {
        "model": "Flare", "precision": "32-true", "parameters": 691_009, "epochs": 3, "test_relative_l2": 0.0123,
        "ms_a_step": 5.5, "seconds": 80.4,
    }  # fmt: skip
    content = {"runs": {"one": run, "two": run | {"test_relative_l2": None}}, "trivial": {"mean_field": 0.253}}
    lines = darcy_league.rows_of(content)
    assert lines[2:] == [
        "| Flare | 691,009 | 3 | 12.30 | 5.10 | 5.5 | 80 |",
        "| the training cases' mean field | | | 253 | | | |",
    ]


def test_speed_is_that_of_the_second_half(tmp_path: Path) -> None:
    """Rows hold points per second since the start: 10 steps in 5 s, loading included, and 10 more in 1 s."""
    with (tmp_path / "training.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "points_per_second"])
        writer.writeheader()
        for step in range(1, 21):
            writer.writerow({"step": step, "points_per_second": 10 * 8 / 5 if step <= 10 else 20 * 8 / 6})
    assert darcy_runs.speed_of(tmp_path, 8) == {"seconds": 6.0, "ms_a_step": 100.0}


def test_results_are_kept_and_failures_are_removed_when_a_run_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    kept = darcy_runs.Kept(path, {"what": "first"})
    kept.note("a", {"steps": 1}, {})
    kept.note("b", None, {"step graphs": "no", "step by step": "no"})
    again = darcy_runs.Kept(path, {"what": "second"})
    assert (again.content["what"], again.runs) == ("second", {"a": {"steps": 1}})
    again.note("b", {"steps": 2}, {})
    found = json.loads(path.read_text())
    assert (set(found["runs"]), found["failed"]) == ({"a", "b"}, {})


def test_a_spectrum_is_summarised_over_heads() -> None:
    eigenvalues = np.array([[1.0, 0.5, 0.02, 0.0], [1.0, 0.001, 0.0, 0.0]])
    table = {"head": [0, 1], "index": [0, 3], "block": [0], "eigenvalue": eigenvalues.ravel().tolist()}
    (block,) = paper_spectrum.blocks_of(table)
    found = paper_spectrum.summary_of(block)
    assert found["above_0.01"] == {"least": 1, "median": 2.0, "largest": 3}
    assert found["for_90%"] == {"least": 1, "median": 1.5, "largest": 2}
    assert found["largest"] == [1.0, 0.5, 0.02, 0.0]
    assert paper_spectrum.table_of({"blocks": [found]})[-1] == "| 1 | 2 (1 to 3) | 1.5 (1 to 2) | 2 (1 to 3) |"
