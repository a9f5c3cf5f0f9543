"""Data sets of every schema version that was ever published, as they were written: they must open for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lpbf_data.manifest import decode_manifest
from lpbf_data.schema import SCHEMA_VERSION
from pipelines.verify import verify_dataset
from tests.make_golden import GOLDEN, digests

VERSIONS = sorted(GOLDEN.glob("v*"))


def test_there_is_one_of_every_version() -> None:
    assert [path.name for path in VERSIONS] == [f"v{number}" for number in range(1, SCHEMA_VERSION + 1)]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_every_array_is_what_it_was(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    assert sum(len(cases) for cases in expected.values()) == 3
    for split, cases in expected.items():
        assert digests(folder / "lpbf", split) == cases
        assert digests(folder / "lpbf", split, streaming=True) == cases
    failed = [r for r in decode_manifest((folder / "lpbf" / "manifest.parquet").read_bytes()).records if r.failure]
    assert [record.case_id for record in failed] == ["900_deadbeef_1"]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_it_verifies(folder: Path) -> None:
    assert list(verify_dataset(folder / "lpbf").problems) == []
