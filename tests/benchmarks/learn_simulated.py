"""How well does FLARE learn from 200 simulated parts of about 2,000 points in half an hour on one CPU core?

    OMP_NUM_THREADS=1 python -m tests.benchmarks.learn_simulated --work runs/learn

Simulates 520 parts, builds a data set of those that the filters keep, with splits by design, trains once, and
evaluates once on designs that the training never saw, beside predicting zero and predicting the training mean. Every
step is a command that is printed and stored with its times. The processor's seconds count, because other work may run
beside.

Needs no GPU and no data. The result goes to results/learn_simulated.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from lpbf_data.stores.manifest import decode_manifest
from tests.benchmarks.machine import describe_machine, save_result

CASES: Final = 520
SIMULATION: Final = ("--cases", str(CASES), "--points", "2000", "--seed", "1")
SPLITS: Final = ("--splits", "train=0.74,validation=0.05,test=0.21")
TRAINING: Final = (
    *("--model.init_args.config.num_blocks", "3"),
    *("--model.init_args.config.channels", "48"),
    *("--model.init_args.config.num_heads", "6"),
    *("--model.init_args.config.num_latents", "64"),
    *("--model.init_args.config.mixer_layers", "1"),
    *("--model.init_args.config.pointwise_layers", "1"),
    *("--model.init_args.config.initial_deviation", "0.08"),
    *("--thin_to", "512", "--symmetries", "true"),
    *("--recipe.learning_rate", "1e-3"),
    *("--validate_every", "10"),
)
"""A smaller model than the paper's; in each epoch each part is reduced to 512 points that are drawn anew."""

LARGEST_SHARE: Final = 0.5
"""Largest allowed error, as a share of that of predicting the training mean."""

HALF_AN_HOUR: Final = 1800.0  # seconds


def run(commands: list[dict[str, Any]], *words: str) -> None:
    """Run a command, and note its seconds."""
    print(f"\n$ python {' '.join(words)}", flush=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, *words], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    noted = {"cpu_seconds": round(cpu, 1), "wall_seconds": round(time.monotonic() - started, 1)}
    commands.append({"command": f"python {' '.join(words)}", **noted})
    print(noted, flush=True)


def shorten(command: str, work: Path, src: str) -> str:
    """A command with the names of folders as documented, instead of this machine's."""
    return command.replace(src, "netfabb_out").replace(str(work), "runs/learn")


def describe_data(data: Path) -> dict[str, Any]:
    """Numbers of parts and designs, and median number of points, of each split."""
    records = [r for r in decode_manifest((data / "manifest.parquet").read_bytes()).records if r.placement]
    found: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        mine = [r for r in records if r.placement and r.placement.split == split]
        points = sorted(r.measures.num_points for r in mine if r.measures)
        found[split] = {
            "parts": len(mine),
            "designs": len({r.design_id for r in mine}),
            "points_median": points[len(points) // 2],
        }
    return found


def main() -> None:
    """Simulate, build, train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/learn"), help="folder that everything goes to")
    parser.add_argument("--src", help="folder of parts that were simulated before, with the same options")
    parser.add_argument("--epochs", type=int, default=300, help="epochs to train; 300 take about half an hour")
    options = parser.parse_args()
    work: Path = options.work
    src, data, folder = options.src or str(work / "netfabb_out"), work / "lpbf", work / "run"
    commands: list[dict[str, Any]] = []
    epochs = ("--recipe.epochs", str(options.epochs))
    if options.src is None:
        run(commands, "-m", "pipelines.simulate", "--out", src, *SIMULATION, "--workers", "1")
    run(commands, "-m", "pipelines.build", "--src", src, "--out", str(data), *SPLITS, "--workers", "1", "--no_report")
    run(commands, "-m", "flare_model.train", "--data", str(data), "--out", str(folder), *TRAINING, *epochs)
    training = commands[-1]
    run(commands, "-m", "flare_model.evaluate", "--checkpoint", str(folder), "--data", str(data))
    summary = json.loads((folder / "evaluation" / "test" / "summary.json").read_text(encoding="utf-8"))
    scores = summary["scores"]["displacement_z"]
    errors = {name: round(scores[name]["relative_l2"], 4) for name in ("model", "zero", "mean")}
    with (folder / "validation.csv").open(encoding="utf-8") as file:
        validation = [{"epoch": int(row["epoch"]), "relative_l2": float(row["mean"])} for row in csv.DictReader(file)]
    result = {
        "machine": describe_machine(("numpy", "torch", "pyamg", "numba", "scikit-fem")),
        "simulation": list(SIMULATION),
        "commands": [{**one, "command": shorten(one["command"], work, src)} for one in commands],
        "data": describe_data(data),
        "validation": validation,
        "scores": scores,
        "test_relative_l2": errors,
        "share_of_predict_mean": round(errors["model"] / errors["mean"], 4),
        "share_allowed": LARGEST_SHARE,
        "within": errors["model"] <= LARGEST_SHARE * errors["mean"] and training["cpu_seconds"] <= HALF_AN_HOUR,
    }
    print(save_result("learn_simulated", result), errors, result["share_of_predict_mean"])


if __name__ == "__main__":
    main()
