"""What do losses summed in float64, and noting all random states after each step, cost in training time?

    python -m tests.benchmarks.exact_sums OUT.json [SECONDS]

A training step of FLARE whose loss sums its squares in float64, case by case, is timed beside the same step with
float32 sums in any order; and beside the first with the states of all random generators noted after every step, as a
run that is to resume exactly does.

Runs on the GPU with the paper's model if there is one, else on the CPU with a small model. Needs no data. The result
goes to OUT.json; each batch is measured for SECONDS (5).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flare_model.data.metrics import relative_l2_loss
from flare_model.models.flare import Flare, FlareConfig
from flare_model.training.optimizer import make_optimizer
from flare_model.training.recipe import Recipe
from flare_model.training.training_checkpoint import random_state
from tests.benchmarks.gpu_timing import describe_gpu
from tests.benchmarks.machine import describe_machine

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_loss(prediction: Tensor, truth: Tensor, offsets: Tensor) -> Tensor:
    """The same loss with float32 sums: the squares of a case are added into one number, point by point in any order."""
    counts = offsets.diff().to(truth.device)
    case = torch.repeat_interleave(torch.arange(len(counts), device=truth.device), counts, output_size=len(truth))

    def norms(values: Tensor) -> Tensor:
        sums = torch.zeros(len(counts), device=values.device)
        return sums.index_add(0, case, values.float().square().sum(1)).sqrt()

    return (norms(prediction - truth) / norms(truth)).mean()


class Step:
    """One training step of FLARE.

    Args:
        device: Where it runs.
        config: Sizes of the model.
        sizes: Points of each case of the batch.
    """

    def __init__(self, device: torch.device, config: FlareConfig, sizes: list[int]) -> None:
        torch.manual_seed(0)
        self.model = Flare(config).to(device)
        self.optimizer = make_optimizer(self.model, Recipe(), device)
        self.points, self.truth = torch.rand(sum(sizes), 3, device=device), torch.randn(sum(sizes), 1, device=device)
        self.offsets = torch.tensor([0, *sizes]).cumsum(0)

    def loss_of(self, loss: Loss) -> float:
        """The loss of the untrained model."""
        with torch.no_grad():
            return float(loss(self.model(self.points, None, self.offsets), self.truth, self.offsets))

    def __call__(self, loss: Loss, *, noted: bool) -> None:
        """Make a step with a loss; where `noted`, note the states of the random generators after it."""
        with torch.autocast(self.points.device.type, torch.bfloat16, enabled=self.points.is_cuda):
            prediction = self.model(self.points, None, self.offsets)
        loss(prediction.float(), self.truth, self.offsets).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if noted:
            random_state()


WAYS: dict[str, tuple[Loss, bool]] = {
    "float64 by segments": (relative_l2_loss, False),
    "float32 into one cell": (plain_loss, False),
    "float64 by segments, generators noted": (relative_l2_loss, True),
}


def measure(step: Step, seconds: float) -> dict[str, Any]:
    """Milliseconds of a step in each way, measured in turns, so that other work on the machine slows all ways alike.

    Args:
        step: The step.
        seconds: How long to measure.

    Returns:
        The number of turns, the median time of each way, and the median of its ratios to the first in the same turn.
    """

    def wait() -> None:
        if step.points.is_cuda:
            torch.cuda.synchronize()

    def once(loss: Loss, noted: bool) -> float:
        wait()
        begin = time.perf_counter()
        for _ in range(3):
            step(loss, noted=noted)
        wait()
        return (time.perf_counter() - begin) / 3 * 1e3

    for loss, noted in WAYS.values():
        once(loss, noted)
    turns: list[list[float]] = []
    begin = time.monotonic()
    while time.monotonic() - begin < seconds or len(turns) < 5:
        turns.append([once(loss, noted) for loss, noted in WAYS.values()])
    took = {name: statistics.median(turn[i] for turn in turns) for i, name in enumerate(WAYS)}
    ratios = {name: statistics.median(turn[i] / turn[0] for turn in turns) for i, name in enumerate(WAYS)}
    return {"turns": len(turns), "ms": took, "beside_the_first": ratios}


def main() -> None:
    """Measure batches of several sizes, and write the result."""
    out, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, batches = FlareConfig(), {"one part": [21_000], "eight parts": [21_000] * 8, "a million": [1_000_000]}
    if device.type == "cpu":
        config = FlareConfig(channels=32, num_blocks=2, num_heads=4, num_latents=16)
        batches = {"eight small parts": [500] * 8, "one part": [21_000]}
    machine = describe_gpu() if device.type == "cuda" else describe_machine(("torch",))
    found: dict[str, Any] = {"machine": machine, "model": vars(config), "rows": {}}
    for name, sizes in batches.items():
        step = Step(device, config, sizes)
        losses = {"float64": step.loss_of(relative_l2_loss), "float32": step.loss_of(plain_loss)}
        found["rows"][name] = {"points": sum(sizes), "losses": losses, **measure(step, seconds)}
        print(name, json.dumps(found["rows"][name]), flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
