"""Loops over small blocks of a stiffness matrix, compiled by Numba: what multigrid spends its time on.

A block couples two nodes: 3 x 3 numbers on the finest level, 6 x 6 on those below it, 3 x 6 between the two. Vectors
are padded to 4 numbers a node on the finest level and to 8 below, and blocks are stored column by column with the same
padding, so that a column times a number is one vector instruction. Compiled code is kept on disk, beside this file or
in the user's cache; where nothing can be written or what is there can't be read, each process compiles anew.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg"
from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pickle import UnpicklingError
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_OPTIONS: Final[dict[str, Any]] = {"fastmath": True, "error_model": "numpy", "boundscheck": False}
_part: Final[Callable[..., Any]] = numba.njit(**_OPTIONS)
"""Compiles what kernels call."""


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is compiled when it is first called."""
    try:
        chosen: Callable[..., Any] = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # there is no folder that can be written to
        chosen = _part(function)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal chosen
        try:
            return chosen(*arguments)
        except (OSError, EOFError, UnpicklingError):  # of Numba's cache: a full disk, a file that was cut short
            chosen = _part(function)
            return chosen(*arguments)

    return call


def _data(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _vector(builder, data, at, lanes):
    return builder.bitcast(builder.gep(data, [at]), ir.VectorType(data.type.pointee, lanes).as_pointer())


def _bytes(number) -> int:
    return 8 if isinstance(number, ir.DoubleType) else 4


def _spread(builder, number, lanes):
    """A vector of one number."""
    kind = ir.VectorType(number.type, lanes)
    nothing, place = ir.Constant(kind, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(nothing, number, place(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(place, lanes), [0] * lanes))


def _multiply_add(builder, total, vector, number, lanes):
    product = builder.fmul(vector, _spread(builder, number, lanes), flags=("fast",))
    return builder.fadd(total, product, flags=("fast",))


def _row_sum(columns_of_block: int, lanes: int, stride: int) -> Callable[..., Any]:
    """An operation of Numba: sums[:] = sum over k of value[k] x[column[first + k]], of a row of blocks.

    Args:
        columns_of_block: How many columns a block has.
        lanes: Numbers of a column, padded.
        stride: Numbers of x for each node, padded.
    """

    @intrinsic
    def row_sum(typing_context, sums, value, start, column, first, count, x):  # noqa: ARG001 (Numba's protocol)
        signature = types.void(sums, value, types.int64, column, types.int64, types.int64, x)

        def generate(context, builder, signature, arguments):
            whole = ir.IntType(64)
            target, values, columns, numbers = (
                _data(context, builder, signature.args[k], arguments[k]) for k in (0, 1, 3, 6)
            )
            kind = ir.VectorType(values.type.pointee, lanes)
            size = _bytes(values.type.pointee)
            # A sum for each column of the blocks: additions needn't wait for one another.
            parts = [cgutils.alloca_once_value(builder, ir.Constant(kind, None)) for _ in range(columns_of_block)]
            with cgutils.for_range(builder, arguments[5]) as loop:
                node = builder.load(builder.gep(columns, [builder.add(arguments[4], loop.index)]))
                node = node if node.type == whole else builder.sext(node, whole)
                beside = builder.mul(node, whole(stride))
                at = builder.add(arguments[2], builder.mul(loop.index, whole(lanes * columns_of_block)))
                for k, part in enumerate(parts):
                    number = builder.load(builder.gep(numbers, [builder.add(beside, whole(k))]))
                    column_of_block = builder.load(_vector(builder, values, at, lanes), align=size)
                    builder.store(_multiply_add(builder, builder.load(part), column_of_block, number, lanes), part)
                    at = builder.add(at, whole(lanes))
            total = builder.load(parts[0])
            for part in parts[1:]:
                total = builder.fadd(total, builder.load(part), flags=("fast",))
            builder.store(total, _vector(builder, target, whole(0), lanes), align=size)
            return context.get_dummy_value()

        return signature, generate

    return row_sum


_row_of_threes, _row_of_sixes, _row_between = _row_sum(3, 4, 4), _row_sum(6, 8, 8), _row_sum(6, 4, 8)


@intrinsic
def _add_three(typing_context, target, to, source, at, x0, x1, x2):  # noqa: ARG001 (Numba's protocol)
    """target[to : to + 8] += x0 source[at : at + 8] + x1 source[at + 8 : at + 16] + x2 source[at + 16 : at + 24]."""
    number = source.dtype
    signature = types.void(target, types.int64, source, types.int64, number, number, number)

    def generate(context, builder, signature, arguments):
        into, values = (_data(context, builder, signature.args[k], arguments[k]) for k in (0, 2))
        size = _bytes(values.type.pointee)
        place = _vector(builder, into, arguments[1], 8)
        total, at = builder.load(place, align=size), arguments[3]
        for factor in arguments[4:]:
            vector = builder.load(_vector(builder, values, at, 8), align=size)
            total = _multiply_add(builder, total, vector, factor, 8)
            at = builder.add(at, ir.IntType(64)(8))
        builder.store(total, place, align=size)
        return context.get_dummy_value()

    return signature, generate


@kernel
def sweep_threes(start, row, column, value, kind, inverse, x, b, backward):
    """A Gauss-Seidel sweep over a matrix of 3 x 3 blocks, from the first number to the last or backward.

    Args:
        start: Where the values of each row begin, [n].
        row: Where the neighbours of each row begin in `column`, [n + 1].
        column: Neighbours, [blocks].
        value: Values of the distinct rows: of each block its columns, each padded to 4.
        kind: Which distinct row each row equals, [n].
        inverse: Inverse of the lower triangle of each distinct row's own block (upper for `backward`), [k, 3, 3].
        x: Numbers to improve, [4 n].
        b: Right-hand side, [4 n].
        backward: Whether to go backward.
    """
    n = len(row) - 1
    sums = np.zeros(4, x.dtype)
    for turn in range(n):
        i = n - 1 - turn if backward else turn
        _row_of_threes(sums, value, start[i], column, row[i], row[i + 1] - row[i], x)
        r0, r1, r2 = b[4 * i] - sums[0], b[4 * i + 1] - sums[1], b[4 * i + 2] - sums[2]
        own = inverse[kind[i]]
        x[4 * i] += own[0, 0] * r0 + own[0, 1] * r1 + own[0, 2] * r2
        x[4 * i + 1] += own[1, 0] * r0 + own[1, 1] * r1 + own[1, 2] * r2
        x[4 * i + 2] += own[2, 0] * r0 + own[2, 1] * r1 + own[2, 2] * r2


@kernel
def sweep_sixes(start, row, column, value, kind, inverse, x, b, backward):
    """The same over a matrix of 6 x 6 blocks; columns of blocks and vectors padded to 8."""
    n = len(row) - 1
    sums, rest = np.zeros(8, x.dtype), np.zeros(8, x.dtype)
    for turn in range(n):
        i = n - 1 - turn if backward else turn
        _row_of_sixes(sums, value, start[i], column, row[i], row[i + 1] - row[i], x)
        for t in range(8):
            rest[t] = b[8 * i + t] - sums[t]
        own = inverse[kind[i]]
        for t in range(6):
            for s in range(6):
                x[8 * i + t] += own[t, s] * rest[s]


@kernel
def product_threes(start, row, column, value, x, found):
    """Set found to A x; arguments as for `sweep_threes`."""
    sums = np.zeros(4, x.dtype)
    for i in range(len(row) - 1):
        _row_of_threes(sums, value, start[i], column, row[i], row[i + 1] - row[i], x)
        for t in range(4):
            found[4 * i + t] = sums[t]


@kernel
def product_sixes(start, row, column, value, x, found):
    """Set found to A x; arguments as for `sweep_sixes`."""
    sums = np.zeros(8, x.dtype)
    for i in range(len(row) - 1):
        _row_of_sixes(sums, value, start[i], column, row[i], row[i + 1] - row[i], x)
        for t in range(8):
            found[8 * i + t] = sums[t]


@kernel
def restrict(row, column, value, size, fine, coarse):
    """Set coarse to P' fine.

    Args:
        row: Where the blocks of each node begin, [n + 1].
        column: Aggregates, [p].
        value: Blocks of P, each of 3 or 6 rows of 8.
        size: Rows of a block.
        fine: Numbers of the nodes, [4 n] or [8 n].
        coarse: Numbers of the aggregates, [8 m].
    """
    coarse[:] = 0
    for i in range(len(row) - 1):
        for first in range(0, size, 3):
            at = (4 if size == 3 else 8) * i + first
            x0, x1, x2 = fine[at], fine[at + 1], fine[at + 2]
            for k in range(row[i], row[i + 1]):
                _add_three(coarse, 8 * column[k], value, 8 * (size * k + first), x0, x1, x2)


@kernel
def prolong_threes(row, column, value, coarse, fine):
    """Add P coarse to fine; arguments as for `restrict`, but for the blocks: each of six columns of 4."""
    sums = np.zeros(4, fine.dtype)
    for i in range(len(row) - 1):
        _row_between(sums, value, 24 * row[i], column, row[i], row[i + 1] - row[i], coarse)
        for t in range(4):
            fine[4 * i + t] += sums[t]


@kernel
def prolong_sixes(row, column, value, coarse, fine):
    """Add P coarse to fine; arguments as for `restrict`, but for the blocks: each of six columns of 8."""
    sums = np.zeros(8, fine.dtype)
    for i in range(len(row) - 1):
        _row_of_sixes(sums, value, 48 * row[i], column, row[i], row[i + 1] - row[i], coarse)
        for t in range(8):
            fine[8 * i + t] += sums[t]


@kernel
def count_aggregates(row, column, group):
    """How many aggregates each node's neighbours, itself included, belong to, [n].

    Args:
        row: Where the neighbours of each row begin in `column`, [n + 1].
        column: Neighbours, [blocks].
        group: Aggregate of each node, [n].
    """
    seen = np.full(group.max() + 1, -1, np.int64)
    counts = np.zeros(len(group), np.int64)
    for i in range(len(group)):
        for k in range(row[i], row[i + 1]):
            g = group[column[k]]
            if seen[g] != i:
                seen[g] = i
                counts[i] += 1
    return counts


@_part
def _add_block(target, to, source, at, block):
    """Add a block, of 3 x 3 or 6 x 6, times rows of 8 of `source` to as many of `target`."""
    size = len(block)
    for r in range(size):
        for c in range(0, size, 3):
            _add_three(target, to + 8 * r, source, at + 8 * c, block[r, c], block[r, c + 1], block[r, c + 2])


@kernel
def smooth_prolongator(row, column, begin, block, tentative, weight, group, starts, columns, values):
    """P = T - w A T of a tentative prolongator T that has one block a node.

    Args:
        row: Where the neighbours of each row begin in `column`, [n + 1].
        column: Neighbours, [blocks].
        begin: Where the blocks of each row begin in `block`, [n].
        block: Blocks of the distinct rows, [k, s, s]; s is 3 or 6.
        tentative: Blocks of T, each of s rows of 8.
        weight: w, [n, s].
        group: Aggregate of each node, [n].
        starts: Where the blocks of each node begin in P, [n + 1].
        columns: Aggregates of the blocks, [p]: written.
        values: Blocks of P, each of s rows of 8: written.
    """
    size = block.shape[1]
    wide = 8 * size
    place = np.full(group.max() + 1, -1, np.int64)
    for i in range(len(group)):
        used = starts[i]
        for k in range(row[i], row[i + 1]):
            j = column[k]
            g = group[j]
            at = place[g]
            if at < starts[i]:
                at = place[g] = used
                columns[at] = g
                values[wide * at : wide * at + wide] = 0
                used += 1
            _add_block(values, wide * at, tentative, wide * j, block[begin[i] + k - row[i]])
        for at in range(starts[i], used):
            for t in range(wide):
                values[wide * at + t] *= -weight[i, t // 8]
        at = place[group[i]]
        for t in range(wide):
            values[wide * at + t] += tentative[wide * i + t]


@_part
def _place_of(key, table, keys):
    """Where the table has a key, or the first free place."""
    mask = len(table) - 1
    h = ((key * 0x9E3779B1) >> 7) & mask
    while table[h] >= 0 and keys[table[h]] != key:
        h = (h + 1) & mask
    return h


@_part
def _larger(table, keys, found):
    """The table with twice the room, and its keys and blocks."""
    count = len(keys)
    more_keys, more_found = np.empty(2 * count, keys.dtype), np.zeros(2 * len(found), found.dtype)
    more_keys[:count], more_found[: len(found)] = keys, found
    more = np.full(2 * len(table), -1, table.dtype)
    for k in range(count):
        more[_place_of(keys[k], more, more_keys)] = k
    return more, more_keys, more_found


@kernel
def triple_product(row, column, begin, block, starts, columns, values, room):
    """P' A P, block by block as they are met.

    Args:
        row: Where the neighbours of each row of A begin in `column`, [n + 1].
        column: Neighbours, [blocks].
        begin: Where the blocks of each row begin in `block`, [n].
        block: Blocks of the distinct rows, [k, s, s]; s is 3 or 6.
        starts: Where the blocks of each node begin in P, [n + 1].
        columns: Aggregates of the blocks, [p].
        values: Blocks of P, each of s rows of 8.
        room: How many blocks to make room for at first; a power of two.

    Returns:
        Of each product block its row times the number of aggregates, plus its column, [b]; and the blocks, each of six
        rows of 8.
    """
    size = block.shape[1]
    wide, m, total = 8 * size, columns.max() + 1, 0
    table, keys, found = np.full(4 * room, -1, np.int64), np.empty(room, np.int64), np.zeros(48 * room, values.dtype)
    slot, touched = np.full(m, -1, np.int64), np.empty(m, np.int64)
    pushed = np.zeros(wide * m, values.dtype)
    for i in range(len(row) - 1):
        used = 0
        for k in range(row[i], row[i + 1]):
            own = block[begin[i] + k - row[i]]
            for e in range(starts[column[k]], starts[column[k] + 1]):
                at = slot[columns[e]]
                if at < 0:
                    at = slot[columns[e]] = used
                    touched[at] = columns[e]
                    pushed[wide * at : wide * at + wide] = 0
                    used += 1
                _add_block(pushed, wide * at, values, wide * e, own)
        for e in range(starts[i], starts[i + 1]):
            for at in range(used):
                key = columns[e] * m + touched[at]
                h = _place_of(key, table, keys)
                if table[h] < 0:
                    if total == len(keys):
                        table, keys, found = _larger(table, keys, found)
                        h = _place_of(key, table, keys)
                    table[h], keys[total] = total, key
                    total += 1
                for c in range(0, size, 3):
                    v = wide * e + 8 * c
                    for r in range(6):
                        _add_three(
                            found,
                            48 * table[h] + 8 * r,
                            pushed,
                            wide * at + 8 * c,
                            values[v + r],
                            values[v + 8 + r],
                            values[v + 16 + r],
                        )
        for at in range(used):
            slot[touched[at]] = -1
    return keys[:total], found[: 48 * total]


@kernel
def add_cells(block_of, stiffness, blocks, there):
    """Add the stiffness of cells to a matrix of 3 x 3 blocks.

    Args:
        block_of: Block of each pair of corners of each cell, [e, 64].
        stiffness: Of a cell, or of each: 3 x 3 for each pair of corners, [1 or e, 64, 3, 3].
        blocks: The matrix's blocks, [b, 3, 3]: added to.
        there: Whether a cell has added to a block, [b]: written.
    """
    for c in range(len(block_of)):
        own = stiffness[c if len(stiffness) > 1 else 0]
        for pair in range(64):
            k = block_of[c, pair]
            there[k] = True
            for i in range(3):
                for j in range(3):
                    blocks[k, i, j] += own[pair, i, j]
