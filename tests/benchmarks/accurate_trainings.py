"""Settings of trainings of the configuration `lpbf_accurate`, of which a benchmark changes one thing.

Shared by `fine_tuning`, `held_out_families` and `learning_curves`; not a command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import yaml

from flare_model.checkpoints.spec import ModelSpec
from flare_model.configs import config_path
from flare_model.training.initial_weights import adopt_checkpoint
from flare_model.training.recipe import Recipe
from flare_model.training.settings import Settings, make_settings


def accurate_settings(
    data: str,
    recipe: dict[str, Any],
    *,
    features: Sequence[str] | None = None,
    init: str | None = None,
    **others: Any,
) -> Settings:
    """The settings of `flare_model.train --config lpbf_accurate`; on a GPU with steps recorded as CUDA graphs.

    Args:
        data: The data set.
        recipe: Fields of the recipe that differ from the configuration's.
        features: Input features of the model; by default those of the configuration.
        init: Checkpoint to start from.
        others: Further attributes of Settings.
    """
    path = config_path("lpbf_accurate")
    assert path is not None
    known = yaml.safe_load(path.read_text(encoding="utf-8"))
    model, targets, start = ModelSpec(**known["model"]), known["targets"], None
    told = known["features"] if features is None else features
    if init is not None:
        start, model, targets, told = adopt_checkpoint(init, model, targets, told)
    changed = replace(Recipe(**known["recipe"]), step_graphs=torch.cuda.is_available(), **recipe)
    return make_settings(
        model, targets, told, data=data, recipe=changed, init=start, symmetries=True, resident=True, **others
    )


def recipe_of_own_model(steps: int) -> dict[str, Any]:
    """What the recipe of the package's own model changes of the configuration's, for a number of steps."""
    return {"steps": steps, "weight_decay": 0.01, "target_weights": {"displacement_z": 2.0}}
