"""How much faster are the kernels of FLARE's and FLARE++'s mixing than PyTorch's attention, and are they as exact?

    python -m tests.benchmarks.gpu_mixer [OUT.json] [flare] [flare++]

One mixing of a million points in bf16, forward and backward, is timed by the kernels and by PyTorch's attention calls,
each call by its fastest backend (flash, cuDNN, memory-efficient). Errors of both, relative to float64, are in bf16,
float16 and float32. The lower bound beside the times is that of an H100 (exponentials or memory, whichever takes
longer), also where another GPU is measured. Without names FLARE alone is measured.

Needs one GPU and no data. The result goes to OUT.json, by default results/gpu_mixer.json (call it in the root of the
repository).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flare_model.kernels import mixing
from flare_model.layers.flare_plus_plus_mixer import FlarePlusPlusMixer
from flare_model.layers.layout import Layout
from tests.benchmarks.gpu_timing import describe_gpu, exclusive, milliseconds

EXPONENTIALS_A_SECOND = 3.7e12
BYTES_A_SECOND = 3.35e12
"""Limits of an H100: 132 multiprocessors with 16 special functions a clock, and the bandwidth of its memory."""

SHAPES = [(8, 8, 128), (8, 8, 256), (16, 4, 256), (8, 16, 128), (8, 16, 256)]
"""Heads, channels of a head and latents of FLARE."""

PLUS_SHAPES = [(8, 16, 64), (8, 16, 128), (8, 8, 128)]
"""The same of FLARE++: for LPBF, for Darcy, and with the heads of FLARE."""

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def _sdpa_times(q: Tensor, k: Tensor, v: Tensor, *, seeds: bool = False) -> dict[str, Any]:
    """Time of each attention call by its fastest backend: {call: {backend, forward, both}}, ms.

    With `seeds`, also of FLARE++'s third call, whose keys are its values.
    """
    keys, values = k.transpose(1, 2).detach(), v.transpose(1, 2).detach()
    latents = q[None].detach()
    calls: dict[str, tuple[Tensor, ...]] = {
        "encode": (latents, keys, values), "decode": (keys, latents, torch.randn_like(latents))
    }  # fmt: skip
    if seeds:
        calls["seeds"] = (latents, values)
    found: dict[str, Any] = {}
    for call, tensors in calls.items():
        leaves = [t.requires_grad_() for t in tensors]
        times: dict[str, tuple[float, float]] = {}
        for name, backend in BACKENDS.items():

            def forward(backend: SDPBackend = backend, leaves: list[Tensor] = leaves) -> Tensor:
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(leaves[0], leaves[1], leaves[-1], scale=1.0)

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


def _plus(shape: tuple[int, int, int], dtype: torch.dtype, points: int, seed: int = 0) -> tuple[Any, list[Tensor]]:
    """A mixer of FLARE++ and its inputs: those of the seeds, keys and values, each [1, N, C]."""
    heads, depth, latents = shape
    torch.manual_seed(seed)
    mixer = FlarePlusPlusMixer(heads * depth, heads, latents).cuda()
    for parameter in (mixer.latent_seeds, mixer.latent_queries):
        torch.nn.init.normal_(parameter)
    projected = [torch.randn(1, points, heads * depth, device="cuda").to(dtype).requires_grad_() for _ in range(3)]
    return mixer, projected


def _learned(mixer: FlarePlusPlusMixer) -> list[Tensor]:
    return [mixer.latent_seeds, mixer.latent_queries, mixer.gates]


def _pass(mixer: FlarePlusPlusMixer, way: str, projected: list[Tensor]) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        mixer.implementation = way  # type: ignore[assignment]
        return mixer.mix(*projected, layout=Layout())

    return forward


def _plus_row(shape: tuple[int, int, int], points: int) -> dict[str, Any]:
    """Times of the kernels and of three attention calls, each by its fastest backend, and as PyTorch chooses it."""
    heads, depth, latents = shape
    mixer, projected = _plus(shape, torch.bfloat16, points)
    sdpa = _sdpa_times(*_sample(heads, depth, latents, points), seeds=True)
    leaves, gradient = [*projected, *_learned(mixer)], torch.randn_like(projected[0])
    times = {}
    for way in ("triton", "sdpa"):
        forward = _pass(mixer, way, projected)
        both = milliseconds(lambda f=forward: torch.autograd.grad(f(), leaves, gradient))
        with torch.no_grad():
            times[way] = (milliseconds(forward), both)
    theirs = sum(call["both"] for call in sdpa.values())
    exponentials = 6 * points * latents * heads / EXPONENTIALS_A_SECOND * 1e3
    lower = max(exponentials, points * heads * depth * 28 / BYTES_A_SECOND * 1e3)
    (forward_ms, both_ms), (layer_forward, layer_both) = times["triton"], times["sdpa"]
    return {
        "points": points, "heads": heads, "head_dim": depth, "latents": latents,
        "forward_ms": forward_ms, "both_ms": both_ms,
        "sdpa": sdpa, "sdpa_forward_ms": sum(c["forward"] for c in sdpa.values()), "sdpa_both_ms": theirs,
        "layer_sdpa_forward_ms": layer_forward, "layer_sdpa_both_ms": layer_both,
        "ratio_both": theirs / both_ms, "lower_bound_ms": lower, "times_lower_bound": both_ms / lower,
    }  # fmt: skip


def plus_errors(dtype: torch.dtype, seeds: int = 10) -> dict[str, Any]:
    """Relative L2 errors of FLARE++'s mixing, as `errors`; truth is the same layer by its reference code in float64."""
    names = ("output", "seen", "keys", "values", "seeds", "queries", "gates")
    ways = ("triton", "sdpa")
    off = torch.zeros(len(ways), len(names), dtype=torch.float64)
    shapes = [(8, 16, 64), (8, 8, 128)]
    for shape in shapes:
        for seed in range(seeds):
            mixer, projected = _plus(shape, dtype, 3000, seed)
            gradient, results = torch.randn_like(projected[0]), {}
            for way in (*ways, "reference"):  # The truth comes last: it turns the mixer into float64.
                if way == "reference":
                    mixer.double()
                    projected = [t.detach().double().requires_grad_() for t in projected]
                leaves = [*projected, *_learned(mixer)]
                out = _pass(mixer, way, projected)()
                gradients = torch.autograd.grad(out, leaves, gradient.to(out.dtype))
                results[way] = [t.detach().double() for t in (out, *gradients)]
            for row, way in zip(off, ways, strict=True):
                for number, truth in enumerate(results["reference"]):
                    error = (results[way][number] - truth).square().sum() / truth.square().sum()
                    row[number] += error.item() / (seeds * len(shapes))
    ours, theirs = off.sqrt().tolist()
    return {n: {"triton": a, "sdpa": b, "ratio": a / b} for n, a, b in zip(names, ours, theirs, strict=True)}


def _explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("hmd,bnhd->bhmn", q, k)
    return (scores.softmax(-2).transpose(-1, -2) @ (scores.softmax(-1) @ v.transpose(1, 2))).transpose(1, 2)


def _by_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys, latents = k.transpose(1, 2), q[None].expand(len(k), -1, -1, -1)
    encoded = F.scaled_dot_product_attention(latents, keys, v.transpose(1, 2), scale=1.0)
    return F.scaled_dot_product_attention(keys, latents, encoded, scale=1.0).transpose(1, 2)


def errors(dtype: torch.dtype, seeds: int = 10) -> dict[str, Any]:
    """Relative L2 errors of output and gradients, of kernels and of attention calls, over shapes and seeds."""
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


def _measure(
    found: dict[str, Any],
    shapes: list[tuple[int, int, int]],
    errors_of: Callable[[torch.dtype], dict[str, Any]],
    row_of: Callable[..., dict[str, Any]],
    write: Callable[[], None],
) -> None:
    """Measure errors and rows, write and print them."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name, errors = str(dtype).removeprefix("torch."), errors_of(dtype)
        found["errors"][name] = errors
        shown = {k: (f"{e['triton']:.2e}", f"{e['sdpa']:.2e}", round(e["ratio"], 3)) for k, e in errors.items()}
        print(name, shown, flush=True)
    for shape in shapes:
        row = row_of(shape, 1_000_000)
        found["rows"].append(row)
        figures = [name for name in row if name.endswith("_ms") or name in ("ratio_both", "times_lower_bound")]
        backends = [call["backend"] for call in row["sdpa"].values()]
        print(shape, *(f"{name} {row[name]:.3f}" for name in figures), backends, flush=True)
        torch.cuda.empty_cache()
        write()


def _compile(models: tuple[str, ...]) -> None:
    """Compile all kernels before the GPU is taken for measuring alone."""
    for shape in SHAPES if "flare" in models else []:
        leaves = [t.requires_grad_() for t in _sample(*shape, 16_384)]
        torch.autograd.grad(mixing.mix(*leaves).sum(), leaves)
    for shape in PLUS_SHAPES if "flare++" in models else []:
        mixer, projected = _plus(shape, torch.bfloat16, 16_384)
        torch.autograd.grad(_pass(mixer, "triton", projected)().sum(), [*projected, *_learned(mixer)])


def main(out: str = "tests/benchmarks/results/gpu_mixer.json", *names: str) -> None:
    """Measure, write, print; results of FLARE++ stand below the key "flare++"."""
    models = names or ("flare",)
    content: dict[str, Any] = {"gpu": describe_gpu()}

    def write() -> None:
        Path(out).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    _compile(models)
    with exclusive():
        if "flare" in models:
            content |= {"errors": {}, "rows": []}
            _measure(content, SHAPES, errors, lambda shape, points: _row(*shape, points), write)
        if "flare++" in models:
            content["flare++"] = {"errors": {}, "rows": []}
            _measure(content["flare++"], PLUS_SHAPES, plus_errors, _plus_row, write)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="OUT.json | flare | flare++", help="the file, then the models")
    main(*parser.parse_args().words)
