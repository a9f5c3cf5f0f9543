"""`python -m flare_model.train --data lpbf/ --out runs/first`: train FLARE on the streamed shards of a data set.

One loop on lightning Fabric, in the order in which one reads it: data, model, optimiser, epochs, checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch.utils.data import DataLoader
from tqdm import tqdm

from flare_model.metrics import RelativeL2, relative_l2
from flare_model.model import Flare, FlareConfig
from flare_model.surrogate import CheckpointInfo, Normalisation, Surrogate, save_checkpoint
from lpbf_data.batching import RaggedBatch, collate_ragged
from lpbf_data.command_line import run
from lpbf_data.datasets import CaseStream, load_dataset
from lpbf_data.errors import UsageError
from lpbf_data.folder import DatasetFolder
from lpbf_data.reader import read_manifest
from lpbf_data.statistics import total

TARGET: Final = "displacement_z"

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's for LPBF (appendix C.3, Table 4).

    Args:
        epochs: Times that every case is seen (Table 4: 250).
        batch_size: Cases in a step (C.3: 1 for 3D problems).
        learning_rate: Peak of the OneCycle schedule (Table 4: 1e-3).
        weight_decay: Of AdamW (Table 4: 1e-4).
        warmup: Share of the steps that the learning rate rises (C.3: 10 %).
        clip_norm: Largest norm of the gradient (C.3: 1).
        precision: auto is bf16-mixed on a GPU and 32-true elsewhere.
    """

    epochs: int = 250
    batch_size: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.1
    clip_norm: float = 1.0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--recipe.{name} must be positive, not {getattr(self, name)}")
        if not 0 < self.warmup < 1:
            raise UsageError(f"--recipe.warmup must lie between 0 and 1, not {self.warmup}")
        if self.weight_decay < 0:
            raise UsageError(f"--recipe.weight_decay must not be negative, but is {self.weight_decay}")


def train(
    data: str,
    *,
    out: str = "runs/first",
    model: FlareConfig = FlareConfig(),  # noqa: B008 (frozen)
    recipe: Recipe = Recipe(),
    seed: int = 0,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: int = 1,
    num_workers: int = 0,
    max_steps: int | None = None,
) -> int:
    """Train FLARE to predict the Z displacement of the finished part.

    Args:
        data: The data set: a folder, or a URL that fsspec knows.
        out: Folder of the run.
        model: Sizes of the model.
        recipe: How to train.
        seed: Seed of weights and order.
        accelerator: Where to train.
        devices: Number of devices.
        num_workers: Processes that read ahead.
        max_steps: Stop after so many steps; the schedule is cut to them.

    Returns:
        Exit status.
    """
    precision = choose_precision(recipe.precision, accelerator)
    folder = Path(out)
    loggers: list[Any] = [CSVLogger(folder, name="csv", version="", flush_logs_every_n_steps=10)]
    loggers += [TensorBoardLogger(folder, name="tensorboard", version="")]
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision, loggers=loggers)
    fabric.launch()
    fabric.seed_everything(seed, verbose=False)
    stream = load_dataset(
        data, "train", streaming=True, format="torch", fields=["displacement"], cells=False, shuffle=True, seed=seed
    )
    assert isinstance(stream, CaseStream)
    loader = _loader(stream, recipe.batch_size, num_workers)
    normalisation = normalisation_of(data)
    surrogate = Surrogate(Flare(model), normalisation)
    steps = recipe.epochs * math.ceil(len(stream) / recipe.batch_size)
    steps = steps if max_steps is None else min(steps, max_steps)
    optimizer = torch.optim.AdamW(
        surrogate.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.999), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps + 1, pct_start=recipe.warmup, cycle_momentum=False
    )
    wrapped, optimizer = fabric.setup(surrogate, optimizer)
    started = time.monotonic()
    bar = tqdm(total=steps, desc="train", unit="step", disable=not fabric.is_global_zero)
    points = 0
    for step, batch in enumerate(_batches(stream, loader, steps, fabric), start=1):
        prediction = wrapped(batch.pos, batch.offsets)
        loss = relative_l2(prediction, batch.y, batch.offsets).mean()
        fabric.backward(loss)
        fabric.clip_gradients(wrapped, optimizer, max_norm=recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        points += len(batch.pos)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UsageError(
                f"the loss became {value} at step {step}, in case {', '.join(batch.case_ids)}; lower "
                "--recipe.learning_rate, or leave the case out when its displacement is zero everywhere"
            )
        rate = points / (time.monotonic() - started)
        fabric.log_dict({"loss": value, "learning_rate": schedule.get_last_lr()[0], "points_per_s": rate}, step=step)
        bar.update()
        bar.set_postfix(loss=f"{value:.4f}", points_per_s=f"{rate:,.0f}")
    bar.close()
    for logger in loggers:
        logger.finalize("success")
    errors = {split: validate(surrogate, data, split, fabric) for split in ("validation", "test") if _has(data, split)}
    if fabric.is_global_zero:
        manifest = read_manifest(DatasetFolder(data)).digest
        origin: dict[str, Any] = {
            "data_manifest_sha256": manifest,
            "steps": steps,
            "seed": seed,
            "precision": precision,
        }
        origin |= {"recipe": asdict(recipe)} | {f"{name}_relative_l2": error.mean for name, error in errors.items()}
        save_checkpoint(folder, surrogate, CheckpointInfo(model, normalisation, TARGET, origin))
        for name, error in errors.items():
            print(f"{name}: relative L2 {error.mean:.4f} over {error.cases} cases")
        print(f"checkpoint in {folder}")
    return 0


def choose_precision(asked: Precision, accelerator: str) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """The precision to train in.

    Raises:
        UsageError: If 16-mixed is asked for on a CPU, which has no float16 arithmetic worth the name.
    """
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if asked == "16-mixed" and not on_gpu:
        raise UsageError("--recipe.precision 16-mixed needs a GPU; use 32-true or bf16-mixed on a CPU")
    if asked == "auto":
        return "bf16-mixed" if on_gpu else "32-true"
    return asked


def _loader(stream: CaseStream, batch_size: int, num_workers: int) -> DataLoader[RaggedBatch]:
    return DataLoader(
        stream,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_ragged,
        pin_memory=torch.cuda.is_available(),
    )


def _batches(stream: CaseStream, loader: Any, steps: int, fabric: Fabric) -> Iterator[RaggedBatch]:
    """Batches of one epoch after the other, until there were enough."""
    done = epoch = 0
    while done < steps:
        stream.set_epoch(epoch)
        for batch in loader:
            if done == steps:
                return
            yield batch.to(fabric.device)
            done += 1
        epoch += 1


def normalisation_of(data: str) -> Normalisation:
    """Normalisation from the statistics of the training split, as the manifest has them."""
    kept = [r for r in read_manifest(DatasetFolder(data)).records if r.placement and r.placement.split == "train"]
    stats = total(record.statistics[TARGET] for record in kept)
    return Normalisation(target_mean=(stats.mean,), target_std=(stats.std or 1.0,))


def _has(data: str, split: str) -> bool:
    return split in read_manifest(DatasetFolder(data)).splits


@torch.no_grad()
def validate(surrogate: Surrogate, data: str, split: str, fabric: Fabric) -> RelativeL2:
    """Mean relative L2 error over a split.

    Args:
        surrogate: What to judge.
        data: The data set.
        split: Its split.
        fabric: Says on which device and in which precision.
    """
    stream = load_dataset(data, split, streaming=True, format="torch", fields=["displacement"], cells=False)
    assert isinstance(stream, CaseStream)
    surrogate.eval()
    errors = RelativeL2()
    with fabric.autocast():
        for batch in _loader(stream, 1, 0):
            moved = batch.to(fabric.device)
            errors += RelativeL2.of(surrogate(moved.pos, moved.offsets), moved.y, moved.offsets)
    surrogate.train()
    return errors


def main() -> None:
    """Entry point of `lpbf-train`."""
    run(train, "python -m flare_model.train")


if __name__ == "__main__":
    main()
