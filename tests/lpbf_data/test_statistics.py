"""Statistics that add."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lpbf_data.case.statistics import FieldStatistics, total
from tests.rounding import DOUBLE

pytestmark = pytest.mark.numeric

samples = hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(-1000, 1000, width=32))


@given(st.lists(samples, max_size=6), st.randoms())
def test_sum_of_parts_is_the_whole_in_any_order(parts: list[np.ndarray], random: object) -> None:
    whole = np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float64)
    random.shuffle(parts)  # type: ignore[attr-defined]
    stats = total(map(FieldStatistics.of, parts))
    assert stats.count == len(whole)
    if len(whole):
        # A sum of hundreds is known to some hundred roundings of its largest term; so is that of the squares.
        largest = float(np.abs(whole).max())
        assert stats.mean == pytest.approx(whole.mean(), rel=0, abs=2**10 * DOUBLE * largest)
        assert stats.variance == pytest.approx(whole.var(), rel=0, abs=2**10 * DOUBLE * largest**2)
        assert (stats.minimum, stats.maximum) == (whole.min(), whole.max())
    else:
        assert stats == FieldStatistics()
        assert stats.variance == 0


def test_a_large_offset_costs_no_digits() -> None:
    values = 1e6 + np.linspace(0, 1, 1001)
    parts = [FieldStatistics.of(part) for part in np.array_split(values, 7)]
    assert total(parts).variance == pytest.approx(np.linspace(0, 1, 1001).var(), rel=1e-6)
