"""How much faster are statistics of a large data set computed from the manifest's columns than record by record?

    python -m tests.benchmarks.manifest_statistics

Mean, deviation and range of each field over 100,000 made-up cases are computed from the bytes of the same manifest in
two ways, in turn in one process: column by column, as `dataset.statistics()` does, and by decoding a record a row and
adding them one by one. Both results must agree. Processor time counts, since other work on the machine changes it less
than the elapsed time; the ratio is the median over the rounds of the ratio within a round.

Needs no GPU and no data. The result goes to results/manifest_statistics.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lpbf_data.case.record import Placement
from lpbf_data.case.statistics import FieldStatistics
from lpbf_data.stores.manifest import decode_manifest, encode_manifest
from tests.benchmarks.machine import describe_machine, save_result
from tests.data_support import make_case, record_of

Totals = dict[str, FieldStatistics]


def make_manifest(count: int) -> bytes:
    """A manifest of `count` kept cases, with the measures of a hundred different ones in turn."""
    made = [record_of(make_case(seed)) for seed in range(100)]
    rows = (
        replace(
            made[number % len(made)],
            case_id=f"{number:07d}_0",
            placement=Placement("train", number // 30, number % 30, parquet_file=f"data/{number // 30:05d}.parquet"),
        )
        for number in range(count)
    )
    return encode_manifest(rows)


def by_columns(data: bytes, case_ids: list[str]) -> Totals:
    """Statistics from the manifest's columns, as `dataset.statistics()` computes them."""
    return decode_manifest(data).statistics(case_ids)


def by_records(data: bytes, case_ids: list[str]) -> Totals:
    """Statistics by decoding a record a row, and adding its statistics to those of the rows before."""
    by_id = {record.case_id: record.statistics for record in decode_manifest(data).records}
    found: Totals = dict(by_id[case_ids[0]])
    for case_id in case_ids[1:]:
        for column, part in by_id[case_id].items():
            found[column] = _sum_of_two(found[column], part)
    return found


def _sum_of_two(one: FieldStatistics, other: FieldStatistics) -> FieldStatistics:
    """Statistics of two sets of values together (Chan, Golub and LeVeque 1979)."""
    count = one.count + other.count
    delta = other.mean - one.mean
    squares = one.squared_deviations + other.squared_deviations + delta * delta * (one.count * other.count / count)
    least, largest = min(one.minimum, other.minimum), max(one.maximum, other.maximum)
    return FieldStatistics(count, one.mean + delta * (other.count / count), squares, least, largest)


def seconds(action: Callable[[], Totals]) -> tuple[float, Totals]:
    """Processor time of an action, and its result."""
    start = time.process_time()
    found = action()
    return time.process_time() - start, found


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="cases in the manifest")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over which the median is taken")
    arguments = parser.parse_args()
    data = make_manifest(arguments.cases)
    case_ids = [f"{number:07d}_0" for number in np.random.default_rng(0).permutation(arguments.cases)]
    rounds: list[tuple[float, float]] = []
    for _ in range(arguments.rounds):
        slow, wanted = seconds(lambda: by_records(data, case_ids))
        fast, found = seconds(lambda: by_columns(data, case_ids))
        assert found.keys() == wanted.keys()
        for column, stats in found.items():
            np.testing.assert_allclose(stats.std, wanted[column].std, rtol=1e-9, err_msg=column)
        rounds.append((slow, fast))
    result: dict[str, Any] = {
        "machine": describe_machine(("numpy", "pyarrow")),
        "cases": arguments.cases,
        "columns": len(found),
        "manifest_mb": round(len(data) / 1e6, 1),
        "rounds": arguments.rounds,
        "records_seconds": round(statistics.median(slow for slow, _ in rounds), 2),
        "columns_seconds": round(statistics.median(fast for _, fast in rounds), 2),
        "times_as_fast": round(statistics.median(slow / fast for slow, fast in rounds), 1),
    }
    print(save_result("manifest_statistics", result).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
