"""Expressions of numbers and vectors of 16 float32 numbers, of which a kernel's code for LLVM is made.

Python runs a kernel's description once and writes down what is computed; loops of Python are unrolled in it, those of
`Code.loop` are loops. LLVM divides a vector among as many registers as the processor's instructions need: one with
AVX-512, two with AVX2, four with SSE or NEON. Sums are added in the order that is written, and no flag lets LLVM assume
that there is no NaN or no infinity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from llvmlite import ir

LANES: Final = 16
"""Numbers of a vector."""

SUMMANDS: Final = 64
"""Numbers that are added up before their sum is added to others: rounding errors grow with the length of a chain."""

_FLOAT: Final = ir.FloatType()
_FLOATS: Final = ir.VectorType(_FLOAT, LANES)
_BITS: Final = ir.IntType(32)
_ALL_BITS: Final = ir.VectorType(_BITS, LANES)
_INTEGER: Final = ir.IntType(64)

_MIN_EXPONENT: Final = -87.33
"""e to this is just above the least normal number."""
_MAX_EXPONENT: Final = 88.7229
"""e to this is ∞ in float32."""

_SHIFT: Final = 1.5 * 2**23 + 127
"""Added to a number of at most 2²², it leaves the nearest whole number in the lowest bits, with the exponent's bias."""

_LN_2: Final = (0.693359375, math.log(2.0) - 0.693359375)
"""ln 2 in two parts: a whole number times the first is exact."""

_COEFFICIENTS: Final = (
    1.0, 1.0, 0.49999993447786056, 0.16666520631696785, 0.041668388047449004, 0.008368716880871777,
    0.0013814598540501481,
)  # fmt: skip
"""Of the polynomial for e to the power of r, |r| ≤ ln 2 / 2, whose largest relative error is least: 3e-9."""

_LINEAR: Final = -2.0 * math.sqrt(2.0 / math.pi)
_CUBIC: Final = 0.044715 * _LINEAR
"""The tanh form of GELU is x / (1 + exp(_LINEAR · x + _CUBIC · x³))."""


@dataclass(frozen=True)
class Integer:
    """A whole number that isn't negative, of 64 bits."""

    builder: ir.IRBuilder
    value: ir.Value

    def _of(self, other: Integer | int) -> ir.Value:
        return other.value if isinstance(other, Integer) else ir.Constant(_INTEGER, other)

    def __add__(self, other: Integer | int) -> Integer:
        return Integer(self.builder, self.builder.add(self.value, self._of(other), flags=("nsw",)))

    def __sub__(self, other: Integer | int) -> Integer:
        return Integer(self.builder, self.builder.sub(self.value, self._of(other), flags=("nsw",)))

    def __mul__(self, other: Integer | int) -> Integer:
        return Integer(self.builder, self.builder.mul(self.value, self._of(other), flags=("nsw",)))

    def __floordiv__(self, other: Integer | int) -> Integer:
        return Integer(self.builder, self.builder.udiv(self.value, self._of(other)))

    def __mod__(self, other: Integer | int) -> Integer:
        return Integer(self.builder, self.builder.urem(self.value, self._of(other)))

    def at_most(self, other: Integer | int) -> Integer:
        """The smaller of both."""
        limit = self._of(other)
        smaller = self.builder.icmp_signed("<", self.value, limit)
        return Integer(self.builder, self.builder.select(smaller, self.value, limit))

    def rounded_up(self, step: int) -> Integer:
        """The next multiple."""
        return (self + (step - 1)) // step * step


@dataclass(frozen=True)
class Vector:
    """16 numbers."""

    builder: ir.IRBuilder
    value: ir.Value

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fadd(self.value, other.value))

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fsub(self.value, other.value))

    def __mul__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fmul(self.value, other.value))

    def __truediv__(self, other: Vector) -> Vector:
        return Vector(self.builder, self.builder.fdiv(self.value, other.value))

    def times_plus(self, factor: Vector, summand: Vector) -> Vector:
        """Self · factor + summand, rounded once where the processor has an instruction for it."""
        return self._call("fmuladd", factor, summand)

    def square_root(self) -> Vector:
        """√ of each."""
        return self._call("sqrt")

    def at_least(self, other: Vector) -> Vector:
        """The larger of both; self where either is NaN."""
        return self._select("<", other)

    def at_most(self, other: Vector) -> Vector:
        """The smaller of both; self where either is NaN."""
        return self._select(">", other)

    def exponential(self) -> Vector:
        """E to the power of numbers of at most 88.7229, of which it is ∞; to 2e-7 of itself, but at least 1.2e-38.

        With n the whole number next to x / ln 2, it is 2ⁿ times a polynomial for e to the power of x - n · ln 2.
        """
        x = self.at_least(self._constant(_MIN_EXPONENT))
        shift = self._constant(_SHIFT)
        shifted = x.times_plus(self._constant(math.log2(math.e)), shift)
        whole = shifted - shift
        for part in _LN_2:
            x = whole.times_plus(self._constant(-part), x)
        result = self._constant(_COEFFICIENTS[-1])
        for coefficient in reversed(_COEFFICIENTS[:-1]):
            result = result.times_plus(x, self._constant(coefficient))
        bits = self.builder.bitcast(shifted.value, _ALL_BITS)
        exponents = self.builder.shl(bits, ir.Constant(_ALL_BITS, [23] * LANES))
        return result * Vector(self.builder, self.builder.bitcast(exponents, _FLOATS))

    def gelu(self) -> Vector:
        """The tanh form of GELU."""
        slope = (self * self).times_plus(self._constant(_CUBIC), self._constant(_LINEAR))
        power = (self * slope).at_most(self._constant(_MAX_EXPONENT)).exponential()
        return self / (self._constant(1.0) + power)

    def _constant(self, number: float) -> Vector:
        return Vector(self.builder, ir.Constant(_FLOATS, [number] * LANES))

    def _select(self, beyond: str, other: Vector) -> Vector:
        """The other where self compares so with it."""
        taken = self.builder.fcmp_ordered(beyond, self.value, other.value)
        return Vector(self.builder, self.builder.select(taken, other.value, self.value))

    def _call(self, name: str, *arguments: Vector) -> Vector:
        """Call a function of LLVM's own from vectors to a vector."""
        name, module = f"llvm.{name}.v{LANES}f32", self.builder.module
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * (1 + len(arguments)))
        function = module.globals.get(name) or ir.Function(module, kind, name)
        values = [self.value, *(argument.value for argument in arguments)]
        return Vector(self.builder, self.builder.call(function, values))


@dataclass(frozen=True)
class Array:
    """Numbers in memory, one after the other; nothing checks where they end."""

    builder: ir.IRBuilder
    value: ir.Value

    def part(self, start: Integer | int) -> Array:
        """The numbers from an index on."""
        return Array(self.builder, self._at(start))

    def load(self, index: Integer | int) -> Vector:
        """16 numbers from an index on."""
        return Vector(self.builder, self.builder.load(self._vector_at(index), align=4))

    def store(self, index: Integer | int, vector: Vector) -> None:
        """Write 16 numbers from an index on."""
        self.builder.store(vector.value, self._vector_at(index), align=4)

    def spread(self, index: Integer | int) -> Vector:
        """One number, 16 times."""
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        number = self.builder.load(self._at(index), align=4)
        one = self.builder.insert_element(undefined, number, ir.Constant(_BITS, 0))
        return Vector(self.builder, self.builder.shuffle_vector(one, undefined, ir.Constant(_ALL_BITS, [0] * LANES)))

    def copy(self, index: Integer | int, source: Array, source_index: Integer | int) -> None:
        """Write one number that lies elsewhere."""
        self.builder.store(self.builder.load(source._at(source_index), align=4), self._at(index), align=4)

    def load_short(self, index: Integer | int, length: int) -> Vector:
        """So many numbers, at most 16, from an index on; the others mean nothing."""
        kind = ir.VectorType(_FLOAT, length)
        short = self.builder.load(self.builder.bitcast(self._at(index), kind.as_pointer()), align=4)
        places = [min(lane, length) for lane in range(LANES)]
        mask = ir.Constant(_ALL_BITS, places)
        return Vector(self.builder, self.builder.shuffle_vector(short, ir.Constant(kind, ir.Undefined), mask))

    def store_short(self, index: Integer | int, vector: Vector, length: int) -> None:
        """Write the first numbers of a vector, at most 16, from an index on."""
        kind = ir.VectorType(_FLOAT, length)
        mask = ir.Constant(ir.VectorType(_BITS, length), list(range(length)))
        short = self.builder.shuffle_vector(vector.value, ir.Constant(_FLOATS, ir.Undefined), mask)
        self.builder.store(short, self.builder.bitcast(self._at(index), kind.as_pointer()), align=4)

    def _at(self, index: Integer | int) -> ir.Value:
        value = index.value if isinstance(index, Integer) else ir.Constant(_INTEGER, index)
        return self.builder.gep(self.value, [value], inbounds=True)

    def _vector_at(self, index: Integer | int) -> ir.Value:
        return self.builder.bitcast(self._at(index), _FLOATS.as_pointer())


def transpose(rows: Sequence[Vector]) -> list[Vector]:
    """The columns of 16 rows: four times, each row is dealt alternately with the one half of all further on."""
    half = LANES // 2
    low = ir.Constant(_ALL_BITS, [lane // 2 + lane % 2 * LANES for lane in range(LANES)])
    high = ir.Constant(_ALL_BITS, [half + lane // 2 + lane % 2 * LANES for lane in range(LANES)])
    found = list(rows)
    for _ in range(LANES.bit_length() - 1):
        found = [
            Vector(one.builder, one.builder.shuffle_vector(one.value, other.value, mask))
            for one, other in zip(found[:half], found[half:], strict=True)
            for mask in (low, high)
        ]
    return found


_T = TypeVar("_T", Integer, Array)


class Variable:
    """A vector that changes."""

    def __init__(self, code: Code, value: Vector) -> None:
        self._builder = code.builder
        with code.builder.goto_entry_block():
            self._place = code.builder.alloca(_FLOATS)
        self.set(value)

    def get(self) -> Vector:
        """Its value."""
        return Vector(self._builder, self._builder.load(self._place))

    def set(self, value: Vector) -> None:
        """Give it another value."""
        self._builder.store(value.value, self._place)


class Code:
    """The code of one kernel, a function of arrays and whole numbers.

    Args:
        module: Takes the function.
        name: Of the kernel.
        arrays: Number of its arrays, which come first among its arguments.
        integers: Number of its whole numbers.
    """

    def __init__(self, module: ir.Module, name: str, arrays: int, integers: int) -> None:
        kinds: Sequence[Any] = [_FLOAT.as_pointer()] * arrays + [_INTEGER] * integers
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.arrays = [Array(self.builder, argument) for argument in function.args[:arrays]]
        self.integers = [Integer(self.builder, argument) for argument in function.args[arrays:]]

    def vector(self, number: float) -> Vector:
        """A constant, 16 times."""
        return Vector(self.builder, ir.Constant(_FLOATS, [number] * LANES))

    def integer(self, number: int) -> Integer:
        """A constant."""
        return Integer(self.builder, ir.Constant(_INTEGER, number))

    def either(self, flag: Integer, one: _T, other: _T) -> _T:
        """One whole number or array where a flag is 1, the other where it is 0."""
        taken = self.builder.icmp_signed("!=", flag.value, ir.Constant(_INTEGER, 0))
        return type(one)(self.builder, self.builder.select(taken, one.value, other.value))

    def largest(self, *numbers: Integer) -> Integer:
        """The largest of several."""
        found = numbers[0]
        for number in numbers[1:]:
            larger = self.builder.icmp_signed(">", number.value, found.value)
            found = Integer(self.builder, self.builder.select(larger, number.value, found.value))
        return found

    def undefined(self) -> Vector:
        """16 numbers that mean nothing."""
        return Vector(self.builder, ir.Constant(_FLOATS, ir.Undefined))

    def variable(self, value: Vector) -> Variable:
        """A vector that changes, with its first value."""
        return Variable(self, value)

    @contextmanager
    def loop(self, start: Integer | int, stop: Integer | int, step: int = 1) -> Iterator[Integer]:
        """What is written within it is done for every number of a range."""
        first, last = (
            bound.value if isinstance(bound, Integer) else ir.Constant(_INTEGER, bound) for bound in (start, stop)
        )
        before = self.builder.block
        body, end = self.builder.append_basic_block(), self.builder.append_basic_block()
        self.builder.cbranch(self.builder.icmp_signed("<", first, last), body, end)
        self.builder.position_at_end(body)
        number = self.builder.phi(_INTEGER)
        number.add_incoming(first, before)
        yield Integer(self.builder, number)
        following = self.builder.add(number, ir.Constant(_INTEGER, step), flags=("nsw",))
        number.add_incoming(following, self.builder.block)
        self.builder.cbranch(self.builder.icmp_signed("<", following, last), body, end)
        self.builder.position_at_end(end)

    @contextmanager
    def only_if(self, flag: Integer) -> Iterator[None]:
        """What is written within it is done where a whole number isn't 0."""
        with self.builder.if_then(self.builder.icmp_signed("!=", flag.value, ir.Constant(_INTEGER, 0))):
            yield

    def finish(self) -> None:
        """End the kernel."""
        self.builder.ret_void()
