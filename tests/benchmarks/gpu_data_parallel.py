"""Training on parts of the sizes of real ones with a batch on each GPU; a part of `gpu_scaling`."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flare_model.data.metrics import relative_l2_loss
from flare_model.models.flare import Flare
from flare_model.training.optimizer import make_optimizer, make_schedule
from flare_model.training.recipe import Recipe
from tests.benchmarks.gpu_processes import Machine
from tests.benchmarks.gpu_step import LPBF_CELLS, LPBF_MEAN_POINTS


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
            # Nearly everything is learnt within a hundred steps: on a plateau rounding alone would decide when it ends.
            x, y, z = points.split(1, dim=1)
            truth = (0.5 + z) * (1 + 0.3 * torch.sin(6 * x)) + 0.2 * torch.cos(9 * y)
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


def _train(machine: Machine, cases: Cases, steps: int, batch: int, *, alone: int = 0) -> dict[str, Any]:
    """So many steps with a batch on each process, or with so many of these batches as one on this one alone."""
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
            if not alone:
                machine.meet()
            elif machine.on_gpu:
                torch.cuda.synchronize()
            begin, taken, cases.waited = time.perf_counter(), 0, 0.0
        drawn = torch.randint(len(cases.cases), (batch * machine.size,), generator=order).tolist()
        mine = drawn[: batch * alone] if alone else drawn[batch * machine.rank : batch * (machine.rank + 1)]
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
    """Training on parts of the sizes of real ones, a batch on each GPU.

    Beside it one GPU with all batches of a step as one, which takes the same steps, and one GPU with its own batch.
    """
    factor = LPBF_MEAN_POINTS * len(LPBF_CELLS) / sum(LPBF_CELLS)
    sizes = [round(cells * (factor if machine.on_gpu else 0.01)) for cells in LPBF_CELLS]
    cases, found = Cases(machine, sizes), dict[str, Any](steps=options.steps, cases=len(sizes))
    for batch in options.batches:
        row: dict[str, Any] = {}
        found[f"batch {batch}"] = row
        row["together"] = _train(machine, cases, options.steps, batch)
        save(found)
        if machine.rank == 0:
            row["one"] = _train(machine, cases, options.steps, batch, alone=machine.size)
            row["one_with_its_batch"] = _train(machine, cases, min(options.steps, 120), batch, alone=1)
            row["off_loss"] = abs(row["together"]["loss"] / row["one"]["loss"] - 1)
            speed = row["together"]["points_a_second"]
            row["times_one"] = speed / row["one"]["points_a_second"]
            row["efficiency"] = speed / row["one_with_its_batch"]["points_a_second"] / machine.size
        machine.meet()
        save(found)
    machine.meet()
