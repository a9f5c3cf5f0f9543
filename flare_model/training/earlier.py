"""What earlier versions wrote of a run, in today's words: how FLARE mixes was named among the sizes of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from flare_model.checkpoints.spec import ModelSpec, split_execution
from flare_model.training.settings import LATER
from lpbf_data.console import say


def reworded(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run, with how to mix as an option of the recipe, and options that came later as they were.

    Args:
        configuration: With model and recipe, as `Settings.identity` and `Settings.options` have them.

    Raises:
        KeyError, TypeError, ValueError: If it is nothing of that kind.
    """
    model, mixer = split_execution(ModelSpec(**configuration["model"]))
    named = {} if mixer is None else {"mixer": mixer}
    recipe = {**LATER, **named, **configuration.get("recipe", {})}
    return {**configuration, "model": asdict(model), "recipe": recipe}


def reworded_words(words: Sequence[str]) -> list[str]:
    """A command line with the content of files in place of their names, where `--config` names one of before.

    What is taken in another way than it is written there is said.
    """
    taken: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        inline = option == "--config" and bool(equals)
        content = _content_of_before(value if inline else word) if inline or taken[-1:] == ["--config"] else None
        taken.append(word if content is None else f"{option}={content}" if inline else content)
    return taken


def _content_of_before(path: str) -> str | None:
    """A file of options in today's words, as JSON; None where it is in today's words, or nothing to be read here."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        model, mixer = split_execution(ModelSpec(**content["model"]))
        if mixer is None:
            return None
        again = {**content, "model": asdict(model), "recipe": {"mixer": mixer, **content.get("recipe", {})}}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None  # The parser has the better words for a file that can't be read.
    say(f"{path} is of an earlier version: its model.init_args.config.mixer {mixer} is taken as --recipe.mixer")
    return json.dumps(again)
