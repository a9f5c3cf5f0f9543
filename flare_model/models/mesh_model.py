"""The base class of the package's models: their call, checks of its arguments, and their checkpoints.

B meshes, N points, ΣN points of all meshes together.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from flare_model.checkpoints.files import Description
from flare_model.checkpoints.hub import Pretrained
from flare_model.checkpoints.restore_model import restore_model
from flare_model.checkpoints.spec import spec_of
from flare_model.layers.layout import Layout
from lpbf_data.errors import UsageError

if TYPE_CHECKING:
    from flare_model.data.point_ranks import PointRanks


class MeshModel(nn.Module, Pretrained):
    """A model of meshes; inputs and outputs are those of the [contract][flare_model.models.contract].

    Args:
        in_dim: Numbers a point comes with: its coordinates and its features.
    """

    tiled: ClassVar[bool] = False
    """Whether joined meshes are to be cut into [tiles][flare_model.layers.mesh_tiles.MeshTiles]."""

    divisible: ClassVar[bool] = False
    """Whether [several processes][flare_model.models.divided] can share the points of a mesh."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.in_dim = in_dim
        self._tiled = self.tiled
        self.ranks: PointRanks | None = None
        """Processes that share the points of every mesh; None outside of `flare_model.models.divided.divided`."""

    def forward(
        self, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Predict at every point.

        Args:
            points: Coordinates, [B, N, 3] for equal or padded meshes; [ΣN, 3] for joined ones, or for a single mesh.
            features: Features of the points, as many numbers a point as in_dim leaves.
            offsets: First point of each joined mesh and the end of the last, [B + 1].
            mask: True where a point exists, [B, N]; for padded meshes.

        Returns:
            [B, N, out_dim] or [ΣN, out_dim]; where the mask is False it means nothing.

        Raises:
            UsageError: If the shapes don't fit together.
        """
        inputs = points if features is None else torch.cat([points, features], dim=-1)
        if inputs.shape[-1] != self.in_dim:
            raise UsageError(f"the model takes {self.in_dim} numbers a point, but got {inputs.shape[-1]}")
        single = inputs.dim() == 2 and offsets is None
        if single:
            inputs = inputs.unsqueeze(0)
        layout = Layout.of(inputs, offsets, mask, tiled=self._tiled, ranks=self.ranks)
        if mask is not None:
            # Padding may hold anything, and a weight of 0 times NaN is NaN.
            inputs = inputs.masked_fill(~mask.unsqueeze(-1), 0.0)
        out = self.compute(inputs, layout)
        return out.squeeze(0) if single else out

    @abstractmethod
    def compute(self, inputs: Tensor, layout: Layout) -> Tensor:
        """Predict from the joined coordinates and features of the points.

        Args:
            inputs: [B, N, in_dim] or [ΣN, in_dim]; 0 where there is no point.
            layout: How the points divide into meshes.

        Returns:
            [B, N, out_dim] or [ΣN, out_dim].
        """

    def description(self) -> Description:
        """Description that a checkpoint stores."""
        return Description(spec_of(self))

    def stored_weights(self) -> dict[str, Tensor]:
        """Weights to store, by name."""
        return dict(self.state_dict())

    @classmethod
    def restored(cls, weights: dict[str, Tensor], description: Description, *, folder: Path, trust: str | None) -> Self:
        """The bare model of a checkpoint, whether it was stored alone or as part of a surrogate."""
        model = restore_model(weights, description.model, folder=folder, trust=trust)
        if not isinstance(model, cls):
            raise UsageError(f"the checkpoint {folder} holds a {type(model).__name__}, not a {cls.__name__}")
        return model


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which products are not taken in 16 bits.

    Projections of coordinates and of predictions keep float32: in 16 bits a coordinate of 30 mm is off by up to
    0.06 mm, and a prediction has two digits. They are pointwise and a small part of the work.

    Args:
        x: A tensor on the device.
    """
    return torch.autocast(x.device.type, enabled=False)
