"""The error that ends a run whose loss or weights are no longer finite."""

from __future__ import annotations

from pathlib import Path

import torch

from flare_model.training.training_checkpoint import latest_state
from lpbf_data.errors import LpbfError


class DivergedError(LpbfError):
    """The loss of a run is no finite number any more."""


def diverged(folder: Path, what: str) -> DivergedError:
    """The error that ends a run, with the last good checkpoint and advice.

    Args:
        folder: Folder of the run.
        what: The beginning of the message: which number is no longer finite, and at which step.
    """
    latest = latest_state(folder)
    good = f"the last good checkpoint is {latest}" if latest else "there was no checkpoint yet"
    return DivergedError(f"{what}; {good}. Lower --recipe.learning_rate, or look at the case, and give another --out")


def check_weights(model: torch.nn.Module, step: int, folder: Path) -> None:
    """Refuse weights that aren't finite before they are stored: a gradient can be infinite where the loss isn't.

    Args:
        model: The model in training.
        step: Steps done.
        folder: Folder of the run.

    Raises:
        DivergedError: If a weight is no finite number.
    """
    weights = [p.detach() for p in model.parameters()]
    if not bool(torch.stack([values.isfinite().all() for values in weights]).all()):
        raise diverged(folder, f"weights are no finite numbers any more at step {step}")
