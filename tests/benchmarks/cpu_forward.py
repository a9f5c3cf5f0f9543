"""How fast is the package's own model on a CPU: by kernels of our own, and by PyTorch's operators?

    python -m tests.benchmarks.cpu_forward [--points 20000 100000 ...] [--turns 7] [--others]

Forward passes without gradients over one mesh of random points, by PyTorch's operators (`sdpa`) and by the kernels
(`auto`) in turn, so that other work on the machine slows both; and the time that a new process takes to import the
compiler and to compile the kernels. With `--others`, two more ways for 20,000 points: the operators compiled by
torch.compile, and in bfloat16 by autocast. Beside other work on the same cores ratios were larger than without.

Needs no GPU and no data. The result goes to results/cpu_forward.json; numbers of points that it has already are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from flare_model import from_pretrained
from flare_model.layers.mixer import mix_by
from flare_model.models.flare import Flare
from tests.benchmarks.machine import RESULTS, describe_machine, save_result

START: Final = """
import json, time
import torch

started = time.perf_counter()
import llvmlite.binding, llvmlite.ir
imported = time.perf_counter()
from flare_model.kernels.cpu.attention import decoder, encoder
from flare_model.kernels.cpu.network import network_kernel

network_kernel(), encoder(8), decoder(8)
print(json.dumps({"import": imported - started, "compile": time.perf_counter() - imported}))
"""


def start(turns: int) -> dict[str, float]:
    """Median seconds that new processes take before the kernels can run."""
    rows = []
    for _ in range(max(turns, 1)):
        done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}


def packaged_model() -> Flare:
    """FLARE of the model that comes with the package."""
    return next(module for module in from_pretrained().modules() if isinstance(module, Flare)).eval()


def seconds(call: Callable[[], Tensor]) -> float:
    """Elapsed seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@torch.no_grad()
def compare(model: Flare, points: int, turns: int) -> dict[str, Any]:
    """Seconds of both ways, and their errors relative to float64 where that takes little time."""
    x = torch.randn(1, points, model.config.in_dim, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    taken: dict[str, list[float]] = {"sdpa": [], "auto": []}
    for turn in range(turns + 1):
        for implementation, row in taken.items():
            mix_by(model, implementation)
            duration = seconds(lambda: model(x))
            if turn or not turns:
                row.append(duration)
    found: dict[str, Any] = {"turns": turns}
    for implementation, row in taken.items():
        found[f"{implementation}_seconds_median"] = round(statistics.median(row), 3)
        found[f"{implementation}_seconds_least"] = round(min(row), 3)
    found["times_as_fast_by_medians"] = round(statistics.median(taken["sdpa"]) / statistics.median(taken["auto"]), 2)
    found["times_as_fast_by_least"] = round(min(taken["sdpa"]) / min(taken["auto"]), 2)
    if points <= 20_000:
        found["relative_l2_error"] = errors(model, x)
    return found


def errors(model: Flare, x: Tensor) -> dict[str, float]:
    """Relative L2 errors of both ways against float64."""
    predicted = {}
    for implementation in ("sdpa", "auto"):
        mix_by(model, implementation)
        predicted[implementation] = model(x)
    exact = model.double()(x.double())
    model.float()
    return {name: float((one - exact).norm() / exact.norm()) for name, one in predicted.items()}


@torch.no_grad()
def other_ways(model: Flare, points: int, turns: int) -> dict[str, float]:
    """Median seconds of PyTorch's operators in other ways, and of the operators as they are in the same turns."""
    x = torch.randn(1, points, model.config.in_dim).clamp(-3, 3)
    mix_by(model, "sdpa")
    compiled: nn.Module = torch.compile(model)

    def in_16_bits() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    ways = {"sdpa": lambda: model(x), "bfloat16 by autocast": in_16_bits, "torch.compile": lambda: compiled(x)}
    first = {f"{name}, first call": round(seconds(call), 2) for name, call in ways.items()}
    rows = [{name: seconds(call) for name, call in ways.items()} for _ in range(turns)]
    return first | {name: round(statistics.median(row[name] for row in rows), 3) for name in ways}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="*", default=[20_000, 100_000])
    parser.add_argument("--turns", type=int, default=7, help="turns of a median, after one; with 0 that one")
    parser.add_argument("--others", action="store_true", help="torch.compile and bfloat16 too")
    options = parser.parse_args()
    path = RESULTS / "cpu_forward.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"points": {}}
    result["machine"] = describe_machine(("torch", "llvmlite", "numpy")) | {"threads": torch.get_num_threads()}
    model = packaged_model()
    for points in options.points:
        result["points"][str(points)] = found = compare(model, points, options.turns)
        print(points, found, flush=True)
    result["seconds_before_the_first_call"] = start(options.turns)
    if options.others:
        result["other_ways_at_20000"] = other_ways(model, 20_000, options.turns)
    print(save_result("cpu_forward", result), result)


if __name__ == "__main__":
    main()
