"""Layers of pointwise networks in float32: a linear layer with its GELU and residual connection, and LayerNorm.

N points, IN channels in, OUT channels out: y = r + f(W x + b), where f is the tanh form of GELU or nothing, and r is
x or nothing. Tiles are padded to IN_PADDED and OUT_PADDED channels, with zeros.

PRECISION tf32x3 takes each product of float32 as three of TF32. Tensor cores add eight products at a time and are taken
to cut the sum off to 24 bits, towards zero: after many such steps it is further off than float32's. So products are
of SLICE channels at most, and what they give is added in float32, which rounds.
"""

import triton
import triton.language as tl

from flare_model.kernels.arithmetic import LOG2E

# GELU is x·σ(2u) with u = √(2/π)·(x + 0.044715·x³): exp(-2u) = 2^(-x·(_LINEAR + _CUBIC·x²)).
_SCALE = tl.constexpr(0.7978845608028654)
_LINEAR = tl.constexpr(2.0 * LOG2E * 0.7978845608028654)
_CUBIC = tl.constexpr(2.0 * LOG2E * 0.7978845608028654 * 0.044715)
_CUBE = tl.constexpr(0.044715)


@triton.jit
def _sigmoid_parts(x):
    """σ(2u), and exp(-2u), which is limited so that its product with σ is finite."""
    power = tl.exp2(tl.minimum(-x * tl.fma(x * x, _CUBIC, _LINEAR), 100.0))
    return 1.0 / (1.0 + power), power


@triton.jit
def _gelu_slope(x):
    """The derivative of GELU's tanh form."""
    sigma, power = _sigmoid_parts(x)
    inner = tl.fma(x * x, 6.0 * _SCALE * _CUBE, 2.0 * _SCALE)  # 2u'
    return tl.fma(x * sigma * (power * sigma), inner, sigma)


@triton.jit
def _load_points(
    x, start, first: tl.constexpr, CHANNELS: tl.constexpr, POINTS: tl.constexpr, WIDTH: tl.constexpr, count
):
    """Channels first to first + WIDTH of a tile of points, 0 where there is none."""
    points, channels = tl.arange(0, POINTS)[:, None], first + tl.arange(0, WIDTH)[None, :]
    place = x + tl.cast(start, tl.int64) * CHANNELS + points * CHANNELS + channels
    return tl.load(place, mask=(points < count - start) & (channels < CHANNELS), other=0.0)


@triton.jit
def _store_points(
    out, values, start, first: tl.constexpr, CHANNELS: tl.constexpr, POINTS: tl.constexpr, WIDTH: tl.constexpr, count
):  # fmt: skip
    points, channels = tl.arange(0, POINTS)[:, None], first + tl.arange(0, WIDTH)[None, :]
    place = out + tl.cast(start, tl.int64) * CHANNELS + points * CHANNELS + channels
    tl.store(place, values, mask=(points < count - start) & (channels < CHANNELS))


@triton.jit
def _load_weight(
    weight, row: tl.constexpr, column: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A part of W, [HEIGHT, WIDTH]."""
    rows, columns = row + tl.arange(0, HEIGHT)[:, None], column + tl.arange(0, WIDTH)[None, :]
    return tl.load(weight + rows * IN + columns, mask=(rows < OUT) & (columns < IN), other=0.0)


@triton.jit
def layer_kernel(
    x, weight, bias, out, count,
    IN: tl.constexpr, OUT: tl.constexpr, IN_PADDED: tl.constexpr, OUT_PADDED: tl.constexpr,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, POINTS: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[N, IN] to [N, OUT]."""
    parts: tl.constexpr = IN_PADDED // SLICE
    w = ()
    for part in tl.static_range(parts):
        w += (_load_weight(weight, 0, part * SLICE, OUT, IN, OUT_PADDED, SLICE),)
    channels = tl.arange(0, OUT_PADDED)
    b = tl.load(bias + channels, mask=channels < OUT, other=0.0)[None, :]
    for start in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        y = tl.broadcast_to(b, (POINTS, OUT_PADDED))
        for part in tl.static_range(parts):
            some = _load_points(x, start, part * SLICE, IN, POINTS, SLICE, count)
            y = tl.dot(some, tl.trans(w[part]), y, input_precision=PRECISION)
        if GELU:
            y *= _sigmoid_parts(y)[0]
        if RESIDUAL:  # x is in the cache still.
            y += _load_points(x, start, 0, IN, POINTS, OUT_PADDED, count)
        _store_points(out, y, start, 0, OUT, POINTS, OUT_PADDED, count)


@triton.jit
def layer_gradient_kernel(
    x, weight, bias, gradient, grad_x, grad_weights, grad_biases, count,
    IN: tl.constexpr, OUT: tl.constexpr, IN_PADDED: tl.constexpr, OUT_PADDED: tl.constexpr,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, WANTED: tl.constexpr,
    POINTS: tl.constexpr, SLICE: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of x where it is WANTED, and each program's share of those of W and b, with the programs in front.

    ROWS channels of the output are done at a time: the product of their gradients and W is a sum of as many products.
    """
    parts: tl.constexpr = IN_PADDED // SLICE
    groups: tl.constexpr = OUT_PADDED // ROWS
    w, w_parts, b, dw, db, lost = (), (), (), (), (), ()
    for group in tl.static_range(groups):
        channels = group * ROWS + tl.arange(0, ROWS)
        w += (_load_weight(weight, group * ROWS, 0, OUT, IN, ROWS, IN_PADDED),)
        b += (tl.load(bias + channels, mask=channels < OUT, other=0.0)[None, :],)
        dw += (tl.zeros((ROWS, IN_PADDED), tl.float32),)
        db += (tl.zeros((ROWS,), tl.float32),)
        lost += (tl.zeros((ROWS,), tl.float32),)
        for part in tl.static_range(parts):
            w_parts += (_load_weight(weight, group * ROWS, part * SLICE, OUT, IN, ROWS, SLICE),)
    for start in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        whole = _load_points(x, start, 0, IN, POINTS, IN_PADDED, count)
        # Where there is no point the gradient is 0, and so is what the point adds to dW and db.
        gradients = ()
        for group in tl.static_range(groups):
            gradients += (_load_points(gradient, start, group * ROWS, OUT, POINTS, ROWS, count),)
        dx = tl.zeros((POINTS, IN_PADDED), tl.float32)
        new_dw, new_db, new_lost = (), (), ()
        for group in tl.static_range(groups):
            dz = gradients[group]
            if GELU:
                z = tl.broadcast_to(b[group], (POINTS, ROWS))
                for part in tl.static_range(parts):
                    some = _load_points(x, start, part * SLICE, IN, POINTS, SLICE, count)
                    z = tl.dot(some, tl.trans(w_parts[group * parts + part]), z, input_precision=PRECISION)
                dz *= _gelu_slope(z)
            new_dw += (tl.dot(tl.trans(dz), whole, dw[group], input_precision=PRECISION),)
            # Kahan's sum: PyTorch adds pairs, and one number after another would be less accurate.
            missing = tl.sum(dz, 0) - lost[group]
            new_db += (db[group] + missing,)
            new_lost += ((new_db[group] - db[group]) - missing,)
            if WANTED:
                dx = tl.dot(dz, w[group], dx, input_precision=PRECISION)
        dw, db, lost = new_dw, new_db, new_lost
        if WANTED:
            if RESIDUAL:
                dx += _load_points(gradient, start, 0, OUT, POINTS, IN_PADDED, count)
            _store_points(grad_x, dx, start, 0, IN, POINTS, IN_PADDED, count)
    columns = tl.arange(0, IN_PADDED)
    for group in tl.static_range(groups):
        row = group * ROWS + tl.arange(0, ROWS)
        share = tl.program_id(0) * OUT + row
        place = grad_weights + share[:, None] * IN + columns[None, :]
        tl.store(place, dw[group], mask=(row < OUT)[:, None] & (columns < IN)[None, :])
        tl.store(grad_biases + share, db[group], mask=row < OUT)


@triton.jit
def _standardised(x, epsilon, C: tl.constexpr):
    """Rows of mean 0 and variance 1, and what they were multiplied by, [POINTS, 1]."""
    centred = x - tl.sum(x, 1)[:, None] / C
    factor = tl.rsqrt(tl.sum(centred * centred, 1)[:, None] / C + epsilon)
    return centred * factor, factor


@triton.jit
def norm_kernel(x, weight, bias, out, count, epsilon, C: tl.constexpr, POINTS: tl.constexpr):
    """LayerNorm of [N, C]."""
    channels = tl.arange(0, C)
    w, b = tl.load(weight + channels)[None, :], tl.load(bias + channels)[None, :]
    for start in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        standard, _ = _standardised(_load_points(x, start, 0, C, POINTS, C, count), epsilon, C)
        _store_points(out, tl.fma(standard, w, b), start, 0, C, POINTS, C, count)


@triton.jit
def norm_gradient_kernel(
    x, weight, gradient, grad_x, grad_weights, grad_biases, count, epsilon, C: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    """Gradient of x, and each program's share of those of weight and bias, with the programs in front."""
    channels = tl.arange(0, C)
    w = tl.load(weight + channels)[None, :]
    dw, db = tl.zeros((POINTS, C), tl.float32), tl.zeros((POINTS, C), tl.float32)
    for start in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        standard, factor = _standardised(_load_points(x, start, 0, C, POINTS, C, count), epsilon, C)
        dy = _load_points(gradient, start, 0, C, POINTS, C, count)
        dw = tl.fma(dy, standard, dw)
        db += dy
        dy *= w
        mean = tl.sum(dy, 1)[:, None] / C
        slope = tl.sum(dy * standard, 1)[:, None] / C
        _store_points(grad_x, factor * (dy - mean - standard * slope), start, 0, C, POINTS, C, count)
    share = tl.program_id(0) * C + channels
    tl.store(grad_weights + share, tl.sum(dw, 0))
    tl.store(grad_biases + share, tl.sum(db, 0))
