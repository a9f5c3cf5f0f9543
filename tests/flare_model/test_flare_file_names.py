"""Files named after parts: they stay in their folder and don't overwrite each other, whatever the parts are called."""

from __future__ import annotations

import shutil
from pathlib import Path

import meshio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare_model.evaluate import evaluate
from flare_model.predict import predict
from flare_model.prediction.file_names import FileNames
from flare_model.prediction.part_files import names_of
from flare_model.spectrum import spectrum
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.reading.split_reader import SplitReader


@given(st.lists(st.text(max_size=12)))
def test_names_stay_in_their_folder_and_differ(parts: list[str]) -> None:
    names = FileNames()
    found = [names.name(part) for part in parts]
    assert len({name.casefold() for name in found}) == len(parts)
    for name in found:
        assert Path("out", f"{name}.vtu").name == f"{name}.vtu"
        assert not name.startswith(".")
        assert all(c.isalnum() or c in "_.-" for c in name)


def test_valid_file_names_are_kept() -> None:
    names = FileNames()
    assert names.name("200000_22b839a0_1") == "200000_22b839a0_1"
    assert [names.name(part) for part in ("a-2", "a", "A", "a")] == ["a-2", "a", "A-3", "a-4"]


def test_parts_of_the_same_name_are_written_to_different_files(
    box_dataset: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(str(trained_run), [box_dataset], out=str(tmp_path / "cases"), pictures=False)
    sources = []
    for number, path in enumerate(sorted((tmp_path / "cases").glob("*.vtu"))):
        sources.append(tmp_path / f"order-{number}" / "bracket.vtu")
        sources[-1].parent.mkdir()
        shutil.copy(path, sources[-1])
    capsys.readouterr()
    predict(str(trained_run), [str(s) for s in sources], out=str(tmp_path / "out"), pictures=False)
    names = ["order-0_bracket.vtu", "order-1_bracket.vtu"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["answers.json", *names]
    assert "order-1/bracket (written as order-1_bracket): " in capsys.readouterr().out
    for source, name in zip(sources, names, strict=True):
        np.testing.assert_array_equal(meshio.read(tmp_path / "out" / name).points, meshio.read(source).points)


def test_names_hold_as_much_of_the_path_as_tells_files_apart(tmp_path: Path) -> None:
    def names(*files: str) -> list[str]:
        return [*names_of([tmp_path / file for file in files]).values()]

    assert names("part.stl", "lid.stl") == ["part", "lid"]
    assert names("a/x/part.stl", "b/x/part.stl", "b/lid.stl") == ["a/x/part", "b/x/part", "lid"]
    assert names("a/part.stl", "a/PART.obj", "b/part.stl") == ["a/part.stl", "a/PART.obj", "b/part.stl"]
    assert names("1/run/mechanical.case", "2/run/mechanical.case", "3/run.stl") == ["1/run", "2/run", "3/run"]
    assert names("part.stl", "part.stl") == ["part"]
    assert list(names_of([Path("part.stl"), Path("./x/../part.stl")]).values()) == ["part", "part"]


def copy_with_case_ids(box_dataset: str, folder: Path, name: str) -> str:
    """Copy a data set, with other case ids in its test split; returns the copy."""
    shutil.copytree(box_dataset, folder)
    addresses = SplitReader(DatasetFolder(box_dataset), "test").addresses
    new = {address.case_id: f"{name}{number}" for number, address in enumerate(addresses)}
    for path in [folder / "manifest.parquet", *{folder / address.shard for address in addresses}]:
        table = pq.read_table(path)
        ids = [new.get(i, i) for i in table["case_id"].to_pylist()]
        place = table.schema.get_field_index("case_id")
        pq.write_table(table.set_column(place, table.schema.field(place), [pa.array(ids, pa.string())]), path)
    return str(folder)


def test_case_ids_that_are_paths_to_other_folders_are_refused(
    box_dataset: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign_dataset = copy_with_case_ids(box_dataset, tmp_path / "deep/down/foreign", "../../outside ")
    out, before = tmp_path / "a/b/c/out", set(tmp_path.rglob("*"))
    assert predict(str(trained_run), [foreign_dataset], out=str(out)) == 1
    assert "can't name a file" in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before


def test_case_ids_with_special_characters_become_valid_file_names(
    box_dataset: str, trained_run: Path, tmp_path: Path
) -> None:
    foreign_dataset = copy_with_case_ids(box_dataset, tmp_path / "deep/down/foreign", ".. out:*side ")
    out, before = tmp_path / "a/b/c/out", set(tmp_path.rglob("*"))
    checkpoint = str(trained_run)
    predict(checkpoint, [foreign_dataset], out=str(out / "predicted"))
    evaluate(checkpoint, foreign_dataset, out=str(out / "judged"))
    spectrum(checkpoint, foreign_dataset, out=str(out / "spectrum"), split="test")
    assert [p for p in set(tmp_path.rglob("*")) - before if p.is_file() and out not in p.parents] == []
    assert {p.name for p in (out / "predicted").glob("*.vtu")} == {
        f"{FileNames().name(f'.. out:*side {i}')}.vtu" for i in (0, 1)
    }
    assert len(list((out / "judged/worst").glob("displacement_z_*out__side_*.png"))) == 2
    assert len(list((out / "spectrum").glob("*out__side_*.png"))) >= 1
