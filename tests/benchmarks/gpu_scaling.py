"""Training over several GPUs of one machine: one mesh divided over them, and a batch on each.

torchrun --nproc_per_node N -m tests.benchmarks.gpu_scaling --out gpu_scaling.json
torchrun --nproc_per_node N -m tests.benchmarks.gpu_scaling --out gpu_scaling.json --parts ddp
python -m tests.benchmarks.gpu_scaling --out gpu_scaling.json --picture gpu_scaling.png

Results of one N replace what the file had of it, and are written after each measurement. What one GPU takes is measured
beside it, in the same process and by the code that knows of no others. Without GPUs it runs on the CPU, by gloo.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from flare_model.data.metrics import relative_l2_loss
from flare_model.data.point_ranks import PointRanks
from flare_model.models.divided import divided
from flare_model.models.flare import Flare
from flare_model.sizes import FlareConfig
from flare_model.training.optimizer import make_optimizer, make_schedule
from flare_model.training.recipe import Recipe
from tests.benchmarks.machine import describe_machine

MILLION: Final = 1_000_000
GIB_A_MILLION: Final = {False: 14.5, True: 4.0}
"""Memory of a step, by whether activations are computed again; what wouldn't fit by this is left out."""

CHECKPOINTED: Final = 6 * MILLION
"""Meshes of more points are trained with activations computed again, on any number of GPUs."""

TINY: Final = FlareConfig(channels=16, num_heads=2, num_latents=8, num_blocks=2)
_WAIT: Final = timedelta(seconds=300)


@dataclass(frozen=True)
class Machine:
    """This process among others.

    Attributes:
        device: Its device.
        rank: Its number.
        size: How many there are.
        config: Sizes of the model.
        began: When it began, s.
    """

    device: torch.device
    rank: int
    size: int
    config: FlareConfig
    began: float

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self.device.type == "cuda"

    def meet(self) -> None:
        """Wait for all, and for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()
        torch.distributed.barrier()

    def most(self, value: float) -> float:
        """The largest of a value over the processes."""
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return float(found)

    def room_gib(self) -> float:
        """Memory of its device."""
        return torch.cuda.get_device_properties(self.device).total_memory / 2**30 if self.on_gpu else 1e9


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


def _mesh(machine: Machine, count: int) -> tuple[Tensor, Tensor]:
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


def _one_gpu(machine: Machine, count: int, *, reversed_too: bool, **how: Any) -> tuple[dict[str, Any], Any]:
    """What the first process takes alone, and its numbers; where it can't, the words that say so."""
    needed = GIB_A_MILLION[how["checkpointing"]] * count / MILLION
    if needed > machine.room_gib():
        return {"left_out": f"would take about {needed:.0f} GiB on one GPU"}, None
    try:
        points, truth = _mesh(machine, count)
        numbers = Step(machine, **how).numbers(points, truth, None)
        found = _measured(machine, points, truth, None, **how)
        if reversed_too:
            again = Step(machine, **how).numbers(points.flip(0), truth.flip(0), None)
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
        row["one"], numbers = _one_gpu(machine, base, reversed_too=base == count, **how)
        if base != count and numbers is not None:
            numbers = _numbers_of_one(machine, count, **how)
    machine.meet()
    mine = ranks.share([0, count])
    points, truth = (mine.of(values).clone() for values in _mesh(machine, count))
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
        return Step(machine, **how).numbers(*_mesh(machine, count), None)
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
    points, truth = _mesh(machine, 32_768 if machine.on_gpu else 64)
    for dtype in (torch.bfloat16, None):
        step = Step(machine, dtype=dtype)
        step(points, truth, None)
        step(points, truth, ranks)
    machine.meet()
    return {"points": len(points) * machine.size}


def context(machine: Machine, options: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
    """Weak and strong scaling of a step over a divided mesh."""
    ranks = PointRanks.of_world(seconds=_WAIT.total_seconds())
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
    for millions in options.sizes:
        count = round(millions * MILLION)
        measure(f"strong {millions:g}", lambda count=count: divided_row(machine, ranks, count, count))
    for millions in options.weak:
        base = round(millions * MILLION)
        measure(f"weak {millions:g}", lambda base=base: divided_row(machine, ranks, base * machine.size, base))
    count = round(options.exact * MILLION)
    measure("float32", lambda: divided_row(machine, ranks, count, count, dtype=None))


class Cases:
    """Parts of the sizes of real ones with something to learn, on the host.

    Args:
        machine: This process.
        sizes: Points of each.
    """

    def __init__(self, machine: Machine, sizes: Sequence[int]) -> None:
        self.machine, self.waited = machine, 0.0
        generator = torch.Generator().manual_seed(0)
        self.cases: list[tuple[Tensor, Tensor]] = []
        for size in sizes:
            points = torch.rand(size, 3, generator=generator)
            top = points[:, 2:].amax() * torch.rand(1, generator=generator)
            truth = torch.sin(6 * points[:, :1] + 4 * top) * points[:, 2:] + 0.3 * torch.cos(9 * points[:, 1:2])
            pinned = (points.pin_memory(), truth.pin_memory()) if machine.on_gpu else (points, truth)
            self.cases.append(pinned)

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Points, truth and offsets of some cases, on the device but for the offsets."""
        begin = time.perf_counter()
        chosen = [self.cases[number % len(self.cases)] for number in numbers]
        joined = [torch.cat(parts).to(self.machine.device, non_blocking=True) for parts in zip(*chosen, strict=True)]
        offsets = torch.tensor([0, *itertools.accumulate(len(points) for points, _ in chosen)])
        self.waited += time.perf_counter() - begin
        return joined[0], joined[1], offsets


def _train(machine: Machine, cases: Cases, steps: int, batch: int, *, alone: bool) -> dict[str, Any]:
    """So many steps with a batch on each process, or with all of them on this one."""
    torch.manual_seed(0)
    bare = Flare(machine.config).to(machine.device)
    model: torch.nn.Module = bare
    if not alone:
        where = [machine.device.index] if machine.on_gpu else None
        model = torch.nn.parallel.DistributedDataParallel(bare, device_ids=where)
    recipe = Recipe()
    optimizer = make_optimizer(bare, recipe, machine.device)
    schedule = make_schedule(optimizer, recipe, steps)
    order = torch.Generator().manual_seed(1)
    losses, taken, begin, warm = [], 0, 0.0, min(20, steps // 2)
    for number in range(steps):
        if number == warm:
            machine.meet() if not alone else None
            begin, taken, cases.waited = time.perf_counter(), 0, 0.0
        drawn = torch.randint(len(cases.cases), (batch * machine.size,), generator=order).tolist()
        mine = drawn if alone else drawn[batch * machine.rank : batch * (machine.rank + 1)]
        points, truth, offsets = cases.batch(mine)
        with torch.autocast(machine.device.type, dtype=torch.bfloat16):
            prediction = model(points, None, offsets)
        loss = relative_l2_loss(prediction, truth, offsets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        taken += len(points)
    if machine.on_gpu:
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - begin
    own = torch.stack(losses).double()
    sums = torch.tensor([float(taken), elapsed, cases.waited], dtype=torch.float64, device=machine.device)
    if not alone:
        torch.distributed.all_reduce(own)
        own /= machine.size
        torch.distributed.all_reduce(sums)
        sums[1:] /= machine.size
    points_done, seconds, waited = sums.tolist()
    return {
        "points_a_second": points_done / seconds, "ms_a_step": seconds / (steps - warm) * 1e3,
        "waiting": waited / seconds, "loss": float(own[-max(1, steps // 10) :].mean()), "first_loss": float(own[0]),
    }  # fmt: skip


def ddp(machine: Machine, options: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
    """Training on parts of the sizes of real ones, a batch on each GPU, beside one GPU with the same global batch."""
    from tests.benchmarks.gpu_step import LPBF_CELLS, LPBF_MEAN_POINTS

    factor = LPBF_MEAN_POINTS * len(LPBF_CELLS) / sum(LPBF_CELLS)
    sizes = [round(cells * (factor if machine.on_gpu else 0.01)) for cells in LPBF_CELLS]
    cases, found = Cases(machine, sizes), dict[str, Any](steps=options.steps, cases=len(sizes))
    for batch in options.batches:
        row: dict[str, Any] = {}
        found[f"batch {batch}"] = row
        row["together"] = _train(machine, cases, options.steps, batch, alone=False)
        save(found)
        if machine.rank == 0:
            row["one"] = _train(machine, cases, options.steps, batch, alone=True)
            row["off_loss"] = abs(row["together"]["loss"] / row["one"]["loss"] - 1)
            row["times_one"] = row["together"]["points_a_second"] / row["one"]["points_a_second"]
        machine.meet()
        save(found)
    machine.meet()


def _join(*, tiny: bool, on_gpu: bool) -> Machine:
    """The processes that torchrun started, or this one alone."""
    began = time.monotonic()
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl", timeout=_WAIT, device_id=device)
    else:
        torch.distributed.init_process_group("gloo", timeout=_WAIT)
    config = replace(TINY if tiny else FlareConfig(), in_dim=3, out_dim=1)
    return Machine(device, torch.distributed.get_rank(), torch.distributed.get_world_size(), config, began)


def _describe(machine: Machine) -> dict[str, Any]:
    """Device, versions, links."""
    found: dict[str, Any] = {"machine": describe_machine(("numpy", "torch")), "device": machine.device.type}
    if machine.on_gpu:
        from tests.benchmarks.gpu_timing import describe_gpu

        topology = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=False).stdout
        found |= {"gpu": describe_gpu(), "links": topology.splitlines()}
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["nccl_nvls"] = os.environ["NCCL_NVLS_ENABLE"]
    return found


def _saver(machine: Machine, out: Path, part: str) -> Callable[[dict[str, Any]], None]:
    """What puts results of this number of processes into the file, beside those of others."""

    def save(found: dict[str, Any]) -> None:
        if machine.rank:
            return
        content = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        of_size = content.setdefault("by_ranks", {}).setdefault(str(machine.size), {})
        if "about" not in of_size or part not in of_size:
            of_size["about"] = _describe(machine)
        of_size[part] = found
        aside = out.with_name(out.name + ".part")
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        aside.replace(out)
        print(part, json.dumps(dict([*found.items()][-1:]))[:400], flush=True)

    return save


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
    parser.add_argument("--seconds", type=float, default=140, help="begin no measurement of a divided mesh after these")
    parser.add_argument("--steps", type=int, default=500, help="steps of training on parts")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="parts a GPU and step")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, with a tiny model")
    parser.add_argument("--picture", type=Path, help="draw the results into this file, and measure nothing")
    options = parser.parse_args()
    if options.picture:
        draw(options.out, options.picture)
        return
    on_gpu = torch.cuda.is_available() and not options.cpu
    machine = _join(tiny=not on_gpu, on_gpu=on_gpu)
    for part in options.parts:
        {"context": context, "ddp": ddp}[part](machine, options, _saver(machine, options.out, part))
    machine.meet()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
