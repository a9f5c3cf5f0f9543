"""The main job end to end, as `make demo` runs it: results, data set, trained model, its errors, a picture.

Every step is a command that a user would type; it is printed before it runs. Without `--src` two dozen small parts of
two families are simulated first: a dozen similar parts are enough to learn something about others like them. What is
learned from more parts, and of all families, the benchmark `tests.benchmarks.learn_simulated` says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from lpbf_data.stores.manifest import decode_manifest

SMALL_MODEL: Final = (
    *("--model.init_args.config.num_blocks", "3"),
    *("--model.init_args.config.num_latents", "32"),
    *("--model.init_args.config.mixer_layers", "1"),
    *("--model.init_args.config.pointwise_layers", "1"),
    *("--model.init_args.config.initial_deviation", "0.08"),
)
"""A smaller model than the paper's, for a short training on a CPU."""

FAMILIES: Final = ("bridge", "cantilever")
"""Families that are simulated: parts that bend."""


def run(*words: str) -> None:
    """Print a command, run it, and stop with its status if it fails."""
    print(f"\n$ python {' '.join(words)}", flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"  {time.monotonic() - started:.1f} s", flush=True)


def unseen_cases(data: Path) -> list[str]:
    """Ids of the test cases, which training doesn't see."""
    manifest = decode_manifest((data / "manifest.parquet").read_bytes())
    return sorted(r.case_id for r in manifest.records if r.placement and r.placement.split == "test")


def print_parts(data: Path, most: int = 8) -> None:
    """Print size and range of the Z displacement of each part, if there are at most `most`."""
    kept = [r for r in decode_manifest((data / "manifest.parquet").read_bytes()).records if r.placement and r.measures]
    for record in kept if len(kept) <= most else ():
        z = record.statistics["displacement_z"]
        points = record.measures.num_points if record.measures else 0
        print(f"  {record.case_id}: {points:,} points, Z displacement {z.minimum:.5f} … {z.maximum:.5f} mm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder that everything goes to")
    parser.add_argument("--src", help="your own results of NetFabb")
    parser.add_argument("--cases", type=int, default=24, help="parts to simulate without --src")
    parser.add_argument("--points", type=int, default=800, help="median number of points of the simulated parts")
    parser.add_argument("--epochs", type=int, default=None, help="epochs to train")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    src, data, training = options.src or str(out / "netfabb_out"), out / "lpbf", out / "run"
    if options.src is None:
        size = ("--cases", str(options.cases), "--points", str(options.points))
        run("-m", "pipelines.simulate", "--out", src, *size, "--families", *FAMILIES)
    run("-m", "pipelines.build", "--src", src, "--out", str(data))
    run("-m", "pipelines.verify", str(data))
    epochs = options.epochs or (60 if options.src is None else 5)
    where = ("--data", str(data), "--out", str(training))
    run("-m", "flare_model.train", *where, *SMALL_MODEL, "--recipe.epochs", str(epochs), "--validate_every", "10")
    unseen = unseen_cases(data)
    if unseen:
        trained = ("--checkpoint", str(training))
        run("-m", "flare_model.evaluate", *trained, "--data", str(data), "--worst", "0")
        place = ("--out", str(out / "prediction"))
        run("-m", "flare_model.predict", *trained, "--src", str(data), "--case", unseen[0], *place)
    print(f"\ndata set    {data}/ (report.html, README.md, manifest.parquet)")
    print_parts(data)
    print(f"checkpoint  {training}/")
    if unseen:
        print(f"errors      {training}/evaluation/test/")
        print(f"picture     {out}/prediction/{unseen[0]}_displacement_z.png (truth, prediction, error)")
    print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
