"""The hub, both layouts: few large requests, retried; revisions, tokens, offline mode; and plain `datasets`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import zarr
from huggingface_hub import snapshot_download

from lpbf_data import load_dataset, make_loader, open_zarr
from lpbf_data.case.record import CaseRecord, Placement
from lpbf_data.durable import sha256_of_file
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.file_access import retries
from lpbf_data.file_access.folder import DatasetFolder, UrlFiles
from lpbf_data.file_access.hub import HubFiles
from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest, encode_manifest
from tests.data_hub_server import Hub, commit_of, serve_hub
from tests.data_support import make_case, write_dataset
from tests.rounding import DOUBLE


@pytest.fixture
def there(tmp_path: Path) -> dict[str, Any]:
    """Options that keep this test's downloads to itself."""
    return {"cache_dir": tmp_path / "hub-cache"}


def assert_same_samples(first: Any, second: Any) -> None:
    assert first.case_ids == second.case_ids
    for index in range(len(first)):
        one, other = first[index], second[index]
        assert all(torch.equal(one[name], other[name]) for name in one if name != "case_id")


def replace_placements(folder: Path, change: Callable[[CaseRecord], Placement | None]) -> None:
    path = folder / MANIFEST_NAME
    records = decode_manifest(path.read_bytes()).records
    path.write_bytes(encode_manifest([dataclasses.replace(r, placement=change(r)) for r in records]))


def test_our_layout(hub: Hub, small_dataset: Path, there: dict[str, Any]) -> None:
    remote = load_dataset("user/lpbf", "train", format="torch", **there)
    assert_same_samples(remote, load_dataset(small_dataset, "train", format="torch"))


def test_the_published_layout(hub: Hub, published_dataset: Path, there: dict[str, Any]) -> None:
    remote = load_dataset("user/published", "test", format="torch", **there)
    assert_same_samples(remote, load_dataset(published_dataset, "test", format="torch"))
    assert [r.path.rpartition("/")[2] for r in hub.downloads() if ".npz" in r.path] == [
        f"{case_id}.npz" for case_id in remote.case_ids
    ]


@pytest.mark.parametrize("redirect", [False, True])
@pytest.mark.parametrize("repository", ["user/lpbf", "user/published"])
def test_the_first_batch_needs_few_requests(hub: Hub, there: dict[str, Any], repository: str, redirect: bool) -> None:
    hub.redirect = redirect
    loader = make_loader(repository, "train", shuffle=True, fields=[], read_ahead=1, **there)
    batch = next(iter(loader))
    assert len(batch.pos) > 0
    # Whatever was read ahead of it included.
    assert len(hub.log) <= 10


def test_an_epoch_needs_few_requests_and_the_next_none(hub: Hub, there: dict[str, Any]) -> None:
    loader = make_loader("user/lpbf", "train", shuffle=True, **there)
    first = [batch.case_ids for batch in loader]
    # Three shards: a footer each, the first case alone, and the rest in one go or two.
    assert len([r for r in hub.downloads() if ".parquet" in r.path and "manifest" not in r.path]) <= 12
    asked = len(hub.log)
    second = [batch.case_ids for batch in loader]
    assert len(hub.log) == asked
    assert sorted(first) == sorted(second)


def test_only_the_wanted_columns_of_the_wanted_rows_are_fetched(
    hub: Hub, tmp_path: Path, there: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    write_dataset(folder, {"train": [make_case(seed, 20_000) for seed in range(4)]}, shards=1, formats=["parquet"])
    hub.repositories["user/large"] = {"main": folder}
    (shard,) = folder.glob("data/*.parquet")
    monkeypatch.setattr("lpbf_data.file_access.ranges.merge_ranges.__defaults__", (0, 16 << 20))
    dataset = load_dataset("user/large", fields=[], cells=False, cache=False, **there)
    hub.log.clear()
    assert dataset[2].pos.shape[0] > 20_000
    spans = [r.range.removeprefix("bytes=").split("-") for r in hub.downloads() if r.range]
    fetched = sum(int(last) - int(first) + 1 for first, last in spans)
    assert fetched < 0.12 * shard.stat().st_size


@pytest.mark.parametrize("fault", [429, 500, 503, "cut"])
@pytest.mark.parametrize("repository", ["user/lpbf", "user/published"])
def test_faults_on_the_way_are_overcome(
    hub: Hub, small_dataset: Path, there: dict[str, Any], fault: Any, repository: str
) -> None:
    dataset = load_dataset(repository, "test", format="torch", fields=["temperature"], **there)
    hub.faults += [fault, fault]
    local = load_dataset(small_dataset, "test", format="torch", fields=["temperature"])
    by_id = {local[index]["case_id"]: local[index] for index in range(len(local))}
    for index in range(len(dataset)):
        sample = dataset[index]
        assert torch.equal(sample["pos"], by_id[sample["case_id"]]["pos"])
    assert not hub.faults


def test_a_hub_that_stays_away_is_an_error_that_names_the_case(
    hub: Hub, there: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "MAX_ATTEMPTS", 2)
    dataset = load_dataset("user/lpbf", "test", **there)
    hub.faults += [503] * 20
    with pytest.raises(StoreError, match=r"case \d+_\w+_0 \(shard user/lpbf/data/test-.*, row 0\)"):
        dataset[0]


def test_addresses_that_ran_out_are_asked_for_anew(hub: Hub, small_dataset: Path, there: dict[str, Any]) -> None:
    hub.redirect = True
    remote = load_dataset("user/lpbf", "train", format="torch", cache=False, **there)
    assert remote[0]["pos"].shape[1] == 3
    hub.expired = 1
    assert_same_samples(remote, load_dataset(small_dataset, "train", format="torch"))
    assert hub.expired == 0


def test_a_server_without_ranges_is_enough(hub: Hub, small_dataset: Path, there: dict[str, Any]) -> None:
    hub.ignore_ranges = True
    remote = load_dataset("user/lpbf", "test", format="torch", **there)
    assert_same_samples(remote, load_dataset(small_dataset, "test", format="torch"))


def test_a_slow_hub_sends_the_first_sample_long_before_the_last(hub: Hub, there: dict[str, Any]) -> None:
    hub.delay = 0.05
    loader = make_loader("user/published", "train", **there)
    for number, _ in enumerate(loader):
        if number == 0:
            asked_first = len(hub.downloads())
            break
    for _ in loader:
        pass
    assert asked_first <= 6  # index, and what was read ahead
    assert len(hub.downloads()) >= 18
    assert loader.seconds_waiting > 0.5


def test_revisions(hub: Hub, small_dataset: Path, tmp_path: Path, there: dict[str, Any]) -> None:
    older = tmp_path / "older"
    older.mkdir()
    write_dataset(older, {"train": [make_case(100), make_case(101)]}, shards=1)
    hub.repositories["user/lpbf"]["v1"] = older
    assert len(load_dataset("user/lpbf", **there)) == 17
    assert len(load_dataset("user/lpbf", revision="v1", **there)) == 2
    assert len(load_dataset("user/lpbf", revision=commit_of("user/lpbf", older), **there)) == 2
    assert len(load_dataset("hf://datasets/user/lpbf@v1", **there)) == 2
    with pytest.raises(UsageError, match="has no revision v9"):
        load_dataset("user/lpbf", revision="v9", **there)


def test_a_revision_is_fixed_when_it_is_opened(
    hub: Hub, small_dataset: Path, tmp_path: Path, there: dict[str, Any]
) -> None:
    dataset = load_dataset("user/lpbf", **there)
    newer = tmp_path / "newer"
    newer.mkdir()
    write_dataset(newer, {"train": [make_case(100), make_case(101)]}, shards=1)
    hub.repositories["user/lpbf"] = {"main": newer, "old": small_dataset}
    assert dataset[16].pos.shape[1] == 3
    assert len(load_dataset("user/lpbf", **there)) == 2


def test_tokens(hub: Hub, there: dict[str, Any]) -> None:
    hub.token = "hf_secret"
    hub.redirect = True
    with pytest.raises(UsageError, match="give a token"):
        load_dataset("user/lpbf", token=False, **there)
    dataset = load_dataset("user/lpbf", token="hf_secret", **there)
    assert dataset[0].pos.shape[1] == 3
    assert len([r for r in hub.log if r.authorization == "Bearer hf_secret"]) >= 3


def test_the_environment_of_huggingface_hub_counts(hub: Hub, tmp_path: Path) -> None:
    """HF_TOKEN, HF_HOME and HF_HUB_OFFLINE, in processes of their own: they are read when it is imported."""
    program = """
from lpbf_data import load_dataset
print(float(load_dataset("user/lpbf", "test", format="torch")[0]["pos"].sum()))
"""
    hub.token = "hf_secret"
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_secret"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", program]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=300, check=False)

    online = run()
    assert online.returncode == 0, online.stderr
    hub.log.clear()
    offline = run(HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout
    elsewhere = run(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert "offline mode is on" in elsewhere.stderr
    assert "hf download user/lpbf" in elsewhere.stderr
    assert not hub.log


def test_the_token_goes_to_the_hub_alone(hub: Hub, there: dict[str, Any]) -> None:
    with serve_hub(hub.repositories) as storage:
        hub.token, hub.redirect, hub.elsewhere = "hf_secret", True, storage.url
        dataset = load_dataset("user/lpbf", "test", token="hf_secret", cache=False, **there)
        assert dataset[1].pos.shape[1] == 3
        assert len(storage.downloads()) >= 2
        assert {r.authorization for r in storage.log} == {None}


def test_what_is_not_there_is_told(hub: Hub, there: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"no folder user/nothing lies here, and the data set user/nothing on http"):
        load_dataset("user/nothing", **there)
    with pytest.raises(UsageError, match="has no split 'extra'; it has: train, validation, test"):
        load_dataset("user/lpbf", "extra", **there)
    with pytest.raises(UsageError, match="has no split 'validation'; it has: test, train"):
        load_dataset("user/published", "validation", **there)
    with pytest.raises(UsageError, match="is no folder of a data set"):
        load_dataset("no-such-folder")


def test_no_network_is_told_with_what_to_do(there: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(
        StoreError, match=r"http://127.0.0.1:9 can't be reached \(.*hf download user/lpbf --repo-type dataset"
    ):
        load_dataset("user/lpbf", **there)


@pytest.mark.parametrize("repository", ["user/lpbf", "user/published"])
def test_offline_reads_what_was_downloaded(
    hub: Hub, small_dataset: Path, there: dict[str, Any], repository: str
) -> None:
    with pytest.raises(StoreError, match="offline mode is on"):
        load_dataset(repository, "test", offline=True, **there)
    snapshot_download(repository, repo_type="dataset", endpoint=hub.url, cache_dir=there["cache_dir"])
    hub.log.clear()
    dataset = load_dataset(repository, "test", offline=True, format="torch", fields=["temperature"], **there)
    local = load_dataset(small_dataset, "test", format="torch", fields=["temperature"])
    by_id = {local[index]["case_id"]: local[index] for index in range(len(local))}
    for index in range(len(dataset)):
        sample = dataset[index]
        assert torch.equal(sample["y"], by_id[sample["case_id"]]["y"])
    assert not hub.log


@pytest.mark.parametrize("repository", ["user/lpbf", "user/published"])
def test_offline_reads_what_was_decoded_before(hub: Hub, there: dict[str, Any], repository: str) -> None:
    online = load_dataset(repository, "train", format="torch", **there)
    samples = [online[index] for index in range(10)]
    hub.log.clear()
    offline = load_dataset(repository, "train", format="torch", offline=True, **there)
    assert all(torch.equal(offline[i]["pos"], samples[i]["pos"]) for i in range(10))
    assert not hub.log


def test_plain_datasets_opens_our_layout(hub: Hub, small_cases: Any, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""
    program = """
import datasets, json, sys
rows = datasets.load_dataset("user/lpbf", split="train").with_format("numpy")
stream = datasets.load_dataset("user/lpbf", split="test", streaming=True)
total = float(rows[3]["displacement_z"].sum(dtype="float64"))
print(json.dumps([len(rows), list(rows["case_id"]), total, len(list(stream))]))
"""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    count, ids, total, streamed = __import__("json").loads(done.stdout.splitlines()[-1])
    assert (count, streamed) == (17, 2)
    cases = {case.case_id: case for case in small_cases["train"]}
    assert set(ids) == set(cases)
    wanted = cases[ids[3]].fields["displacement"][:, 2].astype(np.float64)
    assert total == pytest.approx(wanted.sum(), rel=0, abs=len(wanted) * DOUBLE * np.abs(wanted).sum())


def test_zarr_opens_from_the_hub(hub: Hub, small_dataset: Path, there: dict[str, Any]) -> None:
    remote = open_zarr("user/lpbf", "test", **there)
    local = open_zarr(str(small_dataset), "test")
    np.testing.assert_array_equal(remote.displacement.values, local.displacement.values)


HOSTILE = ["/{0}/outside.txt", "../outside.txt", "a/../../outside.txt", "a\\..\\outside.txt", "C:/outside.txt", "a/c:b"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out_of_a_data_set_are_neither_read_nor_written(
    hub: Hub, small_dataset: Path, tmp_path: Path, there: dict[str, Any], name: str
) -> None:
    """As a manifest or a listing of somebody else may hold them; the server would answer."""
    name, before = name.format(tmp_path), sorted(tmp_path.rglob("*"))
    (tmp_path / "outside.txt").write_text("somebody's own")
    for place in ("user/lpbf", small_dataset, f"file://{small_dataset}"):
        files = DatasetFolder(place, **(there if place == "user/lpbf" else {})).files
        for action in (files.read, files.names, files.local_path, lambda n, f=files: f.read_range(n, 0, 4)):
            if action == files.local_path and isinstance(files, UrlFiles):
                continue  # nothing of it lies here
            with pytest.raises(StoreError, match=r"names a file .* which would lie outside of it: it isn't read"):
                action(name)
    files = HubFiles("user/lpbf", **there)
    with pytest.raises(StoreError, match="would lie outside of it"):
        files._keep(name, files.commit, b"not somebody's own")
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before] == [tmp_path / "outside.txt"]
    assert not any("outside" in request.path for request in hub.log)


@pytest.mark.parametrize("again", [True, False])
def test_a_listing_without_an_end_is_an_error(
    hub: Hub, there: dict[str, Any], monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """The same page for ever, or always another one."""
    monkeypatch.setattr("lpbf_data.file_access.hub._PAGES", 20)
    hub.endless = "the same page" if again else "another page"
    files = HubFiles("user/lpbf", **there)
    pages = 1 if again else 20
    with pytest.raises(StoreError, match=rf"lists data of user/lpbf without an end \({pages} pages so far\)"):
        files.names("data")
    assert sum("/tree/" in request.path for request in hub.log) == pages


@pytest.mark.parametrize("error", [ImportError("s3fs"), MemoryError(), TypeError("no bytes"), AttributeError("x")])
def test_what_no_second_request_mends_is_asked_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    asked: list[str] = []

    def fails(_: Any, path: str, **__: Any) -> bytes:
        asked.append(path)
        raise error

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fails)
    monkeypatch.setattr(retries.time, "sleep", lambda _: pytest.fail("it was waited for"))
    with pytest.raises(StoreError, match="x can't be read: "):
        UrlFiles("memory://set").read("x")
    assert len(asked) == 1


def test_urls_of_fsspec(small_dataset: Path, published_dataset: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name, folder, split in (("ours", small_dataset, "validation"), ("theirs", published_dataset, "test")):
        memory.put(str(folder), f"/{name}", recursive=True)
        remote = load_dataset(f"memory://{name}", split, format="torch")
        assert_same_samples(remote, load_dataset(folder, split, format="torch"))
    with pytest.raises(UsageError, match="can't open nowhere://x"):
        load_dataset("nowhere://x")
    with pytest.raises(StoreError, match=r"has no manifest\.parquet"):
        load_dataset("memory://empty")


def test_a_zarr_only_data_set_is_read_from_anywhere(hub: Hub, small_cases: Any, tmp_path: Path, there: Any) -> None:
    folder = tmp_path / "zarr"
    folder.mkdir()
    write_dataset(folder, {"train": small_cases["test"]}, shards=1, formats=["zarr"])
    local = load_dataset(folder, format="torch")
    hub.repositories["user/zarr"] = {"main": folder}
    assert_same_samples(load_dataset("user/zarr", format="torch", **there), local)
    shutil.rmtree(folder / "lpbf.zarr" / "train" / "00000" / "temperature" / "c")
    with pytest.raises(StoreError, match=r"case .* \(shard .*lpbf.zarr/train/00000, row 0\)"):
        load_dataset(folder, format="torch", cache=False)[0]


def test_an_epoch_of_zarr_parts_needs_few_requests_and_the_next_none(
    hub: Hub, tmp_path: Path, there: dict[str, Any]
) -> None:
    """Cases that span several chunks: chunk by chunk it would be some two hundred."""
    folder = tmp_path / "set"
    folder.mkdir()
    write_dataset(folder, {"train": [make_case(seed, 20_000) for seed in range(12)]}, shards=1, formats=["zarr"])
    hub.repositories["user/zarr"] = {"main": folder}
    loader = make_loader("user/zarr", "train", shuffle=True, fields=["temperature"], **there)
    found = {
        case_id: pos
        for batch in loader
        for case_id, pos in zip(batch.case_ids, batch.pos.split(batch.offsets.diff().tolist()), strict=True)
    }
    asked = [r for r in hub.downloads() if "lpbf.zarr" in r.path]
    # Descriptions and indices once, then four arrays at a time: of the first case, and of the rest in some 8 MB.
    assert len(asked) <= 40
    hub.log.clear()
    local = load_dataset(folder, "train", format="torch", cache=False)
    for index, case_id in enumerate(local.case_ids):
        assert torch.equal(found[case_id], local[index]["pos"])
    assert sum(len(batch.case_ids) for batch in loader) == 12
    assert not hub.log


@pytest.mark.parametrize("what", ["altered", "cut", "gone"])
def test_a_damaged_chunk_on_the_hub_is_the_error_of_its_cases_alone(
    hub: Hub, small_cases: Any, tmp_path: Path, there: Any, what: str
) -> None:
    """The cases beside it, whose chunks are fetched with it, are read."""
    folder = tmp_path / "set"
    folder.mkdir()
    cases = [make_case(seed, 9_000) for seed in range(4)]
    write_dataset(folder, {"train": cases}, shards=1, formats=["zarr"])
    shard = folder / "lpbf.zarr" / "train" / "00000" / "points" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    index = np.frombuffer(
        bytes(data[-4 - 16 * (len(data) and -(-sum(c.num_points for c in cases) // 8192)) : -4]), "<u8"
    )
    offset, size = (int(number) for number in index.reshape(-1, 2)[-1])  # the last chunk, of the last case
    if what == "altered":
        data[offset + size // 2] ^= 1
    elif what == "cut":
        del data[offset + size // 2 : offset + size // 2 + 7]
    shard.write_bytes(bytes(data))
    if what == "gone":
        shard.unlink()
    hub.repositories["user/set"] = {"main": folder}
    dataset = load_dataset("user/set", **there, format="torch")
    known = {case.case_id: case for case in cases}
    damaged: dict[str, str] = {}
    for number, case_id in enumerate(dataset.case_ids):
        try:
            found = dataset[number]
        except StoreError as error:
            damaged[case_id] = str(error)
        else:
            np.testing.assert_array_equal(found["pos"].numpy(), known[case_id].points)
    assert list(damaged) == (list(dataset.case_ids) if what == "gone" else [dataset.case_ids[-1]])
    for case_id, said in damaged.items():
        assert f"case {case_id} (shard user/set/lpbf.zarr/train/00000, row " in said


def test_a_part_in_another_layout_is_read_from_the_hub_too(
    hub: Hub, small_cases: Any, tmp_path: Path, there: Any
) -> None:
    """By zarr-python, as somebody may have written it again."""
    folder = tmp_path / "set"
    folder.mkdir()
    write_dataset(folder, {"train": small_cases["train"][:3]}, shards=1, formats=["zarr"])
    group = zarr.open_group(folder / "lpbf.zarr" / "train" / "00000", mode="r+")
    values, attributes = group["points"][...], group["points"].attrs.asdict()
    del group["points"]
    again = group.create_array("points", shape=values.shape, dtype=values.dtype, chunks=(3, 50), attributes=attributes)
    again[...] = values
    hub.repositories["user/set"] = {"main": folder}
    assert_same_samples(
        load_dataset("user/set", format="torch", **there), load_dataset(folder, format="torch", cache=False)
    )


def test_cut_and_altered_shards_on_the_hub(hub: Hub, small_cases: Any, tmp_path: Path, there: Any) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_dataset(folder, {"train": small_cases["train"][:3]}, shards=1, formats=["parquet"])
    (shard,) = folder.glob("data/*.parquet")
    whole = shard.read_bytes()
    hub.repositories["user/set"] = {"main": folder}
    shard.write_bytes(whole[: len(whole) - 100])
    with pytest.raises(StoreError, match=r"shorter than the manifest says|doesn't end as a Parquet file"):
        load_dataset("user/set", **there)[0]
    altered = bytearray(whole)
    altered[len(whole) // 3] ^= 1
    shard.write_bytes(altered)
    with pytest.raises(StoreError, match=r"case .* \(shard user/set/data/train-00000-of-00001.parquet, row \d\)"):
        [load_dataset("user/set", **there)[index] for index in range(3)]
    shard.unlink()
    with pytest.raises(StoreError, match="has no data/train"):
        load_dataset("user/set", cache=False, **there)[0]


@pytest.mark.parametrize("row", [5, 2**40, -1])
@pytest.mark.parametrize("layout", ["parquet", "zarr"])
def test_rows_that_do_not_exist_are_errors_of_their_case_alone(
    hub: Hub, small_cases: Any, tmp_path: Path, there: Any, layout: str, row: int
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_dataset(folder, {"train": small_cases["train"][:5]}, shards=1, formats=[layout])
    astray = small_cases["train"][2].case_id

    def misplace(record: CaseRecord) -> Placement | None:
        wrong = record.case_id == astray and record.placement is not None
        return dataclasses.replace(record.placement, row=row) if wrong else record.placement

    replace_placements(folder, misplace)
    hub.repositories["user/set"] = {"main": folder}
    # Of Zarr nothing is fetched along; through the hub its many small files would only take their time.
    for place, options in ((folder, {}), ("user/set", there))[: 2 if layout == "parquet" else 1]:
        dataset = load_dataset(place, format="torch", **options)
        index = dataset.case_ids.index(astray)
        healthy = [number for number in range(5) if number != index]
        assert [dataset[number]["case_id"] for number in healthy] == [dataset.case_ids[number] for number in healthy]
        with pytest.raises(StoreError, match=rf"case {astray} \(shard .*, row {row}\): .* 5 rows"):
            dataset[index]
        loader = make_loader(place, batch_size=5, on_error="skip", **options)
        with pytest.warns(UserWarning, match=astray):
            (batch,) = loader
        assert list(batch.case_ids) == [dataset.case_ids[number] for number in healthy]
        assert set(loader.skipped) == {astray}


def test_a_footer_of_an_older_build_is_not_used(small_cases: Any, tmp_path: Path) -> None:
    """Both builds have one shard of the same name and size; their footers differ."""
    builds = [tmp_path / name for name in ("older", "newer")]
    for number, folder in enumerate(builds):
        folder.mkdir()
        write_dataset(folder, {"train": small_cases["train"][3 * number :][:3]}, shards=1, formats=["parquet"])
    (older,), (newer,) = (list(folder.glob("data/*.parquet")) for folder in builds)
    size = max(older.stat().st_size, newer.stat().st_size) + 1
    for folder, shard in zip(builds, (older, newer), strict=True):
        content = shard.read_bytes()
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        shard.write_bytes(content[:footer] + bytes(size - len(content)) + content[footer:])
        stored = {"parquet_bytes": size, "parquet_sha256": sha256_of_file(shard)}
        replace_placements(folder, lambda r, new=stored: dataclasses.replace(r.placement, **new))  # type: ignore[misc]
    memory = fsspec.filesystem("memory")
    for folder in builds:
        memory.put(f"{folder}/", "/rebuilt/", recursive=True)
        remote = load_dataset("memory://rebuilt", format="torch")
        assert_same_samples(remote, load_dataset(folder, format="torch", cache=False))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["local", "hub"])
def test_relative_paths_mean_where_the_process_was(
    small_dataset: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, workers: int
) -> None:
    """As hydra goes to another folder once the configuration is read."""
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    (tmp_path / "before" / "set").symlink_to(small_dataset)
    wanted = [batch.pos for batch in make_loader(small_dataset, "test", cache=False)]
    monkeypatch.chdir(tmp_path / "before")
    options: dict[str, Any] = {} if where == "local" else {"cache_dir": "hub"}
    name = "set" if where == "local" else "user/lpbf"
    loader = make_loader(name, "test", cache="cache", num_workers=workers, **options)
    dataset = load_dataset(name, "test", cache=False, **options)
    monkeypatch.chdir(tmp_path / "after")
    for _ in range(2):
        assert all(torch.equal(batch.pos, pos) for batch, pos in zip(loader, wanted, strict=True))
    assert torch.equal(dataset[1].pos, wanted[1])
    assert dataset.statistics()["temperature"].mean == 25
    assert list((tmp_path / "after").iterdir()) == []
    assert list((tmp_path / "before" / "cache").rglob("*.arrow"))
