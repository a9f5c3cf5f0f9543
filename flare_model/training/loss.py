"""The training loss: one loss for each target, and their weighted mean.

B cases, ΣN points of all of them together, T numbers a point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flare_model.data.batches import Batch
from flare_model.data.metrics import differences_loss, mse_loss, relative_l2_loss
from flare_model.data.point_fields import spans
from flare_model.training.recipe import Loss
from flare_model.training.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from flare_model.data.point_ranks import PointRanks

Shares = Mapping[Loss, "float | Tensor"]
"""Kind of loss to the fraction of a step's cases (for mse: points) that the batch holds."""


@dataclass(frozen=True)
class TargetLoss:
    """The loss of one target.

    Attributes:
        columns: Its columns in predictions and truth.
        loss: Kind of loss.
        weight: Its weight in the loss; the weights of all targets add up to 1.
        floor: Root mean square up to which a truth counts as zero everywhere, in the target's unit.
        gradient: Weight of the additional loss of differences along a grid; 0 for none.
    """

    columns: slice
    loss: Loss
    weight: float
    floor: float
    gradient: float = 0.0


class TrainingLoss:
    """The loss of a batch.

    Args:
        settings: Targets, and the recipe with the kind and weight of each target's loss.
        floors: Target to the root mean square up to which a truth counts as zero everywhere.
    """

    def __init__(self, settings: Settings, floors: Mapping[str, float]) -> None:
        recipe = settings.recipe
        self._grid = (
            settings.point_schema.grid if settings.point_schema is not None and recipe.gradient_weight else None
        )
        total = sum(recipe.weight_of(target.name) for target in settings.targets)
        self.terms = tuple(
            TargetLoss(c, recipe.loss_of(name), recipe.weight_of(name) / total, floors[name], recipe.gradient_weight)
            for name, c in spans(settings.targets).items()
        )
        self.kinds = tuple(dict.fromkeys(term.loss for term in self.terms))
        self._alike = len(self.kinds) == 1 and len({term.weight for term in self.terms}) == 1

    def counts(self, batch: Batch) -> dict[Loss, int]:
        """Kind of loss to the number of terms of its mean in a batch: points for mse, cases otherwise."""
        return {kind: int(batch.offsets[len(batch)]) if kind == "mse" else len(batch) for kind in self.kinds}

    def __call__(
        self,
        prediction: Tensor,
        batch: Batch,
        scale: Tensor,
        shares: Shares | None = None,
        ranks: PointRanks | None = None,
    ) -> Tensor:
        """Weighted mean of the targets' losses, each times the fraction of the step that the batch holds.

        Args:
            prediction: In physical units, [ΣN, T].
            batch: The truth; the mesh that fills up a filled batch doesn't count.
            scale: Standard deviation of each target over the training points, [T]: the unit of mse.
            shares: The fraction of the step that the batch holds; all of it where left out.
            ranks: The processes that share the points of each case; prediction and batch are at this process's points.
        """
        import torch

        losses = [self._loss_of(term, prediction, batch, scale, ranks) for term in self.terms]
        if self._alike:
            mean = torch.stack(losses).mean()
            return mean if shares is None else mean * shares[self.kinds[0]]
        parts = [term.weight * loss for term, loss in zip(self.terms, losses, strict=True)]
        if shares is not None:
            parts = [part * shares[term.loss] for term, part in zip(self.terms, parts, strict=True)]
        return torch.stack(parts).sum()

    def _loss_of(
        self, term: TargetLoss, prediction: Tensor, batch: Batch, scale: Tensor, ranks: PointRanks | None
    ) -> Tensor:
        c, offsets, cases = term.columns, batch.offsets, len(batch)
        if term.loss == "mse":
            return mse_loss((prediction[:, c] - batch.targets[:, c]) / scale[c], offsets, cases, ranks)
        loss = relative_l2_loss(prediction[:, c], batch.targets[:, c], offsets, term.floor, cases, ranks)
        if self._grid is None:
            return loss
        count = cases * self._grid[0] * self._grid[1]  # without the mesh that fills a batch up
        found, truth = prediction[:count, c], batch.targets[:count, c]
        return loss + term.gradient * differences_loss(found, truth, offsets[: cases + 1], self._grid)
