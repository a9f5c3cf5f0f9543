"""Training over several GPUs of one machine: one mesh divided over them, and a batch on each.

torchrun --nproc_per_node N -m tests.benchmarks.gpu_scaling --out gpu_scaling.json
torchrun --nproc_per_node N -m tests.benchmarks.gpu_scaling --out gpu_scaling.json --parts ddp
python -m tests.benchmarks.gpu_scaling --out gpu_scaling.json --add other.json --picture gpu_scaling.png

Results of one N replace what the file had of it, and are written after each measurement. What one GPU takes is measured
beside it, in the same process and by the code that knows of no others. Without GPUs it runs on the CPU, by gloo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from flare_model.data.metrics import relative_l2_loss
from flare_model.data.point_ranks import PointRanks
from flare_model.models.divided import divided
from flare_model.models.flare import Flare
from flare_model.training.optimizer import make_optimizer
from flare_model.training.recipe import Recipe
from tests.benchmarks.gpu_processes import WAIT, Machine, join, saver

MILLION: Final = 1_000_000
GIB_A_MILLION: Final = {False: 14.5, True: 4.0}
"""Memory of a step, by whether activations are computed again; what wouldn't fit by this is left out."""

CHECKPOINTED: Final = 6 * MILLION
"""Meshes of more points are trained with activations computed again, on any number of GPUs."""

_ALONE: Final[dict[tuple[object, ...], tuple[dict[str, Any], Any]]] = {}
"""What one GPU took and found, by mesh and way of training: weak scaling begins where strong scaling ended."""


class Step:
    """One step of training: forward, loss, backward, clipping, AdamW.

    Args:
        machine: Where.
        checkpointing: Compute activations again.
        dtype: What autocast takes products in; None for float32.
    """

    def __init__(
        self, machine: Machine, *, checkpointing: bool = False, dtype: torch.dtype | None = torch.bfloat16
    ) -> None:
        torch.manual_seed(0)
        self.machine, self.dtype = machine, dtype
        self.model = Flare(machine.config).to(machine.device)
        self.model.activation_checkpointing = checkpointing
        self.optimizer = make_optimizer(self.model, Recipe(learning_rate=1e-4), machine.device)

    def differentiate(self, points: Tensor, truth: Tensor, ranks: PointRanks | None) -> Tensor:
        """The loss of one mesh, whose gradients are those of all its points then."""
        offsets = torch.tensor([0, len(points)])
        autocast = torch.autocast(
            self.machine.device.type, dtype=self.dtype or torch.bfloat16, enabled=bool(self.dtype)
        )
        with autocast, divided(self.model, ranks) if ranks else nullcontext():
            prediction = self.model(points, None, offsets)
        loss = relative_l2_loss(prediction, truth, offsets, ranks=ranks)
        loss.backward()
        if ranks:
            ranks.sum_gradients(self.model)
        return loss.detach()

    def __call__(self, points: Tensor, truth: Tensor, ranks: PointRanks | None) -> None:
        self.differentiate(points, truth, ranks)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def numbers(self, points: Tensor, truth: Tensor, ranks: PointRanks | None) -> tuple[float, Tensor]:
        """Loss and gradients, in one row."""
        loss = self.differentiate(points, truth, ranks)
        flat = torch.cat([p.grad.reshape(-1).double() for p in self.model.parameters() if p.grad is not None])
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss), flat


def make_mesh(machine: Machine, count: int) -> tuple[Tensor, Tensor]:
    """The same points and truth on each process."""
    generator = torch.Generator(machine.device).manual_seed(count)
    points = torch.rand(count, 3, device=machine.device, generator=generator)
    waves = torch.sin(points @ points.new_tensor([[7.0], [5.0], [3.0]]))
    return points, waves + 0.1 * torch.randn(count, 1, device=machine.device, generator=generator)


def _seconds(machine: Machine, function: Callable[[], None], *, alone: bool) -> list[float]:
    """Times of a call, each the longest over the processes where it isn't one alone, after one that warms up."""
    meet = (torch.cuda.synchronize if machine.on_gpu else (lambda: None)) if alone else machine.meet
    times: list[float] = []
    for calls in (1, 1, *[2] * 5):
        if sum(times) > 6.0 and len(times) >= 4:
            break
        meet()
        begin = time.perf_counter()
        for _ in range(1 if times and times[-1] > 1.0 else calls):
            function()
        if machine.on_gpu:
            torch.cuda.synchronize()
        took = (time.perf_counter() - begin) / (1 if times and times[-1] > 1.0 else calls)
        times.append(took if alone else machine.most(took))
    return times[1:]


def _measured(machine: Machine, points: Tensor, truth: Tensor, ranks: PointRanks | None, **how: Any) -> dict[str, Any]:
    """Time and memory of a step."""
    step = Step(machine, **how)
    if machine.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = _seconds(machine, lambda: step(points, truth, ranks), alone=ranks is None)
    found: dict[str, Any] = {"ms": statistics.median(times) * 1e3, "times_ms": [round(t * 1e3, 2) for t in times]}
    if machine.on_gpu:
        peak = torch.cuda.max_memory_allocated() / 2**30
        found["peak_gib"] = peak if ranks is None else machine.most(peak)
    return found


def _one_gpu(machine: Machine, count: int, **how: Any) -> tuple[dict[str, Any], Any]:
    """What the first process takes alone, and its numbers; where it can't, the words that say so."""
    needed = GIB_A_MILLION[how["checkpointing"]] * count / MILLION
    if needed > machine.room_gib():
        return {"left_out": f"would take about {needed:.0f} GiB on one GPU"}, None
    try:
        points, truth = make_mesh(machine, count)
        numbers = Step(machine, **how).numbers(points, truth, None)
        found = _measured(machine, points, truth, None, **how)
        order = torch.randperm(count, device=machine.device)  # tiles of another order round other sums
        again = Step(machine, **how).numbers(points[order], truth[order], None)
        found["off_by_order_of_points"] = _off(again, numbers)
        return found, numbers
    except torch.OutOfMemoryError as error:
        return {"left_out": str(error)[:200]}, None
    finally:
        _free(machine)


def _free(machine: Machine) -> None:
    if machine.on_gpu:
        torch.cuda.empty_cache()


def _off(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> dict[str, float]:
    """Relative differences: of the loss, of all gradients by their norm, and the largest of one by the largest one."""
    difference = found[1] - wanted[1]
    return {
        "loss": abs(found[0] - wanted[0]) / abs(wanted[0]),
        "gradients": float(difference.norm() / wanted[1].norm()),
        "largest": float(difference.abs().max() / wanted[1].abs().max()),
    }


def divided_row(machine: Machine, ranks: PointRanks, count: int, base: int, **how: Any) -> dict[str, Any]:
    """A mesh of so many points over all processes, beside a mesh on one.

    Args:
        machine: This process.
        ranks: All of them.
        count: Points of the mesh.
        base: Points of the mesh that the first has alone: as many (strong scaling), or an N-th (weak).
        how: As for `Step`.
    """
    how = {"checkpointing": count > CHECKPOINTED, "dtype": torch.bfloat16} | how
    row: dict[str, Any] = {"points": count, "points_of_one": base, "checkpointing": how["checkpointing"]}
    needed = GIB_A_MILLION[how["checkpointing"]] * count / machine.size / MILLION
    if needed > machine.room_gib():
        return row | {"left_out": f"would take about {needed:.0f} GiB on each GPU"}
    numbers = None
    if machine.rank == 0:
        key = (base, *how.values())
        if key not in _ALONE:
            _ALONE[key] = _one_gpu(machine, base, **how)
        row["one"], numbers = _ALONE[key]
        if base != count and numbers is not None:
            numbers = _numbers_of_one(machine, count, **how)
    machine.meet()
    mine = ranks.share([0, count])
    points, truth = (mine.of(values).clone() for values in make_mesh(machine, count))
    _free(machine)
    found = Step(machine, **how).numbers(points, truth, ranks)
    row["loss"] = found[0]
    if numbers is not None:
        row["off_one_gpu"] = _off(found, numbers)
    row |= _measured(machine, points, truth, ranks, **how)
    del points, truth, found
    _free(machine)
    if "ms" in row.get("one", {}):
        work = count / base / machine.size
        row["efficiency"] = row["one"]["ms"] * work / row["ms"]
    return row


def _numbers_of_one(machine: Machine, count: int, **how: Any) -> Any:
    """Loss and gradients of a mesh on the first process alone, where it has room for it."""
    if GIB_A_MILLION[how["checkpointing"]] * count / MILLION > machine.room_gib():
        return None
    try:
        return Step(machine, **how).numbers(*make_mesh(machine, count), None)
    except torch.OutOfMemoryError:
        return None
    finally:
        _free(machine)


def communication(machine: Machine, ranks: PointRanks) -> dict[str, float]:
    """Milliseconds of what the processes tell each other in a step; there is one of the first two in each block."""
    config = machine.config
    shape = (1, config.num_heads, config.num_latents)
    encoded = torch.rand(*shape, config.channels // config.num_heads, device=machine.device)
    levels, parameters = torch.rand(shape, device=machine.device), Flare(config).to(machine.device)

    def time_of(function: Callable[[], Any]) -> float:
        function()
        machine.meet()
        begin = time.perf_counter()
        for _ in range(20):
            function()
        machine.meet()
        return (time.perf_counter() - begin) / 20 * 1e3

    return {
        "merge": time_of(lambda: ranks.merge(encoded, levels, binary=True)),
        "gradient_of_latents": time_of(lambda: ranks.total(encoded)),
        "gradients_of_parameters": time_of(lambda: ranks.sum_gradients(parameters)),
        "blocks": config.num_blocks,
    }


def _compile(machine: Machine, ranks: PointRanks) -> dict[str, Any]:
    """Let all processes compile the kernels at the same time, which takes longer than to measure."""
    points, truth = make_mesh(machine, 32_768 if machine.on_gpu else 64)
    for dtype in (torch.bfloat16, None):
        step = Step(machine, dtype=dtype)
        step(points, truth, None)
        step(points, truth, ranks)
    machine.meet()
    return {"points": len(points) * machine.size}


def context(machine: Machine, options: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
    """Weak and strong scaling of a step over a divided mesh."""
    ranks = PointRanks.of_world(seconds=WAIT.total_seconds())
    found: dict[str, Any] = {}

    def measure(name: str, function: Callable[[], Any]) -> None:
        if machine.most(time.monotonic() - machine.began) > options.seconds:
            found[name] = {"left_out": f"no time left of {options.seconds:g} s"}
        else:
            found[name] = {"began": True, "failed": "the processes ended here, unless a later state of this file knows"}
            save(found)
            found[name] = function()
            found[name]["at_s"] = round(time.monotonic() - machine.began, 1)
        save(found)

    measure("compiling", lambda: _compile(machine, ranks))
    measure("communication_ms", lambda: communication(machine, ranks))
    exact = round(options.exact * MILLION)
    measure("float32", lambda: divided_row(machine, ranks, exact, exact, dtype=None))
    for millions in options.sizes:
        count = round(millions * MILLION)
        measure(f"strong {millions:g}", lambda count=count: divided_row(machine, ranks, count, count))
    for millions in options.weak:
        base = round(millions * MILLION)
        measure(f"weak {millions:g}", lambda base=base: divided_row(machine, ranks, base * machine.size, base))


def add(out: Path, others: Sequence[Path]) -> None:
    """Put what files have of each number of GPUs into one, later ones over earlier ones."""
    sizes: dict[str, dict[str, Any]] = {}
    for path in (*([out] if out.exists() else []), *others):
        for size, found in json.loads(path.read_text(encoding="utf-8"))["by_ranks"].items():
            sizes.setdefault(size, {}).update(found)
    out.write_text(json.dumps({"by_ranks": sizes}, indent=1) + "\n", encoding="utf-8")


def draw(results: Path, picture: Path) -> None:
    """Time and efficiency over the number of GPUs."""
    from matplotlib.figure import Figure

    content = json.loads(results.read_text(encoding="utf-8"))["by_ranks"]
    series: dict[str, list[tuple[int, float, float | None]]] = {}
    for size, found in sorted(content.items(), key=lambda item: int(item[0])):
        for name, row in found.get("context", {}).items():
            if name.startswith(("strong", "weak")) and "ms" in row:
                series.setdefault(name, []).append((int(size), row["ms"], row.get("efficiency")))
                if "ms" in row.get("one", {}) and "1" not in content:
                    series[name][:0] = [(1, row["one"]["ms"], 1.0)] if series[name][0][0] != 1 else []
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in sorted(series.items()):
        style = "o--" if name.startswith("weak") else "o-"
        label = f"{name.split()[0]}, {name.split()[1]} M points" + (" a GPU" if name.startswith("weak") else "")
        left.plot([row[0] for row in rows], [row[1] for row in rows], style, label=label)
        known = [(row[0], row[2]) for row in rows if row[2] is not None]
        right.plot([row[0] for row in known], [row[1] for row in known], style, label=label)
    for axes, what in ((left, "ms a step"), (right, "efficiency")):
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.set_xlabel("GPUs")
        axes.set_ylabel(what)
    left.set_yscale("log")
    right.set_ylim(0, 1.1)
    right.axhline(1.0, color="0.7", linewidth=0.8)
    left.legend(fontsize=7)
    figure.savefig(picture, dpi=150)


def main() -> None:
    """Measure and write, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results of all numbers of GPUs")
    parser.add_argument("--parts", nargs="+", choices=("context", "ddp"), default=["context"])
    parser.add_argument("--sizes", nargs="*", type=float, default=[1, 2, 8], help="million points, strong scaling")
    parser.add_argument("--weak", nargs="*", type=float, default=[8], help="million points a GPU, weak scaling")
    parser.add_argument("--exact", type=float, default=0.25, help="million points, numbers in float32")
    parser.add_argument("--seconds", type=float, default=120, help="begin no measurement of a divided mesh after these")
    parser.add_argument("--steps", type=int, default=500, help="steps of training on parts")
    parser.add_argument("--seeds", type=int, default=3, help="weights whose losses after these steps are compared")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="parts a GPU and step")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, with a tiny model")
    parser.add_argument("--add", nargs="+", type=Path, help="take over what other files have, and measure nothing")
    parser.add_argument("--picture", type=Path, help="draw the results into this file, and measure nothing")
    options = parser.parse_args()
    if options.add:
        add(options.out, options.add)
    if options.picture:
        draw(options.out, options.picture)
    if options.add or options.picture:
        return
    on_gpu = torch.cuda.is_available() and not options.cpu
    machine = join(tiny=not on_gpu, on_gpu=on_gpu)
    for part in options.parts:
        save = saver(machine, options.out, part)
        if part == "context":
            context(machine, options, save)
        else:
            from tests.benchmarks.gpu_data_parallel import ddp

            ddp(machine, options, save)
    machine.meet()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
