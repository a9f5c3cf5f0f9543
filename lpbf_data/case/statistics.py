"""Statistics that add: the statistics of a whole are the sum of those of its parts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

NEGLIGIBLE: Final = 1e-5
"""A truth that is smaller than this share of the field's standard deviation is zero but for the solver's rounding."""


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
        wide = np.asarray(values, dtype=np.float64)
        mean = float(wide.mean())
        deviations = wide - mean
        return cls(
            count=int(values.size),
            mean=mean,
            squared_deviations=float(np.vdot(deviations, deviations)),
            minimum=float(wide.min()),
            maximum=float(wide.max()),
        )

    def __add__(self, other: FieldStatistics) -> FieldStatistics:
        """Statistics of both samples together.

        Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
        """
        count = self.count + other.count
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        delta = other.mean - self.mean
        return FieldStatistics(
            count=count,
            mean=self.mean + delta * (other.count / count),
            squared_deviations=self.squared_deviations
            + other.squared_deviations
            + delta * delta * (self.count * other.count / count),
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
        )

    @property
    def variance(self) -> float:
        """Population variance; 0 when there are no values."""
        return self.squared_deviations / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return math.sqrt(self.variance)


def total(parts: Iterable[FieldStatistics]) -> FieldStatistics:
    """Sum of many statistics, in the order given.

    Floating-point sums depend on their order in the last digits; callers that write the result to disk pass the
    parts in the order of the case ids, so that the bytes don't depend on who finished first.
    """
    return sum(parts, start=FieldStatistics())
