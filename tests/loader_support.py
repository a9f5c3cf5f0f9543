"""What the tests of the loader share."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lpbf_data import Loader, make_loader

many_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def open_loader(data: Any, **options: Any) -> Loader:
    chosen: dict[str, Any] = {"shuffle": True, "seed": 5, "fields": []} | options
    return make_loader(data, **chosen)


def ids_of(batches: Any) -> list[tuple[str, ...]]:
    return [batch.case_ids for batch in batches]


def flat(batches: list[tuple[str, ...]]) -> list[str]:
    return list(itertools.chain.from_iterable(batches))
