"""How fast are the projections' kernels in float32 beside PyTorch's operators, by how they are cut?

    python -m tests.benchmarks.gpu_projections OUT.json

- `layer`: a layer of 64 channels with GELU and residual connection, forward and gradients, by PyTorch and by the
  kernels for every tile of `FORWARD` and `GRADIENT`; a tile for which memory lacks has its error in place of a time.
- `norm`: LayerNorm of 64 channels, likewise.
- `projections`: FLARE's input and output projection with its LayerNorm, forward and gradients together, and their
  errors over those of PyTorch's operators, against float64.

Needs one GPU and no data. No results are committed yet.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from triton.runtime.errors import OutOfResources

from flare_model.kernels import projection
from flare_model.kernels.tuning import NetworkTiles
from flare_model.layers.pointwise import normalise
from flare_model.models.flare import FlareConfig, flare_projections
from tests.benchmarks.gpu_timing import describe_gpu, milliseconds

POINTS: Final = 1_000_000
FORWARD: Final = [
    NetworkTiles(points, warps, stages, programs)
    for points, warps in ((32, 4), (64, 4), (128, 8))
    for stages in (1, 2)
    for programs in (2, 3, 4)
]
GRADIENT: Final = [
    NetworkTiles(points, warps, stages, programs)
    for points, warps, programs in ((16, 4, 2), (32, 4, 2), (32, 8, 1))
    for stages in (1, 2)
]
ROWS: Final = (16, 32, 64)
"""Of `projection`: with 64 rows the gradient of x is less accurate, and not to be taken."""
NORM: Final = [NetworkTiles(points, 4, 1, programs) for points in (16, 32, 64) for programs in (8, 16)]


def _time(function: Callable[[], Any]) -> float | str:
    try:
        return round(milliseconds(function), 4)
    except (OutOfResources, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"[:120]


def _time_parts(function: Callable[[Tensor], Tensor], x: Tensor, leaves: list[Tensor]) -> dict[str, float | str]:
    """Milliseconds of a forward pass, and of the gradients of x and leaves."""
    x = x.clone().requires_grad_()
    out = function(x)
    gradient = torch.randn_like(out)
    return {
        "forward": _time(lambda: function(x)),
        "gradients": _time(lambda: torch.autograd.grad(out, [x, *leaves], gradient, retain_graph=True)),
    }


def time_layer() -> dict[str, Any]:
    linear, x = nn.Linear(64, 64).cuda(), torch.randn(POINTS, 64, device="cuda")
    leaves = list(linear.parameters())

    def plain(x: Tensor) -> Tensor:
        return x + F.gelu(linear(x), approximate="tanh")

    def by_kernel(x: Tensor) -> Tensor:
        return projection.apply_layer(x, linear, gelu=True, residual=True)

    found: dict[str, Any] = {"pytorch": _time_parts(plain, x, leaves), "kernels": _time_parts(by_kernel, x, leaves)}
    own = projection.float_layer_tiles
    for tiles in FORWARD:
        with mock.patch.object(projection, "float_layer_tiles", lambda *, gradient, tiles=tiles: tiles):
            found[f"forward {tiles}"] = _time(lambda: by_kernel(x))
    for rows, tiles in itertools.product(ROWS, GRADIENT):

        def taken(*, gradient: bool, tiles: NetworkTiles = tiles) -> NetworkTiles:
            return tiles if gradient else own(gradient=False)

        with mock.patch.multiple(projection, float_layer_tiles=taken, _ROWS=rows):
            found[f"gradients {rows} {tiles}"] = _time_parts(by_kernel, x, leaves)["gradients"]
    return found


def time_norm() -> dict[str, Any]:
    norm, x = nn.LayerNorm(64).cuda(), torch.randn(POINTS, 64, device="cuda")
    leaves = list(norm.parameters())
    found: dict[str, Any] = {"pytorch": _time_parts(norm, x, leaves)}
    for tiles in NORM:
        with mock.patch.object(projection, "norm_tiles", lambda channels, tiles=tiles: tiles):
            found[str(tiles)] = _time_parts(lambda x: projection.apply_norm(x, norm), x, leaves)
    return found


def time_projections() -> dict[str, Any]:
    enter, leave = flare_projections(FlareConfig())
    norm = nn.LayerNorm(64)
    modules = nn.ModuleList([enter, norm, leave]).cuda()
    points, hidden = torch.randn(POINTS, 3, device="cuda"), torch.randn(POINTS, 64, device="cuda")
    results: dict[str, Any] = {}
    found: dict[str, list[Tensor]] = {}
    for name in ("sdpa", "triton", "float64"):
        for projected in (enter, leave):
            projected.implementation = "sdpa" if name == "float64" else name  # type: ignore[assignment]
        some = copy.deepcopy(modules).double() if name == "float64" else modules
        x, h = (t.to(next(some.parameters()).dtype) for t in (points, hidden))
        h.requires_grad_()

        def step(some: Any = some, x: Tensor = x, h: Tensor = h) -> list[Tensor]:
            first, after = some[0](x), some[2](normalise(some[1], h, some[2].implementation))
            loss = first.square().mean() + after.square().mean()
            return [first.detach(), after.detach(), *torch.autograd.grad(loss, [h, *some.parameters()])]

        found[name] = step()
        if name != "float64":
            results[name] = _time(step)
    errors = {
        name: [float((a.double() - b).norm()) for a, b in zip(found[name], found["float64"], strict=True)]
        for name in ("sdpa", "triton")
    }
    names = ("input projection", "output projection", "hidden", *(name for name, _ in modules.named_parameters()))
    ratios = [ours / theirs if theirs else None for ours, theirs in zip(errors["triton"], errors["sdpa"], strict=True)]
    return results | {"errors over PyTorch's": dict(zip(names, ratios, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    results: dict[str, Any] = {"gpu": describe_gpu(), "points": POINTS}
    for name, measure in (("projections", time_projections), ("layer", time_layer), ("norm", time_norm)):
        results[name] = measure()
        print(json.dumps({name: results[name]}, indent=1), flush=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
