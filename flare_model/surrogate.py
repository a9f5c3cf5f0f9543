"""A model with what is needed to use it: millimetres in, physical units out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from flare_model.model import Flare, FlareConfig
from lpbf_data.durable import write_durably
from lpbf_data.errors import SchemaError, StoreError

WEIGHTS_NAME: Final = "model.safetensors"
CONFIG_NAME: Final = "config.json"
CHECKPOINT_VERSION: Final = 1

BUILD_VOLUME: Final = (30.0, 30.0, 60.0)
"""Half width, half depth and height of the build volume in mm; points are divided by it (paper, G.2)."""


@dataclass(frozen=True)
class Normalisation:
    """How millimetres become what the model sees, and back.

    Attributes:
        point_scale: Points are divided by it, [3], mm.
        target_mean: Mean of the target over the training points, one a component.
        target_std: Standard deviation of the same.
    """

    point_scale: tuple[float, float, float] = BUILD_VOLUME
    target_mean: tuple[float, ...] = (0.0,)
    target_std: tuple[float, ...] = (1.0,)


class Surrogate(nn.Module):
    """A model between its normalisations.

    Args:
        model: Predicts normalised targets from normalised points.
        normalisation: How they are normalised.
    """

    point_scale: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, model: Flare, normalisation: Normalisation) -> None:
        super().__init__()
        self.model = model
        self.normalisation = normalisation
        self.register_buffer("point_scale", torch.tensor(normalisation.point_scale), persistent=False)
        self.register_buffer("target_mean", torch.tensor(normalisation.target_mean), persistent=False)
        self.register_buffer("target_std", torch.tensor(normalisation.target_std), persistent=False)

    def forward(self, points: Tensor, offsets: Tensor) -> Tensor:
        """Predict the target in physical units.

        Args:
            points: Points in mm, [ΣN, 3].
            offsets: First point of each case and the end of the last, [B + 1].

        Returns:
            [ΣN, F] float32.
        """
        normalised: Tensor = self.model(points / self.point_scale, offsets)
        return normalised.float() * self.target_std + self.target_mean


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself beside its weights.

    Attributes:
        model: Sizes of the model.
        normalisation: Its normalisations.
        target: Name of what it predicts.
        origin: How it came about: data, epochs, errors, versions.
    """

    model: FlareConfig
    normalisation: Normalisation
    target: str
    origin: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, surrogate: Surrogate, info: CheckpointInfo) -> None:
    """Write a checkpoint: weights as safetensors, the rest as JSON. Each file is replaced whole.

    Args:
        folder: Where to; made when absent.
        surrogate: What to save.
        info: What to say of it.
    """
    state = {name: values.detach().cpu().contiguous() for name, values in surrogate.model.state_dict().items()}
    write_durably(folder / WEIGHTS_NAME, safetensors.torch.save(state))
    content = {"checkpoint_version": CHECKPOINT_VERSION, **asdict(info)}
    write_durably(folder / CONFIG_NAME, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def load_checkpoint(folder: Path) -> tuple[Surrogate, CheckpointInfo]:
    """Read a checkpoint. Nothing in it is executed.

    Args:
        folder: Where it lies.

    Returns:
        The surrogate on the CPU, in evaluation mode, and what the checkpoint says of itself.

    Raises:
        StoreError: If a file is missing or can't be read.
        SchemaError: If it is of another version or shape.
    """
    try:
        content = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        weights = safetensors.torch.load_file(folder / WEIGHTS_NAME)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise StoreError(f"no readable checkpoint in {folder}: {error}") from error
    version = content.get("checkpoint_version")
    if version != CHECKPOINT_VERSION:
        raise SchemaError(f"the checkpoint {folder} has version {version}, this package reads {CHECKPOINT_VERSION}")
    normalisation = Normalisation(**{name: tuple(values) for name, values in content["normalisation"].items()})
    info = CheckpointInfo(FlareConfig(**content["model"]), normalisation, content["target"], content["origin"])
    surrogate = Surrogate(Flare(info.model), normalisation)
    try:
        surrogate.model.load_state_dict(weights)
    except RuntimeError as error:
        raise SchemaError(f"the weights in {folder} don't fit the model that its {CONFIG_NAME} describes") from error
    return surrogate.eval(), info
