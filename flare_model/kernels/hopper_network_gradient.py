"""Gradients of a residual pointwise network of 64 channels on GPUs of compute capability 9.0, H100s and H200s.

The same as network_gradient.py, whose names these are, in Gluon, where a program says what lies in shared memory: the
input of every layer and the slopes of the GELUs, so that the registers are left to the gradients of the matrices.
Sums over points, but for the matrices', are columns of one product: a tile of points times a tile of which one column
holds ones.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from flare_model.kernels.tuning import HOPPER_GRADIENT

CHANNELS = gl.constexpr(64)
POINTS = gl.constexpr(HOPPER_GRADIENT.points)
"""Points of a tile: 64 for each group of four warps, as wgmma takes them."""
WARPS = gl.constexpr(HOPPER_GRADIENT.warps)

_SUMS = gl.constexpr(16)  # columns, the least width that two groups of warps share; LAYERS + 2 of them are used
_ROWS = gl.constexpr(64)  # of a tile of ones, which is used for both halves of a tile of points
_SCALE = gl.constexpr(0.7978845608028654)  # √(2/π)
_CUBE = gl.constexpr(0.044715)

_wait_for_all = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # The second until Triton 3.6.


@gluon.jit
def _gelu_with_slope(x):
    """GELU in its tanh form, and its derivative."""
    square = x * x
    tanh = gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x * gl.fma(square, _SCALE * _CUBE, _SCALE)],
        dtype=gl.float32, is_pure=True, pack=1,
    )  # fmt: skip
    half = 0.5 * x
    inner = gl.fma(square, 3.0 * _SCALE * _CUBE, _SCALE)
    return gl.fma(half, tanh, half), gl.fma(half * inner, gl.fma(-tanh, tanh, 1.0), gl.fma(0.5, tanh, 0.5))


@gluon.jit
def _row_of(vectors, row: gl.constexpr, LAYOUT: gl.constexpr):
    """One row of vectors, [1, C]."""
    return gl.load(vectors + row * CHANNELS + gl.arange(0, CHANNELS, gl.SliceLayout(0, LAYOUT)))[None, :]


@gluon.jit
def _standardised(x, epsilon):
    """Rows of mean 0 and variance 1, and what they were multiplied by, [POINTS, 1]."""
    centred = x - gl.sum(x, 1)[:, None] / CHANNELS
    factor = gl.rsqrt(gl.sum(centred * centred, 1)[:, None] / CHANNELS + epsilon)
    return centred * factor, factor


@gluon.jit
def _add_column(sums, tile, ones, column: gl.constexpr):
    """Begin to add a tile in shared memory, over its points, to one column of sums."""
    for part in gl.static_range(POINTS // _ROWS):
        rows = tile.slice(part * _ROWS, _ROWS)
        sums = warpgroup_mma(rows.permute((1, 0)), ones.index(column), sums, is_async=True)
    return sums


@gluon.jit
def _layers_forward(h, hidden, slopes, w, vectors, LAYERS: gl.constexpr, LAYOUT: gl.constexpr, TYPE: gl.constexpr):
    """Write the input of each layer and the slopes of the GELUs."""
    hidden.index(0).store(h.to(TYPE))
    fence_async_shared()
    for layer in gl.static_range(LAYERS - 1):
        bias = gl.zeros((POINTS, CHANNELS), gl.float32, LAYOUT) + _row_of(vectors, layer, LAYOUT)
        value, slope = _gelu_with_slope(warpgroup_mma(hidden.index(layer), w.index(layer).permute((1, 0)), bias))
        slopes.index(layer).store(slope.to(TYPE))
        h += value
        hidden.index(layer + 1).store(h.to(TYPE))
        fence_async_shared()


@gluon.jit
def _layers_backward(
    dh, dw, sums, hidden, slopes, w, ones, LAYERS: gl.constexpr, LAYOUT: gl.constexpr, TYPE: gl.constexpr
):
    """The gradient of h₀, of the matrices and of the biases, those two added to what there is.

    The gradient of a layer's product takes the place of its slopes.
    """
    new_dw = ()
    for layer in gl.static_range(LAYERS - 1, -1, -1):
        product = slopes.index(layer)
        if layer < LAYERS - 1:
            product.store((dh * product.load(LAYOUT).to(gl.float32)).to(TYPE))
        else:
            product.store(dh.to(TYPE))
        fence_async_shared()
        matrix = warpgroup_mma(product.permute((1, 0)), hidden.index(layer), dw[layer], is_async=True)
        column = _add_column(sums, product, ones, layer)
        back = warpgroup_mma(product, w.index(layer), dh, is_async=True)
        matrix, sums, dh = warpgroup_mma_wait(0, [matrix, column, back])
        new_dw = (matrix,) + new_dw
    return dh, new_dw, sums


@gluon.jit
def _through_norm(
    dh, x, sums, spare, ones, vectors, epsilon, LAYERS: gl.constexpr, LAYOUT: gl.constexpr, TYPE: gl.constexpr
):
    """The gradient before the LayerNorm, and the sums with the gradients of its weight and bias."""
    standard, factor = _standardised(x, epsilon)
    _wait_for_all()  # No product of another group of warps reads what is written now.
    spare.index(0).store((dh * standard).to(TYPE))
    spare.index(1).store(dh.to(TYPE))
    fence_async_shared()
    column = _add_column(sums, spare.index(0), ones, LAYERS)
    column = _add_column(column, spare.index(1), ones, LAYERS + 1)
    dh *= _row_of(vectors, LAYERS, LAYOUT)
    mean = gl.sum(dh, 1)[:, None] / CHANNELS
    slope = gl.sum(dh * standard, 1)[:, None] / CHANNELS
    dh = factor * (dh - mean - standard * slope)
    return dh, warpgroup_mma_wait(0, [column])


@gluon.jit
def _matrices(weights, LAYERS: gl.constexpr, TYPE: gl.constexpr):
    """The matrices in shared memory, [LAYERS, C, C], and what is added to their gradients, 0 yet."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, CHANNELS // 2, 16])
    SHARED: gl.constexpr = gl.NVMMASharedLayout.get_default_for([CHANNELS, CHANNELS], TYPE)
    w = gl.allocate_shared_memory(TYPE, [LAYERS, CHANNELS, CHANNELS], SHARED)
    row = gl.arange(0, CHANNELS, gl.SliceLayout(1, LAYOUT))[:, None]
    place = row * CHANNELS + gl.arange(0, CHANNELS, gl.SliceLayout(0, LAYOUT))[None, :]
    dw = ()
    for layer in gl.static_range(LAYERS):
        w.index(layer).store(gl.load(weights + layer * CHANNELS * CHANNELS + place).to(TYPE))
        dw += (gl.zeros((CHANNELS, CHANNELS), gl.float32, LAYOUT),)
    return w, dw


@gluon.jit
def _columns(USED: gl.constexpr, TYPE: gl.constexpr):
    """Tiles in shared memory of which one column holds ones, [USED, _ROWS, _SUMS], and the sums over points, 0 yet."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, _SUMS // 2, 16])
    SHARED: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_ROWS, _SUMS], TYPE)
    ones = gl.allocate_shared_memory(TYPE, [USED, _ROWS, _SUMS], SHARED)
    column = gl.arange(0, _SUMS, gl.SliceLayout(0, LAYOUT))[None, :] + gl.zeros((_ROWS, _SUMS), gl.int32, LAYOUT)
    for row in gl.static_range(USED):
        ones.index(row).store(gl.where(column == row, 1.0, 0.0).to(TYPE))
    return ones, gl.zeros((CHANNELS, _SUMS), gl.float32, LAYOUT)


@gluon.jit
def _store_shares(grad_weights, grad_vectors, dw, sums, LAYERS: gl.constexpr, USED: gl.constexpr):
    """A program's share of the gradients of weights and vectors."""
    MATRIX: gl.constexpr = dw[0].type.layout
    COLUMN: gl.constexpr = sums.type.layout
    row = gl.arange(0, CHANNELS, gl.SliceLayout(1, MATRIX))[:, None]
    place = row * CHANNELS + gl.arange(0, CHANNELS, gl.SliceLayout(0, MATRIX))[None, :]
    for layer in gl.static_range(LAYERS):
        share = gl.program_id(0) * LAYERS + layer
        gl.store(grad_weights + share * CHANNELS * CHANNELS + place, dw[layer])
    channel = gl.arange(0, CHANNELS, gl.SliceLayout(1, COLUMN))[:, None]
    column = gl.arange(0, _SUMS, gl.SliceLayout(0, COLUMN))[None, :]
    target = grad_vectors + (gl.program_id(0) * USED + column) * CHANNELS + channel
    gl.store(target, sums, mask=column + channel * 0 < USED)


@gluon.jit
def hopper_network_gradient_kernel(
    x, weights, vectors, gradient, added, grad_x, grad_weights, grad_vectors, count, epsilon,
    LAYERS: gl.constexpr, NORM: gl.constexpr, ADD: gl.constexpr, TYPE: gl.constexpr,
):  # fmt: skip
    """Gradient of x, [N, C], and each program's share of those of weights and vectors, with the programs in front."""
    TILE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, CHANNELS, 16])
    SHARED: gl.constexpr = gl.NVMMASharedLayout.get_default_for([POINTS, CHANNELS], TYPE)
    w, dw = _matrices(weights, LAYERS, TYPE)
    ones, sums = _columns(LAYERS + 2 if NORM else LAYERS, TYPE)
    hidden = gl.allocate_shared_memory(TYPE, [LAYERS, POINTS, CHANNELS], SHARED)
    slopes = gl.allocate_shared_memory(TYPE, [LAYERS, POINTS, CHANNELS], SHARED)
    point = gl.arange(0, POINTS, gl.SliceLayout(1, TILE))[:, None]
    place = point * CHANNELS + gl.arange(0, CHANNELS, gl.SliceLayout(0, TILE))[None, :]
    for start in range(gl.program_id(0) * POINTS, count, gl.num_programs(0) * POINTS):
        first = gl.cast(start, gl.int64) * CHANNELS
        exists = point < count - start
        h = gl.load(x + first + place, mask=exists, other=0.0).to(gl.float32)
        if NORM:
            standard, _ = _standardised(h, epsilon)
            h = standard * _row_of(vectors, LAYERS, TILE) + _row_of(vectors, LAYERS + 1, TILE)
        _wait_for_all()  # No product of another group of warps reads what is written now.
        _layers_forward(h, hidden, slopes, w, vectors, LAYERS, TILE, TYPE)
        # Where there is no point the gradient is 0, and so is what the point adds to dW and db.
        dh = gl.load(gradient + first + place, mask=exists, other=0.0).to(gl.float32)
        dh, dw, sums = _layers_backward(dh, dw, sums, hidden, slopes, w, ones, LAYERS, TILE, TYPE)
        if NORM:
            again = gl.load(x + first + place, mask=exists, other=0.0).to(gl.float32)
            dh, sums = _through_norm(dh, again, sums, slopes, ones, vectors, epsilon, LAYERS, TILE, TYPE)
        if ADD:
            dh += gl.load(added + first + place, mask=exists, other=0.0).to(gl.float32)
        gl.store(grad_x + first + place, dh.to(grad_x.dtype.element_ty), mask=exists)
    _store_shares(grad_weights, grad_vectors, dw, sums, LAYERS, LAYERS + 2 if NORM else LAYERS)


def compile_kernel(layers: int) -> None:
    """Compile the kernel for the current GPU, with a LayerNorm and for the gradient of x + network(x).

    Args:
        layers: Layers of the network, the first and the last among them.
    """
    floats = [torch.float32] * 8
    hopper_network_gradient_kernel.warmup(
        *floats,
        1_000_003,
        1e-5,
        LAYERS=layers,
        NORM=True,
        ADD=True,
        TYPE=gl.bfloat16,
        num_warps=HOPPER_GRADIENT.warps,
        grid=(1,),
    )
