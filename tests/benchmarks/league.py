"""How do the paper's models and FLARE++ compare on one corpus of simulated parts, under one protocol?

    python -m tests.benchmarks.league --data lpbf/ --work runs/league --steps 4000 --trial_steps 400 --processes 3

Each model has the size of its configuration (`flare_model/configs/lpbf_*.yaml`) and the optimiser of its own recipe:
warm-up, divisors, beta2, weight decay and clipping. Equal for all are the corpus, the target (the Z displacement of
the finished part), the number of steps, the batches (16 parts, 65,536 points at most), the symmetries, the averaging
of weights, and bf16-mixed precision on a GPU. Each model gets three trials of `--trial_steps` steps, with the features
of the part's shape as input and half, once and twice its recipe's learning rate; the rate with the least error on
validation is taken for all its runs, those with the features and those with coordinates alone. Test errors are of the
weights at the end of a run, which is evaluated once.

With `--equal_time` each model gets steps in proportion to its speed instead: all take the time in which the slowest of
the models asked for makes `--steps` steps.

Speed and memory are measured first, each model alone on the device; then `--processes` runs share it. Runs are stored
in `--work`, and those that are there are not done again, so that the command may be interrupted and repeated, also
with other models, inputs or seeds; the table is of all runs in that folder. `--reduced` shrinks the models until a CPU
can train them, to see that everything runs; its figures don't compare the models.

Needs a GPU (but for `--reduced`) and a corpus with the splits train, validation and test. The result goes to
results/league.json, or to another name by `--name`.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
import yaml

from flare_model.checkpoints.spec import ModelSpec
from flare_model.checkpoints.surrogate import from_pretrained
from flare_model.configs import config_path
from flare_model.data.splits import Split
from flare_model.judging.judge import judge, summaries_of
from flare_model.train import open_device, open_splits, run_once
from flare_model.training.recipe import Recipe
from flare_model.training.settings import Settings, make_settings
from lpbf_data.durable import write_json
from lpbf_data.errors import LpbfError
from tests.benchmarks.machine import describe_training_machine, kept_result, save_result
from tests.benchmarks.train_models import quiet, spread
from tests.benchmarks.workers import training_pool

TARGET: Final = "displacement_z"
INPUTS: Final = {"geometry": ("geometry",), "plain": ()}
"""Input features: those of the part's shape, or none beside the coordinates."""

MODELS: Final = {
    "Flare": "lpbf",
    "FlarePlusPlus": "lpbf_flare_plus_plus",
    "Transformer": "lpbf_transformer",
    "Transolver": "lpbf_transolver",
    "PerceiverIO": "lpbf_perceiver",
    "LNO": "lpbf_lno",
    "GNOT": "lpbf_gnot",
}
"""Models and their configurations."""

TRIALS: Final = (0.5, 1.0, 2.0)
"""Factors on the learning rate of the recipe."""

KINDS: Final = {"": "runs", ", equal time": "equal_time"}
"""End of a row's name in the table, and the folder of its runs."""

PACE_STEPS: Final = 500
SETTLED: Final = 100
PACE_CASES: Final = 64
"""Steps of the measurement of speed, how many at its end count, and its training parts: few, so that graphs of all
sizes of batches are recorded before."""

EQUAL: Final = {"batch_size": 16, "max_points": 65536, "ema_decay": 0.999, "cycle_beta1": False}
ON_A_GPU: Final = {"precision": "bf16-mixed", "step_graphs": True, "round_points": 4096}
REDUCED: Final = {
    "channels": 16, "num_blocks": 1, "num_heads": 2, "num_latents": 8, "num_slices": 8, "num_modes": 8,
    "projection_layers": 0, "num_experts": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        folder: Folder of the run.
        data: The data set.
        name: The model, of [MODELS][].
        told: Its input features.
        steps: Number of steps.
        factor: Factor on the learning rate of its recipe.
        graphs: Whether its steps are recorded as CUDA graphs.
        seed: Seed of the first weights and of the order of cases.
        reduced: Whether the model is shrunk.
        judged: Whether it is evaluated on the test split.
        cases: Training cases, taken evenly from all; 0 for all.
    """

    folder: Path
    data: str
    name: str
    told: tuple[str, ...]
    steps: int
    factor: float = 1.0
    graphs: bool = False
    seed: int = 0
    reduced: bool = False
    judged: bool = False
    cases: int = 0

    def settings(self) -> Settings:
        """The settings that `flare_model.train` would be given."""
        path = config_path(MODELS[self.name])
        assert path is not None, self.name
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = replace(Recipe(**known["recipe"]), steps=self.steps, **EQUAL)
        recipe = replace(recipe, learning_rate=recipe.learning_rate * self.factor, precision="32-true")
        if torch.cuda.is_available():
            recipe = replace(recipe, **{**ON_A_GPU, "step_graphs": self.graphs})
        model = known["model"]
        sizes = model["init_args"]["config"]
        sizes = {key: value for key, value in sizes.items() if key not in ("in_dim", "out_dim")}
        if self.reduced:
            sizes |= {key: value for key, value in REDUCED.items() if key in sizes}
        return make_settings(
            ModelSpec(model["class_path"], {"config": sizes}),
            [TARGET],
            self.told,
            data=self.data,
            recipe=recipe,
            seed=self.seed,
            symmetries=True,
            validate_steps=self.steps,
            checkpoint_every=self.steps,
            resident=True,
        )


@functools.cache
def opened(data: str, told: tuple[str, ...]) -> dict[str, Split]:
    """The splits that training reads, opened once in a process; they are the same for all models."""
    return open_splits(make_settings(ModelSpec("flare_model.Flare", {"config": {}}), [TARGET], told, data=data))


def carry_out(job: Job) -> dict[str, Any]:
    """Train, and evaluate on the test split if the job says so.

    Returns:
        The figures of the run, which are kept in its folder too.
    """

    def train_and_judge() -> dict[str, Any]:
        with quiet(job.folder.with_suffix(".log")):
            settings, fabric, precision = open_device(job.settings())
            splits = opened(job.data, job.told)
            if job.cases:
                splits = {name: split.evenly_chosen(job.cases) for name, split in splits.items()}
            result = run_once(settings, fabric, precision, job.folder, splits)
            found = {
                "model": job.name,
                "told": list(job.told),
                "seed": job.seed,
                "steps": result["steps"],
                "learning_rate": settings.recipe.learning_rate,
                "step_graphs": settings.recipe.step_graphs,
                "validation": result["validation"][TARGET],
            }
            if job.judged:
                surrogate = from_pretrained(job.folder).to(fabric.device)
                scores, _ = judge(surrogate, Split(job.data, "test"))
                found["test"] = summaries_of(scores)[TARGET]
        return found

    return kept_result(job.folder / "league.json", train_and_judge)


def measure_pace(job: Job) -> dict[str, Any]:
    """Points a second and peak memory of training, of a model alone on its device.

    If the steps can't be recorded as CUDA graphs, the result says that it failed.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        found = carry_out(job)
    except LpbfError as error:
        return {"model": job.name, "step_graphs": job.graphs, "failed": str(error)}
    with (job.folder / "training.csv").open(newline="") as file:
        rows = [float(row["points_per_second"]) for row in csv.DictReader(file)]
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    settled = statistics.median(rows[-SETTLED:])
    return {
        "model": job.name,
        "step_graphs": found["step_graphs"],
        "million_points_a_second": round(settled / 1e6, 3),
        "peak_gib": peak and round(peak, 2),
    }


def paces(asked: argparse.Namespace, work: Path) -> dict[str, dict[str, Any]]:
    """Speed and memory of each model alone on its device, with CUDA graphs if its steps can be recorded.

    After a failed recording a new process measures the model without graphs.
    """
    found = {}
    alone = training_pool(1)
    for name in asked.models:
        path = work / "pace" / f"{name}.json"
        if not path.exists():
            ways = (True, False) if torch.cuda.is_available() else (False,)
            for graphs in ways:
                folder = work / "pace" / f"{name}-{'graphs' if graphs else 'steps'}"
                steps = PACE_STEPS if torch.cuda.is_available() else asked.trial_steps
                job = Job(
                    folder, asked.data, name, INPUTS["geometry"], steps,
                    graphs=graphs, reduced=asked.reduced, cases=PACE_CASES,
                )  # fmt: skip
                measured = alone.submit(measure_pace, job).result()
                print(json.dumps(measured), flush=True)
                if "failed" not in measured:
                    break
                alone.shutdown()
                alone = training_pool(1)
            write_json(path, measured)
        found[name] = json.loads(path.read_text(encoding="utf-8"))
    alone.shutdown()
    return found


def in_parallel(jobs: Sequence[Job], processes: int, print_: Callable[[str], None]) -> list[dict[str, Any]]:
    """Carry out jobs, several at a time; one that fails is reported, and the others go on."""
    done = []
    with training_pool(processes) as pool:
        waiting = {pool.submit(carry_out, job): job for job in jobs}
        for future in as_completed(waiting):
            job = waiting[future]
            if error := future.exception():
                print_(f"{job.folder}: {type(error).__name__}: {error}")
                continue
            done.append(future.result())
            print_(f"{job.folder}: validation {done[-1]['validation']:.3f}")
    return done


def chosen_factors(work: Path, models: Sequence[str]) -> dict[str, float]:
    """The factor on the learning rate with the least error on validation, of each model that has trials."""
    found = {}
    for name in models:
        errors = {}
        for factor in TRIALS:
            path = work / "trials" / f"{name}-{factor}" / "league.json"
            if path.exists():
                errors[factor] = json.loads(path.read_text(encoding="utf-8"))["validation"]
        if errors:
            found[name] = min(errors, key=lambda factor: errors[factor])
    return found


def table(work: Path) -> dict[str, Any]:
    """A row for each model, of all runs in the work folder."""
    rows: dict[str, Any] = {}
    known = {
        folder: [json.loads(path.read_text("utf-8")) for path in sorted(work.glob(f"{folder}/*/*/seed-*/league.json"))]
        for folder in KINDS.values()
    }
    factors = chosen_factors(work, list(MODELS))
    for name in MODELS:
        pace = work / "pace" / f"{name}.json"
        row: dict[str, Any] = {"pace": json.loads(pace.read_text(encoding="utf-8")) if pace.exists() else None}
        row["trials"] = {
            str(factor): json.loads(path.read_text(encoding="utf-8"))["validation"]
            for factor in TRIALS
            if (path := work / "trials" / f"{name}-{factor}" / "league.json").exists()
        }
        row["learning_rate_times"] = factors.get(name)
        for kind, folder in KINDS.items():
            for inputs, told in INPUTS.items():
                of = [run for run in known[folder] if run["model"] == name and tuple(run["told"]) == told]
                if of:
                    row[inputs + kind] = summary(of)
        if any(name.startswith(tuple(INPUTS)) for name in row) or row["pace"]:
            rows[name] = row
    return rows


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Steps, and mean and standard deviation of errors, of runs that differ in their seeds."""
    names = ("relative_l2", "relative_l2_median", "published", "p95_error")
    found = {"seeds": len(runs), "steps": runs[0]["steps"], "validation": spread([run["validation"] for run in runs])}
    found |= {key: spread([run["test"]["model"][key] for run in runs]) for key in names}
    trivial = runs[0]["test"]
    return found | {"predict zero, mean": [trivial[key]["relative_l2"] for key in ("zero", "mean")]}


def steps_of(asked: argparse.Namespace, pace: dict[str, dict[str, Any]], name: str) -> int:
    """Steps of a model's runs: the same for all, or as many as take the same time."""
    if not asked.equal_time:
        return int(asked.steps)
    speeds = {name: found["million_points_a_second"] for name, found in pace.items() if "failed" not in found}
    return round(asked.steps * speeds[name] / min(speeds.values()))


def refuse_other_steps(
    folder: Path, asked: argparse.Namespace, pace: dict[str, dict[str, Any]], models: Sequence[str]
) -> None:
    """Refuse a folder whose runs have other numbers of steps: its runs are averaged in one row."""
    for path in sorted(folder.glob("*/*/seed-*/league.json")):
        run = json.loads(path.read_text("utf-8"))
        if run["model"] in models and run["steps"] != (steps := steps_of(asked, pace, run["model"])):
            raise SystemExit(f"{path.parent} has {run['steps']:,} steps, asked for are {steps:,}; take another --work")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set with the splits train, validation and test")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs, which are continued")
    parser.add_argument("--steps", type=int, default=4000, help="steps of each run")
    parser.add_argument("--trial_steps", type=int, default=400, help="steps of each trial of a learning rate")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--inputs", nargs="+", choices=tuple(INPUTS), default=list(INPUTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--processes", type=int, default=1, help="runs that share the device at a time")
    parser.add_argument("--equal_time", action="store_true", help="equal time instead of equal steps")
    parser.add_argument("--name", default="league", help="name of the result's file, which is replaced")
    parser.add_argument("--reduced", action="store_true", help="small models, to see that everything runs")
    return parser.parse_args()


def main() -> None:
    asked = parse()
    work, started = asked.work, time.monotonic()

    def note(line: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s: {line}", flush=True)

    pace = paces(asked, work)
    runnable = [name for name in asked.models if "failed" not in pace[name]]
    common = {"data": asked.data, "reduced": asked.reduced}
    trials = [
        Job(work / "trials" / f"{name}-{factor}", name=name, told=INPUTS["geometry"], steps=asked.trial_steps,
            factor=factor, graphs=pace[name]["step_graphs"], **common)
        for name in runnable for factor in TRIALS
    ]  # fmt: skip
    in_parallel(trials, asked.processes, note)
    factors = chosen_factors(work, runnable)
    folder = work / KINDS[", equal time" if asked.equal_time else ""]
    refuse_other_steps(folder, asked, pace, runnable)
    jobs = [
        Job(folder / inputs / name / f"seed-{seed}", name=name, told=INPUTS[inputs], steps=steps_of(asked, pace, name),
            factor=factors[name], graphs=pace[name]["step_graphs"], seed=seed, judged=True, **common)
        for seed in asked.seeds for inputs in asked.inputs for name in runnable if name in factors
    ]  # fmt: skip
    in_parallel(jobs, asked.processes, note)
    splits = {name: Split(asked.data, name) for name in ("train", "validation", "test")}
    content = {
        "what": "REDUCED: small models; the figures show only that everything runs, not how models compare"
        if asked.reduced
        else "the models of the paper on a simulated corpus, split by design, equal steps and trials; "
        "rows of equal time have steps of their own",
        "protocol": " ".join(" ".join((__doc__ or "").split("\n\n")[2:4]).split()),
        "steps": asked.steps,
        "equal_time": asked.equal_time,
        "trial_steps": asked.trial_steps,
        "recipe": EQUAL | ON_A_GPU,
        "data": {
            "sha256": splits["train"].data_digest,
            "cases": {name: len(split) for name, split in splits.items()},
            "points_mean": round(statistics.fmean(splits["train"].dataset.sizes.tolist())),
        },
        "machine": describe_training_machine(),
        "models": table(work),
    }
    print(save_result(asked.name + "_reduced" * asked.reduced, content))


if __name__ == "__main__":
    main()
