"""The contract between a model and everything here that trains, judges and uses models.

A model is a `torch.nn.Module` that is called with three tensors and returns one:

| name | shape | what it holds |
|---|---|---|
| `points` | [ΣN, 3] float | coordinates of the points of all meshes of a batch, one mesh after the other, scaled by half the width, half the depth and the height of the build volume, so that a part inside it has x and y in -1 … 1 and z in 0 … 1. Of a data set that isn't one of printed parts [ΣN, d], scaled as it says |
| `features` | [ΣN, F] float, or None | input features of each point, scaled to mean 0 and standard deviation 1; None where the model has no features |
| `offsets` | [B + 1] int64, or None | first point of each mesh, and the end of the last; None stands for a single mesh |
| returned | [ΣN, T] float | the targets at the same points, in units of their standard deviation over the training points, from their mean |

Three promises come with it. Meshes are independent: what is predicted for a mesh doesn't depend on
which others share its batch, in training as in evaluation: normalise over channels, not over a batch. Meshes of any size
are taken, in any number from one on. What comes back are finite numbers, of any floating type; millimetres and losses are
kept in float32 outside of the model.

A model for grids of one size, which depends on the order of the points, has an attribute `grid` with `rows` and `columns`;
it is given such grids alone.

A constructor that takes `in_dim` (3 + F, or d + F) and `out_dim` (T), itself or in a dataclass that it takes, is given them;
everything else comes from `--model.init_args`. The models of this package take padded meshes too, [B, N, 3] with a
`mask` [B, N]; others need not.

    class Pointwise(nn.Module):
        def __init__(self, in_dim: int, out_dim: int, width: int = 64) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Linear(in_dim, width), nn.GELU(), nn.Linear(width, out_dim))

        def forward(self, points, features=None, offsets=None):
            known = points if features is None else torch.cat([points, features], dim=-1)
            return self.network(known)

is a model, if not a good one: `python -m flare_model.train --data lpbf/ --model.class_path my_package.Pointwise`.
"""  # noqa: E501 (a table)

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from flare_model.models.grids import Grid
from lpbf_data.errors import LpbfError, UsageError

_SIZES: Final = (61, 83)
_TOLERANCE: Final = 1e-3
"""Of the largest prediction; a GPU may round products more coarsely."""
_GPU_TOLERANCE: Final = 1e-2
_MIN_TOLERANCE: Final = 1e-6


def check_contract(
    model: nn.Module,
    num_features: int,
    num_targets: int,
    *,
    name: str,
    all_used: bool = False,
    coordinates: int = 3,
) -> None:
    """Check a model on two small meshes, together and each alone, before it is trained.

    It is tried in evaluation mode, where dropout leaves numbers as they are; batch normalisation, which mixes meshes in
    training mode alone, is looked for by its class.

    Args:
        model: The model, on any device.
        num_features: F.
        num_targets: T.
        name: What to call it in the error.
        all_used: Whether every parameter must have a gradient, as several processes that train together need.
        coordinates: d.

    Raises:
        UsageError: If it has nothing to train, fails, returns something else than [ΣN, T] finite numbers, lets one
            mesh depend on another, or its parameters have no gradient.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UsageError(
            f"the model {name} has no parameters to train; see flare_model.models.contract for what a model must do"
        )
    if norms := [n for n, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]:
        raise UsageError(
            f"the model {name} normalises over all points of a batch ({norms[0]}), so that in training the prediction "
            "for a mesh depends on the others; use LayerNorm or GroupNorm"
        )
    grid: Grid | None = getattr(model, "grid", None)
    sizes = _SIZES if grid is None else (grid.num_points, grid.num_points)
    points, features, offsets = _meshes(sizes, coordinates, num_features, next(iter(parameters.values())).device)
    was_training = model.training
    model.eval()
    with torch.enable_grad():
        joined = _call(model, name, points, features, offsets)
        _check_output(joined, (len(points), num_targets), name)
        _check_gradients(joined, parameters, name, all_used=all_used)
    with torch.no_grad():
        for first, last in itertools.pairwise(offsets.tolist()):
            own = slice(first, last)
            own_features = None if features is None else features[own]
            alone = _call(model, name, points[own], own_features, offsets.new_tensor([0, last - first]))
            _check_independent(joined[own].detach(), alone, name)
    model.train(was_training)


def _meshes(
    sizes: tuple[int, int], coordinates: int, num_features: int, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Points, features and offsets of two small meshes, or of two grids."""
    generator, count = torch.Generator().manual_seed(0), sum(sizes)
    points = torch.rand(count, coordinates, generator=generator) * 2 - 1
    if coordinates == 3:
        points[:, 2] = (points[:, 2] + 1) / 2
    features = torch.randn(count, num_features, generator=generator).to(device) if num_features else None
    return points.to(device), features, torch.tensor([0, sizes[0], count], device=device)


def _check_output(joined: object, wanted: tuple[int, int], name: str) -> None:
    if not isinstance(joined, Tensor) or tuple(joined.shape) != wanted or not joined.is_floating_point():
        got = f"{tuple(joined.shape)} {joined.dtype}" if isinstance(joined, Tensor) else type(joined).__name__
        raise UsageError(
            f"the model {name} must return a tensor of floating numbers [ΣN, T], here {wanted}, but returned {got}; "
            "see flare_model.models.contract"
        )
    if not bool(joined.isfinite().all()):
        raise UsageError(
            f"the model {name} returns numbers that aren't finite before any training; check how it starts"
        )


def _check_gradients(joined: Tensor, parameters: Mapping[str, nn.Parameter], name: str, *, all_used: bool) -> None:
    gradients: Sequence[Tensor | None] = [None] * len(parameters)
    if joined.requires_grad:
        try:
            gradients = torch.autograd.grad(joined.float().square().sum(), list(parameters.values()), allow_unused=True)
        except Exception as error:  # Whatever a foreign model raises.
            raise UsageError(f"the model {name} has no gradient ({_in_one_line(error)})") from error
    unused = [n for n, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if len(unused) == len(parameters):
        raise UsageError(
            f"what the model {name} returns doesn't depend on its parameters, so there is nothing to train; look for a "
            "detach() or no_grad() in it"
        )
    if unused and all_used:
        raise UsageError(
            f"{len(unused)} parameters of the model {name} have no part in what it returns ({unused[0]}), which "
            "processes that train together wait for; remove them, or set requires_grad to False"
        )


def _check_independent(together: Tensor, alone: Tensor, name: str) -> None:
    difference = float((together - alone).abs().max())
    tolerance = _GPU_TOLERANCE if alone.is_cuda else _TOLERANCE
    if not difference <= tolerance * float(alone.abs().max()) + _MIN_TOLERANCE:
        raise UsageError(
            f"the model {name} makes the prediction for a mesh depend on the others of its batch (it changes by "
            f"{difference:.2g} when another joins); keep them apart by the offsets, see flare_model.models.contract"
        )


def _call(model: nn.Module, name: str, points: Tensor, features: Tensor | None, offsets: Tensor) -> Tensor:
    try:
        out: Tensor = model(points, features, offsets)
    except LpbfError:
        raise
    except Exception as error:  # Whatever a foreign model raises, the user needs the contract.
        raise UsageError(
            f"the model {name} failed on meshes of {offsets.diff().tolist()} points ({_in_one_line(error)}); "
            "it is called with points [ΣN, 3], features [ΣN, F] or None, and offsets [B + 1], see "
            "flare_model.models.contract"
        ) from error
    return out


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
