"""The main job end to end, as `make demo` runs it: results in, data set, a trained model, a picture.

Every step is a command that a user would type; it is printed before it runs. Without `--src` two dozen small parts are
simulated first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from lpbf_data.manifest import decode_manifest


def run(*words: str) -> None:
    """Print a command, run it, and stop with its status if it fails."""
    print(f"\n$ python {' '.join(words)}", flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"  {time.monotonic() - started:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder that everything goes to")
    parser.add_argument("--src", help="NetFabb results of your own")
    parser.add_argument("--cases", type=int, default=24, help="parts to simulate without --src")
    parser.add_argument("--points", type=int, default=800, help="their median size")
    parser.add_argument("--epochs", type=int, default=None, help="epochs to train")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    src, data, training = options.src or str(out / "netfabb_out"), out / "lpbf", out / "run"
    if options.src is None:
        run("-m", "pipelines.simulate", "--out", src, "--cases", str(options.cases), "--points", str(options.points))
    run("-m", "pipelines.build", "--src", src, "--out", str(data))
    run("-m", "pipelines.verify", str(data))
    epochs = options.epochs or (30 if options.src is None else 5)
    run("-m", "flare_model.train", "--data", str(data), "--out", str(training), "--recipe.epochs", str(epochs))
    manifest = decode_manifest((data / "manifest.parquet").read_bytes())
    print(f"\ndata set    {data}/ (report.html, README.md, manifest.parquet)")
    for record in manifest.records:
        if record.placement is not None and len(manifest) <= 8:
            z = record.statistics["displacement_z"]
            points = record.measures.num_points if record.measures else 0
            print(f"  {record.case_id}: {points:,} points, Z displacement {z.minimum:.5f} … {z.maximum:.5f} mm")
    print(f"checkpoint  {training}/")


if __name__ == "__main__":
    main()
