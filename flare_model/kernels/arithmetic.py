"""What all kernels compute with: tiles of points and of latents, and shifted exponentials.

A tile has 16 channels at least, the least depth of a matrix product; heads of 4 or 8 channels leave the rest spare.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def as_shift(x, EXACT: tl.constexpr):
    """What to add to scores in `exp_of_difference` for exp(scores - x)."""
    if EXACT:
        return -x
    else:
        return x * -LOG2E


@triton.jit
def exp_of_difference(scores, shift, EXACT: tl.constexpr):
    """exp(scores - x) with shift = as_shift(x), where no score is larger than x by more than rounding.

    In float32 the difference comes first, as it loses nothing. Otherwise one multiply-add does both steps: what the
    product with log2(e) rounds is smaller than what operands of 16 bits have lost already.
    """
    if EXACT:
        return tl.exp2((scores + shift) * LOG2E)
    else:
        return tl.exp2(tl.fma(scores, LOG2E, shift))


@triton.jit
def load_points(
    pointer, first, start, count, head, other,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Channels of one head at a tile of points, [POINTS, WIDTH].

    Args:
        pointer: [ΣN, H, D], contiguous.
        first: First point of the slice, 64 bits wide.
        start: First point of the tile within the slice.
        count: Points of the slice.
        head: The head.
        other: What to put where there is no point, and into spare channels.
        HEADS: H.
        DEPTH: D.
        WIDTH: Channels of a tile.
        POINTS: Points of a tile.
    """
    points = start + tl.arange(0, POINTS)
    channels = tl.arange(0, WIDTH)
    place = pointer + (first * HEADS + head) * DEPTH + points[:, None] * (HEADS * DEPTH) + channels[None, :]
    return tl.load(place, mask=(points < count)[:, None] & (channels < DEPTH)[None, :], other=other)


@triton.jit
def store_points(
    pointer, values, first, start, count, head,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """Store a tile of points; arguments as for load_points."""
    points = start + tl.arange(0, POINTS)
    channels = tl.arange(0, WIDTH)
    place = pointer + (first * HEADS + head) * DEPTH + points[:, None] * (HEADS * DEPTH) + channels[None, :]
    exists = (points < count)[:, None] & (channels < DEPTH)[None, :]
    tl.store(place, values.to(pointer.dtype.element_ty), mask=exists)


@triton.jit
def load_latents(
    pointer, head, first, num_latents, other,
    LATENTS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of the latents of one head, [LATENTS, WIDTH].

    Args:
        pointer: [H, M, D], contiguous.
        head: The head; 64 bits wide where there may be many of them, as with partial sums.
        first: First latent of the tile.
        num_latents: M.
        other: What to put where there is no latent, and into spare channels.
        LATENTS: Latents of a tile.
        DEPTH: D.
        WIDTH: Channels of a tile.
    """
    latents = first + tl.arange(0, LATENTS)
    channels = tl.arange(0, WIDTH)
    place = pointer + (head * num_latents + latents)[:, None] * DEPTH + channels[None, :]
    return tl.load(place, mask=(latents < num_latents)[:, None] & (channels < DEPTH)[None, :], other=other)


@triton.jit
def store_latents(
    pointer, values, head, first, num_latents,
    LATENTS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store a tile of latents; arguments as for load_latents."""
    latents = first + tl.arange(0, LATENTS)
    channels = tl.arange(0, WIDTH)
    place = pointer + (head * num_latents + latents)[:, None] * DEPTH + channels[None, :]
    tl.store(place, values, mask=(latents < num_latents)[:, None] & (channels < DEPTH)[None, :])
