"""How much faster are whole training steps of FLARE and FLARE++ with the kernels than with attention calls, on one GPU?

    python -m tests.benchmarks.gpu_step million|largest|lpbf|profile OUT.json [NAME ...]
    python -m tests.benchmarks.gpu_step summary OUT.json PART.json ...

- `million`: time and memory of a step on a million points, by kernels and by attention calls, eager and compiled.
- `lpbf`: points a second on parts of the sizes of real ones, one part a step. Only steps with kernels are also recorded
  as CUDA graphs, so the ratio of such a row to one with attention calls includes the cost of launching.
- `largest`: steps of ever more points with activation checkpointing, until memory is used up; a number behind OUT.json
  limits memory to as many GiB, 78 for a GPU of 80 GB.
- `profile`: time of each kernel of a step.
- `summary`: joins files, and adds the ratios of the fastest row of FLARE with kernels to those with attention calls.

Without names `million` and `lpbf` measure all rows of FLARE; a name is that of a row, and `flare++` stands for all
rows of FLARE++. The lower bound beside the times is that of an H100. Rows called "paper" are attention calls.

Needs one GPU and no data. The result goes to OUT.json; committed are results/gpu_step.json,
gpu_step_compiled.json and, of an H200, gpu_step_hopper.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.data.metrics import relative_l2_loss
from flare_model.models.flare import Flare, FlareConfig
from flare_model.models.flare_plus_plus import FlarePlusPlus
from flare_model.training.optimizer import make_optimizer
from flare_model.training.recipe import Recipe
from flare_model.training.recorded.step_graphs import StepGraphs
from tests.benchmarks.gpu_timing import describe_gpu, exclusive, milliseconds, peak_gib

EXPONENTIALS_A_SECOND = 3.7e12
POINTWISE_SECONDS_A_POINT = 0.63e-9
"""Seconds a point of a block's pointwise operations, if they were fused and limited by the memory of an H100."""

LPBF_CELLS = (
    170, 920, 1919, 2520, 3168, 3780, 4368, 4900, 5390, 5820, 6400, 6990, 7560, 8190, 8800, 9420, 10010, 10568, 11180,
    11800, 12400, 13050, 13700, 14300, 15000, 15650, 16331, 17000, 17800, 18600, 19400, 20300, 21200, 22100, 23006,
    24300, 25680,
)  # fmt: skip
"""Cells of real parts, about evenly from the smallest to the largest; points are taken as proportional to them."""
LPBF_MEAN_POINTS = 21_000
LPBF_STEPS = 275_000
"""Steps of a full training on LPBF in the paper."""

_ROUNDED = 1024
"""Before recording, parts are filled up to a multiple of this many points; each size is recorded once."""


def _sizes() -> list[int]:
    factor = LPBF_MEAN_POINTS * len(LPBF_CELLS) / sum(LPBF_CELLS)
    return [round(cells * factor) for cells in LPBF_CELLS]


class Step:
    """One training step: forward, loss, backward, clipping, AdamW.

    Args:
        mixer: Implementation of the mixing: "triton" (kernels) or "sdpa" (attention calls).
        compiled: Mode of torch.compile; "off" for none.
        checkpointing: Whether the blocks' activations are computed again in the backward pass.
        graphs: Whether steps are recorded as CUDA graphs.
        model: The model, in its default sizes.
    """

    def __init__(
        self,
        mixer: str,
        compiled: str = "off",
        *,
        checkpointing: bool = False,
        graphs: bool = False,
        model: type[Flare | FlarePlusPlus] = Flare,
    ) -> None:
        torch.manual_seed(0)
        self.model = model(mixer=mixer).cuda()  # type: ignore[arg-type]
        self.model.activation_checkpointing = checkpointing
        recipe = Recipe(learning_rate=1e-4)
        self.optimizer = make_optimizer(self.model, recipe, torch.device("cuda"), recorded=graphs)
        if compiled != "off":
            self.model.compile(mode=None if compiled == "default" else compiled, dynamic=True)
        self.compiled = compiled != "off"
        self.graphs = StepGraphs(self._differentiate, self._update, self.optimizer, self.model) if graphs else None

    def __call__(self, batch: Batch) -> Tensor:
        if self.graphs:
            return self.graphs(batch)
        loss = self._differentiate(batch.on("cuda") if self.compiled and len(batch.offsets) > 2 else batch)
        self._update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _differentiate(self, batch: Batch) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            prediction = self.model(batch.points, None, batch.offsets)
        loss = relative_l2_loss(prediction, batch.targets, batch.offsets, cases=len(batch))
        loss.backward()
        return loss.detach()

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


@contextlib.contextmanager
def _freed() -> Iterator[None]:
    try:
        yield
    finally:
        torch.compiler.reset()
        torch.cuda.empty_cache()


def _case(count: int) -> Batch:
    points, target = torch.rand(count, 3, device="cuda"), torch.randn(count, 1, device="cuda")
    return Batch(points, None, target, torch.tensor([0, count]), ("",))


_PLUS: dict[str, Callable[[], Step]] = {
    "flare++: kernels, compiled": lambda: Step("triton", "default", model=FlarePlusPlus),
    "flare++: kernels, checkpointed": lambda: Step("triton", checkpointing=True, model=FlarePlusPlus),
    "flare++: kernels": lambda: Step("triton", model=FlarePlusPlus),
    "flare++: attention, compiled": lambda: Step("sdpa", "default", model=FlarePlusPlus),
    "flare++: attention, eager": lambda: Step("sdpa", model=FlarePlusPlus),
}
_PLUS_GRAPHS = "flare++: kernels, step graphs"


def _named(name: str, names: tuple[str, ...]) -> bool:
    """Whether a row was asked for, by its name or with all of its model."""
    model = "flare++" if name.startswith("flare++") else "flare"
    return name in names or model in (names or ("flare",))


def lower_bound_ms(count: int) -> float:
    """Lower bound of a step's time on an H100: exponentials of the mixers, and pointwise work at full bandwidth."""
    config = FlareConfig()
    exponentials = 4 * count * config.num_latents * config.num_heads / EXPONENTIALS_A_SECOND
    return config.num_blocks * (exponentials + count * POINTWISE_SECONDS_A_POINT) * 1e3


def million(*names: str) -> dict[str, Any]:
    """Time and peak memory of a step of a million points."""
    steps = {
        "kernels, compiled": lambda: Step("triton", "default"),
        "kernels, checkpointed": lambda: Step("triton", checkpointing=True),
        "kernels": lambda: Step("triton"),
        "paper, compiled": lambda: Step("sdpa", "default"),
        "paper, eager": lambda: Step("sdpa"),
        **_PLUS,
    }
    steps = {name: make for name, make in steps.items() if _named(name, names)}
    for make in steps.values():
        _compile(make, [_case(20_000)])
    case, rows = _case(1_000_000), {}
    with exclusive():
        for name, make in steps.items():
            with _freed():
                step = make()
                losses = [float(step(case)) for _ in range(3)]
                took = milliseconds(lambda s=step: s(case), 1500.0, 5, 1)
                rows[name] = {"ms": took, "peak_gib": peak_gib(lambda s=step: s(case)), "losses": losses}
                print(name, rows[name], flush=True)
                del step
    return {"points": 1_000_000, "lower_bound_ms": lower_bound_ms(1_000_000), "rows": rows}


def _compile(make: Callable[[], Step], cases: list[Batch]) -> float:
    """Fill the compilers' caches, which others need not wait for; returns the seconds it took."""
    begin = time.monotonic()
    with _freed():
        step = make()
        for case in cases:
            step(case.filled(_ROUNDED) if step.graphs else case)
        torch.cuda.synchronize()
    return time.monotonic() - begin


def profile(*_: str) -> dict[str, float]:
    """Milliseconds that each kind of kernel takes in a step of a million points with the kernels."""
    step, case = Step("triton", "default"), _case(1_000_000)
    for _ in range(2):
        step(case)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        step(case)
        torch.cuda.synchronize()
    times = {e.key[:60]: e.self_device_time_total / 1e3 for e in record.key_averages() if e.self_device_time_total > 50}
    found = dict(sorted(times.items(), key=lambda item: -item[1])[:30])
    print(json.dumps(found, indent=0), flush=True)
    return found


def largest(*limit: str) -> dict[str, Any]:
    """Make steps of ever more points until memory is used up."""
    if limit:
        whole = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, float(limit[0]) / whole))
    rows: list[dict[str, Any]] = []
    for count in (8_000_000, 16_000_000, 24_000_000, 32_000_000, 36_000_000, 40_000_000, 44_000_000, 48_000_000):
        try:
            with _freed():
                step, case = Step("triton", checkpointing=True), _case(count)
                losses: list[float] = []
                begin = time.monotonic()
                peak = peak_gib(lambda s=step, c=case, x=losses: x.append(float(s(c))))
                rows.append({"points": count, "peak_gib": peak, "seconds": time.monotonic() - begin, "loss": losses[0]})
                print(rows[-1], flush=True)
        except torch.OutOfMemoryError as error:
            rows.append({"points": count, "does_not_fit": str(error)[:200]})
            print(rows[-1], flush=True)
            break
    return {"limit_gib": limit[0] if limit else None, "rows": rows}


def _drive(step: Step, sizes: list[int], seconds: float) -> dict[str, float]:
    """Points a second over some seconds, after two steps of every size. Points that were filled in don't count."""
    torch.cuda.reset_peak_memory_stats()
    cases = [_case(size).filled(_ROUNDED) if step.graphs else _case(size) for size in sizes]
    begin = time.monotonic()
    for case in cases * 2:
        step(case)
    torch.cuda.synchronize()
    warming = time.monotonic() - begin
    order = random.Random(0).choices(range(len(cases)), k=2000)
    begin, taken, done = time.monotonic(), 0, 0
    for number in order:
        step(cases[number])
        taken, done = taken + sizes[number], done + 1
        if done % 10 == 0:
            torch.cuda.synchronize()
            if time.monotonic() - begin > seconds:
                break
    elapsed = time.monotonic() - begin
    return {
        "steps": done, "ms_a_step": elapsed / done * 1e3, "points_a_second": taken / elapsed, "warming_s": warming,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }  # fmt: skip


def lpbf(*names: str) -> dict[str, Any]:
    """Measure training on one case a step, of the sizes of real parts.

    cuDNN's attention is switched off, as in training: it takes seconds of planning for every new number of points.
    """
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    sizes = _sizes()
    rows: dict[str, dict[str, float]] = {}
    todo: dict[str, tuple[Callable[[], Step], float]] = {
        "kernels, step graphs": (lambda: Step("triton", graphs=True), 60.0),
        "kernels, compiled, step graphs": (lambda: Step("triton", "default", graphs=True), 60.0),
        "kernels, eager": (lambda: Step("triton"), 5.0),
        "paper, eager": (lambda: Step("sdpa"), 8.0),
        "paper, compiled": (lambda: Step("sdpa", "default"), 8.0),
        _PLUS_GRAPHS: (lambda: Step("triton", graphs=True, model=FlarePlusPlus), 8.0),
        **{name: (make, 5.0) for name, make in _PLUS.items() if "checkpointed" not in name},
    }
    todo = {name: what for name, what in todo.items() if _named(name, names)}
    few = [_case(size) for size in (sizes[-1], sizes[0], sizes[len(sizes) // 4])]
    compiling = {name: _compile(make, few) for name, (make, _) in todo.items()}
    with exclusive():
        for name, (make, seconds) in todo.items():
            with _freed():
                rows[name] = _drive(make(), sizes, seconds)
            rows[name]["warming_s"] += compiling[name]
            print(name, rows[name], flush=True)
    return {"sizes": sizes, "rows": rows}


def summary(*parts: str) -> dict[str, Any]:
    """Join rows of several files, and add ratios between them."""
    found: dict[str, Any] = {}
    for part in parts:
        content = json.loads(Path(part).read_text(encoding="utf-8"))
        for what in ("million", "lpbf", "largest"):
            if what in content:
                rows = found.get(what, {}).get("rows", {})
                found[what] = content[what] | {
                    "rows": (rows | content[what]["rows"]) if rows else content[what]["rows"]
                }
        found["gpu"] = content["gpu"]
    ways = {"million": lambda row: 1e9 / row["ms"], "lpbf": lambda row: row["points_a_second"]}
    for what, speed in ways.items():
        if what in found:
            speeds = {n: speed(row) for n, row in found[what]["rows"].items() if not n.startswith("flare++")}
            if not speeds:
                continue
            best = max((name for name in speeds if name.startswith("kernels")), key=speeds.__getitem__)
            found[what] |= {"best": best} | {
                f"over {name}": speeds[best] / value for name, value in speeds.items() if name.startswith("paper")
            }
    if "best" in found.get("million", {}):
        best = found["million"]["rows"][found["million"]["best"]]["ms"]
        found["million"]["times_lower_bound"] = best / found["million"]["lower_bound_ms"]
    if "best" in found.get("lpbf", {}):
        row = found["lpbf"]["rows"][found["lpbf"]["best"]]
        found["lpbf"]["full_run_minutes"] = LPBF_STEPS * row["ms_a_step"] / 6e4
    return found


MEASURED = {"million": million, "profile": profile, "largest": largest, "lpbf": lpbf}


def main(what: str, out: str, *names: str) -> None:
    """Measure, write, print."""
    result = summary(*names) if what == "summary" else {what: MEASURED[what](*names), "gpu": describe_gpu()}
    Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*MEASURED, "summary"])
    parser.add_argument("out", metavar="OUT.json")
    parser.add_argument("names", nargs="*", metavar="NAME | PART.json")
    chosen = parser.parse_args()
    main(chosen.what, chosen.out, *chosen.names)
