"""Fixtures with small data sets and a hub, which `conftest` makes known to all tests.

They import what they need when they are asked for: pytest's process that only hands tests out reads `conftest` too, and
the workers start behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.data_hub_server import Hub, serve_hub

if TYPE_CHECKING:
    from lpbf_data.case.case import Case

SPLITS = {"train": range(17), "validation": range(17, 21), "test": range(21, 23)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for this test alone, outside of its `tmp_path`, which some tests need empty."""
    folder = tmp_path_factory.mktemp("own") / "lpbf-cache"
    monkeypatch.setenv("LPBF_CACHE", str(folder))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return folder


@pytest.fixture(scope="session")
def small_cases() -> dict[str, list[Case]]:
    """23 small cases: 17 train, 4 validation, 2 test."""
    from tests.data_support import make_case

    return {name: [make_case(seed) for seed in seeds] for name, seeds in SPLITS.items()}


@pytest.fixture(scope="session")
def small_dataset(small_cases: dict[str, list[Case]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small cases as a data set of up to three shards a split, in both formats. Tests mustn't change it."""
    from tests.data_support import write_dataset

    folder = tmp_path_factory.mktemp("data") / "lpbf"
    folder.mkdir()
    return write_dataset(folder, small_cases)


@pytest.fixture(scope="session")
def published_dataset(small_cases: dict[str, list[Case]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small train and test cases in the layout of the published data set. Tests mustn't change it."""
    from tests.data_support import write_published

    folder = tmp_path_factory.mktemp("published")
    return write_published(folder, {name: small_cases[name] for name in ("train", "test")})


@pytest.fixture
def hub(small_dataset: Path, published_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on the loopback interface with `user/lpbf` in our layout and `user/published` in the published one."""
    with serve_hub({"user/lpbf": {"main": small_dataset}, "user/published": {"main": published_dataset}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
