"""The loader's epochs: which cases come when and on which rank, exact wherever they are cut; no rank waits for ever."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpbf_data import Loader, load_dataset, make_loader
from lpbf_data.errors import UsageError
from tests.lpbf_data.launch_support import run_ranks
from tests.lpbf_data.loader_support import (
    RECORDED_ORDERS,
    expected,
    flat,
    ids,
    ids_in_order,
    ids_of,
    many_workers,
    open_loader,
    step_together,
)

quick = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_epochs_follow_one_another(small_dataset: Path) -> None:
    loader = open_loader(str(small_dataset), batch_size=3)
    assert len(loader) == 6
    for epoch, order in enumerate(RECORDED_ORDERS):
        assert loader.epoch == epoch
        batches = ids_of(loader)
        assert [len(batch) for batch in batches] == [3, 3, 3, 3, 3, 2]
        assert flat(batches) == ids_in_order(small_dataset, order)
    assert loader.epoch == 3
    assert loader.seconds_waiting > 0


@quick
@given(cut=st.integers(0, 6), batch_size=st.integers(1, 5))
def test_a_loader_resumes_where_it_was_cut(small_dataset: Path, cut: int, batch_size: int) -> None:
    first = open_loader(small_dataset, batch_size=3)
    served = flat([batch.case_ids for _, batch in zip(range(cut), first, strict=False)])
    state = json.loads(json.dumps(first.state_dict()))
    assert state["consumed"] == len(served) % 17
    second = open_loader(small_dataset, batch_size=batch_size)
    second.load_state_dict(state)
    assert second.epoch == (cut == 6)
    rest = flat(ids_of(second))
    assert served + rest == expected(small_dataset, 0) + (expected(small_dataset, 1) if cut == 6 else [])


@pytest.mark.parametrize("streaming", [False, True])
def test_every_cut_goes_on_with_any_number_of_ranks(small_dataset: Path, streaming: bool) -> None:
    """144 resumes: after each of 0 to 17 cases, on one to eight ranks; the rest comes once each, dealt in its order."""
    opened = load_dataset(small_dataset, fields=[], cells=False, format="torch")

    def start(rank: int, ranks: int) -> Any:
        options: dict[str, Any] = {"shuffle": True, "seed": 5, "rank": rank, "world_size": ranks, "uneven": "keep"}
        if streaming:
            shared = {"format": "torch", "fields": [], "cells": False}
            return load_dataset(small_dataset, streaming=True, **shared, **options)
        return make_loader(opened, batch_size=1, **options)

    def names(source: Any) -> list[str]:
        return ids(source) if streaming else flat(ids_of(source))

    resumes = 0
    sources = [[start(rank, ranks) for rank in range(ranks)] for ranks in range(1, 9)]
    for cut in range(18):
        first = start(0, 1)
        served = [each for _, each in zip(range(cut), first, strict=False)]
        state = json.loads(json.dumps(first.state_dict()))
        assert (state["epoch"], state["consumed"]) == ((1, 0) if cut == 17 else (0, cut))
        assert names(served) == expected(small_dataset, 0)[:cut]
        rest = expected(small_dataset, 1) if cut == 17 else expected(small_dataset, 0)[cut:]
        for together in sources:
            for rank, source in enumerate(together):
                source.load_state_dict(state)
                assert names(source) == rest[rank :: len(together)], (cut, rank)
            resumes += 1
    assert resumes == 144


@many_workers
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (3, 1)])
def test_what_was_read_ahead_does_not_count(small_dataset: Path, before: int, after: int) -> None:
    first = open_loader(small_dataset, num_workers=before, read_ahead=4)
    served = []
    for batch in first:
        served.append(batch.case_ids)
        time.sleep(0.05)  # time enough to read ahead
        if len(served) == 4:
            break
    state = first.state_dict()
    assert state["consumed"] == 4
    second = open_loader(small_dataset, num_workers=after)
    second.load_state_dict(state)
    assert flat(served) + flat(ids_of(second)) == expected(small_dataset, 0)


@many_workers
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_is_left_goes_on_behind_its_last_batch_if_asked_to(small_dataset: Path, workers: int) -> None:
    loader = open_loader(small_dataset, num_workers=workers, batch_size=2)
    served = []
    while loader.state_dict()["epoch"] == 0:
        for batch in loader:
            served.append(batch.case_ids)
            if len(served) % 3 == 0:
                break
        loader.load_state_dict(loader.state_dict())
    assert flat(served) == expected(small_dataset, 0)
    loader.set_epoch(5)
    assert flat(ids_of(loader)) == expected(small_dataset, 5)


@many_workers
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_another_one_overtakes_ends_with_a_word(small_dataset: Path, workers: int) -> None:
    """Workers and position are shared: going on would lose cases without a word. A traceback keeps a loop open too."""
    loader = open_loader(small_dataset, num_workers=workers, read_ahead=2)
    first, second = iter(loader), iter(loader)
    assert next(first).case_ids == (expected(small_dataset, 0)[0],)
    served = [next(second).case_ids]
    with pytest.raises(UsageError, match="make a loader for each of two loops at the same time"):
        next(first)
    served += ids_of(second)
    assert flat(served) == expected(small_dataset, 1)
    kept: list[Exception] = []
    for epoch in (2, 3, 4):
        try:
            for number, _ in enumerate(loader):
                assert number < epoch
        except AssertionError as error:  # as a notebook keeps the last one
            kept.append(error)
        assert (loader.state_dict()["epoch"], loader.state_dict()["consumed"]) == (epoch, epoch + 1)
    assert flat(ids_of(loader)) == expected(small_dataset, 5)
    assert len(kept) == 3


def test_set_epoch_keeps_the_position_in_the_epoch_at_work(small_dataset: Path) -> None:
    loader = open_loader(small_dataset)
    loader.load_state_dict(loader.state_dict() | {"epoch": 2, "consumed": 11})
    loader.set_epoch(2)
    assert flat(ids_of(loader)) == expected(small_dataset, 2)[11:]


@quick
@given(data=st.data())
def test_any_ranks_batches_budgets_and_interruptions(small_dataset: Path, data: st.DataObject) -> None:
    dataset = load_dataset(small_dataset, fields=[], cells=False)
    sizes = dict(zip(dataset.case_ids, dataset.sizes.tolist(), strict=True))
    served: list[str] = []
    state = open_loader(dataset).state_dict()
    for part in range(4):
        ranks = data.draw(st.integers(1, 8)) if part < 3 else 3
        max_points = data.draw(st.none() | st.integers(max(sizes.values()), 3000))
        batch_size = data.draw(st.integers(1, 3))
        options = {"world_size": ranks, "batch_size": batch_size, "max_points": max_points, "uneven": "keep"}
        loaders = [open_loader(dataset, rank=rank, **options) for rank in range(ranks)]
        for loader in loaders:
            loader.load_state_dict(state)
        if loaders[0].epoch:
            break
        steps = data.draw(st.integers(0, 4)) if part < 3 else 99
        batches, state = step_together(loaders, steps)
        served += flat(ids_of(batches))
        for batch in batches:
            assert max_points is None or len(batch.pos) <= max_points
        if state["epoch"]:
            break
    assert sorted(served) == sorted(sizes)


@many_workers
@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"max_points": 400, "batch_size": None}])
def test_one_rank_then_eight_then_three(small_dataset: Path, options: dict[str, Any]) -> None:
    served: list[str] = []
    state = open_loader(small_dataset).state_dict()
    for ranks, workers, steps in ((1, 2, 2), (8, 0, 1), (3, 1, 99)):
        loaders = [
            open_loader(small_dataset, rank=r, world_size=ranks, num_workers=workers, uneven="keep", **options)
            for r in range(ranks)
        ]
        states = []
        for loader in loaders:
            loader.load_state_dict(state)
            if loader.epoch == 0:
                served += flat([batch.case_ids for _, batch in zip(range(steps), loader, strict=False)])
            states.append(loader.state_dict())
        state = states[0]
        assert steps == 99 or all(other == state for other in states)
    assert sorted(served) == sorted(expected(small_dataset, 0))
    assert state["epoch"] == 1


@pytest.mark.parametrize(
    ("uneven", "count", "steps"), [("drop", 16, [2] * 8), ("pad", 24, [3] * 8), ("keep", 17, [3] + [2] * 7)]
)
def test_eight_ranks_share_seventeen_cases_as_asked(
    small_dataset: Path, uneven: Any, count: int, steps: list[int]
) -> None:
    loaders = [open_loader(small_dataset, rank=r, world_size=8, uneven=uneven) for r in range(8)]
    batches = [ids_of(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(part) for part in batches] == steps
    assert sum(len(flat(part)) for part in batches) == count
    assert all(loader.state_dict() == loaders[0].state_dict() for loader in loaders)


@pytest.mark.parametrize(
    ("uneven", "launcher"),
    # What torchrun itself starts, a script of the README does in the fast suite.
    [("drop", "forked"), ("pad", "forked"), pytest.param("pad", "torchrun", marks=pytest.mark.slow)],
)
def test_distributed_training_does_not_hang_at_uneven_ends(
    small_dataset: Path, tmp_path: Path, uneven: str, launcher: str
) -> None:
    found = run_ranks("train", tmp_path / "run", str(small_dataset), uneven, ranks=3, launcher=launcher)
    assert [(each["epoch"], each["rank"], each["world_size"]) for each in found] == [(2, rank, 3) for rank in range(3)]
    assert len({each["gradient"] for each in found}) == 1


def test_a_slice_of_a_data_set_is_a_data_set(small_dataset: Path) -> None:
    part = load_dataset(small_dataset, fields=[])[4:9]
    assert part[-1].case_id == part[4].case_id
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"no case {index}: the data set has 5"):
            part[index]
    loader = make_loader(part, shuffle=True, batch_size=2)
    assert sorted(flat(ids_of(loader))) == sorted(part.case_ids)
    with pytest.raises(UsageError, match="other data"):
        loader.load_state_dict(open_loader(small_dataset).state_dict())


def test_states_of_other_seeds_are_refused(small_dataset: Path) -> None:
    state = open_loader(small_dataset).state_dict()
    with pytest.raises(UsageError, match="seed=5"):
        open_loader(small_dataset, seed=6).load_state_dict(state)
    with pytest.raises(UsageError, match="shuffle=True"):
        open_loader(small_dataset, shuffle=False).load_state_dict(state)


@pytest.mark.slow
@many_workers
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_real_workers_cut_and_resumed_anywhere(small_dataset: Path, data: st.DataObject) -> None:
    served: list[str] = []
    state: dict[str, Any] | None = None
    make: Callable[..., Loader] = open_loader
    for part in range(3):
        ranks, workers = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 8))
        options = {"batch_size": data.draw(st.integers(1, 3)), "num_workers": workers, "uneven": "keep"}
        loaders = [make(small_dataset, rank=rank, world_size=ranks, **options) for rank in range(ranks)]
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state)
        batches, state = step_together(loaders, data.draw(st.integers(0, 5)) if part < 2 else 99)
        served += flat(ids_of(batches))
        if state["epoch"]:
            break
    assert sorted(served) == sorted(expected(small_dataset, 0))
