"""A residual pointwise network, ResMLP, in one kernel, with the LayerNorm before it.

C channels; layers are counted from 0, the first and the last among them: h₀ = x or LayerNorm(x),
h_{i+1} = h_i + gelu(W_i h_i + b_i), y = h_n + W_n h_n + b_n. Its gradients are in network_gradient.py.

weights are the matrices of all layers, [LAYERS, C, C], vectors their biases, [LAYERS, C]; where there is a LayerNorm,
two rows of vectors more: what it multiplies by, and what it adds. Both are float32; products are of TYPE. Several
networks of one LayerNorm have weights and vectors one after the other; the rows of the LayerNorm are the same in all.
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
def gelu_with_slope(x):
    """GELU in its tanh form, and its derivative."""
    square = x * x
    tanh = _tanh(x * tl.fma(square, _SCALE * _CUBE, _SCALE))
    half = 0.5 * x
    inner = tl.fma(square, 3.0 * _SCALE * _CUBE, _SCALE)
    return tl.fma(half, tanh, half), tl.fma(half * inner, tl.fma(-tanh, tanh, 1.0), tl.fma(0.5, tanh, 0.5))


@triton.jit
def rows(start, count, C: tl.constexpr, POINTS: tl.constexpr):
    """Index of a tile's first number, offsets of its numbers from that, and which points exist."""
    points = tl.arange(0, POINTS)[:, None]
    return tl.cast(start, tl.int64) * C, points * C + tl.arange(0, C)[None, :], points < count - start


@triton.jit
def matrices(weights, LAYERS: tl.constexpr, C: tl.constexpr, TYPE: tl.constexpr):
    """Matrices of all layers."""
    place = tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :]
    all_weights = ()
    for layer in tl.static_range(LAYERS):
        all_weights += (tl.load(weights + layer * C * C + place).to(TYPE),)
    return all_weights


@triton.jit
def row_of(vectors, row: tl.constexpr, C: tl.constexpr):
    """One row of vectors, [1, C]."""
    return tl.load(vectors + row * C + tl.arange(0, C))[None, :]


@triton.jit
def standardised(x, epsilon, C: tl.constexpr):
    """Rows of mean 0 and variance 1, of float32, and what they were multiplied by, [POINTS, 1]."""
    centred = x - tl.sum(x, 1)[:, None] / C
    factor = tl.rsqrt(tl.sum(centred * centred, 1)[:, None] / C + epsilon)
    return centred * factor, factor


@triton.jit
def first_hidden(x, vectors, epsilon, LAYERS: tl.constexpr, C: tl.constexpr, NORM: tl.constexpr):
    """h₀, of float32."""
    h = x.to(tl.float32)
    if NORM:
        standard, _ = standardised(h, epsilon, C)
        h = tl.fma(standard, row_of(vectors, LAYERS, C), row_of(vectors, LAYERS + 1, C))
    return h


@triton.jit
def network_kernel(
    x, weights, vectors, out, count, epsilon,
    NETWORKS: tl.constexpr, LAYERS: tl.constexpr, C: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr,
    POINTS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """[N, C] to [NETWORKS, N, C]; with RESIDUAL x is added to what each network returns."""
    w = matrices(weights, NETWORKS * LAYERS, C, TYPE)
    for start in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        first, place, exists = rows(start, count, C, POINTS)
        normalised = first_hidden(tl.load(x + first + place, mask=exists, other=0.0), vectors, epsilon, LAYERS, C, NORM)
        for network in tl.static_range(NETWORKS):
            h = normalised
            biases = vectors + network * (LAYERS + 2 if NORM else LAYERS) * C
            for layer in tl.static_range(LAYERS - 1):
                bias = tl.broadcast_to(row_of(biases, layer, C), (POINTS, C))
                h += _gelu(tl.dot(h.to(TYPE), tl.trans(w[network * LAYERS + layer]), bias))
            bias = tl.broadcast_to(row_of(biases, LAYERS - 1, C), (POINTS, C))
            h += tl.dot(h.to(TYPE), tl.trans(w[network * LAYERS + LAYERS - 1]), bias)
            if RESIDUAL:  # x is in the cache still, and registers are scarce.
                h += tl.load(x + first + place, mask=exists, other=0.0).to(tl.float32)
            of_network = tl.cast(count, tl.int64) * (network * C)
            tl.store(out + of_network + first + place, h.to(out.dtype.element_ty), mask=exists)
