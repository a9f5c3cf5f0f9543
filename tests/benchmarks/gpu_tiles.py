"""Try sizes of tiles for every kernel of the mixer; the best go into flare_model/kernels/tuning.py.

python -m tests.benchmarks.gpu_tiles OUT.json [KERNEL ...]     sizes of tiles
python -m tests.benchmarks.gpu_tiles OUT.json programs         the chosen tiles, in more or fewer programs
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flare_model.kernels import mixing
from flare_model.kernels.tuning import Tiles, tiles_of
from tests.benchmarks.gpu_timing import describe_gpu, exclusive, milliseconds

SHAPES = {"8x8x128": (8, 8, 128), "8x8x256": (8, 8, 256), "16x4x256": (16, 4, 256), "8x16x128": (8, 16, 128)}
CANDIDATES: dict[str, list[Tiles]] = {
    "encode": [Tiles(p, m, w, s, polynomials=f) for p, m, w, s, f in
               [(64, 64, 4, 3, 0), (64, 64, 4, 3, 1), (64, 128, 4, 3, 1), (64, 64, 2, 3, 1), (128, 64, 4, 3, 0)]],
    "decode": [Tiles(p, m, w, s, polynomials=f, registers=r) for p, m, w, s, f, r in
               [(64, 128, 4, 4, 0, None), (64, 128, 4, 1, 0, None), (64, 128, 4, 1, 1, None), (64, 128, 4, 4, 0, 96),
                (32, 128, 2, 3, 0, None)]],
    "latent_gradient": [Tiles(p, m, w, s, polynomials=f) for p, m, w, s, f in
                        [(32, 128, 2, 3, 0), (32, 128, 2, 3, 1), (32, 128, 2, 3, 2)]],
    "quick_point_gradient": [Tiles(p, m, w, s, unrolled=16, registers=r) for p, m, w, s, r in
                             [(64, 64, 2, 2, None), (64, 64, 2, 2, 168), (64, 64, 2, 3, None), (64, 64, 4, 1, 128),
                              (64, 64, 4, 3, 168), (64, 32, 2, 2, None), (64, 32, 2, 2, 144), (32, 64, 2, 3, 200),
                              (32, 32, 2, 3, 144), (32, 32, 2, 2, None), (32, 128, 2, 3, None), (16, 64, 1, 3, None)]],
}  # fmt: skip


PROGRAMS = (1056, 1320, 1584, 1848, 2112, 2376, 2640, 3168, 3696, 4224, 6336, 8448)


def _candidates(kernel: str, shape: tuple[int, int, int], *, programs: bool) -> list[Tiles]:
    """What to try for a kernel and a shape."""
    if not programs:
        return CANDIDATES[kernel]
    _, depth, latents = shape
    return [replace(tiles_of(kernel, latents, depth, 2), programs=number) for number in PROGRAMS]  # type: ignore[arg-type]


def _inputs(shape: tuple[int, int, int], points: int) -> dict[str, Any]:
    """What the kernels take, and what each leaves for the next."""
    heads, depth, latents = shape
    torch.manual_seed(0)
    q = torch.randn(heads, latents, depth, device="cuda", dtype=torch.bfloat16)
    k, v, dy = (torch.randn(1, points, heads, depth, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    found: dict[str, Any] = {"q": q, "v": v, "dy": dy, "points": mixing._Points(k, latents, None, None)}
    found["z"], found["L"] = mixing._encode(q, v, found["points"])
    found["y"], found["l"] = mixing._decode(q, found["z"], found["points"])
    found["dz"] = mixing._latent_gradient(q, dy, found["l"], found["points"])
    return found


def _run(kernel: str, tiles: Tiles, x: dict[str, Any]) -> Any:
    """One kernel with such tiles."""
    mixing.tiles_of = lambda name, *size: tiles if name == kernel else tiles_of(name, *size)
    q, points = x["q"], x["points"]
    if kernel == "encode":
        return mixing._encode(q, x["v"], points)
    if kernel == "decode":
        return mixing._decode(q, x["z"], points)
    if kernel == "latent_gradient":
        return mixing._latent_gradient(q, x["dy"], x["l"], points)
    return mixing._point_gradients(q, x["v"], x["y"], x["dy"], x["z"], x["dz"], x["L"], x["l"], points)


def _compile(job: tuple[str, Tiles, tuple[int, int, int]]) -> str:
    kernel, tiles, shape = job
    try:
        _run(kernel, tiles, _inputs(shape, 4096))
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 (whatever doesn't fit is no candidate)
        return f"{kernel} {tiles} {shape}: {type(error).__name__} {str(error)[:200]}"
    return ""


def _times(kernels: list[str], *, programs: bool) -> list[dict[str, Any]]:
    """Milliseconds of all candidates, one by one."""
    rows = []
    for name, shape in SHAPES.items():
        inputs = _inputs(shape, 1_000_000)
        for kernel in kernels:
            for tiles in _candidates(kernel, shape, programs=programs):
                try:
                    time = milliseconds(lambda k=kernel, t=tiles, x=inputs: _run(k, t, x), 15.0, 8)
                except Exception:  # noqa: BLE001
                    continue
                rows.append({"shape": name, "kernel": kernel, **vars(tiles), "ms": round(time, 4)})
        torch.cuda.empty_cache()
    return rows


def main(out: str, *kernels: str) -> None:
    """Compile all candidates side by side, then time them one by one."""
    programs = kernels == ("programs",)
    chosen = [name for name in CANDIDATES if name in kernels or programs or not kernels]
    pairs = itertools.product(chosen, SHAPES.values())
    jobs = [(k, t, s) for k, s in pairs for t in _candidates(k, s, programs=programs)]
    with multiprocessing.get_context("spawn").Pool(16) as pool:
        failed = [line for line in pool.map(_compile, jobs, chunksize=1) if line]
    print("\n".join(failed[:12]), flush=True)
    with exclusive():
        rows = _times(chosen, programs=programs)
    Path(out).write_text(json.dumps({"gpu": describe_gpu(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    shown = ("points", "latents", "warps", "stages", "polynomials", "programs", "ms")
    for name, kernel in itertools.product(SHAPES, chosen):
        best = sorted((r for r in rows if (r["shape"], r["kernel"]) == (name, kernel)), key=lambda r: r["ms"])[:4]
        print(name, kernel, [tuple(row[column] for column in shown) for row in best])


if __name__ == "__main__":
    main(*sys.argv[1:])
