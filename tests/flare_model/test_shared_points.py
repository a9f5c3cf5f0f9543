"""Meshes divided over several processes: the numbers of one process, whichever has which points; and refusals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flare_model.checkpoints.spec import ModelSpec
from flare_model.checkpoints.surrogate import from_pretrained
from flare_model.data.point_ranks import PointRanks, end_soon_after_timeouts
from flare_model.models.divided import check_divisible
from flare_model.models.flare import Flare
from flare_model.models.flare_plus_plus import FlarePlusPlus
from flare_model.sizes import FlareConfig
from flare_model.training.devices import open_fabric
from flare_model.training.recipe import Recipe
from flare_model.training.run_log import read_table
from flare_model.training.settings import make_settings
from lpbf_data.errors import UsageError
from tests.commands import run_here
from tests.flare_model.flare_support import TINY, assert_same_losses, run_training, train_in_processes
from tests.forked import Program, function
from tests.lpbf_data.launch_support import environment_of, run_ranks, torchrun_variables
from tests.rounding import LOSSES, SAME, SINGLE, WEIGHTS

PROGRAMS = "tests.flare_model.shared_points_programs"
HALF = torch.finfo(torch.half).eps


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_numbers_are_those_of_one_process(ranks: int, tmp_path: Path) -> None:
    """In float64 up to rounding; in float32 and float16 with errors like those of one process."""
    reports = run_ranks("same_numbers", tmp_path, ranks=ranks, module=PROGRAMS)
    for found in reports:
        assert found["last"] == reports[0]["last"]  # the same bits
        assert max(found["off"].values()) <= SAME, found["off"]
        for name, (together, alone) in found["single"].items():
            assert together <= 4 * alone + 4 * SINGLE, name
        for name, (together, alone) in found["half"].items():
            assert together <= 1.5 * alone + HALF / 4, name


def test_gradients_are_averaged_with_data_parallelism(tmp_path: Path) -> None:
    for found in run_ranks("beside_data_parallelism", tmp_path, ranks=4, module=PROGRAMS):
        assert max(found) <= SAME


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_process_that_stops_is_an_error_in_the_others(how: str, tmp_path: Path) -> None:
    started = [
        Program(
            function, tmp_path / "said", PROGRAMS, "last_process_stops", how, environment=environment_of(tmp_path, own)
        )
        for own in torchrun_variables(3)
    ]
    try:
        assert [program.end(60) for program in started[:2]] == [3, 3], started[0].text()
    finally:
        started[2].send(signal.SIGKILL) if started[2].running() else None
        started[2].end()
    for rank in range(2):
        seconds, said, of_another = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seconds < 45
        assert of_another, said


def test_models_that_can_not_be_divided_are_refused() -> None:
    small = FlareConfig(channels=16, num_heads=2, num_latents=4, num_blocks=1)
    with pytest.raises(UsageError, match=r"only FLARE's points .* and FlarePlusPlus isn't FLARE"):
        check_divisible(nn.Sequential(FlarePlusPlus()))
    with pytest.raises(UsageError, match=r"only FLARE's points .* and Linear isn't FLARE"):
        check_divisible(nn.Linear(3, 1))
    model = Flare(small)
    assert check_divisible(nn.Sequential(model)) == [model]
    model.compile()
    with pytest.raises(UsageError, match="a compiled model can't be divided"):
        check_divisible(model)
    with pytest.raises(UsageError, match=r"call torch\.distributed\.init_process_group first"):
        PointRanks.of_world()


# Two processes are one pair; four are two pairs.
@pytest.mark.parametrize(
    ("processes", "loss"),
    [
        (4, "relative_l2"),
        *(pytest.param(n, loss, marks=pytest.mark.slow) for n, loss in ((2, "relative_l2"), (4, "mse"))),
    ],
)
def test_training_takes_the_steps_of_one_process(box_dataset: str, tmp_path: Path, processes: int, loss: Any) -> None:
    """Two processes share each case, thinned and turned alike for both; two such pairs share the batch of a step."""
    recipe = Recipe(epochs=2, batch_size=4, loss=loss)
    single = run_training(
        box_dataset, tmp_path / "single", recipe=recipe, accelerator="cpu", thin_to=50, symmetries=True
    )
    options = {"recipe.epochs": 2, "recipe.batch_size": 8 // processes, "recipe.loss": loss, "thin_to": 50}
    options |= {f"model.config.{name}": value for name, value in TINY["init_args"]["config"].items()}
    ended, said = train_in_processes(2, processes, box_dataset, tmp_path / "shared", symmetries="true", **options)
    assert not any(ended), said
    assert_same_losses(tmp_path / "shared", single)
    weights, alone = (from_pretrained(f).model.state_dict() for f in (tmp_path / "shared", single))
    for name, values in weights.items():
        assert (values - alone[name]).norm() <= WEIGHTS * alone[name].norm(), name
    errors, others = (read_table(f / "validation.csv")["displacement_z"] for f in (tmp_path / "shared", single))
    assert errors == pytest.approx(others, rel=LOSSES)


def test_training_refuses_processes_and_models_that_can_not_share_points(box_dataset: str, tmp_path: Path) -> None:
    words = ["--data", box_dataset, "--out", str(tmp_path / "run"), "--accelerator", "cpu", "--points_over"]
    told = run_here("flare_model.train", *words, "3")
    assert told.returncode == 1
    assert "--points_over 3 takes 3 processes or a multiple of them, and this run has 1: start it with torchrun" in (
        " ".join(told.stderr.split())
    )
    assert "--points_over must be 1 or more, not 0" in run_here("flare_model.train", *words, "0").stderr
    ended, said = train_in_processes(2, 2, box_dataset, tmp_path / "run", **{"model.class_path": "Transformer"})
    assert ended == [1, 1]
    assert "--points_over 2: only FLARE's points can be divided over processes, and Transformer isn't FLARE" in (
        " ".join(said.split())
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("option", "value"), [("compile", "default"), ("step_graphs", True)])
def test_recipes_that_need_whole_cases_are_refused(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"--points_over 2 doesn't go with --recipe\.{option}"):
        make_settings(ModelSpec(), ["displacement_z"], [], data="x", points_over=2, recipe=Recipe(**{option: value}))


def test_the_pause_of_the_watchdog_is_short_unless_the_user_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC"
    monkeypatch.setenv(name, "7000")
    end_soon_after_timeouts()
    assert os.environ[name] == "7000"
    monkeypatch.delenv(name)
    open_fabric(Recipe(), "cpu")
    assert os.environ[name] == "500"
