"""What tests of the kernels share: inputs, mixing by explicit softmax matrices, and mixing by PyTorch's attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flare_model.kernels.tuning import INTERPRETED
from flare_model.layers.mixer import mix as mix_by_attention
from tests.flare_model.quicker_interpreter import patch_the_language_once
from tests.rounding import spread

if INTERPRETED:
    patch_the_language_once()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter multiplies bfloat16 wrongly in some versions.
SIXTEEN_BITS = [torch.float16, torch.bfloat16]
HALVES = [torch.float16] if INTERPRETED else SIXTEEN_BITS
# Bounds of relative L2 errors. In 16 bits there are four roundings in a row: of weights, latents, their gradients, and
# of what is returned. In float32 sums of tens to hundreds of products, in any order, are rounded as well.
TOLERANCE = {t: (16 if t == torch.float32 else 4) * torch.finfo(t).eps for t in (torch.float32, *SIXTEEN_BITS)}


def explicit_mixing(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """FLARE's mixing, [B, N, H, D], by explicit softmax matrices; queries are [H, M, D], or [B, H, M, D]."""
    scores = torch.einsum("bhmd,bnhd->bhmn", queries.expand(len(keys), -1, -1, -1), keys)
    among_points = scores if mask is None else scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    encoded = among_points.softmax(-1) @ values.transpose(1, 2)
    return (scores.softmax(-2).transpose(-1, -2) @ encoded).transpose(1, 2)


def explicit_plus_plus_mixing(
    seeds: Tensor, fixed: Tensor, gates: Tensor, seen: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The mixing of FLARE++, [B, N, H, D], in the same way; seeds and learned queries are already normalised."""
    scale = seeds.shape[-1] ** -0.5
    scores = torch.einsum("hmd,bnhd->bhmn", seeds, seen) * scale
    among_points = scores if mask is None else scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    moved = among_points.softmax(-1) @ seen.transpose(1, 2)
    return explicit_mixing((fixed + moved / (1 + (-gates).exp())[:, None, None]) * scale, keys, values, mask)


def mix_by_attention_calls(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    return mix_by_attention(queries, keys.transpose(1, 2), values.transpose(1, 2), mask).transpose(1, 2)


def sample(
    shape: tuple[int, int, int, int], seed: int = 0, batch: int = 1, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and a gradient of the output."""
    heads, depth, latents, points = shape
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads, latents, depth), *[(batch, points, heads, depth)] * 3]
    q, k, v, g = (torch.randn(s, generator=generator).to(DEVICE) for s in shapes)
    return q * scale, k, v, g


def differentiate(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], gradient: Tensor, dtype: torch.dtype, *more: object
) -> list[Tensor]:
    """Output and gradients, converted to float64, of a function of inputs that are rounded to a type."""
    leaves = [t.to(dtype).detach().requires_grad_() for t in inputs]
    out = function(*leaves, *more)
    return [t.double() for t in (out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out.dtype)))]


def exact_results(inputs: tuple[Tensor, ...], gradient: Tensor, dtype: torch.dtype, *more: object) -> list[Tensor]:
    """Output and gradients of the explicit mixing in float64, of inputs that are rounded to a type."""
    rounded = tuple(t.to(dtype).double() for t in inputs)
    return differentiate(explicit_mixing, rounded, gradient.to(dtype).double(), torch.float64, *more)


def assert_close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for name, ours, truth in zip(("output", "queries", "keys", "values"), found, wanted, strict=False):
        assert ours.isfinite().all(), name
        # Where the terms of a gradient cancel exactly, as with a single point, only their rounding is left.
        assert (ours - truth).norm() <= tolerance * max(truth.norm(), 0.05 * ours[0].numel() ** 0.5), name


def assert_compiles_whole(model: nn.Module, exact: nn.Module) -> None:
    """Assert that a model compiles to one graph, is then near its formulas, and that every weight gets a gradient.

    Args:
        model: The model, which mixes by the kernels.
        exact: The same model in float64, which mixes by explicit matrices.
    """
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    points, offsets = torch.randn(30, 3, device=DEVICE), torch.tensor([0, 9, 30], device=DEVICE)
    (wanted,), (error,) = spread(lambda: [torch.cat([exact(p.double()) for p in points.split([9, 21])])], torch.float32)
    out = compiled(points, None, offsets)
    assert (out - wanted).norm() <= 4 * error
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
