"""Sums of losses and errors over points: accurate, in a fixed order, and the same in whichever batch a case is."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain, pairwise, repeat

import pytest
import torch
from torch import Tensor

from flare_model.data.metrics import RelativeL2, has_truth, mse_loss, relative_l2, relative_l2_loss, sums_of_squares
from lpbf_data.errors import UsageError
from tests.rounding import DOUBLE

RAGGED = torch.tensor([0, 1, 131, 908, 972])


def random_values(count: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    truth, error = (torch.randn(count, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return (truth + 0.1 * error).to(dtype), truth.to(dtype)


@pytest.mark.parametrize("millions", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_sums_over_millions_of_points_are_accurate(millions: int) -> None:
    """Against sums without any rounding; adding 20 million points one by one in float32 has an error of 2e-3."""
    prediction, truth = (values.repeat(millions, 1) for values in random_values(1_000_000, 1))
    offsets = torch.tensor([0, len(truth)])

    def exactly(values: Tensor) -> float:
        squares = values[:1_000_000].double().square().flatten().tolist()
        return math.fsum(chain.from_iterable(repeat(squares, millions)))

    bound = len(truth) * DOUBLE  # of positive terms that are added one by one in float64
    of_errors, of_truth = exactly(prediction - truth), exactly(truth)
    assert sums_of_squares(truth, offsets).item() == pytest.approx(of_truth, rel=bound)
    wanted = math.sqrt(of_errors / of_truth)
    for found in (
        relative_l2(prediction, truth, offsets),
        relative_l2_loss(prediction, truth, offsets),
        RelativeL2.of(prediction, truth, offsets).mean,
    ):
        assert float(found) == pytest.approx(wanted, rel=bound)
    assert mse_loss(prediction - truth, offsets, 1).item() == pytest.approx(of_errors / len(truth), rel=bound)


def test_more_points_than_float32_can_count() -> None:
    ones = torch.ones(1, 1).expand(34_000_000, 1)
    assert sums_of_squares(ones, torch.tensor([0, len(ones)])).item() == 34_000_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_sum_of_a_case_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    """The same bits, also beside a case of infinite values; the sum of an empty case is 0."""
    prediction, truth = random_values(972, 3, dtype)
    truth[131:908] = math.inf
    together = sums_of_squares(truth, RAGGED)
    for found, (first, last) in zip(together, pairwise(RAGGED.tolist()), strict=True):
        alone = sums_of_squares(truth[first:last], torch.tensor([0, last - first]))
        assert torch.equal(found, alone[0])
    errors = relative_l2(prediction, truth, RAGGED)
    assert errors[[0, 1, 3]].isfinite().all()
    assert sums_of_squares(truth[:2], torch.tensor([0, 1, 1, 2]))[1] == 0


@pytest.mark.parametrize(
    "function",
    [
        relative_l2_loss,
        lambda prediction, truth, offsets: relative_l2_loss(prediction, truth, offsets, cases=2),
        lambda prediction, truth, offsets: mse_loss(prediction - truth, offsets, 3),
        relative_l2,
    ],
)
def test_gradients_are_those_of_finite_differences(function: Callable[..., Tensor]) -> None:
    prediction, truth = random_values(9, 2, torch.float64)
    offsets = torch.tensor([0, 2, 3, 7, 9])
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: function(values, truth, offsets), prediction)


def test_gradients_have_the_type_of_the_prediction() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        prediction, truth = random_values(972, 1, dtype)
        prediction.requires_grad_()
        relative_l2_loss(prediction, truth, RAGGED).backward()
        assert prediction.grad is not None
        assert prediction.grad.dtype == dtype


def test_points_that_do_not_count_have_no_gradient_even_where_infinite() -> None:
    prediction, truth = random_values(972, 1)
    truth[908:] = 0
    prediction[908:] = math.inf
    assert has_truth(truth, RAGGED).tolist() == [True, True, True, False]
    for loss in (
        lambda values: relative_l2_loss(values, truth, RAGGED),
        lambda values: mse_loss(values - truth, RAGGED, 3),
    ):
        values = prediction.clone().requires_grad_()
        loss(values).backward()
        assert values.grad is not None
        assert values.grad[908:].abs().max() == 0
        assert values.grad[:908].isfinite().all()
        assert values.grad[:908].abs().min() > 0


@pytest.mark.parametrize("offsets", [[0, 3], [0, 2, 6], [1, 5], [0, 4, 3, 5]])
def test_offsets_that_are_not_of_these_points_are_refused(offsets: list[int]) -> None:
    with pytest.raises(UsageError, match="rise from 0 to the number of points, 5; they are"):
        sums_of_squares(torch.ones(5, 1), torch.tensor(offsets))
