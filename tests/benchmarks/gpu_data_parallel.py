"""Training with a batch of parts on each GPU (data parallel), for `gpu_scaling --parts ddp`; not a command."""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.data.metrics import relative_l2_loss
from flare_model.models.flare import Flare
from flare_model.training.averaged_gradients import AveragedGradients
from flare_model.training.optimizer import make_optimizer, make_schedule
from flare_model.training.recipe import Recipe
from flare_model.training.recorded.step_graphs import StepGraphs
from tests.benchmarks.gpu_processes import WorkerProcess
from tests.benchmarks.gpu_step import LPBF_CELLS, LPBF_MEAN_POINTS

FILLED: Final = 1024
"""Recorded batches are filled up to a multiple of this number of points times their number of cases."""

TIMED: Final = 120
"""Steps of a training that is only timed."""


class Cases:
    """Made-up parts of the sizes of real ones, with a function to learn, in the host's memory.

    Args:
        process: This process.
        sizes: Points of each part.
    """

    def __init__(self, process: WorkerProcess, sizes: Sequence[int]) -> None:
        self.process, self.waited = process, 0.0
        generator = torch.Generator().manual_seed(0)
        self.cases: list[tuple[Tensor, Tensor]] = []
        for size in sizes:
            points = torch.rand(size, 3, generator=generator)
            # A function that is learnt within a hundred steps: else rounding would decide how far a training has come.
            x, y, z = points.split(1, dim=1)
            truth = (0.5 + z) * (1 + 0.3 * torch.sin(6 * x)) + 0.2 * torch.cos(9 * y)
            pinned = (points.pin_memory(), truth.pin_memory()) if process.on_gpu else (points, truth)
            self.cases.append(pinned)

    def batch(self, numbers: Sequence[int]) -> Batch:
        """A batch of some cases; all but its offsets are on the device."""
        begin = time.perf_counter()
        chosen = [self.cases[number % len(self.cases)] for number in numbers]
        device = self.process.device
        points, truth = (
            torch.cat([one.to(device, non_blocking=True) for one in parts]) for parts in zip(*chosen, strict=True)
        )
        offsets = torch.tensor([0, *itertools.accumulate(len(one) for one, _ in chosen)])
        self.waited += time.perf_counter() - begin
        return Batch(points, None, truth, offsets, tuple(map(str, numbers)))


class Training:
    """Training of a model on batches of these cases.

    Args:
        process: This process.
        cases: The cases.
        batch: Cases of a process's batch in a step.
        steps: Steps of the schedule.
        alone: 0 to train on all processes with a batch on each; else this process trains alone, with this many of the
            processes' batches joined into one.
        recorded: Whether steps are recorded as CUDA graphs.
        seed: Seed of the weights.
        reversed_order: Join the cases of a batch in the opposite order, which changes rounding alone.
    """

    def __init__(
        self, process: WorkerProcess, cases: Cases, batch: int, steps: int, *, alone: int = 0, recorded: bool = False,
        seed: int = 0, reversed_order: bool = False,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.process, self.cases, self.size, self.alone = process, cases, batch, alone
        self.reversed_order, recipe = reversed_order, Recipe()
        self.model = Flare(process.config).to(process.device)
        self.called: torch.nn.Module = self.model
        self.optimizer = make_optimizer(self.model, recipe, process.device, recorded=recorded)
        self.schedule, self.steps = make_schedule(self.optimizer, recipe, steps), steps
        self.graphs: StepGraphs | None = None
        if recorded:
            averaged = None if alone else AveragedGradients(self.model)
            self.graphs = StepGraphs(self.differentiate, self.update, self.optimizer, self.model, averaged)
        elif not alone:
            where = [process.device.index] if process.on_gpu else None
            self.called = torch.nn.parallel.DistributedDataParallel(self.model, device_ids=where)

    def drawn(self) -> Iterator[list[int]]:
        """Numbers of the cases of this process's batches: each process draws those of all, and takes its own."""
        process, size = self.process, self.size
        order = torch.Generator().manual_seed(1)
        while True:
            drawn = torch.randint(len(self.cases.cases), (size * process.size,), generator=order).tolist()
            mine = drawn[: size * self.alone] if self.alone else drawn[size * process.rank : size * (process.rank + 1)]
            yield mine[::-1] if self.reversed_order else mine

    def differentiate(self, batch: Batch) -> Tensor:
        """Compute the gradients of a batch's mean loss, which is returned."""
        with torch.autocast(self.process.device.type, dtype=torch.bfloat16):
            prediction = self.called(batch.points, None, batch.offsets)
        loss = relative_l2_loss(prediction, batch.targets, batch.offsets, cases=len(batch))
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Clip the gradients, and update the weights."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def step(self, batch: Batch) -> Tensor:
        """Make one training step on a batch; its loss."""
        if self.graphs is not None:
            loss = self.graphs(batch.filled(FILLED * self.size))
        else:
            loss = self.differentiate(batch)
            self.update()
            self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return loss

    def first_gradients(self, parts: int = 1) -> Tensor:
        """Gradients of the first step, averaged over processes, in one row; the weights stay.

        Args:
            parts: In how many equal parts the batch is computed, one after the other, as so many processes would.
        """
        numbers = next(self.drawn())
        size = len(numbers) // parts
        for first in range(0, len(numbers), size):
            self.differentiate(self.cases.batch(numbers[first : first + size]))
        flat = torch.cat([p.grad.reshape(-1).double() for p in self.model.parameters() if p.grad is not None])
        self.optimizer.zero_grad(set_to_none=True)
        return flat / parts

    def record_all_sizes(self, graphs: StepGraphs) -> None:
        """Record graphs for all sizes of batches, the largest first."""
        of_size: dict[int, list[int]] = {}
        for _, numbers in zip(range(self.steps), self.drawn(), strict=False):
            points = sum(len(self.cases.cases[number][0]) for number in numbers)
            of_size[points // (FILLED * self.size)] = numbers
        for size in sorted(of_size, reverse=True):
            graphs.record(self.cases.batch(of_size[size]).filled(FILLED * self.size))

    def run(self) -> dict[str, Any]:
        """Make all steps: their speed after the first ones, and the loss at the end, the mean over the processes."""
        if self.graphs is not None:
            self.record_all_sizes(self.graphs)
        process, drawn = self.process, self.drawn()
        losses, taken, begin, warm = [], 0, 0.0, min(self.steps // 2, 20)
        for number in range(self.steps):
            if number == warm:
                self._wait()
                begin, taken, self.cases.waited = time.perf_counter(), 0, 0.0
            batch = self.cases.batch(next(drawn))
            losses.append(self.step(batch))
            taken += int(batch.offsets[-1])
        self._wait()
        elapsed = time.perf_counter() - begin
        own = torch.stack(losses).double()
        sums = torch.tensor([float(taken), elapsed, self.cases.waited], dtype=torch.float64, device=process.device)
        if not self.alone:
            torch.distributed.all_reduce(own)
            own /= process.size
            torch.distributed.all_reduce(sums)
            sums[1:] /= process.size
        points_done, seconds, waited = sums.tolist()
        return {
            "points_a_second": points_done / seconds, "ms_a_step": seconds / (self.steps - warm) * 1e3,
            "waiting": waited / seconds, "loss": float(own[-max(1, self.steps // 10) :].mean()),
            "first_loss": float(own[0]),
        }  # fmt: skip

    def _wait(self) -> None:
        if not self.alone:
            self.process.wait_for_all()
        elif self.process.on_gpu:
            torch.cuda.synchronize()


def _speeds(process: WorkerProcess, cases: Cases, batch: int, *, recorded: bool) -> dict[str, Any]:
    """Speed of all GPUs with a batch on each, of one GPU with all batches joined, and of one with its own batch."""
    steps = TIMED * 3 if recorded else TIMED
    row = {"together": Training(process, cases, batch, steps, recorded=recorded).run()}
    if process.rank == 0:
        for name, alone in (("one", process.size), ("one_with_its_batch", 1)):
            row[name] = Training(process, cases, batch, steps, recorded=recorded, alone=alone).run()
        speed = row["together"]["points_a_second"]
        row["times_one"] = speed / row["one"]["points_a_second"]
        row["efficiency"] = speed / row["one_with_its_batch"]["points_a_second"] / process.size
    process.wait_for_all()
    return row


def _losses(
    process: WorkerProcess, cases: Cases, batch: int, steps: int, seed: int, *, recorded: bool
) -> dict[str, float]:
    """Loss after some steps: of all GPUs, and of one GPU with all batches joined, in both orders of the cases."""
    how: dict[str, Any] = {"recorded": recorded, "seed": seed}
    found = {"together": Training(process, cases, batch, steps, **how).run()["loss"]}
    for name, reverse in (("one", False), ("one_in_the_other_order", True)):
        alone = Training(process, cases, batch, steps, alone=process.size, reversed_order=reverse, **how)
        # The two are computed at the same time, on the first and on the last GPU.
        loss = alone.run()["loss"] if process.rank == (process.size - 1 if reverse else 0) else 0.0
        found[name] = process.largest(loss if math.isfinite(loss) else math.inf)
    return found


def _first_gradients(process: WorkerProcess, cases: Cases, batch: int) -> dict[str, float]:
    """Norm of the difference of the first step's gradients from those of one GPU, relative to the norm of the latter.

    A GPU that computes the processes' batches one after the other rounds as they do; joined, other sums are rounded.
    """
    together = Training(process, cases, batch, 2).first_gradients()
    alone = Training(process, cases, batch, 2, alone=process.size)
    in_parts, joined = alone.first_gradients(process.size), alone.first_gradients()
    return {
        "one_after_the_other": float((together - in_parts).norm() / in_parts.norm()),
        "joined": float((together - joined).norm() / joined.norm()),
        "joined_off_one_after_the_other": float((joined - in_parts).norm() / in_parts.norm()),
    }


def ddp(process: WorkerProcess, options: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
    """Measure training on parts of the sizes of real ones, with a batch on each GPU.

    Steps are recorded as CUDA graphs, with gradients averaged between the backward pass and the update, or launched one
    by one under `DistributedDataParallel`. Compared are one GPU with all batches of a step joined into one, which makes
    the same steps, and one GPU with its own batch. Losses are compared for several seeds, beside what rounding alone
    changes in them.
    """
    factor = LPBF_MEAN_POINTS * len(LPBF_CELLS) / sum(LPBF_CELLS)
    sizes = [round(cells * (factor if process.on_gpu else 0.01)) for cells in LPBF_CELLS]
    cases, found = Cases(process, sizes), dict[str, Any](steps=options.steps, cases=len(sizes))
    for batch in options.batches:
        row: dict[str, Any] = {}
        found[f"batch {batch}"] = row
        row["first_gradients_off"] = _first_gradients(process, cases, batch)
        for recorded in (True, False) if process.on_gpu else (False,):
            name = "recorded" if recorded else "launched"
            row[name] = _speeds(process, cases, batch, recorded=recorded)
            save(found)
        row["losses"] = []
        for seed in range(options.seeds if batch == min(options.batches) else 1):
            row["losses"].append(
                {"seed": seed} | _losses(process, cases, batch, options.steps, seed, recorded=process.on_gpu)
            )
            save(found)
    process.wait_for_all()
