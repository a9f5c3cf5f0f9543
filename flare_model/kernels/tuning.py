"""Sizes of tiles, found by measuring; NOTES.md says how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import triton

Kernel = Literal["encode", "decode", "latent_gradient", "point_gradient"]

INTERPRETED: Final = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""


@dataclass(frozen=True)
class Tiles:
    """How a kernel is cut.

    Attributes:
        points: Points of a tile.
        latents: Largest number of latents of a tile.
        warps: Warps of a program.
        stages: Tiles of points that are on their way at a time.
        programs: Programs to have about, where there are points enough.
        registers: Most registers of a thread; None leaves it to the compiler.
    """

    points: int
    latents: int
    warps: int = 4
    stages: int = 3
    programs: int = 2112
    registers: int | None = None


_SMALL: Final = Tiles(points=16, latents=16, programs=12)
"""In the interpreter small shapes have to cross the edges of tiles."""

_FULL_PRECISION: Final = Tiles(points=32, latents=32, warps=4, stages=1)

_MEASURED: Final[dict[Kernel, Tiles]] = {
    "encode": Tiles(points=64, latents=128),
    "decode": Tiles(points=64, latents=128),
    "latent_gradient": Tiles(points=64, latents=128),
    "point_gradient": Tiles(points=64, latents=128, stages=2),
}


def tiles_of(kernel: Kernel, num_latents: int, element_size: int) -> Tiles:
    """How to cut a kernel.

    Args:
        kernel: Which.
        num_latents: M.
        element_size: Bytes of a number of the keys.
    """
    if INTERPRETED:
        return _SMALL
    if element_size == 4:
        return _FULL_PRECISION
    return _MEASURED[kernel]
