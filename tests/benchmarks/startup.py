"""How long do users wait for help, for an error in the options, and for a prediction of a small part?

    python -m tests.benchmarks.startup [--turns 7] [--before CHECKOUT]

Each command runs in a process of its own, in turn with a process that does `import torch` alone, so that other work on
the machine slows both. Ratios are of the least times of all turns, elapsed and of the processor. With `--before` an
older checkout of this repository is timed too, but once: compare its processor time, not its elapsed time, and expect
it to look slower than a least time of several turns would.

Needs no GPU and no data. The result goes to results/startup.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.machine import describe_machine, save_result

REPOSITORY: Final = Path(__file__).parents[2]
LARGEST_RATIO: Final = 0.5  # allowed for help and errors, relative to `import torch`

IMPORT: Final = ["-c", "import torch"]


def prepare(folder: Path) -> None:
    """A checkpoint of the published sizes with fresh weights, and a part of 576 points as STL and as mesh."""
    import trimesh

    from flare_model.checkpoints.files import Normalisation, Usage
    from flare_model.checkpoints.surrogate import Surrogate
    from flare_model.models.flare import Flare
    from flare_model.predict import Prediction, write_vtu
    from flare_model.prediction.parts import Meshing, read_parts

    Surrogate(Flare(), Usage(Normalisation(), ("displacement_z",))).eval().save_pretrained(folder / "model")
    trimesh.creation.box((20, 10, 12)).export(folder / "part.stl")
    part = next(read_parts(folder / "part.stl", Meshing(546)))
    write_vtu(folder / "part.vtu", Prediction(part, {}, {}, {}, (), 0.0))


def commands(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Name to the arguments of Python and the exit status that is expected."""
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    modules = sorted(place.partition(":")[0] for place in scripts.values())
    found = {f"{module} --help": (["-m", module, "--help"], 0) for module in modules}
    found |= {f"{module} --nonsense": (["-m", module, "--nonsense"], 2) for module in modules}
    predict = [
        "-m",
        "flare_model.predict",
        "--checkpoint",
        str(folder / "model"),
        "--out",
        str(folder / "out"),
        "--src",
    ]
    found["prediction of a mesh"] = ([*predict, str(folder / "part.vtu"), "--pictures", "false"], 0)
    found["prediction of a surface"] = (
        [*predict, str(folder / "part.stl"), "--pictures", "false", "--points", "546"],
        0,
    )
    found["prediction with a picture"] = ([*predict, str(folder / "part.vtu")], 0)
    return found


def seconds_of(arguments: list[str], checkout: Path, folder: Path, status: int = 0) -> tuple[float, float]:
    """Elapsed seconds of one process, and its processor seconds (user and system)."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, code, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(code)
    assert process.returncode == status, (arguments, process.returncode)
    return wall, usage.ru_utime + usage.ru_stime


def measure(checkouts: dict[str, Path], folder: Path, turns: int) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Seconds of every turn, by checkout and command; by "torch" and command those of the `import torch` before it."""
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    asked = commands(folder)
    for turn in range(turns + 1):
        for name, (arguments, status) in asked.items():
            runs = [("torch", name, IMPORT, REPOSITORY, 0)]
            runs += [
                (which, name, arguments, place, status)
                for which, place in checkouts.items()
                if which == "now" or turn == 1
            ]
            for which, label, words, place, expected in runs:
                seconds = seconds_of(words, place, folder, expected)
                if turn:  # The first turn fills caches, those of Python's compiled files among them.
                    rows.setdefault((which, label), []).append(seconds)
        print(f"turn {turn} of {turns}", flush=True)
    return rows


def summary(runs: list[tuple[float, float]], torch: list[tuple[float, float]]) -> dict[str, Any]:
    """Least and median seconds, and ratios of the least to those of `import torch` in the same turns."""
    wall, cpu = zip(*runs, strict=True)
    torch_wall, torch_cpu = zip(*torch, strict=True)
    return {
        "wall_seconds": round(min(wall), 3),
        "wall_seconds_median": round(statistics.median(wall), 3),
        "cpu_seconds": round(min(cpu), 3),
        "cpu_seconds_median": round(statistics.median(cpu), 3),
        "wall_over_import_torch": round(min(wall) / min(torch_wall), 3),
        "cpu_over_import_torch": round(min(cpu) / min(torch_cpu), 3),
    }


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="folder of an older checkout of this repository")
    parser.add_argument("--turns", type=int, default=7, help="turns of which the least time counts")
    options = parser.parse_args()
    before = options.before
    checkouts = {"now": REPOSITORY} | ({"before": before.absolute()} if before else {})
    with tempfile.TemporaryDirectory() as base:
        prepare(Path(base))
        rows = measure(checkouts, Path(base), options.turns)
        names = list(commands(Path(base)))
    result: dict[str, Any] = {
        "machine": describe_machine(("jsonargparse", "numpy", "torch", "lightning-fabric", "torch-geometric")),
        "turns": options.turns,
        "import torch": summary(
            [s for n in names for s in rows["torch", n]], [s for n in names for s in rows["torch", n]]
        ),
    }
    for which in checkouts:
        result[which] = {name: summary(rows[which, name], rows["torch", name]) for name in names}
    waits = [row for name, row in result["now"].items() if not name.startswith("prediction")]
    result["largest_ratio_of_help_and_errors"] = {
        kind: max(row[f"{kind}_over_import_torch"] for row in waits) for kind in ("wall", "cpu")
    }
    result["ratio_allowed"] = LARGEST_RATIO
    result["within"] = max(result["largest_ratio_of_help_and_errors"].values()) <= LARGEST_RATIO
    print(save_result("startup", result), result["largest_ratio_of_help_and_errors"])


if __name__ == "__main__":
    main()
