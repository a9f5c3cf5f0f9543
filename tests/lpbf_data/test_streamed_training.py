"""Training from a hub with empty caches gives the losses of a local folder, digit by digit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lpbf_data import load_dataset
from tests.benchmarks.streamed_training import Training, train_from
from tests.data_hub_server import Hub
from tests.data_support import write_dataset


@pytest.fixture
def zarr_dataset(hub: Hub, small_cases: Any, tmp_path: Path) -> Path:
    """The small cases as Zarr parts alone, served as `user/zarr` too."""
    folder = tmp_path / "zarr"
    folder.mkdir()
    hub.repositories["user/zarr"] = {"main": write_dataset(folder, small_cases, formats=["zarr"])}
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_losses_are_those_of_a_local_folder(
    hub: Hub, small_dataset: Path, zarr_dataset: Path, tmp_path: Path, workers: int
) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "local", "num_workers": workers}
    wanted, _ = train_from(str(small_dataset), **options)
    assert len(wanted) == 2 * 9
    assert train_from(str(zarr_dataset), **options)[0] == wanted
    for repository in ("user/lpbf", "user/zarr"):
        options |= {"cache": tmp_path / repository, "cache_dir": tmp_path / "hub" / repository}
        asked = len(hub.log)
        assert train_from(repository, **options)[0] == wanted
        first = len(hub.log) - asked
        assert train_from(repository, epochs=1, **options)[0] == wanted[: len(wanted) // 2]
        assert len(hub.log) - asked - first < first / 2  # what was fetched stays on this machine


def test_streams_have_the_losses_of_a_local_folder(
    hub: Hub, small_dataset: Path, zarr_dataset: Path, tmp_path: Path
) -> None:
    def losses(data: str, **options: Any) -> list[float]:
        stream = load_dataset(
            data, "train", streaming=True, shuffle=True, seed=3, format="torch", fields=[], cells=False, **options
        )
        training = Training()
        for _ in range(2):
            training.epoch((sample["pos"], sample["y"]) for sample in stream)
        return training.losses

    wanted = losses(str(small_dataset), cache=False)
    assert len(wanted) == 2 * 17
    for repository in ("user/lpbf", "user/zarr"):
        assert losses(repository, cache=tmp_path / repository, cache_dir=tmp_path / "hub") == wanted
