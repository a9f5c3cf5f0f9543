"""Memory is used again only once nobody can see it any more."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpbf_data.reading.memory_pool import ArrayPool

LARGE = (200_000,)
FLOAT = np.dtype(np.float32)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_a_block_that_nobody_holds_is_used_again() -> None:
    pool = ArrayPool()
    first = pool.empty(LARGE, FLOAT)
    place = address(first)
    del first
    assert address(pool.empty(LARGE, FLOAT)) == place


@pytest.fixture
def little_to_collect() -> Iterator[None]:
    """What there is before a test is left out of its collections: in a long session there are millions of objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_a_block_that_somebody_holds_is_not(little_to_collect: None) -> None:
    pool = ArrayPool()
    for hold in (
        lambda a: a,
        lambda a: a[10:20],
        torch.from_numpy,
        lambda a: torch.from_numpy(a)[5:],
        lambda a: torch.from_numpy(a).numpy(),
        lambda a: torch.from_numpy(a).view(1000, 200).t(),
        memoryview,
    ):
        block = pool.empty(LARGE, FLOAT)
        place, held = address(block), hold(block)
        del block
        gc.collect()
        assert address(pool.empty(LARGE, FLOAT)) != place
        del held
        gc.collect()
        assert address(pool.empty(LARGE, FLOAT)) == place


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300_000), st.integers(0, 10)), min_size=1, max_size=40))
def test_no_two_live_tensors_share_memory(plan: list[tuple[int, int]]) -> None:
    pool = ArrayPool()
    live: list[tuple[torch.Tensor, float]] = []
    for number, (size, drop) in enumerate(plan):
        tensor = torch.from_numpy(pool.empty((size,), FLOAT))
        tensor.fill_(number)
        live.append((tensor, float(number)))
        del live[:drop]
        assert all(bool((values == mark).all()) for values, mark in live)


def test_copies_and_joins_hold_the_values() -> None:
    pool = ArrayPool()
    rng = np.random.default_rng(0)
    for _ in range(3):
        parts = [rng.random((size, 3), dtype=np.float32) for size in (40_000, 1, 70_000)]
        np.testing.assert_array_equal(pool.join(parts), np.concatenate(parts))
        wide = [np.ascontiguousarray(part.T) for part in parts]
        np.testing.assert_array_equal(pool.join(wide, axis=1), np.concatenate(wide, axis=1))
        np.testing.assert_array_equal(pool.copy(parts[2]), parts[2])
        np.testing.assert_array_equal(pool.copy(parts[2].T), parts[2].T)
        assert pool.copy(parts[2].T).flags.c_contiguous


def test_what_is_kept_is_bounded() -> None:
    pool = ArrayPool()
    blocks = [pool.empty((4 << 20,), FLOAT) for _ in range(10)]  # 16 MiB each
    del blocks
    assert pool._free_bytes <= 64 << 20
    assert pool._free_bytes == sum(block.nbytes for free in pool._free.values() for block in free)
