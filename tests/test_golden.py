"""Tests that data sets of every published schema version, as they were written, still open with the same content."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from lpbf_data import open_zarr
from lpbf_data.case.schema import SCHEMA_VERSION
from lpbf_data.stores.known_faults import KnownFaultWarning, known_fault
from lpbf_data.stores.manifest import Manifest, decode_manifest
from pipelines.verify import verify_dataset
from tests.make_golden import GOLDEN, digests

VERSIONS = sorted(GOLDEN.glob("v*"))
FAULTS = {"v1": "xz and yz of cauchy_stress and elastic_strain are exchanged in 3 of 3 cases"}
"""Warning that is given once whenever a data set of a version is opened."""


@contextlib.contextmanager
def expect_known_fault(folder: Path) -> Iterator[None]:
    """Assert that the block warns of the known fault of a golden data set, once, or not at all if it has none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = [warning for warning in caught if issubclass(warning.category, KnownFaultWarning)]
    assert len(said) == (folder.name in FAULTS)
    for warning in said:
        assert FAULTS[folder.name] in str(warning.message)
        assert str(folder) in str(warning.message)


def test_there_is_one_of_every_version() -> None:
    assert [path.name for path in VERSIONS] == [f"v{number}" for number in range(1, SCHEMA_VERSION + 1)]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_every_array_is_what_it_was(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    assert sum(len(cases) for cases in expected.values()) == 3
    for split, cases in expected.items():
        with expect_known_fault(folder):
            assert digests(folder / "lpbf", split) == cases
        with expect_known_fault(folder):
            assert digests(folder / "lpbf", split, streaming=True) == cases
    failed = [r for r in decode_manifest((folder / "lpbf" / "manifest.parquet").read_bytes()).records if r.failure]
    assert [record.case_id for record in failed] == ["900_deadbeef_1"]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_it_verifies(folder: Path) -> None:
    verdict = verify_dataset(folder / "lpbf")
    assert list(verdict.problems) == []
    assert bool(verdict.known_fault) == (folder.name in FAULTS)


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_it_opens_for_analysis(folder: Path) -> None:
    with expect_known_fault(folder):
        whole = open_zarr(str(folder / "lpbf"), "train")
    assert whole.cauchy_stress.attrs["components"] == "xx yy zz xy xz yz"
    records = {r.case_id: r for r in decode_manifest((folder / "lpbf" / "manifest.parquet").read_bytes()).records}
    kept = [records[case_id].measures for case_id in whole.case_id.values.tolist()]
    assert whole.height.values.tolist() == [measures.height for measures in kept if measures is not None]


def _manifest(folder: Path, **run: object) -> Manifest:
    """The manifest of a golden data set, with some of its columns replaced."""
    manifest = decode_manifest((folder / "lpbf" / "manifest.parquet").read_bytes())
    table = manifest.table
    for name, value in run.items():
        column = pa.array([value] * len(table), table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
    return Manifest(table, manifest.digest, manifest.schema_version)


def test_faults_are_told_of_what_has_them_alone() -> None:
    old = GOLDEN / "v1"
    assert "3 of 3 cases" in str(known_fault(_manifest(old)))
    # Our own solver of that version wrote components in the order in which they are read.
    assert known_fault(_manifest(old, solver_version="0.1.0-lpbf")) is None
    assert "3 of 3 cases" in str(known_fault(_manifest(old, solver_version=None)))
    assert known_fault(_manifest(old, split=None)) is None
    assert known_fault(_manifest(old, statistics=[])) is None
    assert known_fault(_manifest(GOLDEN / "v2")) is None
