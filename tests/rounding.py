"""How large errors by rounding alone may be, so that tests of numbers have bounds that hold on any processor.

Where possible, two ways to compute one thing are compared in float64 (`assert_same`), where rounding is far below what
a fault in the code makes. Where a program computes in a narrower type, its errors are simulated by Monte Carlo
arithmetic (Parker, 1997): in an evaluation in float64, relative errors within the limits of that type are drawn at
random at each step, so that they add up, cancel and grow as those of any program do. One rounding makes an error of at
most half an epsilon; errors of up to one epsilon are drawn, so that a program that rounds twice stays within them.

`spread` does so for any function of PyTorch: every operand of every operation is rounded. `rounding_errors` does so
for the mixing by kernels, by two rules: every operand of a product has a relative error of at most the type's epsilon,
and products are summed in float32, with an error of float32's epsilon times the sum of the magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DRAWS = 8
SINGLE = torch.finfo(torch.float32).eps
DOUBLE = torch.finfo(torch.float64).eps

# A million roundings of float64 in a row: the thousands of roundings of a small network, amplified some hundred times.
# The error of a fault, such as an operand in float32, is a thousand times larger.
SAME = 2**20 * DOUBLE

# For runs of a few steps in float32 that differ in the order of sums alone: losses agree to a few roundings, weights to
# ten times as many, since the optimiser divides small gradients by their own size. Both bounds are wider than needed.
LOSSES = 2**6 * SINGLE
WEIGHTS = 2**10 * SINGLE

# For predictions of small models in float32, relative to the largest value: `spread` finds ten roundings.
PREDICTIONS = 2**8 * SINGLE

# Layer norms compute in float32 whatever the type, as under autocast.
_NORMS = (torch.ops.aten.native_layer_norm.default, torch.ops.aten.native_layer_norm_backward.default)


def assert_same(found: Sequence[Tensor] | Tensor, wanted: Sequence[Tensor] | Tensor) -> None:
    """Assert that two ways to compute one thing in float64 agree up to the rounding of their sums.

    Args:
        found: Tensors of one way, float64.
        wanted: Tensors of the other way. All are compared relative to the largest of them: a gradient that cancels to
            nothing is exact only to the rounding of the largest gradient of the same loss.
    """
    ours, theirs = ([t.detach() for t in ([one] if isinstance(one, Tensor) else one)] for one in (found, wanted))
    assert {t.dtype for t in (*ours, *theirs)} == {torch.float64}
    largest = max(float(t.norm()) for t in theirs)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape, number
        assert float((a - b).norm()) <= SAME * largest, number


def assert_same_predictions(found: Tensor, wanted: Tensor) -> None:
    """Assert that two predictions of one model in float32 agree, however it was loaded and the parts were batched."""
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert float((found - wanted).detach().abs().max()) <= PREDICTIONS * float(wanted.detach().abs().max())


class _Drawn(TorchDispatchMode):
    """Draws an error for every operand of every operation, but for views and copies."""

    def __init__(self, epsilon: float, seed: int) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not (func.is_view or func._schema.is_mutable or func is torch.ops.aten.detach.default):
            epsilon = min(self.epsilon, SINGLE) if func in _NORMS else self.epsilon
            args, kwargs = tree_map(lambda value: self._round(value, epsilon), (args, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def _round(self, value: Any, epsilon: float) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        drawn = torch.rand(value.shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        return value * (1 + epsilon * drawn.to(value.device))


def spread(function: Callable[[], Sequence[Tensor]], dtype: torch.dtype) -> tuple[list[Tensor], list[float]]:
    """Results of a function in float64, and the errors that rounding to a type alone causes in them.

    Args:
        function: Computes in float64, from numbers that the type can represent.
        dtype: The type that every operand is rounded to.

    Returns:
        The results, and for each the root mean square over the draws of the L2 norm of its error.
    """
    truth = [t.detach() for t in function()]
    squares = [0.0] * len(truth)
    for seed in range(DRAWS):
        with _Drawn(torch.finfo(dtype).eps, seed):
            found = function()
        for number, (a, b) in enumerate(zip(found, truth, strict=True)):
            squares[number] += float((a.detach() - b).square().sum()) / DRAWS
    return truth, [square**0.5 for square in squares]


class _Rounding:
    """Products and sums with errors that are drawn."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.epsilon = torch.finfo(dtype).eps
        self.seed = seed
        self.generator: torch.Generator | None = None

    def draw(self, like: Tensor) -> Tensor:
        """Numbers from -1 to 1, drawn on the device of `like`: tests on a GPU need hundreds of millions of them."""
        if self.generator is None:
            self.generator = torch.Generator(like.device).manual_seed(self.seed)
        return torch.rand(like.shape, generator=self.generator, dtype=torch.float64, device=like.device) * 2 - 1

    def round(self, values: Tensor) -> Tensor:
        return values * (1 + self.epsilon * self.draw(values))

    def sum(self, values: Tensor, magnitudes: Tensor) -> Tensor:
        return values + SINGLE * magnitudes * self.draw(values)

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        return self.sum(self.round(a) @ self.round(b), a.abs() @ b.abs())

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Products of queries and keys, which are not rounded; scores are in float32 whatever the type."""
        return self.sum(queries @ keys.mT, queries.abs() @ keys.abs().mT)


def _mixing(rounding: _Rounding, q: Tensor, k: Tensor, v: Tensor, g: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Output and gradients of queries, keys, values and gradient [B, N, H, D], with errors drawn.

    Queries are [H, M, D], or those of each mesh, [B, H, M, D], and so is their gradient.
    """
    k, v, g = (t.transpose(1, 2) for t in (k, v, g))
    if mask is not None:
        g = g * mask[:, None, :, None]
    own, q = q.dim() == 4, q.expand(len(k), -1, -1, -1)
    multiply, total = rounding.multiply, rounding.sum
    scores = rounding.scores(q, k)
    among = scores if mask is None else scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    encoding, decoding = among.softmax(-1), scores.softmax(-2)
    # What one pass stores for another is rounded to the type.
    encoded = rounding.round(multiply(encoding, v))
    encoded_gradient = rounding.round(multiply(decoding, g))
    output = rounding.round(multiply(decoding.mT, encoded))
    by_decoding, by_encoding = multiply(encoded, g.mT), multiply(encoded_gradient, v.mT)
    # The backward pass computes the scores again, in another order, and subtracts the stored log-sum-exps.
    anew = rounding.scores(q, k)
    anew_among = anew if mask is None else anew.masked_fill(~mask[:, None, None, :], -torch.inf)
    encoding = (anew_among - among.logsumexp(-1, keepdim=True)).exp()
    decoding = (anew - scores.logsumexp(-2, keepdim=True)).exp()
    # The gradient of softmax subtracts a mean: the stored result times its own gradient.
    per_point = total((output * g).sum(-1), (output * g).abs().sum(-1))[..., None, :]
    per_latent = total((encoded * encoded_gradient).sum(-1), (encoded * encoded_gradient).abs().sum(-1))[..., None]
    slope = decoding * (by_decoding - per_point) + encoding * (by_encoding - per_latent)
    asked = multiply(slope, k)
    found = [output, asked if own else asked.sum(0), multiply(slope.mT, q), multiply(encoding.mT, encoded_gradient)]
    return [found[0].transpose(1, 2), found[1], *(t.transpose(1, 2) for t in found[2:])]


def rounding_errors(
    inputs: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    dtype: torch.dtype,
    truth: list[Tensor],
    mask: Tensor | None = None,
    sizes: list[int] | None = None,
) -> Tensor:
    """Squared errors that rounding alone causes in FLARE's mixing.

    Args:
        inputs: Queries [H, M, D], or [B, H, M, D] of each mesh, keys and values [B, N, H, D]; float64, of numbers that
            the type can represent.
        gradient: Gradient of the output, [B, N, H, D].
        dtype: The type that operands of products are rounded to.
        truth: Output and gradients in float64.
        mask: Which points of a padded batch are real, [B, N].
        sizes: Points of each mesh, where meshes are joined in a batch of one.

    Returns:
        [4] float64, the mean over the draws of the squared L2 norms: output, queries, keys, values.
    """
    q, k, v = inputs
    errors = torch.zeros(4, dtype=torch.float64)
    for seed in range(DRAWS):
        rounding = _Rounding(dtype, seed)
        if sizes is None:
            found = _mixing(rounding, q, k, v, gradient, mask)
        else:
            split = zip(*(t.split(sizes, 1) for t in (k, v, gradient)), strict=True)
            asking = q.split(1) if q.dim() == 4 else [q] * len(sizes)
            parts = [_mixing(rounding, a, *part, None) for a, part in zip(asking, split, strict=True)]
            joined = [torch.cat([part[i] for part in parts], dim=1) for i in (0, 2, 3)]
            asked = torch.stack([part[1] for part in parts])
            found = [joined[0], asked.flatten(0, 1) if q.dim() == 4 else asked.sum(0), *joined[1:]]
        if mask is not None:
            found[0] = found[0] * mask[:, :, None, None]
        errors += torch.stack([(a - b).square().sum() for a, b in zip(found, truth, strict=True)]).cpu() / DRAWS
    return errors


def _encoding(
    rounding: _Rounding, q: Tensor, x: Tensor, mask: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Encoding of points [B, N, H, D], both keys and values, by queries [H, M, D].

    Returns:
        The latents, and a function from their gradient to the gradients of queries and points.
    """
    x = x.transpose(1, 2)
    q, out = rounding.round(q).expand(len(x), -1, -1, -1), None if mask is None else ~mask[:, None, None, :]
    scores = [s if out is None else s.masked_fill(out, -torch.inf) for s in (rounding.scores(q, x) for _ in range(2))]
    encoded = rounding.multiply(scores[0].softmax(-1), x)

    def differentiate(gradient: Tensor) -> tuple[Tensor, Tensor]:
        # The backward pass computes the scores again, and subtracts the stored log-sum-exps.
        weights, g = (scores[1] - scores[0].logsumexp(-1, keepdim=True)).exp(), rounding.round(gradient)
        mean = rounding.sum((encoded * g).sum(-1), (encoded * g).abs().sum(-1))[..., None]
        slope = weights * (rounding.multiply(g, x.mT) - mean)
        points = rounding.multiply(slope.mT, q) + rounding.multiply(weights.mT, g)
        return rounding.multiply(slope, x).sum(0), points.transpose(1, 2)

    return encoded, differentiate


def plus_errors(
    inputs: tuple[Tensor, ...],
    gradient: Tensor,
    dtype: torch.dtype,
    truth: list[Tensor],
    mask: Tensor | None = None,
    sizes: list[int] | None = None,
) -> Tensor:
    """The same as `rounding_errors` for the mixing of FLARE++.

    Args:
        inputs: Seeds and learned queries [H, M, D], gates [H] before their sigmoid; inputs of the seeds, keys and
            values, [B, N, H, D]. float64, the last three of numbers that the type can represent.
        gradient: As of `rounding_errors`.
        dtype: As there.
        truth: Output and gradients of all inputs.
        mask: As there.
        sizes: As there.

    Returns:
        [7] float64, the mean over the draws of the squared L2 norms: output, and gradients of the inputs in order.
    """
    seeds, fixed, gates, *points = inputs
    scale, opened = seeds.shape[-1] ** -0.5, gates.sigmoid()[:, None, None]

    def mixed(rounding: _Rounding, seen: Tensor, k: Tensor, v: Tensor, g: Tensor, mask: Tensor | None) -> list[Tensor]:
        moved, differentiate = _encoding(rounding, seeds * scale, seen, mask)
        q = rounding.round((fixed + opened * moved) * scale)
        out, dq, dk, dv = _mixing(rounding, q, k, v, g, mask)
        dq = dq * scale
        through = (dq * moved).sum((0, 2, 3)) * (gates.sigmoid() * (1 - gates.sigmoid()))
        of_seeds, of_seen = differentiate(opened * dq)
        return [out, of_seeds * scale, dq.sum(0), through, of_seen, dk, dv]

    errors = torch.zeros(7, dtype=torch.float64)
    for seed in range(DRAWS):
        rounding = _Rounding(dtype, seed)
        if sizes is None:
            found = mixed(rounding, *points, gradient, mask)
        else:
            cut = zip(*(t.split(sizes, 1) for t in (*points, gradient)), strict=True)
            parts = list(zip(*(mixed(rounding, *part, None) for part in cut), strict=True))
            found = [torch.stack(p).sum(0) if 0 < i < 4 else torch.cat(p, dim=1) for i, p in enumerate(parts)]
        if mask is not None:
            found[0] = found[0] * mask[:, :, None, None]
        errors += torch.stack([(a - b).square().sum() for a, b in zip(found, truth, strict=True)]).cpu() / DRAWS
    return errors
