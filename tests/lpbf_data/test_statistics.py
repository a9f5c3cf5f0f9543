"""Statistics that add, and sums that are right to the last digits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lpbf_data.case.record import CaseRecord, Placement, SourceRef
from lpbf_data.case.statistics import FieldStatistics, total
from lpbf_data.errors import SchemaError, StoreError
from lpbf_data.stores.manifest import Manifest, decode_manifest, encode_manifest
from tests.rounding import DOUBLE

pytestmark = pytest.mark.numeric

samples = hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(-1000, 1000, width=32))
EPSILON = 2.0**-52


def exact(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sum of squared deviations, each sum rounded once."""
    listed = list(values)
    mean = math.fsum(listed) / len(listed)
    return mean, math.fsum((value - mean) ** 2 for value in listed)


@given(st.lists(samples, max_size=6), st.randoms())
def test_sum_of_parts_is_the_whole_in_any_order(parts: list[np.ndarray], random: Any) -> None:
    whole = np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float64)
    stats = total(map(FieldStatistics.of, parts))
    random.shuffle(parts)
    assert total(map(FieldStatistics.of, parts)) == stats  # to the last digit
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


@given(hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(-1e12, 1e12)), st.integers(1, 5))
def test_sums_are_those_of_fsum(values: NDArray[np.float64], pieces: int) -> None:
    mean, squares = exact(values.tolist())
    size = float(np.abs(values).max())
    for stats in (FieldStatistics.of(values), total(map(FieldStatistics.of, np.array_split(values, pieces)))):
        assert stats.mean == pytest.approx(mean, rel=0, abs=8 * EPSILON * size)
        assert stats.squared_deviations == pytest.approx(squares, rel=1e-9, abs=len(values) * (8 * EPSILON * size) ** 2)


def test_a_part_alone_is_not_rounded_again() -> None:
    alone = FieldStatistics.of(np.array([0.1, 0.3, 0.7]))
    assert total([FieldStatistics(), alone]) == alone
    assert FieldStatistics() + alone == alone


def test_a_large_offset_costs_no_digits() -> None:
    values = 1e6 + np.linspace(0, 1, 1001)
    parts = [FieldStatistics.of(part) for part in np.array_split(values, 7)]
    for stats in (FieldStatistics.of(values), total(parts)):
        mean, squares = exact(values.tolist())
        assert stats.mean == pytest.approx(mean, rel=2 * EPSILON)
        assert stats.squared_deviations == pytest.approx(squares, rel=1e-10)


def test_values_in_any_memory_layout_have_the_same_statistics() -> None:
    values = np.random.default_rng(1).normal(1e3, 1, (70_000, 3)).astype(np.float32)
    wanted = [FieldStatistics.of(np.ascontiguousarray(values[:, column])) for column in range(3)]
    assert [FieldStatistics.of(values[:, column]) for column in range(3)] == wanted
    assert [FieldStatistics.of(row) for row in np.asfortranarray(values).T] == wanted
    assert [FieldStatistics.of(values[:, column].astype(">f8")) for column in range(3)] == wanted


def test_values_without_a_sum_are_what_float64_makes_of_them() -> None:
    for values in ([np.inf, -np.inf], [np.nan, 1.0], [1e308, 1e308]):
        with np.errstate(all="ignore"):
            assert not math.isfinite(FieldStatistics.of(np.array(values)).mean)


def test_twenty_million_points_to_seven_digits_of_a_millionth() -> None:
    """Stresses that lie on a large mean, in float32: added in float32, the sum is wrong in the fourth digit."""
    rng = np.random.default_rng(0)
    block = (900 + 3 * rng.standard_normal(1 << 20)).astype(np.float32)
    repeats = 20  # 20,971,520 points
    values = np.tile(block, repeats)
    mean, squares = exact(block.astype(np.float64).tolist())
    stats = FieldStatistics.of(values)
    assert stats.count == 20_971_520
    assert stats.mean == pytest.approx(mean, rel=1e-14)
    assert stats.squared_deviations == pytest.approx(repeats * squares, rel=1e-12)
    parts = [FieldStatistics.of(part) for part in np.array_split(values, 997)]
    assert total(parts).mean == pytest.approx(mean, rel=1e-14)
    assert total(parts).squared_deviations == pytest.approx(repeats * squares, rel=1e-12)
    assert total(parts[::-1]) == total(parts)


def record(number: int, **columns: FieldStatistics) -> CaseRecord:
    placement = Placement("train", 0, number, parquet_file="a.parquet")
    return CaseRecord(f"{number:03d}", SourceRef("made", str(number)), statistics=columns, placement=placement)


def test_the_manifest_adds_columns_as_records_add() -> None:
    rng = np.random.default_rng(3)
    parts = [FieldStatistics.of(rng.normal(5, 2, count)) for count in (3, 1, 40, 17)]
    records = [record(number, temperature=part, rare=part) for number, part in enumerate(parts)]
    records += [record(4, temperature=parts[0]), replace(record(5, temperature=parts[1]), placement=None)]
    manifest = decode_manifest(encode_manifest(records))
    ids = ["003", "001", "001", "000"]
    chosen = [parts[3], parts[1], parts[1], parts[0]]
    assert manifest.statistics(ids) == {"rare": total(chosen), "temperature": total(chosen)}
    assert manifest.statistics([*ids, "004"]) == {"temperature": total([*chosen, parts[0]])}
    assert manifest.statistics([]) == {}
    assert "records" not in vars(manifest)  # that would take a minute for a million cases
    with pytest.raises(StoreError, match="has no case 005 any more; open the data set again"):
        manifest.statistics(["000", "005"])


def test_statistics_without_a_number_are_refused() -> None:
    table = decode_manifest(encode_manifest([record(0, temperature=FieldStatistics(1, 2.0, 0.0, 2.0, 2.0))])).table
    rows = table.to_pylist()
    rows[0]["statistics"][0]["mean"] = None
    with pytest.raises(SchemaError, match="statistics without a number"):
        Manifest(pa.Table.from_pylist(rows, schema=table.schema)).statistics(["000"])
