"""The model that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lpbf_data.errors import StoreError

PACKAGED_FOLDER: Final = Path(__file__).parents[1] / "pretrained"
"""Weights, configuration, intervals, risk, quantiles of the training set, and the card."""

PACKAGED_NAME: Final = "packaged"
"""Its name in options such as --init, unless the working directory has a folder of that name."""


def packaged_checkpoint() -> str:
    """The folder of the model that comes with the package.

    Raises:
        StoreError: If this installation has none.
    """
    if not (PACKAGED_FOLDER / "config.json").exists():
        raise StoreError(
            f"this installation comes without a model of its own ({PACKAGED_FOLDER} is empty); name one with "
            "--checkpoint, or install the package again"
        )
    return str(PACKAGED_FOLDER)


def is_packaged(checkpoint: str | Path) -> bool:
    """Whether a checkpoint, given by folder or name, is the model that comes with the package.

    Commands write nothing into its folder. Where the working directory has a folder of the same name, the name means
    that folder.
    """
    named = str(checkpoint) == PACKAGED_NAME and not Path(checkpoint).is_dir()
    return named or Path(checkpoint).resolve() == PACKAGED_FOLDER.resolve()
