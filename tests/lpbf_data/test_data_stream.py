"""A stream's state is its real position: iterated directly, in workers, in StatefulDataLoader, on other ranks."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets.distributed import split_dataset_by_node
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lpbf_data import CaseStream, load_dataset, make_loader
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.serving.collating import collate_ragged
from lpbf_data.serving.stream import SkippedCaseWarning
from lpbf_data.transforms import SubsamplePoints
from tests.data_support import make_case, write_dataset
from tests.lpbf_data.loader_support import RECORDED_ORDERS, expected, first, ids, ids_in_order, many_workers, stored_ids

quick = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def open_stream(folder: Path, **options: Any) -> CaseStream:
    chosen: dict[str, Any] = {"shuffle": True, "seed": 5, "format": "torch", "fields": [], "cells": False} | options
    stream = load_dataset(folder, streaming=True, **chosen)
    assert isinstance(stream, CaseStream)
    return stream


def test_epochs_follow_one_another(small_dataset: Path) -> None:
    stream = open_stream(small_dataset)
    assert len(stream) == 17
    for epoch, order in enumerate(RECORDED_ORDERS):
        assert stream.epoch == epoch
        assert ids(stream) == ids_in_order(small_dataset, order)
    stream.set_epoch(1)
    assert ids(stream) == ids_in_order(small_dataset, RECORDED_ORDERS[1])


def test_without_shuffle_the_stored_order_is_kept(small_dataset: Path) -> None:
    stream = open_stream(small_dataset, shuffle=False)
    stored = stored_ids(small_dataset)
    assert len(stored) == 17
    assert ids(stream) == ids(stream) == stored


@many_workers
def test_random_transforms_of_a_stream_draw_anew_with_every_epoch(small_dataset: Path) -> None:
    """What is drawn depends on seed, epoch and case, and on nothing else."""

    def epochs(workers: int, **options: Any) -> list[dict[str, Any]]:
        stream = open_stream(small_dataset, transform=SubsamplePoints(20), **options)
        loader = DataLoader(stream, batch_size=1, num_workers=workers, collate_fn=first)
        return [{sample["case_id"]: sample["pos"] for sample in loader} for _ in range(2)]

    zero, one = epochs(0)
    assert len(zero) == 17
    assert not any(torch.equal(zero[name], one[name]) for name in zero)
    for before, again in zip((zero, one), epochs(2, shuffle=False), strict=True):
        assert all(torch.equal(before[name], again[name]) for name in before)
    other, _ = epochs(0, seed=6)
    assert not any(torch.equal(zero[name], other[name]) for name in zero)


def test_a_peek_takes_nothing_away(small_dataset: Path) -> None:
    stream = open_stream(small_dataset)
    assert next(iter(stream))["case_id"] == expected(small_dataset, 0)[0]
    assert ids(stream) == expected(small_dataset, 1)
    next(iter(stream))
    stream.set_epoch(0)
    assert ids(stream) == expected(small_dataset, 0)


@quick
@given(cut=st.integers(0, 17))
def test_a_stream_resumes_where_it_was_cut(small_dataset: Path, cut: int) -> None:
    first = open_stream(small_dataset)
    served = [sample["case_id"] for _, sample in zip(range(cut), first, strict=False)]
    state = json.loads(json.dumps(first.state_dict()))
    second = open_stream(small_dataset)
    second.load_state_dict(state)
    rest = ids(second)
    whole = expected(small_dataset, 0)
    # Cut at its very end, an epoch is over and the next one begins.
    assert served + rest == (whole + expected(small_dataset, 1) if cut == 17 else whole)


def take(stream: CaseStream, count: int) -> tuple[list[str], Any]:
    served = [sample["case_id"] for _, sample in zip(range(count), stream, strict=False)]
    return served, stream.state_dict()


@quick
@given(plan=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 6)), min_size=1, max_size=4))
def test_any_ranks_any_interruptions_every_case_once(small_dataset: Path, plan: list[tuple[int, int]]) -> None:
    served: list[str] = []
    state = open_stream(small_dataset).state_dict()
    for number, (ranks, steps) in enumerate([*plan, (3, 99)]):
        states = []
        for rank in range(ranks):
            stream = open_stream(small_dataset, uneven="keep", rank=rank, world_size=ranks)
            stream.load_state_dict(state)
            if stream.epoch > 0:
                continue  # the epoch ended with the step before
            left = (17 - state["consumed"]) // ranks
            got, after = take(stream, steps if number == len(plan) else min(steps, left))
            served += got
            states.append(after)
        assert all(other == states[0] for other in states if number < len(plan))
        state = states[0] if states else state
    assert sorted(served) == sorted(expected(small_dataset, 0))


def test_one_rank_then_eight_then_three(small_dataset: Path) -> None:
    served: list[str] = []
    state = open_stream(small_dataset).state_dict()
    for ranks, steps in ((1, 4), (8, 1), (3, 99)):
        parts = []
        for rank in range(ranks):
            stream = open_stream(small_dataset, uneven="keep", rank=rank, world_size=ranks)
            stream.load_state_dict(state)
            parts.append(take(stream, steps))
        served += [case for got, _ in parts for case in got]
        state = parts[0][1]
        assert all(other == state for _, other in parts)
    assert sorted(served) == sorted(expected(small_dataset, 0))
    assert state["epoch"] == 1


@pytest.mark.parametrize(("uneven", "count"), [("drop", 15), ("pad", 20), ("keep", 17)])
def test_five_ranks_share_seventeen_cases_as_asked(small_dataset: Path, uneven: str, count: int) -> None:
    streams = [open_stream(small_dataset, uneven=uneven, rank=rank, world_size=5) for rank in range(5)]
    parts = [ids(stream) for stream in streams]
    assert sum(map(len, parts)) == count
    assert [len(stream) for stream in streams] == [len(part) for part in parts]
    assert len({len(part) for part in parts}) == (2 if uneven == "keep" else 1)
    assert len({case for part in parts for case in part}) == min(count, 17)


@many_workers
@pytest.mark.parametrize(
    ("workers", "batch_size", "method"),
    [
        (0, 3, None),
        (1, 4, "fork"),
        (2, 1, "fork"),
        (3, 2, "fork"),
        (8, 1, "fork"),
        pytest.param(2, 2, "spawn", marks=pytest.mark.slow),
        pytest.param(8, 1, "spawn", marks=pytest.mark.slow),
    ],
)
def test_a_plain_dataloader_with_advance(small_dataset: Path, workers: int, batch_size: int, method: Any) -> None:
    stream = open_stream(small_dataset, batch_size=batch_size)
    options: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": method}
    loader: Any = DataLoader(stream, batch_size=batch_size, collate_fn=collate_ragged, **options)
    served: list[str] = []
    for number, batch in enumerate(loader):
        served += batch.case_ids
        stream.advance(len(batch))
        if number == 2:
            break
    state = stream.state_dict()
    assert state["consumed"] == len(served) == 3 * batch_size
    other = open_stream(small_dataset, batch_size=2)
    other.load_state_dict(state)
    for batch in DataLoader(other, batch_size=2, num_workers=1, collate_fn=collate_ragged):
        served += batch.case_ids
        other.advance(len(batch))
    assert sorted(served) == sorted(expected(small_dataset, 0))
    assert other.state_dict()["epoch"] == 1
    assert other.state_dict()["consumed"] == 0


@many_workers
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_was_handed_over_decides_up_to_the_last_batch(small_dataset: Path, workers: int) -> None:
    """A DataLoader finds the end of a stream while it still collects the last batch, one that isn't full."""
    stream = open_stream(small_dataset, batch_size=2)
    loader: Any = DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=collate_ragged)
    for epoch in range(2):
        states, served = [], []
        for batch in loader:
            before = stream.state_dict()
            if served:  # then it is known that the loop tells
                assert (before["epoch"], before["consumed"]) == (epoch, len(served))
            served += batch.case_ids
            stream.advance(len(batch))
            states.append([stream.state_dict()[name] for name in ("epoch", "consumed")])
        assert sorted(served) == sorted(expected(small_dataset, epoch))
        assert states == [[epoch, 2 * step] for step in range(1, 9)] + [[epoch + 1, 0]]


def test_an_epoch_that_is_set_again_is_served_again(small_dataset: Path) -> None:
    """Also where only the workers' copies moved, which the stream itself can't see."""
    for live_on in (False, True):
        stream = open_stream(small_dataset)
        loader: Any = DataLoader(stream, num_workers=2, persistent_workers=live_on, collate_fn=collate_ragged)
        for epoch in (0, 0, 3, 3, 0):
            stream.set_epoch(epoch)
            assert [batch.case_ids[0] for batch in loader] == expected(small_dataset, epoch)
        assert [batch.case_ids[0] for batch in loader] == expected(small_dataset, 1)
        stream.load_state_dict(stream.state_dict() | {"epoch": 4, "consumed": 6})
        stream.set_epoch(4)  # a position that was loaded stays
        assert [batch.case_ids[0] for batch in loader] == expected(small_dataset, 4)[6:]
        stream.set_epoch(4)  # … until it was taken up
        assert [batch.case_ids[0] for batch in loader] == expected(small_dataset, 4)


def test_copies_of_streams_with_workers_are_streams_of_their_own(small_dataset: Path) -> None:
    stream = open_stream(small_dataset)
    options: dict[str, Any] = {"num_workers": 2, "collate_fn": collate_ragged}
    assert [batch.case_ids[0] for batch in DataLoader(stream, **options)] == expected(small_dataset, 0)
    for other in (copy.deepcopy(stream), copy.deepcopy(DataLoader(stream, **options)).dataset):
        for epoch in (1, 2):
            assert [batch.case_ids[0] for batch in DataLoader(other, **options)] == expected(small_dataset, epoch)
    assert [batch.case_ids[0] for batch in DataLoader(stream, **options)] == expected(small_dataset, 1)


def test_workers_that_live_on_go_to_the_next_epoch(small_dataset: Path) -> None:
    stream = open_stream(small_dataset)
    loader: Any = DataLoader(stream, num_workers=2, persistent_workers=True, collate_fn=collate_ragged)
    epochs = [[batch.case_ids[0] for batch in loader] for _ in range(3)]
    assert epochs == [expected(small_dataset, epoch) for epoch in range(3)]
    stream.set_epoch(7)
    assert [batch.case_ids[0] for batch in loader] == expected(small_dataset, 7)


def test_workers_that_live_on_after_a_break_are_told_where_to_go_on(small_dataset: Path) -> None:
    stream = open_stream(small_dataset)
    loader: Any = DataLoader(stream, num_workers=2, persistent_workers=True, collate_fn=collate_ragged)
    served: list[str] = []
    while stream.state_dict()["epoch"] == 0:
        stream.load_state_dict(stream.state_dict())
        for batch in loader:
            served += batch.case_ids
            stream.advance(1)
            if len(served) % 5 == 0:
                break
    assert served == expected(small_dataset, 0)


def slow_start(worker: int) -> None:
    """A worker that comes late: others have handed over batches when it begins."""
    time.sleep(0.3 * worker)


@pytest.mark.parametrize("live_on", [False, True])
def test_a_worker_that_comes_late_leaves_nothing_out(small_dataset: Path, live_on: bool) -> None:
    stream = open_stream(small_dataset)
    loader: Any = DataLoader(
        stream, num_workers=2, persistent_workers=live_on, collate_fn=collate_ragged, worker_init_fn=slow_start
    )
    served = []
    for batch in loader:
        served += batch.case_ids
        stream.advance(1)
    assert served == expected(small_dataset, 0)


@many_workers
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 calls it
@pytest.mark.parametrize(("workers", "cut"), [(0, 5), (2, 1), (2, 6), (3, 7)])
def test_torchdata_resumes_with_equal_workers(small_dataset: Path, workers: int, cut: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchdata = pytest.importorskip("torchdata.stateful_dataloader")

    def make() -> Any:
        stream = open_stream(small_dataset, batch_size=2)
        return torchdata.StatefulDataLoader(stream, batch_size=2, num_workers=workers, collate_fn=collate_ragged)

    first = make()
    served = [case for _, batch in zip(range(cut), first, strict=False) for case in batch.case_ids]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = make()
    second.load_state_dict(state)
    served += [case for batch in second for case in batch.case_ids]
    assert sorted(served) == sorted(expected(small_dataset, 0))


def test_a_spawned_worker_knows_its_rank(small_dataset: Path) -> None:
    parts = []
    for rank in range(2):
        stream = open_stream(small_dataset)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lpbf_data.serving.process_rank.rank_of_process", lambda rank=rank: (rank, 2))
            clone = pickle.loads(pickle.dumps(stream))
            copies = [copy.deepcopy(stream), copy.copy(stream)]
        parts.append(ids(clone))
        assert all(len(other) == 17 for other in copies)  # in this process the group is asked
    assert len(parts[0]) == len(parts[1]) == 8
    assert not set(parts[0]) & set(parts[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "0" * 16}, "other data"),
        ({"count": 18}, "18 cases"),
        ({"shuffle": 0}, "shuffle=False"),
        ({"epoch": None}, "has no 'epoch'"),
    ],
)
def test_a_foreign_state_is_refused(small_dataset: Path, change: dict[str, Any], message: str) -> None:
    stream = open_stream(small_dataset)
    state = {name: value for name, value in (stream.state_dict() | change).items() if value is not None}
    with pytest.raises(UsageError, match=message):
        stream.load_state_dict(state)
    with pytest.raises(UsageError, match="isn't one of this package"):
        stream.load_state_dict(None)


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Path]:
    """A data set of six cases in two shards, one of which has lost its pages."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    write_dataset(folder, {"train": [make_case(seed) for seed in range(6)]}, shards=2, formats=["parquet"])
    shard = sorted(folder.glob("data/*.parquet"))[1]
    content = bytearray(shard.read_bytes())
    content[1000 : len(content) // 2] = bytes(len(content) // 2 - 1000)
    shard.write_bytes(content)
    return folder


def test_what_cannot_be_read_is_told_or_left_out(damaged: Path) -> None:
    with pytest.raises(StoreError, match=r"case \d+_\w+_0 \(shard .*row \d\)"):
        ids(open_stream(damaged))
    stream = open_stream(damaged, on_error="skip")
    with pytest.warns(SkippedCaseWarning, match="left out: case"):
        served = ids(stream)
    assert len(served) + len(stream.skipped) == 6
    assert set(served) | set(stream.skipped) == set(load_dataset(damaged).case_ids)
    assert 3 <= len(served) < 6
    # A loader of the stream leaves out what the stream does, and raises where it is told to.
    with pytest.warns(SkippedCaseWarning, match="left out: case"):
        assert {name for batch in make_loader(stream) for name in batch.case_ids} == set(served)
    with pytest.raises(StoreError):
        list(make_loader(stream, on_error="raise"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "numpy"}, "pyg, torch"),
        ({"uneven": "x"}, "drop, pad, keep"),
        ({"on_error": "x"}, "raise, skip"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"rank": 1}, "both rank and world_size"),
        ({"rank": 2, "world_size": 2}, "rank=2 must lie"),
        ({"fields": ["speed"]}, "has no field 'speed'; it has: displacement"),
        ({"split": "extra"}, "has no split 'extra'; it has: train, validation, test"),
    ],
)
def test_impossible_options_are_refused(small_dataset: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_stream(small_dataset, **options)


@pytest.mark.parametrize("streaming", [True, False])
def test_what_users_of_datasets_look_for_is_answered(small_dataset: Path, streaming: bool) -> None:
    """The sentence names what is there, and it works; hasattr, copies and pickles see an attribute that isn't."""
    opened = load_dataset(small_dataset, streaming=streaming, format="torch")
    with pytest.raises(AttributeError, match="islice" if streaming else re.escape("dataset[:n]")):
        opened.take(2)
    assert not hasattr(opened, "map")
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        opened.nonsense  # noqa: B018
    again = pickle.loads(pickle.dumps(copy.copy(opened)))
    assert [sample["case_id"] for sample in itertools.islice(again, 2)] == stored_ids(small_dataset)[:2]
    if streaming:
        with pytest.raises(AttributeError, match="ranks share a stream by themselves"):
            split_dataset_by_node(opened, 0, 2)
