"""Errors of the kernels against explicit softmax in float64, compared with those that rounding to the type makes.

Without a GPU the kernels run in Triton's interpreter, on small shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which is there for Linux alone")

from flare_model.kernels.mixing import mix
from flare_model.kernels.tuning import INTERPRETED
from tests.flare_model.kernel_support import (
    DEVICE,
    HALVES,
    TOLERANCE,
    differentiate,
    exact_results,
    explicit_mixing,
    mix_by_attention_calls,
    sample,
)
from tests.rounding import rounding_errors

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and TRITON_INTERPRET=0"),
]

# Errors are at most this many times those of rounding, which are drawn at random in float64 (`tests.rounding`). For the
# same operations it would be 1; in float32 another order of sums, and chance where numbers are few, are allowed for.
ROUNDINGS = {torch.float32: 2.0, torch.float16: 1.0, torch.bfloat16: 1.0}
# The same factor where Δ and the products use the same rounded dZ; a Δ that doesn't doubles the error. The kernels
# have 0.13.
CONSISTENT = 0.2

# Heads, channels a head, latents, points: most are no multiples of tiles.
SHAPES = [(2, 4, 20, 45), (2, 8, 16, 64), (1, 16, 40, 33), (1, 32, 5, 17), (2, 8, 33, 50)]
# Sizes of real models, and every way to divide many latents into tiles and passes.
LARGE = [
    (8, 8, 128, 4000),
    (8, 8, 256, 3001),
    (16, 4, 256, 3000),
    (4, 16, 512, 2500),
    (2, 8, 1000, 2000),
    (2, 32, 1024, 2100),
    (8, 16, 128, 5000),
]
if DEVICE == "cuda":
    SHAPES += LARGE

Function = Callable[..., Tensor]


def squared_errors(
    inputs: tuple[Tensor, ...], gradient: Tensor, dtype: torch.dtype, truth: list[Tensor], function: Function
) -> Tensor:
    found = differentiate(function, inputs, gradient, dtype)
    assert all(t.isfinite().all() for t in found)
    return torch.stack([(a - b).square().sum() for a, b in zip(found, truth, strict=True)]).cpu()


def relative_squares(inputs: tuple[Tensor, ...], gradient: Tensor, dtype: torch.dtype, function: Function) -> Tensor:
    """Squared relative errors of output and gradients by a function, and by rounding alone, [2, 4]."""
    truth = exact_results(inputs, gradient, dtype)
    norms = torch.stack([t.square().sum() for t in truth]).cpu()
    q, k, v, g = (t.to(dtype).double() for t in (*inputs, gradient))
    found = squared_errors(inputs, gradient, dtype, truth, function)
    return torch.stack([found, rounding_errors((q, k, v), g, dtype, truth)]) / norms


@pytest.mark.parametrize(
    ("dtype", "seeds"),
    [
        *[(dtype, 5) for dtype in HALVES],
        # More draws of the same, and of float32, which other tests try too.
        *[pytest.param(dtype, 10, marks=pytest.mark.slow) for dtype in (torch.float32, *HALVES)],
    ],
)
def test_errors_are_at_most_those_of_rounding(dtype: torch.dtype, seeds: int) -> None:
    """Relative L2 over all shapes and seeds; in the interpreter each seed has one shape."""
    squares = torch.zeros(2, 4, dtype=torch.float64)
    everywhere = DEVICE == "cuda"
    pairs = [(s, n) for s in SHAPES for n in range(10)] if everywhere else [(SHAPES[n % 5], n) for n in range(seeds)]
    for shape, seed in pairs:
        *inputs, g = sample(shape, seed)
        squares += relative_squares(tuple(inputs), g, dtype, mix)
    kernels, rounding = squares
    assert (kernels.sqrt() <= ROUNDINGS[dtype] * rounding.sqrt()).all(), squares
    assert (kernels / len(pairs)).sqrt().max() < TOLERANCE[dtype]


def round_forward(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values rounded to a type, without rounding their gradients."""
    return values + (values.to(dtype).double() - values).detach()


def faulty(fault: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mixing in float64 with one fault."""
    q, k, v = (t.double() for t in (q, k, v))
    scores = torch.einsum("hmd,bnhd->bhmn", q, k)
    encoding, decoding = scores.softmax(-1), scores.softmax(-2)
    if fault == "weights in bfloat16":
        encoding, decoding = (round_forward(t, torch.bfloat16) for t in (encoding, decoding))
    if fault == "scores in bfloat16":
        scores = round_forward(scores, torch.bfloat16)
        encoding, decoding = scores.softmax(-1), scores.softmax(-2)
    if fault == "a latent's mean is missing":  # The mean that the gradient of a softmax subtracts.
        encoding = (scores - scores.logsumexp(-1, keepdim=True).detach()).exp()
    if fault == "a point's mean is missing":
        decoding = (scores - scores.logsumexp(-2, keepdim=True).detach()).exp()
    if fault == "a point is missing":
        encoding = torch.cat([encoding[..., :-1], torch.zeros_like(encoding[..., -1:])], dim=-1)
    encoded = encoding @ v.transpose(1, 2)
    if fault == "sums in bfloat16":
        encoded = round_forward(encoded, torch.bfloat16)
    return (decoding.mT @ encoded).transpose(1, 2)


FAULTS = [
    "weights in bfloat16",
    "scores in bfloat16",
    "sums in bfloat16",
    "a latent's mean is missing",
    "a point's mean is missing",
    "a point is missing",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_the_bound_separates_faults_from_rounding(fault: str, dtype: torch.dtype) -> None:
    squares = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(5):
        *inputs, g = sample(SHAPES[seed], seed)
        squares += relative_squares(tuple(inputs), g, dtype, lambda *t: faulty(fault, *t))
    found, rounding = squares.sqrt()
    assert bool((found > ROUNDINGS[dtype] * rounding).any()) is (fault != ""), squares


@pytest.mark.skipif(DEVICE == "cpu", reason="a comparison with a GPU's attention")
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_errors_are_hardly_larger_than_those_of_attention(dtype: torch.dtype) -> None:
    """On a GPU, over all shapes and ten seeds."""
    squares = torch.zeros(2, 4, dtype=torch.float64)
    for shape, seed in itertools.product(SHAPES, range(10)):
        *inputs, g = sample(shape, seed)
        truth = exact_results(tuple(inputs), g, dtype)
        norms = torch.stack([t.square().sum() for t in truth]).cpu()
        for row, function in zip(squares, (mix, mix_by_attention_calls), strict=True):
            row.add_(squared_errors(tuple(inputs), g, dtype, truth, function) / norms)
    kernels, attention = squares.sqrt()
    assert (kernels <= 1.1 * attention).all(), squares


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])  # more draws of the same
def test_rounding_cancels_over_the_points(seeds: int) -> None:
    """Where the gradient has a mean, a Δ from another rounding of dZ than the products use would double the error."""
    squares = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(seeds):
        q, k, v, g = sample((1, 8, 16, 240), seed)
        squares += relative_squares((q, k, v), g + 0.5, HALVES[-1], mix)
    kernels, rounding = squares.sqrt()
    # Drawn errors of Δ and of the products are independent, as with that fault.
    assert (kernels[[0, 3]] <= rounding[[0, 3]]).all(), squares
    assert (kernels[1:3] <= CONSISTENT * rounding[1:3]).all(), squares


@pytest.mark.parametrize(
    ("depth", "seeds"),
    # The same path with another depth, and more draws.
    [(16, 1), pytest.param(8, 3, marks=pytest.mark.slow), pytest.param(16, 3, marks=pytest.mark.slow)],
)
def test_values_with_a_mean_keep_their_digits(depth: int, seeds: int) -> None:
    """V dZᵀ - Δ is then far smaller than V dZᵀ: V times a factor has to keep more digits than 16 bits hold."""
    squares = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(seeds):
        q, k, v, g = sample((1, depth, 16, 120), seed)
        # Logsumexps are close together, as the fast path requires.
        squares += relative_squares((q / depth, k, v + 16), g, HALVES[-1], mix)
    kernels, rounding = squares.sqrt()
    assert (kernels <= ROUNDINGS[HALVES[-1]] * rounding).all(), squares


def masked(function: Function, mask: Tensor) -> Function:
    """A mixing with a mask, and zeros where there is no point."""
    return lambda *inputs: function(*inputs, mask) * mask[:, :, None, None]


def ragged(sizes: list[int], function: Function | None = None) -> Function:
    """The mixing of meshes that are joined in a batch of one: by the kernels, or by a function one after the other."""

    def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ends = torch.tensor([0, *itertools.accumulate(sizes)], device=DEVICE)
        return mix(q, k[0], v[0], offsets=ends)[None]

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert function is not None
        return torch.cat([function(q, *part) for part in zip(k.split(sizes, 1), v.split(sizes, 1), strict=True)], dim=1)

    return joined if function is None else apart


AWKWARD = {
    "extreme": (2, 8, 32, 37),
    "extreme, several tiles": (2, 16, 20, 37),
    "negative": (2, 8, 20, 37),
    "constant": (2, 8, 20, 37),
    "constant and low": (2, 8, 32, 37),
    "one point": (1, 8, 5, 1),
    "one latent": (2, 4, 1, 40),
    "masked": (1, 8, 20, 37),
    "ragged": (1, 16, 32, 50),
    "several meshes": (2, 8, 32, 20),
    "several meshes, wide heads": (1, 16, 64, 20),
    "several passes": (1, 8, 192, 20),
}
DIVIDED = ("extreme, several tiles", "several meshes, wide heads", "several passes")


def awkward_inputs(name: str, seed: int) -> tuple[tuple[Tensor, ...], Tensor, list[Function], dict[str, Any]]:
    """Inputs, a gradient, the mixing by kernels and explicitly, and the layout of the meshes: `mask` or `sizes`."""
    batch = 3 if name.startswith("several meshes") else 2 if name == "masked" else 1
    q, k, v, g = sample(AWKWARD[name], seed, batch)
    functions: list[Function] = [mix, explicit_mixing]
    lie: dict[str, Any] = {}
    if name.startswith("extreme"):  # Scores of 1e4 and more: nearly every weight is 0 or 1.
        q, k = q * 60, k * 60
    if name == "negative":  # The score of a latent or point that doesn't exist, 0, is far larger than all others.
        q, k = q.abs() * 20, -k.abs() * 20
    if name == "constant":
        q, k, v = (torch.full_like(t, 0.25) for t in (q, k, v))
    if name == "constant and low":  # Points that don't exist would get factors beyond the range of float32.
        q, k = torch.full_like(q, 8.0), torch.full_like(k, -8.0)
    if name == "masked":
        mask = torch.arange(37, device=DEVICE) < torch.tensor([[37], [9]], device=DEVICE)
        functions = [masked(function, mask) for function in functions]
        lie = {"mask": mask}
    if name == "ragged":
        sizes = [1, 17, 32]
        functions = [ragged(sizes), ragged(sizes, explicit_mixing)]
        lie = {"sizes": sizes}
    if name.startswith("several meshes"):  # Logsumexps differ between meshes, and so may the paths.
        k *= torch.tensor([0.5, 0.2, 4.0], device=DEVICE).view(3, 1, 1, 1)
    return (q, k, v), g, functions, lie


# Inputs that divide the work into more tiles or passes, in float32, and more draws of all inputs, are slow.
@pytest.mark.parametrize(
    ("name", "dtype", "seeds"),
    [
        pytest.param(
            name,
            dtype,
            seeds,
            marks=pytest.mark.slow if seeds > 1 or (dtype == torch.float32 and name in DIVIDED) else (),
        )
        for name in AWKWARD
        for dtype in (torch.float32, *HALVES)
        for seeds in (1, 2)
    ],
)
# Rows of tiles where there is no latent may overflow; their results are not used.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2", "ignore:invalid value encountered in matmul")
def test_errors_for_awkward_inputs_are_at_most_those_of_rounding(name: str, dtype: torch.dtype, seeds: int) -> None:
    errors = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(10 if DEVICE == "cuda" else seeds):
        inputs, gradient, (kernels, exact), lie = awkward_inputs(name, seed)
        q, k, v, g = (t.to(dtype).double() for t in (*inputs, gradient))
        truth = differentiate(exact, (q, k, v), g, torch.float64)
        errors[0] += squared_errors(inputs, gradient, dtype, truth, kernels)
        errors[1] += rounding_errors((q, k, v), g, dtype, truth, **lie)
    ours, rounding = errors.sqrt()
    # Where all numbers are equal, so are their errors, which then don't cancel as drawn ones do.
    factor = (2 if name.startswith("constant") else 1) * ROUNDINGS[dtype]
    assert (ours <= factor * rounding).all(), (ours, rounding)
