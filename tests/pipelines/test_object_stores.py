"""Sources on an object store, and data sets committed to one: a real S3 server on the loopback interface."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from lpbf_data import load_dataset
from lpbf_data.errors import UsageError
from pipelines.build import run_build
from pipelines.building.targets import ObjectTarget, default_workspace, open_target
from pipelines.sources.finding import find_cases
from pipelines.verify import verify_dataset
from tests.netfabb_cases import Part, write_part, zip_folder
from tests.pipelines.test_build import request, tree, write_parts


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fsspec.AbstractFileSystem]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "of the tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "of the tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        yield system
    server.stop()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    src = write_parts(folder / "netfabb_out", 4)
    write_part(folder / "packed", Part("300_11b839ff_1"))
    zip_folder(src / "data_0-1.zip", folder / "packed")
    return src


def remote_tree(system: fsspec.AbstractFileSystem, prefix: str) -> set[str]:
    system.invalidate_cache()
    return {path.removeprefix(f"{prefix}/") for path in system.find(prefix)}


def download(system: fsspec.AbstractFileSystem, prefix: str, target: Path) -> Path:
    system.invalidate_cache()
    system.get(prefix, str(target), recursive=True)
    return target


def test_sources_are_read_where_they_lie(s3: fsspec.AbstractFileSystem, parts: Path, tmp_path: Path) -> None:
    s3.put(str(parts), "bucket/netfabb_out", recursive=True)
    local = find_cases([parts]).locations
    remote = find_cases(["s3://bucket/netfabb_out"]).locations
    assert [(x.case_id, x.source) for x in remote] == [(x.case_id, x.source) for x in local]
    run_build(request("s3://bucket/netfabb_out", tmp_path / "remote", formats=["parquet"]))
    run_build(request(parts, tmp_path / "local", formats=["parquet"]))
    assert tree(tmp_path / "remote") == tree(tmp_path / "local")
    assert len(find_cases(["s3://bucket/netfabb_out/data_0-1.zip"]).locations) == 1
    with pytest.raises(UsageError, match="doesn't exist"):
        find_cases(["s3://bucket/nowhere"])


def test_a_data_set_is_committed_to_an_object_store(
    s3: fsspec.AbstractFileSystem, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "s3://bucket/lpbf"
    records = run_build(request(parts, url))
    run_build(request(parts, tmp_path / "local"))
    assert tree(download(s3, "bucket/lpbf", tmp_path / "copy")) == tree(tmp_path / "local")
    assert all(record.status == "kept" for record in records)
    assert verify_dataset(url).problems == ()
    victim = next(f"bucket/lpbf/{name}" for name in remote_tree(s3, "bucket/lpbf") if name.startswith("data/"))
    data = bytearray(s3.cat_file(victim))
    data[len(data) // 2] ^= 1
    s3.pipe_file(victim, bytes(data))
    assert any(victim.endswith(problem.file) for problem in verify_dataset(url).problems)
    data[len(data) // 2] ^= 1
    s3.pipe_file(victim, bytes(data))
    rows = load_dataset(url, "train")
    assert sorted(rows.case_ids) == sorted(r.case_id for r in records if r.placement and r.placement.split == "train")
    assert len(rows[0].pos) == len(rows[0].y)
    # The same command again sends nothing but the documents; growth and shrinkage leave nothing stale behind.
    put: list[str] = []
    original = ObjectTarget.publish
    monkeypatch.setattr(
        ObjectTarget, "publish", lambda self, staged, name: (put.append(name), original(self, staged, name))[1]
    )
    run_build(request(parts, url))
    assert put == []
    write_part(parts.parent / "more", Part("400_11b839fe_1", shape=(5, 5, 3)))
    grown = tmp_path / "grown"
    asked = {"splits": "train=1", "replace": True}
    run_build(request(parts, url, **asked))
    run_build(request(parts, grown, **asked))
    assert put
    assert tree(download(s3, "bucket/lpbf", tmp_path / "again")) == tree(grown)


def test_a_commit_that_is_cut_short_is_carried_out(
    s3: fsspec.AbstractFileSystem, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "s3://bucket/cut"
    original, count = ObjectTarget.publish, 0

    def place_two(self: ObjectTarget, staged: Path, name: str) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        original(self, staged, name)

    monkeypatch.setattr(ObjectTarget, "publish", place_two)
    with pytest.raises(KeyboardInterrupt):
        run_build(request(parts, url, formats=["parquet"]))
    assert "manifest.parquet" not in remote_tree(s3, "bucket/cut")
    monkeypatch.setattr(ObjectTarget, "publish", original)
    run_build(request(parts, url, formats=["parquet"]))
    run_build(request(parts, tmp_path / "local", formats=["parquet"]))
    assert tree(download(s3, "bucket/cut", tmp_path / "copy")) == tree(tmp_path / "local")


def test_a_lost_object_is_written_again(
    s3: fsspec.AbstractFileSystem, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "s3://bucket/lost"
    run_build(request(parts, url, formats=["parquet"]))
    before = remote_tree(s3, "bucket/lost")
    s3.rm(next(f"bucket/lost/{name}" for name in before if name.endswith(".parquet") and "/" in name))
    run_build(request(parts, url, formats=["parquet"]))
    assert remote_tree(s3, "bucket/lost") == before


def test_places_without_an_atomic_put_are_refused(parts: Path, tmp_path: Path) -> None:
    for url in ("http://127.0.0.1/lpbf", "sftp://host/lpbf"):
        with pytest.raises(UsageError, match="shows files before they are whole"):
            open_target(url)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.build", "--src", str(parts), "--out", "ftp://host/lpbf"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "shows files before they are whole" in done.stderr


def test_something_else_on_the_object_store_is_not_touched(
    s3: fsspec.AbstractFileSystem, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    s3.pipe_file("bucket/thesis/chapter1.tex", b"\\section{}")
    with pytest.raises(UsageError, match="holds something else"):
        run_build(request(parts, "s3://bucket/thesis"))
    assert remote_tree(s3, "bucket/thesis") == {"chapter1.tex"}


def test_workspaces_of_different_data_sets_differ() -> None:
    assert default_workspace("s3://bucket/a") != default_workspace("s3://bucket/b")
    assert default_workspace("lpbf") == Path("lpbf/.build")
    assert json.dumps(str(default_workspace("s3://bucket/a"))).isascii()
