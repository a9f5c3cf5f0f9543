"""Publishing: to a hub on the loopback interface, whole and verified or not at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml

from lpbf_data.stores.manifest import decode_manifest
from pipelines.build import run_build
from pipelines.publish import published_files, warnings_for
from pipelines.sources.privacy import find_local_paths, strip_local_paths
from tests.commands import run_here
from tests.pipelines.test_build import request
from tests.pipelines.test_verify import a_stray_shard, one_bit_in_parquet
from tests.upload_hub import UploadHub, upload_hub


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "lpbf")
    return tmp_path / "lpbf"


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with upload_hub() as served:
        yield served


def publish(dataset: Path, hub: UploadHub, *more: str) -> subprocess.CompletedProcess[str]:
    """The command, with the hub on the loopback interface in the place of the real one."""
    words = [str(dataset), "--repo", "u/lpbf", "--workers", "0", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", "hf_of_the_tests")
        return run_here("pipelines.publish", *words)


def test_everything_but_the_workspace_arrives_in_one_commit(dataset: Path, hub: UploadHub) -> None:
    done = publish(dataset, hub, "--license", "cc-by-nc-4.0")
    assert done.returncode == 0, done.stderr
    expected = {p.relative_to(dataset).as_posix(): p.read_bytes() for p in published_files(dataset)}
    assert json.loads(hub.files.pop("croissant.json"))["license"] == "cc-by-nc-4.0"
    assert "license" not in json.loads(expected.pop("croissant.json"))
    card = hub.files.pop("README.md").decode()
    local_card = expected.pop("README.md").decode()
    assert {"report.html", "pictures/parts.png", "pictures/distributions.png"} <= set(expected)
    assert hub.files == expected
    assert hub.commits == 1
    assert not any(".build" in name for name in hub.files)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-nc-4.0"
    assert front["configs"] == yaml.safe_load(local_card.split("---\n")[1])["configs"]
    assert card.split("---\n", 2)[2] == local_card.split("---\n", 2)[2]
    assert "license" not in yaml.safe_load(local_card.split("---\n")[1])
    assert not (dataset / ".build" / "publish").exists()


def test_an_upload_that_breaks_off_continues(dataset: Path, hub: UploadHub) -> None:
    hub.fail_blobs = 2  # cut connections, which the client tries again by itself
    hub.take_blobs = 2  # and then no more
    broken = publish(dataset, hub, "--license", "other")
    assert broken.returncode == 1
    assert "run the same command once more" in broken.stderr
    assert hub.commits == 0
    first = set(hub.sent)
    assert len(first) == 2
    hub.take_blobs = 1000
    assert publish(dataset, hub, "--license", "other").returncode == 0
    assert hub.commits == 1
    assert hub.times_sent == dict.fromkeys(hub.sent, 1)


def test_shards_of_an_earlier_build_are_deleted(dataset: Path, hub: UploadHub) -> None:
    hub.files["data/train-00000-of-00099.parquet"] = b"old"
    assert publish(dataset, hub, "--license", "other").returncode == 0
    assert "data/train-00000-of-00099.parquet" in hub.deleted


def test_a_dry_run_sends_nothing(dataset: Path, hub: UploadHub) -> None:
    done = publish(dataset, hub, "--license", "other", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "nothing was sent" in done.stdout
    assert "manifest.parquet" in done.stdout
    assert not hub.files
    assert not hub.sent


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "under a stated licence only"),
        (["--license", "My own!"], "under a stated licence only"),
        (["--license", "other", "--repo", "nobody"], "--repo must be user/name"),
    ],
)
def test_refusals(dataset: Path, hub: UploadHub, words: list[str], said: str) -> None:
    done = publish(dataset, hub, *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert not hub.files


def test_what_does_not_verify_is_not_published(dataset: Path, hub: UploadHub) -> None:
    where = a_stray_shard(dataset)
    done = publish(dataset, hub, "--license", "other")
    assert done.returncode == 1
    assert "doesn't verify" in done.stderr
    assert where in done.stderr
    (dataset / where).unlink()
    one_bit_in_parquet(dataset)
    assert "doesn't verify" in publish(dataset, hub, "--license", "other").stderr
    assert not hub.files


def test_a_hub_that_refuses(dataset: Path, hub: UploadHub) -> None:
    hub.refuse = True
    done = publish(dataset, hub, "--license", "other")
    assert done.returncode == 1
    assert "didn't take it" in done.stderr
    assert "Traceback" not in done.stderr


def test_ids_of_the_fusion_gallery_are_warned_of(dataset: Path, hub: UploadHub) -> None:
    done = publish(dataset, hub, "--license", "cc-by-4.0", "--dry_run")
    assert "Fusion 360 Gallery" in done.stdout
    assert "Fusion" not in publish(dataset, hub, "--license", "cc-by-nc-sa-4.0", "--dry_run").stdout
    records = decode_manifest((dataset / "manifest.parquet").read_bytes()).records
    ours = [dataclasses.replace(r, run=dataclasses.replace(r.run, solver_version="0.1.0-lpbf")) for r in records]
    assert warnings_for(records, "cc-by-4.0")
    assert not warnings_for(ours, "cc-by-4.0")


def test_a_path_of_this_machine_is_not_published(dataset: Path, hub: UploadHub) -> None:
    path = dataset / "README.md"
    path.write_text(path.read_text() + "\nmade in /home/somebody/secret/project\n")
    done = publish(dataset, hub, "--license", "other")
    assert done.returncode == 1
    assert "/home/somebody/secret/project" in done.stderr
    assert not hub.files


FOREIGN = (
    "notes.txt", "data/.env", "data/passwords.csv", "pictures/me.png", "compare.html", ".git/config",
    "lpbf.zarr/notes.md", "private/token", "lpbf.zarr/train/notes.md",
)  # fmt: skip


def test_files_that_do_not_belong_to_the_data_set_stay_here(dataset: Path, hub: UploadHub) -> None:
    expected = set(hub_names(dataset))
    assert publish(dataset, hub, "--license", "other").returncode == 0
    assert set(hub.files) == expected
    hub.files.clear()
    for name in FOREIGN:
        (dataset / name).parent.mkdir(exist_ok=True)
        (dataset / name).write_text("secret")
    for more in (["--dry_run"], []):
        done = publish(dataset, hub, "--license", "other", *more)
        assert done.returncode == 0, done.stderr
        wanted = f"left out, {len(FOREIGN)} in all: files in lpbf that don't belong to the data set and aren't sent"
        assert wanted in done.stdout
        assert ".git/config" in done.stdout
    assert set(hub.files) == expected
    assert not any(content == b"secret" for content in (*hub.files.values(), *hub.sent.values()))


def hub_names(dataset: Path) -> list[str]:
    """Every file of a folder that nobody has put anything into."""
    paths = (path.relative_to(dataset) for path in dataset.rglob("*") if path.is_file())
    return [path.as_posix() for path in paths if path.parts[0] != ".build"]


def test_without_parquet_no_description_of_parquet_files_is_kept(built: Path, dataset: Path, hub: UploadHub) -> None:
    """Neither on the hub, where the set was published with Parquet files, nor from the folder."""
    assert publish(dataset, hub, "--license", "other").returncode == 0
    assert "croissant.json" in hub.files
    old = (dataset / "croissant.json").read_bytes()
    run_build(request(built.parent / "src", dataset, formats=["zarr"]))
    assert not (dataset / "croissant.json").exists()
    (dataset / "croissant.json").write_bytes(old)
    hub.files.clear()
    hub.files["croissant.json"] = old
    assert publish(dataset, hub, "--license", "other").returncode == 0
    assert "croissant.json" in hub.deleted
    assert hub.files.get("croissant.json") is None


@pytest.mark.parametrize(
    "path",
    [
        "/gpfs/u/ada/x.zip", "/gpfs01/x", "/lustre/orion/x", "/nfs/home/x", "/nfs-data/x", "/Volumes/Disk/x.zip",
        "/mnt/c/x", "/beegfs/x", "/users/ada/x", "/scratch2/x", r"\\server\share\x.zip", "//server/share/x.zip",
        r"D:\parts\x.zip", "D:/parts/x.zip", r"d:\x", r"E:\\parts\\x.zip", "file:///anywhere/x",
    ],
)  # fmt: skip
def test_paths_of_any_machine_are_found(path: str) -> None:
    for text in (path, f"can't read {path}: no such file", f'"{path}"', f"({path})", f"{{{path}"):
        assert find_local_paths(text), text
        assert not find_local_paths(strip_local_paths(text)), text
        assert text.count("x") == 0 or "parts" not in strip_local_paths(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://schema.org/x", "hf://datasets/u/name", "s3://bucket/data/x", "results/data/x.ens", "mm/s", "and/or",
        "path/or/hub-id", "SandBox/12_ab/results", "a\\|b \\_c\\_ d", "10:30", "C: a note", "file name",
    ],
)  # fmt: skip
def test_what_is_no_path_of_a_machine(text: str) -> None:
    assert find_local_paths(text) == []
    assert strip_local_paths(text) == text
