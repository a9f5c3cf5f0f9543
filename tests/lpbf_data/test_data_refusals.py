"""What a hub or the operating system refuses: repeated within the limit, and reported as such, never as damage."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import scan_cache_dir

from lpbf_data import load_dataset, open_zarr
from lpbf_data.errors import MissingFileError, StoreError, UnreachableError, UsageError
from lpbf_data.file_access import hub as hub_module
from lpbf_data.file_access import retries
from lpbf_data.file_access.hub import HubFiles, HubWarning
from lpbf_data.os_errors import describe_os_error
from tests.data_hub_server import Hub, commit_of
from tests.data_support import make_case, write_dataset

BUSY = {429: "429 Too Many Requests", 503: "503 Service Unavailable"}

REQUESTS = {
    "commit": "/api/datasets/user/{name}/revision/",
    "listing": "/tree/",
    "manifest": "manifest.parquet",
    "index": "data/test-00000-of-00001.parquet",
    "shard": "data/test-0000",
    "redirected shard": "/cdn/user/lpbf",
    "npz file": ".npz",
    "zarr metadata": "zarr.json",
    "zarr chunk": "/points/c/0",  # of one array: those of others are asked for beside it
}
"""Every kind of request, by a part of its address."""

OF_REPOSITORY = {
    "lpbf": ("commit", "manifest", "shard", "redirected shard"),
    "published": ("commit", "listing", "manifest", "index", "npz file"),
    "zarr": ("commit", "manifest", "listing", "zarr metadata", "zarr chunk"),
}
KINDS = [(name, kind) for name, kinds in OF_REPOSITORY.items() for kind in kinds]


@pytest.fixture
def there(tmp_path: Path) -> dict[str, Any]:
    """Options that keep this test's downloads to itself."""
    return {"cache_dir": tmp_path / "hub-cache"}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between requests, which are noted instead of made."""
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    return made


@pytest.fixture
def full_hub(hub: Hub, small_cases: Any, tmp_path: Path) -> Hub:
    """The hub with a third repository, `user/zarr`, that has Zarr parts alone."""
    folder = tmp_path / "zarr"
    folder.mkdir()
    write_dataset(folder, {"test": small_cases["test"]}, shards=1, formats=["zarr"])
    hub.repositories["user/zarr"] = {"main": folder}
    return hub


def refuse(hub: Hub, name: str, kind: str, status: int, times: int, **headers: str) -> None:
    hub.redirect = kind == "redirected shard"
    answers = [(status, {key.replace("_", "-"): value for key, value in headers.items()})] * times
    hub.refusals[REQUESTS[kind].format(name=name)] = answers


def read_all(name: str, there: dict[str, Any]) -> dict[str, Any]:
    dataset = load_dataset(f"user/{name}", "test", format="torch", fields=["temperature"], cache=False, **there)
    return {sample["case_id"]: sample["pos"] for sample in (dataset[index] for index in range(len(dataset)))}


@pytest.mark.parametrize("status", BUSY)
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_every_kind_of_request_is_repeated(
    full_hub: Hub, small_cases: Any, there: Any, pauses: list[float], name: str, kind: str, status: int
) -> None:
    refuse(full_hub, name, kind, status, 2)
    read = read_all(name, there)
    assert not next(iter(full_hub.refusals.values()))
    wanted = {case.case_id: case.points for case in small_cases["test"]}
    assert all(np.array_equal(read[case_id].numpy(), points) for case_id, points in wanted.items())
    assert [pause for pause in pauses if pause] == [0.25, 0.5]


@pytest.mark.parametrize("status", BUSY)
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_every_kind_of_refusal_is_told_as_what_it_is(
    full_hub: Hub, there: Any, pauses: list[float], name: str, kind: str, status: int
) -> None:
    refuse(full_hub, name, kind, status, 1000)
    with pytest.raises(UnreachableError, match=f"the server answers {BUSY[status]}, 7 times in 16 s; ") as told:
        read_all(name, there)
    text = str(told.value)
    assert not any(word in text for word in ("has no manifest", "verify", "build", "damage", "altered", "publish it"))
    assert ("a token" in text) == (status == 429)
    assert 1000 - len(next(iter(full_hub.refusals.values()))) == retries.MAX_ATTEMPTS
    assert [pause for pause in pauses if pause] == [0.25, 0.5, 1, 2, 4, 8]


def test_analysis_and_manifests_tell_it_too(full_hub: Hub, there: Any, pauses: list[float]) -> None:
    refuse(full_hub, "zarr", "manifest", 503, 1000)
    with pytest.raises(UnreachableError, match="503 Service Unavailable"):
        open_zarr("user/zarr", "test", **there)
    refuse(full_hub, "zarr", "manifest", 503, 0)
    refuse(full_hub, "zarr", "zarr metadata", 429, 1000)
    with pytest.raises(UnreachableError, match="429 Too Many Requests"):
        open_zarr("user/zarr", "test", **there)


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"Retry_After": "3"}, 3),
        ({"Retry_After": "0"}, 0.25),
        ({"RateLimit": '"api";r=0;t=4'}, 4),
        ({"RateLimit": '"api";r=7;t=4'}, 0.25),
        ({"Retry_After": "nonsense"}, 0.25),
    ],
)
def test_the_pause_is_the_one_that_is_asked_for(
    hub: Hub, there: Any, pauses: list[float], headers: dict[str, str], pause: float
) -> None:
    refuse(hub, "lpbf", "manifest", 429, 1, **headers)
    load_dataset("user/lpbf", "test", **there)
    assert [p for p in pauses if p] == [pause]


def test_a_date_is_a_pause_too_and_a_long_one_is_told(hub: Hub, there: Any, pauses: list[float]) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    refuse(hub, "lpbf", "commit", 503, 1, Retry_After=soon)
    with pytest.warns(retries.WaitingWarning, match=rf"{hub.url} asks to wait \d+ s"):
        load_dataset("user/lpbf", "test", **there)
    (pause,) = [p for p in pauses if p]
    assert 30 < pause <= 90


def test_a_pause_beyond_the_limit_is_not_made(hub: Hub, there: Any, pauses: list[float]) -> None:
    refuse(hub, "lpbf", "manifest", 429, 5, Retry_After="86400")
    with pytest.raises(
        UnreachableError, match=r"429 Too Many Requests, once, and asks to wait 86400 s more; wait some"
    ):
        load_dataset("user/lpbf", "test", **there)
    assert not [p for p in pauses if p]
    refuse(hub, "lpbf", "manifest", 429, 50, Retry_After="100")
    with (
        pytest.warns(retries.WaitingWarning, match="asks to wait 100 s"),
        pytest.raises(UnreachableError, match="4 times in 300 s, and asks to wait 100 s more"),
    ):
        load_dataset("user/lpbf", "test", **there)


@pytest.mark.parametrize("kind", ["manifest", "shard"])
def test_a_connection_that_breaks_is_tried_again(hub: Hub, there: Any, pauses: list[float], kind: str) -> None:
    dataset = load_dataset("user/lpbf", "test", **there) if kind == "shard" else None
    hub.faults += ["cut", "cut"]
    dataset = dataset or load_dataset("user/lpbf", "test", **there)
    assert dataset[0].pos.shape[1] == 3
    assert not hub.faults
    assert [pause for pause in pauses if pause] == [0.25, 0.5]


def test_a_copy_on_this_machine_is_read_when_the_hub_is_away_and_that_is_told(
    hub: Hub, small_dataset: Path, there: Any, pauses: list[float]
) -> None:
    wanted = [sample.pos for sample in load_dataset("user/lpbf", "test", **there)]
    refuse(hub, "lpbf", "commit", 503, 1000)
    with pytest.warns(HubWarning, match=f"503 .*copy is read, commit {commit_of('user/lpbf', small_dataset)}"):
        again = load_dataset("user/lpbf", "test", **there)
    assert all(torch.equal(sample.pos, pos) for sample, pos in zip(again, wanted, strict=True))


def test_what_was_read_lies_where_huggingface_hub_looks_for_it(hub: Hub, small_dataset: Path, there: Any) -> None:
    load_dataset("user/lpbf", "test", **there)
    found = scan_cache_dir(there["cache_dir"])
    assert not found.warnings
    ((revision,),) = [repo.revisions for repo in found.repos]
    assert (revision.commit_hash, set(revision.refs)) == (commit_of("user/lpbf", small_dataset), {"main"})
    assert [file.file_name for file in revision.files] == ["manifest.parquet"]
    hub.log.clear()
    load_dataset("user/lpbf", "test", **there)
    assert len(hub.log) == 1  # whether there is a newer commit


def test_a_cache_of_the_hub_that_cannot_be_written_to_is_told_and_not_needed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(HubWarning, match=r"cache can't be written to .*cache_dir="):
        dataset = load_dataset("user/lpbf", "test", cache_dir=tmp_path / "file" / "cache")
    assert dataset[0].pos.shape[1] == 3


def test_what_is_no_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Any, hub: Hub) -> None:
    monkeypatch.setattr(
        hub_module.HubFiles, "_api", lambda self, *_: f"{self.endpoint}/datasets/user/lpbf/resolve/main/README.md"
    )
    with pytest.raises(StoreError, match="isn't JSON; is it a Hugging Face hub"):
        load_dataset("user/lpbf", "test", **there)


def test_long_listings_come_page_by_page(hub: Hub, there: Any) -> None:
    hub.page_size = 2
    names = HubFiles("user/published", **there).names("train")
    assert len(names) == 17
    assert len([request for request in hub.log if "/tree/" in request.path]) == 9


class _AnswerError(Exception):
    """As aiohttp's ClientResponseError and botocore's ClientError say it."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers
        super().__init__("refused")


@pytest.mark.parametrize(
    ("error", "times", "said"),
    [
        (
            ConnectionResetError(errno.ECONNRESET, "reset"),
            7,
            r"ConnectionResetError: .*7 times in 16 s; try again later",
        ),
        (_AnswerError(503, {"Retry-After": "2"}), 7, "503 Service Unavailable, 7 times in "),
        (_AnswerError(403, {}), 1, "can't be read: refused"),
        (PermissionError(errno.EACCES, "no"), 1, r"refuses it \(Permission denied\): ask for the right to read it"),
    ],
)
def test_other_file_systems(
    small_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    error: Exception,
    times: int,
    said: str,
) -> None:
    fsspec.filesystem("memory").put(str(small_dataset), "/fails", recursive=True)
    dataset = load_dataset("memory://fails", "test", cache=False)
    original, left = MemoryFileSystem.cat_file, [error] * times

    def cat_file(*arguments: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return original(*arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with pytest.raises(StoreError, match=f"case .*: memory://fails/data/.*{said}") as told:
        dataset[0]
    assert isinstance(told.value, UnreachableError) == (said != "can't be read: refused")
    assert not left
    assert len([pause for pause in pauses if pause]) == times - 1
    left += [error] * (2 if times > 1 else 0)
    assert dataset[0].pos.shape[1] == 3


def in_a_process(action: Callable[[], Any]) -> Any:
    """What an action gives in a process of its own; the text of its error, if it raises one."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def run() -> None:
        try:
            results.put(action())
        except Exception as error:  # noqa: BLE001 (whatever it is, its text is looked at)
            results.put(f"{type(error).__name__}: {error}")

    process = context.Process(target=run)
    process.start()
    found = results.get(timeout=60)
    process.join()
    return found


def become_nobody() -> None:
    if os.geteuid() == 0:  # whom no permission keeps out
        os.seteuid(65534)


@pytest.mark.parametrize("layout", ["parquet", "zarr"])
@pytest.mark.parametrize("reason", ["Permission denied", "Too many open files"])
def test_what_the_system_refuses_of_a_shard_is_no_damage(
    small_cases: Any, tmp_path_factory: pytest.TempPathFactory, layout: str, reason: str
) -> None:
    folder = tmp_path_factory.mktemp("open")
    write_dataset(folder, {"train": small_cases["test"]}, shards=1, formats=[layout])
    for path in (*folder.parents[:3], folder, *folder.rglob("*")):
        if path.is_relative_to(folder) or (path.stat().st_uid == os.geteuid() and path != Path("/")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    shards = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("manifest.parquet", "README.md")]

    def read() -> Any:
        reader = load_dataset(folder, cache=False, format="torch").samples.tensors
        reader.reader._open.clear()
        if reason == "Permission denied":
            become_nobody()
            return float(reader.views(0)["pos"].sum())
        held = []
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft[1]), soft[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            return float(reader.views(0)["pos"].sum())
        finally:
            for descriptor in held:
                os.close(descriptor)

    if reason == "Permission denied":
        for path in shards:
            path.chmod(0)
    try:
        found = in_a_process(read)
    finally:
        for path in shards:
            path.chmod(0o644)
    assert isinstance(found, str), found
    assert found.startswith(f"UnreachableError: case {small_cases['test'][0].case_id} (shard ")
    assert f"the operating system refuses it ({reason})" in found
    assert "verify" not in found
    assert "build" not in found


def test_errors_that_are_refusals_are_told_from_those_of_content() -> None:
    assert describe_os_error(OSError(errno.ENOSPC, "x")) == (
        "the operating system refuses it (No space left on device): make room on the disk"
    )
    assert "Too many open files" in str(describe_os_error(RuntimeError("failed: Too many open files (os error 24)")))
    assert "free some memory" in str(describe_os_error(MemoryError()))
    decoding = ValueError("can't be decoded")
    decoding.__cause__ = ConnectionResetError(errno.ECONNRESET, "reset")
    assert "the connection fails" in str(describe_os_error(decoding))
    for content in (OSError("Couldn't deserialize thrift"), ValueError("altered"), FileNotFoundError(2, "x"), None):
        assert describe_os_error(content) is None


def test_a_manifest_that_may_not_be_read_and_one_that_is_cut(
    small_cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path, {"train": [make_case(1)]}, shards=1, formats=["parquet"])
    original = Path.open

    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "manifest.parquet":
            raise OSError(errno.EIO, "Input/output error")
        return original(path, *arguments, **options)

    with monkeypatch.context() as context:
        context.setattr(Path, "open", refused)
        with pytest.raises(
            UnreachableError, match=r"manifest.parquet can't be read: .*\(Input/output error\): the disk"
        ):
            load_dataset(tmp_path)
    manifest = tmp_path / "manifest.parquet"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    with pytest.raises(StoreError, match="build the data set again") as told:
        load_dataset(tmp_path)
    assert not isinstance(told.value, UnreachableError)
    manifest.unlink()
    with pytest.raises(StoreError, match=r"has no manifest, and .* is no index"):
        load_dataset(tmp_path)
    for shard in tmp_path.glob("data/*"):
        shard.unlink()
    with pytest.raises(MissingFileError, match=r"has no manifest\.parquet"):
        load_dataset(tmp_path)


def test_who_expects_a_dict_of_splits_is_told_that_this_is_one(small_dataset: Path) -> None:
    """`datasets.load_dataset` gives all splits where none is named."""
    unnamed = load_dataset(small_dataset)
    assert unnamed.case_ids == load_dataset(small_dataset, split="train").case_ids
    with pytest.raises(UsageError, match=r"this is the split train.* not by 'test'; .*split=\"test\""):
        unnamed["test"]
    for opened in (unnamed, load_dataset(small_dataset, streaming=True)):
        with pytest.raises(
            AttributeError, match=r"one split, train unless another is named: load_dataset\(…, split=…\)"
        ):
            opened.keys()
