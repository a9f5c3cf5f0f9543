"""How do FLARE, the Transformer and Transolver compare under one recipe; what do precision, kernels and size change?

    python -m tests.benchmarks.train_models --data lpbf/ --work runs/numbers --processes 8

On a GPU, with a corpus of 1,000 parts or more with the splits train, validation and test, this trains and evaluates

- FLARE, the Transformer and Transolver in the paper's sizes under one recipe, three seeds each;
- FLARE in bf16-mixed and in FP32, and FLARE by the kernels and by attention calls, for a quarter of the epochs and with
  three seeds each;
- FLARE on the least recoater clearance over the build, for its recall of hits at a stated rate of false alarms, beside
  the recall that all models reach by the displacement that they predict;
- FLARE with other numbers of blocks and latents, evaluated on validation.

Parts are mirrored and turned at random. The standard deviation of each model's first weights was chosen before, among
0.02, 0.05 (not tried for Transolver) and 0.08, by the least error on validation after 350 steps of 4 parts thinned to
600 points. On a GPU steps are recorded as CUDA graphs, but for those of FLARE by attention calls.

The models are small and leave most of a GPU idle, so runs share it: each in a process of its own, `--processes` at a
time; under NVIDIA's MPS their kernels run at the same time, otherwise in turns. `--epochs` sets the number of epochs,
the same for all runs; `--minutes` chooses it from the time of a few steps of all runs. Runs are continued where they
were interrupted, so the same command with the same `--epochs` may be given again. `--size reduced` shrinks models and
steps until a CPU can do it, to see that everything runs; its figures don't compare the models.

The result goes to results/train_models.json (or train_models_reduced.json), the sweep's picture beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from flare_model.checkpoints.files import Usage
from flare_model.checkpoints.spec import ModelSpec
from flare_model.checkpoints.surrogate import Surrogate
from flare_model.data.normalisation import Normalisation
from flare_model.data.splits import Split
from flare_model.evaluate import evaluate
from flare_model.models.flare import Flare, FlareConfig
from flare_model.train import train
from flare_model.training.recipe import Recipe
from tests.benchmarks.machine import describe_training_machine, save_result
from tests.benchmarks.workers import training_pool

BENCHMARK = "displacement_z"
RISK = "build_clearance_min"
FALSE_ALARMS = 0.1
VALIDATIONS = 4
"""Number of validations of a run."""

SHORT, LONG = 10, 40
"""Steps of two short runs; the difference of their times is that of steps alone."""


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    models: dict[str, dict[str, Any]]
    sweep: tuple[tuple[int, int], ...]  # blocks, latents
    recipe: Recipe
    seeds: tuple[int, ...]
    shorter: int  # epochs of the runs that compare precisions and implementations: one in so many


FULL = Size(
    models={"Flare": {"initial_deviation": 0.05}, "Transformer": {}, "Transolver": {}},
    sweep=((2, 32), (2, 128), (8, 32), (8, 128)),
    recipe=Recipe(epochs=50, batch_size=8),
    seeds=(0, 1, 2),
    shorter=4,
)
REDUCED = Size(
    models={
        "Flare": {"channels": 32, "num_blocks": 2, "num_heads": 4, "num_latents": 16},
        "Transformer": {"channels": 32, "num_blocks": 2, "num_heads": 2},
        "Transolver": {"channels": 32, "num_blocks": 2, "num_heads": 4, "num_slices": 16},
    },
    sweep=((1, 4), (1, 16), (2, 4), (2, 16)),
    recipe=Recipe(epochs=8, batch_size=4),
    seeds=(0, 1),
    shorter=2,
)


@dataclass(frozen=True)
class Run:
    """One model, one recipe, one seed.

    Attributes:
        place: Folder below the work folder; runs that differ in the seed alone share one.
        model: Class path and init args.
        recipe: Its recipe.
        target: The field that it predicts.
        seed: Its seed.
        judged: Whether it is evaluated on the test split; others have a validation error alone.
    """

    place: str
    model: dict[str, Any]
    recipe: Recipe
    target: str
    seed: int
    judged: bool = True

    def folder(self, work: Path) -> Path:
        """The folder of the run."""
        return work / self.place / f"seed-{self.seed}"


def plan(size: Size, *, gpu: bool) -> list[Run]:
    """All runs, the longest first; a run that two comparisons need is made once."""
    names = ("bf16-mixed", "32-true") if gpu else ("32-true", "bf16-mixed")
    mixed, other = (replace(size.recipe, precision=name) for name in names)
    graphs = {"step_graphs": True, "round_points": 2048} if gpu else {}
    flare, runs = size.models["Flare"], []

    def add(place: str, name: str, sizes: dict[str, Any], recipe: Recipe, target: str, seed: int) -> None:
        model = {"class_path": name, "init_args": {"config": sizes}}
        if recipe.mixer != "sdpa" and (name == "Flare" or recipe.precision != "32-true"):
            recipe = replace(recipe, **graphs)
        runs.append(Run(place, model, recipe, target, seed, judged=not place.startswith("sweep")))

    short = max(1, size.recipe.epochs // size.shorter)
    for name, sizes in reversed(size.models.items()):
        for seed in size.seeds:
            add(f"models/{name}", name, sizes, mixed, BENCHMARK, seed)
    for seed in size.seeds:
        add("mixers/sdpa", "Flare", flare, replace(mixed, epochs=short, mixer="sdpa"), BENCHMARK, seed)
        add(f"precisions/{other.precision}", "Flare", flare, replace(other, epochs=short), BENCHMARK, seed)
    add(f"interference/{RISK}", "Flare", flare, replace(mixed, loss="mse"), RISK, size.seeds[0])
    whole = asdict(FlareConfig(**flare))
    for blocks, latents in sorted(size.sweep, reverse=True):
        if (blocks, latents) != (whole["num_blocks"], whole["num_latents"]):
            sizes = flare | {"num_blocks": blocks, "num_latents": latents}
            add(f"sweep/{blocks}x{latents}", "Flare", sizes, mixed, BENCHMARK, size.seeds[0])
    for seed in size.seeds:
        add(f"precisions/{mixed.precision}", "Flare", flare, replace(mixed, epochs=short), BENCHMARK, seed)
    return runs


def _train(run: Run, data: str, folder: Path, *, validate_every: int, max_steps: int | None = None) -> None:
    train(
        data,
        out=str(folder),
        model=run.model,
        targets=[run.target],
        recipe=run.recipe,
        seed=[run.seed],
        symmetries=True,
        max_steps=max_steps,
        validate_every=validate_every,
    )


def run_few_steps(run: Run, data: str, work: Path, steps: int) -> None:
    """Make a few steps of a run, in a folder that is not used again."""
    with quiet(work / "rehearsal" / f"{run.place.replace('/', '-')}-{run.seed}-{steps}.log"):
        folder = run.folder(work / "rehearsal" / str(steps))
        _train(run, data, folder, validate_every=steps + 1, max_steps=steps)


def carry_out(run: Run, data: str, work: Path) -> float:
    """Train, and evaluate on the test split if the run says so; returns the minutes of training."""
    folder = run.folder(work)
    with quiet(folder.with_suffix(".log")):
        started = time.monotonic()
        _train(run, data, folder, validate_every=max(1, run.recipe.epochs // VALIDATIONS))
        minutes = (time.monotonic() - started) / 60
        if run.judged:
            evaluate(str(folder), data, false_alarms=FALSE_ALARMS, worst=0)
    return minutes


@contextlib.contextmanager
def quiet(log: Path) -> Any:
    """Append everything that is printed within the block to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def choose_epochs(pool: ProcessPoolExecutor, runs: Sequence[Run], asked: argparse.Namespace, steps: int) -> int:
    """The number of epochs that fits into `--minutes`.

    Args:
        pool: Processes that will carry out the runs.
        runs: All runs.
        asked: The command line.
        steps: Steps of an epoch.
    """
    times, began = [], time.monotonic()
    for count in (1, SHORT, LONG):  # The first run of one step does imports, and fills caches.
        started = time.monotonic()
        list(pool.map(run_few_steps, runs, *zip(*[(asked.data, asked.work, count)] * len(runs), strict=True)))
        times.append(time.monotonic() - started)
    a_step = (times[2] - times[1]) / (LONG - SHORT)
    around = max(0.0, times[1] - SHORT * a_step)  # opening, validating, writing
    left = (asked.minutes * 60 - (time.monotonic() - began)) / 1.15 - around * VALIDATIONS  # 15 % in reserve
    seconds = ", ".join(f"{seconds:.1f}" for seconds in times)
    print(
        f"short runs: {seconds} s; {1000 * a_step:.1f} ms a step of all runs, {around:.1f} s beside the steps",
        flush=True,
    )
    return max(2, math.floor(left / (a_step * steps)))


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and standard deviation; None where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known) if len(known) > 1 else 0.0}


def summaries(work: Path, place: str) -> list[dict[str, Any]]:
    """The summaries that `flare_model.evaluate` wrote for all seeds of a place."""
    return [json.loads(path.read_text()) for path in sorted((work / place).glob("seed-*/evaluation/test/summary.json"))]


def scored(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of errors on the test split."""
    model = [summary["scores"][BENCHMARK]["model"] for summary in found]
    return {k: spread([s[k] for s in model]) for k in ("relative_l2", "published", "mean_error", "p95_error", "r2")}


def interference(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of recall and false alarms, for each rule that predicts a hit."""
    out: dict[str, Any] = {"ranking_quality": spread([s["interference"]["ranking_quality"] for s in found])}
    for way in ("by_threshold", "by_the_solvers_rule"):
        if all(way in summary["interference"] for summary in found):
            rows = [summary["interference"][way] for summary in found]
            out[way] = {name: spread([row[name] for row in rows]) for name in ("recall", "false_alarm_rate")}
            out[way] |= {name: rows[0][name] for name in ("hits", "clear")}
    return out


def tables(size: Size, work: Path, runs: Sequence[Run], minutes: dict[tuple[str, int], float]) -> dict[str, Any]:
    """The figures of all runs that are finished."""
    out: dict[str, Any] = {
        "models": {},
        "precisions": {},
        "mixers": {},
        "interference": {"false_alarm_rate_asked": FALSE_ALARMS},
    }
    for run in runs:
        kind, name = run.place.split("/")
        if kind == "sweep" or (found := summaries(work, run.place)) == []:
            continue
        if kind == "interference":
            out[kind][f"Flare on {RISK}"] = interference(found)
            continue
        took = {"minutes": spread([m for (place, _), m in minutes.items() if place == run.place])}
        numbers = {"precision": run.recipe.precision, "seeds": len(found), **scored(found), **took}
        if kind == "models":
            built = ModelSpec(**run.model).fitted(3, 1).build()
            out["models"][name] = {"parameters": sum(p.numel() for p in built.parameters()), **numbers}
            out["interference"][f"{name} on {BENCHMARK}"] = interference(found)
            of_test = found[0]["scores"][BENCHMARK]
            out["predict zero"] = {k: of_test["zero"][k] for k in ("relative_l2", "published", "mean_error", "r2")}
            out["predict the mean"] = {k: of_test["mean"][k] for k in ("relative_l2", "published", "mean_error", "r2")}
        if kind in ("precisions", "mixers"):
            out[kind][name] = numbers
    out["sweep"] = swept(size, work)
    return out


def swept(size: Size, work: Path) -> list[dict[str, Any]]:
    """Validation errors of the first seed, by blocks and latents."""
    whole = asdict(FlareConfig(**size.models["Flare"]))
    rows = []
    for blocks, latents in size.sweep:
        same = (blocks, latents) == (whole["num_blocks"], whole["num_latents"])
        place = "models/Flare" if same else f"sweep/{blocks}x{latents}"
        path = work / place / f"seed-{size.seeds[0]}" / "result.json"
        if path.exists():
            error = json.loads(path.read_text())["validation"][BENCHMARK]
            rows.append({"blocks": blocks, "latents": latents, "validation_relative_l2": error})
    return rows


def draw_sweep(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw validation error over blocks, one line for each number of latents."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for latents in sorted({row["latents"] for row in rows}):
        mine = [row for row in rows if row["latents"] == latents]
        axis.plot(
            [r["blocks"] for r in mine], [r["validation_relative_l2"] for r in mine], marker="o", label=f"M = {latents}"
        )
    axis.set_xticks(sorted({row["blocks"] for row in rows}))
    axis.set_xlabel("blocks")
    axis.set_ylabel("relative L2 error on validation")
    axis.set_title(title)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def prediction_seconds(points: int = 20_000) -> dict[str, float]:
    """Median seconds of a prediction on the CPU by a FLARE of the paper's size for LPBF."""
    surrogate = Surrogate(Flare(FlareConfig()), Usage(Normalisation(), (BENCHMARK,))).eval()
    part = torch.rand(points, 3) * 60
    times = []
    with torch.inference_mode():
        for _ in range(5):
            started = time.perf_counter()
            surrogate(part)
            times.append(time.perf_counter() - started)
    return {"points": points, "threads": torch.get_num_threads(), "seconds": round(statistics.median(times[1:]), 3)}


def describe(asked: argparse.Namespace, recipe: Recipe, size: Size) -> dict[str, Any]:
    """Entries of the file beside the figures."""
    splits = {name: Split(asked.data, name) for name in ("train", "validation", "test")}
    command = "python -m tests.benchmarks.train_models --data lpbf/ --work runs/numbers"
    return {
        "what": "FLARE, Transformer and Transolver on a simulated corpus, split by design"
        if asked.size == "full"
        else "REDUCED: small models, few steps, one CPU core; the figures show only that everything runs",
        "command": f"{command} --size {asked.size} --epochs {recipe.epochs} --processes {asked.processes}",
        "data": {
            "sha256": splits["train"].data_digest,
            "cases": {name: len(split) for name, split in splits.items()},
            "points_mean": round(statistics.fmean(splits["train"].dataset.sizes.tolist())),
        },
        "recipe": asdict(recipe),
        "steps": recipe.epochs * math.ceil(len(splits["train"]) / recipe.batch_size),
        "seeds": size.seeds,
        "machine": describe_training_machine() | {"threads": torch.get_num_threads()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set with the splits train, validation and test")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs, which are continued")
    parser.add_argument(
        "--size", choices=("full", "reduced"), default="full", help="reduced: to see that everything runs"
    )
    parser.add_argument("--epochs", type=int, help="epochs of a run, if not the size's")
    parser.add_argument("--minutes", type=float, help="choose the epochs so that all runs take about so long")
    parser.add_argument("--batch_size", type=int, help="parts of a batch, if not the size's")
    parser.add_argument("--processes", type=int, default=1, help="runs that share the GPU at a time")
    asked = parser.parse_args()
    size = FULL if asked.size == "full" else REDUCED
    changed = {name: value for name in ("epochs", "batch_size") if (value := getattr(asked, name)) is not None}
    size = replace(size, recipe=replace(size.recipe, **changed))
    name = "train_models" if asked.size == "full" else "train_models_reduced"
    torch.set_num_threads(1)
    with training_pool(asked.processes) as pool:
        runs = plan(size, gpu=torch.cuda.is_available())
        if asked.minutes:
            steps = math.ceil(len(Split(asked.data, "train")) / size.recipe.batch_size)
            epochs = choose_epochs(pool, runs, asked, steps)
            size = replace(size, recipe=replace(size.recipe, epochs=epochs))
            runs = plan(size, gpu=torch.cuda.is_available())
        content = describe(asked, size.recipe, size)
        print(json.dumps(content), flush=True)
        started, failed = time.monotonic(), False
        minutes: dict[tuple[str, int], float] = {}
        waiting = {pool.submit(carry_out, run, asked.data, asked.work): run for run in runs}
        for done in as_completed(waiting):
            run = waiting[done]
            failed |= done.exception() is not None
            if done.exception() is None:
                minutes[run.place, run.seed] = done.result()
            said = done.exception() or "done"
            print(f"{time.monotonic() - started:6.1f} s: {run.place}, seed {run.seed}: {said}", flush=True)
            save_result(name, content | tables(size, asked.work, runs, minutes))
    title = "FLARE" if asked.size == "full" else "FLARE, reduced: small models, few steps"
    content |= tables(size, asked.work, runs, minutes)
    content["prediction_on_the_cpu"] = prediction_seconds()
    path = save_result(name, content)
    draw_sweep(content["sweep"], path.with_name(f"{name}_sweep.png"), title)
    sys.exit(int(failed))


if __name__ == "__main__":
    os.environ.setdefault("TQDM_MININTERVAL", "10")
    main()
