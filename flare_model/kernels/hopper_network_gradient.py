"""Gradients of a residual pointwise network of 64 channels on GPUs of compute capability 9.0, H100s and H200s.

The same as network_gradient.py, whose names these are, in Gluon, where a program says what its warps do and what lies
in shared memory. Eight warps follow a tile of points, 16 each, through the network and back. They leave in shared
memory what the gradients of weights and vectors are made of: the input of each layer, the gradient of its product,
and for a LayerNorm two tiles more. Four other warps sum that up, with the gradients of all matrices in their
registers, while the eight go on.

Sums over points, but for the matrices', are columns of one product: a tile of points times a tile of which one column
holds ones.

A thread has channels in its registers in an order that lets it read and write four neighbours at once (`_channels`).
Shared memory has them in that order, in matrices and vectors too.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from flare_model.kernels.tuning import HOPPER_GRADIENT

CHANNELS = gl.constexpr(64)
POINTS = gl.constexpr(HOPPER_GRADIENT.points)
"""Points of a tile."""

_FOLLOWING = gl.constexpr(8)  # warps that follow the points
_SUMMING = gl.constexpr(HOPPER_GRADIENT.warps)  # warps that sum up: those that a launch counts
_REGISTERS = gl.constexpr(144)  # of a thread that follows points; the others get what is left, 216
_STEP = gl.constexpr(16)  # points that one instruction multiplies
_SUMS = gl.constexpr(16)  # columns, a width that wgmma takes; LAYERS + 2 of them are used
_SCALE = gl.constexpr(0.7978845608028654)  # √(2/π)
_CUBE = gl.constexpr(0.044715)

_TILE = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 64, 16]))
"""Where wgmma has a tile of points in registers."""
_LOADED = gl.constexpr(
    gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [8, 0], [0, 16], [0, 32]],
        lane_bases=[[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0], [64, 0]],
        block_bases=[],
        shape=[128, 64],
    )
)
"""The same registers, with the channels that they hold."""
_MATRIX = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
_COLUMN = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 16, 16]))

_wait_for_others = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # The second until Triton 3.6.


@gluon.constexpr_function
def _batch(event, layers):
    """Which tiles are told of together: two by two, and the LayerNorm's with that of the first layer."""
    return min(event // 2, layers // 2)


@gluon.jit
def _channels(place):
    """The channel at a place of a tile: its bits 5 4 2 1 3 0."""
    return (place & 49) | ((place >> 2) & 2) | ((place << 1) & 12)


@gluon.jit
def _reordered(tile, COUNTS: gl.constexpr):
    """A tile with its columns in the other of both orders; no number moves."""
    parts = tile.reshape([POINTS, 4, COUNTS[0], COUNTS[1], 2])
    return gl.permute(parts, (0, 1, 3, 2, 4)).reshape([POINTS, CHANNELS])


@gluon.jit
def _load(numbers, place, exists):
    """A tile of points, 0 where there is no point."""
    loaded = gl.load(numbers + place, mask=exists, other=0.0, cache_modifier=".cg").to(gl.float32)
    return gl.convert_layout(_reordered(loaded, (4, 2)), _TILE)


@gluon.jit
def _prefetch(numbers, first, last):
    """Ask for a tile that is read later, each line of 128 bytes once: it is in the cache then."""
    LINES: gl.constexpr = POINTS * CHANNELS * numbers.dtype.element_ty.primitive_bitwidth // 1024
    THREADS: gl.constexpr = gl.BlockedLayout([1], [32], [_FOLLOWING], [0])
    places = gl.minimum(first + gl.arange(0, LINES, THREADS) * (POINTS * CHANNELS // LINES), last)
    gl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [numbers + places], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _gelu_with_slope(x):
    """GELU in its tanh form, and its derivative.

    With t the tanh, x/2·(1 + t), and t·(1/2 - p·t) + (1/2 + p) where p is x/2 times the derivative of its argument.
    """
    square = x * x
    tanh = gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x * gl.fma(square, _SCALE * _CUBE, _SCALE)],
        dtype=gl.float32, is_pure=True, pack=1,
    )  # fmt: skip
    half = 0.5 * x
    minus = half * gl.fma(square, -3.0 * _SCALE * _CUBE, -_SCALE)  # Not -p: negating takes an instruction more.
    return gl.fma(half, tanh, half), gl.fma(tanh, gl.fma(minus, tanh, 0.5), 0.5 - minus)


@gluon.jit
def _standardised(x, epsilon):
    """Rows of mean 0 and variance 1, and what they were multiplied by, [POINTS, 1]."""
    centred = x - gl.sum(x, 1)[:, None] / CHANNELS
    factor = gl.rsqrt(gl.sum(centred * centred, 1)[:, None] / CHANNELS + epsilon)
    return centred * factor, factor


@gluon.jit
def _row_of(vectors, row: gl.constexpr):
    """One vector, [1, C]."""
    return vectors.index(row).load(gl.SliceLayout(0, _TILE))[None, :]


@gluon.jit
def _hand_on(tile, slots, written, read, turn, event: gl.constexpr, LAYERS: gl.constexpr, EVENTS: gl.constexpr):
    """Write a tile for the warps that sum up, and tell them where it is the last of a batch.

    Tiles are counted from the last layer's, as events of a turn. Each lies where the slopes lay that were read before
    it, the first two in places of their own. Telling is dear, as all warps wait for one another.
    """
    if event == LAYERS + 1:  # The only place that is used twice in a turn.
        mbarrier.wait(read.index(0), turn & 1)
    slots[event % (LAYERS + 1)].index(0).store(tile)
    if event == EVENTS - 1 or (event % 2 == 1 and event < LAYERS):
        fence_async_shared()
        _wait_for_others()
        mbarrier.arrive(written.index(_batch(event, LAYERS)), count=1)


@gluon.jit
def _layers_forward(h, hidden, slots, w, vectors, gradient, place, exists, LAYERS: gl.constexpr, TYPE: gl.constexpr):
    """Write the input of each layer and the slopes of the GELUs; returns the gradient of the output, read there."""
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, _TILE, 2)
    for layer in gl.static_range(LAYERS - 1):
        bias, _ = gl.broadcast(_row_of(vectors, layer), h)
        rounded = h.to(TYPE)
        operand = gl.convert_layout(rounded, OPERAND)
        product = warpgroup_mma(operand, w.index(layer).permute((1, 0)), bias, is_async=True)
        hidden[layer].index(0).store(rounded)
        if layer == LAYERS - 2:
            # Where there is no point the gradient is 0, and so is what the point adds to dW and db.
            dh = _load(gradient, place, exists)
        value, slope = _gelu_with_slope(warpgroup_mma_wait(0, [product]))
        slots[LAYERS - layer].index(0).store(slope.to(TYPE))
        h += value
    hidden[LAYERS - 1].index(0).store(h.to(TYPE))
    return dh


@gluon.jit
def _layers_backward(dh, slots, w, written, read, turn, EVENTS: gl.constexpr, LAYERS: gl.constexpr, TYPE: gl.constexpr):
    """The gradient of h₀; those of the products of all layers are handed on, the last layer's first."""
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, _TILE, 2)
    for layer in gl.static_range(LAYERS - 1, -1, -1):
        if layer < LAYERS - 1:
            product = (dh * slots[LAYERS - layer].index(0).load(_TILE).to(gl.float32)).to(TYPE)
        else:
            product = dh.to(TYPE)
        back = warpgroup_mma(gl.convert_layout(product, OPERAND), w.index(layer), dh, is_async=True)
        _hand_on(product, slots, written, read, turn, LAYERS - 1 - layer, LAYERS, EVENTS)
        dh = warpgroup_mma_wait(0, [back])
    return dh


@gluon.jit
def _through_norm(
    dh, x, vectors, slots, written, read, turn, epsilon,
    EVENTS: gl.constexpr, LAYERS: gl.constexpr, TYPE: gl.constexpr,
):  # fmt: skip
    """The gradient before the LayerNorm; summands of those of its weight and bias are handed on."""
    standard, factor = _standardised(x, epsilon)
    _hand_on((dh * standard).to(TYPE), slots, written, read, turn, LAYERS, LAYERS, EVENTS)
    _hand_on(dh.to(TYPE), slots, written, read, turn, LAYERS + 1, LAYERS, EVENTS)
    dh *= _row_of(vectors, LAYERS)
    mean = gl.sum(dh, 1)[:, None] / CHANNELS
    slope = gl.sum(dh * standard, 1)[:, None] / CHANNELS
    return factor * (dh - mean - standard * slope)


@gluon.jit
def _follow_points(
    x, gradient, added, grad_x, count, epsilon, w, vectors, hidden, slots, written, read,
    LAYERS: gl.constexpr, NORM: gl.constexpr, ADD: gl.constexpr, TYPE: gl.constexpr,
):  # fmt: skip
    """The gradient of x."""
    EVENTS: gl.constexpr = LAYERS + 2 if NORM else LAYERS
    point = gl.arange(0, POINTS, gl.SliceLayout(1, _LOADED))[:, None]
    offsets = point * CHANNELS + gl.arange(0, CHANNELS, gl.SliceLayout(0, _LOADED))[None, :]
    stride = gl.num_programs(0) * POINTS
    begin = gl.program_id(0) * POINTS
    loaded = _load(x, gl.cast(begin, gl.int64) * CHANNELS + offsets, point < count - begin)
    for turn in range(gl.cdiv(count - begin, stride)):
        start = begin + turn * stride
        first = gl.cast(start, gl.int64) * CHANNELS
        place, exists = first + offsets, point < count - start
        following, last = first + stride * CHANNELS, gl.cast(count, gl.int64) * CHANNELS - 1
        h = loaded
        _prefetch(x, following, last)
        _prefetch(gradient, following, last)
        if ADD:
            _prefetch(added, following, last)
        if NORM:
            standard, _ = _standardised(h, epsilon)
            h = standard * _row_of(vectors, LAYERS) + _row_of(vectors, LAYERS + 1)
        mbarrier.wait(read.index(1), (turn & 1) ^ 1)
        dh = _layers_forward(h, hidden, slots, w, vectors, gradient, place, exists, LAYERS, TYPE)
        if NORM:
            again = _load(x, place, exists)
        dh = _layers_backward(dh, slots, w, written, read, turn, EVENTS, LAYERS, TYPE)
        if NORM:
            dh = _through_norm(dh, again, vectors, slots, written, read, turn, epsilon, EVENTS, LAYERS, TYPE)
        loaded = _load(x, following + offsets, point < count - start - stride)
        found = gl.convert_layout(_reordered(dh, (2, 4)), _LOADED)
        if ADD:
            found += gl.load(added + place, mask=exists, other=0.0, cache_modifier=".cg").to(gl.float32)
        gl.store(grad_x + place, found.to(grad_x.dtype.element_ty), mask=exists)


@gluon.jit
def _add_column(sums, tile, ones):
    """Begin to add a tile in shared memory, over its points, to one column of sums."""
    for part in gl.static_range(POINTS // _STEP):
        sums = warpgroup_mma(tile.slice(part * _STEP, _STEP).permute((1, 0)), ones, sums, is_async=True)
    return sums


@gluon.jit
def _add_layer(dw, sums, tile, inputs, ones):
    """Add what a tile of the gradients of a layer's products adds to those of its matrix and bias."""
    matrix = warpgroup_mma(tile.permute((1, 0)), inputs, dw, is_async=True)
    return warpgroup_mma_wait(0, [matrix, _add_column(sums, tile, ones)])


@gluon.jit
def _sum_up(
    grad_weights, grad_vectors, count, hidden, slots, ones, written, read,
    LAYERS: gl.constexpr, NORM: gl.constexpr,
):  # fmt: skip
    """A program's share of the gradients of weights and vectors, in the same order each time."""
    EVENTS: gl.constexpr = LAYERS + 2 if NORM else LAYERS
    dw = ()
    for _ in gl.static_range(LAYERS):
        dw += (gl.zeros((CHANNELS, CHANNELS), gl.float32, _MATRIX),)
    sums = gl.zeros((CHANNELS, _SUMS), gl.float32, _COLUMN)
    for turn in range(gl.cdiv(count - gl.program_id(0) * POINTS, gl.num_programs(0) * POINTS)):
        new_dw = ()
        # An unknown 0: places in shared memory, computed before the loop, wouldn't fit into the registers.
        zero = gl.inline_asm_elementwise("mov.u32 $0, 0;", "=r,r", [turn], dtype=gl.int32, is_pure=False, pack=1)
        for event in gl.static_range(EVENTS):
            if event == 0 or _batch(event, LAYERS) > _batch(event - 1, LAYERS):
                mbarrier.wait(written.index(_batch(event, LAYERS)), turn & 1)
            tile = slots[event % (LAYERS + 1)].index(zero)
            if event < LAYERS:
                inputs, column = hidden[LAYERS - 1 - event].index(zero), ones.index(LAYERS - 1 - event + zero)
                matrix, sums = _add_layer(dw[LAYERS - 1 - event], sums, tile, inputs, column)
                new_dw = (matrix,) + new_dw
            else:
                sums = warpgroup_mma_wait(0, [_add_column(sums, tile, ones.index(event + zero))])
            if event == EVENTS - 1 or (NORM and event == 1):
                _wait_for_others()
                mbarrier.arrive(read.index(1 if event == EVENTS - 1 else 0), count=1)
        dw = new_dw
    _store_shares(grad_weights, grad_vectors, dw, sums, LAYERS, EVENTS)


@gluon.jit
def _matrices(weights, LAYERS: gl.constexpr, TYPE: gl.constexpr):
    """The matrices in shared memory, [LAYERS, C, C]."""
    SHARED: gl.constexpr = gl.NVMMASharedLayout.get_default_for([CHANNELS, CHANNELS], TYPE)
    w = gl.allocate_shared_memory(TYPE, [LAYERS, CHANNELS, CHANNELS], SHARED)
    row = _channels(gl.arange(0, CHANNELS, gl.SliceLayout(1, _MATRIX)))[:, None]
    place = row * CHANNELS + _channels(gl.arange(0, CHANNELS, gl.SliceLayout(0, _MATRIX)))[None, :]
    for layer in gl.static_range(LAYERS):
        w.index(layer).store(gl.load(weights + layer * CHANNELS * CHANNELS + place).to(TYPE))
    return w


@gluon.jit
def _vectors(vectors, ROWS: gl.constexpr):
    """The vectors in shared memory, [ROWS, C]."""
    THREADS: gl.constexpr = gl.BlockedLayout([1], [32], [_SUMMING], [0])
    shared = gl.allocate_shared_memory(gl.float32, [ROWS, CHANNELS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    for row in gl.static_range(ROWS):
        shared.index(row).store(gl.load(vectors + row * CHANNELS + _channels(gl.arange(0, CHANNELS, THREADS))))
    return shared


@gluon.jit
def _columns(USED: gl.constexpr, TYPE: gl.constexpr):
    """Tiles in shared memory of which one column holds ones, [USED, _STEP, _SUMS]."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 1], [2, 16], [_SUMMING, 1], [1, 0])
    SHARED: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_STEP, _SUMS], TYPE)
    ones = gl.allocate_shared_memory(TYPE, [USED, _STEP, _SUMS], SHARED)
    column = gl.arange(0, _SUMS, gl.SliceLayout(0, LAYOUT))[None, :] + gl.zeros((_STEP, _SUMS), gl.int32, LAYOUT)
    for row in gl.static_range(USED):
        ones.index(row).store(gl.where(column == row, 1.0, 0.0).to(TYPE))
    return ones


@gluon.jit
def _tiles(NUMBER: gl.constexpr, TYPE: gl.constexpr):
    """Places for tiles of points in shared memory, each of its own, so that none waits for another."""
    SHARED: gl.constexpr = gl.NVMMASharedLayout.get_default_for([POINTS, CHANNELS], TYPE)
    tiles = ()
    for _ in gl.static_range(NUMBER):
        tiles += (gl.allocate_shared_memory(TYPE, [1, POINTS, CHANNELS], SHARED),)
    return tiles


@gluon.jit
def _barriers(NUMBER: gl.constexpr):
    """Barriers, [NUMBER, 1]; one thread arrives at each.

    At those called written arrive the warps that follow the points, one batch of tiles each. At those called read
    arrive the ones that sum up: at the first when the tiles of the first batch are read, at the second when all are.
    """
    barriers = gl.allocate_shared_memory(gl.int64, [NUMBER, 1], mbarrier.MBarrierLayout())
    for number in gl.static_range(NUMBER):
        mbarrier.init(barriers.index(number), count=1)
    return barriers


@gluon.jit
def _store_shares(grad_weights, grad_vectors, dw, sums, LAYERS: gl.constexpr, USED: gl.constexpr):
    """A program's share of the gradients of weights and vectors."""
    row = _channels(gl.arange(0, CHANNELS, gl.SliceLayout(1, _MATRIX)))[:, None]
    place = row * CHANNELS + _channels(gl.arange(0, CHANNELS, gl.SliceLayout(0, _MATRIX)))[None, :]
    for layer in gl.static_range(LAYERS):
        share = gl.program_id(0) * LAYERS + layer
        gl.store(grad_weights + share * CHANNELS * CHANNELS + place, dw[layer])
    channel = _channels(gl.arange(0, CHANNELS, gl.SliceLayout(1, _COLUMN)))[:, None]
    column = gl.arange(0, _SUMS, gl.SliceLayout(0, _COLUMN))[None, :]
    target = grad_vectors + (gl.program_id(0) * USED + column) * CHANNELS + channel
    gl.store(target, sums, mask=column + channel * 0 < USED)


@gluon.jit
def hopper_network_gradient_kernel(
    x, weights, vectors, gradient, added, grad_x, grad_weights, grad_vectors, count, epsilon,
    LAYERS: gl.constexpr, NORM: gl.constexpr, ADD: gl.constexpr, TYPE: gl.constexpr,
):  # fmt: skip
    """Gradient of x, [N, C], and each program's share of those of weights and vectors, with the programs in front."""
    w, rows = _matrices(weights, LAYERS, TYPE), _vectors(vectors, LAYERS + 2 if NORM else LAYERS)
    ones = _columns(LAYERS + 2 if NORM else LAYERS, TYPE)
    hidden, slots = _tiles(LAYERS, TYPE), _tiles(LAYERS + 1, TYPE)
    written, read = _barriers(LAYERS // 2 + 1), _barriers(2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_sum_up, (grad_weights, grad_vectors, count, hidden, slots, ones, written, read, LAYERS, NORM)),
            (
                _follow_points,
                (
                    x, gradient, added, grad_x, count, epsilon, w, rows, hidden, slots, written, read,
                    LAYERS, NORM, ADD, TYPE,
                ),
            ),
        ],
        [_FOLLOWING],
        [_REGISTERS],
    )  # fmt: skip


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
