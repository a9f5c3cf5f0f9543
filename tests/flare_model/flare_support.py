"""What the tests of flare_model share: tiny models, small parts, runs of training."""

from __future__ import annotations

import csv
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flare_model.training.training_checkpoint
from flare_model.checkpoints.files import Usage
from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.normalisation import Normalisation
from flare_model.models.flare import Flare, FlareConfig
from flare_model.train import train
from flare_model.training.recipe import Recipe
from flare_model.training.trainer import Trainer
from lpbf_data.case.point_schema import PointSchema
from lpbf_data.case.schema import FieldSpec
from lpbf_data.stores.point_sets import PointCase, write_point_set
from tests.forked import Program, command, end_all, function
from tests.lpbf_data.launch_support import torchrun_variables
from tests.netfabb_cases import Part, write_part
from tests.rounding import LOSSES

TINY: dict[str, Any] = {
    "class_path": "Flare",
    "init_args": {"config": {"channels": 16, "num_blocks": 1, "num_heads": 2, "num_latents": 8}},
}

LEARNING = Recipe(epochs=6, learning_rate=5e-3)


def tiny_flare(**sizes: int) -> Flare:
    """A small FLARE with weights large enough that its heads attend to something."""
    torch.manual_seed(0)
    model = Flare(FlareConfig(**({"channels": 16, "num_blocks": 2, "num_heads": 4, "num_latents": 6} | sizes)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    return model.eval()


def tiny_surrogate(**sizes: int) -> Surrogate:
    """The same model with a normalisation of its target: mean 0.02 mm, standard deviation 0.3 mm."""
    usage = Usage(Normalisation(target_mean=(0.02,), target_std=(0.3,)), ("displacement_z",))
    return Surrogate(tiny_flare(**sizes), usage).eval()


def write_cases(folder: Path, count: int = 12) -> Path:
    """Write NetFabb results of boxes, two cells high, that bend in similar ways, so that a model can learn it."""
    for number in range(count):
        part = Part(
            f"1000{number:02d}_11b839a{number:x}_1",
            shape=(2 + number % 3, 2 + number // 3 % 2, 2),
            cell=(6.0 + 0.1 * number, 6.0, 12.0),
            clearance=60.0 + 3 * number,
        )
        write_part(folder, part)
    return folder


def write_grids(folder: Path, count: int = 7) -> str:
    """A data set of scalar fields on 6 x 9 points; returns its name."""
    y, x = np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 9), indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    schema = PointSchema(
        "plates", ("x", "y"), "1",
        (FieldSpec("load", (), "1", "point", "an input"), FieldSpec("bow", (), "1", "point", "the target")),
        ("load",), ("bow",), grid=(6, 9),
    )  # fmt: skip
    cases = []
    for number in range(count):
        load = np.random.default_rng(number).random(54)
        bow = (1 + number / count) * np.sin(np.pi * points[:, 0]) * np.sin(np.pi * points[:, 1]) + 0.1 * load
        cases.append(PointCase(f"plate_{number}", points, {"load": load, "bow": bow}))
    write_point_set(folder / "plates", schema, {"train": cases[:-1], "test": cases[-1:]})
    return str(folder / "plates")


def grid_model(name: str) -> dict[str, Any]:
    """What describes a small model of a class, for the grids of `write_grids`."""
    sizes = {"channels": 16, "num_blocks": 2, "num_heads": 2}
    if name == "GridTransolver":
        sizes |= {"grid_rows": 6, "grid_columns": 9}
    return {"class_path": name, "init_args": {"config": sizes}}


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """Step, loss and learning rate of every step, as the text that `training.csv` holds."""
    with (folder / "training.csv").open(newline="") as file:
        return [(row["step"], row["loss"], row["learning_rate"]) for row in csv.DictReader(file)]


def assert_same_losses(found: Path, wanted: Path) -> None:
    """Assert that two runs took the same steps, with losses that differ only by rounding in another order of sums."""
    ours, theirs = losses(found), losses(wanted)
    assert [step for step, _, _ in ours] == [step for step, _, _ in theirs]
    assert [float(loss) for _, loss, _ in ours] == pytest.approx([float(loss) for _, loss, _ in theirs], rel=LOSSES)


def run_training(dataset: str, folder: Path, model: dict[str, Any] = TINY, **options: Any) -> Path:
    """Train a tiny FLARE for two epochs, or as the options say, and return the folder of the run."""
    recipe = options.pop("recipe", Recipe(epochs=2))
    assert train(dataset, out=str(folder), model=model, recipe=recipe, **options) == 0
    return folder


def _train_and_kill_itself(
    data: str, out: str, step: int, recipe: Recipe, options: dict[str, Any], *, writing: bool
) -> None:
    """Train until a step is done, or its checkpoint is being written, and kill this process there."""
    sys.argv = ["a run that is killed"]
    if writing:

        def flush(root: Path) -> None:
            if f"{step:08d}" in root.name:
                os.kill(os.getpid(), signal.SIGKILL)

        flare_model.training.training_checkpoint.flush_tree = flush  # type: ignore[assignment]
    else:
        plain = Trainer._optimise

        def optimise(self: Trainer, group: Any) -> None:
            plain(self, group)
            if self.step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        Trainer._optimise = optimise  # type: ignore[method-assign]
    train(data, out=out, model=TINY, recipe=recipe, **options)


def train_until_killed(
    dataset: str, folder: Path, step: int, recipe: Recipe, *, writing: bool = False, **options: Any
) -> None:
    """Train in another process until a step is done, or its checkpoint is being written, and kill it there."""
    die = partial(_train_and_kill_itself, dataset, str(folder), step, recipe, options, writing=writing)
    program = Program(die, folder.with_name(f"{folder.name}-{step}-said"))
    assert program.end() == -signal.SIGKILL, program.text()


def train_in_processes(
    points_over: int, processes: int, data: str, out: Path, program: str = "", **options: object
) -> tuple[list[int], str]:
    """Train by several processes; returns their exit statuses and what they wrote to their outputs.

    Args:
        points_over: How many processes share the points of each case.
        processes: How many processes there are.
        data: The data set.
        out: Folder of the run.
        program: What each process runs in place of the command: module, function and its first arguments, separated by
            colons. The words of the command are its last arguments.
        options: Options of the command.
    """
    given = {"data": data, "out": out, "points_over": points_over, "accelerator": "cpu", **options}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    called = (function, *program.split(":")) if program else (command, "flare_model.train")
    started = [
        Program(called[0], out.with_name("said"), *called[1:], *words, environment=os.environ | variables)
        for variables in torchrun_variables(processes)
    ]
    return end_all(started), started[0].text()
