"""Fixtures of the tests of flare_model: a small data set, and a short training run; imports as in data_fixtures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def box_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of twelve parts: 8 train, 2 validation, 2 test."""
    from pipelines.build import build
    from tests.flare_model.flare_support import write_cases

    root = tmp_path_factory.mktemp("flare")
    cases = write_cases(root / "cases")
    assert (
        build(
            [str(cases)],
            out=str(root / "lpbf"),
            workers=0,
            time_limit=math.inf,
            splits="train=8,validation=2,test=2",
            formats=["parquet"],
            no_report=True,
        )
        == 0
    )
    return str(root / "lpbf")


@pytest.fixture(scope="session")
def trained_run(box_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training run on `box_dataset`."""
    from flare_model.train import train
    from tests.flare_model.flare_support import LEARNING, TINY

    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert train(box_dataset, out=str(folder), model=TINY, recipe=LEARNING) == 0
    return folder


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded cases are cached in a temporary folder of the tests, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPBF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def four_threads() -> Iterator[None]:
    """PyTorch computes with four threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)
