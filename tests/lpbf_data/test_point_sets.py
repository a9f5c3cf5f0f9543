"""Data sets of points without cells: written whole, read as they were, refused where something doesn't fit."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from lpbf_data import load_dataset, make_loader
from lpbf_data.analysis import open_zarr
from lpbf_data.case.point_schema import POINTS_VERSION, PointSchema
from lpbf_data.case.schema import SCHEMA_VERSION, VECTOR, FieldSpec
from lpbf_data.errors import CaseError, LpbfError, SchemaError, StoreError, UsageError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.reading.catalog import read_points
from lpbf_data.reading.split_reader import SplitReader
from lpbf_data.serving.transforms import Compose, RandomSymmetry, Standardise
from lpbf_data.stores import point_sets
from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest
from lpbf_data.stores.point_sets import PointCase, write_point_set

HEAT = PointSchema(
    "heat",
    ("x", "y"),
    "m",
    (
        FieldSpec("source", (), "W", "point", "heat that is put in"),
        FieldSpec("flux", ("x", "y"), "W m-2", "point", "heat flux"),
        FieldSpec("temperature", (), "K", "point", "has the name of a field of parts, and another unit"),
    ),
    ("source",),
    ("flux",),
    grid=(4, 5),
    scales={"source": (1.0, 2.0)},
)


def heat_cases(prefix: str, count: int, size: int = 20) -> Iterator[PointCase]:
    for number in range(count):
        random = np.random.default_rng((len(prefix), number))
        fields = {
            "source": random.random(size),
            "flux": random.random((size, 2)),
            "temperature": random.random(size),
        }
        yield PointCase(f"{prefix}_{number}", random.random((size, 2)), fields)


@pytest.fixture(scope="module")
def heat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("points") / "heat"
    splits = {"train": heat_cases("train", 5), "test": heat_cases("test", 2)}
    write_point_set(out, HEAT, splits, standardised=True)
    return out


def test_cases_are_read_as_they_were(heat: Path) -> None:
    for cache in (False, heat.parent / "cache", heat.parent / "cache"):
        dataset = load_dataset(heat, "test", format="torch", cache=cache)
        for case, sample in zip(heat_cases("test", 2), (dataset[i] for i in range(len(dataset))), strict=True):
            assert sample["case_id"] == case.case_id
            assert np.array_equal(sample["pos"], case.points.astype(np.float32))
            for name, values in case.fields.items():
                assert np.array_equal(sample[name], values.reshape(20, -1).astype(np.float32))
            assert np.array_equal(sample["y"], sample["flux"])
            assert set(sample) == {"case_id", "pos", "y", *case.fields}
    (graph, _) = load_dataset(heat, "test", cache=False)
    assert graph.num_nodes == 20
    batches = [*make_loader(str(heat), "train", batch_size=2, fields=["source"], cache=False)]
    assert [batch.offsets.tolist() for batch in batches] == [[0, 20, 40], [0, 20, 40], [0, 20]]
    assert (batches[0].pos.shape, batches[0].y.shape, [*batches[0].fields]) == ((40, 2), (40, 2), ["source"])


def test_cases_that_lie_elsewhere_are_read_alike(heat: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(heat), "/heat", recursive=True)
    mine, theirs = (load_dataset(name, format="torch", cache=False) for name in (heat, "memory://heat"))
    for one, other in zip((mine[i] for i in range(5)), (theirs[i] for i in range(5)), strict=True):
        assert one["case_id"] == other["case_id"]
        assert all(np.array_equal(one[name], other[name]) for name in ("pos", "y", "source", "temperature"))
    streamed = load_dataset(str(heat), "test", streaming=True, format="torch", cache=False)
    assert [sample["case_id"] for sample in streamed] == ["test_0", "test_1"]


def test_it_says_of_itself_what_lies_at_its_points(heat: Path) -> None:
    points = read_points(heat)
    assert points is not None
    assert dataclasses.replace(points, scales={"source": (1.0, 2.0)}) == HEAT
    x = np.concatenate([case.points[:, 0] for case in heat_cases("train", 5)]).astype(np.float32)
    assert points.scales["x"] == pytest.approx((x.mean(dtype=np.float64), x.std(ddof=1, dtype=np.float64) + 1e-8))
    assert PointSchema.decode(points.encode()) == points
    statistics = load_dataset(heat, "train", cache=False).statistics()
    assert {"x", "y", "source", "flux_x", "flux_y"} <= set(statistics)
    scaled = Standardise.of(load_dataset(heat, "train", cache=False), ["y", "source"])
    assert scaled.mean["y"] == (statistics["flux_x"].mean, statistics["flux_y"].mean)
    (record, *_) = decode_manifest((heat / MANIFEST_NAME).read_bytes()).records
    assert (record.num_points, record.measures, record.status) == (20, None, "kept")


def test_the_same_cases_give_the_same_bytes_in_shards_of_bounded_size(
    heat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = write_point_set(tmp_path / "again", HEAT, {"train": heat_cases("train", 5), "test": heat_cases("test", 2)})
    for name in ("data/train-00000.parquet", "data/test-00000.parquet"):
        assert (heat / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    monkeypatch.setattr(point_sets, "_MAX_ROWS", 2)
    many = write_point_set(tmp_path / "many", HEAT, {"train": heat_cases("train", 5)})
    assert [(r.placement.shard, r.placement.row) for r in many if r.placement] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
    ]
    assert len({r.placement.parquet_sha256 for r in many if r.placement}) == 3
    for number in range(5):
        one, other = (load_dataset(tmp_path / name, format="torch", cache=False)[number] for name in ("again", "many"))
        assert all(np.array_equal(one[name], other[name]) for name in ("pos", "y", "source"))
    assert len(again) == 7


def test_points_may_have_any_dimension(tmp_path: Path) -> None:
    for width in (1, 3, 4):
        names = tuple("abcd"[:width])
        line = PointSchema("line", names, "1", (FieldSpec("u", (), "1", "point", ""),), (), ("u",))
        points = np.random.default_rng(0).random((7, width))
        write_point_set(tmp_path / str(width), line, {"train": [PointCase("one", points, {"u": points[:, 0]})]})
        sample = load_dataset(tmp_path / str(width), format="torch", cache=False)[0]
        assert np.array_equal(sample["pos"], points.astype(np.float32))
    vector = FieldSpec("u", VECTOR, "1", "point", "")
    assert PointSchema("cars", VECTOR, "m", (vector,), (), ("u",)).target_columns == ("u_x", "u_y", "u_z")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda d: load_dataset(d, features="geometry"), "features of the shape are derived from hexahedra"),
        (lambda d: load_dataset(d, edges=True), "edges are derived from hexahedra"),
        (lambda d: load_dataset(d, fields=["pressure"]), "has no field 'pressure'; it has: source, flux"),
        (lambda d: load_dataset(d, "validation"), "has no split 'validation'"),
        (lambda d: SplitReader(DatasetFolder(d), "train").read(0, []), "points without cells"),
        (lambda d: load_dataset(d, transform=RandomSymmetry(), cache=False), "a transform is for printed parts alone"),
        (lambda d: make_loader(d, transform=Compose(RandomSymmetry()), cache=False), "a transform is for printed"),
    ],
)
def test_what_needs_cells_is_refused_in_a_sentence(how: Callable[[Path], Any], said: str, heat: Path) -> None:
    with pytest.raises(UsageError, match=said):
        how(heat)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"points": np.zeros((19, 2))}, "19 points are no grid of 4 × 5 = 20"),
        ({"points": np.zeros((20, 3))}, r"points must be \[20, 2\] real numbers, not \[20, 3\]"),
        ({"flux": np.zeros(20)}, r"flux must be \[20, 2\]"),
        ({"source": np.zeros(20, np.complex128)}, "not .* complex128"),
        ({"source": np.zeros(20, np.int64)}, "not .* int64"),
        ({"source": np.full(20, np.inf)}, "source is no finite number at point 0"),
        ({"source": np.full(20, 1e300)}, "source is no finite number at point 0"),
        ({"case_id": "test_0"}, "another case has the same id"),
        ({"case_id": "../mine"}, "can't name a file"),
    ],
)
def test_a_case_that_doesnt_fit_is_told_and_nothing_is_left(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    def cases() -> Iterator[PointCase]:
        yield from heat_cases("test", 1)
        (case,) = heat_cases("other", 1)
        own = {name: value for name, value in change.items() if name in ("points", "case_id")}
        yield dataclasses.replace(
            case, **own, fields={**case.fields, **{k: v for k, v in change.items() if k not in own}}
        )

    with pytest.raises(CaseError, match=said):
        write_point_set(tmp_path / "set", HEAT, {"train": cases()})
    assert not [*tmp_path.iterdir()]


def test_an_empty_split_or_a_folder_that_isnt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the split test has no case"):
        write_point_set(tmp_path / "set", HEAT, {"train": heat_cases("train", 1), "test": []})
    assert not [*tmp_path.iterdir()]
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="holds something already"):
        write_point_set(tmp_path, HEAT, {"train": heat_cases("train", 1)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coordinates": []}, "names of their own"),
        ({"coordinates": ["x", "x"]}, "names of their own"),
        ({"coordinates": ["x", "source"]}, "names of their own"),
        ({"coordinates": ["x", "../y"]}, "can't be a name"),
        ({"inputs": ["heat"]}, "there is no field 'heat'"),
        ({"targets": []}, "at least one field must be a target"),
        ({"targets": ["source"]}, "no target may be an input"),
        ({"grid": [4]}, "can't be read"),
        ({"grid": [0, 5]}, "a grid has rows and columns"),
        ({"scales": {"x": [0.0, 0.0]}}, "x can't be scaled"),
        ({"scales": {"z": [0.0, 1.0]}}, "z can't be scaled"),
        ({"fields": [{"name": "pos", "components": [], "unit": "", "description": ""}]}, "can't be called 'pos'"),
        ({"fields": [{"name": "structure_type", "components": [], "unit": "", "description": ""}]}, "can't be called"),
        ({"fields": [{"name": "u"}]}, "can't be read"),
        ({"fields": 3}, "can't be read"),
    ],
)
def test_what_a_data_set_says_of_itself_must_make_sense(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        PointSchema.from_dict({**HEAT.as_dict(), **change})


def altered(heat: Path, how: Callable[[dict[bytes, bytes]], dict[bytes, bytes]], count: int | None = None) -> bytes:
    table = pq.read_table(heat / MANIFEST_NAME)
    metadata = how(dict(table.schema.metadata))
    if count is not None:
        place = table.column_names.index("num_points")
        table = table.set_column(place, "num_points", [[count] * len(table)])
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue()


def test_a_manifest_of_points_has_a_version_of_its_own(heat: Path) -> None:
    version, key = b"lpbf_schema_version", b"lpbf_points"
    assert POINTS_VERSION > SCHEMA_VERSION  # versions of before, which know parts alone, ask to be upgraded
    assert decode_manifest(altered(heat, lambda m: m)).schema_version == POINTS_VERSION
    for how in (lambda m: {**m, version: b"2"}, lambda m: {version: m[version]}):
        with pytest.raises(SchemaError, match="doesn't go with its schema of points"):
            decode_manifest(altered(heat, how))
    for content in (b"", b"[]", b"{}", b'{"name": "heat"}'):
        with pytest.raises(SchemaError, match="the schema of its points can't be read"):
            decode_manifest(altered(heat, lambda m, content=content: {**m, key: content}))


def test_a_case_that_is_no_grid_is_refused_when_the_data_set_is_opened(heat: Path, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(altered(heat, lambda m: m, count=21))
    with pytest.raises(SchemaError, match="case train_0: 21 points are no grid of 4 × 5 = 20"):
        load_dataset(tmp_path, cache=False)


def test_a_damaged_shard_is_told(heat: Path, tmp_path: Path) -> None:
    write_point_set(tmp_path / "set", HEAT, {"train": heat_cases("train", 2)})
    shard = tmp_path / "set/data/train-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[100] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="case train_0"):
        _ = load_dataset(tmp_path / "set", cache=False)[0]


def test_commands_for_parts_refuse_points(heat: Path) -> None:
    with pytest.raises(UsageError, match="open_zarr is for printed parts alone"):
        open_zarr(str(heat))
    manifest = decode_manifest((heat / MANIFEST_NAME).read_bytes())
    with pytest.raises(
        LpbfError, match="heat is a data set of heat, points without cells; a report is for printed parts"
    ):
        manifest.need_parts("heat", "a report")
