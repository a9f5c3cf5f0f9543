"""The layout that is published today: read as it is, and nothing in it is ever run."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lpbf_data import load_dataset, make_loader
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.serving.stream import SkippedCaseWarning
from lpbf_data.stores.npz import NpzCase
from tests.data_hub_server import serve_hub


class Payload:
    """What an attacker would store: unpickling it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_cases_come_as_they_were_published(published_dataset: Path, small_cases: Any) -> None:
    dataset = load_dataset(published_dataset, "train", format="torch", edges=True)
    assert dataset.case_ids == [case.case_id for case in small_cases["train"]]
    for sample, case in zip((dataset[i] for i in range(len(dataset))), small_cases["train"], strict=True):
        np.testing.assert_array_equal(sample["pos"], case.points)
        np.testing.assert_array_equal(sample["y"][:, 0], case.fields["displacement"][:, 2])
        np.testing.assert_array_equal(sample["displacement"], case.fields["displacement"])
        np.testing.assert_array_equal(sample["temperature"][:, 0], case.fields["temperature"])
        np.testing.assert_array_equal(sample["von_mises_stress"][:, 0], case.fields["von_mises_stress"])
        np.testing.assert_array_equal(sample["cells"], case.cells)
        stored = np.load(published_dataset / "train" / f"{case.case_id}.npz")["edge_index"]
        np.testing.assert_array_equal(sample["edge_index"], stored)


def test_both_layouts_train_alike(published_dataset: Path, small_dataset: Path) -> None:
    ours = make_loader(small_dataset, "train", batch_size=2, fields=["temperature"])
    theirs = make_loader(published_dataset, "train", batch_size=2, fields=["temperature"])
    by_id = {batch.case_ids[0]: batch for batch in make_loader(small_dataset, "train", fields=["temperature"])}
    assert len(ours) == len(theirs) == 9
    for batch in make_loader(published_dataset, "train", fields=["temperature"]):
        assert torch.equal(batch.pos, by_id[batch.case_ids[0]].pos)
        assert torch.equal(batch.y, by_id[batch.case_ids[0]].y)


def test_statistics_are_taken_from_the_values(published_dataset: Path, small_dataset: Path) -> None:
    measured = load_dataset(published_dataset, "train").statistics()
    stored = load_dataset(small_dataset, "train").statistics()
    assert set(measured) == {f"displacement_{axis}" for axis in "xyz"} | {"temperature", "von_mises_stress"}
    for column, found in measured.items():
        assert found.mean == pytest.approx(stored[column].mean, rel=1e-9)
        assert found.std == pytest.approx(stored[column].std, rel=1e-9)


def rewrite(path: Path, **members: Any) -> None:
    """Replace members of an npz file."""
    with np.load(path, allow_pickle=True) as stored:
        content = {name: stored[name] for name in stored}
    np.savez_compressed(path, **(content | members))


@pytest.fixture
def hostile(published_dataset: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the data set whose first case has other members."""

    def make(**members: Any) -> Path:
        folder = tmp_path / "hostile"
        shutil.copytree(published_dataset, folder)
        rewrite(min((folder / "test").glob("*.npz")), **members)
        return folder

    return make


@pytest.mark.parametrize("member", ["pos", "elems", "temp", "disp", "vmstr"])
def test_a_payload_in_any_member_is_refused_and_does_nothing(
    member: str, hostile: Callable[..., Path], tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    folder = hostile(**{member: np.array([Payload(mark)], dtype=object)})
    with pytest.raises(StoreError, match=rf"case .*test/.*npz.*array '{member}': expected"):
        load_dataset(folder, "test")[0]
    assert not mark.exists()


@pytest.mark.parametrize("member", ["_metadata", "edge_index", "extra"])
def test_a_payload_in_a_member_that_is_not_needed_does_nothing(
    member: str, hostile: Callable[..., Path], tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    dataset = load_dataset(hostile(**{member: np.array([Payload(mark)], dtype=object)}), "test", edges=True)
    assert dataset[0].num_nodes > 0
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["pickle", "pickled array", "cut", "empty", "text"])
def test_a_file_that_is_no_archive_is_refused_and_does_nothing(
    kind: str, published_dataset: Path, tmp_path: Path
) -> None:
    folder, mark = tmp_path / "hostile", tmp_path / "ran"
    shutil.copytree(published_dataset, folder)
    path = min((folder / "test").glob("*.npz"))
    array = io.BytesIO()
    np.save(array, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    content = {
        "pickle": pickle.dumps(Payload(mark)),
        "pickled array": array.getvalue(),
        "cut": path.read_bytes()[:-40],
        "empty": b"",
        "text": b"<html>404</html>",
    }
    path.write_bytes(content[kind])
    with pytest.raises(StoreError, match="is no npz file"):
        load_dataset(folder, "test")[0]
    assert not mark.exists()


def test_payloads_on_a_hub_do_nothing(published_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, mark = tmp_path / "hostile", tmp_path / "ran"
    shutil.copytree(published_dataset, folder)
    files = sorted((folder / "train").glob("*.npz"))
    payload = np.array([Payload(mark)], dtype=object)
    for path, member in zip(files, ("_metadata", "pos", "elems", "temp", "disp", "vmstr"), strict=False):
        rewrite(path, **{member: payload})
    files[6].write_bytes(pickle.dumps(Payload(mark)))
    with serve_hub({"user/hostile": {"main": folder}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        loader = make_loader("user/hostile", cells=True, on_error="skip", cache_dir=tmp_path / "hub")
        with pytest.warns(SkippedCaseWarning):
            served = {case_id for batch in loader for case_id in batch.case_ids}
    assert not mark.exists()
    assert set(loader.skipped) == {path.stem for path in files[1:7]}
    assert files[0].stem in served


def test_the_payload_is_alive(tmp_path: Path) -> None:
    """The tests above would notice: this is what unpickling does."""
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(np.array([Payload(mark)], dtype=object)))
    assert mark.exists()


def test_a_bomb_is_refused_before_it_goes_off(published_dataset: Path, tmp_path: Path) -> None:
    """A header that announces more than the index says is not read, however well its values compress."""
    huge = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**10, 3)}
    np.lib.format.write_array_header_1_0(huge, header)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("pos.npy", huge.getvalue() + bytes(10**7))
        file.writestr("elems.npy", huge.getvalue().replace(b"<f4", b"<i4"))
    case = NpzCase(archive.getvalue(), 100, "bomb.npz")
    from lpbf_data.stores.selection import Selection

    with pytest.raises(StoreError, match=r"expected \[100, 3\]"):
        case.read_arrays(Selection(target=False, cells=False))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"pos": np.zeros((5, 3), np.float32)}, r"array 'pos': expected"),
        ({"pos": np.zeros((5, 3), np.int64)}, r"of kind 'f'"),
        ({"elems": np.zeros((4, 4), np.int64)}, r"array 'elems': expected \[E, 8\]"),
        ({"elems": np.full((4, 8), 10**6)}, r"elems names nodes outside"),
        ({"elems": np.full((4, 8), -1)}, r"elems names nodes outside"),
        ({"elems": np.zeros((0, 8), np.int64)}, r"cells must be"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    members: dict[str, Any], message: str, hostile: Callable[..., Path]
) -> None:
    with pytest.raises(StoreError, match=message):
        load_dataset(hostile(**members), "test")[0]


def test_values_that_are_not_finite_are_refused(hostile: Callable[..., Path], small_cases: Any) -> None:
    count = small_cases["test"][0].num_points
    folder = hostile(disp=np.full((count, 3), np.nan, np.float32))
    case = small_cases["test"][0].case_id
    dataset = load_dataset(folder, "test")
    with pytest.raises(StoreError, match=r"y \(displacement_z\) has a value that isn't finite") as told:
        dataset[dataset.case_ids.index(case)]
    said = str(told.value)
    assert said.startswith(f"case {case} (shard {folder}/test/{case}.npz, row 0): y ")
    assert said.count(f"case {case}") == 1
    assert said.endswith("fetch or build the data set again, or leave this case out of it")


def test_other_values_are_another_data_set(published_dataset: Path, tmp_path: Path) -> None:
    """The digest tells changed files apart although the index stays, and what was decoded before isn't served."""
    folder = tmp_path / "copy"
    shutil.copytree(published_dataset, folder)
    before = load_dataset(folder, "test", format="torch")
    digest, values = before.samples.tensors.reader.catalog.digest, before[0]["y"].clone()
    assert load_dataset(folder, "test").samples.tensors.reader.catalog.digest == digest
    train = load_dataset(folder, "train").samples.tensors.reader.catalog.digest
    path = folder / "test" / f"{before.case_ids[0]}.npz"
    with np.load(path, allow_pickle=True) as stored:
        np.savez_compressed(path, **({name: stored[name] for name in stored} | {"disp": 2 * stored["disp"]}))
    after = load_dataset(folder, "test", format="torch")
    assert after.samples.tensors.reader.catalog.digest != digest
    assert load_dataset(folder, "train").samples.tensors.reader.catalog.digest == train
    np.testing.assert_array_equal(after[0]["y"], 2 * values)


def test_other_types_and_orders_of_numbers_are_read(hostile: Callable[..., Path], small_cases: Any) -> None:
    case = small_cases["test"][0]
    folder = hostile(
        pos=np.asfortranarray(case.points.astype(np.float64)),
        elems=case.cells.astype(np.int32),
        temp=case.fields["temperature"],
        disp=case.fields["displacement"].astype(">f4"),
    )
    names = load_dataset(folder, "test").case_ids
    sample = load_dataset(folder, "test", format="torch")[names.index(case.case_id)]
    np.testing.assert_array_equal(sample["pos"], case.points)
    np.testing.assert_array_equal(sample["displacement"], case.fields["displacement"])
    np.testing.assert_array_equal(sample["temperature"][:, 0], case.fields["temperature"])


@pytest.mark.parametrize("file", ["/etc/passwd", "../outside.npz", "test/../../x.npz", "a\\b.npz"])
def test_paths_out_of_the_data_set_are_refused(file: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"case_id": "a", "file": file, "num_nodes": 3, "num_edges": 3, "metadata": "{}"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(StoreError, match="impossible row"):
        load_dataset(tmp_path, "train")


def test_a_missing_member_or_file_is_named(published_dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(published_dataset, folder)
    first, second = sorted((folder / "test").glob("*.npz"))
    with np.load(first, allow_pickle=True) as stored:
        np.savez(first, **{name: stored[name] for name in stored if name != "temp"})
    second.unlink()
    dataset = load_dataset(folder, "test")
    with pytest.raises(StoreError, match=r"has no array 'temp'; it has: _metadata, disp"):
        dataset[0]
    with pytest.raises(StoreError, match=rf"case {second.stem} \(shard .*npz, row 0\)"):
        dataset[1]


def test_splits_and_folders_that_are_not_there(published_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no split 'validation'; it has: test, train"):
        load_dataset(published_dataset, "validation")
    with pytest.raises(StoreError, match=r"has no manifest\.parquet, so it is no data set; .* pipelines\.build --src"):
        load_dataset(tmp_path, "train")
    (tmp_path / ".build").mkdir()
    with pytest.raises(StoreError, match=r"has no manifest\.parquet; a build is at work there or was interrupted"):
        load_dataset(tmp_path, "train")
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(StoreError, match="no index of npz files"):
        load_dataset(tmp_path, "train")
