"""Statistics that add: the statistics of a whole are the sum of those of its parts.

Values are added in float64 by segments of one length, pairwise within a segment, and the segments by `math.fsum`, which
rounds once. So a sum depends neither on how many threads there are nor on the order of the parts, and is right to the
last digits at any number of values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_SEGMENT: Final = 1 << 16
"""Values that are widened to float64 and added at a time: half a megabyte, whatever the size of the array."""

NEGLIGIBLE: Final = 1e-5
"""Share of a field's standard deviation below which the root mean square of a case's true values counts as zero.

What is left is the solver's rounding: a relative error of a prediction would mean nothing.
"""


@dataclass(frozen=True, slots=True)
class FieldStatistics:
    """Count, mean, spread and extremes of one component of a field.

    Attributes:
        count: Number of values.
        mean: Arithmetic mean; 0 when there are no values.
        squared_deviations: Sum of squared deviations from the mean.
        minimum: Least value; +inf when there are none.
        maximum: Largest value; -inf when there are none.
    """

    count: int = 0
    mean: float = 0.0
    squared_deviations: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    @classmethod
    def of(cls, values: NDArray[np.floating[Any]]) -> FieldStatistics:
        """Statistics of an array of any shape, accumulated in float64."""
        if values.size == 0:
            return cls()
        flat = values.reshape(-1)
        mean = _sum([float(np.add.reduce(segment)) for segment in _segments(flat)]) / flat.size
        squares, rest = [], []
        for segment in _segments(flat):
            deviations = segment - mean
            rest.append(float(np.add.reduce(deviations)))
            squares.append(float(np.add.reduce(np.square(deviations))))
        return cls(
            count=int(flat.size),
            mean=mean,
            # The mean is rounded: what is left of the deviations' sum corrects for it.
            squared_deviations=max(_sum(squares) - _sum(rest) ** 2 / flat.size, 0.0),
            minimum=float(flat.min()),
            maximum=float(flat.max()),
        )

    def __add__(self, other: FieldStatistics) -> FieldStatistics:
        """Statistics of both samples together."""
        return total((self, other))

    @property
    def variance(self) -> float:
        """Population variance; 0 when there are no values."""
        return self.squared_deviations / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return math.sqrt(self.variance)


def total(parts: Iterable[FieldStatistics]) -> FieldStatistics:
    """Sum of many statistics; the same in any order of the parts, to the last digit."""
    rows = [(p.count, p.mean, p.squared_deviations, p.minimum, p.maximum) for p in parts]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    return combine(columns[0].astype(np.int64), *columns[1:])


def combine(
    counts: NDArray[np.int64],
    means: NDArray[np.float64],
    squared_deviations: NDArray[np.float64],
    minima: NDArray[np.float64],
    maxima: NDArray[np.float64],
) -> FieldStatistics:
    """Sum of many statistics, given column by column; the same in any order of the parts, to the last digit.

    Args:
        counts: Number of values of each part, [parts].
        means: Their means.
        squared_deviations: Their sums of squared deviations, each from the mean of its part.
        minima: Their least values.
        maxima: Their largest values.

    Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", with all
    parts at once.
    """
    (filled,) = np.nonzero(counts)
    if len(filled) <= 1:  # of one part nothing is rounded again
        columns = (means, squared_deviations, minima, maxima)
        return FieldStatistics(*(int(counts[i]) for i in filled), *(float(c[i]) for c in columns for i in filled))
    count = int(counts.sum())
    weights = counts[filled].astype(np.float64)
    mean = _sum((weights * means[filled]).tolist()) / count
    between = weights * np.square(means[filled] - mean)
    return FieldStatistics(
        count=count,
        mean=mean,
        squared_deviations=_sum([*squared_deviations[filled].tolist(), *between.tolist()]),
        minimum=float(minima[filled].min()),
        maximum=float(maxima[filled].max()),
    )


def _segments(flat: NDArray[np.floating[Any]]) -> Iterator[NDArray[np.float64]]:
    """An array piece by piece in float64, each the caller's own."""
    for start in range(0, flat.size, _SEGMENT):
        yield flat[start : start + _SEGMENT].astype(np.float64)


def _sum(values: Sequence[float]) -> float:
    """Sum that is rounded once; what has no sum (infinities of both signs, an overflow) gives what float64 gives."""
    try:
        return math.fsum(values)
    except (ValueError, OverflowError):
        return float(np.add.reduce(np.asarray(values)))
