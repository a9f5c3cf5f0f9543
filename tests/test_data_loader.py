"""The loader: the same batches for any workers, exact wherever it is cut, and never a rank that waits for ever."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lpbf_data import Loader, NodeBudgetSampler, RaggedBatch, load_dataset, make_loader
from lpbf_data.batching import collate_ragged
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.sampling import epoch_order
from lpbf_data.stream import SkippedCaseWarning
from lpbf_data.transforms import Compose, ScalePoints, SubsamplePoints
from tests.data_support import make_case, write_dataset

many_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
SLOW_TO_START = [pytest.param(2, name, marks=pytest.mark.slow) for name in ("spawn", "forkserver")]
quick = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def open_loader(data: Any, **options: Any) -> Loader:
    chosen: dict[str, Any] = {"shuffle": True, "seed": 5, "fields": []} | options
    return make_loader(data, **chosen)


def ids_of(batches: Any) -> list[tuple[str, ...]]:
    return [batch.case_ids for batch in batches]


def flat(batches: list[tuple[str, ...]]) -> list[str]:
    return list(itertools.chain.from_iterable(batches))


def expected(folder: Path, epoch: int) -> list[str]:
    names = load_dataset(folder).case_ids
    return [names[index] for index in epoch_order(17, shuffle=True, seed=5, epoch=epoch).tolist()]


def same(first: RaggedBatch, second: RaggedBatch) -> bool:
    tensors = (("pos", first.pos, second.pos), ("y", first.y, second.y), ("offsets", first.offsets, second.offsets))
    fields = all(torch.equal(first.fields[name], second.fields[name]) for name in first.fields | second.fields)
    return first.case_ids == second.case_ids and fields and all(torch.equal(a, b) for _, a, b in tensors)


def test_epochs_follow_one_another(small_dataset: Path) -> None:
    loader = open_loader(str(small_dataset), batch_size=3)
    assert len(loader) == 6
    for epoch in range(3):
        assert loader.epoch == epoch
        batches = ids_of(loader)
        assert [len(batch) for batch in batches] == [3, 3, 3, 3, 3, 2]
        assert flat(batches) == expected(small_dataset, epoch)
    assert loader.epoch == 3
    assert loader.seconds_waiting > 0


def test_a_batch_holds_what_the_cases_hold(small_dataset: Path, small_cases: Any) -> None:
    loader = open_loader(small_dataset, batch_size=4, fields=None, cells=True, edges=True)
    by_id = {case.case_id: case for case in small_cases["train"]}
    for batch in loader:
        starts = batch.offsets.tolist()
        assert starts[0] == 0
        assert starts[-1] == len(batch.pos)
        for number, case_id in enumerate(batch.case_ids):
            case, span = by_id[case_id], slice(starts[number], starts[number + 1])
            np.testing.assert_array_equal(batch.pos[span], case.points)
            np.testing.assert_array_equal(batch.y[span, 0], case.fields["displacement"][:, 2])
            np.testing.assert_array_equal(batch.fields["displacement"][span], case.fields["displacement"])
            np.testing.assert_array_equal(batch.fields["von_mises_stress"][span, 0], case.fields["von_mises_stress"])
        cells = torch.cat(
            [torch.from_numpy(by_id[i].cells).long() + s for i, s in zip(batch.case_ids, starts, strict=False)]
        )
        assert torch.equal(batch.cells, cells)
        ends = torch.searchsorted(batch.offsets, batch.edge_index, right=True)
        assert torch.equal(ends[0], ends[1])
        assert batch.edge_index.max() < len(batch.pos)


@many_workers
@pytest.mark.parametrize(
    ("workers", "method"),
    [(1, "fork"), (2, "fork"), (8, "fork"), (1, "spawn"), *SLOW_TO_START],
)
def test_workers_change_nothing(small_dataset: Path, workers: int, method: Any) -> None:
    alone = open_loader(small_dataset, batch_size=2, fields=["temperature"])
    helped = open_loader(small_dataset, batch_size=2, fields=["temperature"], num_workers=workers, start_method=method)
    for _ in range(2):
        pairs = list(zip(alone, helped, strict=True))
        assert len(pairs) == 9
        assert all(same(first, second) for first, second in pairs)


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
def test_a_loop_that_is_left_goes_on_behind_its_last_batch(small_dataset: Path, workers: int) -> None:
    loader = open_loader(small_dataset, num_workers=workers, batch_size=2)
    served = []
    while loader.state_dict()["epoch"] == 0:
        for batch in loader:
            served.append(batch.case_ids)
            if len(served) % 3 == 0:
                break
    assert flat(served) == expected(small_dataset, 0)
    loader.set_epoch(5)
    assert flat(ids_of(loader)) == expected(small_dataset, 5)


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
        iterators = [iter(loader) for loader in loaders]
        for _ in range(steps):
            batches = [next(iterator, None) for iterator in iterators]
            served += [case for batch in batches if batch is not None for case in batch.case_ids]
            for batch in batches:
                assert max_points is None or batch is None or len(batch.pos) <= max_points
            if None in batches:
                break
        state = loaders[0].state_dict()
        for iterator in iterators:
            iterator.close()  # type: ignore[attr-defined]
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


def train_one_rank(rank: int, ranks: int, folder: str, place: str, uneven: Any, results: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=ranks)
    loader = make_loader(folder, batch_size=2, shuffle=True, fields=[], uneven=uneven)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
    for _ in range(2):
        for batch in loader:
            (model(batch.pos) - batch.y).square().mean().backward()  # hangs unless all ranks take part
    results.put((rank, loader.epoch, loader.rank, loader.world_size, float(model.module.weight.grad.sum())))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("uneven", ["drop", "pad"])
def test_distributed_training_does_not_hang_at_uneven_ends(small_dataset: Path, tmp_path: Path, uneven: str) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    place = str(tmp_path / "rendezvous")
    processes = [
        context.Process(target=train_one_rank, args=(rank, 3, str(small_dataset), place, uneven, results))
        for rank in range(3)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    assert [entry[:4] for entry in found] == [(rank, 2, rank, 3) for rank in range(3)]
    assert len({entry[4] for entry in found}) == 1


@many_workers
@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), *SLOW_TO_START])
def test_in_memory_reads_nothing_more(small_cases: Any, tmp_path: Path, workers: int, method: Any) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_dataset(folder, {"train": small_cases["train"]}, formats=["parquet"])
    plain = list(open_loader(folder, batch_size=4, fields=None, cache=False))
    loader = open_loader(folder, batch_size=4, fields=None, in_memory=True, num_workers=workers, start_method=method)
    for shard in folder.glob("data/*.parquet"):
        shard.unlink()
    for _ in range(2):
        loader.epoch = 0
        assert all(same(first, second) for first, second in zip(loader, plain, strict=True))


def test_pyg_batches(small_dataset: Path) -> None:
    ragged = list(open_loader(small_dataset, batch_size=3, cells=True, edges=True))
    for batch, other in zip(
        open_loader(small_dataset, batch_size=3, cells=True, edges=True, collate="pyg"), ragged, strict=True
    ):
        assert tuple(batch.case_id) == other.case_ids
        assert torch.equal(batch.ptr, other.offsets)
        for name in ("pos", "y", "cells", "edge_index"):
            assert torch.equal(batch[name], getattr(other, name))


def test_a_plain_dataloader_with_a_budget_of_points(small_dataset: Path) -> None:
    dataset = load_dataset(small_dataset, format="torch", fields=[], cells=False)
    served: list[str] = []
    for rank in range(2):
        sampler = NodeBudgetSampler(dataset.sizes, 300, shuffle=True, rank=rank, world_size=2, uneven="keep")
        batches: Any = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_ragged)
        for batch in batches:
            assert len(batch.pos) == batch.offsets[-1] <= 300
            served += batch.case_ids
    assert sorted(served) == sorted(dataset.case_ids)


class Pinnable:
    """A batch that remembers in which thread it was pinned."""

    def __init__(self, samples: Any) -> None:
        self.count = len(samples)
        self.pinned_in = ""

    def pin_memory(self) -> Pinnable:
        self.pinned_in = threading.current_thread().name
        return self


@many_workers
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_pinned_beside_training_and_in_this_process(small_dataset: Path, workers: int) -> None:
    loader = open_loader(small_dataset, collate=Pinnable, pin_memory=True, batch_size=5, num_workers=workers)
    batches = list(loader)
    assert [batch.count for batch in batches] == [5, 5, 5, 2]
    assert {batch.pinned_in for batch in batches} == {"lpbf-read-ahead"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_batches_arrive_in_page_locked_memory(small_dataset: Path) -> None:
    assert all(batch.pos.is_pinned() and batch.offsets.is_pinned() for batch in open_loader(small_dataset))


def spoil(sample: dict[str, Any]) -> dict[str, Any]:
    sample["pos"].mul_(0)
    return sample


def count_points(samples: Any) -> list[int]:
    for sample in samples:
        sample["pos"].mul_(0)
    return [len(sample["pos"]) for sample in samples]


@pytest.mark.parametrize("collate", ["ragged", "pyg", count_points])
def test_users_functions_get_their_own_tensors(small_dataset: Path, collate: Any) -> None:
    clean = list(open_loader(small_dataset))
    for _ in range(2):
        transform = None if callable(collate) else spoil
        batches = list(open_loader(small_dataset, collate=collate, transform=transform))
        assert len(batches) == 17
    assert all(same(first, second) for first, second in zip(open_loader(small_dataset), clean, strict=True))


def test_a_batch_of_one_is_a_copy(small_dataset: Path) -> None:
    loader = open_loader(small_dataset)
    first = next(iter(loader))
    before = first.pos.clone()
    first.pos.zero_()
    loader = open_loader(small_dataset)
    assert torch.equal(next(iter(loader)).pos, before)


@many_workers
def test_random_subsets_are_the_same_on_any_ranks_and_workers(small_dataset: Path) -> None:
    transform = Compose(SubsamplePoints(20), ScalePoints())

    def subsets(**options: Any) -> dict[str, torch.Tensor]:
        ranks = options.pop("ranks", 1)
        loaders = [
            open_loader(small_dataset, transform=transform, rank=r, world_size=ranks, uneven="keep", **options)
            for r in range(ranks)
        ]
        return {batch.case_ids[0]: batch.pos for loader in loaders for batch in loader}

    first = subsets()
    assert all(len(pos) == 20 for pos in first.values())
    for options in ({"num_workers": 2}, {"ranks": 3}, {"ranks": 2, "num_workers": 1}):
        again = subsets(**options)
        assert all(torch.equal(again[name], first[name]) for name in first)
    loader = open_loader(small_dataset, transform=transform)
    loader.set_epoch(1)
    other = {batch.case_ids[0]: batch.pos for batch in loader}
    assert not any(torch.equal(other[name], first[name]) for name in first)


def test_a_slice_of_a_data_set_is_a_data_set(small_dataset: Path) -> None:
    part = load_dataset(small_dataset, fields=[])[4:9]
    loader = make_loader(part, shuffle=True, batch_size=2)
    assert sorted(flat(ids_of(loader))) == sorted(part.case_ids)
    with pytest.raises(UsageError, match="other data"):
        loader.load_state_dict(open_loader(small_dataset).state_dict())


@pytest.fixture(params=["altered"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Six cases in two shards; of the second only the footer is whole, or it is cut, or missing."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    write_dataset(folder, {"train": [make_case(seed) for seed in range(6)]}, shards=2, formats=["parquet"])
    shard = sorted(folder.glob("data/*.parquet"))[1]
    content = bytearray(shard.read_bytes())
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    content[4:-footer] = bytes(len(content) - footer - 4)
    if request.param == "altered":
        shard.write_bytes(content)
    elif request.param == "cut":
        shard.write_bytes(content[:-100])
    else:
        shard.unlink()
    return folder


@many_workers
@pytest.mark.parametrize("damaged", ["altered", "cut", "missing"], indirect=True)
@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (0, 4), (2, 1), (2, 4)])
def test_skipped_cases_are_counted_and_no_step_is_lost(damaged: Path, workers: int, batch_size: int) -> None:
    loader = make_loader(damaged, shuffle=True, batch_size=batch_size, num_workers=workers, on_error="skip")
    bad = load_dataset(damaged).case_ids[3:]
    with pytest.warns(SkippedCaseWarning, match=r"left out: case .* \(shard .*row \d\)"):
        batches = ids_of(loader)
    assert len(batches) == len(loader)
    assert sorted(loader.skipped) == sorted(bad)
    assert set(flat(batches)) == set(load_dataset(damaged).case_ids[:3])
    assert len(ids_of(loader)) == len(loader)  # warned of once


@many_workers
@pytest.mark.parametrize("damaged", ["altered", "cut", "missing"], indirect=True)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_told(damaged: Path, workers: int) -> None:
    loader = make_loader(damaged, num_workers=workers)
    with pytest.raises(StoreError, match=r"^case \d+_\w+_0 \(shard .*00001-of-00002.parquet, row 0\): [^\n]+$"):
        ids_of(loader)
    assert loader.state_dict()["consumed"] == 3


def test_nothing_readable_is_an_error(damaged: Path) -> None:
    part = load_dataset(damaged)[3:]
    with pytest.raises(StoreError, match="no case"):
        ids_of(make_loader(part, on_error="skip"))


def die(_: dict[str, Any]) -> dict[str, Any]:
    os._exit(9)


@pytest.mark.slow  # torch looks after its workers every five seconds
def test_a_killed_worker_is_an_error_and_no_hang(small_dataset: Path) -> None:
    loader = open_loader(small_dataset, num_workers=1, transform=die)
    with pytest.raises(RuntimeError, match="worker"):
        ids_of(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collate": "numpy"}, "ragged, pyg"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"read_ahead": 0}, "read_ahead=0"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"batch_size": None}, "needs a size"),
        ({"max_points": 10}, "max_points=10 is less than"),
        ({"rank": 3, "world_size": 3}, "rank=3 must lie"),
        ({"world_size": 3}, "both rank and world_size"),
        ({"uneven": "x"}, "drop, pad, keep"),
    ],
)
def test_impossible_options_are_refused(small_dataset: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_loader(small_dataset, **options)


def test_states_of_other_seeds_are_refused(small_dataset: Path) -> None:
    state = open_loader(small_dataset).state_dict()
    with pytest.raises(UsageError, match="seed=5"):
        open_loader(small_dataset, seed=6).load_state_dict(state)
    with pytest.raises(UsageError, match="shuffle=True"):
        open_loader(small_dataset, shuffle=False).load_state_dict(state)


def test_something_else_is_no_data_set() -> None:
    with pytest.raises(UsageError, match="not list"):
        make_loader([])  # type: ignore[arg-type]


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
        iterators = [iter(loader) for loader in loaders]
        for _ in range(data.draw(st.integers(0, 5)) if part < 2 else 99):
            batches = [next(iterator, None) for iterator in iterators]
            served += [case for batch in batches if batch is not None for case in batch.case_ids]
            if None in batches:
                break
        state = loaders[0].state_dict()
        for iterator in iterators:
            iterator.close()  # type: ignore[attr-defined]
        if state["epoch"]:
            break
    assert sorted(served) == sorted(expected(small_dataset, 0))
