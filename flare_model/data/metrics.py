"""Errors of predictions, case by case, in physical units.

B cases, ΣN points of all of them together, F numbers a point. Sums are taken in float64, and so are errors and losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lpbf_data.case.statistics import NEGLIGIBLE
from lpbf_data.errors import UsageError

if TYPE_CHECKING:
    from flare_model.data.point_ranks import PointRanks

PUBLISHED_MEAN: Final = 0.45099
PUBLISHED_STD: Final = 0.34213


def floor_of(std: Sequence[float]) -> float:
    """Root mean square below which a truth counts as zero everywhere, and its case has no relative error.

    Args:
        std: Standard deviation of each component over the training points.
    """
    return NEGLIGIBLE * math.hypot(*std)


class _SumsOfSquares(torch.autograd.Function):
    """Sums of squares over the points of each case, forward and backward without atomic additions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, offsets: Tensor) -> Tensor:
        """Sums of [ΣN, …], [B] float64."""
        ctx.save_for_backward(values, offsets)
        squares = values.double().square().flatten(1).sum(1)
        return torch.segment_reduce(squares, "sum", offsets=offsets, unsafe=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Twice each value times the slope of its case, in the type of the values."""
        values, offsets = ctx.saved_tensors
        slopes = torch.repeat_interleave(2 * gradient, offsets.diff(), output_size=len(values))
        # Only one number a point is in float64 here; gradients as large as the values have the type of the values.
        wide = torch.promote_types(values.dtype, torch.float32)
        slopes = slopes.to(wide).view(-1, *[1] * (values.dim() - 1))
        # Points that don't count, such as those of a mesh that fills a batch, may hold anything, and 0 · ∞ is NaN.
        return torch.where(slopes == 0, 0.0, values.to(wide) * slopes).to(values.dtype), None


def sums_of_squares(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum of squares over the points and numbers of each case.

    Taken in float64, in the same order in every run: float32 would be off by 2e-3 for 20 million points that are added
    one by one, and stop to grow at 33 million.

    Args:
        values: [ΣN, F].
        offsets: First point of each case and the end of the last, [B + 1], on any device.

    Returns:
        [B] float64.

    Raises:
        UsageError: If offsets on the host don't rise from 0 to ΣN.
    """
    if offsets.device.type == "cpu":
        bounds = offsets.tolist()
        if bounds[0] != 0 or bounds[-1] != len(values) or bounds != sorted(bounds):
            raise UsageError(f"offsets must rise from 0 to the number of points, {len(values)}; they are {bounds}")
    sums: Tensor = _SumsOfSquares.apply(values, offsets.to(values.device))  # type: ignore[no-untyped-call]
    return sums


def _norms(values: Tensor, offsets: Tensor) -> Tensor:
    """Euclidean norm of each case, [B] float64."""
    return _roots(sums_of_squares(values, offsets))


def _roots(squares: Tensor) -> Tensor:
    # The root has no derivative at zero; an exact prediction must not turn the gradient into NaN.
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def relative_l2(prediction: Tensor, truth: Tensor, offsets: Tensor) -> Tensor:
    """Relative L2 error of each case: ‖prediction - truth‖ / ‖truth‖ (FLARE, equations 21 and 22).

    A case whose truth is zero everywhere has no relative error: it is 0 for an exact prediction and infinite for any
    other, never NaN.

    Args:
        prediction: [ΣN, F], in physical units.
        truth: [ΣN, F].
        offsets: First point of each case and the end of the last, [B + 1].

    Returns:
        [B] float64.
    """
    error, size = _norms(prediction - truth, offsets), _norms(truth, offsets)
    return torch.where(error == 0, torch.zeros_like(error), error / size)


def published_lpbf_error(prediction: Tensor, truth: Tensor, offsets: Tensor) -> Tensor:
    """The figure that the FLARE paper's Table 2 gives for LPBF, which is not the relative L2 error.

    The public code decodes prediction and truth by a normaliser made from random numbers (mean 0.45099, standard
    deviation 0.34213), so that its figure is std·‖prediction - truth‖ / ‖std·truth + mean‖. Compare with Table 2 by
    this figure only, and judge a model by `relative_l2`.

    Args:
        prediction: [ΣN, F], in mm.
        truth: [ΣN, F], in mm.
        offsets: First point of each case and the end of the last, [B + 1].

    Returns:
        [B] float64.
    """
    return PUBLISHED_STD * _norms(prediction - truth, offsets) / _norms(PUBLISHED_STD * truth + PUBLISHED_MEAN, offsets)


def has_truth(truth: Tensor, offsets: Tensor, floor: float = 0.0) -> Tensor:
    """Which cases have a relative error.

    Args:
        truth: [ΣN, F].
        offsets: First point of each case and the end of the last, [B + 1].
        floor: Root mean square up to which a truth counts as zero everywhere.

    Returns:
        [B] bool.
    """
    return _norms(truth, offsets) > _norm_floors(truth, offsets, floor)


def _norm_floors(truth: Tensor, offsets: Tensor, floor: float) -> Tensor:
    """Norm up to which a case's truth counts as zero everywhere, [B] float64."""
    return floor * offsets.diff().to(truth.device, torch.float64).sqrt()


def relative_l2_loss(
    prediction: Tensor,
    truth: Tensor,
    offsets: Tensor,
    floor: float = 0.0,
    cases: int | None = None,
    ranks: PointRanks | None = None,
) -> Tensor:
    """Mean over the cases of `relative_l2`; cases without a relative error add nothing, and have no gradient.

    Args:
        prediction: [ΣN, F], in physical units.
        truth: [ΣN, F].
        offsets: First point of each case and the end of the last, [B + 1].
        floor: Root mean square up to which a truth counts as zero everywhere.
        cases: The mean is over so many of the first; all by default.
        ranks: The processes that share the points of every case, if any do. Prediction and truth are then at the points
            of this process; the loss is that of whole cases, and its gradient is with respect to this process's points.
    """
    if ranks is None:
        size, norm_floor, error = (
            _norms(truth, offsets),
            _norm_floors(truth, offsets, floor),
            _norms(prediction - truth, offsets),
        )
    else:
        counts = offsets.diff().to(truth.device, torch.float64)
        sums = [sums_of_squares(truth, offsets), counts, sums_of_squares(prediction - truth, offsets)]
        size, norm_floor, error = map(_roots, ranks.sum(torch.stack(sums)).unbind())
        norm_floor = floor * norm_floor
    defined = size > norm_floor
    errors = error / torch.where(defined, size, 1.0)
    return torch.where(defined, errors, 0.0)[:cases].mean()


def grid_differences(values: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Differences between the two neighbours of each point of grids, with zeros around: twice the spacing times slopes.

    Args:
        values: [B * rows * columns, F], the column varying fastest.
        grid: Rows and columns.

    Returns:
        Along the columns and along the rows, of the shape of the values.
    """
    images = values.reshape(-1, *grid, values.shape[1])
    padded = torch.nn.functional.pad(images, (0, 0, 1, 1, 1, 1))
    along = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    return along.reshape(values.shape), down.reshape(values.shape)


def differences_loss(prediction: Tensor, truth: Tensor, offsets: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sum of the mean relative L2 errors of slopes along both directions of grids, as published for Darcy.

    What is predicted at the outermost points counts as 0, the truth there as it is; the spacing cancels.
    (FLARE, Table 4; github.com/thuml/Transolver, exp_darcy.py.)

    Args:
        prediction: [B * rows * columns, F], in physical units.
        truth: The same.
        offsets: First point of each case and the end of the last, [B + 1].
        grid: Rows and columns.
    """
    images = prediction.reshape(-1, *grid, prediction.shape[1])
    inside = torch.nn.functional.pad(images[:, 1:-1, 1:-1], (0, 0, 1, 1, 1, 1)).reshape(prediction.shape)
    pairs = zip(grid_differences(inside, grid), grid_differences(truth, grid), strict=True)
    losses = [relative_l2_loss(predicted, true, offsets) for predicted, true in pairs]
    return losses[0] + losses[1]


def mse_loss(residual: Tensor, offsets: Tensor, cases: int, ranks: PointRanks | None = None) -> Tensor:
    """Mean square over the points of the first so many cases.

    Args:
        residual: [ΣN, F].
        offsets: First point of each case and the end of the last, [B + 1].
        cases: Number of cases that count; the points of later ones don't.
        ranks: As for `relative_l2_loss`.
    """
    count = offsets[cases].to(residual.device) * residual.shape[1]
    total = sums_of_squares(residual, offsets)[:cases].sum()
    if ranks is not None:
        total, count = ranks.sum(torch.stack([total, count.double()])).unbind()
    return total / count


@dataclass(frozen=True)
class RelativeL2:
    """Mean relative L2 error over cases; adds over batches and ranks.

    Attributes:
        total: Sum of the errors of cases that have one.
        cases: Number of those cases.
        without_truth: Cases whose truth is zero everywhere; they are left out of the mean.
    """

    total: float = 0.0
    cases: int = 0
    without_truth: int = 0

    @classmethod
    def of(cls, prediction: Tensor, truth: Tensor, offsets: Tensor, floor: float = 0.0) -> RelativeL2:
        """The errors of a batch; arguments as for `relative_l2_loss`."""
        return cls.of_cases(relative_l2(prediction, truth, offsets), has_truth(truth, offsets, floor))

    @classmethod
    def of_cases(cls, errors: Tensor, defined: Tensor) -> RelativeL2:
        """The errors of some cases.

        Args:
            errors: `relative_l2` of each case, [B].
            defined: Which of them count, by `has_truth`, [B] bool.
        """
        return cls(float(errors[defined].sum()), int(defined.sum()), int((~defined).sum()))

    def __add__(self, other: RelativeL2) -> RelativeL2:
        """Errors of both samples together."""
        return RelativeL2(self.total + other.total, self.cases + other.cases, self.without_truth + other.without_truth)

    @property
    def mean(self) -> float:
        """Mean over the cases that have an error; NaN when there are none."""
        return self.total / self.cases if self.cases else math.nan
