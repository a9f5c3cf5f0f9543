"""The numbers of the training system, in one command.

    python -m tests.benchmarks.train_models --data lpbf/ --work runs/numbers

On a GPU, with a corpus of 1,000 parts or more in train, validation and test splits by design, this trains and judges

- FLARE, the Transformer and Transolver in the paper's sizes under one recipe, three seeds each;
- FLARE in bf16-mixed and in FP32 at equal steps;
- FLARE on the least recoater clearance over the build, for recall at a stated rate of false alarms;
- FLARE with other numbers of blocks and latents, judged on validation.

Every run goes on where it was stopped, so the command may be cut and given again. `--size reduced` shrinks models and
steps until a laptop's CPU does it; its figures say so, and compare nothing but whether everything runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from flare_model.checkpoint import Normalisation, Usage
from flare_model.data import Split
from flare_model.evaluate import evaluate
from flare_model.model import Flare, FlareConfig
from flare_model.recipe import Recipe
from flare_model.spec import ModelSpec
from flare_model.surrogate import Surrogate
from flare_model.train import train
from tests.benchmarks.machine import describe_machine, save_result

RISK = "build_clearance_min"
FALSE_ALARMS = 0.1


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    models: dict[str, dict[str, Any]]
    sweep: tuple[tuple[int, int], ...]  # blocks, latents
    recipe: Recipe
    sweep_epochs: int
    seeds: tuple[int, ...]


FULL = Size(
    models={"Flare": {}, "Transformer": {}, "Transolver": {}},
    sweep=((2, 32), (2, 128), (4, 32), (4, 128), (8, 32), (8, 128)),
    recipe=Recipe(epochs=100, batch_size=4),
    sweep_epochs=40,
    seeds=(0, 1, 2),
)
REDUCED = Size(
    models={
        "Flare": {"channels": 32, "num_blocks": 2, "num_heads": 4, "num_latents": 16},
        "Transformer": {"channels": 32, "num_blocks": 2, "num_heads": 2},
        "Transolver": {"channels": 32, "num_blocks": 2, "num_heads": 4, "num_slices": 16},
    },
    sweep=((1, 4), (1, 16), (2, 4), (2, 16)),
    recipe=Recipe(epochs=8, batch_size=4),
    sweep_epochs=4,
    seeds=(0, 1),
)


class Table:
    """Runs models, and keeps the numbers of all jobs in one file from job to job."""

    def __init__(self, data: str, work: Path, size: Size, name: str) -> None:
        self.data, self.work, self.size, self.name = data, work, size, name
        self.content: dict[str, Any] = {}

    def run(self, job: str, model: dict[str, Any], recipe: Recipe, seeds: tuple[int, ...], target: str) -> Path:
        """Train in a folder of its own; finished runs are taken as they are."""
        folder = self.work / job
        train(self.data, out=str(folder), model=model, targets=[target], recipe=recipe, seed=list(seeds))
        return folder

    def judge(self, folder: Path) -> list[dict[str, Any]]:
        """Summaries on the test split, one a seed."""
        evaluate(str(folder), self.data, false_alarms=FALSE_ALARMS, worst=0)
        found = sorted(folder.glob("seed-*/evaluation/test/summary.json")) or [folder / "evaluation/test/summary.json"]
        return [json.loads(path.read_text()) for path in found]

    def save(self, job: str, numbers: Any) -> None:
        """Add the numbers of a job; each job's numbers stand on disk as soon as it is done."""
        self.content[job] = numbers
        print(f"{job}: {json.dumps(numbers)}", flush=True)
        save_result(self.name, self.content)


def spread(values: list[float | None]) -> dict[str, float] | None:
    """Mean and standard deviation; None where a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return {"mean": statistics.fmean(known), "sd": statistics.stdev(known) if len(known) > 1 else 0.0}


def models(table: Table) -> dict[str, Any]:
    """FLARE, the Transformer and Transolver under one recipe."""
    found: dict[str, Any] = {}
    for name, sizes in table.size.models.items():
        model = {"class_path": name, "init_args": {"config": sizes}}
        started = time.monotonic()
        summaries = table.judge(
            table.run(f"models/{name}", model, table.size.recipe, table.size.seeds, "displacement_z")
        )
        scores = [summary["scores"]["displacement_z"] for summary in summaries]
        found[name] = {
            "parameters": sum(p.numel() for p in ModelSpec(**model).fitted(3, 1).build().parameters()),
            **{k: spread([s["model"][k] for s in scores]) for k in ("relative_l2", "published", "mean_error", "r2")},
            "minutes": round((time.monotonic() - started) / 60, 2),
        }
        found["predict zero"] = {k: scores[0]["zero"][k] for k in ("relative_l2", "published", "mean_error", "r2")}
        found["predict the mean"] = {k: scores[0]["mean"][k] for k in ("relative_l2", "published", "mean_error", "r2")}
    return found


def precisions(table: Table) -> dict[str, Any]:
    """FLARE in bf16-mixed and in FP32 at equal steps."""
    model = {"class_path": "Flare", "init_args": {"config": table.size.models["Flare"]}}
    found = {}
    for precision in ("bf16-mixed", "32-true"):
        recipe = replace(table.size.recipe, precision=precision)
        started = time.monotonic()
        summaries = table.judge(table.run(f"precision/{precision}", model, recipe, table.size.seeds, "displacement_z"))
        found[precision] = {
            "relative_l2": spread([s["scores"]["displacement_z"]["model"]["relative_l2"] for s in summaries]),
            "minutes": round((time.monotonic() - started) / 60, 2),
        }
    return found


def interference(table: Table) -> dict[str, Any]:
    """Recall of recoater interference from predicted clearance, and from predicted displacement."""
    model = {"class_path": "Flare", "init_args": {"config": table.size.models["Flare"]}}
    recipe = replace(table.size.recipe, loss="mse")
    found: dict[str, Any] = {"false_alarm_rate_asked": FALSE_ALARMS}
    for target in (RISK, "build_displacement_z_max"):
        (summary,) = table.judge(table.run(f"interference/{target}", model, recipe, table.size.seeds[:1], target))
        found[target] = summary["interference"]
    return found


def sweep(table: Table) -> list[dict[str, Any]]:
    """Validation error over blocks and latents, and its curve."""
    rows = []
    for blocks, latents in table.size.sweep:
        config = table.size.models["Flare"] | {"num_blocks": blocks, "num_latents": latents}
        recipe = replace(table.size.recipe, epochs=table.size.sweep_epochs)
        model = {"class_path": "Flare", "init_args": {"config": config}}
        folder = table.run(f"sweep/{blocks}x{latents}", model, recipe, table.size.seeds[:1], "displacement_z")
        error = json.loads((folder / "result.json").read_text())["validation"]["displacement_z"]
        rows.append({"blocks": blocks, "latents": latents, "validation_relative_l2": error})
    return rows


def draw_sweep(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """The curve: one line a number of latents."""
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
    """Time to predict on the CPU with the paper's LPBF model."""
    surrogate = Surrogate(Flare(FlareConfig()), Usage(Normalisation(), ("displacement_z",))).eval()
    part = torch.rand(points, 3) * 60
    times = []
    with torch.inference_mode():
        for _ in range(5):
            started = time.perf_counter()
            surrogate(part)
            times.append(time.perf_counter() - started)
    return {"points": points, "threads": torch.get_num_threads(), "seconds": round(statistics.median(times[1:]), 3)}


JOBS = {"models": models, "precisions": precisions, "interference": interference, "sweep": sweep}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a built data set with train, validation and test")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs; given again, they go on")
    parser.add_argument("--size", choices=("full", "reduced"), default="full")
    parser.add_argument("--epochs", type=int, help="other than the size's")
    parser.add_argument("--batch_size", type=int, help="other than the size's")
    parser.add_argument("--compile", default="off", choices=("off", "default", "reduce-overhead"))
    parser.add_argument("--only", nargs="+", choices=tuple(JOBS), default=list(JOBS))
    asked = parser.parse_args()
    size = FULL if asked.size == "full" else REDUCED
    changed = {name: value for name in ("epochs", "batch_size") if (value := getattr(asked, name)) is not None}
    size = replace(size, recipe=replace(size.recipe, compile=asked.compile, **changed))
    table = Table(asked.data, asked.work, size, "train_models" if asked.size == "full" else "train_models_reduced")
    splits = {name: Split(asked.data, name) for name in ("train", "validation", "test")}
    gpu = torch.cuda.is_available()
    table.content = {
        "what": "FLARE, Transformer and Transolver on a simulated corpus, split by design"
        if asked.size == "full"
        else "REDUCED: small models and few steps on a CPU; these figures show that everything runs, not how models compare",
        "command": "python -m tests.benchmarks.train_models --data lpbf/ --work runs/numbers"
        + (" --size reduced" if asked.size == "reduced" else ""),
        "data": {
            "sha256": splits["train"].data_digest,
            "cases": {name: len(split) for name, split in splits.items()},
            "points_mean": round(statistics.fmean(splits["train"].dataset.sizes.tolist())),
        },
        "recipe": asdict(size.recipe),
        "seeds": size.seeds,
        "machine": describe_machine(("numpy", "torch", "pyarrow"))
        | {"gpu": torch.cuda.get_device_name() if gpu else None, "threads": torch.get_num_threads()},
    }
    for job in asked.only:
        numbers = JOBS[job](table)
        table.save(job, numbers)
        if job == "sweep":
            title = "FLARE" if asked.size == "full" else "FLARE, reduced: small models, few steps"
            draw_sweep(numbers, Path(__file__).parent / "results" / f"{table.name}_sweep.png", title)
    table.save("prediction_on_the_cpu", prediction_seconds())


if __name__ == "__main__":
    os.environ.setdefault("TQDM_MININTERVAL", "10")
    main()
