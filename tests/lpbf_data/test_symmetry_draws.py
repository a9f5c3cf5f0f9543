"""Symmetries of many cases at once: those that NumPy draws for each case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpbf_data.serving import symmetry_draws
from lpbf_data.serving.symmetry_draws import symmetries_of

_NUMBERS = st.one_of(st.integers(0, 10), st.integers(0, 2**32), st.integers(0, 2**66))


def of_numpy(seed: int, epoch: int, cases: list[int]) -> list[int]:
    drawn = [np.random.default_rng([seed, epoch, case]).integers(2, size=3) for case in cases]
    return [int(x + 2 * y + 4 * exchange) for x, y, exchange in drawn]


@given(_NUMBERS, _NUMBERS, st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_symmetries_are_those_that_numpy_draws_for_each_case(seed: int, epoch: int, cases: list[int]) -> None:
    assert symmetries_of(seed, epoch, np.array(cases, np.int64)).tolist() == of_numpy(seed, epoch, cases)


def test_they_are_computed_at_once_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetry_draws, "_CHUNK", 70)
    calls: list[int] = []
    one_by_one = symmetry_draws._one_by_one
    monkeypatch.setattr(symmetry_draws, "_one_by_one", lambda *a: calls.append(len(a[2])) or one_by_one(*a))
    assert symmetries_of(7, 3, np.arange(200)).tolist() == of_numpy(7, 3, list(range(200)))
    assert calls == [16]


def test_they_are_drawn_one_by_one_where_numpy_draws_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a release of NumPy that makes other numbers of the same bits."""
    at_once = symmetry_draws._at_once
    monkeypatch.setattr(symmetry_draws, "_at_once", lambda *arguments: at_once(*arguments) ^ 1)
    assert symmetries_of(7, 3, np.arange(50)).tolist() == of_numpy(7, 3, list(range(50)))
