"""What the tests of flare_model share: tiny models, small parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flare_model.checkpoint import Normalisation, Usage
from flare_model.model import Flare, FlareConfig
from flare_model.recipe import Recipe
from flare_model.surrogate import Surrogate
from tests.netfabb_cases import Part, write_part

TINY: dict[str, Any] = {
    "class_path": "Flare",
    "init_args": {"config": {"channels": 16, "num_blocks": 1, "num_heads": 2, "num_latents": 8}},
}

LEARNING = Recipe(epochs=6, learning_rate=5e-3)


def tiny_flare(**sizes: int) -> Flare:
    """A small FLARE with weights large enough that its heads attend to something."""
    torch.manual_seed(0)
    model = Flare(FlareConfig(**({"channels": 16, "num_blocks": 2, "num_heads": 4, "num_latents": 6} | sizes)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    return model.eval()


def tiny_surrogate(**sizes: int) -> Surrogate:
    """The same between normalisations."""
    usage = Usage(Normalisation(target_mean=(0.02,), target_std=(0.3,)), ("displacement_z",))
    return Surrogate(tiny_flare(**sizes), usage).eval()


def write_cases(folder: Path, count: int = 12) -> Path:
    """Boxes of two layers that bend alike, so that there is something to learn."""
    for number in range(count):
        part = Part(
            f"1000{number:02d}_11b839a{number:x}_1",
            shape=(2 + number % 3, 2 + number // 3 % 2, 2),
            cell=(6.0 + 0.1 * number, 6.0, 12.0),
            clearance=60.0 + 3 * number,
        )
        write_part(folder, part)
    return folder
