"""Functions of all kernels: loading and storing tiles, and exponentials of scores less a maximum or logsumexp.

A logsumexp is log Σ exp of scores over points or latents. For inputs in float32 it is kept in float64, as float32 holds
one of 40 to 2e-6, and each weight no better. For 16 bits, maxima and logsumexps are in float32 and times log₂(e), as
the exponentials use them, so that they are rounded once and not again by other kernels.

A tile has at least 16 channels, the least depth of a matrix product; with heads of 4 or 8 channels the other channels
of a tile are spare.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def _power_of_two(polynomials: int) -> str:
    """PTX for 2ˣ, x ≤ 0, of four numbers: so many of them by a polynomial, the rest by the special function unit.

    x = n + f with f in [-1/2, 1/2]; 2ᶠ by its minimax cubic, off by 7.5e-5 of itself, a twentieth of what rounding to
    bfloat16 loses; n goes into the exponent. Below 2⁻¹²⁶ it stays there.
    """
    lines = [".reg .f32 f, t; .reg .b32 n, m;"]
    for number in range(4):
        out, x = f"${number}", f"${number + 4}"
        if number >= polynomials:
            lines.append(f"ex2.approx.ftz.f32 {out}, {x};")
            continue
        lines += [
            f"max.ftz.f32 f, {x}, 0fC2FC0000;",  # -126
            "add.rn.ftz.f32 t, f, 0f4B400000;",  # 1.5 · 2²³: rounds to a whole number, in the lowest bits
            "mov.b32 n, t;",
            "sub.rn.ftz.f32 t, t, 0f4B400000;",
            "sub.rn.ftz.f32 f, f, t;",
            "fma.rn.ftz.f32 t, f, 0f3D61FBB0, 0f3E786F0D;",
            "fma.rn.ftz.f32 t, t, f, 0f3F31798D;",
            "fma.rn.ftz.f32 t, t, f, 0f3F7FFB49;",
            "mov.b32 m, t;",
            "shl.b32 n, n, 23;",
            "add.s32 m, m, n;",
            f"mov.b32 {out}, m;",
        ]
    return "{\n" + "\n".join(lines) + "\n}"


_ONE_OF_FOUR = tl.constexpr(_power_of_two(1))
_TWO_OF_FOUR = tl.constexpr(_power_of_two(2))


@triton.constexpr_function
def slope_type(dtype, fast):
    """Type of products in the gradient of the scores: that of the keys, but float32 in the interpreter's fast path.

    The interpreter can't multiply bfloat16 and takes float16 in its place, whose range is too small for the fast path.
    """
    return tl.float32 if fast and INTERPRETED else dtype


@triton.jit
def in_log_unit(maximum, FLOAT32: tl.constexpr):
    """The largest of some scores in the unit of a logsumexp: times log₂(e) for 16 bits."""
    if FLOAT32:
        return maximum
    else:
        return maximum * LOG2E


@triton.jit
def logsumexp_of(maximum, total, FLOAT32: tl.constexpr):
    """Log Σ exp(scores), from their maximum in the same unit and total = Σ exp(scores - maximum)."""
    if FLOAT32:
        return maximum.to(tl.float64) + tl.log(total.to(tl.float64))
    else:
        return maximum + tl.log2(total)


@triton.jit
def rescaling_factor(lower, upper, FLOAT32: tl.constexpr):
    """Factor from exponentials less one maximum to those less a higher one: exp(lower - upper), 1 where both agree."""
    if FLOAT32:
        return tl.exp2((lower - upper) * LOG2E)
    else:
        return tl.exp2(lower - upper)


@triton.jit
def exp_of_difference(scores, shift, FLOAT32: tl.constexpr):
    """exp(scores + shift), where shift is minus a maximum or logsumexp that no score exceeds by more than rounding.

    In float32 the difference comes first, as it loses nothing, in two parts where the shift has 64 bits. Otherwise one
    multiply-add does both steps: the largest score's exponential is off 1 by what rounding the shift left, alike
    wherever that shift is used.
    """
    if FLOAT32:
        high = shift.to(tl.float32)
        difference = scores + high
        if shift.dtype == tl.float64:
            difference += (shift - high.to(tl.float64)).to(tl.float32)
        return tl.exp2(difference * LOG2E)
    else:
        return tl.exp2(tl.fma(scores, LOG2E, shift))


@triton.jit
def exps_of_differences(scores, shift, FLOAT32: tl.constexpr, POLYNOMIALS: tl.constexpr):
    """`exp_of_difference` for a whole tile, with POLYNOMIALS of four exponentials computed on the multiply-add units.

    The special function units compute 16 exponentials a clock and multiprocessor, which can limit the whole kernel.
    """
    if FLOAT32 or INTERPRETED or POLYNOMIALS == 0:
        return exp_of_difference(scores, shift, FLOAT32)
    else:
        asm: tl.constexpr = _ONE_OF_FOUR if POLYNOMIALS == 1 else _TWO_OF_FOUR
        return tl.inline_asm_elementwise(
            asm, "=f,=f,=f,=f,f,f,f,f", [tl.fma(scores, LOG2E, shift)], dtype=tl.float32, is_pure=True, pack=4
        )


@triton.jit
def no_weights(ROWS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, FLOAT32: tl.constexpr):
    """The sum of no weights for each of so many rows; see `add_weights`."""
    if FLOAT32 or WIDTH > DEPTH:
        return tl.zeros((ROWS,), tl.float32)
    else:
        return tl.zeros((ROWS, 8), tl.float32)


@triton.jit
def add_weights(total, weights, decay, TYPE: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr):
    """Σ of each row's weights after one more tile.

    In 16 bits they are added as the product with values takes them, rounded, so that a weight of nearly 1 leaves the
    value as it is: by a product with ones, in 8 columns. Where a head leaves channels spare, ones in those of the
    values count, and nothing is done here.
    """
    if WIDTH > DEPTH:
        return total
    elif TYPE == tl.float32:
        return total * decay + tl.sum(weights, 1)
    else:
        ones = tl.full((weights.shape[1], 8), 1.0, TYPE)
        return tl.dot(weights.to(TYPE), ones, total * decay[:, None])


@triton.jit
def sum_of_weights(total, moment, DEPTH: tl.constexpr, WIDTH: tl.constexpr):
    """Σ of each row's weights, from what `add_weights` left and from Σ weight · value."""
    if WIDTH > DEPTH:
        return tl.sum(tl.where((tl.arange(0, WIDTH) == DEPTH)[None, :], moment, 0.0), 1)
    elif len(total.shape) == 2:
        return tl.max(total, 1)
    else:
        return total


@triton.jit
def load_points(
    pointer, first, start, count, head, other,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, POINTS: tl.constexpr,
    COPIES: tl.constexpr = 1,
):  # fmt: skip
    """Channels of one head at a tile of points, [POINTS, WIDTH].

    Args:
        pointer: [ΣN, H, D], contiguous.
        first: First point of the slice, 64 bits wide.
        start: First point of the tile within the slice.
        count: Points of the slice.
        head: The head.
        other: Value where there is no point, and in spare channels.
        HEADS: H.
        DEPTH: D.
        WIDTH: Channels of a tile.
        POINTS: Points of a tile.
        COPIES: Number of copies of the head's channels, one after the other.
    """
    points = start + tl.arange(0, POINTS)
    channels = tl.arange(0, WIDTH)
    exists = (points < count)[:, None] & (channels < COPIES * DEPTH)[None, :]
    place = pointer + (first * HEADS + head) * DEPTH + points[:, None] * (HEADS * DEPTH)
    return tl.load(place + (channels % DEPTH)[None, :], mask=exists, other=other)


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
    LATENTS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr, COPIES: tl.constexpr = 1,
):  # fmt: skip
    """A tile of the latents of one head, [LATENTS, WIDTH].

    Args:
        pointer: [H, M, D], contiguous.
        head: The head; 64 bits wide where there may be many of them, as with partial sums.
        first: First latent of the tile.
        num_latents: M.
        other: Value where there is no latent, and in spare channels.
        LATENTS: Latents of a tile.
        DEPTH: D.
        WIDTH: Channels of a tile.
        COPIES: Number of copies of the head's channels, one after the other.
    """
    latents = first + tl.arange(0, LATENTS)
    channels = tl.arange(0, WIDTH)
    exists = (latents < num_latents)[:, None] & (channels < COPIES * DEPTH)[None, :]
    place = pointer + (head * num_latents + latents)[:, None] * DEPTH + (channels % DEPTH)[None, :]
    return tl.load(place, mask=exists, other=other)


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
