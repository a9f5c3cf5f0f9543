"""Does training from a stream give the losses of a local folder, and how long does it wait, beside plain `datasets`?

    python -m tests.benchmarks.streamed_training

A hub on the loopback interface, in a process of its own, serves generated cases as Parquet and as Zarr. The same small
network is trained for two epochs from a local folder, from the hub, and from the hub by plain `datasets` (Parquet,
streaming, its default shuffle), each in a process of its own with empty caches, one after the other in each round.
This package fills its cache in the first epoch and reads from it in the second; `datasets` downloads in both. Losses
from the hub must be those of the local folder, digit by digit. Measured is the share of an epoch that training waits
for its next batch, the median over the rounds. The network is a pointwise one on the CPU; the time of its steps is in
the result. `--delay` lets the hub answer late, as a distant one does.

Needs no GPU and no data. The result goes to results/streamed_training.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpbf_data import make_loader
from tests.benchmarks.machine import describe_machine, save_result
from tests.data_hub_server import serve_hub
from tests.data_support import make_case, write_dataset

EPOCHS = 2
BATCH = 2
COLUMNS = ["x", "y", "z", "displacement_z"]
SIDES = ("local parquet", "hub parquet", "local zarr", "hub zarr", "datasets parquet")


class Training:
    """Training of a small network, which starts with the same weights every time.

    Attributes:
        losses: Loss of each step so far.
    """

    def __init__(self, width: int = 48) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(3, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.losses: list[float] = []

    def step(self, points: Tensor, target: Tensor) -> None:
        """One step on some points [N, 3] in mm and their displacement [N, 1] in mm."""
        loss = (self.model(points / 10) - target).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.losses.append(loss.item())

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Train for an epoch: its seconds, those of them spent waiting for a batch, and its steps."""
        start, waited, steps, iterator = time.perf_counter(), 0.0, 0, iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            self.step(*batch)
            steps += 1
        return {"seconds": time.perf_counter() - start, "waited": waited, "steps": steps}


def train_from(data: str, epochs: int = EPOCHS, **options: Any) -> tuple[list[float], list[dict[str, float]]]:
    """Train from a data set by this package: the losses, and the times of each epoch.

    Args:
        data: Its folder, or its id on the hub.
        epochs: Number of epochs.
        **options: Further options of `make_loader`.
    """
    training = Training()
    loader = make_loader(data, "train", batch_size=BATCH, shuffle=True, seed=3, fields=[], **options)
    times = [training.epoch((batch.pos, batch.y) for batch in loader) for _ in range(epochs)]
    return training.losses, times


def train_from_datasets(data: str) -> tuple[list[float], list[dict[str, float]]]:
    """Train by plain `datasets`, streaming with its default shuffle and reading the same columns."""
    import datasets

    rows = datasets.load_dataset(data, split="train", streaming=True, columns=COLUMNS).shuffle(seed=3)
    rows, training, times = rows.with_format("numpy"), Training(), []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for group in rows.batch(BATCH):
            points = np.stack([np.concatenate(group[name]) for name in COLUMNS], axis=1)
            yield torch.from_numpy(points[:, :3]), torch.from_numpy(points[:, 3:])

    for epoch in range(EPOCHS):
        rows.set_epoch(epoch)
        times.append(training.epoch(batches()))
    return training.losses, times


def _serve(folder: Path, delay: float, pipe: Any) -> None:
    with serve_hub({f"user/{name}": {"main": folder / name} for name in ("parquet", "zarr")}) as hub:
        hub.delay = delay
        pipe.send(hub.url)
        pipe.recv()


@contextmanager
def hub_elsewhere(folder: Path, delay: float) -> Iterator[str]:
    """Serve a hub from a process of its own until the block ends; gives its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, delay, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("enough")
        process.join()


def measure(side: str, folder: Path, url: str) -> dict[str, Any]:
    """Train from one of `SIDES` in a process of its own, with empty caches."""
    with tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {
            "HF_ENDPOINT": url,
            "HF_HOME": f"{caches}/hf",
            "LPBF_CACHE": f"{caches}/lpbf",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.streamed_training", "--side", side]
        done = subprocess.run(
            [*command, "--folder", str(folder)], env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_side(side: str, folder: Path) -> None:
    """Train and print losses and times; `measure` starts a process that does this."""
    torch.set_num_threads(1)
    place, layout = side.split()
    if place == "datasets":
        losses, times = train_from_datasets(f"user/{layout}")
    else:
        losses, times = train_from(str(folder / layout) if place == "local" else f"user/{layout}")
    print(json.dumps({"losses": losses, "times": times}))


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=120, help="number of cases")
    parser.add_argument("--points", type=int, default=14_500, help="about 20,000 points a case")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over which the median is taken")
    parser.add_argument("--delay", type=float, default=0.03, help="seconds before each answer of the hub")
    parser.add_argument("--side", choices=SIDES, help="used by the benchmark itself: train from this alone")
    parser.add_argument("--folder", type=Path, help="used by the benchmark itself: folder of the data")
    arguments = parser.parse_args()
    if arguments.side is not None:
        run_side(arguments.side, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        cases = [make_case(seed, arguments.points) for seed in range(arguments.cases)]
        for layout in ("parquet", "zarr"):
            (folder / layout).mkdir()
            write_dataset(folder / layout, {"train": cases}, shards=max(arguments.cases // 30, 1), formats=[layout])
        with hub_elsewhere(folder, arguments.delay) as url:
            rounds = [{side: measure(side, folder, url) for side in SIDES} for _ in range(arguments.rounds)]
    wanted = rounds[0]["local parquet"]["losses"]
    ours = [side for side in SIDES if not side.startswith("datasets")]
    result: dict[str, Any] = {
        "machine": describe_machine(("numpy", "pyarrow", "zarr", "torch", "huggingface_hub", "datasets")),
        "cases": arguments.cases,
        "mean_points": round(float(np.mean([case.num_points for case in cases]))),
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "rounds": arguments.rounds,
        "hub_delay_seconds": arguments.delay,
        "losses_equal_digit_by_digit": {side: all(r[side]["losses"] == wanted for r in rounds) for side in ours},
        "last_loss": wanted[-1],
        "sides": {side: _summary([r[side]["times"] for r in rounds]) for side in SIDES},
    }
    assert all(result["losses_equal_digit_by_digit"].values()), result
    print(save_result("streamed_training", result).read_text(encoding="utf-8"))


def _summary(rounds: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """Median share of waiting in each epoch, and median time of a step without waiting."""
    return [
        {
            "steps": rounds[0][epoch]["steps"],
            "waiting_share": round(statistics.median(r[epoch]["waited"] / r[epoch]["seconds"] for r in rounds), 4),
            "seconds": round(statistics.median(r[epoch]["seconds"] for r in rounds), 2),
            "step_ms": round(
                1e3 * statistics.median((r[epoch]["seconds"] - r[epoch]["waited"]) / r[epoch]["steps"] for r in rounds),
                1,
            ),
        }
        for epoch in range(EPOCHS)
    ]


if __name__ == "__main__":
    main()
