"""Joined meshes in rows of one length: every point is in one row, and sums and gradients are those of each mesh."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flare_model.layers.mesh_tiles import MeshTiles, PointRows
from flare_model.models.transolver import Transolver, TransolverConfig, slice_means
from tests.rounding import assert_same

pytestmark = pytest.mark.numeric


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 20))
def test_rows_are_summed_over_meshes_and_turned_back_into_points(sizes: list[int], length: int) -> None:
    offsets = torch.tensor([0, *itertools.accumulate(sizes)])
    tiles = MeshTiles.of(offsets, sum(sizes), length)
    x = torch.arange(1.0, sum(sizes) + 1)[:, None].requires_grad_()
    cut = tiles.to_rows(x)
    torch.testing.assert_close(tiles.to_points(cut), x)
    sums = tiles.total((cut * tiles.exists[..., None]).sum(1))
    wanted = torch.stack([part.sum(0) for part in x.split(sizes)])
    torch.testing.assert_close(sums, wanted, atol=0, rtol=0)
    weights = torch.randn(len(sizes), 1)
    (gradient,) = torch.autograd.grad((sums * weights).sum(), x)
    torch.testing.assert_close(gradient, weights.repeat_interleave(torch.tensor(sizes), 0))
    spread = tiles.to_points(tiles.spread(weights)[:, None].expand(-1, length, -1))
    torch.testing.assert_close(spread, weights.repeat_interleave(torch.tensor(sizes), 0))


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_padded_meshes_have_a_row_each_and_are_turned_back_into_points(sizes: list[int]) -> None:
    rows = PointRows.padded(torch.tensor([0, *itertools.accumulate(sizes)]), tuple(sizes))
    x = torch.randn(sum(sizes), 2, 3, requires_grad=True)
    cut, weights = rows.to_rows(x), torch.randn(sum(sizes), 2, 3)
    for row, exists, part in zip(cut, rows.exists, x.split(sizes), strict=True):
        torch.testing.assert_close(row[exists], part, atol=0, rtol=0)
    torch.testing.assert_close(rows.to_points(cut), x, atol=0, rtol=0)
    # Values where there is no point affect neither results nor gradients.
    filled = torch.where(rows.exists[..., None, None], cut, 7.0)
    (gradient,) = torch.autograd.grad((rows.to_points(filled.square()) * weights).sum(), x)
    torch.testing.assert_close(gradient, (2 * weights * x).detach())


@pytest.mark.parametrize("sizes", [[300, 1, 256, 700], [5, 3], [512, 512]])
def test_transolver_gives_the_same_for_joined_and_single_meshes(sizes: list[int]) -> None:
    torch.manual_seed(0)
    model = Transolver(TransolverConfig(channels=16, num_heads=2, num_blocks=2, num_slices=4, initial_deviation=0.3))
    model = model.double()
    weights, points = list(model.parameters()), torch.randn(sum(sizes), 3, dtype=torch.float64)
    joined = model(points, offsets=torch.tensor([0, *itertools.accumulate(sizes)]))
    apart = torch.cat([model(part) for part in points.split(sizes)])
    assert_same(joined, apart)
    found, wanted = (torch.autograd.grad(out.square().sum(), weights) for out in (joined, apart))
    assert_same(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("joined", [False, True])
def test_transolver_sums_a_large_mesh_in_32_bits(dtype: torch.dtype, joined: bool) -> None:
    """70,000 points in one slice: more than float16 can count, and bfloat16 has only two to three digits."""
    count, generator = 70_000, torch.Generator().manual_seed(0)
    weights = torch.rand(1, count, 1, 2, generator=generator)
    weights[..., 0] = 1
    values = (1 + torch.rand(1, count, 1, 3, generator=generator)).to(dtype)
    wanted = torch.einsum("bnhg,bnhd->bhgd", weights.double(), values.double()) / weights.double().sum(1)[..., None]
    with torch.autocast("cpu", dtype=dtype):
        if joined:
            tiles = MeshTiles.of(torch.tensor([0, count]), count)
            rows = tiles.to_rows(weights[0]) * tiles.exists[..., None, None], tiles.to_rows(values[0])
            found = slice_means(*rows, tiles)
        else:
            found = slice_means(weights, values)
    assert found.dtype == torch.float32
    # The rounding of float32, which adds up at random.
    bound = 4 * math.sqrt(count) * torch.finfo(torch.float32).eps
    assert float(((found - wanted) / wanted).abs().max()) < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_transolver_predicts_on_a_large_mesh_in_16_bits(dtype: torch.dtype) -> None:
    """For a few points, repeated many times, the predictions are those for the few."""
    torch.manual_seed(0)
    model = Transolver(TransolverConfig(channels=16, num_heads=2, num_blocks=1, num_slices=1, initial_deviation=0.3))
    points = torch.randn(10, 3)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        few, many = model(points), model(points.repeat(7000, 1))
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(many[:10], few, rtol=8 * epsilon, atol=8 * epsilon)
    with torch.no_grad():  # Also with weights of 16 bits.
        assert model.to(dtype)(points.to(dtype).repeat(7000, 1)).isfinite().all()
