"""Parquet shards, Zarr parts and the manifest: what goes in comes out, and other libraries open it."""

from __future__ import annotations

import dataclasses
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpbf_data.case.case import Case
from lpbf_data.case.record import CaseRecord, Failure, Placement, Rejection, SourceRef
from lpbf_data.case.schema import DEFAULT_FIELDS, FIELDS, resolve_fields
from lpbf_data.case.statistics import FieldStatistics
from lpbf_data.durable import sha256_of_file, sha256_of_tree
from lpbf_data.errors import CaseError, FailureReason, SchemaError, StoreError
from lpbf_data.stores.manifest import Manifest, decode_manifest, encode_manifest, records_to_table, table_to_records
from lpbf_data.stores.parquet import ParquetShard, write_shard
from lpbf_data.stores.zarr_parts import ZarrPart, write_part
from lpbf_data.testing import cases
from tests.netfabb_cases import box_mesh
from tests.pipelines.test_select import MEASURES

SPECS = resolve_fields(["all"])
some_cases = st.lists(cases(fields=SPECS), min_size=1, max_size=3, unique_by=lambda c: c.case_id)
slow = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_same(stored: Case, case: Case) -> None:
    assert stored.case_id == case.case_id
    np.testing.assert_array_equal(stored.points, case.points)
    np.testing.assert_array_equal(stored.cells, case.cells)
    assert set(stored.fields) == set(case.fields)
    for name, values in case.fields.items():
        np.testing.assert_array_equal(stored.fields[name], values)
        assert stored.fields[name].dtype == np.float32


@slow
@given(some_cases)
def test_parquet_round_trip(many: list[Case]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("a.parquet", "b.parquet")]
        for path in paths:
            write_shard(path, many, SPECS)
        assert sha256_of_file(paths[0]) == sha256_of_file(paths[1])
        shard = ParquetShard(paths[0])
        assert len(shard) == len(many)
        assert shard.field_specs == SPECS
        for row in reversed(range(len(many))):
            stored = shard.read_case(row)
            assert_same(stored, many[row])
            assert dict(stored.attributes) == dict(many[row].attributes)


@slow
@given(some_cases)
def test_zarr_round_trip(many: list[Case]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("a", "b")]
        for path in paths:
            write_part(path, many, SPECS)
        assert sha256_of_tree(paths[0]) == sha256_of_tree(paths[1])
        part = ZarrPart(paths[0])
        assert len(part) == len(many)
        assert part.field_specs == SPECS
        for row in reversed(range(len(many))):
            assert_same(part.read_case(row), many[row])


def simple_case(case_id: str, shape: tuple[int, int, int] = (4, 3, 2)) -> Case:
    points, cells = box_mesh(shape)
    wave = np.sin(points).astype(np.float32)
    fields = {spec.name: wave if spec.num_components == 3 else wave[:, 0] for spec in resolve_fields(DEFAULT_FIELDS)}
    attributes = {"num_points": len(points), "num_cells": len(cells), "num_edges": 7, "height": 2.0, "material": "ti64"}
    return Case(case_id, points, cells, fields, attributes)


def test_a_reader_decodes_only_what_it_asks_for(tmp_path: Path) -> None:
    specs = resolve_fields(DEFAULT_FIELDS)
    write_shard(tmp_path / "a.parquet", [simple_case("a"), simple_case("b")], specs)
    columns = ParquetShard(tmp_path / "a.parquet").read_columns(1, ["x", "displacement_z"])
    assert set(columns) == {"x", "displacement_z"}
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert metadata.num_row_groups == 2
    encodings = {
        metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i).encodings
        for i in range(metadata.num_columns)
    }
    assert "BYTE_STREAM_SPLIT" in encodings["x.list.element"]
    assert "DELTA_BINARY_PACKED" in encodings["cells.list.element"]
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_unknown_columns_and_damage_are_told(tmp_path: Path) -> None:
    specs = resolve_fields(DEFAULT_FIELDS)
    path = tmp_path / "a.parquet"
    write_shard(path, [simple_case(f"c{i}", (8, 8, 8)) for i in range(3)], specs)
    with pytest.raises(SchemaError, match=r"cauchy_stress_xx.*displacement"):
        ParquetShard(path).read_case(0, [FIELDS["cauchy_stress"]])
    with pytest.raises(StoreError, match="missing"):
        ParquetShard(tmp_path / "none.parquet")
    data = path.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match=r"cut\.parquet"):
        ParquetShard(tmp_path / "cut.parquet")
    place = pq.ParquetFile(path).metadata.row_group(1).column(25).data_page_offset + 60
    altered = bytearray(data)
    altered[place] ^= 1
    path.write_bytes(altered)
    shard = ParquetShard(path)
    shard.read_case(0)
    with pytest.raises(StoreError, match="row 1"):
        shard.read_case(1)


def test_a_part_has_few_files_however_many_cases(tmp_path: Path) -> None:
    """What stands once a case lies in one array, and arrays have one chunk each; file systems count files."""
    found = {}
    for count in (1, 12):
        write_part(tmp_path / f"{count}", [simple_case(f"c{i}") for i in range(count)], resolve_fields(DEFAULT_FIELDS))
        found[count] = sorted(p.name for p in (tmp_path / f"{count}").rglob("*") if p.is_file())
    assert len(found[1]) == len(found[12]) == 29
    assert found[12].count("zarr.json") == 15  # the part and its 14 arrays, each of which has one file of values
    part = xarray.open_zarr(tmp_path / "12", consolidated=False)
    assert sorted(set(part.variables)) == sorted(p.name for p in (tmp_path / "12").iterdir() if p.is_dir())


def test_xarray_and_dask_open_a_part(tmp_path: Path) -> None:
    many = [simple_case("a"), simple_case("b", (9, 1, 3)), simple_case("ç", (1, 1, 1))]
    write_part(tmp_path / "part", many, resolve_fields(DEFAULT_FIELDS))
    part = xarray.open_zarr(tmp_path / "part", consolidated=False)
    assert part.case_id.values.tolist() == ["a", "b", "ç"]
    assert part.num_points.attrs["sample_dimension"] == "point"
    assert part.num_points.dtype == np.int64
    assert part.displacement.attrs["units"] == "mm"
    assert part.displacement.dims == ("displacement_component", "point")
    assert isinstance(part.temperature.data, dask.array.Array)
    lazily = float(abs(part.displacement[2]).max().compute())
    assert lazily == max(float(np.abs(case.fields["displacement"][:, 2]).max()) for case in many)
    start, end = part.point_offset.values[1:3]
    np.testing.assert_array_equal(part.points.values[:, start:end].T, many[1].points)
    heights = part.measures[part.measures.attrs["components"].split().index("height")]
    assert heights.dims == ("case",)
    np.testing.assert_array_equal(heights, [many[0].attributes.get("height", np.nan)] * 3)
    plain = zarr.open_group(tmp_path / "part", mode="r")
    assert plain["cells"].shape == (8, sum(case.num_cells for case in many))


def test_a_damaged_part_is_told(tmp_path: Path) -> None:
    write_part(tmp_path / "part", [simple_case("a", (12, 12, 12))], resolve_fields(DEFAULT_FIELDS))
    with pytest.raises(StoreError, match="none"):
        ZarrPart(tmp_path / "none")
    chunk = tmp_path / "part" / "displacement" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-200])
    part = ZarrPart(tmp_path / "part")
    part.read_field(0, FIELDS["temperature"])
    with pytest.raises(StoreError, match="displacement"):
        part.read_field(0, FIELDS["displacement"])


RECORDS = (
    CaseRecord(
        "b",
        SourceRef("x.zip", "SandBox/b", 100, "abc"),
        design_id="d",
        measures=MEASURES,
        statistics={"temperature": FieldStatistics(3, 25.0, 1.0, 20.0, 30.0)},
        geometry_digests=("p", "q", "r"),
        placement=Placement("train", 0, 1, "data/x.parquet", 10, "00", "lpbf.zarr/train/00000", 20, "11"),
    ),
    CaseRecord(
        "a",
        SourceRef("x.zip", "SandBox/a"),
        measures=dataclasses.replace(MEASURES, recoater_clearance_min_height=None),
        rejections=(Rejection("max_points", 60000.0, 50000.0),),
    ),
    CaseRecord(
        "é",
        SourceRef("y.zip", "."),
        failure=Failure(FailureReason.TRUNCATED_FILE, "cut", "results/x.ens", 17),
    ),
)


def test_manifest_round_trip_in_any_order() -> None:
    data = encode_manifest(RECORDS)
    assert data == encode_manifest(reversed(RECORDS))
    manifest = decode_manifest(data)
    assert manifest.records == (RECORDS[1], RECORDS[0], RECORDS[2])
    assert [record.status for record in manifest.records] == ["rejected", "kept", "failed"]
    assert table_to_records(records_to_table(RECORDS)) == manifest.records
    assert manifest.splits == ("train",)
    assert manifest.of_split("train")["case_id"].to_pylist() == ["b"]


def test_other_manifests_are_refused() -> None:
    with pytest.raises(StoreError, match="Parquet"):
        decode_manifest(b"PAR1 and nothing else")
    table = records_to_table(RECORDS)

    def encode(changed: object) -> bytes:
        sink = io.BytesIO()
        pq.write_table(changed, sink)
        return sink.getvalue()

    with pytest.raises(SchemaError, match="upgrade"):
        decode_manifest(encode(table.replace_schema_metadata({"lpbf_schema_version": "99"})))
    with pytest.raises(SchemaError, match="not written by this project"):
        decode_manifest(encode(table.replace_schema_metadata({})))
    with pytest.raises(SchemaError, match="num_points"):
        decode_manifest(encode(table.drop_columns(["num_points"])))
    assert isinstance(decode_manifest(encode(table)), Manifest)


@pytest.mark.parametrize(
    ("version", "lacking", "refused"),
    [
        (1, ["tensor_order", "tensor_order_basis", "remarks"], None),
        (2, ["remarks"], None),
        (2, ["tensor_order_basis", "remarks"], "tensor_order_basis"),
        (1, ["remarks", "solver_version"], "solver_version"),
    ],
)
def test_columns_that_came_later_may_be_lacking_in_older_manifests_alone(
    version: int, lacking: list[str], refused: str | None
) -> None:
    table = records_to_table(RECORDS).drop_columns(lacking)
    table = table.replace_schema_metadata({"lpbf_schema_version": str(version)})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    if refused is not None:
        with pytest.raises(SchemaError, match=f"lacks the column '{refused}'"):
            decode_manifest(sink.getvalue())
        return
    manifest = decode_manifest(sink.getvalue())
    assert set(manifest.table.column_names) == set(records_to_table(RECORDS).column_names)
    assert [(r.run.tensor_order, r.remarks) for r in manifest.records] == [(None, ())] * 3


@pytest.mark.parametrize("case_id", ["", ".", "..", "/", "../evil", "a/b", "C:\\a", "a\0.png", None])
def test_ids_that_cannot_name_a_file_are_refused_for_kept_cases_alone(case_id: Any) -> None:
    failed = dataclasses.replace(RECORDS[2], case_id="../evil")
    assert decode_manifest(encode_manifest([RECORDS[0], failed])).records[0].case_id == "../evil"
    kept = next(record for record in RECORDS if record.placement is not None)
    with pytest.raises(SchemaError, match=re.escape(f"the id {case_id!r},")):
        decode_manifest(encode_manifest([dataclasses.replace(kept, case_id=case_id)]))
    assert len(decode_manifest(encode_manifest([dataclasses.replace(kept, case_id="..a. é")]))) == 1


def test_a_case_checks_itself() -> None:
    points, cells = box_mesh((2, 1, 1))
    good = Case("a", points, cells, {"temperature": np.zeros(len(points), np.float32)})
    assert (good.num_points, good.num_cells) == (12, 2)

    def refusal(**changes: object) -> FailureReason:
        with pytest.raises(CaseError) as caught:
            dataclasses.replace(good, **changes)  # type: ignore[arg-type]
        return caught.value.reason

    assert refusal(points=points[:5]) is FailureReason.INDEX_OUT_OF_RANGE
    assert refusal(points=points.astype(np.float64)) is FailureReason.SIZE_MISMATCH
    assert refusal(cells=cells[:, :4]) is FailureReason.SIZE_MISMATCH
    assert refusal(cells=cells[:0]) is FailureReason.EMPTY_MESH
    assert refusal(cells=cells - 1) is FailureReason.INDEX_OUT_OF_RANGE
    assert refusal(points=np.where(points > 1, np.float32(np.inf), points)) is FailureReason.NON_FINITE
    assert refusal(fields={"temperature": np.full(len(points), np.nan, np.float32)}) is FailureReason.NON_FINITE
    assert refusal(fields={"temperature": np.zeros(3, np.float32)}) is FailureReason.SIZE_MISMATCH
    with pytest.raises(SchemaError, match="heat"):
        dataclasses.replace(good, fields={"heat": points[:, 0]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        good.case_id = "b"  # type: ignore[misc]
    with pytest.raises(TypeError):
        good.fields["temperature"] = points[:, 0]  # type: ignore[index]
