"""Trainings of the configuration `lpbf_accurate` that a benchmark changes in one thing."""

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
    """What `flare_model.train --config lpbf_accurate` would be asked for, with steps as CUDA graphs on a GPU.

    Args:
        data: The data set.
        recipe: What differs from the configuration's recipe.
        features: What the model is told; by default as configured.
        init: Checkpoint to start from.
        others: Attributes of Settings.
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
    """The recipe of the package's own model, of so many steps."""
    return {"steps": steps, "weight_decay": 0.01, "target_weights": {"displacement_z": 2.0}}
