"""Mutated bytes: a few thousand in the suite, and every finding that was ever made."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from tests.pipelines.fuzz_ensight import MAX_BYTES, attempt, run, seeds

FINDINGS = sorted((Path(__file__).parents[1] / "findings").glob("*.bin"))


def test_mutated_bytes_do_no_harm() -> None:
    tracemalloc.start()
    try:
        findings = list(run(5_000, seed=1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert findings == []
    assert peak < MAX_BYTES


def test_the_seeds_are_valid() -> None:
    for name, (data, readers) in seeds().items():
        for reader in readers:
            assert reader(data) is not None, name


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_findings_stay_mended(path: Path) -> None:
    data, readers = seeds()[path.stem.rpartition("-")[0]]
    assert attempt(path.read_bytes(), readers) == ""
    assert data
