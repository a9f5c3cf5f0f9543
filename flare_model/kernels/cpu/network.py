"""Pointwise networks: 16 points at a time, one a lane of a vector, whose numbers stay in a core's caches.

n points, C_in, C and C_out numbers a point before, within and behind a network.
"""

from __future__ import annotations

import functools
from typing import Final

from flare_model.kernels.cpu.compiling import Kernel, compile_kernel
from flare_model.kernels.cpu.expressions import LANES, SUMMANDS, Array, Code, Integer, transpose

_GROUP: Final = 4
"""Outputs that are computed at a time, so that few sums fill the registers."""


@functools.cache
def network_kernel() -> Kernel:
    """The kernel for a network of linear layers: all but the last with GELU and a residual connection, then the last.

    Its arrays: x [n, C_in]; weights of all layers, each [outputs, inputs]; biases of all layers; scales and shifts of a
    LayerNorm before, [C_in]; what is added to the result, [n, C_out]; the result, which it writes, [n, C_out]; and
    `network_scratch` numbers. The LayerNorm's ε is the first number of the scratch, the others are 0.

    Its whole numbers: n, C_in, C, C_out, and the number of layers with GELU; then, as 0 or 1, whether there is a
    LayerNorm, whether the first layer and the last have residual connections, and whether anything is added to the
    result; the first of its tiles of 16 points, and their end.
    """
    return compile_kernel("network", 8, 11, _network)


def network_scratch(width: int) -> int:
    """Numbers that a call needs to work with, where no layer has more than so many inputs or outputs."""
    return LANES + 5 * _region(width)


def _region(width: int) -> int:
    return (width + _GROUP - 1) * LANES


def _network(code: Code) -> None:
    x, weights, biases, scales, shifts, added, result, scratch = code.arrays
    count, inputs, hidden, outputs, layers, normed, first_residual, last_residual, adds, begin, end = code.integers
    widest = code.largest(inputs, hidden, outputs)
    region = (widest + (_GROUP - 1)) * LANES
    zeros, tile, sums = code.integer(LANES), region + LANES, region * 2 + LANES
    # Layers read one of two places and write the other; the first reads place 0.
    places = region * 3 + LANES
    with code.loop(begin, end) as item:
        start = item * LANES
        with code.loop(0, adds + 1) as number:
            array, channels = code.either(number, added, x), code.either(number, outputs, inputs)
            _read_points(code, array, (start, count, channels), scratch.part(tile + number * region))
        with code.only_if(normed):
            _normalise(code, scratch, tile, inputs, (scales, shifts), places)
        with code.only_if(code.integer(1) - normed), code.loop(0, inputs) as channel:
            scratch.store(places + channel * LANES, scratch.load(tile + channel * LANES))
        with code.loop(0, layers) as layer:
            follows = layer.at_most(1)  # 0 for the first layer
            size = (code.either(follows, hidden, inputs), hidden)
            source, target = places + layer % 2 * region, places + (layer + 1) % 2 * region
            weight = follows * (inputs * hidden) + (layer - follows) * hidden * hidden
            residual = code.either(follows, code.integer(1), first_residual)
            layer_arrays = (weights.part(weight), biases.part(layer * hidden))
            addition = code.either(residual, source, zeros)
            _apply_linear(code, layer_arrays, size, scratch, (source, addition, target), activated=True)
        follows = layers.at_most(1)
        width = code.either(follows, hidden, inputs)
        source, target = places + layers % 2 * region, places + (layers + 1) % 2 * region
        weight = follows * (inputs * hidden) + (layers - follows) * hidden * hidden
        addition = code.either(last_residual, source, zeros)
        last_arrays = (weights.part(weight), biases.part(layers * hidden))
        _apply_linear(code, last_arrays, (width, outputs), scratch, (source, addition, target), activated=False)
        with code.only_if(adds), code.loop(0, outputs) as channel:
            there = target + channel * LANES
            scratch.store(there, scratch.load(there) + scratch.load(sums + channel * LANES))
        _write_points(code, result, (start, count, outputs), scratch.part(target))


def _read_points(code: Code, x: Array, sizes: tuple[Integer, Integer, Integer], tile: Array) -> None:
    """16 points [16, C] as [C, 16]; the last again where there are no more. Sizes are the first point, n and C."""
    start, count, channels = sizes
    places = [(start + lane).at_most(count - 1) * channels for lane in range(LANES)]
    whole = channels // _GROUP * _GROUP
    with code.loop(0, whole, _GROUP) as channel:
        columns = transpose([x.load_short(place + channel, _GROUP) for place in places])
        for number, column in enumerate(columns[:_GROUP]):
            tile.store((channel + number) * LANES, column)
    with code.loop(whole, channels) as channel:
        for lane, place in enumerate(places):
            tile.copy(channel * LANES + lane, x, place + channel)


def _write_points(code: Code, result: Array, sizes: tuple[Integer, Integer, Integer], tile: Array) -> None:
    """The reverse: where there are no more points, the last one is written again."""
    start, count, channels = sizes
    places = [(start + lane).at_most(count - 1) * channels for lane in range(LANES)]
    whole = channels // _GROUP * _GROUP
    with code.loop(0, whole, _GROUP) as channel:
        columns = [tile.load((channel + number) * LANES) for number in range(_GROUP)]
        rows = transpose([*columns, *[code.undefined()] * (LANES - _GROUP)])
        for place, row in zip(places, rows, strict=True):
            result.store_short(place + channel, row, _GROUP)
    with code.loop(whole, channels) as channel:
        for lane, place in enumerate(places):
            result.copy(place + channel, tile, channel * LANES + lane)


def _normalise(
    code: Code, scratch: Array, tile: Integer, channels: Integer, affine: tuple[Array, Array], target: Integer
) -> None:
    """LayerNorm of a tile [C, 16]."""
    scales, shifts = affine
    zero, one = code.vector(0.0), code.vector(1.0)
    count, mean, variance = (code.variable(zero) for _ in range(3))
    with code.loop(0, channels) as channel:
        count.set(count.get() + one)
        mean.set(mean.get() + scratch.load(tile + channel * LANES))
    mean.set(mean.get() / count.get())
    with code.loop(0, channels) as channel:
        difference = scratch.load(tile + channel * LANES) - mean.get()
        variance.set(difference.times_plus(difference, variance.get()))
    inverse = one / (variance.get() / count.get() + scratch.spread(0)).square_root()
    with code.loop(0, channels) as channel:
        normal = (scratch.load(tile + channel * LANES) - mean.get()) * inverse
        scratch.store(target + channel * LANES, normal.times_plus(scales.spread(channel), shifts.spread(channel)))


def _apply_linear(
    code: Code,
    layer: tuple[Array, Array],
    sizes: tuple[Integer, Integer],
    scratch: Array,
    places: tuple[Integer, Integer, Integer],
    *,
    activated: bool,
) -> None:
    """A linear layer of a tile, then the GELU, where asked for, and what is added.

    Args:
        code: Takes what is computed.
        layer: Weights [outputs, inputs] and biases [outputs].
        sizes: Inputs and outputs.
        scratch: Holds the tiles.
        places: Where the input begins, [inputs, 16], what is added, and the result, [outputs, 16], the latter two with
            up to three rows more, which mean nothing.
        activated: Whether there is a GELU.
    """
    (weights, biases), (inputs, outputs), (source, addition, target) = layer, sizes, places
    with code.loop(0, outputs, _GROUP) as first:
        rows = [(first + number).at_most(outputs - 1) for number in range(_GROUP)]
        sums = [code.variable(biases.spread(row)) for row in rows]
        row_weights = [weights.part(row * inputs) for row in rows]
        with code.loop(0, inputs, SUMMANDS) as start:
            parts = [code.variable(code.vector(0.0)) for _ in range(_GROUP)]
            with code.loop(start, (start + SUMMANDS).at_most(inputs)) as channel:
                points = scratch.load(source + channel * LANES)
                for part, row_of_weights in zip(parts, row_weights, strict=True):
                    part.set(points.times_plus(row_of_weights.spread(channel), part.get()))
            for total, part in zip(sums, parts, strict=True):
                total.set(total.get() + part.get())
        for number, total in enumerate(sums):
            product = total.get().gelu() if activated else total.get()
            place = (first + number) * LANES
            scratch.store(target + place, product + scratch.load(addition + place))
