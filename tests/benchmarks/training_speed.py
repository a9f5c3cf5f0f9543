"""How near does `flare_model.train` come to the speed of its steps alone, and how long does a validation take?

    python -m tests.benchmarks.training_speed --data lpbf_small/ --batch_size 8 --out training_speed.json
    python -m tests.benchmarks.training_speed --data lpbf_large/ --batch_size 1 --out training_speed.json

The configuration `lpbf`, in bf16-mixed, with steps recorded as CUDA graphs. Compared are the points a second of

- a training, as its training.csv logs them, and without the steps in which sizes are recorded: over the last half,
- the same recorded steps, one after the other on batches that lie on the device,

with cases that stay on the device (`--resident`) and with cases that are read. Validation is timed on the training's
last model, launched as it comes and recorded, with cases that are read and that stay on the device. A call adds its
rows to the file.

Needs one GPU and a built data set with the splits train and validation; without a GPU it runs a few steps, to see that
everything runs. The committed result is results/training_speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import torch
import yaml

from flare_model.checkpoints.spec import ModelSpec
from flare_model.configs import config_path
from flare_model.data.batches import Batch
from flare_model.train import open_device, open_splits
from flare_model.training.recipe import Recipe
from flare_model.training.run_log import read_table
from flare_model.training.settings import Settings, make_settings
from flare_model.training.trainer import Trainer
from flare_model.training.validation import Validation
from lpbf_data.durable import write_json
from tests.benchmarks.machine import describe_training_machine

KEPT: Final = 64 if torch.cuda.is_available() else 2
"""Batches that steps alone are timed on."""

VALIDATIONS: Final = 5


class TimedTrainer(Trainer):
    """A training that remembers when each step was launched, of how many points, and some of the batches."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.launched: list[tuple[float, int]] = []
        self.kept: list[Batch] = []

    def _optimise(self, group: list[Batch]) -> None:
        super()._optimise(group)
        self.launched.append((time.perf_counter(), len(group[0].points)))
        if self.step > self.steps - KEPT:
            self.kept.append(group[0])

    def points_a_second(self) -> float:
        """Over the last half of the steps; the reads of losses in between keep the host from running far ahead."""
        half = self.launched[len(self.launched) // 2 :]
        return sum(points for _, points in half[1:]) / (half[-1][0] - half[0][0])


def settings_of(data: str, batch_size: int, steps: int, *, resident: bool) -> Settings:
    """Settings of a training of the configuration `lpbf`."""
    path = config_path("lpbf")
    assert path is not None
    known = yaml.safe_load(path.read_text(encoding="utf-8"))
    on_gpu = torch.cuda.is_available()
    precision = "bf16-mixed" if on_gpu else "auto"
    changed = known["recipe"] | {
        "batch_size": batch_size,
        "steps": steps,
        "step_graphs": on_gpu,
        "precision": precision,
    }
    return make_settings(
        ModelSpec(**known["model"]), ["displacement_z"], [], data=data, recipe=Recipe(**known["recipe"] | changed),
        symmetries=True, resident=resident, validate_steps=steps, checkpoint_every=steps,
    )  # fmt: skip


def _wait() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def steps_alone(trainer: Trainer, kept: list[Batch], count: int) -> float:
    """Points a second of recorded steps on batches on the device; they change the weights on."""
    stepper = trainer.stepper
    batches = [stepper.padded_for_graph(batch) if stepper.graphs else batch for batch in kept]
    for batch in batches:
        stepper.graphs(batch) if stepper.graphs else stepper.step([batch])
    begin, points = _wait(), 0
    for number, batch in enumerate(islice(cycle(batches), count)):
        stepper.graphs(batch) if stepper.graphs else stepper.step([batch])
        points += len(kept[number % len(kept)].points)
    return points / (_wait() - begin)


def seconds_of_validation(trainer: Trainer) -> dict[str, float]:
    """Median time of a validation: read or resident, launched one by one or recorded."""
    validation, found = trainer.validation, {}
    assert validation.cases is not None
    for cases, resident in (("read", None), ("resident", validation.cases.resident)):
        if cases == "resident" and resident is None:
            continue
        for how in ("launched", "recorded"):
            graphs = validation._graphs
            if how == "recorded" and graphs is None:
                continue
            if how == "launched":
                validation._graphs = None
            times = [_seconds(validation, resident) for _ in range(VALIDATIONS + 2)]
            validation._graphs = graphs
            found[f"{cases}, {how}"] = statistics.median(times[2:])
    return found


def _seconds(validation: Validation, resident: Any) -> float:
    assert validation.cases is not None
    begin = time.perf_counter()
    validation.errors_on(validation.cases.loader, resident)
    return time.perf_counter() - begin


def measure(data: str, batch_size: int, steps: int, *, resident: bool) -> dict[str, Any]:
    """Train, then time steps alone and validations of the same run."""
    settings, fabric, precision = open_device(settings_of(data, batch_size, steps, resident=resident))
    with tempfile.TemporaryDirectory() as folder:
        splits = open_splits(settings)
        trainer = TimedTrainer(settings, fabric, precision, Path(folder), splits)
        trainer.fit()
        log = read_table(Path(folder) / "training.csv")
        row = {
            "points_a_step": round(statistics.mean(points for _, points in trainer.launched)),
            "logged": log["points_per_second"][-1],
            "waiting": log["data_wait"][-1],
            "last_half": trainer.points_a_second(),
            "steps_alone": steps_alone(trainer, trainer.kept, steps // 2),
            "validation_cases": len(splits["validation"]),
            "validation_points": int(sum(splits["validation"].dataset.sizes)),
            "validation_seconds": seconds_of_validation(trainer) if resident else None,
        }
    return row | {"over_steps_alone": row["last_half"] / row["steps_alone"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a built data set with train and validation")
    parser.add_argument("--batch_size", type=int, required=True, help="parts of a step")
    parser.add_argument("--steps", type=int, default=2000, help="steps of each training")
    parser.add_argument("--out", type=Path, required=True, help="JSON file that rows are added to")
    asked = parser.parse_args()
    content: dict[str, Any] = {"machine": describe_training_machine(), "steps": asked.steps, "rows": {}}
    if asked.out.exists():
        content["rows"] = json.loads(asked.out.read_text("utf-8"))["rows"]
    for resident in (True, False):
        row = measure(asked.data, asked.batch_size, asked.steps, resident=resident)
        name = f"{asked.batch_size} of {row['points_a_step'] // asked.batch_size:,} points"
        content["rows"].setdefault(name, {})["resident" if resident else "read"] = row
        write_json(asked.out, content)
        print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
