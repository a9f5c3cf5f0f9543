"""Runs that are killed, continued, changed, and shared by several processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_model import from_pretrained
from flare_model.training.recipe import Recipe
from flare_model.training.run_log import RunLog, read_table
from flare_model.training.settings import changes
from flare_model.training.training_checkpoint import latest_state
from lpbf_data.errors import StoreError, UsageError
from pipelines.build import build
from tests.flare_model.flare_support import (
    LEARNING,
    TINY,
    assert_same_losses,
    losses,
    run_training,
    train_until_killed,
    write_cases,
)
from tests.forked import Program, command, end_all
from tests.lpbf_data.launch_support import torchrun_variables
from tests.rounding import LOSSES, WEIGHTS


def test_a_finished_run_is_not_trained_again(trained_run: Path, box_dataset: str) -> None:
    before = (trained_run / "model.safetensors").stat().st_mtime_ns
    run_training(box_dataset, trained_run, recipe=LEARNING)
    assert (trained_run / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_killed_anywhere_resumes_exactly(box_dataset: str, tmp_path: Path) -> None:
    """Killed between checkpoints, then while one was being written, then finished: every logged number is the same."""
    recipe = Recipe(epochs=5, accumulate=2, ema_decay=0.8)
    whole = run_training(box_dataset, tmp_path / "whole", recipe=recipe, checkpoint_every=3)
    cut = tmp_path / "cut"
    for step, writing, left in ((5, False, 3), (12, True, 9)):
        train_until_killed(box_dataset, cut, step, recipe, writing=writing, checkpoint_every=3)
        latest = latest_state(cut)
        assert latest is not None
        assert latest.name == f"step-{left:08d}"
    run_training(box_dataset, cut, recipe=recipe, checkpoint_every=3)
    assert len(losses(whole)) == 20
    assert losses(cut) == losses(whole)
    assert (cut / "validation.csv").read_text() == (whole / "validation.csv").read_text()
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [p.name for p in (cut / "checkpoints").iterdir()] == ["step-00000020"]


def test_a_killed_run_resumes_exactly_in_data_that_workers_read_ahead(box_dataset: str, tmp_path: Path) -> None:
    """Cases thinned at random by a process that reads ahead: the same cases, the same points of them."""
    options = {"checkpoint_every": 3, "num_workers": 1, "thin_to": 12}
    whole = run_training(box_dataset, tmp_path / "whole", **options)
    train_until_killed(box_dataset, tmp_path / "cut", 5, Recipe(epochs=2), **options)
    assert losses(run_training(box_dataset, tmp_path / "cut", **options)) == losses(whole)
    assert losses(whole) != losses(run_training(box_dataset, tmp_path / "other", **options | {"thin_to": 13}))


def test_a_changed_run_is_not_continued(box_dataset: str, trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--recipe.learning_rate: 0.005 → 0.5"):
        run_training(box_dataset, trained_run, recipe=replace(LEARNING, learning_rate=0.5))
    with pytest.raises(UsageError, match=r"init_args.config.num_blocks: 1 → 3"):
        run_training(
            box_dataset,
            trained_run,
            model={"class_path": "Flare", "init_args": {"config": {"num_blocks": 3}}},
            recipe=LEARNING,
        )
    other = tmp_path / "lpbf"
    build(
        [str(write_cases(tmp_path / "cases", 6))],
        out=str(other),
        workers=0,
        time_limit=math.inf,
        formats=["parquet"],
        no_report=True,
    )
    with pytest.raises(UsageError, match="another data set"):
        run_training(str(other), trained_run, recipe=LEARNING)


def test_a_folder_with_other_files_is_refused_and_unchanged(box_dataset: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="holds something else than a run"):
        run_training(box_dataset, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_run_and_runs_of_several_seeds_have_folders_of_their_own(
    box_dataset: str, trained_run: Path, tmp_path: Path
) -> None:
    before = sorted(p.name for p in trained_run.iterdir())
    with pytest.raises(UsageError, match="holds a single run; give another --out for several seeds"):
        run_training(box_dataset, trained_run, seed=[0, 1], recipe=LEARNING)
    assert sorted(p.name for p in trained_run.iterdir()) == before
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(UsageError, match="holds several runs, one for each seed; give another --out"):
        run_training(box_dataset, tmp_path)


def test_changed_options_are_listed() -> None:
    assert changes({"a": 1, "b": {"c": [1], "d": 2}}, {"b": {"c": [2], "d": 2}, "e": 0}) == [
        "--a: 1 → None",
        "--b.c: [1] → [2]",
        "--e: None → 0",
    ]


def train_by_torchrun(words: list[str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "flare_model.train", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def train_on_two_nodes(words: list[str], said: Path) -> None:
    """Train by one process on each of two nodes, with the variables that torchrun sets."""
    started = [
        Program(command, said, "flare_model.train", *words, environment=os.environ | variables)
        for variables in torchrun_variables(2, nodes=2)
    ]
    assert end_all(started) == [0, 0], said.read_text()


@pytest.mark.parametrize(("nodes", "loss"), [pytest.param(1, "mse", marks=pytest.mark.slow), (2, "relative_l2")])
def test_two_processes_take_the_steps_of_one(box_dataset: str, tmp_path: Path, nodes: int, loss: Any) -> None:
    """Each process, on one node or on two, has half of the cases of each batch, with different numbers of points.

    Losses, weights and validation errors are the same.
    """
    single = run_training(
        box_dataset, tmp_path / "single", recipe=Recipe(epochs=3, batch_size=4, loss=loss), accelerator="cpu"
    )
    options = {
        "data": box_dataset,
        "out": str(tmp_path / "both"),
        "recipe.epochs": 3,
        "recipe.batch_size": 2,
        "recipe.loss": loss,
        "accelerator": "cpu",
    }
    options |= {f"model.config.{name}": value for name, value in TINY["init_args"]["config"].items()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if nodes == 1:
        train_by_torchrun(words)
    else:
        train_on_two_nodes(words, tmp_path / "said")
    assert_same_losses(tmp_path / "both", single)
    weights, alone = (from_pretrained(f).model.state_dict() for f in (tmp_path / "both", single))
    for name, values in weights.items():
        assert (values - alone[name]).norm() <= WEIGHTS * alone[name].norm(), name
    errors, others = (read_table(f / "validation.csv")["displacement_z"] for f in (tmp_path / "both", single))
    assert errors == pytest.approx(others, rel=LOSSES)


def test_tables_continue_at_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    for step in range(1, 6):
        log.write("training.csv", {"step": step, "loss": step / 10, "learning_rate": 0.1})
    log.close()
    with (tmp_path / "training.csv").open("a") as file:
        file.write("6,0.")
    log = RunLog(tmp_path, 3)
    log.write("training.csv", {"step": 4, "loss": 9.0, "learning_rate": 0.1})
    log.close()
    assert read_table(tmp_path / "training.csv")["loss"] == [0.1, 0.2, 0.3, 9.0]
    assert read_table(tmp_path / "none.csv") == {}


def test_symmetries_change_the_training_cases_and_nothing_else(box_dataset: str, tmp_path: Path) -> None:
    plain, turned, again = (
        run_training(box_dataset, tmp_path / name, symmetries=symmetries)
        for name, symmetries in (("plain", False), ("turned", True), ("again", True))
    )
    tables = [read_table(folder / "training.csv")["loss"] for folder in (plain, turned, again)]
    assert tables[0] != tables[1] == tables[2]
    about = [json.loads((folder / "run.json").read_text())["configuration"] for folder in (plain, turned)]
    assert "symmetries" not in about[0]  # so that runs of earlier versions resume
    assert about[1] == about[0] | {"symmetries": True}
    with pytest.raises(UsageError, match="symmetries"):
        run_training(box_dataset, tmp_path / "turned")


def test_changes_between_the_starts_of_a_run_are_recorded(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until_killed(box_dataset, tmp_path, 5, Recipe(epochs=2), checkpoint_every=3)
    path = tmp_path / "run.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"versions": about["versions"] | {"torch": "1.0"}}))
    monkeypatch.setattr(sys, "argv", ["another", "command"])
    run_training(box_dataset, tmp_path, checkpoint_every=3)
    (again,) = json.loads(path.read_text())["resumed"]
    assert again["versions"] == about["versions"]
    assert again["command"] != about["command"]
    assert "data" not in again


def test_an_incomplete_training_state_is_refused(box_dataset: str, tmp_path: Path) -> None:
    train_until_killed(box_dataset, tmp_path, 5, Recipe(epochs=2), checkpoint_every=3)
    latest = latest_state(tmp_path)
    assert latest is not None
    rest = torch.load(latest / "training.pt", weights_only=True)
    torch.save({name: value for name, value in rest.items() if name != "random"}, latest / "training.pt")
    with pytest.raises(StoreError, match=r"can't be read \(KeyError: 'random'\)"):
        run_training(box_dataset, tmp_path, checkpoint_every=3)


def test_a_run_of_recorded_steps_goes_on_without_recording(box_dataset: str, tmp_path: Path) -> None:
    """Its learning rates are tensors; those of all steps are logged, the first one included."""
    whole = run_training(box_dataset, tmp_path / "whole", checkpoint_every=3)
    cut = tmp_path / "cut"
    train_until_killed(box_dataset, cut, 5, Recipe(epochs=2), checkpoint_every=3)
    latest = latest_state(cut)
    assert latest is not None
    rest = torch.load(latest / "training.pt", weights_only=True)
    rest["schedule"]["_last_lr"] = [torch.tensor(rate) for rate in rest["schedule"]["_last_lr"]]
    for group in rest["optimizer"]["param_groups"]:
        group["lr"] = torch.tensor(group["lr"])
    torch.save(rest, latest / "training.pt")
    run_training(box_dataset, cut, checkpoint_every=3)
    rates, wanted = ([float(rate) for _, _, rate in losses(folder)] for folder in (cut, whole))
    assert rates == pytest.approx(wanted, rel=1e-6)
