"""A residual pointwise network, [ResMLP][flare_model.pointwise.ResMLP], in one kernel, and its gradient in another.

C channels; layers are counted from 0, the first and the last among them: h₀ = x, h_{i+1} = h_i + gelu(W_i h_i + b_i),
y = h_n + W_n h_n + b_n. The backward pass computes everything again from x.
"""

import triton
import triton.language as tl

from flare_model.kernels.arithmetic import LOG2E

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_SCALE = tl.constexpr(0.7978845608028654)  # √(2/π)
_CUBE = tl.constexpr(0.044715)


@triton.jit
def _tanh(x):
    if INTERPRETED:
        return 1.0 - 2.0 / (1.0 + tl.exp2(tl.minimum(x * (2.0 * LOG2E), 99.0)))
    else:
        # One instruction, off by up to 2⁻¹¹: less than what 16 bits lose.
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _gelu(x):
    half = 0.5 * x
    return tl.fma(half, _tanh(x * tl.fma(x * x, _SCALE * _CUBE, _SCALE)), half)


@triton.jit
def _gelu_with_slope(x):
    """GELU in its tanh form, and its derivative."""
    square = x * x
    tanh = _tanh(x * tl.fma(square, _SCALE * _CUBE, _SCALE))
    half = 0.5 * x
    inner = tl.fma(square, 3.0 * _SCALE * _CUBE, _SCALE)
    return tl.fma(half, tanh, half), tl.fma(half * inner, tl.fma(-tanh, tanh, 1.0), tl.fma(0.5, tanh, 0.5))


@triton.jit
def _rows(start, count, C: tl.constexpr, POINTS: tl.constexpr):
    """Places of a tile of points, and which of them exist."""
    points = start + tl.arange(0, POINTS)
    place = points.to(tl.int64)[:, None] * C + tl.arange(0, C)[None, :]
    return place, (points < count)[:, None]


@triton.jit
def _weights(weights, LAYERS: tl.constexpr, C: tl.constexpr, TYPE: tl.constexpr):
    """Matrices of all layers."""
    place = tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :]
    all_weights = ()
    for layer in tl.static_range(LAYERS):
        all_weights += (tl.load(weights + layer * C * C + place).to(TYPE),)
    return all_weights


@triton.jit
def network_kernel(
    x, weights, biases, out, count,
    LAYERS: tl.constexpr, C: tl.constexpr, POINTS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """[N, C] to [N, C]. weights [LAYERS, C, C] and biases [LAYERS, C] are float32, products are of TYPE."""
    w = _weights(weights, LAYERS, C, TYPE)
    channels = tl.arange(0, C)
    for start in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        place, exists = _rows(start, count, C, POINTS)
        h = tl.load(x + place, mask=exists, other=0.0).to(tl.float32)
        for layer in tl.static_range(LAYERS - 1):
            bias = tl.broadcast_to(tl.load(biases + layer * C + channels)[None, :], (POINTS, C))
            h += _gelu(tl.dot(h.to(TYPE), tl.trans(w[layer]), bias))
        bias = tl.broadcast_to(tl.load(biases + (LAYERS - 1) * C + channels)[None, :], (POINTS, C))
        h += tl.dot(h.to(TYPE), tl.trans(w[LAYERS - 1]), bias)
        tl.store(out + place, h.to(out.dtype.element_ty), mask=exists)


@triton.jit
def network_gradient_kernel(
    x, weights, biases, gradient, grad_x, grad_weights, grad_biases, count,
    LAYERS: tl.constexpr, C: tl.constexpr, POINTS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Gradient of x, [N, C], and each program's share of those of weights and biases, with the programs in front."""
    w = _weights(weights, LAYERS, C, TYPE)
    ones = tl.full((POINTS, 16), 1.0, TYPE)
    dw = ()
    db = ()
    for _ in tl.static_range(LAYERS):
        dw += (tl.zeros((C, C), tl.float32),)
        db += (tl.zeros((C, 16), tl.float32),)
    for start in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        place, exists = _rows(start, count, C, POINTS)
        hidden, slopes = _again(tl.load(x + place, mask=exists, other=0.0), w, biases, LAYERS, C, POINTS, TYPE)
        # Where there is no point the gradient is 0, and so is what the point adds to dW and db.
        dh = tl.load(gradient + place, mask=exists, other=0.0).to(tl.float32)
        narrow = dh.to(TYPE)
        new_dw = (tl.dot(tl.trans(narrow), hidden[LAYERS - 1], dw[LAYERS - 1]),)
        new_db = (tl.dot(tl.trans(narrow), ones, db[LAYERS - 1]),)
        dh = tl.dot(narrow, w[LAYERS - 1], dh)
        for step in tl.static_range(LAYERS - 1):
            narrow = (dh * slopes[LAYERS - 2 - step].to(tl.float32)).to(TYPE)
            new_dw = (tl.dot(tl.trans(narrow), hidden[LAYERS - 2 - step], dw[LAYERS - 2 - step]),) + new_dw
            new_db = (tl.dot(tl.trans(narrow), ones, db[LAYERS - 2 - step]),) + new_db
            dh = tl.dot(narrow, w[LAYERS - 2 - step], dh)
        dw = new_dw
        db = new_db
        tl.store(grad_x + place, dh.to(grad_x.dtype.element_ty), mask=exists)
    channels = tl.arange(0, C)
    for layer in tl.static_range(LAYERS):
        row = tl.program_id(0) * LAYERS + layer
        tl.store(grad_weights + row * C * C + channels[:, None] * C + channels[None, :], dw[layer])
        tl.store(
            grad_biases + row * C + channels, tl.sum(tl.where((tl.arange(0, 16) == 0)[None, :], db[layer], 0.0), 1)
        )


@triton.jit
def _again(
    x, w, biases, LAYERS: tl.constexpr, C: tl.constexpr, POINTS: tl.constexpr, TYPE: tl.constexpr
):  # fmt: skip
    """What enters each layer, and the slope of each GELU, of TYPE."""
    channels = tl.arange(0, C)
    h = x.to(tl.float32)
    hidden = (h.to(TYPE),)
    slopes = ()
    for layer in tl.static_range(LAYERS - 1):
        bias = tl.broadcast_to(tl.load(biases + layer * C + channels)[None, :], (POINTS, C))
        value, slope = _gelu_with_slope(tl.dot(hidden[layer], tl.trans(w[layer]), bias))
        h += value
        hidden += (h.to(TYPE),)
        slopes += (slope.to(TYPE),)
    return hidden, slopes
