"""Workers in containers with little or no shared memory, under a small limit of open files, and in other folders."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from lpbf_data import load_dataset, make_loader
from lpbf_data.serving.collating import collate_ragged
from tests.data_support import make_case, write_dataset
from tests.lpbf_data.launch_support import run_ranks
from tests.lpbf_data.loader_support import expected, first, flat, ids_of, many_workers, open_loader

SMALL = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
NONE = (
    "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/zero c 1 5"
    " && mknod -m 666 /dev/urandom c 1 9"
)


def in_namespace(mounts: str) -> tuple[str, ...]:
    """The beginning of a command that sees other file systems; the test is skipped where that isn't allowed."""
    start = ("unshare", "--mount", "sh", "-c")
    try:
        tried = subprocess.run([*start, f"({mounts}) && echo mounted"], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no command unshare: {error}")
    if "mounted" not in tried.stdout:
        pytest.skip(f"file systems can't be mounted here: {tried.stderr}")
    return (*start, f'{mounts} && exec "$@"', "sh")


@pytest.mark.parametrize("collate", ["ragged", pytest.param("pyg", marks=pytest.mark.slow)])
def test_batches_that_do_not_fit_into_shared_memory_come_all_the_same(
    small_dataset: Path, tmp_path: Path, collate: str
) -> None:
    arguments = (str(small_dataset), collate)
    [found] = run_ranks(
        "little_memory", tmp_path / "run", *arguments, ranks=1, launcher="none", before=in_namespace(SMALL)
    )
    assert found["served"] == expected(small_dataset, 0)[:8]
    assert found["warnings"] == 1
    assert "no room in shared memory" in found["said"]
    assert "--shm-size" in found["said"]


def test_a_plain_dataloader_tells_that_shared_memory_is_full(small_dataset: Path, tmp_path: Path) -> None:
    options: Any = {"ranks": 1, "launcher": "none", "before": in_namespace(SMALL)}
    [found] = run_ranks("little_memory_of_others", tmp_path / "run", str(small_dataset), **options)
    assert "SharedMemoryError" in found
    assert "no room in shared memory for the batch of" in found
    assert "--shm-size" in found


def test_without_shared_memory_this_process_reads(small_dataset: Path, tmp_path: Path) -> None:
    options: Any = {"ranks": 1, "launcher": "none", "before": in_namespace(NONE)}
    [found] = run_ranks("no_memory", tmp_path / "run", str(small_dataset), **options)
    assert found["loader"] == found["stream"] == found["plain"] == [expected(small_dataset, e) for e in range(2)]
    assert "no workers can be started" in found["said"]


@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="ulimit")
def test_many_fields_from_many_workers_with_few_open_files(tmp_path: Path) -> None:
    """Every tensor that comes from a worker is an open file until nobody holds it any more."""
    folder = tmp_path / "lpbf"
    folder.mkdir()
    write_dataset(folder, {"train": [make_case(seed, 20) for seed in range(300)]}, shards=20, formats=["parquet"])
    before = ("bash", "-c", 'ulimit -n 256 && exec "$@"', "bash")
    [found] = run_ranks("few_files", tmp_path / "run", str(folder), ranks=1, launcher="none", before=before)
    assert found == [sorted(load_dataset(folder).case_ids)] * 3


def test_a_data_set_that_was_opened_by_a_relative_path_survives_a_change_of_folder(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_dataset.parent)
    monkeypatch.setenv("LPBF_CACHE", "cache-of-this-test")
    stream = load_dataset(small_dataset.name, streaming=True, shuffle=True, seed=5, format="torch", cache=False)
    loader = open_loader(small_dataset.name, num_workers=1)
    opened = load_dataset(small_dataset.name)
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        assert flat(ids_of(loader)) == expected(small_dataset, number)
        assert [sample["case_id"] for sample in stream] == expected(small_dataset, number)
        assert opened[3].case_id == opened.case_ids[3]
        assert not list(Path().iterdir())  # the cache stayed where it was, too
    shutil.rmtree(small_dataset.parent / "cache-of-this-test")


@many_workers
def test_copies_of_loaders_with_workers_live_without_the_original(small_dataset: Path) -> None:
    loader = open_loader(small_dataset, num_workers=2, batch_size=2)
    assert flat(ids_of(loader)) == expected(small_dataset, 0)
    other = copy.deepcopy(loader)
    del loader
    for epoch in (1, 2):
        assert flat(ids_of(other)) == expected(small_dataset, epoch)


class BrokenTransform:
    """Fails at one case, in a way of its own."""

    def __init__(self, case_id: str) -> None:
        self.case_id = case_id

    def __call__(self, sample: Any) -> Any:
        if sample["case_id"] == self.case_id:
            raise ZeroDivisionError("the mean of nothing")
        return sample


def whole_text(error: BaseException) -> str:
    """What a traceback shows of an error; one from a worker has its worker's traceback in its text."""
    return "".join(traceback.format_exception_only(error))


def broken_collate(samples: Any) -> Any:
    raise ZeroDivisionError(f"{len(samples)} samples")


@many_workers
@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_user_names_the_case(small_dataset: Path, workers: int) -> None:
    name = load_dataset(small_dataset).case_ids[7]
    broken = BrokenTransform(name)
    opened = load_dataset(small_dataset, format="torch", fields=[], cells=False, transform=broken)
    stream = load_dataset(small_dataset, streaming=True, format="torch", fields=[], cells=False, transform=broken)
    for batches in (
        open_loader(small_dataset, shuffle=False, transform=broken, num_workers=workers),
        DataLoader(opened, batch_size=1, num_workers=workers, collate_fn=first),
        DataLoader(stream, batch_size=1, num_workers=workers, collate_fn=collate_ragged),
    ):
        with pytest.raises(ZeroDivisionError, match="the mean of nothing") as caught:
            list(batches)
        assert f"when case {name} was transformed" in whole_text(caught.value)
    loader = make_loader(small_dataset, batch_size=2, collate=broken_collate, num_workers=workers)
    with pytest.raises(ZeroDivisionError, match="2 samples") as caught:
        next(iter(loader))
    joined = ", ".join(load_dataset(small_dataset).case_ids[:2])
    assert f"when these cases were joined: {joined}" in whole_text(caught.value)


def collate_to_a_lock(samples: Any) -> Any:
    return [sample["case_id"] for sample in samples], sys.stdout


def test_what_cannot_be_sent_from_a_worker_is_an_error(small_dataset: Path) -> None:
    """In the queue's own thread it would be lost, and the loader would wait for ever."""
    loader = make_loader(small_dataset, collate=collate_to_a_lock, num_workers=1)
    with pytest.raises(TypeError, match="cannot pickle"):
        next(iter(loader))
