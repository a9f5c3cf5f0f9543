"""Configurations that earlier versions wrote, upgraded: they named the mixer among the sizes of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from flare_model.checkpoints.spec import ModelSpec, split_execution
from flare_model.training.settings import OPTIONS_ADDED_LATER
from lpbf_data.console import say


def upgraded_configuration(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run with the mixer as an option of the recipe, and the defaults of options added later.

    Args:
        configuration: With model and recipe, as `Settings.identity` and `Settings.options` have them.

    Raises:
        KeyError, TypeError, ValueError: If it isn't such a configuration.
    """
    model, mixer = split_execution(ModelSpec(**configuration["model"]))
    named = {} if mixer is None else {"mixer": mixer}
    recipe = {**OPTIONS_ADDED_LATER, **named, **configuration.get("recipe", {})}
    return {**configuration, "model": asdict(model), "recipe": recipe}


def upgraded_arguments(words: Sequence[str]) -> list[str]:
    """A command line in which files of earlier versions that `--config` names are replaced by upgraded content.

    What is changed is printed.
    """
    upgraded: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        inline = option == "--config" and bool(equals)
        content = _upgraded_file(value if inline else word) if inline or upgraded[-1:] == ["--config"] else None
        upgraded.append(word if content is None else f"{option}={content}" if inline else content)
    return upgraded


def _upgraded_file(path: str) -> str | None:
    """A file of options upgraded, as JSON; None where it needs no upgrade, or can't be read."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        model, mixer = split_execution(ModelSpec(**content["model"]))
        if mixer is None:
            return None
        rewritten = {**content, "model": asdict(model), "recipe": {"mixer": mixer, **content.get("recipe", {})}}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None  # The parser says more precisely why a file can't be read.
    say(f"{path} is of an earlier version: its model.init_args.config.mixer {mixer} is taken as --recipe.mixer")
    return json.dumps(rewritten)
