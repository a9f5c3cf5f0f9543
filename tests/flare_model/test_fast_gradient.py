"""The fast path of the kernels' gradient: values in its tiles, and batches that it shares with the general path."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which is there for Linux alone")

import triton
import triton.language as tl

from flare_model.kernels import launches, mixing
from flare_model.kernels.gradients import _first_part, _with_addends, _with_drops
from flare_model.kernels.tuning import INTERPRETED, tiles_of
from tests.flare_model.kernel_support import (
    DEVICE,
    HALVES,
    TOLERANCE,
    assert_close,
    differentiate,
    explicit_mixing,
    sample,
)

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and TRITON_INTERPRET=0"),
]


# Latents of a tile, and how many tiles the fast and the general path unroll.
CUTS = ((16, 1, 2), (16, 4, 1), (32, 2, 3))
USUAL = {(4, CUTS[0]), (8, CUTS[1]), (16, CUTS[2])}
"""Channels of a head and entries of CUTS in the fast suite: every entry, and heads with spare channels and without."""


@triton.jit
def _store_tiles(
    delta, factor, drop, addends, drops, first, ROWS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    rows = tl.arange(0, ROWS)
    place = rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    nothing = tl.zeros((ROWS, WIDTH), tl.float32)
    tl.store(addends + place, _with_addends(nothing, tl.load(delta + rows), tl.load(factor + rows), DEPTH, WIDTH))
    tl.store(drops + place, _with_drops(nothing, tl.load(drop + rows), DEPTH, WIDTH))
    tl.store(first + rows, _first_part(tl.load(delta + rows)))


@pytest.mark.parametrize("depth", [4, 8])
def test_values_in_spare_channels_are_exact_in_bfloat16(depth: int) -> None:
    generator = torch.Generator().manual_seed(0)
    delta, factor, drop = (torch.randn(16, generator=generator).to(DEVICE) for _ in range(3))
    factor = (factor * 20).exp()  # Factors range over many powers of two.
    addends, drops, first = (torch.empty(16, width, device=DEVICE) for width in (16, 16, 1))
    _store_tiles[(1,)](delta, factor, drop, addends, drops, first, ROWS=16, DEPTH=depth, WIDTH=16)
    for tile in (addends, drops, first):
        assert torch.equal(tile, tile.bfloat16().float())
    assert not addends[:, :depth].any()
    assert not drops[:, :depth].any()
    found = addends.double() @ drops.double().T
    wanted = factor.double()[:, None] * drop.double() - delta.double()[:, None]
    size = (factor.double()[:, None] * drop.double()).abs() + delta.double().abs()[:, None]
    # A factor is held as two parts of eight bits, and what it multiplies as three.
    assert ((found - wanted).abs() <= 2.0**-14 * size).all()
    assert ((delta - first[:, 0]).abs() <= 2.0**-7 * delta.abs()).all()


class _RecordingKernel:
    """A kernel that keeps, for each launch of the fast path, which slices it finished."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.finished: list[Tensor] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.kernel[grid](*arguments, **options)
            if options["FAST"]:
                self.finished.append(next(a for a in arguments if isinstance(a, Tensor) and a.dtype == torch.int8))

        return launch


@pytest.mark.parametrize(
    ("depth", "cuts"),
    [
        pytest.param(depth, cuts, marks=() if (depth, cuts) in USUAL else pytest.mark.slow)
        for depth, cuts in itertools.product((4, 8, 16, 32), CUTS)
    ],
)
def test_both_paths_share_a_batch(depth: int, cuts: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices that need the general path are recognised among others, however the two paths divide the latents."""
    latents, quick, exact = cuts
    unrolled = {"fast_point_gradient": quick, "point_gradient": exact}

    def tiles(kernel: Any, *size: int) -> Any:
        found = tiles_of(kernel, *size)
        return replace(found, points=16, latents=latents, unrolled=unrolled[kernel]) if kernel in unrolled else found

    watched = _RecordingKernel(mixing.point_gradient_kernel)
    monkeypatch.setattr(launches, "tiles_of", tiles)
    monkeypatch.setattr(mixing, "point_gradient_kernel", watched)
    q, k, v, g = sample((2, depth, 64, 96), scale=1 / depth)
    # The logsumexp of one point is far larger than the others: its slice can't take the fast path.
    k[:, 70] = q.mean(1) * (100 * depth**2)
    dtype = HALVES[-1]
    offsets = torch.tensor([0, 1, 18, 18, 50, 96], device=DEVICE)

    def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mixing.mix(q, k[0], v[0], offsets=offsets)[None]

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bounds = [(a, b) for a, b in zip(offsets.tolist(), offsets.tolist()[1:], strict=False) if b > a]
        return torch.cat([explicit_mixing(q, k[:, a:b], v[:, a:b]) for a, b in bounds], dim=1)

    inputs = tuple(t.to(dtype).double() for t in (q, k, v))
    wanted = differentiate(apart, inputs, g.to(dtype).double(), torch.float64)
    assert_close(differentiate(joined, (q, k, v), g, dtype), wanted, TOLERANCE[dtype])
    assert len(watched.finished) == 64 // (latents * min(quick, 64 // latents))
    for finished in watched.finished:
        assert finished.any()
        assert not finished.all()
