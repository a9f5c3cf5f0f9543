"""Attention of latents to points, and of points to latents.

Both are the same attention of 16 rows, one a lane of a vector, to a sequence: first latents are the rows and points the
sequence, then the other way round. So no sum and no maximum goes across the lanes of a vector.

N points of all meshes, H heads, D channels a head (a multiple of 4), M latents, T tiles of 16 latents, the last of
which may be filled up.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final, NamedTuple

from flare_model.kernels.cpu.compiling import Kernel, compile_kernel
from flare_model.kernels.cpu.expressions import LANES, SUMMANDS, Array, Code, Integer, Vector, transpose

BLOCK: Final = 128
"""Points that latents attend to at a time: their keys, values and weights stay in a core's first cache."""

_LOWEST: Final = -3e38
_GROUP: Final = 4
"""Sums that are added up at a time, so that few of them fill the registers."""


class _Sequence(NamedTuple):
    """What rows attend to.

    Attributes:
        keys: [length, D], and up to three more like the last, to a multiple of 4.
        values: [length, D].
        length: How many there are.
        depth: D.
        weights: Takes the weights, [length, 16], and up to three rows more.
    """

    keys: Array
    values: Array
    length: Integer
    depth: int
    weights: Array


def _attend(code: Code, rows: Array, sequence: _Sequence, lowest: Vector, sums: Array) -> tuple[Vector, Vector]:
    """Attention of 16 rows to a sequence.

    Args:
        code: Takes what is computed.
        rows: [D, 16].
        sequence: What they attend to.
        lowest: What the maxima are at least.
        sums: Takes the sums of weights times values, [D, 16].

    Returns:
        The largest scores, and sums of the weights, which are e to the power of a score less the largest.
    """
    keys, values, length, depth, weights = sequence
    largest, total = code.variable(lowest), code.variable(code.vector(0.0))
    with code.loop(0, length, _GROUP) as first:
        scores = [code.variable(code.vector(0.0)) for _ in range(_GROUP)]
        with code.loop(0, depth) as channel:
            row = rows.load(channel * LANES)
            for offset, score in enumerate(scores):
                score.set(row.times_plus(keys.spread((first + offset) * depth + channel), score.get()))
        for offset, score in enumerate(scores):
            weights.store((first + offset) * LANES, score.get())
            largest.set(largest.get().at_least(score.get()))
    for place in range(0, depth * LANES, LANES):
        sums.store(place, code.vector(0.0))
    with code.loop(0, length, SUMMANDS) as first:
        end = (first + SUMMANDS).at_most(length)
        part_of_total = code.variable(code.vector(0.0))
        with code.loop(first, end) as number:
            weight = (weights.load(number * LANES) - largest.get()).exponential()
            weights.store(number * LANES, weight)
            part_of_total.set(part_of_total.get() + weight)
        total.set(total.get() + part_of_total.get())
        for group in range(0, depth, _GROUP):
            parts = [code.variable(code.vector(0.0)) for _ in range(_GROUP)]
            with code.loop(first, end) as number:
                weight = weights.load(number * LANES)
                for offset, part in enumerate(parts):
                    part.set(weight.times_plus(values.spread(number * depth + (group + offset)), part.get()))
            for offset, part in enumerate(parts):
                place = (group + offset) * LANES
                sums.store(place, sums.load(place) + part.get())
    return largest.get(), total.get()


@functools.cache
def encoder(depth: int) -> Kernel:
    """The kernel for what latents see of a slice of points, for heads of D channels.

    Its arrays: rows of queries [H, T, D, 16]; keys [N, H, D]; values [N, H, D]; parts, which take the largest scores,
    the sums of weights, and sums of weights times values, [H, T, 2 + D, 16]; and `encoder_scratch` numbers. Its whole
    numbers: H, T, the head, the slice's first point and its end.
    """
    return compile_kernel("encode", 5, 5, functools.partial(_encode, depth))


def encoder_scratch(depth: int) -> int:
    """Numbers that a call of the encoder needs to work with."""
    return (2 * BLOCK + LANES) * depth + BLOCK * LANES


def _encode(depth: int, code: Code) -> None:
    rows, keys, values, parts, scratch = code.arrays
    heads, tiles, head, start, end = code.integers
    block_keys, block_values = scratch, scratch.part(BLOCK * depth)
    sums, weights = scratch.part(2 * BLOCK * depth), scratch.part((2 * BLOCK + LANES) * depth)
    size = (2 + depth) * LANES
    parts, rows = parts.part(head * tiles * size), rows.part(head * tiles * (depth * LANES))
    with code.loop(0, tiles) as tile:
        parts.store(tile * size, code.vector(_LOWEST))
        for row in range(1, 2 + depth):
            parts.store(tile * size + row * LANES, code.vector(0.0))
    with code.loop(start, end, BLOCK) as first:
        length = (end - first).at_most(BLOCK)
        with code.loop(0, length.rounded_up(_GROUP)) as number:
            place = ((first + number.at_most(length - 1)) * heads + head) * depth
            for channel, count in _pieces(depth):
                for copied, original in ((block_keys, keys), (block_values, values)):
                    copied.store_short(number * depth + channel, original.load_short(place + channel, count), count)
        sequence = _Sequence(block_keys, block_values, length, depth, weights)
        with code.loop(0, tiles) as tile:
            part = parts.part(tile * size)
            before = part.load(0)
            largest, total = _attend(code, rows.part(tile * (depth * LANES)), sequence, before, sums)
            decay = (before - largest).exponential()
            part.store(0, largest)
            part.store(LANES, part.load(LANES).times_plus(decay, total))
            for channel in range(depth):
                row = (2 + channel) * LANES
                part.store(row, part.load(row).times_plus(decay, sums.load(channel * LANES)))


@functools.cache
def decoder(depth: int) -> Kernel:
    """The kernel for what a slice of points sees of the latents of its mesh, for heads of D channels.

    Its arrays: queries of the latents [H, M, D], and up to three more a head like the last, to a multiple of 4; latents
    [H, M, D]; keys [N, H, D]; mixed values, which it writes, [N, H, D]; and `decoder_scratch` numbers. Its whole
    numbers: H, M, the head, the slice's first point and its end.
    """
    return compile_kernel("decode", 5, 5, functools.partial(_decode, depth))


def decoder_scratch(depth: int, num_latents: int) -> int:
    """Numbers that a call of the decoder needs to work with."""
    return 2 * depth * LANES + (num_latents + _GROUP) * LANES


def _decode(depth: int, code: Code) -> None:
    queries, latents, keys, mixed, scratch = code.arrays
    heads, num_latents, head, start, end = code.integers
    rows, sums, weights = scratch, scratch.part(depth * LANES), scratch.part(2 * depth * LANES)
    queries = queries.part(head * num_latents.rounded_up(_GROUP) * depth)
    latents = latents.part(head * num_latents * depth)
    sequence = _Sequence(queries, latents, num_latents, depth, weights)
    with code.loop(start, end, LANES) as first:
        places = [((first + lane).at_most(end - 1) * heads + head) * depth for lane in range(LANES)]
        for channel, count in _pieces(depth):
            columns = transpose([keys.load_short(place + channel, count) for place in places])
            for number in range(count):
                rows.store((channel + number) * LANES, columns[number])
        _, total = _attend(code, rows, sequence, code.vector(_LOWEST), sums)
        inverse = code.vector(1.0) / total
        for channel, count in _pieces(depth):
            means = [sums.load((channel + number) * LANES) * inverse for number in range(count)]
            points = transpose([*means, *[code.undefined()] * (LANES - count)])
            # Where there are no more points, the last one is written again.
            for place, point in zip(places, points, strict=True):
                mixed.store_short(place + channel, point, count)


def _pieces(depth: int) -> Iterator[tuple[int, int]]:
    """Channels by at most 16: the first and how many."""
    for channel in range(0, depth, LANES):
        yield channel, min(LANES, depth - channel)
