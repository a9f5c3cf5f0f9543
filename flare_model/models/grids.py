"""Meshes that are grids, for models that need the order of their points, and unified positions on them.

B meshes, N = rows · columns points of each; point i · columns + j lies at row i and column j.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from flare_model.layers.layout import Layout
from lpbf_data.errors import UsageError

REFERENCES: Final = 8
"""Places in each direction that unified positions are distances to."""


@dataclass(frozen=True)
class Grid:
    """Grids of one size.

    Attributes:
        rows: Points along the first index, which varies slowest.
        columns: Points along the second.
    """

    rows: int
    columns: int

    @property
    def num_points(self) -> int:
        """N."""
        return self.rows * self.columns

    def grids(self, inputs: Tensor, layout: Layout, model: str) -> Tensor:
        """The points of a batch as grids.

        Args:
            inputs: Coordinates and features of the points, [B, N, c] or [ΣN, c].
            layout: How they divide into meshes.
            model: What to call the model in the error.

        Returns:
            [B, N, c].

        Raises:
            UsageError: If a mesh is no such grid, by its number of points.
        """
        offsets, sizes = layout.offsets, layout.sizes
        if layout.mask is not None:
            self._refuse(model, "a batch of meshes that are filled up to one size")
        if offsets is None:
            if inputs.shape[1] != self.num_points:
                self._refuse(model, f"a mesh of {inputs.shape[1]} points")
            return inputs
        meshes = offsets.shape[0] - 1
        if other := [size for size in sizes or () if size != self.num_points]:
            self._refuse(model, f"a mesh of {other[0]} points")
        if inputs.shape[0] != meshes * self.num_points:
            self._refuse(model, f"{inputs.shape[0]} points in {meshes} meshes")
        if sizes is None and meshes > 1 and not torch.compiler.is_exporting():
            torch._assert_async((offsets.diff() == self.num_points).all(), f"{model} takes grids of one size alone")
        return inputs.reshape(meshes, self.num_points, inputs.shape[-1])

    def _refuse(self, model: str, got: str) -> None:
        raise UsageError(
            f"{model} takes grids of {self.rows} × {self.columns} = {self.num_points} points alone, whose order says "
            f"which points are neighbours, and got {got}; for meshes of any shape take Flare or another model without "
            "a grid"
        )

    def distances(self, like: Tensor) -> Tensor:
        """Unified positions: the distance of each point, by its place on the index grid, to 8 × 8 places on it.

        Args:
            like: A tensor of the type and on the device that is wanted.

        Returns:
            [N, 64]; both indices run over 0 … 1, and the places go row by row.
        """
        points = _lattice(self.rows, self.columns, like)
        places = _lattice(REFERENCES, REFERENCES, like)
        found: Tensor = torch.linalg.vector_norm(points[:, None] - places[None], dim=-1)
        return found


def _lattice(rows: int, columns: int, like: Tensor) -> Tensor:
    """[rows · columns, 2], from 0 to 1 in both directions."""
    steps = (torch.linspace(0, 1, n, device=like.device, dtype=like.dtype) for n in (rows, columns))
    return torch.cartesian_prod(*steps)
