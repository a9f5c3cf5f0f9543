"""Data sets in DataLoaders of PyTorch and torchdata: epochs follow one another, random transforms draw anew."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from lpbf_data import NodeBudgetSampler, load_dataset, make_loader
from lpbf_data.errors import UsageError
from lpbf_data.serving.collating import collate_pyg, collate_ragged
from lpbf_data.serving.process_rank import RanksWarning
from lpbf_data.serving.transforms import RandomSymmetry, SubsamplePoints
from tests.lpbf_data.launch_support import run_ranks
from tests.lpbf_data.loader_support import expected, first, flat, ids, ids_of, many_workers, open_loader

# torchdata 0.11 calls it
stateful = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


@many_workers
@stateful
@pytest.mark.parametrize("loader_class", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize(
    ("workers", "persistent"),
    [
        *[(0, False), (1, False), (2, False), (3, True)],
        *[pytest.param(*alike, marks=pytest.mark.slow) for alike in ((1, True), (2, True), (5, False))],
    ],
)
def test_epochs_of_a_stream_follow_one_another_in_any_loader(
    small_dataset: Path, loader_class: Any, workers: int, persistent: bool
) -> None:
    stream = load_dataset(small_dataset, streaming=True, shuffle=True, seed=5, format="torch", fields=[], cells=False)
    loader = loader_class(stream, batch_size=1, collate_fn=first, num_workers=workers, persistent_workers=persistent)
    for epoch in range(3):
        assert sorted(served := ids(loader)) == sorted(expected(small_dataset, epoch))
        if workers < 2:
            assert served == expected(small_dataset, epoch)
        else:  # workers take turns, and those that have nothing left are passed over
            assert served[:10] == expected(small_dataset, epoch)[:10]


def resumable(folder: Path, workers: int, batch_size: int, **options: Any) -> Any:
    choices: dict[str, Any] = {"shuffle": True, "seed": 5, "format": "torch", "fields": [], "cells": False}
    stream = load_dataset(folder, streaming=True, batch_size=batch_size, **choices)
    return StatefulDataLoader(stream, batch_size=batch_size, num_workers=workers, collate_fn=collate_ragged, **options)


@many_workers
@stateful
@pytest.mark.parametrize(
    ("workers", "persistent", "batch_size"),
    [
        *[(workers, False, 3) for workers in (0, 1)],
        # With three processes the fast suite resumes in a later epoch, below.
        *[pytest.param(workers, False, 3, marks=pytest.mark.slow) for workers in (2, 3, 4, 5)],
        (2, True, 3),
        *[pytest.param(workers, workers > 2, 1, marks=pytest.mark.slow) for workers in range(6)],
    ],
)
def test_a_stateful_dataloader_resumes_from_every_cut(
    small_dataset: Path, workers: int, persistent: bool, batch_size: int
) -> None:
    """The rest of the epoch batch for batch, each case once, and then the next epoch, whole."""
    options = {"persistent_workers": persistent}
    whole = ids_of(resumable(small_dataset, workers, batch_size, **options))
    assert sorted(flat(whole)) == sorted(expected(small_dataset, 0))
    for cut in range(len(whole) + 1):
        loader = resumable(small_dataset, workers, batch_size, **options)
        served = [batch.case_ids for _, batch in zip(range(cut), loader, strict=False)]
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        other = resumable(small_dataset, workers, batch_size, **options)
        other.load_state_dict(state)
        served += ids_of(other)
        # Cut at its very end, an epoch may be over already: then what comes is the next one.
        assert served[: len(whole)] == whole
        following = served[len(whole) :] or ids_of(other)
        assert sorted(flat(following)) == sorted(expected(small_dataset, 1))


@many_workers
@stateful
@pytest.mark.parametrize(
    ("workers", "persistent"), [(0, False), (3, False), pytest.param(3, True, marks=pytest.mark.slow)]
)
def test_a_stateful_dataloader_resumes_in_a_later_epoch(small_dataset: Path, workers: int, persistent: bool) -> None:
    """Also before each worker had its first turn in it."""
    options = {"persistent_workers": persistent}
    for cut in (1, 2, 5):
        loader = resumable(small_dataset, workers, 3, **options)
        for epoch in range(2):
            assert sorted(flat(ids_of(loader))) == sorted(expected(small_dataset, epoch))
        served = [batch.case_ids for _, batch in zip(range(cut), loader, strict=False)]
        other = resumable(small_dataset, workers, 3, **options)
        other.load_state_dict(loader.state_dict())
        assert sorted(flat(served + ids_of(other))) == sorted(expected(small_dataset, 2))
        assert sorted(flat(ids_of(other))) == sorted(expected(small_dataset, 3))


def test_processes_started_without_a_group_are_told(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_all() -> list[Any]:
        stream = load_dataset(small_dataset, streaming=True, format="torch", fields=[], cells=False)
        sampler = NodeBudgetSampler([3, 4], 5)
        return [open_loader(small_dataset), stream, DataLoader(stream, batch_size=1, collate_fn=first), sampler]

    # srun started eight, torchrun three; sbatch alone starts one, whatever it was asked for
    for variables in ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, {"WORLD_SIZE": "3", "RANK": "1"}):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            for opened in (open_all()[number] for number in (0, 1, 2, 3)):
                with pytest.warns(RanksWarning, match=r"\d processes were started .* each of them serves all cases"):
                    list(opened)
                list(opened)  # once is enough (the test fails with a warning that nobody expects)
            list(open_loader(small_dataset, rank=0, world_size=1))
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    for opened in open_all():
        list(opened)


def test_a_sampler_asks_the_process_group(tmp_path: Path) -> None:
    found = run_ranks("sample", tmp_path / "run", ranks=3)
    assert [each["length"] for each in found] == [len(each["batches"]) for each in found] == [2, 2, 2]
    cases = [case for each in found for batch in each["batches"] for case in batch]
    assert len(cases) == len(set(cases)) == 6


@many_workers
def test_a_loop_that_is_left_early_is_followed_by_the_next_epoch(small_dataset: Path) -> None:
    stream = load_dataset(small_dataset, streaming=True, shuffle=True, seed=5, format="torch", fields=[], cells=False)
    next(iter(stream))
    assert ids(stream) == expected(small_dataset, 1)
    loader = DataLoader(stream, batch_size=1, collate_fn=first, num_workers=2)
    assert next(iter(loader))["case_id"] == expected(small_dataset, 2)[0]
    assert ids(loader)[:10] == expected(small_dataset, 3)[:10]
    # … with other numbers of workers, and with the epoch set by hand
    loader = DataLoader(stream, batch_size=1, collate_fn=first, num_workers=4)
    assert ids(loader)[:10] == expected(small_dataset, 4)[:10]
    stream.set_epoch(9)
    assert ids(loader)[:10] == expected(small_dataset, 9)[:10]
    assert ids(loader)[:10] == expected(small_dataset, 10)[:10]


@many_workers
def test_two_batches_of_a_sanity_check_are_in_the_next_validation(small_dataset: Path) -> None:
    for workers in (0, 2):
        loader = open_loader(small_dataset, shuffle=False, batch_size=2, num_workers=workers)
        for _, _ in zip(range(2), loader, strict=False):
            pass
        assert flat(ids_of(loader)) == load_dataset(small_dataset).case_ids
        shuffled = open_loader(small_dataset, batch_size=2, num_workers=workers)
        next(iter(shuffled))
        assert flat(ids_of(shuffled)) == expected(small_dataset, 1)
        next(iter(shuffled))
        shuffled.set_epoch(2)  # asked for by name: from its beginning
        assert flat(ids_of(shuffled)) == expected(small_dataset, 2)


@many_workers
@pytest.mark.parametrize("transform", [SubsamplePoints(5), pytest.param(RandomSymmetry(), marks=pytest.mark.slow)])
def test_random_transforms_of_a_map_style_data_set_draw_anew(small_dataset: Path, transform: Any) -> None:
    def points(seed: int, workers: int, persistent: bool = False) -> list[torch.Tensor]:
        torch.manual_seed(1)
        data = load_dataset(small_dataset, format="torch", fields=[], cells=False, transform=transform, seed=seed)
        options = {"num_workers": workers, "persistent_workers": persistent, "collate_fn": first}
        loader = DataLoader(data, batch_size=1, **options)
        return [torch.cat([sample["pos"] for sample in loader]) for _ in range(3)]

    for workers, persistent in ((0, False), (2, False), (2, True)):
        epochs = points(0, workers, persistent)
        for one in range(3):
            for other in range(one):
                assert not torch.equal(epochs[one], epochs[other])
        assert not torch.equal(points(3, workers, persistent)[0], epochs[0])
        assert all(map(torch.equal, points(0, workers, persistent), epochs))


@many_workers
def test_an_epoch_that_is_set_decides_what_is_drawn(small_dataset: Path) -> None:
    data = load_dataset(small_dataset, format="torch", fields=[], cells=False, transform=SubsamplePoints(5), seed=2)
    loader = DataLoader(data, batch_size=1, num_workers=2, persistent_workers=True, collate_fn=first)
    drawn = {}
    for epoch in (4, 5, 4):
        data.set_epoch(epoch)
        points = torch.cat([sample["pos"] for sample in loader])
        assert epoch not in drawn or torch.equal(drawn[epoch], points)
        drawn[epoch] = points
        assert torch.equal(points, torch.cat([data[i]["pos"] for i in range(len(data))]))
    assert not torch.equal(drawn[4], drawn[5])


def test_a_loader_made_before_the_process_group_serves_its_rank(small_dataset: Path, tmp_path: Path) -> None:
    found = run_ranks("serve", tmp_path / "run", str(small_dataset), "keep", ranks=3)
    order = expected(small_dataset, 0)
    assert [each["served"] for each in found] == [order[rank::3] for rank in range(3)]
    assert [each["length"] for each in found] == [6, 6, 5]


def test_numbers_of_drawn_points_are_not_shifted_in_batches(small_dataset: Path) -> None:
    data = load_dataset(small_dataset, fields=[], transform=SubsamplePoints(5))
    samples = [data[0], data[1]]
    batch = collate_pyg(samples)
    assert torch.equal(batch.point_index, torch.cat([sample.point_index for sample in samples]))
    assert torch.equal(batch[1].point_index, samples[1].point_index)
    whole = load_dataset(small_dataset, fields=[], edges=True)
    joined = collate_pyg([whole[0], whole[1]])
    assert torch.equal(joined.cells[len(whole[0].cells) :], whole[1].cells + whole[0].num_nodes)
    assert torch.equal(joined.edge_index[:, whole[0].edge_index.shape[1] :], whole[1].edge_index + whole[0].num_nodes)


def test_options_that_do_not_exist_are_refused_with_the_nearest(small_dataset: Path) -> None:
    opened = load_dataset(small_dataset)
    for data in (opened, small_dataset):
        with pytest.raises(UsageError, match="no option 'batchsize'; did you mean 'batch_size'"):
            make_loader(data, batchsize=4)
        with pytest.raises(UsageError, match="no option 'shufle'; did you mean 'shuffle'"):
            make_loader(data, shufle=True)
    for late in (
        {"revision": "main"},
        {"fields": []},
        {"cells": True},
        {"features": "geometry"},
        {"cache": False},
        {"in_memory": True},
    ):
        with pytest.raises(UsageError, match=f"has its own {next(iter(late))}"):
            make_loader(opened, **late)
    with pytest.raises(UsageError, match="unknown on_error 'ignore'"):
        make_loader(opened, on_error="ignore")


def test_a_loader_of_an_opened_stream_keeps_what_the_stream_was_asked_for(small_dataset: Path) -> None:
    stream = load_dataset(small_dataset, streaming=True, shuffle=True, seed=5, on_error="skip", format="torch")
    assert flat(ids_of(make_loader(stream))) == expected(small_dataset, 0)
    assert flat(ids_of(make_loader(stream, shuffle=False))) == load_dataset(small_dataset).case_ids
    assert flat(ids_of(make_loader(stream, seed=6))) == expected(small_dataset, 0, seed=6)


@pytest.mark.parametrize("seed", [-1, None, "3", 1.5])
def test_seeds_that_are_none_are_refused_by_every_door(small_dataset: Path, seed: Any) -> None:
    makers = [lambda: load_dataset(small_dataset, seed=seed), lambda: NodeBudgetSampler([3], 5, seed=seed)]
    if seed is not None:
        makers.append(lambda: make_loader(small_dataset, seed=seed))
    for make in makers:
        with pytest.raises(UsageError, match="seed="):
            make()


def test_seeds_of_numpy_give_states_that_can_be_saved(small_dataset: Path) -> None:
    for opened in (
        make_loader(small_dataset, shuffle=True, seed=np.int64(5)),
        load_dataset(small_dataset, streaming=True, shuffle=True, seed=np.int64(5)),
    ):
        assert all(type(value) in (int, str) for value in opened.state_dict().values())


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2)])
def test_a_sampler_of_a_rank_that_does_not_exist_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(UsageError, match="must lie between"):
        NodeBudgetSampler([3, 4], 5, rank=rank, world_size=world_size)


def test_a_sampler_goes_to_the_next_epoch_by_itself(small_dataset: Path) -> None:
    data = load_dataset(small_dataset, format="torch", fields=[], cells=False)
    sampler = NodeBudgetSampler(data.sizes, int(data.sizes.max()), batch_size=1, shuffle=True, seed=5)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate_ragged)
    for epoch in range(3):
        assert flat([batch.case_ids for batch in loader]) == expected(small_dataset, epoch)
    sampler.set_epoch(7)
    assert flat([batch.case_ids for batch in loader]) == expected(small_dataset, 7)
