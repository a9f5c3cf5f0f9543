"""What the tests of the loader share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lpbf_data import Loader, make_loader

many_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def open_loader(data: Any, **options: Any) -> Loader:
    fields = {"fields": []} if isinstance(data, str | Path) else {}  # an opened data set has its own
    chosen: dict[str, Any] = {"shuffle": True, "seed": 5} | fields | options
    return make_loader(data, **chosen)


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
