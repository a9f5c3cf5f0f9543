"""Both stores give back what was written, by the short way and the general one, and refuse what was altered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import lpbf_data.stores.zarr_parts as zarr_store
from lpbf_data.case.case import Case
from lpbf_data.case.schema import FIELDS
from lpbf_data.errors import SchemaError, StoreError
from lpbf_data.stores.parquet import ParquetShard, write_shard
from lpbf_data.stores.selection import TARGET_COMPONENT, TARGET_FIELD, Arrays, Selection, finish_arrays
from lpbf_data.stores.zarr_direct_reader import open_sharded_array
from lpbf_data.stores.zarr_parts import ZarrPart, write_part
from tests.data_support import SPECS, make_case

SELECTIONS = [
    Selection(SPECS, cells=True),
    Selection((), cells=False),
    Selection((FIELDS["displacement"],), target=False, cells=False),
    Selection((FIELDS["temperature"], FIELDS["displacement"]), cells=False, edges=True),
]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [make_case(seed, 40 + 60 * seed) for seed in range(4)]


@pytest.fixture(scope="module")
def part(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part whose chunks are so short that cases begin and end in their middle."""
    path = tmp_path_factory.mktemp("zarr") / "00000"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_store, "CHUNK_LENGTH", 64)
        write_part(path, cases, SPECS)
    return path


@pytest.fixture(scope="module")
def shard(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parquet") / "shard.parquet"
    write_shard(path, cases, SPECS)
    return path


def open_store(kind: str, part: Path, shard: Path) -> ZarrPart | ParquetShard:
    return ZarrPart(part) if kind == "zarr" else ParquetShard(shard)


def arrays_of_case(case: Case, selection: Selection) -> Arrays:
    """What a store must give for a case."""
    arrays: Arrays = {"pos": case.points}
    if selection.target:
        arrays["y"] = case.fields[TARGET_FIELD][:, TARGET_COMPONENT : TARGET_COMPONENT + 1]
    for spec in selection.fields:
        values = case.fields[spec.name]
        arrays[spec.name] = values.reshape(len(values), -1)
    return finish_arrays(arrays, case.cells, selection)


def read_all(store: ZarrPart | ParquetShard, selection: Selection) -> list[Any]:
    return [store.read_arrays(row, selection) for row in range(len(store))]


@pytest.mark.parametrize("kind", ["zarr", "parquet"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_arrays_are_those_of_the_case(
    kind: str, selection: Selection, cases: list[Case], part: Path, shard: Path
) -> None:
    store = open_store(kind, part, shard)
    for row, case in enumerate(cases):
        arrays, cells = store.read_arrays(row, selection)
        wanted = arrays_of_case(case, Selection(selection.fields, selection.target, cells=False))
        assert set(arrays) == set(wanted)
        for name, values in wanted.items():
            assert arrays[name].dtype == values.dtype
            np.testing.assert_array_equal(arrays[name], values)
        assert (cells is not None) == selection.reads_cells
        if cells is not None:
            np.testing.assert_array_equal(cells, case.cells)


@pytest.mark.parametrize("kind", ["zarr", "parquet"])
def test_cases_come_back(kind: str, cases: list[Case], part: Path, shard: Path) -> None:
    store = open_store(kind, part, shard)
    assert len(store) == len(cases)
    for row, case in enumerate(cases):
        stored = store.read_case(row)
        assert stored.case_id == case.case_id
        np.testing.assert_array_equal(stored.points, case.points)
        np.testing.assert_array_equal(stored.cells, case.cells)
        for spec in SPECS:
            np.testing.assert_array_equal(stored.fields[spec.name], case.fields[spec.name])


def test_a_shard_names_its_cases_without_decoding(cases: list[Case], shard: Path) -> None:
    store = ParquetShard(shard)
    assert [store.case_id(row) for row in range(len(store))] == [case.case_id for case in cases]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_short_way_reads_what_zarr_reads(part: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["points", "displacement", "von_mises_stress", "cells", "temperature"]))
    general = zarr.open_array(part / name, mode="r")[...]
    planar = general if general.ndim == 2 else general[None]
    start = data.draw(st.integers(0, planar.shape[1] - 1))
    stop = data.draw(st.integers(start + 1, planar.shape[1]))
    first = data.draw(st.integers(0, len(planar) - 1))
    short = open_sharded_array(part / name)
    assert short is not None
    np.testing.assert_array_equal(short.read(start, stop), planar[:, start:stop].T)
    np.testing.assert_array_equal(short.read(start, stop, slice(first, None)), planar[first:, start:stop].T)


def test_chunks_that_hold_only_the_fill_value_are_read(tmp_path: Path) -> None:
    case = make_case(5)
    quiet = dict(case.fields) | {"temperature": np.zeros(case.num_points, dtype=np.float32)}
    write_part(tmp_path / "p", [Case(case.case_id, case.points, case.cells, quiet)], SPECS)
    arrays, _ = ZarrPart(tmp_path / "p").read_arrays(0, Selection((FIELDS["temperature"],), cells=False))
    np.testing.assert_array_equal(arrays["temperature"][:, 0], quiet["temperature"])


def test_a_part_in_another_layout_is_read_the_general_way(cases: list[Case], tmp_path: Path) -> None:
    path = tmp_path / "p"
    write_part(path, cases, SPECS)
    values = zarr.open_array(path / "von_mises_stress", mode="r")[...]
    shutil.rmtree(path / "von_mises_stress")
    group = zarr.open_group(path, mode="r+")
    group.create_array("von_mises_stress", data=values, chunks=(100,), dimension_names=("point",))
    assert open_sharded_array(path / "von_mises_stress") is None
    np.testing.assert_array_equal(
        ZarrPart(path).read_case(2).fields["von_mises_stress"], cases[2].fields["von_mises_stress"]
    )


def test_xarray_opens_a_part(part: Path, cases: list[Case]) -> None:
    opened = xarray.open_zarr(part, consolidated=False)
    assert opened.displacement.dims == ("displacement_component", "point")
    assert opened.sizes["case"] == len(cases)
    first = opened.displacement[:, : cases[0].num_points].to_numpy().T
    np.testing.assert_array_equal(first, cases[0].fields["displacement"])


@pytest.mark.parametrize("position", np.linspace(0.0, 0.999, 40))
def test_no_altered_byte_of_a_chunk_is_read(position: float, part: Path, cases: list[Case], tmp_path: Path) -> None:
    copy = tmp_path / "part"
    shutil.copytree(part, copy)
    path = copy / "displacement" / "c" / "0" / "0"
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(StoreError, match="displacement"):
        read_all(ZarrPart(copy), Selection((), cells=False))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 0.99])
def test_a_cut_part_is_refused(keep: float, part: Path, tmp_path: Path) -> None:
    copy = tmp_path / "part"
    shutil.copytree(part, copy)
    path = copy / "points" / "c" / "0" / "0"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(StoreError, match="points"):
        ZarrPart(copy).read_case(0)


def test_a_part_whose_array_is_gone_is_refused(part: Path, tmp_path: Path) -> None:
    copy = tmp_path / "part"
    shutil.copytree(part, copy)
    shutil.rmtree(copy / "cells" / "c")
    with pytest.raises(StoreError, match="cells"):
        ZarrPart(copy).read_case(0)


def test_an_index_that_points_outside_its_file_is_refused(part: Path, tmp_path: Path) -> None:
    import google_crc32c

    copy = tmp_path / "part"
    shutil.copytree(part, copy)
    path = copy / "temperature" / "c" / "0"
    layout = json.loads((copy / "temperature" / "zarr.json").read_bytes())
    chunks = -(-layout["shape"][0] // 64)
    content = path.read_bytes()
    index = np.frombuffer(content[-16 * chunks - 4 : -4], "<u8").copy()
    index[1] = 2**62
    forged = index.tobytes()
    path.write_bytes(content[: -16 * chunks - 4] + forged + google_crc32c.value(forged).to_bytes(4, "little"))
    with pytest.raises(StoreError, match="outside its file"):
        ZarrPart(copy).read_case(0)


@pytest.mark.parametrize("position", np.linspace(0.01, 0.85, 30))
def test_no_altered_page_is_read(position: float, shard: Path, cases: list[Case], tmp_path: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[int(position * len(content))] ^= 0x04
    (tmp_path / "s.parquet").write_bytes(content)
    try:
        read = read_all(ParquetShard(tmp_path / "s.parquet"), Selection(SPECS))
    except StoreError as error:
        found = str(error)
    else:
        # A byte that no array depends on (a page header's statistics, say) may differ without harm.
        found = "s.parquet"
        for (arrays, cells), case in zip(read, cases, strict=True):
            wanted = arrays_of_case(case, Selection(SPECS))
            assert all(np.array_equal(arrays[name], wanted[name]) for name in arrays)
            np.testing.assert_array_equal(cells, case.cells)
    assert "s.parquet" in found


def test_a_field_that_is_not_stored_is_named(part: Path, shard: Path) -> None:
    selection = Selection((FIELDS["cauchy_stress"],), target=False)
    with pytest.raises(SchemaError, match=r"cauchy_stress.*displacement"):
        ParquetShard(shard).read_arrays(0, selection)
    with pytest.raises(StoreError, match=r"cauchy_stress.*displacement"):
        ZarrPart(part).read_arrays(0, selection)
