"""Errors of predictions, case by case, in physical units.

B cases, ΣN points of all of them together, F numbers a point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lpbf_data.case.statistics import NEGLIGIBLE

PUBLISHED_MEAN: Final = 0.45099
PUBLISHED_STD: Final = 0.34213


def floor_of(std: Sequence[float]) -> float:
    """Root mean square below which a truth counts as zero everywhere, and its case has no relative error.

    Args:
        std: Standard deviation of each component over the training points.
    """
    return NEGLIGIBLE * math.hypot(*std)


def case_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum over the points and numbers of each case, in float32 or better.

    Args:
        values: [ΣN, F].
        offsets: First point of each case and the end of the last, [B + 1], on any device.

    Returns:
        [B].
    """
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    counts = offsets.diff().to(values.device)
    case = torch.repeat_interleave(torch.arange(len(counts), device=values.device), counts, output_size=len(values))
    return torch.zeros(len(counts), dtype=wide.dtype, device=values.device).index_add(0, case, wide.flatten(1).sum(1))


def _norms(values: Tensor, offsets: Tensor) -> Tensor:
    """Euclidean norm of each case, [B]."""
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    squares = case_sums(wide.square(), offsets)
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
        [B].
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
        [B].
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
    counts = offsets.diff().to(truth.device)
    return _norms(truth, offsets) > floor * counts.sqrt()


def relative_l2_loss(
    prediction: Tensor, truth: Tensor, offsets: Tensor, floor: float = 0.0, cases: int | None = None
) -> Tensor:
    """Mean over the cases of `relative_l2`; cases without a relative error add nothing, and have no gradient.

    Args:
        prediction: [ΣN, F], in physical units.
        truth: [ΣN, F].
        offsets: First point of each case and the end of the last, [B + 1].
        floor: Root mean square up to which a truth counts as zero everywhere.
        cases: The mean is over so many of the first; all by default.
    """
    defined = has_truth(truth, offsets, floor)
    size = torch.where(defined, _norms(truth, offsets), 1.0)
    return torch.where(defined, _norms(prediction - truth, offsets) / size, 0.0)[:cases].mean()


def mse_loss(residual: Tensor, offsets: Tensor, cases: int) -> Tensor:
    """Mean square over the points of the first so many cases.

    Args:
        residual: [ΣN, F].
        offsets: First point of each case and the end of the last, [B + 1].
        cases: Cases that count; points behind them don't.
    """
    end = offsets[cases].to(residual.device)
    counts = (torch.arange(len(residual), device=residual.device) < end)[:, None]
    return torch.where(counts, residual, 0.0).square().sum() / (end * residual.shape[1])


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
        defined = has_truth(truth, offsets, floor)
        errors = relative_l2(prediction, truth, offsets)[defined]
        return cls(float(errors.sum()), int(defined.sum()), int((~defined).sum()))

    def __add__(self, other: RelativeL2) -> RelativeL2:
        """Errors of both samples together."""
        return RelativeL2(self.total + other.total, self.cases + other.cases, self.without_truth + other.without_truth)

    @property
    def mean(self) -> float:
        """Mean over the cases that have an error; NaN when there are none."""
        return self.total / self.cases if self.cases else math.nan
