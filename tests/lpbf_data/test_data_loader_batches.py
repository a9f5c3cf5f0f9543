"""The loader's batches: what they hold, the same for any workers, and what becomes of cases that can't be read."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.loader
from torch.utils.data import DataLoader

from lpbf_data import NodeBudgetSampler, RaggedBatch, load_dataset, make_loader
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.serving.collating import collate_ragged
from lpbf_data.serving.stream import SkippedCaseWarning
from lpbf_data.serving.transforms import Compose, ScalePoints, SubsamplePoints
from tests.data_support import make_case, write_dataset
from tests.lpbf_data.loader_support import flat, ids_of, many_workers, open_loader

SLOW_TO_START = [pytest.param(2, name, marks=pytest.mark.slow) for name in ("spawn", "forkserver")]


def same(first: RaggedBatch, second: RaggedBatch) -> bool:
    tensors = (("pos", first.pos, second.pos), ("y", first.y, second.y), ("offsets", first.offsets, second.offsets))
    fields = all(torch.equal(first.fields[name], second.fields[name]) for name in first.fields | second.fields)
    return first.case_ids == second.case_ids and fields and all(torch.equal(a, b) for _, a, b in tensors)


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


@many_workers
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("streaming", [False, True])
def test_pytorchs_own_loader_joins_graphs_as_pyg_does(small_dataset: Path, workers: int, *, streaming: bool) -> None:
    graphs = load_dataset(small_dataset, streaming=streaming, batch_size=3)
    context = "spawn" if workers else None
    batches = list(DataLoader(graphs, batch_size=3, num_workers=workers, multiprocessing_context=context))
    expected = list(torch_geometric.loader.DataLoader(load_dataset(small_dataset), batch_size=3))
    assert len(batches) == len(expected) > 1
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch.case_id == wanted.case_id
        for name in ("pos", "y", "cells", "batch", "ptr"):
            assert torch.equal(batch[name], wanted[name])


def test_graphs_become_ragged_batches_too(small_dataset: Path) -> None:
    graphs, dicts = (load_dataset(small_dataset, format=kind, edges=True)[:3] for kind in ("pyg", "torch"))
    joined, wanted = collate_ragged(list(graphs)), collate_ragged(list(dicts))
    assert same(joined, wanted)
    assert torch.equal(joined.cells, wanted.cells)
    assert torch.equal(joined.edge_index, wanted.edge_index)


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
def test_memory_is_pinned_beside_training_and_in_this_process(
    small_dataset: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    loader = open_loader(small_dataset, collate=Pinnable, pin_memory=True, batch_size=5, num_workers=workers)
    batches = list(loader)
    assert [batch.count for batch in batches] == [5, 5, 5, 2]
    assert {batch.pinned_in for batch in batches} == {"lpbf-read-ahead"}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is of use with a GPU")
def test_memory_that_can_not_be_pinned_is_told(small_dataset: Path) -> None:
    with pytest.warns(UserWarning, match="pin_memory=True does nothing here: PyTorch finds no GPU"):
        loader = open_loader(small_dataset, pin_memory=True)
    assert len(next(iter(loader))) == 1


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
        ({"max_points": 10}, "max_points=10 is less than"),
        ({"rank": 3, "world_size": 3}, "rank=3 must lie"),
        ({"world_size": 3}, "both rank and world_size"),
        ({"uneven": "x"}, "drop, pad, keep"),
    ],
)
def test_impossible_options_are_refused(small_dataset: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_loader(small_dataset, **options)


def test_something_else_is_no_data_set() -> None:
    with pytest.raises(UsageError, match="not list"):
        make_loader([])  # type: ignore[arg-type]


def test_a_budget_of_points_alone_fills_batches(small_dataset: Path) -> None:
    sizes = [len(batch) for batch in open_loader(small_dataset, max_points=1_000_000, fields=[])]
    one_by_one = open_loader(small_dataset, fields=[])
    assert sizes == [len(one_by_one)]
    assert [len(batch) for batch in one_by_one] == [1] * sizes[0]


def test_numbers_without_graphs_need_no_pyg(small_dataset: Path) -> None:
    """It takes seconds to import, in each worker that is started anew."""
    program = (
        "import sys; from lpbf_data import load_dataset, make_loader\n"
        "[folder] = sys.argv[1:]; list(make_loader(folder, fields=[]))\n"
        "for streaming in (False, True): list(load_dataset(folder, format='torch', fields=[], streaming=streaming))\n"
        "assert 'torch_geometric' not in sys.modules\n"
        "assert type(load_dataset(folder, fields=[])[0]).__mro__[1].__module__.startswith('torch_geometric.')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(small_dataset)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_data_set_of_graphs_is_one_of_pyg(small_dataset: Path) -> None:
    data = load_dataset(small_dataset, fields=[])
    assert isinstance(data, torch_geometric.data.Dataset)
    assert data.num_node_features == 0
    shuffled = data.shuffle()
    assert sorted(shuffled.case_ids) == sorted(data.case_ids)
    assert [sample.case_id for sample in shuffled] == shuffled.case_ids
    assert next(iter(torch_geometric.loader.DataLoader(data, batch_size=3))).case_id == data.case_ids[:3]
    data.transform = lambda sample: sample.case_id
    assert (data[3], data[3:5][1]) == (data.case_ids[3], data.case_ids[4])


@pytest.mark.parametrize("kind", ["pyg", "torch"])
def test_parts_of_a_data_set(small_dataset: Path, kind: Any) -> None:
    data = load_dataset(small_dataset, format=kind, fields=[])
    names = data.case_ids
    few = np.arange(17) % 5 == 0
    for index, chosen in (
        (slice(2, 9, 3), names[2:9:3]),
        (slice(None, 0.5), names[:8]),
        ([3, -1], [names[3], names[16]]),
        ([], []),
        (np.array([4]), names[4:5]),
        (torch.tensor([4, 2]), [names[4], names[2]]),
        (few, names[::5]),
        (torch.from_numpy(few), names[::5]),
        (few.tolist(), names[::5]),
    ):
        part = data[index]
        assert (part.case_ids, len(part)) == (chosen, len(chosen))
        assert [sample["case_id"] for sample in part[::-1]] == chosen[::-1]
    for one in (5, np.int64(5), torch.tensor(5), -12):
        assert data[one]["case_id"] == names[5]
    for wrong in (17, -18, [17], few[:9]):
        with pytest.raises(IndexError):
            data[wrong]
    assert repr(data[:3]).endswith("Dataset(3)")
