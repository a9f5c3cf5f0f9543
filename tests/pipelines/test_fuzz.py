"""Mutated bytes: a few thousand in the suite, and every finding that was ever made."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from lpbf_data.errors import LpbfError
from tests import fuzz_files, fuzzing
from tests.fuzzing import FINDINGS, MAX_BYTES
from tests.pipelines.fuzz_ensight import attempt, run, seeds

FOUND = sorted(FINDINGS.glob("*.bin"))


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


def test_mutated_files_do_no_harm(tmp_path: Path) -> None:
    corpus = fuzz_files.seeds(tmp_path)
    for name, (data, readers) in corpus.items():
        assert readers[0](data), name
    assert list(fuzzing.run(corpus, fuzz_files.WORDS, LpbfError, 1_000, seed=1)) == []


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_findings_stay_mended(tmp_path: Path, path: Path) -> None:
    name = path.stem.rpartition("-")[0]
    data = path.read_bytes()
    assert data
    if name in seeds():
        assert attempt(data, seeds()[name][1]) == ""
    else:
        assert fuzzing.attempt(data, fuzz_files.seeds(tmp_path)[name][1], LpbfError) == ""
