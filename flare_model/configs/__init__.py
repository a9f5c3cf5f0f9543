"""Configurations that come with the package, by name: `--config lpbf`.

Each value stands in its YAML file with its source; the functions here only find those files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lpbf_data.console import say

FOLDER = Path(__file__).parent


def config_names() -> list[str]:
    """Names of the configurations."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def config_path(name: str) -> Path | None:
    """Where the configuration of a name lies; None when there is none of that name."""
    path = FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    return path if path.parent == FOLDER and path.is_file() else None


def spell_out_config(words: Sequence[str]) -> list[str]:
    """Replace names of configurations that come with the package by their paths.

    A file of that name in the working directory goes first. A plain name that is neither ends the command, with status
    2 and the names that there are.
    """
    spelled: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        named = value if option == "--config" and equals else word if spelled[-1:] == ["--config"] else None
        path = None
        if named and not Path(named).is_file():
            path = config_path(named)
            if path is None and Path(named).name == named and not Path(named).suffix:
                known = ", ".join(config_names())
                say(f"error: --config {named} is neither a file nor one of {known}")
                sys.exit(2)
        spelled.append(word if path is None else f"{option}={path}" if equals else str(path))
    return spelled
