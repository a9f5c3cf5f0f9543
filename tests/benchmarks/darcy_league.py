"""How do FLARE, the Transformer and two Transolvers (without and with convolution) compare on the Darcy benchmark?

    python -m pipelines.benchmarks.darcy --out darcy/ --cases 1200
    python -m pipelines.benchmarks.convert darcy --src darcy/ --out darcy_set/
    python -m tests.benchmarks.darcy_league --data darcy_set/ --work runs/darcy_league --minutes 4 --processes 4

This is Table 2 of the FLARE paper, for Darcy alone. Each model has the size and the recipe of its configuration
(`flare_model/configs/darcy*.yaml`): batches, learning rate, warm-up, decay, clipping and the loss's gradient term, in
FP32 with products in TF32, as published. Two things differ from the paper: the number of epochs (500 there), and the
cases, which are made by the published recipe but aren't the published ones.

All models see the same number of epochs: that of `--epochs`, or as many as all can finish in `--minutes`, by the speed
of a few steps of each that are timed first. The learning rate's schedule ends with the last step; the weights of that
step are evaluated on the test split, once.

Needs a GPU to compare anything; `--processes` trainings run at a time, spread over all visible GPUs. Figures go to
`--out`, by default results/darcy_league.json, after each training, and trainings that are in the file are not done
again. A model whose steps can't be recorded as CUDA graphs is trained by steps launched one by one; the file says
which. `--keep` copies trained models, for `paper_spectrum`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from tests.benchmarks.darcy_runs import Job, Kept, Slots, clock, opened, time_steps, trivial_errors, ways_of
from tests.benchmarks.machine import RESULTS, describe_training_machine

MODELS: Final = {
    "Transformer": "darcy_transformer",
    "GridTransolver": "darcy_grid_transolver",
    "Flare": "darcy",
    "Transolver": "darcy_transolver",
}
"""Models and their configurations, the slowest first."""

PAPER: Final = {"Flare": 5.10e-3, "Transformer": 4.38e-3, "Transolver": 18.6e-3, "GridTransolver": 5.94e-3}
"""Relative L2 errors in Table 2 of the paper, after 500 epochs on the published cases."""

NAMES: Final = {"GridTransolver": "Transolver with convolution", "Transolver": "Transolver without convolution"}
REDUCED: Final = {"channels": 16, "num_blocks": 1, "num_heads": 4, "num_latents": 8, "num_slices": 8}


def jobs_of(asked: argparse.Namespace, epochs: int) -> list[Job]:
    """The trainings of the models that were asked for."""
    jobs = []
    for name in asked.models:
        recipe: dict[str, Any] = {"epochs": epochs, "tf32": True}
        if asked.precision != "recipe":
            recipe |= {"precision": asked.precision}
        key = f"{name}-{epochs}-epochs-{asked.precision}-seed-{asked.seed}"
        sizes: dict[str, Any] = dict(reduced(name)) if asked.reduced else {}
        if asked.deviation:
            sizes["initial_deviation"] = asked.deviation
            key += f"-from-{asked.deviation:g}"
        jobs.append(
            Job(
                key, asked.data, MODELS[name], asked.work, sizes, recipe,
                max_steps=asked.max_steps, seed=asked.seed, facts={"model": name, "epochs": epochs},
                keep=asked.keep,
            )
        )  # fmt: skip
    return jobs


def reduced(name: str) -> dict[str, int]:
    """Sizes of a small model, for `--reduced`."""
    left_out = {"Flare": {"num_slices"}, "Transformer": {"num_slices", "num_latents"}}
    return {key: value for key, value in REDUCED.items() if key not in left_out.get(name, {"num_latents"})}


def epochs_in(minutes: float, ms_a_step: Mapping[str, float], steps: Mapping[str, int], gpus: int) -> int:
    """Epochs that all trainings finish in the time, sharing the GPUs.

    Args:
        minutes: The time.
        ms_a_step: Milliseconds a step of each training, by its key.
        steps: Steps of an epoch of each training, by its key.
        gpus: GPUs that they share.
    """
    an_epoch = [ms_a_step[key] * steps[key] for key in ms_a_step]
    return max(1, math.floor(minutes * 60_000 / max([sum(an_epoch) / gpus, *an_epoch])))


def rows_of(content: Mapping[str, Any]) -> list[str]:
    """The figures as the lines of a Markdown table, by ascending error."""
    lines = [
        "| model | parameters | epochs | relative L2 × 1e-3 | the paper's, 500 epochs | ms a step | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    runs = [run for run in content["runs"].values() if run.get("test_relative_l2") is not None]
    for run in sorted(runs, key=lambda run: run["test_relative_l2"]):
        name = NAMES.get(run["model"], run["model"]) + ("" if run["precision"] == "32-true" else ", bf16-mixed")
        if deviation := run.get("sizes", {}).get("initial_deviation"):
            name += f", weights from {deviation:g}"
        paper = f"{PAPER[run['model']] * 1e3:.2f}"
        lines.append(
            f"| {name} | {run['parameters']:,} | {run['epochs']} | {run['test_relative_l2'] * 1e3:.2f} | {paper} | "
            f"{run['ms_a_step']:.1f} | {run['seconds']:.0f} |"
        )
    for name, error in content.get("trivial", {}).items():
        lines.append(f"| the training cases' {name.replace('_', ' ')} | | | {error * 1e3:.0f} | | | |")
    return lines


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="darcy", help="data set made by pipelines.benchmarks.convert darcy")
    parser.add_argument("--work", type=Path, default=Path("runs/darcy_league"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "darcy_league.json", help="JSON file of the figures")
    parser.add_argument("--keep", type=Path, help="folder that trained models are copied to, for paper_spectrum")
    parser.add_argument("--only", dest="models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument("--epochs", type=int, default=20, help="epochs of each training")
    how_long.add_argument("--minutes", type=float, help="time for all trainings, in place of epochs")
    parser.add_argument("--max_steps", type=int, help="stop after so many steps, to see that everything runs")
    parser.add_argument("--processes", type=int, default=len(MODELS), help="trainings at a time")
    parser.add_argument("--precision", choices=("recipe", "bf16-mixed"), default="recipe")
    parser.add_argument(
        "--deviation", type=float, help="standard deviation of the first weights, if not the configurations' 0.02"
    )
    parser.add_argument(
        "--graphs", choices=("auto", "yes", "no"), default="auto", help="steps as CUDA graphs; auto: if it works"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reduced", action="store_true", help="small models, to see that everything runs")
    parser.add_argument("--show", action="store_true", help="only print the table of the figures in --out")
    return parser.parse_args(words)


def main() -> None:
    asked, note = parse(), clock()
    if asked.show:
        print("\n".join(rows_of(json.loads(asked.out.read_text(encoding="utf-8")))))
        return
    train = opened(asked.data, "train")
    kept = Kept(
        asked.out,
        {
            "what": ("REDUCED: small models; figures show only that everything runs. " if asked.reduced else "")
            + "Darcy, 85 x 85, cases made here by the published recipe; models and recipes of the paper, fewer epochs",
            "data": {"sha256": train.data_digest, "cases": {n: len(opened(asked.data, n)) for n in ("train", "test")}},
            "processes": asked.processes,
            "paper": PAPER,
            "machine": describe_training_machine(),
        },
    )
    with Slots(asked.processes, ways_of(asked.graphs)) as slots:
        epochs = asked.epochs
        if asked.minutes:
            jobs = jobs_of(asked, 500)
            pace = time_steps(jobs, slots)
            steps = {job.key: math.ceil(len(train) / job.settings(graphs=False).recipe.batch_size) for job in jobs}
            if not pace:
                raise SystemExit("no model could be timed; see the .log files in --work")
            epochs = epochs_in(asked.minutes, pace, steps, max(1, torch.cuda.device_count()))
            note(f"{epochs} epochs")
        jobs = [job for job in jobs_of(asked, epochs) if job.key not in kept.runs]

        def tell(job: Job, found: dict[str, Any] | None, failures: dict[str, str]) -> None:
            kept.note(job.key, found, failures)
            error = found and found.get("test_relative_l2")
            note(f"{job.key}: {error if found else ''} {failures or ''}")

        slots.each(jobs, tell)
        if "trivial" not in kept.content:
            kept.update({"trivial": trivial_errors(asked.data)})
    print("\n".join(rows_of(kept.content)))
    print(asked.out)


if __name__ == "__main__":
    main()
