"""The contract between a model and everything here that trains, judges and uses models.

A model is a `torch.nn.Module` that is called with three tensors and returns one:

| name | shape | what it holds |
|---|---|---|
| `points` | [ΣN, 3] float | coordinates of the points of all meshes of a batch, one mesh after the other, scaled by half the width, half the depth and the height of the build volume, so that a part inside it has x and y in -1 … 1 and z in 0 … 1 |
| `features` | [ΣN, F] float, or None | what else is known of each point, scaled to mean 0 and standard deviation 1; None where nothing is |
| `offsets` | [B + 1] int64, or None | first point of each mesh, and the end of the last; None stands for a single mesh |
| returned | [ΣN, T] float | the targets at the same points, in units of their standard deviation over the training points, from their mean |

Three promises come with it. Nothing passes from one mesh to another: what is predicted for a mesh doesn't depend on
which others share its batch. Meshes of any size are taken, in any number from one on. What comes back are finite
numbers, of any floating type; millimetres and losses are kept in float32 outside of the model.

A constructor that takes `in_dim` (3 + F) and `out_dim` (T), itself or in a dataclass that it takes, is given them;
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

from typing import Final, Protocol

import torch
from torch import Tensor, nn

from lpbf_data.errors import UsageError

_SIZES: Final = (61, 83)
_TOLERANCE: Final = 1e-3


class PointModel(Protocol):
    """What a model does; see the module's text for shapes and promises."""

    def __call__(self, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        """Predict the targets at the points."""


def check_contract(model: nn.Module, num_features: int, num_targets: int, *, name: str) -> None:
    """Try a model on two small meshes, before any work is spent on it.

    Args:
        model: The model, on any device.
        num_features: F.
        num_targets: T.
        name: What to call it in the error.

    Raises:
        UsageError: If it has nothing to train, fails, returns something else than [ΣN, T] finite numbers, or lets one
            mesh look at another.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError(
            f"the model {name} has no parameters to train; see flare_model.protocol for what a model must do"
        )
    generator = torch.Generator().manual_seed(0)
    device, count = parameters[0].device, sum(_SIZES)
    points = (
        torch.rand(count, 3, generator=generator) * torch.tensor([2.0, 2.0, 1.0]) - torch.tensor([1.0, 1.0, 0.0])
    ).to(device)
    features = torch.randn(count, num_features, generator=generator).to(device) if num_features else None
    offsets = torch.tensor([0, _SIZES[0], count], device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        joined = _call(model, name, points, features, offsets)
        first = slice(0, _SIZES[0])
        alone = _call(model, name, points[first], None if features is None else features[first], offsets[:2])
    model.train(was_training)
    wanted = (count, num_targets)
    if not isinstance(joined, Tensor) or tuple(joined.shape) != wanted or not joined.is_floating_point():
        got = f"{tuple(joined.shape)} {joined.dtype}" if isinstance(joined, Tensor) else type(joined).__name__
        raise UsageError(
            f"the model {name} must return a tensor of floating numbers [ΣN, T], here {wanted}, but returned {got}; "
            "see flare_model.protocol"
        )
    if not bool(joined.isfinite().all()):
        raise UsageError(
            f"the model {name} returns numbers that aren't finite before any training; check how it starts"
        )
    difference = float((joined[first] - alone).abs().max())
    if difference > _TOLERANCE * max(1.0, float(alone.abs().max())):
        raise UsageError(
            f"the model {name} lets one mesh of a batch look at another (its prediction for a mesh changes by "
            f"{difference:.2g} when another joins); keep them apart by the offsets, see flare_model.protocol"
        )


def _call(model: nn.Module, name: str, points: Tensor, features: Tensor | None, offsets: Tensor) -> Tensor:
    try:
        out: Tensor = model(points, features, offsets)
    except Exception as error:  # Whatever a foreign model raises, the user needs the contract.
        raise UsageError(
            f"the model {name} failed on meshes of {offsets.diff().tolist()} points ({type(error).__name__}: {error}); "
            "it is called with points [ΣN, 3], features [ΣN, F] or None, and offsets [B + 1], see flare_model.protocol"
        ) from error
    return out
