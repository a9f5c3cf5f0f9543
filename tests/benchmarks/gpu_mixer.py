"""The mixer's kernels beside two attention calls, on one GPU: time and error.

python -m tests.benchmarks.gpu_mixer [OUT.json]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flare_model.kernels import mixing
from tests.benchmarks.gpu_timing import describe_gpu, exclusive, milliseconds

EXPONENTIALS_A_SECOND = 3.7e12
BYTES_A_SECOND = 3.35e12
"""What an H100 can do: 132 multiprocessors with 16 special functions a clock, and its memory."""

SHAPES = [(8, 8, 128), (8, 8, 256), (16, 4, 256), (8, 16, 128), (8, 16, 256)]
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def _sdpa_times(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Any]:
    """Fastest backend of each call: {call: {backend, forward, both}}."""
    keys, values = k.transpose(1, 2).detach(), v.transpose(1, 2).detach()
    latents = q[None].detach()
    calls = {"encode": (latents, keys, values), "decode": (keys, latents, torch.randn_like(latents))}
    found: dict[str, Any] = {}
    for call, tensors in calls.items():
        leaves = [t.requires_grad_() for t in tensors]
        times: dict[str, tuple[float, float]] = {}
        for name, backend in BACKENDS.items():

            def forward(backend: SDPBackend = backend, leaves: list[Tensor] = leaves) -> Tensor:
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(*leaves, scale=1.0)

            try:
                gradient = torch.randn_like(forward())
                both = milliseconds(lambda f=forward, g=gradient, x=leaves: torch.autograd.grad(f(), x, g), 150.0, 5, 2)
                with torch.no_grad():
                    times[name] = (milliseconds(forward, 60.0, 5, 2), both)
            except RuntimeError:
                continue  # The backend doesn't take this shape.
        best = min(times, key=lambda name: times[name][1])
        found[call] = {"backend": best, "forward": times[best][0], "both": times[best][1]}
    return found


def _sample(heads: int, depth: int, latents: int, points: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q = torch.randn(heads, latents, depth, device="cuda", dtype=torch.bfloat16).requires_grad_()
    k, v = (torch.randn(1, points, heads, depth, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return q, k, v


def _row(heads: int, depth: int, latents: int, points: int) -> dict[str, Any]:
    q, k, v = _sample(heads, depth, latents, points)
    sdpa = _sdpa_times(q, k, v)
    leaves = [q, k.requires_grad_(), v.requires_grad_()]
    gradient = torch.randn_like(v)
    both = milliseconds(lambda: torch.autograd.grad(mixing.mix(*leaves), leaves, gradient))
    with torch.no_grad():
        forward = milliseconds(lambda: mixing.mix(*leaves))
    exponentials = points * latents * heads / EXPONENTIALS_A_SECOND * 1e3
    channels = heads * depth
    lower = max(4 * exponentials, points * channels * 22 / BYTES_A_SECOND * 1e3)
    theirs = sum(call["both"] for call in sdpa.values())
    return {
        "points": points, "heads": heads, "head_dim": depth, "latents": latents,
        "forward_ms": forward, "both_ms": both,
        "sdpa": sdpa, "sdpa_forward_ms": sum(c["forward"] for c in sdpa.values()), "sdpa_both_ms": theirs,
        "ratio_both": theirs / both, "lower_bound_ms": lower, "times_lower_bound": both / lower,
    }  # fmt: skip


def _explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("hmd,bnhd->bhmn", q, k)
    return (scores.softmax(-2).transpose(-1, -2) @ (scores.softmax(-1) @ v.transpose(1, 2))).transpose(1, 2)


def _by_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys, latents = k.transpose(1, 2), q[None].expand(len(k), -1, -1, -1)
    encoded = F.scaled_dot_product_attention(latents, keys, v.transpose(1, 2), scale=1.0)
    return F.scaled_dot_product_attention(keys, latents, encoded, scale=1.0).transpose(1, 2)


def errors(dtype: torch.dtype, seeds: int = 10) -> dict[str, Any]:
    """Relative L2 errors of output and gradients over shapes and seeds, of kernels and attention calls."""
    off = {name: torch.zeros(4, dtype=torch.float64) for name in ("triton", "sdpa", "truth")}
    for heads, depth, latents, points in [(2, 4, 48, 1111), (2, 8, 128, 3000), (3, 16, 200, 777), (1, 32, 1000, 999),
                                          (2, 16, 16, 65), (2, 8, 600, 2050)]:  # fmt: skip
        for seed in range(seeds):
            torch.manual_seed(seed)
            q, k, v, g = (
                torch.randn(*s, device="cuda").to(dtype)
                for s in ((heads, latents, depth), *[(2, points, heads, depth)] * 3)
            )
            results = {}
            for name, function in (("triton", mixing.mix), ("sdpa", _by_sdpa), ("truth", _explicit)):
                leaves = [(t.double() if name == "truth" else t).detach().requires_grad_() for t in (q, k, v)]
                out = function(*leaves)
                results[name] = [out, *torch.autograd.grad(out, leaves, g.to(out.dtype))]
            for number, truth in enumerate(results["truth"]):
                scale = truth.square().sum()
                off["truth"][number] += 1
                for name in ("triton", "sdpa"):
                    off[name][number] += ((results[name][number] - truth).square().sum() / scale).item()
    names = ("output", "queries", "keys", "values")
    return {
        n: {
            "triton": (off["triton"][i] / off["truth"][i]).sqrt().item(),
            "sdpa": (off["sdpa"][i] / off["truth"][i]).sqrt().item(),
            "ratio": (off["triton"][i] / off["sdpa"][i]).sqrt().item(),
        }
        for i, n in enumerate(names)
    }


def main(out: str = "tests/benchmarks/results/gpu_mixer.json") -> None:
    """Measure, write, print."""
    accuracy: dict[str, Any] = {}
    rows = []
    for shape in SHAPES:
        leaves = [t.requires_grad_() for t in _sample(*shape, 16_384)]
        torch.autograd.grad(mixing.mix(*leaves).sum(), leaves)  # compiles, which others need not wait for
    with exclusive():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            name, found = str(dtype).removeprefix("torch."), errors(dtype)
            accuracy[name] = found
            shown = {k: (f"{e['triton']:.2e}", f"{e['sdpa']:.2e}", round(e["ratio"], 3)) for k, e in found.items()}
            print(name, shown, flush=True)
        for shape in SHAPES:
            row = _row(*shape, 1_000_000)
            rows.append(row)
            figures = ("forward_ms", "both_ms", "sdpa_forward_ms", "sdpa_both_ms", "ratio_both", "times_lower_bound")
            backends = [call["backend"] for call in row["sdpa"].values()]
            print(shape, *(f"{name} {row[name]:.3f}" for name in figures), backends, flush=True)
            torch.cuda.empty_cache()
            _write(out, accuracy, rows)


def _write(out: str, accuracy: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    content = {"gpu": describe_gpu(), "errors": accuracy, "rows": rows}
    Path(out).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
