"""What Lightning's processes do in tests: `python -m tests.lpbf_data.lightning_programs <name> <arguments as JSON>`."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch

from lpbf_data import make_loader
from tests.lpbf_data.rank_programs import report


class Watching(lightning.LightningModule):
    """A model of three weights that writes down which cases it was shown.

    Args:
        stop_after: Batches of training after which the process ends, as when it is killed.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.trained: list[list[str]] = []
        self.validated: list[list[str]] = []
        self.stop_after = stop_after

    def training_step(self, batch: Any) -> torch.Tensor:
        if not self.trained:  # an epoch that goes on isn't started
            self.trained.append([])
        self.trained[-1] += batch.case_ids
        return (self.layer(batch.pos) - batch.y).square().mean()

    def validation_step(self, batch: Any) -> None:
        self.validated[-1] += batch.case_ids
        self.log("error", (self.layer(batch.pos) - batch.y).abs().mean(), batch_size=len(batch), sync_dist=True)

    def on_train_epoch_start(self) -> None:
        self.trained.append([])

    def on_validation_epoch_start(self) -> None:
        self.validated.append([])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if sum(map(len, self.trained)) == self.stop_after:
            self.trainer.save_checkpoint(os.environ["RANKS_REPORT"] + "/cut.ckpt")
            raise KeyboardInterrupt

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def trainer(**options: Any) -> lightning.Trainer:
    """A quiet trainer on the CPU."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "default_root_dir": os.environ["RANKS_REPORT"]}
    return lightning.Trainer(**(quiet | options))


def loaders(folder: str, workers: int) -> dict[str, Any]:
    """Loaders for training and validation, made before there is a process group."""
    options: dict[str, Any] = {"fields": [], "num_workers": workers, "uneven": "pad"}
    return {
        "train_dataloaders": make_loader(folder, shuffle=True, seed=5, **options),
        "val_dataloaders": make_loader(folder, "validation", batch_size=1, **options),
    }


def fit(folder: str, workers: int, devices: int, options: dict[str, Any]) -> None:
    """Three epochs, with the sanity check before."""
    model = Watching()
    strategy = "ddp" if devices > 1 else "auto"
    found = trainer(max_epochs=3, devices=devices, strategy=strategy, **options)
    found.fit(model, **loaders(folder, workers))
    report({"trained": model.trained, "validated": model.validated}, found.global_rank)
    sys.stdout.flush()
    os._exit(0)  # how PyTorch takes a process group apart at the end of Python is not what is tested


def resume(folder: str, workers: int, cut: int) -> None:
    """Training that ends in the middle of an epoch, and another process's worth of objects that goes on."""
    first, second = Watching(stop_after=cut), Watching()
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer(max_epochs=2, num_sanity_val_steps=0).fit(first, **loaders(folder, workers))
    place = os.environ["RANKS_REPORT"] + "/cut.ckpt"
    trainer(max_epochs=2, num_sanity_val_steps=0).fit(second, **loaders(folder, workers), ckpt_path=place)
    report({"first": first.trained, "second": second.trained}, 0)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(float(os.environ["RANKS_SECONDS"]), exit=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    Path(os.environ["RANKS_REPORT"]).mkdir(exist_ok=True)
    globals()[sys.argv[1]](*json.loads(sys.argv[2]))
