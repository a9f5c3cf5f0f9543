"""Training on parts of the sizes of real ones with a batch on each GPU; a part of `gpu_scaling`."""

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
from flare_model.training.step_graphs import StepGraphs
from tests.benchmarks.gpu_processes import Machine
from tests.benchmarks.gpu_step import LPBF_CELLS, LPBF_MEAN_POINTS

FILLED: Final = 1024
"""Points for each case of a batch that recorded batches are filled up to a multiple of."""

TIMED: Final = 120
"""Steps where the loss isn't compared."""


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

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Some cases, on the device but for the offsets."""
        begin = time.perf_counter()
        chosen = [self.cases[number % len(self.cases)] for number in numbers]
        device = self.machine.device
        points, truth = (
            torch.cat([one.to(device, non_blocking=True) for one in parts]) for parts in zip(*chosen, strict=True)
        )
        offsets = torch.tensor([0, *itertools.accumulate(len(one) for one, _ in chosen)])
        self.waited += time.perf_counter() - begin
        return Batch(points, None, truth, offsets, tuple(map(str, numbers)))


class Training:
    """A model in training on batches of these cases.

    Args:
        machine: This process.
        cases: The cases.
        batch: Cases of a process's batch in a step.
        steps: Steps of the schedule.
        alone: So many of the processes' batches as one on this process; 0 for a batch on each.
        recorded: Whether steps are CUDA graphs.
        seed: Of the weights.
        reversed_order: Join the cases of a batch in the other order, which rounds other sums.
    """

    def __init__(
        self, machine: Machine, cases: Cases, batch: int, steps: int, *, alone: int = 0, recorded: bool = False,
        seed: int = 0, reversed_order: bool = False,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.machine, self.cases, self.size, self.alone = machine, cases, batch, alone
        self.reversed_order, recipe = reversed_order, Recipe()
        self.model = Flare(machine.config).to(machine.device)
        self.called: torch.nn.Module = self.model
        self.optimizer = make_optimizer(self.model, recipe, machine.device, recorded=recorded)
        self.schedule, self.steps = make_schedule(self.optimizer, recipe, steps), steps
        self.graphs: StepGraphs | None = None
        if recorded:
            averaged = None if alone else AveragedGradients(self.model)
            self.graphs = StepGraphs(self.differentiate, self.update, self.optimizer, self.model, averaged)
        elif not alone:
            where = [machine.device.index] if machine.on_gpu else None
            self.called = torch.nn.parallel.DistributedDataParallel(self.model, device_ids=where)

    def drawn(self) -> Iterator[list[int]]:
        """Cases of this process's batches: each draws those of all and takes its own."""
        machine, size = self.machine, self.size
        order = torch.Generator().manual_seed(1)
        while True:
            drawn = torch.randint(len(self.cases.cases), (size * machine.size,), generator=order).tolist()
            mine = drawn[: size * self.alone] if self.alone else drawn[size * machine.rank : size * (machine.rank + 1)]
            yield mine[::-1] if self.reversed_order else mine

    def differentiate(self, batch: Batch) -> Tensor:
        """The mean loss of a batch, and gradients."""
        with torch.autocast(self.machine.device.type, dtype=torch.bfloat16):
            prediction = self.called(batch.points, None, batch.offsets)
        loss = relative_l2_loss(prediction, batch.targets, batch.offsets, cases=len(batch))
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Clip, and change the weights."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def step(self, batch: Batch) -> Tensor:
        """One step."""
        if self.graphs is not None:
            loss = self.graphs(batch.filled(FILLED * self.size))
        else:
            loss = self.differentiate(batch)
            self.update()
            self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return loss

    def first_gradients(self, parts: int = 1) -> Tensor:
        """Gradients of the first step, averaged over processes, without taking it.

        Args:
            parts: In how many equal parts a batch is taken, one after the other, as so many processes would.
        """
        numbers = next(self.drawn())
        size = len(numbers) // parts
        for first in range(0, len(numbers), size):
            self.differentiate(self.cases.batch(numbers[first : first + size]))
        flat = torch.cat([p.grad.reshape(-1).double() for p in self.model.parameters() if p.grad is not None])
        self.optimizer.zero_grad(set_to_none=True)
        return flat / parts

    def record_all_sizes(self, graphs: StepGraphs) -> None:
        """Record the sizes of the batches of all steps, the largest first, and begin anew."""
        weights = {name: values.clone() for name, values in self.model.state_dict().items()}
        of_size: dict[int, list[int]] = {}
        for _, numbers in zip(range(self.steps), self.drawn(), strict=False):
            points = sum(len(self.cases.cases[number][0]) for number in numbers)
            of_size[points // (FILLED * self.size)] = numbers
        batches = [of_size[size] for size in sorted(of_size, reverse=True)]
        # Each call averages gradients: processes that meet fewer sizes take their last one again.
        calls = len(batches) if self.alone else round(self.machine.most(len(batches)))
        for number in range(calls):
            graphs(self.cases.batch(batches[min(number, len(batches) - 1)]).filled(FILLED * self.size))
        self.model.load_state_dict(weights)
        for state in self.optimizer.state.values():
            for values in state.values():
                values.zero_()

    def run(self) -> dict[str, Any]:
        """All steps: pace once all sizes were recorded, and the loss at the end, the mean over the processes."""
        if self.graphs is not None:
            self.record_all_sizes(self.graphs)
        machine, drawn = self.machine, self.drawn()
        losses, taken, begin, warm = [], 0, 0.0, min(self.steps // 2, 20)
        for number in range(self.steps):
            if number == warm:
                self._meet()
                begin, taken, self.cases.waited = time.perf_counter(), 0, 0.0
            batch = self.cases.batch(next(drawn))
            losses.append(self.step(batch))
            taken += int(batch.offsets[-1])
        self._meet()
        elapsed = time.perf_counter() - begin
        own = torch.stack(losses).double()
        sums = torch.tensor([float(taken), elapsed, self.cases.waited], dtype=torch.float64, device=machine.device)
        if not self.alone:
            torch.distributed.all_reduce(own)
            own /= machine.size
            torch.distributed.all_reduce(sums)
            sums[1:] /= machine.size
        points_done, seconds, waited = sums.tolist()
        return {
            "points_a_second": points_done / seconds, "ms_a_step": seconds / (self.steps - warm) * 1e3,
            "waiting": waited / seconds, "loss": float(own[-max(1, self.steps // 10) :].mean()),
            "first_loss": float(own[0]),
        }  # fmt: skip

    def _meet(self) -> None:
        if not self.alone:
            self.machine.meet()
        elif self.machine.on_gpu:
            torch.cuda.synchronize()


def _paces(machine: Machine, cases: Cases, batch: int, *, recorded: bool) -> dict[str, Any]:
    """All GPUs with a batch on each; one with all batches as one; one with its own batch."""
    steps = TIMED * 3 if recorded else TIMED
    row = {"together": Training(machine, cases, batch, steps, recorded=recorded).run()}
    if machine.rank == 0:
        for name, alone in (("one", machine.size), ("one_with_its_batch", 1)):
            row[name] = Training(machine, cases, batch, steps, recorded=recorded, alone=alone).run()
        speed = row["together"]["points_a_second"]
        row["times_one"] = speed / row["one"]["points_a_second"]
        row["efficiency"] = speed / row["one_with_its_batch"]["points_a_second"] / machine.size
    machine.meet()
    return row


def _losses(machine: Machine, cases: Cases, batch: int, steps: int, seed: int, *, recorded: bool) -> dict[str, float]:
    """The loss after so many steps: of all GPUs, and of one with all batches, joined in either order."""
    how: dict[str, Any] = {"recorded": recorded, "seed": seed}
    found = {"together": Training(machine, cases, batch, steps, **how).run()["loss"]}
    for name, reverse in (("one", False), ("one_in_the_other_order", True)):
        alone = Training(machine, cases, batch, steps, alone=machine.size, reversed_order=reverse, **how)
        # Each GPU takes one of the two, at the same time.
        loss = alone.run()["loss"] if machine.rank == (machine.size - 1 if reverse else 0) else 0.0
        found[name] = machine.most(loss if math.isfinite(loss) else math.inf)
    return found


def _first_gradients(machine: Machine, cases: Cases, batch: int) -> dict[str, float]:
    """How far gradients of the first step are off those that one GPU finds, by their norm.

    One that takes the processes' batches one after the other rounds as they do; one that joins them rounds other sums.
    """
    together = Training(machine, cases, batch, 2).first_gradients()
    alone = Training(machine, cases, batch, 2, alone=machine.size)
    in_parts, joined = alone.first_gradients(machine.size), alone.first_gradients()
    return {
        "one_after_the_other": float((together - in_parts).norm() / in_parts.norm()),
        "joined": float((together - joined).norm() / joined.norm()),
        "joined_off_one_after_the_other": float((joined - in_parts).norm() / in_parts.norm()),
    }


def ddp(machine: Machine, options: argparse.Namespace, save: Callable[[dict[str, Any]], None]) -> None:
    """Training on parts of the sizes of real ones, a batch on each GPU.

    Steps as CUDA graphs, whose gradients are averaged between passes and update, and launched one by one under
    `DistributedDataParallel`. Beside them one GPU with all batches of a step as one, which takes the same steps, and
    one with its own batch; and losses of several seeds, with what rounding alone changes in them.
    """
    factor = LPBF_MEAN_POINTS * len(LPBF_CELLS) / sum(LPBF_CELLS)
    sizes = [round(cells * (factor if machine.on_gpu else 0.01)) for cells in LPBF_CELLS]
    cases, found = Cases(machine, sizes), dict[str, Any](steps=options.steps, cases=len(sizes))
    for batch in options.batches:
        row: dict[str, Any] = {}
        found[f"batch {batch}"] = row
        row["first_gradients_off"] = _first_gradients(machine, cases, batch)
        for recorded in (True, False) if machine.on_gpu else (False,):
            name = "recorded" if recorded else "launched"
            row[name] = _paces(machine, cases, batch, recorded=recorded)
            save(found)
        row["losses"] = []
        for seed in range(options.seeds if batch == min(options.batches) else 1):
            row["losses"].append(
                {"seed": seed} | _losses(machine, cases, batch, options.steps, seed, recorded=machine.on_gpu)
            )
            save(found)
    machine.meet()
