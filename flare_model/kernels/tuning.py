"""Sizes of tiles, found by measuring; NOTES.md says how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import triton

Kernel = Literal["encode", "decode", "latent_gradient", "point_gradient", "fast_point_gradient", "encode_gradient"]

INTERPRETED: Final = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""


PROGRAMS: Final = 2112
"""Number of programs that fills a GPU for all kernels, whatever registers and memory a program takes."""


@dataclass(frozen=True)
class Tiles:
    """How a kernel is cut.

    Attributes:
        points: Points of a tile.
        latents: Largest number of latents of a tile.
        warps: Warps of a program.
        stages: Tiles of points that are loaded at a time (pipelining).
        programs: Approximate number of programs; above PROGRAMS only as many as leave four tiles of points each.
        unrolled: Tiles of latents that pass two of the gradient takes at a time: dQ of all of them lies in registers.
        polynomials: How many of four exponentials are taken by polynomials, 0 to 2; pass two takes none.
        registers: Most registers of a thread; None leaves it to the compiler.
    """

    points: int
    latents: int
    warps: int = 4
    stages: int = 3
    programs: int = PROGRAMS
    unrolled: int = 4
    polynomials: int = 0
    registers: int | None = None


_SMALL: Final = Tiles(points=16, latents=16, programs=12, unrolled=2)
"""For the interpreter: tiles so small that the small shapes of tests have several of them."""

_FULL_PRECISION: Final = Tiles(points=32, latents=32, stages=1, unrolled=1)

_DECODE: Final = Tiles(points=64, latents=128, stages=4, programs=6336)
_FAST_POINT_GRADIENT: Final = Tiles(points=64, latents=64, warps=2, stages=2, programs=1056)
_ENCODE_GRADIENT: Final = Tiles(points=32, latents=64, warps=2, stages=2, programs=1056)
_POINT_GRADIENT_FEW: Final = Tiles(points=64, latents=32, warps=2, stages=2, unrolled=8)
_POINT_GRADIENT_MANY: Final = Tiles(points=32, latents=64, warps=2, stages=2)


def tiles_of(kernel: Kernel, num_latents: int, depth: int, element_size: int) -> Tiles:
    """How to cut a kernel.

    Args:
        kernel: Which.
        num_latents: M.
        depth: D, channels of a head.
        element_size: Bytes of a number of the keys.
    """
    if INTERPRETED:
        return _SMALL
    if element_size == 4:
        return _FULL_PRECISION
    many = num_latents > 128
    if kernel == "encode":
        return Tiles(points=64, latents=64, stages=4 if depth >= 16 else 3, programs=4224 if many else 3168)
    if kernel == "decode":
        fewer = depth < 16 or (depth == 16 and not many)
        return replace(_DECODE, stages=1 if many and depth < 16 else 4, registers=96 if fewer else None)
    if kernel == "latent_gradient":
        return Tiles(points=64 if depth in (4, 16) else 32, latents=128, warps=2, polynomials=1)
    if kernel == "point_gradient":
        return _POINT_GRADIENT_MANY if many else _POINT_GRADIENT_FEW
    if kernel == "encode_gradient":
        return replace(_ENCODE_GRADIENT, latents=32) if depth > 16 else _ENCODE_GRADIENT
    return _fast_point_gradient(depth, many=many)


def _fast_point_gradient(depth: int, *, many: bool) -> Tiles:
    """Tiles with limited registers, where it is faster to have more programs on a multiprocessor."""
    if depth > 16:
        return replace(_FAST_POINT_GRADIENT, points=32, latents=32)
    if depth == 16:
        return replace(_FAST_POINT_GRADIENT, stages=2 if many else 3)
    if depth < 8:
        return replace(_FAST_POINT_GRADIENT, latents=32, unrolled=8)
    if many:
        return replace(_FAST_POINT_GRADIENT, warps=4, stages=1, registers=128)
    return replace(_FAST_POINT_GRADIENT, registers=168, programs=792)


@dataclass(frozen=True)
class NetworkTiles:
    """How a kernel of the pointwise network is cut.

    Attributes:
        points: Points of a tile.
        warps: Warps of a program; 16 points a warp, or warps do the same work twice.
        stages: As in Tiles.
        programs: Programs of a multiprocessor.
    """

    points: int
    warps: int
    stages: int = 1
    programs: int = 1


_SMALL_NETWORK: Final = NetworkTiles(points=16, warps=1)


def network_tiles(channels: int, networks: int = 1) -> NetworkTiles:
    """How to cut the network itself: matrices of 128 channels fill the shared memory of a multiprocessor.

    Args:
        channels: C.
        networks: Networks that one program applies; the matrices of two of 64 channels leave room for two programs.
    """
    if INTERPRETED:
        return _SMALL_NETWORK
    if channels > 64:
        return NetworkTiles(points=128, warps=8)
    return NetworkTiles(points=64, warps=4, stages=2, programs=4 if networks == 1 else 2)


HOPPER_GRADIENT: Final = NetworkTiles(points=128, warps=4)
"""Of hopper_network_gradient.py, whose layouts are made for these; they fill the shared memory of a multiprocessor.

These warps sum up; those that follow the points come on top, and a launch doesn't count them."""


def gradient_tiles(channels: int, *, norm: bool) -> NetworkTiles:
    """How to cut the gradient of the network.

    Args:
        channels: C.
        norm: Whether a LayerNorm goes before it.
    """
    if INTERPRETED:
        return _SMALL_NETWORK
    if channels > 64:
        return NetworkTiles(points=64, warps=8)
    return NetworkTiles(points=64, warps=4, programs=2) if norm else NetworkTiles(points=128, warps=8)


def residual_linear_tiles(channels: int, *, gradient: bool) -> NetworkTiles:
    """How to cut a linear layer with its residual connection; not measured: what registers hold, without spilling.

    Args:
        channels: C.
        gradient: Whether for its gradient.
    """
    if INTERPRETED:
        return _SMALL_NETWORK
    if channels > 64:
        return NetworkTiles(points=64, warps=8, stages=2, programs=1 if gradient else 2)
    return NetworkTiles(points=64, warps=4, stages=2, programs=3 if gradient else 4)
