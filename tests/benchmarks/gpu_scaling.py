"""How much do several GPUs of one machine speed up training: one mesh divided over them, or a batch on each?

    torchrun --nproc_per_node N -m tests.benchmarks.gpu_scaling --out gpu_scaling.json
    torchrun --nproc_per_node N -m tests.benchmarks.gpu_scaling --out gpu_scaling.json --parts ddp
    python -m tests.benchmarks.gpu_scaling --out gpu_scaling.json --add other.json --picture gpu_scaling.png

- The first divides one mesh over N GPUs: strong scaling (the mesh stays, GPUs are added) and weak scaling (the mesh
  grows with the GPUs), memory, communication, and how far loss and gradients differ from those of one GPU.
- The second trains on parts of the sizes of real ones, with a batch on each GPU.
- The third joins files of several runs, and draws a picture; it measures nothing.

The time of one GPU is measured beside it, in the same process, by code without any communication. Results of one N
replace those of the same N in the file, which is written after each measurement.

Needs N GPUs and no data; without GPUs it runs a tiny model on the CPU, by gloo. The committed result is
results/gpu_scaling.json.
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
from tests.benchmarks.gpu_processes import WAIT, WorkerProcess, join, saver

MILLION: Final = 1_000_000
GIB_A_MILLION: Final = {False: 14.5, True: 4.0}
"""GiB of a step on a million points, without and with activation checkpointing. What wouldn't fit is left out."""

CHECKPOINTED: Final = 6 * MILLION
"""Meshes of more points are trained with activation checkpointing, on any number of GPUs."""

_ALONE: Final[dict[tuple[object, ...], tuple[dict[str, Any], Any]]] = {}
"""Time and numbers of one GPU, by points and settings: strong and weak scaling may ask for the same."""


class Step:
    """One training step: forward, loss, backward, clipping, AdamW.

    Args:
        process: This process.
        checkpointing: Whether activations are computed again in the backward pass.
        dtype: Type that autocast computes products in; None for float32.
    """

    def __init__(
        self, process: WorkerProcess, *, checkpointing: bool = False, dtype: torch.dtype | None = torch.bfloat16
    ) -> None:
        torch.manual_seed(0)
        self.process, self.dtype = process, dtype
        self.model = Flare(process.config).to(process.device)
        self.model.activation_checkpointing = checkpointing
        self.optimizer = make_optimizer(self.model, Recipe(learning_rate=1e-4), process.device)

    def differentiate(self, points: Tensor, truth: Tensor, ranks: PointRanks | None) -> Tensor:
        """The loss of one mesh; each process then has the gradients of the whole mesh."""
        offsets = torch.tensor([0, len(points)])
        autocast = torch.autocast(
            self.process.device.type, dtype=self.dtype or torch.bfloat16, enabled=bool(self.dtype)
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
        """The loss, and all gradients in one row of float64."""
        loss = self.differentiate(points, truth, ranks)
        flat = torch.cat([p.grad.reshape(-1).double() for p in self.model.parameters() if p.grad is not None])
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss), flat


def make_mesh(process: WorkerProcess, count: int) -> tuple[Tensor, Tensor]:
    """Points [N, 3] and truth [N, 1] of a mesh, the same on each process."""
    generator = torch.Generator(process.device).manual_seed(count)
    points = torch.rand(count, 3, device=process.device, generator=generator)
    waves = torch.sin(points @ points.new_tensor([[7.0], [5.0], [3.0]]))
    return points, waves + 0.1 * torch.randn(count, 1, device=process.device, generator=generator)


def _seconds(process: WorkerProcess, function: Callable[[], None], *, alone: bool) -> list[float]:
    """Seconds of a call, several times after a first one; unless `alone`, the longest over the processes."""
    meet = (torch.cuda.synchronize if process.on_gpu else (lambda: None)) if alone else process.wait_for_all
    times: list[float] = []
    for calls in (1, 1, *[2] * 5):
        if sum(times) > 6.0 and len(times) >= 4:
            break
        meet()
        begin = time.perf_counter()
        for _ in range(1 if times and times[-1] > 1.0 else calls):
            function()
        if process.on_gpu:
            torch.cuda.synchronize()
        took = (time.perf_counter() - begin) / (1 if times and times[-1] > 1.0 else calls)
        times.append(took if alone else process.largest(took))
    return times[1:]


def _measured(
    process: WorkerProcess, points: Tensor, truth: Tensor, ranks: PointRanks | None, **how: Any
) -> dict[str, Any]:
    """Time and memory of a step."""
    step = Step(process, **how)
    if process.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = _seconds(process, lambda: step(points, truth, ranks), alone=ranks is None)
    found: dict[str, Any] = {"ms": statistics.median(times) * 1e3, "times_ms": [round(t * 1e3, 2) for t in times]}
    if process.on_gpu:
        peak = torch.cuda.max_memory_allocated() / 2**30
        found["peak_gib"] = peak if ranks is None else process.largest(peak)
    return found


def _one_gpu(process: WorkerProcess, count: int, **how: Any) -> tuple[dict[str, Any], Any]:
    """Time, memory and numbers of a step on the first process alone; where it doesn't fit, why, and None."""
    needed = GIB_A_MILLION[how["checkpointing"]] * count / MILLION
    if needed > process.memory_gib():
        return {"left_out": f"would take about {needed:.0f} GiB on one GPU"}, None
    try:
        points, truth = make_mesh(process, count)
        numbers = Step(process, **how).numbers(points, truth, None)
        found = _measured(process, points, truth, None, **how)
        order = torch.randperm(count, device=process.device)  # another order of the points changes rounding alone
        again = Step(process, **how).numbers(points[order], truth[order], None)
        found["off_by_order_of_points"] = _off(again, numbers)
        return found, numbers
    except torch.OutOfMemoryError as error:
        return {"left_out": str(error)[:200]}, None
    finally:
        _free(process)


def _free(process: WorkerProcess) -> None:
    if process.on_gpu:
        torch.cuda.empty_cache()


def _off(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> dict[str, float]:
    """Relative differences: of the loss, of all gradients by their norm, and the largest of one by the largest one."""
    difference = found[1] - wanted[1]
    return {
        "loss": abs(found[0] - wanted[0]) / abs(wanted[0]),
        "gradients": float(difference.norm() / wanted[1].norm()),
        "largest": float(difference.abs().max() / wanted[1].abs().max()),
    }


def divided_row(process: WorkerProcess, ranks: PointRanks, count: int, base: int, **how: Any) -> dict[str, Any]:
    """Measure a mesh divided over all processes, and a mesh on one process.

    Args:
        process: This process.
        ranks: All of them.
        count: Points of the divided mesh.
        base: Points of the mesh that one process computes alone: as many (strong scaling), or an N-th (weak scaling).
        how: Arguments of `Step`.
    """
    how = {"checkpointing": count > CHECKPOINTED, "dtype": torch.bfloat16} | how
    row: dict[str, Any] = {"points": count, "points_of_one": base, "checkpointing": how["checkpointing"]}
    needed = GIB_A_MILLION[how["checkpointing"]] * count / process.size / MILLION
    if needed > process.memory_gib():
        return row | {"left_out": f"would take about {needed:.0f} GiB on each GPU"}
    numbers = None
    if process.rank == 0:
        key = (base, *how.values())
        if key not in _ALONE:
            _ALONE[key] = _one_gpu(process, base, **how)
        row["one"], numbers = _ALONE[key]
        if base != count and numbers is not None:
            numbers = _numbers_of_one(process, count, **how)
    process.wait_for_all()
    mine = ranks.share([0, count])
    points, truth = (mine.of(values).clone() for values in make_mesh(process, count))
    _free(process)
    found = Step(process, **how).numbers(points, truth, ranks)
    row["loss"] = found[0]
    if numbers is not None:
        row["off_one_gpu"] = _off(found, numbers)
    row |= _measured(process, points, truth, ranks, **how)
    del points, truth, found
    _free(process)
    if "ms" in row.get("one", {}):
        work = count / base / process.size
        row["efficiency"] = row["one"]["ms"] * work / row["ms"]
    return row


def _numbers_of_one(process: WorkerProcess, count: int, **how: Any) -> Any:
    """Loss and gradients of a mesh on the first process alone; None where they don't fit."""
    if GIB_A_MILLION[how["checkpointing"]] * count / MILLION > process.memory_gib():
        return None
    try:
        return Step(process, **how).numbers(*make_mesh(process, count), None)
    except torch.OutOfMemoryError:
        return None
    finally:
        _free(process)


def communication(process: WorkerProcess, ranks: PointRanks) -> dict[str, float]:
    """Milliseconds of each kind of communication in a step; of the first two there is one in each block."""
    config = process.config
    shape = (1, config.num_heads, config.num_latents)
    encoded = torch.rand(*shape, config.channels // config.num_heads, device=process.device)
    levels, parameters = torch.rand(shape, device=process.device), Flare(config).to(process.device)

    def time_of(function: Callable[[], Any]) -> float:
        function()
        process.wait_for_all()
        begin = time.perf_counter()
        for _ in range(20):
            function()
        process.wait_for_all()
        return (time.perf_counter() - begin) / 20 * 1e3

    return {
        "merge": time_of(lambda: ranks.merge(encoded, levels, binary=True)),
        "gradient_of_latents": time_of(lambda: ranks.total(encoded)),
        "gradients_of_parameters": time_of(lambda: ranks.sum_gradients(parameters)),
        "blocks": config.num_blocks,
    }


def _compile(process: WorkerProcess, ranks: PointRanks) -> dict[str, Any]:
    """Let all processes compile the kernels at the same time, before anything is timed."""
    points, truth = make_mesh(process, 32_768 if process.on_gpu else 64)
    for dtype in (torch.bfloat16, None):
        step = Step(process, dtype=dtype)
        step(points, truth, None)
        step(points, truth, ranks)
    process.wait_for_all()
    return {"points": len(points) * process.size}


def context(process: WorkerProcess, options: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
    """Measure strong and weak scaling of a step on a divided mesh."""
    ranks = PointRanks.of_world(seconds=WAIT.total_seconds())
    found: dict[str, Any] = {}

    def measure(name: str, function: Callable[[], Any]) -> None:
        if process.largest(time.monotonic() - process.began) > options.seconds:
            found[name] = {"left_out": f"no time left of {options.seconds:g} s"}
        else:
            found[name] = {
                "began": True,
                "failed": "the processes ended during this measurement, or it hasn't ended yet",
            }
            save(found)
            found[name] = function()
            found[name]["at_s"] = round(time.monotonic() - process.began, 1)
        save(found)

    measure("compiling", lambda: _compile(process, ranks))
    measure("communication_ms", lambda: communication(process, ranks))
    exact = round(options.exact * MILLION)
    measure("float32", lambda: divided_row(process, ranks, exact, exact, dtype=None))
    for millions in options.sizes:
        count = round(millions * MILLION)
        measure(f"strong {millions:g}", lambda count=count: divided_row(process, ranks, count, count))
    for millions in options.weak:
        base = round(millions * MILLION)
        measure(f"weak {millions:g}", lambda base=base: divided_row(process, ranks, base * process.size, base))


def add(out: Path, others: Sequence[Path]) -> None:
    """Join the results of several files in one; of the same number of GPUs and part the last file's stay."""
    sizes: dict[str, dict[str, Any]] = {}
    for path in (*([out] if out.exists() else []), *others):
        for size, found in json.loads(path.read_text(encoding="utf-8"))["by_ranks"].items():
            sizes.setdefault(size, {}).update(found)
    out.write_text(json.dumps({"by_ranks": sizes}, indent=1) + "\n", encoding="utf-8")


def draw(results: Path, picture: Path) -> None:
    """Draw time and efficiency over the number of GPUs."""
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
    """Measure and write, or join and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results of all numbers of GPUs")
    parser.add_argument(
        "--parts", nargs="+", choices=("context", "ddp"), default=["context"], help="a divided mesh, or batches"
    )
    parser.add_argument("--sizes", nargs="*", type=float, default=[1, 2, 8], help="million points, strong scaling")
    parser.add_argument("--weak", nargs="*", type=float, default=[8], help="million points a GPU, weak scaling")
    parser.add_argument("--exact", type=float, default=0.25, help="million points of the comparison in float32")
    parser.add_argument("--seconds", type=float, default=120, help="begin no measurement of a divided mesh later")
    parser.add_argument("--steps", type=int, default=500, help="steps of training on parts, ddp")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of which losses are compared, ddp")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="parts of a GPU's batch, ddp")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, with a tiny model")
    parser.add_argument("--add", nargs="+", type=Path, help="only join the results of these files into --out")
    parser.add_argument("--picture", type=Path, help="only draw the results into this file")
    options = parser.parse_args()
    if options.add:
        add(options.out, options.add)
    if options.picture:
        draw(options.out, options.picture)
    if options.add or options.picture:
        return
    on_gpu = torch.cuda.is_available() and not options.cpu
    process = join(tiny=not on_gpu, on_gpu=on_gpu)
    for part in options.parts:
        save = saver(process, options.out, part)
        if part == "context":
            context(process, options, save)
        else:
            from tests.benchmarks.gpu_data_parallel import ddp

            ddp(process, options, save)
    process.wait_for_all()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
