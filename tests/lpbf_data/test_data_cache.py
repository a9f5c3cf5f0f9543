"""The cache: each case is decoded once for all processes; neither damage nor a full disk stops training."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import lpbf_data.reading.cache as cache_module
from lpbf_data import load_dataset
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.reading.cache import CachedCases, CacheWarning, CollectionKey, parse_size
from lpbf_data.reading.cache_eviction import make_room
from lpbf_data.reading.footer_cache import FooterCache
from tests.data_support import make_case, write_dataset

KEY = CollectionKey("somewhere", "digest", "train", ("pos", "y"), local=False)


def arrays(value: float = 1.0, count: int = 1000) -> dict[str, Any]:
    return {"pos": np.full((count, 3), value, np.float32), "y": np.full((count, 1), value, np.float32)}


def fill(cases: CachedCases, count: int) -> None:
    for number in range(count):
        cases.put(number, arrays(count=1000), "")


def decodes(monkeypatch: pytest.MonkeyPatch, dataset: Any) -> list[int]:
    """Numbers of the cases that are decoded from now on."""
    seen: list[int] = []
    reader = dataset.samples.tensors.reader
    original = reader.read_many

    def read_many(indices: list[int], selection: Any) -> Any:
        seen.extend(indices)
        return original(indices, selection)

    monkeypatch.setattr(reader, "read_many", read_many)
    return seen


def test_a_case_is_decoded_once_and_comes_back_the_same(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_dataset(small_dataset, format="torch", edges=True, cache=False)
    cached = load_dataset(small_dataset, format="torch", edges=True)
    seen = decodes(monkeypatch, cached)
    for _ in range(3):
        for index in range(len(cached)):
            sample, wanted = cached[index], plain[index]
            assert list(sample) == list(wanted)
            assert all(torch.equal(sample[name], wanted[name]) for name in wanted if name != "case_id")
    assert sorted(seen) == list(range(17))


def test_what_the_user_does_to_a_sample_stays_with_the_user(small_dataset: Path) -> None:
    dataset = load_dataset(small_dataset, format="torch")
    before = dataset[3]["pos"].clone()
    for _ in range(2):
        dataset[3]["pos"].zero_()
    assert torch.equal(dataset[3]["pos"], before)
    assert torch.equal(load_dataset(small_dataset, format="torch")[3]["pos"], before)


def test_selections_do_not_meet(small_dataset: Path, own_cache: Path) -> None:
    for options in ({}, {"fields": []}, {"fields": ["temperature"], "cells": False}, {"edges": True}):
        assert len(load_dataset(small_dataset, format="torch", **options)[0]) >= 2
    assert len([p for p in own_cache.iterdir() if p.is_dir()]) == 4


def test_cached_files_open_with_arrow(small_dataset: Path, own_cache: Path) -> None:
    sample = load_dataset(small_dataset, format="torch", cells=False)[5]
    (path,) = own_cache.glob("*/00000/0000005.arrow")
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.schema.field("pos").type == pa.list_(pa.list_(pa.float32(), 3))
    for name in ("pos", "y", "displacement"):
        assert table[name][0].as_py() == sample[name].tolist()
    described = json.loads((path.parents[1] / "collection.json").read_text())
    assert described["split"] == "train"
    assert described["names"][:2] == ["pos", "y"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "footer"])
def test_a_damaged_file_is_decoded_again(small_dataset: Path, own_cache: Path, damage: str) -> None:
    wanted = load_dataset(small_dataset, format="torch")[2]
    (path,) = own_cache.glob("*/00000/0000002.arrow")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-100] ^= 1
    elif damage == "footer":
        content[-8] ^= 0xFF
    changed = {"cut": content[:-50], "empty": b"", "foreign": b"not a tensor file"}.get(damage, content)
    path.write_bytes(changed)
    again = load_dataset(small_dataset, format="torch")[2]
    assert all(torch.equal(again[name], wanted[name]) for name in wanted if name != "case_id")
    assert path.read_bytes() != bytes(changed)


def test_a_changed_shard_is_read_again_and_a_missing_one_is_told(small_cases: Any, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_dataset(folder, {"train": small_cases["train"][:4]}, shards=1, formats=["parquet"])
    load_dataset(folder)[1]
    (shard,) = folder.glob("data/*.parquet")
    content = bytearray(shard.read_bytes())
    chunk = pq.read_metadata(shard).row_group(1).column(30)
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 8
    shard.write_bytes(content)
    name = small_cases["train"][1].case_id
    with pytest.raises(StoreError, match=rf"case {name} \(shard .*train-00000-of-00001.parquet, row 1\)"):
        load_dataset(folder)[1]
    assert load_dataset(folder)[0].case_id == small_cases["train"][0].case_id
    shard.unlink()
    with pytest.raises(StoreError, match=r"shard .*parquet is missing"):
        load_dataset(folder)[1]


def read_everything(folder: str, barrier: Any, results: Any) -> None:
    dataset = load_dataset(folder, format="torch", fields=["displacement"])
    seen = decodes(pytest.MonkeyPatch(), dataset)
    barrier.wait()
    total = sum(float(dataset[index]["y"].double().sum()) for index in range(len(dataset)))
    results.put((len(seen), total))


def test_processes_share_first_reads(small_dataset: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=read_everything, args=(str(small_dataset), barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({total for _, total in found}) == 1
    # All begin with the same case, and whoever comes second waits for it instead of decoding it too.
    assert sum(count for count, _ in found) == 17


def write_for_ever(root: Path) -> None:
    cases = CachedCases(root, KEY, 10**12)
    for number in range(10**9):
        cases.put(number % 7, arrays(number % 7, count=200_000), "stamp")


def test_a_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        process = context.Process(target=write_for_ever, args=(tmp_path,))
        process.start()
        time.sleep(0.05 + 0.03 * attempt)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    cases = CachedCases(tmp_path, KEY, 10**12)
    found = [number for number in range(7) if number in cases]
    assert found
    for number in found:
        arrays_there = cases.get(number, "stamp")
        assert arrays_there is not None
        np.testing.assert_array_equal(arrays_there["pos"], np.full((200_000, 3), number, np.float32))


def test_the_cache_is_bounded_and_removes_what_was_unused_longest(tmp_path: Path) -> None:
    size = 2_000_000
    keys = [CollectionKey("somewhere", f"digest {n}", "train", ("pos", "y"), local=False) for n in range(4)]
    for age, key in enumerate(keys):
        cases = CachedCases(tmp_path, key, size)
        fill(cases, 36)
        del cases
        os.utime(tmp_path / key.folder / "used", (1000 + age, 1000 + age))
        assert sum(p.stat().st_size for p in tmp_path.rglob("*.arrow")) <= size
    assert [(tmp_path / key.folder).exists() for key in keys] == [False, True, True, True]


def test_the_collection_at_work_is_not_exchanged_for_itself(tmp_path: Path) -> None:
    cases = CachedCases(tmp_path, KEY, 500_000)
    with pytest.warns(CacheWarning, match="is full") as caught:
        fill(cases, 100)
    assert len(caught) == 1
    there = [number for number in range(100) if number in cases]
    assert there == list(range(len(there)))
    assert 20 < len(there) < 35
    assert all(cases.get(number, "") is not None for number in there)


@pytest.mark.parametrize("reason", ["in use", "offline"])
def test_only_what_can_be_decoded_again_and_is_not_in_use_is_removed(tmp_path: Path, reason: str) -> None:
    old = CollectionKey("hub", "old", "train", ("pos", "y"), local=False)
    first = CachedCases(tmp_path / "cache", old, 2_000_000)
    fill(first, 50)
    if reason != "in use":
        del first
    second = CachedCases(tmp_path / "cache", KEY, 2_000_000, offline=reason == "offline")
    with pytest.warns(CacheWarning, match="is full"):
        fill(second, 120)
    assert len(list((tmp_path / "cache" / old.folder).rglob("*.arrow"))) == 50


def old_collection(root: Path, name: str, used: float, source: Path | None = None, size: int = 10**9) -> Path:
    """A collection of 36 cases that nobody has open; returns its folder."""
    local = source is not None
    cases = CachedCases(root, CollectionKey(str(source or "hub"), name, "train", ("pos", "y"), local=local), size)
    fill(cases, 36)
    os.utime(cases.folder / "used", (used, used))
    return cases.folder


def test_cases_whose_data_set_is_gone_are_removed_first(tmp_path: Path) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.mkdir()
    gone.mkdir()
    longest_unused = old_collection(tmp_path / "cache", "a", 1000, there)
    orphaned = old_collection(tmp_path / "cache", "b", 2000, gone)
    gone.rmdir()
    fill(CachedCases(tmp_path / "cache", KEY, 1_500_000), 36)
    assert (longest_unused.exists(), orphaned.exists()) == (True, False)
    fill(CachedCases(tmp_path / "cache", dataclasses.replace(KEY, split="test"), 1_500_000), 36)
    assert not longest_unused.exists()


@pytest.mark.parametrize("moment", [(Path, "mkdir"), (Path, "read_text"), (Path, "touch"), (os, "open"), (os, "fstat")])
def test_a_collection_that_is_opened_while_it_is_removed_can_be_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: tuple[Any, str]
) -> None:
    folder = old_collection(tmp_path, "a", 1000)
    original, left = getattr(*moment), [1]

    def remove() -> None:
        make_room(tmp_path, 1, 0, keep=tmp_path, offline=False)
        assert not folder.exists() or moment[1] == "fstat"  # then it is locked

    def step(*arguments: Any, **options: Any) -> Any:
        if left:  # just before this step of the opening, another process makes room
            left.clear()
            remove()
        return original(*arguments, **options)

    with monkeypatch.context() as context:
        context.setattr(*moment, step)
        opened = CachedCases(tmp_path, CollectionKey("hub", "a", "train", ("pos", "y"), local=False), 10**9)
    fill(opened, 36)
    assert len(list(folder.rglob("*.arrow"))) == 36
    make_room(tmp_path, 1, 0, keep=tmp_path, offline=False)
    assert folder.exists()  # it is in use
    del opened
    make_room(tmp_path, 1, 0, keep=tmp_path, offline=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["description lost", "description cut", "lock file lost"])
def test_what_nobody_can_open_any_more_is_removed_once_it_is_old(tmp_path: Path, damage: str) -> None:
    folder = old_collection(tmp_path, "a", 1000)
    if damage == "description cut":
        (folder / "collection.json").write_text('{"source": "hu')
    else:
        (folder / {"description lost": "collection.json", "lock file lost": "used"}[damage]).unlink()
    make_room(tmp_path, 1, 0, keep=tmp_path, offline=False)
    assert folder.exists()  # it may be in the making
    os.utime(folder, (1000, 1000))
    make_room(tmp_path, 1, 0, keep=tmp_path, offline=False)
    assert not folder.exists()


def test_a_remover_that_was_killed_leaves_nothing_for_ever_and_others_folders_stay(tmp_path: Path) -> None:
    folder = old_collection(tmp_path, "a", 1000)
    folder.rename(tmp_path / f".{folder.name}.{'0' * 32}.gone")
    for name in ("footers", "results of mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"1")
        os.utime(tmp_path / name, (1000, 1000))
    assert make_room(tmp_path, 10**6, 0, keep=tmp_path, offline=False) == 10**6 - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["footers", "results of mine"]


def test_a_cache_that_is_deleted_at_work_is_filled_anew(tmp_path: Path) -> None:
    cases = CachedCases(tmp_path / "cache", KEY, 10**9)
    fill(cases, 3)
    shutil.rmtree(tmp_path / "cache")
    cases.put(3, arrays(3.0), "")
    assert 3 in cases
    assert (cases.folder / "collection.json").exists()
    del cases
    make_room(tmp_path / "cache", 1, 0, keep=tmp_path, offline=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_whose_folder_is_taken_away_warns_once_and_never_raises(tmp_path: Path) -> None:
    cases = CachedCases(tmp_path / "cache", KEY, 10**9)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("in the way")
    with pytest.warns(CacheWarning, match="can't be written to any more") as caught:
        fill(cases, 3)
    assert len(caught) == 1


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"\0\0\0\0\0", b"footer"])
def test_a_footer_of_no_bytes_is_not_intact(tmp_path: Path, content: bytes) -> None:
    kept = FooterCache(tmp_path)
    kept.put("a shard", b"footer")
    assert kept.get("a shard") == b"footer"
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    assert kept.get("a shard") is None


def open_and_close(root: Path, seconds: float, results: Any) -> None:
    """Open, fill and close collections in turn, in a cache that holds two of them."""
    rng, end, wrong = np.random.default_rng(os.getpid()), time.monotonic() + seconds, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)  # two open at once fill the cache
        while time.monotonic() < end:
            name = int(rng.integers(4))
            cases = CachedCases(root, CollectionKey("hub", str(name), "train", ("pos", "y"), local=False), 1_100_000)
            for number in rng.permutation(20).tolist():
                found = cases.get(number, "")
                if found is None:
                    cases.put(number, arrays(name), "")
                else:
                    wrong += not (found["pos"] == name).all()
            del cases
    results.put(wrong)


def test_two_processes_fill_and_clear_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=open_and_close, args=(tmp_path, 1.5, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [0, 0]
    for process in processes:
        process.join()
    make_room(tmp_path, 1, 0, keep=tmp_path, offline=False)
    assert list(tmp_path.iterdir()) == []  # whatever happened, nothing stays for ever


def test_a_process_killed_while_it_fills_and_clears_leaves_nothing_for_ever(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        process = context.Process(target=open_and_close, args=(tmp_path, 60, context.Queue()))
        process.start()
        time.sleep(0.1 + 0.07 * attempt)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    for folder in [tmp_path, *tmp_path.rglob("*")]:
        os.utime(folder, (1000, 1000))  # what was in the making is an hour old
    make_room(tmp_path, 1, 0, keep=tmp_path, offline=False)
    assert list(tmp_path.iterdir()) == []


def test_keeping_serves_a_share_and_replacing_its_half_square(tmp_path: Path) -> None:
    """The claim of the module's first paragraph: the cache beside a simulated one that replaces, the same accesses."""
    count, epochs = 60, 8
    one = CachedCases(tmp_path / "one", KEY, 10**9)
    one.put(0, arrays(), "")
    size = sum(path.stat().st_size for path in (tmp_path / "one").rglob("*.arrow"))
    capacity = 24
    cases = CachedCases(tmp_path / "cache", KEY, capacity * size + size // 2)
    with pytest.warns(CacheWarning, match="is full"):
        fill(cases, count)
    hits, recent, hits_recent = [0] * epochs, dict.fromkeys(range(capacity)), 0
    for epoch in range(epochs):
        for number in np.random.default_rng(epoch).permutation(count).tolist():
            found = cases.get(number, "")
            if found is None:
                cases.put(number, arrays(number), "")
            else:
                hits[epoch] += 1
            hits_recent += number in recent
            recent.pop(number, None)
            recent[number] = None
            if len(recent) > capacity:
                recent.pop(next(iter(recent)))
    assert hits == [capacity] * epochs
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.arrow")) <= capacity * size + size // 2
    assert hits_recent / count / epochs == pytest.approx((capacity / count) ** 2 / 2, abs=0.05)


def test_a_cache_that_cannot_be_written_to_warns_once_and_is_not_needed(small_dataset: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.warns(CacheWarning, match="can't be written to"):
        dataset = load_dataset(small_dataset, format="torch", cache=blocked / "cache")
    for _ in range(2):  # any further warning would be an error
        assert len([dataset[index]["pos"] for index in range(17)]) == 17


def read_all(folder: str, cache: Path, results: Any) -> None:
    """Read every case twice; gives the warnings, and the sums of what was read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load_dataset(folder, format="torch", cache=cache)
        sums = [[float(dataset[index]["pos"].double().sum()) for index in range(17)] for _ in range(2)]
    results.put(([str(w.message) for w in caught if w.category is CacheWarning], sums))


def in_a_process(prepare: Callable[[], None], small_dataset: Path, cache: Path) -> tuple[list[str], Any]:
    """What `read_all` gives in a process of its own, after it did something to itself."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def run() -> None:
        prepare()
        read_all(str(small_dataset), cache, results)

    process = context.Process(target=run)
    process.start()
    found: tuple[list[str], Any] = results.get(timeout=60)
    process.join()
    return found


def test_a_disk_that_takes_no_more_warns_once_and_training_goes_on(small_dataset: Path, tmp_path: Path) -> None:
    """The system refuses to make files longer than the cases of this test are."""
    wanted = in_a_process(lambda: None, small_dataset, tmp_path / "good")[1]
    limit = min(path.stat().st_size for path in (tmp_path / "good").rglob("*.arrow")) + 1

    def refuse() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    messages, found = in_a_process(refuse, small_dataset, tmp_path / "cache")
    assert len(messages) == 1
    assert "can't be written to any more" in messages[0]
    assert "File too large" in messages[0]
    assert found == wanted
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    assert all(path.stat().st_size <= limit for path in (tmp_path / "cache").rglob("*.arrow"))


def test_a_read_only_cache_serves_what_it_has_and_warns_once(small_dataset: Path) -> None:
    open_to_all = Path(tempfile.mkdtemp(prefix="lpbf-test-"))
    try:
        shutil.copytree(small_dataset, open_to_all / "lpbf")
        dataset = load_dataset(open_to_all / "lpbf", format="torch", cache=open_to_all / "cache")
        wanted = [float(dataset[index]["pos"].double().sum()) for index in range(17)]
        files = sorted(open_to_all.rglob("*.arrow"))
        files[-1].unlink()
        for path in [open_to_all, *open_to_all.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)

        def become_nobody() -> None:
            if os.geteuid() == 0:  # whom no permission keeps out
                os.seteuid(65534)

        messages, found = in_a_process(become_nobody, open_to_all / "lpbf", open_to_all / "cache")
        assert len(messages) == 1
        assert "can't be written to" in messages[0]
        assert found == [wanted, wanted]
        assert sorted(open_to_all.rglob("*.arrow")) == files[:-1]
    finally:
        for path in [open_to_all, *open_to_all.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(open_to_all)


def test_a_reader_killed_in_its_first_epoch_leaves_a_good_cache(small_dataset: Path, tmp_path: Path) -> None:
    wanted = in_a_process(lambda: None, small_dataset, tmp_path / "good")
    context = multiprocessing.get_context("fork")
    for number in range(4):
        process = context.Process(target=read_all, args=(str(small_dataset), tmp_path / "cache", context.Queue()))
        process.start()
        while len(list((tmp_path / "cache").rglob("*.arrow"))) < 3 * number + 1:
            time.sleep(0.001)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    started = time.monotonic()
    assert in_a_process(lambda: None, small_dataset, tmp_path / "cache") == wanted
    assert time.monotonic() - started < cache_module._LOCK_SECONDS  # no lock outlives its holder


def test_a_little_of_the_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=(1 << 30) - 1))
    cases = CachedCases(tmp_path, KEY, 10**12)
    with pytest.warns(CacheWarning, match="or its disk"):
        cases.put(0, arrays(), "")
    assert 0 not in cases


@pytest.mark.parametrize(("text", "size"), [("64 GB", 64 * 10**9), ("1kb", 1000), (123, 123), ("0.5 TB", 5 * 10**11)])
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["many", "-3 GB", "10 XB", "", 0])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(UsageError, match="cache size"):
        parse_size(text)


def test_no_cache_writes_nothing(small_dataset: Path, own_cache: Path) -> None:
    dataset = load_dataset(small_dataset, cache=False)
    assert dataset[0].pos.shape[1] == 3
    assert not own_cache.exists()


def test_files_out_of_date_are_decoded_again(small_cases: Any, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_dataset(folder, {"train": [make_case(1), make_case(2)]}, shards=1)
    first = load_dataset(folder, format="torch")[0]
    shutil.rmtree(folder)
    folder.mkdir()
    write_dataset(folder, {"train": [make_case(3), make_case(4)]}, shards=1)
    assert load_dataset(folder, format="torch")[0]["case_id"] != first["case_id"]
    assert not torch.equal(load_dataset(folder, format="torch")[0]["pos"][:8], first["pos"][:8])
