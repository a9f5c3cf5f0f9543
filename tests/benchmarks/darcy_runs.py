"""Trainings on a Darcy data set, several at a time, whose figures are kept in one JSON file.

Shared by `darcy_league` and `paper_ablations`; not a command. A training whose figures are in the file is not done
again, whatever machine they were measured on. Each training runs in a worker process; where one fails, its process is
ended, and the next training gets a new one.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import queue
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

import torch
import yaml

from flare_model.checkpoints.files import CONFIG_NAME, WEIGHTS_NAME
from flare_model.checkpoints.spec import ModelSpec
from flare_model.checkpoints.surrogate import Surrogate, from_pretrained
from flare_model.configs import config_path
from flare_model.data.metrics import RelativeL2
from flare_model.data.point_fields import stack_fields
from flare_model.data.splits import Split, open_loader
from flare_model.judging.judge import mean_field, predictions
from flare_model.train import open_device, open_splits, run_once
from flare_model.training.recipe import Recipe
from flare_model.training.settings import Settings, make_settings
from lpbf_data.durable import write_json
from lpbf_data.errors import UsageError
from lpbf_data.reading.catalog import read_points
from tests.benchmarks.train_models import quiet
from tests.benchmarks.workers import training_pool, visible_gpus

NEVER: Final = 10**9
"""Epochs between validations and steps between checkpoints, more than there are: Darcy has no validation split, and
only the last weights count."""

PACE_STEPS: Final = 120
"""Steps that are timed before the trainings; the speed is that of their second half."""


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        key: Name of its figures in the file.
        data: The data set.
        config: The configuration of the model and its recipe.
        work: Folder below which its run is stored.
        sizes: Sizes of the model that differ from the configuration's.
        recipe: Fields of the recipe that differ from the configuration's.
        max_steps: Stop after this many steps; None for the whole recipe.
        seed: Seed of the first weights and of the order of cases.
        judged: Whether the trained model is evaluated on the test split.
        facts: Entries that are stored beside the measured figures.
        keep: Folder below which the trained model is copied; None for no copy.
    """

    key: str
    data: str
    config: str
    work: Path
    sizes: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int | None = None
    seed: int = 0
    judged: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    keep: Path | None = None

    def settings(self, *, graphs: bool) -> Settings:
        """The settings that `flare_model.train` would be given."""
        path = config_path(self.config)
        if path is None:
            raise UsageError(f"there is no configuration {self.config}")
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
        points = read_points(self.data)
        if points is None or points.grid is None:
            raise UsageError(f"{self.data} holds no cases on a grid; pipelines.benchmarks.convert makes a set of them")
        model = known["model"]
        sizes = {**model["init_args"]["config"], **self.sizes}
        return make_settings(
            ModelSpec(model["class_path"], {"config": sizes}),
            list(points.targets),
            list(points.inputs),
            point_schema=points,
            data=self.data,
            recipe=replace(Recipe(**known["recipe"]), **{**self.recipe, "step_graphs": graphs}),
            seed=self.seed,
            max_steps=self.max_steps,
            validate_every=NEVER,
            checkpoint_every=NEVER,
            resident=True,
        )


@functools.cache
def opened(data: str, name: str) -> Split:
    """A split of a data set, opened once in a process."""
    return Split(data, name)


def carry_out(job: Job, *, graphs: bool) -> dict[str, Any]:
    """Train, and evaluate on the test split if the job says so.

    Args:
        job: The training.
        graphs: Whether its steps are recorded as CUDA graphs.

    Returns:
        Its figures.
    """
    folder = job.work / job.key / ("graphs" if graphs else "steps")
    with quiet(folder.with_suffix(".log")):
        settings, fabric, precision = open_device(job.settings(graphs=graphs))
        if fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result = run_once(settings, fabric, precision, folder, open_splits(settings))
        surrogate = from_pretrained(folder).to(fabric.device)
        if job.keep is not None:
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                place = job.keep / job.key / name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, place)
        found = {
            **job.facts,
            "config": job.config,
            "sizes": dict(job.sizes),
            "parameters": sum(p.numel() for p in surrogate.model.parameters()),
            "steps": result["steps"],
            "batch_size": settings.recipe.batch_size,
            "learning_rate": settings.recipe.learning_rate,
            "precision": settings.recipe.precision,
            "tf32": settings.recipe.tf32,
            "seed": settings.seed,
            "step_graphs": graphs,
            **speed_of(folder, settings.recipe.batch_size * math.prod(settings.point_schema.grid)),
        }
        if fabric.device.type == "cuda":
            found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if job.judged:
            found["test_relative_l2"] = test_error(surrogate, opened(job.data, "test"))
    return found


def speed_of(folder: Path, points: int) -> dict[str, float]:
    """Seconds of all steps, and milliseconds a step over the second half of them, from the log of a run.

    Args:
        folder: Folder of a run that wasn't interrupted.
        points: Points a step.
    """
    with (folder / "training.csv").open(newline="") as file:
        rows = [(int(row["step"]), float(row["points_per_second"])) for row in csv.DictReader(file)]
    # A row holds the points a second since the first step; rows that were written together hold the same number.
    last = [row for row, after in zip(rows, [*rows[1:], (0, -1.0)], strict=True) if row[1] != after[1]]
    elapsed = [(step, step * points / speed) for step, speed in last if speed]
    end, seconds = elapsed[-1]
    middle, until = next((e for e in elapsed if e[0] >= end / 2), elapsed[-1])
    if middle == end:
        middle, until = 0, 0.0
    return {"seconds": round(seconds, 1), "ms_a_step": round(1000 * (seconds - until) / (end - middle), 3)}


def test_error(surrogate: Surrogate, split: Split) -> float | None:
    """Mean relative L2 error over the cases of a split; None where it is no finite number."""
    total = RelativeL2()
    for batch, prediction in predictions(surrogate, split):
        total += RelativeL2.of(torch.from_numpy(prediction), batch.targets, batch.offsets)
    return total.mean if math.isfinite(total.mean) else None


def trivial_errors(data: str) -> dict[str, float]:
    """Relative L2 errors on the test split of the training cases' mean at each point, and of their overall mean."""
    points = read_points(data)
    assert points is not None, data
    targets = make_settings(ModelSpec(), list(points.targets), [], point_schema=points, data=data).targets
    test = Split(data, "test", targets)
    mean = mean_field(test, targets)
    assert mean is not None, data
    guesses = {"mean_field": torch.from_numpy(mean)}
    guesses["mean_constant"] = guesses["mean_field"].mean(dim=0).expand_as(guesses["mean_field"])
    totals = dict.fromkeys(guesses, RelativeL2())
    for ragged in open_loader(test):
        truth = stack_fields(ragged.fields, targets)
        for name, guess in guesses.items():
            totals[name] += RelativeL2.of(guess, truth, ragged.offsets.cpu())
    return {name: round(total.mean, 5) for name, total in totals.items()}


class Kept:
    """Figures of runs by their keys, in a JSON file that is written after each run.

    Args:
        path: The file.
        about: Entries of the file beside the figures: data, machine, what was compared.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.path, self.content = path, {**before, **about}
        self.content["runs"] = before.get("runs", {})
        self.content["failed"] = before.get("failed", {})
        self._lock = threading.Lock()

    @property
    def runs(self) -> dict[str, Any]:
        """Figures of the runs that succeeded, by their keys."""
        found: dict[str, Any] = self.content["runs"]
        return found

    def note(self, key: str, found: Mapping[str, Any] | None, failures: Mapping[str, str]) -> None:
        """Store the figures of a run, and why ways to launch its steps failed."""
        with self._lock:
            self.content["failed"].pop(key, None)
            if failures:
                self.content["failed"][key] = dict(failures)
            if found is not None:
                self.runs[key] = dict(found)
            write_json(self.path, self.content)

    def update(self, more: Mapping[str, Any]) -> None:
        """Add or replace entries beside the figures."""
        with self._lock:
            self.content |= more
            write_json(self.path, self.content)


class Slots:
    """Runs a number of trainings at a time, each in a process, spread over all visible GPUs.

    Args:
        processes: Trainings at a time.
        ways: Ways to launch steps, tried in this order: True records them as CUDA graphs, False launches them one by
            one. Where recording failed, later trainings of the same configuration and precision don't try it.
    """

    def __init__(self, processes: int, ways: Sequence[bool]) -> None:
        devices = visible_gpus()
        self._ways = tuple(ways)
        self._stepwise = set[tuple[str, str | None]]()
        self._devices = [devices[number % len(devices)] for number in range(processes)]
        self._pools: list[ProcessPoolExecutor | None] = [None] * processes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            if pool is not None:
                pool.shutdown()

    def each(self, jobs: Sequence[Job], tell: Callable[[Job, dict[str, Any] | None, dict[str, str]], None]) -> None:
        """Carry out trainings in their order, each in the next process that is free.

        Args:
            jobs: The trainings.
            tell: Called, from any thread, with each training, its figures (None if it failed), and why ways to launch
                its steps failed.
        """
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        threads = [threading.Thread(target=self._work, args=(number, waiting, tell)) for number in self._numbers(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _numbers(self, jobs: Sequence[Job]) -> range:
        return range(min(len(jobs), len(self._pools)))

    def _work(self, number: int, waiting: queue.SimpleQueue[Job], tell: Callable[..., None]) -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            failures: dict[str, str] = {}
            found = None
            kind = job.config, job.recipe.get("precision")
            for graphs in (False,) if kind in self._stepwise else self._ways:
                pool = self._pools[number] or self._new_pool(number)
                try:
                    found = pool.submit(carry_out, job, graphs=graphs).result()
                    if failures:
                        self._stepwise.add(kind)
                    break
                except Exception as error:  # noqa: BLE001 (a failure is reported, and the other trainings go on)
                    failures["step graphs" if graphs else "step by step"] = f"{type(error).__name__}: {error}"[:500]
                    pool.shutdown()  # It also ends what a failed recording leaves behind.
                    self._pools[number] = None
            tell(job, found, failures)

    def _new_pool(self, number: int) -> ProcessPoolExecutor:
        pool = training_pool(1, [self._devices[number]])
        self._pools[number] = pool
        return pool


def ways_of(graphs: str) -> tuple[bool, ...]:
    """Ways to launch steps, by the option `--graphs`: auto, yes or no."""
    if graphs == "auto":
        return (True, False) if torch.cuda.is_available() else (False,)
    return (graphs == "yes",)


def time_steps(jobs: Sequence[Job], slots: Slots) -> dict[str, float]:
    """Milliseconds a step of each training, timed while as many others run beside it as later will; nothing is kept."""
    short = [replace(job, work=job.work / "rehearsal", max_steps=PACE_STEPS, judged=False, keep=None) for job in jobs]
    found: dict[str, float] = {}

    def tell(job: Job, figures: dict[str, Any] | None, failures: dict[str, str]) -> None:
        if figures is not None:
            found[job.key] = figures["ms_a_step"]
        print(f"speed of {job.key}: {figures['ms_a_step'] if figures else failures} ms a step", flush=True)

    slots.each(short, tell)
    return found


def clock() -> Callable[[str], None]:
    """A function that prints a line after the seconds since this call."""
    started = time.monotonic()
    return lambda line: print(f"{time.monotonic() - started:7.1f} s: {line}", flush=True)
