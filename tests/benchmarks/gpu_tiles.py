"""Which sizes of tiles are fastest for each kernel of FLARE's mixing? The best go into flare_model/kernels/tuning.py.

    python -m tests.benchmarks.gpu_tiles OUT.json [KERNEL ...]

Every kernel is timed on a million points in bf16, in several shapes of heads and latents, with each candidate of
tiles; the best four of each are then tried with more and with fewer programs.

Needs one GPU, 16 processor cores (that many processes compile) and no data. The result goes to OUT.json; committed is
results/gpu_tiles.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flare_model.kernels import encoding, launches, mixing
from flare_model.kernels.tuning import Tiles, tiles_of
from tests.benchmarks.gpu_timing import describe_gpu, exclusive, milliseconds

Shape = tuple[int, int, int]

SHAPES: dict[str, Shape] = {
    "8x8x128": (8, 8, 128), "8x8x256": (8, 8, 256), "16x4x256": (16, 4, 256), "8x16x128": (8, 16, 128),
    "8x16x256": (8, 16, 256),
}  # fmt: skip
"""Heads, channels of a head, latents."""

PROGRAMS = (660, 792, 924, 1056, 1320, 1584, 1848, 2112, 2640, 3168, 4224, 6336, 8448)

_FAST = [(32, 32, 1), (32, 16, 1), (16, 32, 1), (16, 64, 1), (32, 32, 2), (32, 64, 2), (32, 128, 2), (64, 16, 2),
          (64, 32, 2), (64, 64, 2), (64, 32, 4), (64, 64, 4)]  # fmt: skip
_CAPS = {1: (None, 200), 2: (None, 200, 168, 144), 4: (None, 168, 128)}
"""By warps of a program: limits on the registers of a thread with which one more program fits on a multiprocessor."""

CANDIDATES: dict[str, list[Tiles]] = {
    "encode": [Tiles(p, m, w, s, polynomials=f) for p, m, w, s in
               [(64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4), (64, 128, 4, 3), (64, 64, 2, 3), (128, 64, 4, 3),
                (32, 64, 2, 3)] for f in (0, 1)],
    "decode": [Tiles(p, m, w, s, polynomials=f, registers=r) for p, m, w, s, r in
               [(64, 128, 4, 1, None), (64, 128, 4, 2, None), (64, 128, 4, 4, None), (64, 128, 4, 4, 96),
                (64, 128, 4, 1, 96), (32, 128, 2, 1, None), (32, 128, 2, 3, None), (64, 64, 4, 3, None)]
               for f in (0, 1)],
    "latent_gradient": [Tiles(p, m, w, s, polynomials=f) for p, m, w, s in
                        [(32, 128, 2, 2), (32, 128, 2, 3), (32, 128, 2, 4), (32, 64, 2, 3), (64, 128, 2, 3),
                         (16, 128, 2, 3), (32, 128, 4, 3)] for f in (0, 1, 2)],
    "fast_point_gradient": [Tiles(p, m, w, s, unrolled=16, registers=r) for p, m, w in _FAST for r in _CAPS[w]
                             for s in (1, 2, 3)],
    "encode_gradient": [Tiles(p, m, w, s, programs=n) for p, m, w in
                        [(32, 64, 2), (64, 64, 4), (64, 32, 2), (64, 128, 4), (32, 32, 1), (32, 32, 2), (16, 64, 1)]
                        for s in (1, 2, 3) for n in (1056, 2112)],
}  # fmt: skip


def _inputs(shape: Shape, points: int) -> dict[str, Any]:
    """Inputs of all kernels, among them the results that one kernel passes to the next."""
    launches.tiles_of = tiles_of
    heads, depth, latents = shape
    torch.manual_seed(0)
    q = torch.randn(heads, latents, depth, device="cuda", dtype=torch.bfloat16)
    k, v, dy = (torch.randn(1, points, heads, depth, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    found: dict[str, Any] = {"q": q, "v": v, "dy": dy, "points": launches.Points(k, latents, None, None)}
    found["z"], found["L"] = encoding.launch_encoding(q, v, found["points"])
    found["y"], found["l"] = mixing._decode(q, found["z"], found["points"])
    found["dz"] = mixing._latent_gradient(q, dy, found["l"], found["points"])
    return found


def _run(kernel: str, tiles: Tiles, x: dict[str, Any]) -> Any:
    """Run one kernel with these tiles, and what is launched with it: the merging of slices, or the rest of its pass."""
    launches.tiles_of = lambda name, *size: tiles if name == kernel else tiles_of(name, *size)
    q, points = x["q"], x["points"]
    if kernel == "encode":
        return encoding.launch_encoding(q, x["v"], points)
    if kernel == "decode":
        return mixing._decode(q, x["z"], points)
    if kernel == "latent_gradient":
        return mixing._latent_gradient(q, x["dy"], x["l"], points)
    if kernel == "encode_gradient":  # Here keys and values differ; that doesn't change the time.
        return encoding._differentiate(x["dz"], q, x["z"], x["L"], points)
    return mixing._point_gradients(q, x["v"], x["y"], x["dy"], x["z"], x["dz"], x["L"], x["l"], points)


def _compile(job: tuple[str, Tiles, Shape]) -> str:
    kernel, tiles, shape = job
    try:
        _run(kernel, tiles, _inputs(shape, 4096))
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 (whatever doesn't fit is no candidate)
        return f"{kernel} {tiles} {shape}: {type(error).__name__} {str(error)[:200]}"
    return ""


def _times(kernel: str, candidates: Iterable[Tiles], inputs: dict[str, Any]) -> list[tuple[float, Tiles]]:
    """Milliseconds of each candidate that can run, the best first."""
    found = []
    for tiles in candidates:
        try:
            found.append((milliseconds(lambda t=tiles: _run(kernel, t, inputs), 15.0, 8), tiles))
        except Exception:  # noqa: BLE001
            continue
    return sorted(found, key=lambda pair: pair[0])


def main(out: str, *kernels: str) -> None:
    """Compile all candidates side by side, then time them one by one."""
    chosen = [name for name in CANDIDATES if name in kernels or not kernels]
    jobs = [(k, t, s) for k, s in itertools.product(chosen, SHAPES.values()) for t in CANDIDATES[k]]
    with multiprocessing.get_context("spawn").Pool(16) as pool:
        failed = [line for line in pool.map(_compile, jobs, chunksize=1) if line]
    print("\n".join(failed[:12]), flush=True)
    rows = []
    with exclusive():
        for name, shape in SHAPES.items():
            inputs = _inputs(shape, 1_000_000)
            for kernel in chosen:
                found = _times(kernel, CANDIDATES[kernel], inputs)
                again = [replace(t, programs=n) for (_, t), n in itertools.product(found[:4], PROGRAMS)]
                found += _times(kernel, again, inputs)
                rows += [{"shape": name, "kernel": kernel, **vars(t), "ms": round(ms, 4)} for ms, t in found]
                best = min(found, key=lambda pair: pair[0])
                print(name, kernel, f"{best[0]:.4f} ms", best[1], flush=True)
            del inputs
            torch.cuda.empty_cache()
    lines = ",\n".join(json.dumps(row) for row in rows)
    Path(out).write_text(f'{{"gpu": {json.dumps(describe_gpu())},\n"rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.json")
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(CANDIDATES)}; all by default")
    chosen = parser.parse_args()
    if unknown := set(chosen.kernels) - set(CANDIDATES):
        parser.error(f"no kernel is called {', '.join(sorted(unknown))}; there are {', '.join(CANDIDATES)}")
    main(chosen.out, *chosen.kernels)
