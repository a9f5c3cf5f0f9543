"""Fixtures for tests of `lpbf_data`; import them by name where they are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data_support import make_case, write_dataset


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 23 small cases: 17 train in 3 shards, 4 validation, 2 test. Not to be written to."""
    folder = tmp_path_factory.mktemp("data") / "lpbf"
    folder.mkdir()
    splits = {"train": range(17), "validation": range(17, 21), "test": range(21, 23)}
    return write_dataset(folder, {name: [make_case(seed) for seed in seeds] for name, seeds in splits.items()})
