"""What the tests of the loader share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lpbf_data import Loader, make_loader
from lpbf_data.serving.epoch_order import epoch_order

# Tests run with more workers than a small machine has cores. Loaders fork beside the threads of their libraries, and a
# filter set by `pytest.warns` would tell of it anew: Python 3.12 and later deprecate that.
many_workers = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning",
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
)

# Orders of 17 cases in epochs 0, 1 and 2 with seed 5, recorded once: numbers by what PCG64 draws for each of them.
RECORDED_ORDERS = (
    (7, 8, 4, 11, 3, 5, 16, 6, 12, 2, 10, 0, 1, 15, 14, 13, 9),
    (13, 7, 16, 6, 14, 12, 1, 8, 15, 5, 4, 2, 0, 3, 10, 11, 9),
    (4, 7, 9, 16, 6, 0, 8, 1, 12, 15, 11, 5, 10, 13, 2, 3, 14),
)


def stored_ids(folder: Path) -> list[str]:
    """Ids of the training cases as they stand in the files: shard after shard, row after row."""
    shards = sorted((folder / "data").glob("train-*.parquet"))
    return [name for shard in shards for name in pq.read_table(shard, columns=["case_id"])["case_id"].to_pylist()]


def ids_in_order(folder: Path, order: Sequence[int]) -> list[str]:
    stored = stored_ids(folder)
    return [stored[index] for index in order]


def expected(folder: Path, epoch: int, seed: int = 5) -> list[str]:
    """Ids in the order of a shuffled epoch, from the ids as they stand in the files."""
    stored = stored_ids(folder)
    return [stored[index] for index in epoch_order(len(stored), shuffle=True, seed=seed, epoch=epoch).tolist()]


def open_loader(data: Any, **options: Any) -> Loader:
    fields = {"fields": []} if isinstance(data, str | Path) else {}  # an opened data set has its own
    chosen: dict[str, Any] = {"shuffle": True, "seed": 5} | fields | options
    return make_loader(data, **chosen)


def ids(samples: Any) -> list[str]:
    return [sample["case_id"] for sample in samples]


def first(batch: list[Any]) -> Any:
    return batch[0]


def ids_of(batches: Any) -> list[tuple[str, ...]]:
    return [batch.case_ids for batch in batches]


def flat(batches: list[tuple[str, ...]]) -> list[str]:
    return list(itertools.chain.from_iterable(batches))


def step_together(loaders: Sequence[Loader], steps: int) -> tuple[list[Any], dict[str, Any]]:
    """What all ranks are handed in so many steps, or until one of them has no more, and the first one's state then."""
    iterators = [iter(loader) for loader in loaders]
    handed: list[Any] = []
    for _ in range(steps):
        batches = [next(iterator, None) for iterator in iterators]
        handed += [batch for batch in batches if batch is not None]
        if None in batches:
            break
    state = loaders[0].state_dict()
    for iterator in iterators:
        iterator.close()  # type: ignore[attr-defined]
    return handed, state
