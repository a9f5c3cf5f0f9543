"""Which symmetries the cases of an epoch are shown under: what NumPy draws for each case by itself, for many at once.

A case's generator is `numpy.random.default_rng([seed, epoch, case])` (`CaseSamples.sample`), of which
[RandomSymmetry][lpbf_data.transforms.RandomSymmetry] takes three numbers that are 0 or 1. Making a generator takes the
host tens of microseconds. The bits of NumPy's seeding and of its generator are documented and stay the same from one
release to the next, and are computed here for whole arrays. How numbers are made of these bits may change, so the
numbers are compared with NumPy's.

Sources: NumPy's `SeedSequence` and PCG64 (O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good
Algorithms for Random Number Generation", 2014; the variant XSL RR 128/64).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_WORDS: Final = 4
"""Words of 32 bits that NumPy's `SeedSequence` mixes."""
_COMPARED: Final = 16
"""Cases of an epoch whose symmetries are compared with NumPy's."""
_CHUNK: Final = 1 << 16
"""Cases that are computed at a time."""
_LOW: Final = np.uint64(0xFFFFFFFF)
_MULTIPLIER: Final = (0x2360ED051FC65DA4, 0x4385DF649FCCF645)
"""Of PCG64's state: its upper and its lower 64 bits."""

Words = NDArray[np.uint32]
Wide = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""Numbers of 128 bits: their upper and their lower 64."""


def symmetries_of(seed: int, epoch: int, cases: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Numbers of the symmetries of cases in an epoch: 1 for mirrored along x, 2 along y, 4 for x and y exchanged.

    Args:
        seed: Seed of the loader.
        epoch: Number of the epoch.
        cases: Numbers of the cases in the split, below 2^32, [n].

    Returns:
        Sums of these, [n].
    """
    if len(_words_of(seed)) + len(_words_of(epoch)) < _WORDS:
        parts = [_at_once(seed, epoch, cases[at : at + _CHUNK]) for at in range(0, len(cases), _CHUNK)]
        found = np.concatenate(parts or [np.empty(0, np.uint8)])
        if np.array_equal(found[:_COMPARED], _one_by_one(seed, epoch, cases[:_COMPARED])):
            return found
    return _one_by_one(seed, epoch, cases)


def _one_by_one(seed: int, epoch: int, cases: NDArray[np.int64]) -> NDArray[np.uint8]:
    drawn = [np.random.default_rng([seed, epoch, case]).integers(2, size=3) for case in cases.tolist()]
    return np.array([x + 2 * y + 4 * exchange for x, y, exchange in drawn], np.uint8)


def _at_once(seed: int, epoch: int, cases: NDArray[np.int64]) -> NDArray[np.uint8]:
    entropy = [*_words_of(seed), *_words_of(epoch)]
    words = [np.full(len(cases), word, np.uint32) for word in entropy]
    first, second = _two_numbers(_generated(_mixed([*words, cases.astype(np.uint32)])))
    # NumPy takes the highest bit of each half of a number, the lower half first.
    one, half, whole = np.uint64(1), np.uint64(31), np.uint64(63)
    drawn: NDArray[np.uint64] = first >> half & one | (first >> whole) << one | (second >> half & one) << np.uint64(2)
    numbers: NDArray[np.uint8] = drawn.astype(np.uint8)
    return numbers


def _words_of(number: int) -> list[int]:
    """A number in words of 32 bits, the lowest first, as `SeedSequence` takes it apart."""
    words = [number & 0xFFFFFFFF]
    while number := number >> 32:
        words.append(number & 0xFFFFFFFF)
    return words


class _Hash:
    """The hash of `SeedSequence`, whose constant changes with every word."""

    def __init__(self, constant: int, multiplier: int) -> None:
        self._constant, self._multiplier = constant, multiplier

    def __call__(self, words: Words) -> Words:
        hashed = words ^ np.uint32(self._constant)
        self._constant = self._constant * self._multiplier & 0xFFFFFFFF
        hashed = hashed * np.uint32(self._constant)
        return hashed ^ (hashed >> np.uint32(16))


def _mixed(entropy: Sequence[Words]) -> list[Words]:
    """The pool of `SeedSequence`: up to four words of entropy, mixed."""
    hashed = _Hash(0x43B0D7E5, 0x931E8875)
    zeros = np.zeros_like(entropy[0])
    pool = [hashed(word) for word in [*entropy, *[zeros] * (_WORDS - len(entropy))]]
    for source in range(_WORDS):
        for target in range(_WORDS):
            if source != target:
                mixed = pool[target] * np.uint32(0xCA01F9DD) - hashed(pool[source]) * np.uint32(0x4973F715)
                pool[target] = mixed ^ (mixed >> np.uint32(16))
    return pool


def _generated(pool: Sequence[Words]) -> list[NDArray[np.uint64]]:
    """The four numbers of 64 bits that `SeedSequence` generates for PCG64."""
    hashed = _Hash(0x8B51F9DD, 0x58F38DED)
    words = [hashed(pool[number % _WORDS]).astype(np.uint64) for number in range(2 * _WORDS)]
    return [low | (high << np.uint64(32)) for low, high in zip(words[::2], words[1::2], strict=True)]


def _two_numbers(seeds: Sequence[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first two numbers of 64 bits of PCG64 from its seeds: upper and lower half of state and of increment."""
    one = np.uint64(1)
    increment = (seeds[2] << one) | (seeds[3] >> np.uint64(63)), (seeds[3] << one) | one
    state = _stepped(_sum(increment, (seeds[0], seeds[1])), increment)
    numbers = []
    for _ in range(2):
        state = _stepped(state, increment)
        upper, lower = state
        value, turn = upper ^ lower, upper >> np.uint64(58)
        back = (np.uint64(64) - turn) & np.uint64(63)
        numbers.append(np.bitwise_or(value >> turn, value << back))
    return numbers[0], numbers[1]


def _stepped(state: Wide, increment: Wide) -> Wide:
    """The next state of PCG64: state · multiplier + increment, modulo 2^128."""
    upper, lower = state
    high, low = (np.uint64(part) for part in _MULTIPLIER)
    return _sum((_upper_product(lower, low) + upper * low + lower * high, lower * low), increment)


def _sum(first: Wide, second: Wide) -> Wide:
    lower = first[1] + second[1]
    carried = (lower < second[1]).astype(np.uint64)
    return first[0] + second[0] + carried, lower


def _upper_product(numbers: NDArray[np.uint64], factor: np.uint64) -> NDArray[np.uint64]:
    """The upper 64 bits of the product of numbers of 64 bits."""
    half = np.uint64(32)
    low, high, by_low, by_high = numbers & _LOW, numbers >> half, factor & _LOW, factor >> half
    middle = high * by_low + ((low * by_low) >> half)
    crossed = low * by_high + (middle & _LOW)
    upper: NDArray[np.uint64] = high * by_high + (middle >> half) + (crossed >> half)
    return upper
