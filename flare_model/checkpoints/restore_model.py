"""Building the model of a checkpoint and loading its weights; classes of other packages only if they are trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flare_model.checkpoints.files import CONFIG_NAME
from flare_model.checkpoints.spec import ModelSpec
from lpbf_data.errors import SchemaError, UsageError


def restore_model(
    weights: Mapping[str, Tensor], spec: ModelSpec, *, folder: object, trust: str | None = None
) -> nn.Module:
    """Make the model of a checkpoint and give it its weights.

    Args:
        weights: Its weights.
        spec: Class and arguments of the model.
        folder: Folder of the checkpoint, for errors.
        trust: Class path of a model outside of this package that may be imported and made.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        UsageError: If the class isn't trusted.
        SchemaError: If the weights have another shape than the model.
    """
    if not spec.is_shipped and trust != spec.class_path:
        raise UsageError(
            f"the checkpoint {folder} names the model {spec.class_path}, which is not part of this package; importing "
            f"it runs its code, so it must be trusted by name: --trust {spec.class_path}"
        )
    if spec.is_shipped:
        # Shapes are compared first, on a model without memory: a forged configuration of a huge model would otherwise
        # fill the memory.
        _check_shapes(built_without_memory(spec), weights, folder)
    with torch.random.fork_rng(devices=[]):
        model = spec.build()
    _check_shapes(model, weights, folder)
    model.load_state_dict(dict(weights))
    return model.eval()


def built_without_memory(spec: ModelSpec) -> nn.Module:
    """A model whose weights have shapes and no values."""
    with torch.device("meta"), _SkipInitialisation():
        return spec.build()


class _SkipInitialisation(TorchFunctionMode):
    """Skips the initialisation of weights while a model is built.

    Tensors without memory hold no numbers, and to draw normal ones for them PyTorch would import its compiler, which
    takes a second.
    """

    def __torch_function__(  # type: ignore[no-untyped-def]
        self, func, types, args=(), kwargs=None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def _check_shapes(model: nn.Module, weights: Mapping[str, Tensor], folder: object) -> None:
    wanted = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    found = {name: tuple(values.shape) for name, values in weights.items()}
    if wanted != found:
        name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise SchemaError(
            f"the weights in {folder} don't fit the model that its {CONFIG_NAME} describes: {name} is "
            f"{found.get(name)}, the model has {wanted.get(name)}; copy both files again from one checkpoint"
        )
