"""Verification finds what is wrong, names it, and finds nothing where nothing is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lpbf_data.errors import UsageError
from lpbf_data.stores.manifest import decode_manifest, encode_manifest
from pipelines.build import run_build
from pipelines.building.engine import Resources
from pipelines.verify import verify_dataset
from tests.commands import run_here
from tests.pipelines.test_build import request, write_parts


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    run_build(request(write_parts(folder / "src"), folder / "lpbf"))
    return folder / "lpbf"


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "lpbf")
    return tmp_path / "lpbf"


def test_a_sound_data_set_has_no_problems(sound: Path) -> None:
    verdict = verify_dataset(sound)
    assert verdict.problems == ()
    assert verdict.cases == 8
    assert verify_dataset(sound, Resources(workers=1)) == verdict


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def first_shard(root: Path) -> Path:
    return min((root / "data").iterdir())


def one_bit_in_parquet(root: Path) -> str:
    path = first_shard(root)
    flip(path, path.stat().st_size // 2)
    return path.relative_to(root).as_posix()


def one_bit_in_zarr(root: Path) -> str:
    path = min(root.glob("lpbf.zarr/*/*/displacement/c/0/0"))
    flip(path, path.stat().st_size // 2)
    return path.relative_to(root).as_posix().split("/displacement")[0]


def a_cut_shard(root: Path) -> str:
    path = first_shard(root)
    path.write_bytes(path.read_bytes()[:-100])
    return path.relative_to(root).as_posix()


def a_missing_shard(root: Path) -> str:
    path = first_shard(root)
    path.unlink()
    return path.relative_to(root).as_posix()


def a_shard_of_other_values(root: Path) -> str:
    """A whole and valid shard, but not the one that was written: every checksum in it is right."""
    path = first_shard(root)
    table = pq.read_table(path)
    place = table.column_names.index("temperature")
    changed = pc.list_flatten(table["temperature"]).to_numpy() + 1
    lists = pa.ListArray.from_arrays(table["temperature"].combine_chunks().offsets, pa.array(changed))
    table = table.set_column(place, table.schema.field(place), lists.cast(table.schema.field(place).type))
    with pq.ParquetWriter(path, table.schema) as writer:
        for row in range(table.num_rows):
            writer.write_table(table.slice(row, 1))
    return path.relative_to(root).as_posix()


def a_stray_shard(root: Path) -> str:
    shutil.copy(first_shard(root), root / "data" / "train-00099-of-00100.parquet")
    return "data/train-00099-of-00100.parquet"


def a_stale_card(root: Path) -> str:
    path = root / "README.md"
    text = path.read_text()
    path.write_text(re.sub(r"version: (\d+)\.", r"version: \1.1", text))
    assert path.read_text() != text
    return "README.md"


def another_manifest(root: Path) -> str:
    records = list(decode_manifest((root / "manifest.parquet").read_bytes()).records)
    (root / "manifest.parquet").write_bytes(encode_manifest(records[1:]))
    return "manifest.parquet"


def a_leak(root: Path) -> str:
    """Two cases are said to be one design, and lie in two splits."""
    import dataclasses
    import hashlib

    records = list(decode_manifest((root / "manifest.parquet").read_bytes()).records)
    chosen = {r.placement.split: i for i, r in enumerate(records) if r.placement}
    for index in chosen.values():
        records[index] = dataclasses.replace(records[index], geometry_digests=("same",))
    data = encode_manifest(records)
    (root / "manifest.parquet").write_bytes(data)
    described = json.loads((root / "build.json").read_text())
    described["manifest_sha256"] = hashlib.sha256(data).hexdigest()
    (root / "build.json").write_text(json.dumps(described))
    return "several splits"


@pytest.mark.parametrize(
    "damage",
    [
        one_bit_in_parquet,
        one_bit_in_zarr,
        a_cut_shard,
        a_missing_shard,
        a_shard_of_other_values,
        a_stray_shard,
        a_stale_card,
        another_manifest,
        a_leak,
    ],
)
def test_damage_is_found_and_named(dataset: Path, damage: Callable[[Path], str]) -> None:
    where = damage(dataset)
    said = [str(problem) for problem in verify_dataset(dataset).problems]
    assert any(where in line for line in said), said


def test_values_are_named_with_row_and_case(dataset: Path) -> None:
    name = a_shard_of_other_values(dataset)
    problems = [p for p in verify_dataset(dataset).problems if p.row is not None]
    assert problems
    ids = pq.read_table(dataset / name, columns=["case_id"])["case_id"].to_pylist()
    mine = [p for p in problems if p.file == name]
    assert {(p.row, p.case_id) for p in mine} == set(enumerate(ids))
    assert any("temperature runs from" in p.what for p in mine)


def test_the_command(dataset: Path) -> None:
    words = ["pipelines.verify", str(dataset), "--workers", "0"]
    good = run_here(*words)
    assert good.returncode == 0, good.stderr
    where = one_bit_in_parquet(dataset)
    bad = run_here(*words)
    assert bad.returncode == 1
    assert where in bad.stdout


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no manifest\.parquet"):
        verify_dataset(tmp_path)
    (tmp_path / "manifest.parquet").write_bytes(b"nothing")
    (problem,) = verify_dataset(tmp_path).problems
    assert problem.file == "manifest.parquet"


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ("configs: [{config_name: default, data_files: []}]", "names the splits"),
        ("configs: [{config_name: default}]", "names the splits"),
        ("configs: [{config_name: default, data_files: [{path: data/x}]}]", "names the splits"),
        ("configs: [{config_name: default, data_files: data/*.parquet}]", "names the splits"),
        ("configs: default", "metadata that plain datasets can't read"),
        ("configs: [default]", "metadata that plain datasets can't read"),
        ("configs:", "metadata that plain datasets can't read"),
        ("- a list", "metadata that plain datasets can't read"),
        ("", "metadata that plain datasets can't read"),
        ("license: mit", "names no splits"),
        ("configs: [", "no readable metadata"),
    ],
)
def test_an_edited_card_is_told(dataset: Path, front: str, said: str) -> None:
    body = (dataset / "README.md").read_text().split("---\n", 2)[2]
    (dataset / "README.md").write_text(f"---\n{front}\n---\n{body}")
    problems = verify_dataset(dataset).problems
    assert {problem.file for problem in problems} == {"README.md"}
    assert said in "; ".join(problem.what for problem in problems)


@pytest.mark.parametrize("content", ["[]", '"x"', '{"configuration": []}', "7"])
def test_another_build_json_is_told(dataset: Path, content: str) -> None:
    (dataset / "build.json").write_text(content)
    assert "build.json" in {problem.file for problem in verify_dataset(dataset).problems}
