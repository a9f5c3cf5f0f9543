"""Packed corpora: exact meshes, bounded errors, pieces, and files that anybody may have written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lpbf_data import load_dataset
from lpbf_data.case.case import Case
from lpbf_data.case.record import CaseRecord, Placement
from lpbf_data.case.schema import FIELDS
from lpbf_data.errors import LpbfError, StoreError, UsageError
from lpbf_data.geometry.voxel_mesh import mesh_of_mask
from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest
from lpbf_data.stores.packed import PackedPiece, PackedWriter, find_pieces, relative_error, with_split_only
from lpbf_data.stores.packed_codec import pack_case, unpack_case
from pipelines.pack import DEFAULT, pack, pack_dataset
from pipelines.unpack import unpack, unpack_corpus
from pipelines.verify import verify_dataset
from tests.data_support import make_case, make_fields, record_of, write_dataset

SPECS = tuple(FIELDS[name] for name in DEFAULT)


def boxes(seed: int, case_id: str | None = None) -> Case:
    """A part with random cells, numbered as the simulator numbers them, and smooth fields."""
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=rng.integers(1, 8, 3)) < 0.8
    mask[0, 0, 0] = True
    mesh = mesh_of_mask(mask, rng.uniform(-30, 0, 3), rng.uniform(0.3, 2.0, 3))
    points = mesh.points.astype(np.float32)
    return Case(case_id or f"{seed:05d}_0000000a_1", points, mesh.cells, make_fields(rng, points))


@given(
    mask=hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)).filter(np.any),
    seed=st.integers(0, 2**32 - 1),
    tolerance=st.sampled_from([1e-6, 2e-5, 1e-3]),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e20]),
)
@settings(max_examples=60, deadline=None)
def test_meshes_are_exact_and_values_within_the_tolerance(
    mask: np.ndarray, seed: int, tolerance: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    mesh = mesh_of_mask(mask, rng.uniform(-30, 30, 3), rng.uniform(0.1, 3.0, 3))
    n = mesh.num_points
    fields = {
        "displacement": (scale * rng.normal(size=(n, 3))).astype(np.float32),
        "build_clearance_min": np.where(rng.uniform(size=n) < 0.5, 100, rng.uniform(-90, 100, n)).astype(np.float32),
        "build_displacement_z_max": (scale * rng.normal(size=n)).astype(np.float32),
    }
    case = Case("a", mesh.points.astype(np.float32), mesh.cells, fields)
    packed = pack_case(case, SPECS, tolerance)
    assert packed is not None
    back = unpack_case(packed, "a", SPECS, {})
    np.testing.assert_array_equal(back.points, case.points)
    np.testing.assert_array_equal(back.cells, case.cells)
    for spec in SPECS:
        assert relative_error(back, case, spec) <= tolerance + 2e-7
    untouched = case.fields["build_clearance_min"] == 100
    assert (back.fields["build_clearance_min"][untouched] == 100).all()


def test_clearances_that_are_all_but_whole_are_packed_as_floats_can_tell_them(tmp_path: Path) -> None:
    # Floats near 100 lie 8e-6 apart: a thousandth of a clearance that is lower by 0.008 at most.
    case = boxes(2)
    lower = np.linspace(0, 0.008, len(case.points))
    case = dataclasses.replace(
        case, fields=dict(case.fields) | {"build_clearance_min": (100 - lower).astype(np.float32)}
    )
    errors = PackedWriter(tmp_path, SPECS).add(record_of(case), case)
    assert errors is not None
    assert errors["build_clearance_min"] < 2e-3


def test_a_mesh_that_was_numbered_otherwise_is_not_packed() -> None:
    assert pack_case(make_case(3), SPECS, 1e-5) is None
    case = boxes(1)
    turned = dataclasses.replace(case, cells=np.ascontiguousarray(case.cells[::-1]))
    assert pack_case(case, SPECS, 1e-5) is not None
    assert len(case.cells) < 2 or pack_case(turned, SPECS, 1e-5) is None


def test_smooth_fields_take_few_bytes(tmp_path: Path) -> None:
    mask = np.ones((16, 14, 12), dtype=bool)
    mask[4:9, 5:9, :] = False
    mesh = mesh_of_mask(mask, (0, 0, 0), (1.0, 1.0, 0.8))
    x, y, z = mesh.points.T / 16
    moved = np.stack([0.1 * x * z, 0.1 * y * z, 0.3 * (x**2 + y**2) * z - 0.1 * x * y], axis=1)
    case = make_case(0)
    points = mesh.points.astype(np.float32)
    fields = {"displacement": moved.astype(np.float32)}
    writer = PackedWriter(tmp_path, [FIELDS["displacement"]])
    for number in range(32):
        record = dataclasses.replace(record_of(case), case_id=f"{number}", placement=Placement("train", 0, 0))
        assert writer.add(record, Case(f"{number}", points, mesh.cells, fields)) is not None
    (path,) = writer.close()
    assert path.stat().st_size < 2.5 * 32 * mesh.num_points  # 12 bytes of displacement alone before


def corpus(folder: Path, count: int = 40) -> Path:
    cases = [boxes(seed) for seed in range(count)]
    return write_dataset(
        folder, {"train": cases[: count // 2], "validation": cases[count // 2 : -5], "test": cases[-5:]}
    )


def test_a_data_set_comes_back_with_its_cases_designs_and_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src = corpus(tmp_path / "lpbf")
    assert pack(str(src), str(tmp_path / "packed")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "bytes per point" in said
    assert unpack([str(tmp_path / "packed")], str(tmp_path / "back")) == 0
    assert "values of fields were rounded" in capsys.readouterr().out
    assert verify_dataset(tmp_path / "back").problems == ()
    before, after = (decode_manifest((f / MANIFEST_NAME).read_bytes()).records for f in (src, tmp_path / "back"))

    def told(record: CaseRecord) -> tuple[object, ...]:
        split = record.placement.split if record.placement else None
        return record.case_id, record.design_id, record.measures, record.run, record.source, split

    assert sorted(map(told, before), key=str) == sorted(map(told, after), key=str)
    for split in ("train", "validation", "test"):
        old, new = load_dataset(src, split=split), load_dataset(tmp_path / "back", split=split)
        found = {sample.case_id: sample for sample in (new[i] for i in range(len(new)))}
        for sample in (old[i] for i in range(len(old))):
            other = found.pop(sample.case_id)
            np.testing.assert_array_equal(other.pos, sample.pos)
            largest = float(sample.displacement.norm(dim=1).max())
            assert float((other.y - sample.y).abs().max()) <= 2.02e-5 * largest
        assert not found


def test_pieces_are_cut_by_size_and_all_are_needed(tmp_path: Path) -> None:
    src = corpus(tmp_path / "lpbf", 100)
    packed = tmp_path / "packed"
    packed.mkdir()
    records = decode_manifest((src / MANIFEST_NAME).read_bytes()).records
    writer = PackedWriter(packed, SPECS, piece_bytes=50_000)
    for record in records:
        writer.add(with_split_only(record), boxes(int(record.case_id[:5])))
    files = writer.close()
    assert len(files) > 1
    assert files == find_pieces(packed) == tuple(sorted(packed.iterdir()))
    assert len(unpack_corpus([packed], tmp_path / "back").records) == 100
    files[0].unlink()
    with pytest.raises(StoreError, match=f"lacks piece 0 of {len(files)}"):
        unpack_corpus([packed], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_several_corpora_become_one_data_set(tmp_path: Path) -> None:
    for name, numbers, split in (("one", range(4), "train"), ("two", range(4, 7), "validation")):
        pack_dataset(
            write_dataset(tmp_path / name, {split: [boxes(n) for n in numbers]}),
            tmp_path / f"{name}_packed",
            DEFAULT,
            2e-5,
        )
    both = [tmp_path / "one_packed", tmp_path / "two_packed"]
    unpack_corpus(both, tmp_path / "joined")
    assert {split: len(load_dataset(tmp_path / "joined", split=split)) for split in ("train", "validation")} == {
        "train": 4,
        "validation": 3,
    }
    assert verify_dataset(tmp_path / "joined").problems == ()
    with pytest.raises(StoreError, match="a case occurs twice"):
        unpack_corpus([*both, both[0]], tmp_path / "again")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    files, _, _, _ = pack_dataset(corpus(folder / "lpbf"), folder / "out", DEFAULT, 2e-5)
    return files[0]


def refused(folder: Path, words: str = "") -> None:
    with pytest.raises(LpbfError, match=words):
        unpack_corpus([folder], folder.parent / "back")
    assert not (folder.parent / "back").exists()
    assert not list(folder.parent.glob(".back*"))


@given(where=st.floats(0, 1), change=st.integers(1, 255))
@settings(max_examples=40, deadline=None)
def test_a_changed_byte_is_found_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, packed: Path, where: float, change: int
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    data = bytearray(packed.read_bytes())
    data[min(int(where * len(data)), len(data) - 1)] ^= change
    (folder / packed.name).write_bytes(data)
    try:
        cases = list(PackedPiece(folder / packed.name).cases())
    except LpbfError:
        return
    for one, other in zip(cases, PackedPiece(packed).cases(), strict=True):
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.fields["displacement"], other.fields["displacement"])


def test_files_that_are_cut_renamed_or_something_else_are_refused(tmp_path: Path, packed: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    refused(folder, "no corpus")
    (folder / "corpus-00000-of-00001.parquet").write_bytes(packed.read_bytes()[:-100])
    refused(folder, "can't be read")
    pq.write_table(pa.table({"a": [1]}), folder / "corpus-00000-of-00001.parquet")
    refused(folder, "no piece of a packed corpus")
    (folder / "corpus-00000-of-00001.parquet").unlink()
    for number in (0, 1):
        (folder / f"corpus-0000{number}-of-00002.parquet").write_bytes(packed.read_bytes())
    refused(folder, "says that it is piece 0 of 1")
    (folder / packed.name).write_bytes(packed.read_bytes())
    refused(folder, "several corpora")


def rewritten(packed: Path, folder: Path, column: str, values: list[object], **header: object) -> Path:
    """The piece with another column, its checksums in order: as somebody would write it who means harm."""
    table = pq.read_table(packed)
    metadata = dict(table.schema.metadata)
    metadata[b"lpbf_packed"] = json.dumps(json.loads(metadata[b"lpbf_packed"]) | header).encode()
    if column:
        index = table.column_names.index(column)
        given = pa.array((values + table[column].to_pylist()[len(values) :]), table.schema.field(column).type)
        table = table.set_column(index, table.schema.field(column), given)
    folder.mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata(metadata), folder / packed.name, row_group_size=32)
    return folder


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("residuals", [1, 2, 3], "isn't what was packed|can't be read"),
        ("occupied", b"", "isn't what was packed"),
        ("planes_x", [], "isn't what was packed"),
        ("planes_x", None, "isn't what was packed|can't be read"),
        ("steps", [float("nan")], "isn't what was packed"),
        ("case_id", "../../etc/passwd", "impossible name"),
        ("split", "../../train", "impossible name"),
        ("split", None, "impossible name"),
        ("num_points", None, "impossible name"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(
    tmp_path: Path, packed: Path, column: str, value: object, words: str
) -> None:
    refused(rewritten(packed, tmp_path / "src", column, [value]), words)


def test_headers_that_promise_the_impossible_are_refused(tmp_path: Path, packed: Path) -> None:
    for number, (header, words) in enumerate(
        (
            ({"fields": ["structure_type"]}, "header can't be read"),
            ({"fields": ["pickle"]}, "header can't be read"),
            ({"fields": []}, "other columns"),
            ({"version": 2}, "upgrade the package"),
            ({"piece": "a"}, "header can't be read"),
            ({"cases": 7}, "doesn't hold the 7 cases"),
        )
    ):
        refused(rewritten(packed, tmp_path / f"{number}/src", "", [], **header), words)


def test_impossible_cases_are_refused_whatever_their_checksum_says() -> None:
    good = pack_case(boxes(5), SPECS, 2e-5)
    assert good is not None
    x, y, z = good.planes
    huge = np.arange(1000, dtype=np.float32)
    for change in (
        {"planes": (huge, huge, huge)},
        {"planes": (x[:1], y, z)},
        {"planes": (x[::-1], y, z)},
        {"planes": (x * np.float32(np.inf), y, z)},
        {"occupied": good.occupied[:-1]},
        {"occupied": bytes(len(good.occupied))},
        {"steps": good.steps[:-1]},
        {"steps": -good.steps - 1},
        {"residuals": good.residuals[:, :-1]},
        {"residuals": good.residuals[:-1]},
        {"residuals": np.full_like(good.residuals, 2**32 - 1)},
        {"steps": np.full_like(good.steps, 1e300)},
    ):
        with pytest.raises(LpbfError):
            unpack_case(dataclasses.replace(good, **change), "a", SPECS, {})


def test_options_that_cannot_be_met_are_refused(tmp_path: Path) -> None:
    src = corpus(tmp_path / "lpbf", 16)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    for source, out, fields, tolerance, words in (
        (src, "new", DEFAULT, 0.0, "--tolerance"),
        (src, "new", DEFAULT, float("nan"), "--tolerance"),
        (src, "new", ("structure_type",), 1e-5, "--fields structure_type"),
        (src, "new", ("cheese",), 1e-5, "--fields cheese"),
        (src, "new", (), 1e-5, "--fields names none"),
        (src, "full", DEFAULT, 1e-5, "holds something"),
        (tmp_path / "nowhere", "new", DEFAULT, 1e-5, "is no folder"),
    ):
        with pytest.raises(UsageError, match=words):
            pack_dataset(source, tmp_path / out, fields, tolerance)
    assert not (tmp_path / "new").exists()
    with pytest.raises(LpbfError, match="no manifest"):
        pack_dataset(tmp_path / "full", tmp_path / "new", DEFAULT, 1e-5)
    foreign = write_dataset(tmp_path / "foreign", {"train": [make_case(seed) for seed in range(3)]})
    with pytest.raises(UsageError, match="no case can be packed"):
        pack_dataset(foreign, tmp_path / "new", DEFAULT, 1e-5)
    mixed = write_dataset(tmp_path / "mixed", {"train": [make_case(1), *(boxes(seed) for seed in range(3))]})
    _, remarks, _, _ = pack_dataset(mixed, tmp_path / "new", DEFAULT, 1e-5)
    assert [(one.kind, one.count) for one in remarks] == [("unpackable_cases", 1)]
