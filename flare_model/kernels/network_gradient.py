"""Gradients of a residual pointwise network and of the LayerNorm before it; names as in network.py.

Everything is computed again from x. With ADD, what `added` holds, [N, C], is added to the gradient of x: the gradient
of the output where x was added to the network, or what others that use x have found; it may be grad_x itself.

Sums over points, but for the matrices', are columns of one product: a tile of points times a tile that is 1 in one
column and 0 elsewhere.
"""

import triton
import triton.language as tl

from flare_model.kernels.network import (
    INTERPRETED,
    first_hidden,
    gelu_with_slope,
    matrices,
    row_of,
    rows,
    standardised,
)

_SUMS = tl.constexpr(16)  # columns, the least width of a product; LAYERS + 2 of them are used


@triton.jit
def network_gradient_kernel(
    x, weights, vectors, gradient, added, grad_x, grad_weights, grad_vectors, slopes, count, epsilon,
    LAYERS: tl.constexpr, C: tl.constexpr, NORM: tl.constexpr, ADD: tl.constexpr,
    POINTS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Gradient of x, [N, C], and each program's share of those of weights and vectors, with the programs in front.

    The gradients of all matrices lie in registers. With a LayerNorm they leave no room for the slopes of the GELUs:
    those wait in slopes, [programs, LAYERS - 1, POINTS, C] and of TYPE, which stays in the cache.
    """
    w = matrices(weights, LAYERS, C, TYPE)
    dw = ()
    for _ in tl.static_range(LAYERS):
        dw += (tl.zeros((C, C), tl.float32),)
    sums = tl.zeros((C, _SUMS), tl.float32)
    slopes += tl.program_id(0) * (LAYERS - 1) * POINTS * C
    for start in range(tl.program_id(0) * POINTS, count, tl.num_programs(0) * POINTS):
        first, place, exists = rows(start, count, C, POINTS)
        h = first_hidden(tl.load(x + first + place, mask=exists, other=0.0), vectors, epsilon, LAYERS, C, NORM)
        hidden = (h.to(TYPE),)
        gelu_slopes = ()
        for layer in tl.static_range(LAYERS - 1):
            h, slope = _forward_layer(h, w[layer], vectors, layer, C, POINTS, TYPE)
            hidden += (h.to(TYPE),)
            if NORM:
                tl.store(slopes + place + layer * POINTS * C, slope)
            else:
                gelu_slopes += (slope,)
        if NORM:
            tl.debug_barrier()  # The thread that reads a slope need not be the one that wrote it.
        # Where there is no point the gradient is 0, and so is what the point adds to dW and db.
        dh = _rounded(tl.load(gradient + first + place, mask=exists, other=0.0), TYPE).to(tl.float32)
        new_dw = ()
        for layer in tl.static_range(LAYERS - 1, -1, -1):
            grad_output = dh.to(TYPE)
            if layer < LAYERS - 1:
                slope = tl.load(slopes + place + layer * POINTS * C) if NORM else gelu_slopes[layer]
                grad_output = (dh * slope.to(tl.float32)).to(TYPE)
            new_dw = (tl.dot(tl.trans(grad_output), hidden[layer], dw[layer]),) + new_dw
            sums = _add_column(sums, grad_output, layer, POINTS, TYPE)
            dh = tl.dot(grad_output, w[layer], dh)
        dw = new_dw
        if NORM:
            dh, sums = _through_norm(dh, sums, x + first, vectors, place, exists, epsilon, LAYERS, C, POINTS, TYPE)
        if ADD:
            dh += tl.load(added + first + place, mask=exists, other=0.0).to(tl.float32)
        tl.store(grad_x + first + place, dh.to(grad_x.dtype.element_ty), mask=exists)
        if NORM:
            tl.debug_barrier()
    channels = tl.arange(0, C)
    for layer in tl.static_range(LAYERS):
        row = tl.program_id(0) * LAYERS + layer
        tl.store(grad_weights + row * C * C + channels[:, None] * C + channels[None, :], dw[layer])
    _store_sums(grad_vectors, sums, LAYERS, C, NORM)


@triton.jit
def network_backward_kernel(
    x, weights, vectors, gradient, added, grad_x, layer_inputs, grad_outputs, grad_vectors, count, length, epsilon,
    LAYERS: tl.constexpr, C: tl.constexpr, NORM: tl.constexpr, ADD: tl.constexpr,
    POINTS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """As network_gradient_kernel, where the gradients of the matrices don't fit into the registers.

    The input of each layer and the gradient of its matrix product are written to layer_inputs and grad_outputs,
    [LAYERS, length, C] and of TYPE; length is a multiple of POINTS, and grad_outputs is 0 from count on. Before that
    grad_outputs holds the slopes.
    """
    w = matrices(weights, LAYERS, C, TYPE)
    stride = tl.cast(length, tl.int64) * C
    sums = tl.zeros((C, _SUMS), tl.float32)
    for start in range(tl.program_id(0) * POINTS, length, tl.num_programs(0) * POINTS):
        first, place, exists = rows(start, count, C, POINTS)
        h = first_hidden(tl.load(x + first + place, mask=exists, other=0.0), vectors, epsilon, LAYERS, C, NORM)
        tl.store(layer_inputs + first + place, h.to(TYPE))
        for layer in tl.static_range(LAYERS - 1):
            h, slope = _forward_layer(h, w[layer], vectors, layer, C, POINTS, TYPE)
            tl.store(grad_outputs + layer * stride + first + place, slope)
            tl.store(layer_inputs + (layer + 1) * stride + first + place, h.to(TYPE))
        tl.debug_barrier()
        dh = _rounded(tl.load(gradient + first + place, mask=exists, other=0.0), TYPE).to(tl.float32)
        for layer in tl.static_range(LAYERS - 1, -1, -1):
            grad_output = dh.to(TYPE)
            if layer < LAYERS - 1:
                slope = tl.load(grad_outputs + layer * stride + first + place)
                grad_output = (dh * slope.to(tl.float32)).to(TYPE)
            tl.store(grad_outputs + layer * stride + first + place, grad_output)
            sums = _add_column(sums, grad_output, layer, POINTS, TYPE)
            dh = tl.dot(grad_output, w[layer], dh)
        if NORM:
            dh, sums = _through_norm(dh, sums, x + first, vectors, place, exists, epsilon, LAYERS, C, POINTS, TYPE)
        if ADD:
            dh += tl.load(added + first + place, mask=exists, other=0.0).to(tl.float32)
        tl.store(grad_x + first + place, dh.to(grad_x.dtype.element_ty), mask=exists)
    _store_sums(grad_vectors, sums, LAYERS, C, NORM)


@triton.jit
def _rounded(gradient, TYPE: tl.constexpr):
    """The gradient of the output, of TYPE.

    Rounding float32 is written out, so that the compiler can't move it: it would round after it has exchanged numbers
    between threads, which takes twice the shared memory, and too little is left for a second program.
    """
    if INTERPRETED or gradient.dtype != tl.float32:
        return gradient.to(TYPE)
    elif TYPE == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [gradient], dtype=tl.bfloat16, is_pure=False, pack=2
        )
    else:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [gradient], dtype=tl.float16, is_pure=False, pack=2
        )


@triton.jit
def _forward_layer(h, w, vectors, layer: tl.constexpr, C: tl.constexpr, POINTS: tl.constexpr, TYPE: tl.constexpr):
    """The output of a hidden layer, and the slope of its GELU, of TYPE."""
    bias = tl.broadcast_to(row_of(vectors, layer, C), (POINTS, C))
    value, slope = gelu_with_slope(tl.dot(h.to(TYPE), tl.trans(w), bias))
    return h + value, slope.to(TYPE)


@triton.jit
def _add_column(sums, values, column: tl.constexpr, POINTS: tl.constexpr, TYPE: tl.constexpr):
    """Add values, [POINTS, C], over their points to one column of sums, [C, _SUMS]."""
    ones = tl.broadcast_to(tl.where(tl.arange(0, _SUMS) == column, 1.0, 0.0)[None, :], (POINTS, _SUMS))
    return tl.dot(tl.trans(values), ones.to(TYPE), sums)


@triton.jit
def _through_norm(
    dh, sums, x, vectors, place, exists, epsilon,
    LAYERS: tl.constexpr, C: tl.constexpr, POINTS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The gradient before the LayerNorm, and the sums with the gradients of its weight and bias.

    x is read again: it is in the cache still, and registers are scarce.
    """
    standard, factor = standardised(tl.load(x + place, mask=exists, other=0.0).to(tl.float32), epsilon, C)
    sums = _add_column(sums, (dh * standard).to(TYPE), LAYERS, POINTS, TYPE)
    sums = _add_column(sums, dh.to(TYPE), LAYERS + 1, POINTS, TYPE)
    dh *= row_of(vectors, LAYERS, C)
    mean = tl.sum(dh, 1)[:, None] / C
    slope = tl.sum(dh * standard, 1)[:, None] / C
    return factor * (dh - mean - standard * slope), sums


@triton.jit
def _store_sums(grad_vectors, sums, LAYERS: tl.constexpr, C: tl.constexpr, NORM: tl.constexpr):
    """A program's share of the gradients of vectors."""
    used: tl.constexpr = LAYERS + 2 if NORM else LAYERS
    column = tl.arange(0, _SUMS)[None, :]
    place = grad_vectors + (tl.program_id(0) * used + column) * C + tl.arange(0, C)[:, None]
    tl.store(place, sums, mask=column < used)
