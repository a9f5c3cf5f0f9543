"""Checkpoints to resume from, on disk: everything that a run needs to continue exactly.

Weights are safetensors; the rest is `training.pt`, which opens with `weights_only=True`. A checkpoint is a folder that
appears whole, by renaming, once everything in it has reached the disk.
"""

from __future__ import annotations

import io
import random
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from flare_model.checkpoints.files import WEIGHTS_NAME, Description, encode_weights, write_checkpoint
from lpbf_data.durable import flush_folder, flush_tree, write_durably
from lpbf_data.errors import StoreError

STATE_NAME: Final = "training.pt"
_FOLDER: Final = re.compile(r"step-(\d+)")


def random_state() -> dict[str, Any]:
    """States of all random generators that a model may draw from."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (a user's model may use it)
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore all random generators to a state from `random_state`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def write_state(
    run: Path,
    step: int,
    description: Description,
    weights: Mapping[str, Mapping[str, Tensor]],
    rest: Mapping[str, Any],
) -> Path:
    """Write a checkpoint to resume from, and remove older ones.

    Args:
        run: Folder of the run.
        step: Steps done.
        description: Description of the model.
        weights: Name to weights: "model" as they are trained, and others.
        rest: Everything else; tensors, numbers, strings, and containers of them.

    Returns:
        The folder of the checkpoint.
    """
    parent = run / "checkpoints"
    final, aside = parent / f"step-{step:08d}", parent / f".step-{step:08d}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    write_checkpoint(aside, weights["model"], description)
    for name, values in weights.items():
        if name != "model":
            write_durably(aside / f"{name}.safetensors", encode_weights(values))
    buffer = io.BytesIO()
    torch.save(dict(rest), buffer)
    write_durably(aside / STATE_NAME, buffer.getvalue())
    flush_tree(aside)
    shutil.rmtree(final, ignore_errors=True)
    aside.replace(final)
    flush_folder(parent)
    for other in parent.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def latest_state(run: Path) -> Path | None:
    """The checkpoint to resume from; None when there is none."""
    found = [path for path in (run / "checkpoints").glob("step-*") if _FOLDER.fullmatch(path.name)]
    return max(found, default=None)


def read_state(folder: Path, parts: Iterable[str] = ()) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint to resume from; nothing in it is executed.

    Args:
        folder: Its folder.
        parts: Keys that it must hold in addition to the weights.

    Returns:
        Name to weights, and everything else.

    Raises:
        StoreError: If it can't be read.
    """
    try:
        weights = {p.stem: safetensors.torch.load_file(p) for p in sorted(folder.glob("*.safetensors"))}
        rest = torch.load(folder / STATE_NAME, weights_only=True, map_location="cpu")
        _ = weights[WEIGHTS_NAME.removesuffix(".safetensors")], *(rest[part] for part in parts)
    except Exception as error:  # torch.load raises whatever unpickling meets.
        raise StoreError(
            f"the checkpoint {folder} can't be read ({type(error).__name__}: {error}); remove it to start the run again"
        ) from error
    return weights, rest
