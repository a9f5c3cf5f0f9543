"""Data sets in accelerate: started by its launcher, shared out among two processes by its wrappers or here."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate.data_loader
import pytest
from torch.utils.data import IterableDataset

from lpbf_data import load_dataset
from lpbf_data.serving import process_rank
from tests.lpbf_data.launch_support import run_ranks
from tests.lpbf_data.loader_support import expected

ONE_READS, BOTH_READ, SPLIT = {"dispatch_batches": True}, {"dispatch_batches": False}, {"split_batches": True}
EXACT = {"dispatch_batches": False, "even_batches": False}


CASES = [
    ("stream", 0, None, ONE_READS),
    ("stream", 2, "fork", ONE_READS),
    ("stream", 0, None, BOTH_READ),
    ("stream", 2, "fork", BOTH_READ),
    ("stream", 0, None, SPLIT | ONE_READS),
    ("stream", 0, None, SPLIT | BOTH_READ),
    ("map", 0, None, ONE_READS),
    ("map", 2, "fork", BOTH_READ),
    ("map", 0, None, SPLIT | BOTH_READ),
    ("budget", 0, None, EXACT),
]
SPAWNED = [("stream", 2, "spawn", ONE_READS), ("stream", 2, "spawn", BOTH_READ)]


def run_cases(folder: Path, place: Path, cases: list[Any]) -> list[Any]:
    """What the two ranks were served in each of the cases."""
    ranks = run_ranks("accelerate", place, str(folder), cases, ranks=2, launcher="accelerate")
    return list(zip(*ranks, strict=True))


@pytest.fixture(scope="module")
def prepared(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_cases(small_dataset, tmp_path_factory.mktemp("accelerate"), CASES)


@pytest.mark.parametrize("number", range(len(CASES)), ids=str)
def test_each_case_comes_once_an_epoch_whoever_shares_out(small_dataset: Path, prepared: Any, number: int) -> None:
    check_epochs(small_dataset, prepared[number], *CASES[number])


@pytest.mark.slow
def test_each_case_comes_once_from_spawned_workers(small_dataset: Path, tmp_path: Path) -> None:
    for case, found in zip(SPAWNED, run_cases(small_dataset, tmp_path / "run", SPAWNED), strict=True):
        check_epochs(small_dataset, found, *case)


def check_epochs(small_dataset: Path, found: Any, kind: str, workers: int, method: Any, options: Any) -> None:
    every = sorted(int(name.split("_")[0]) for name in load_dataset(small_dataset).case_ids)
    orders = []
    for epoch in range(3):
        batches = [rank["epochs"][epoch] for rank in found]
        steps = [len(each) for each in batches]
        if options != EXACT:
            assert steps[0] == steps[1]
        if options != SPLIT | BOTH_READ:  # accelerate counts a step too many there
            assert steps == [each["length"] for each in found]
        served = [number for rank in batches for batch in rank for number in batch]
        # accelerate fills the last step of all, or of each worker, with cases that came before
        filled = max(workers, 1) * 3 if options != EXACT else 0
        assert sorted(set(served)) == every
        assert len(every) <= len(served) <= len(every) + filled
        assert max(Counter(served).values()) <= 2
        orders.append(batches)
        if kind == "stream" and workers == 0:
            first = [number for batch in (batches[0][0], batches[1][0]) for number in batch]
            assert first == [int(name.split("_")[0]) for name in expected(small_dataset, epoch)[: len(first)]]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_every_class_of_accelerate_that_shares_out_is_known() -> None:
    """A version that has another one, or other methods that iterate, fails here and not in somebody's epoch."""
    theirs = {
        name: found
        for name, found in vars(accelerate.data_loader).items()
        if inspect.isclass(found) and found.__module__ == accelerate.data_loader.__name__
    }
    told = {name for name, found in theirs.items() if "process_index" in inspect.signature(found).parameters}
    sends = {name for name, found in theirs.items() if "broadcast_object_list" in inspect.getsource(found)}
    assert told | sends == process_rank._WRAPPER_CLASSES
    assert set(theirs) - process_rank._WRAPPER_CLASSES == {
        "DataLoaderAdapter", "DataLoaderShard", "DataLoaderStateMixin", "SeedableRandomSampler", "SkipBatchSampler",
        "SkipDataLoader",
    }  # fmt: skip
    for name in process_rank._WRAPPER_CLASSES:
        for method in (theirs[name].__iter__, getattr(theirs[name], "_fetch_batches", None), theirs[name].__len__):
            if method is not None and method.__qualname__.startswith(name):
                assert inspect.unwrap(method).__globals__["__name__"].startswith(process_rank._WRAPPER_PACKAGES)


class IterableDatasetShard:
    """Somebody's own, by the same name: it shares nothing out."""

    def __iter__(self) -> Iterator[bool]:
        yield process_rank.shared_by_wrapper()


def test_a_class_by_the_same_name_is_no_wrapper() -> None:
    assert list(IterableDatasetShard()) == [False]
    wrapper = accelerate.data_loader.IterableDatasetShard(Asking(), batch_size=1, num_processes=1, process_index=0)
    assert list(wrapper) == [True]


class Asking(IterableDataset[bool]):
    def __iter__(self) -> Iterator[bool]:
        yield process_rank.shared_by_wrapper()


def test_a_loader_of_the_package_stays_as_it_is_and_ranks_that_were_asked_for_are_refused(
    small_dataset: Path, tmp_path: Path
) -> None:
    found = run_ranks("accelerate_made", tmp_path / "run", str(small_dataset), ranks=2, launcher="accelerate")
    order = expected(small_dataset, 0)
    assert [each["served"] for each in found] == [order[0:16:2], order[1:16:2]]
    assert "cases would be shared out twice" in found[0]["said"]


def test_a_stream_that_accelerate_shares_out_is_taken_up_where_it_was_left(small_dataset: Path, tmp_path: Path) -> None:
    found = run_ranks("accelerate_resumes", tmp_path / "run", str(small_dataset), ranks=2, launcher="accelerate")
    every = [int(name.split("_")[0]) for name in expected(small_dataset, 0)]
    for one, other in zip(*found, strict=True):
        assert set(one["served"]) | set(other["served"]) == set(every)
        assert set(one["served"][:4]) | set(other["served"][:4]) == set(every[:8])
        assert len(one["served"]) == len(other["served"]) == 9
        assert one["states"][:4] == [[0, 2], [0, 4], [0, 6], [0, 8]]
        assert one["states"][-1] == [1, 0]
