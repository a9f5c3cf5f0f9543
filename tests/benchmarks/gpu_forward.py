"""How fast are forward pass and training step over a million points beside an earlier version's, and how large may a
mesh be that one GPU predicts on?

    git worktree add ../earlier 27981e5
    python -m tests.benchmarks.gpu_forward OUT.json --earlier ../earlier

- `million`: FLARE's forward pass without gradients, by kernels and by attention calls, eager and compiled; in bf16.
- `earlier`: forward pass and step (forward, backward, AdamW) by the kernels of this version and of that in the folder
  --earlier, eager and compiled, in processes of their own that take turns.
- `large`: forward passes over 1, 10 and 100 million points, whole and in chunks, and how far both are apart.

Needs one GPU with the memory for 100 million points, some 30 GiB, and no data. Committed is results/gpu_forward.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from flare_model.models import chunked_forward
from flare_model.models.flare import Flare
from tests.benchmarks.gpu_timing import describe_gpu, milliseconds, peak_gib

POINTS: Final = 1_000_000
LARGE: Final = (1_000_000, 10_000_000, 100_000_000)
TURNS: Final = 3
"""Times that both versions are timed, in turns."""

WITHIN_AN_EARLIER_TREE: Final = """
import json, statistics, sys, torch
try:
    from flare_model.models.flare import Flare, FlareConfig
    model = Flare(mixer="triton")
except ImportError:
    from flare_model.model import Flare, FlareConfig
    model = Flare(FlareConfig(mixer="triton"))
compiled, points = sys.argv[1] == "compiled", int(sys.argv[2])
model = model.cuda()
if compiled:
    model.compile(dynamic=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
x, y = torch.rand(points, 3, device="cuda"), torch.randn(points, 1, device="cuda")
offsets = torch.tensor([0, points])

def forward():
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return model(x, None, offsets)

def predict():
    with torch.no_grad():
        return forward()

def step():
    loss = (forward() - y).norm() / y.norm()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

def milliseconds(function):
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(); function(); end.record(); end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])

found = {"forward": milliseconds(predict)}
torch.cuda.reset_peak_memory_stats()
predict()
found["forward_gib"] = torch.cuda.max_memory_allocated() / 2**30
found["step"] = milliseconds(step)
torch.cuda.reset_peak_memory_stats()
step()
found["step_gib"] = torch.cuda.max_memory_allocated() / 2**30
print(json.dumps(found))
"""


def predict(model: nn.Module, points: Tensor) -> Tensor:
    """A forward pass without gradients, in bf16."""
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        out: Tensor = model(points, None, torch.tensor([0, len(points)]))
    return out


def million() -> dict[str, dict[str, float]]:
    """Time and memory of a forward pass of a million points."""
    points, rows = torch.rand(POINTS, 3, device="cuda"), {}
    for name, mixer, compiled in (
        ("kernels", "triton", False),
        ("kernels, compiled", "triton", True),
        ("paper, eager", "sdpa", False),
        ("paper, compiled", "sdpa", True),
    ):
        torch.manual_seed(0)
        model = Flare(mixer=mixer).cuda()
        if compiled:
            model.compile(dynamic=True)
        call: Callable[[], Tensor] = lambda m=model: predict(m, points)  # type: ignore[misc]  # noqa: E731
        took = milliseconds(call, 1000.0, 10, 2)
        rows[name] = {"ms": took, "peak_gib": peak_gib(call)}
        print(name, rows[name], flush=True)
        torch.compiler.reset()
    return rows


def beside(earlier: Path, modes: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians of both versions over their turns, eager, compiled or both."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    here = Path(__file__).parents[2]
    for how in modes:
        runs: dict[str, list[dict[str, float]]] = {"this": [], "earlier": []}
        for _ in range(TURNS):
            for name, tree in (("this", here), ("earlier", earlier)):
                runs[name].append(_timed_in(tree, how))
        found[how] = {
            name: {key: statistics.median(run[key] for run in several) for key in several[0]}
            for name, several in runs.items()
        }
        found[how]["earlier over this"] = {
            key: found[how]["earlier"][key] / found[how]["this"][key] for key in found[how]["this"]
        }
        print(how, found[how], flush=True)
    return found


def _timed_in(tree: Path, how: str) -> dict[str, float]:
    """What the code in a folder takes, measured by a process that has that code."""
    path = os.pathsep.join([str(tree), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [sys.executable, "-c", WITHIN_AN_EARLIER_TREE, how, str(POINTS)],
        cwd=tree, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the version in {tree} can't be timed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def large() -> list[dict[str, Any]]:
    """Forward passes over ever more points, in chunks and whole."""
    torch.manual_seed(0)
    model, rows = Flare(mixer="triton").cuda(), []
    for count in LARGE:
        points = torch.rand(count, 3, device="cuda")
        row: dict[str, Any] = {"points": count}
        found: dict[str, Tensor] = {}
        for name, limit in (("in chunks", 0), ("whole", sys.maxsize)):
            try:
                row[name], found[name] = _with_limit(model, points, limit)
            except torch.OutOfMemoryError as error:
                row[name] = {"does_not_fit": str(error)[:120]}
            torch.cuda.empty_cache()
        if len(found) == 2:
            difference = (found["in chunks"].double() - found["whole"].double()).norm()
            row["difference"] = float(difference / found["whole"].double().norm())
        print(row, flush=True)
        rows.append(row)
    return rows


def _with_limit(model: nn.Module, points: Tensor, limit: int) -> tuple[dict[str, float], Tensor]:
    """Time and memory of a forward pass, done in chunks where there are more points than limit."""
    before = chunked_forward.GPU_LARGE
    chunked_forward.GPU_LARGE = limit  # type: ignore[misc]
    try:
        predict(model, points[: 1 << 19])  # Kernels are compiled.
        begin = time.perf_counter()
        kept: list[Tensor] = []
        peak = peak_gib(lambda: kept.append(predict(model, points).cpu()))
        return {"seconds": time.perf_counter() - begin, "peak_gib": peak}, kept[0]
    finally:
        chunked_forward.GPU_LARGE = before  # type: ignore[misc]


PARTS: Final = ("million", "earlier", "large")
MODES: Final = ("eager", "compiled")


def main(out: Path, earlier: Path | None, parts: list[str], modes: Sequence[str] = MODES) -> None:
    """Measure, print, write; what the file has of other parts stays."""
    result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    for part in parts:
        if part == "earlier":
            assert earlier is not None
            rows: Any = beside(earlier, modes)
        else:
            rows = million() if part == "million" else large()
        result[part] = {"gpu": describe_gpu(), "rows": rows}
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--earlier", type=Path, help="folder with an earlier version of this repository")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="of the part earlier")
    chosen = parser.parse_args()
    if "earlier" in chosen.parts and chosen.earlier is None:
        parser.error("the part earlier needs --earlier FOLDER; or name other --parts")
    main(chosen.out, chosen.earlier, chosen.parts, chosen.modes)
