"""Filters, designs and splits."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import random
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpbf_data.case.case import Case
from lpbf_data.case.record import CaseRecord, Failure, Measures, RunInfo, SourceRef
from lpbf_data.errors import FailureReason, UsageError
from lpbf_data.serving.transforms import RandomSymmetry
from pipelines.measuring.fingerprint import geometry_digests
from pipelines.selection.designs import design_namer
from pipelines.selection.filters import CRITERIA, Filters, active_limits, reject
from pipelines.selection.split_options import parse_splits
from pipelines.selection.splits import assign_splits, group_designs, split_records
from tests.netfabb_cases import box_mesh

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "netfabb_case_statistics.csv"

MEASURES = Measures(
    num_points=1000,
    num_edges=5000,
    num_cells=800,
    aspect_ratio_mean=1.5,
    aspect_ratio_max=2.0,
    height=10.0,
    displacement_z_max=0.3,
    displacement_z_abs_max=0.4,
    displacement_max=0.5,
    von_mises_stress_max=900.0,
    recoater_clearance_min=95.0,
    recoater_clearance_min_height=1.0,
    recoater_interference=False,
)


def record(case_id: str, *, design: str | None = None, digests: tuple[str, ...] = (), **measures: float) -> CaseRecord:
    return CaseRecord(
        case_id,
        SourceRef("x.zip", case_id),
        design_id=design,
        measures=dataclasses.replace(MEASURES, **measures),  # type: ignore[arg-type]
        geometry_digests=digests,
    )


@pytest.mark.parametrize(
    ("measure", "criterion", "limit"),
    [
        ("num_points", "max_points", 50_000),
        ("num_edges", "max_edges", 250_000),
        ("aspect_ratio_max", "max_aspect_ratio", 3.0),
        ("aspect_ratio_mean", "max_aspect_ratio", 3.0),
        ("displacement_z_max", "max_displacement", 1.0),
        ("von_mises_stress_max", "max_von_mises_stress", 2000.0),
    ],
)
def test_benchmark_limits_are_inclusive_and_recorded(measure: str, criterion: str, limit: float) -> None:
    limits = active_limits(Filters())
    assert reject(record("a", **{measure: limit}), limits).status == "kept"
    above = limit + (1 if isinstance(limit, int) else 1e-6)
    (rejection,) = reject(record("a", **{measure: above}), limits).rejections
    assert (rejection.criterion, rejection.value, rejection.limit) == (criterion, above, limit)
    assert reject(record("a", **{measure: above}), active_limits(Filters(preset="all"))).status == "kept"


def test_every_criterion_is_an_option() -> None:
    assert {c.name for c in CRITERIA} == {f.name for f in dataclasses.fields(Filters)} - {"preset"}


@pytest.mark.parametrize("measure", ["von_mises_stress_max", "aspect_ratio_max", "aspect_ratio_mean"])
def test_a_value_that_is_no_number_is_rejected(measure: str) -> None:
    assert reject(record("a", **{measure: float("nan")}), active_limits(Filters())).status == "rejected"


def test_a_failed_case_is_not_judged() -> None:
    failed = CaseRecord("a", SourceRef("x", "a"), failure=Failure(FailureReason.NON_FINITE, "x"))
    assert reject(failed, active_limits(Filters())) is failed


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_impossible_limits_are_refused(value: float) -> None:
    with pytest.raises(UsageError, match="max_displacement"):
        active_limits(Filters(max_displacement=value))


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the table of published cases isn't beside the repository")
def test_published_cases_are_filtered_as_published() -> None:
    """Of 3,398 real simulations the table holds cells and aspect ratios: no kept one may be rejected by them."""
    limits = active_limits(Filters())
    with REFERENCE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3398
    verdicts = Counter()
    for row in rows:
        measured = record(
            row["case_id"],
            num_cells=int(row["num_cells"]),
            aspect_ratio_mean=float(row["aspect_ratio_mean"]),
            aspect_ratio_max=float(row["aspect_ratio_max"]),
        )
        verdicts[row["kept"], reject(measured, limits).status] += 1
    assert verdicts["1", "kept"] == 1390
    assert verdicts["1", "rejected"] == 0
    assert verdicts["0", "rejected"] == sum(
        max(float(r["aspect_ratio_mean"]), float(r["aspect_ratio_max"])) > 3 for r in rows
    )
    designs = design_namer("auto")
    kept = [r["case_id"] for r in rows if r["kept"] == "1"]
    shared = Counter(designs(record(case_id)) for case_id in kept)
    assert sum(count for count in shared.values() if count > 1) == 478


@pytest.mark.parametrize(
    ("rule", "case_id", "stl", "design"),
    [
        ("auto", "101635_11b839a3_5", "test.stl", "101635_11b839a3"),
        ("auto", "101635_11b839a3_13", "20163_3742f394_3_tivus.stl", "101635_11b839a3"),
        ("auto", "step2", "20163_3742f394_3_tivus.stl", "20163_3742f394"),
        ("auto", "step2", "test.stl", "step2"),
        ("auto", "12_11b839a_5", None, "12_11b839a_5"),
        ("folder", "step2", "20163_3742f394_3_tivus.stl", "step2"),
        ("stl", "step2", "bracket.stl", "bracket"),
        ("stl", "101635_11b839a3_5", "20163_3742f394_3.stl", "20163_3742f394"),
        (r"^(\w+)-", "alpha-1", None, "alpha"),
        (r"(?P<design>\d+)", "part77_3", None, "77"),
        (r"^(\w+)-", "nothing", None, "nothing"),
    ],
)
def test_design_ids(rule: str, case_id: str, stl: str | None, design: str) -> None:
    named = dataclasses.replace(record(case_id), run=RunInfo(stl=stl))
    assert design_namer(rule)(named) == design


def test_design_ids_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "designs.csv"
    path.write_text("case_id,design_id\na,first\nb,first\n")
    namer = design_namer(str(path))
    assert [namer(record(x)) for x in ("a", "b", "c")] == ["first", "first", "c"]
    assert [str(remark) for remark in namer.remarks([record(x) for x in "cba"])] == [
        "guessed: cases that the table of --design_id doesn't name: their design was taken from their names (c)"
    ]
    assert [str(remark) for remark in namer.remarks([record("a")])] == [
        "left out: rows of the table of --design_id whose case_id no case has (b)"
    ]
    for wrong in (str(tmp_path / "none.csv"), "(unclosed"):
        with pytest.raises(UsageError, match="design_id"):
            design_namer(wrong)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            r"^(\w+)-",
            "guessed: cases in whose id the expression of --design_id finds no design: each is a design of its own",
        ),
        (
            "stl",
            "guessed: cases whose log names no STL, so that --design_id stl can't name their design: each is a design",
        ),
    ],
)
def test_a_rule_that_names_no_design_says_so(rule: str, said: str) -> None:
    namer = design_namer(rule)
    with_both = dataclasses.replace(record("a-1"), run=RunInfo(stl="a.stl"))
    broken = CaseRecord("broken", SourceRef("x.zip", "b"), failure=Failure(FailureReason.MISSING_FILE, "gone"))
    assert namer.remarks([with_both, broken]) == ()
    (remark,) = namer.remarks([with_both, broken, record("nothing")])
    assert str(remark).startswith(said)
    assert (remark.count, remark.examples) == (1, ("nothing",))
    assert design_namer("auto").remarks([record("nothing")]) == ()


def _case(points: np.ndarray, cells: np.ndarray) -> Case:
    return Case("x", points.astype(np.float32), cells.astype(np.int32))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "sep={}\r\n"])
def test_designs_from_a_table_as_spreadsheets_write_it(
    tmp_path: Path, encoding: str, separator: str, start: str
) -> None:
    rows = [("case_id", "Note", "design_id"), ("a_1", "für später", "Gehäuse"), ('"b;1,2"', "", "x")]
    text = start.format(separator) + "".join(separator.join(row) + "\r\n" for row in rows)
    (tmp_path / "designs.csv").write_bytes(text.encode(encoding))
    name = design_namer(str(tmp_path / "designs.csv"))
    assert name(record("a_1")) == "Gehäuse"
    assert name(record("b;1,2")) == "x"
    assert name(record("101635_11b839a3_5")) == "101635_11b839a3"


def test_a_table_names_cases_of_a_mac(tmp_path: Path) -> None:
    """macOS takes accents apart in names of folders; nobody types them so. One design in either form is one design."""
    apart = unicodedata.normalize("NFD", "Prüfkörper")
    text = f'\n\nsep=;\ncase_id;design_id;note\nPrüfkörper;Gehäuse;"two\nlines"\n{apart}_2;{apart};\nb;Prüfkörper;\n'
    (tmp_path / "designs.csv").write_text(text, encoding="utf-8")
    name = design_namer(str(tmp_path / "designs.csv"))
    assert name(record(apart)) == "Gehäuse"
    assert name(record("Prüfkörper_2")) == name(record("b")) == "Prüfkörper"
    assert name.remarks([record(apart), record("Prüfkörper_2"), record("b")]) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case;design\na;b\n", "its first line is 'case;design'"),
        ("", "its first line is ''"),
        ("case_id,design_id,Design_ID \na,b,c\n", "it has the column design_id twice"),
        ("case_id,design_id\na,b\na,c\n", "line 3 gives case a the design c, before it was b"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "designs.csv").write_text(text)
    with pytest.raises(UsageError, match=said):
        design_namer(str(tmp_path / "designs.csv"))


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(*[st.floats(0.3, 3)] * 3),
    st.tuples(*[st.floats(-30, 30)] * 3),
    st.floats(0.2, 5),
    st.integers(0, 2**32 - 1),
)
def test_the_same_shape_is_known_again(
    shape: tuple[int, int, int],
    edges: tuple[float, float, float],
    shift: tuple[float, float, float],
    scale: float,
    seed: int,
) -> None:
    points, cells = box_mesh(shape)
    mesh = points * np.array(edges)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(points))
    inverse = np.argsort(order)
    moved = (mesh * scale + shift)[order]
    again = inverse[cells][rng.permutation(len(cells))]
    assert set(geometry_digests(_case(mesh, cells))) & set(geometry_digests(_case(moved, again)))
    # Another proportion is another design.
    other = mesh * (1.0, 1.0, 1.02)
    assert not set(geometry_digests(_case(mesh, cells))) & set(geometry_digests(_case(other, cells)))


SYMMETRIES = list(itertools.product((False, True), repeat=3))


def _lopsided(edges: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A block without any symmetry: three of its cells are missing."""
    points, cells = box_mesh((4, 3, 3))
    return points * np.array(edges), np.delete(cells, [0, 7, 30], axis=0)


def _shown(points: np.ndarray, cells: np.ndarray, *, mirror_x: bool, mirror_y: bool, exchange: bool) -> Case:
    """A mesh as training shows it."""
    sample = {"pos": torch.from_numpy(points), "cells": torch.from_numpy(cells)}
    moved = RandomSymmetry().apply(sample, mirror_x=mirror_x, mirror_y=mirror_y, exchange=exchange)
    return _case(moved["pos"].numpy(), moved["cells"].numpy())


@given(
    st.sampled_from(SYMMETRIES),
    st.tuples(*[st.floats(0.3, 3)] * 3),
    st.tuples(*[st.floats(-30, 30)] * 3),
    st.floats(0.2, 5),
    st.floats(-2e-3, 2e-3),
)
def test_mirrored_and_turned_twins_are_one_design(
    symmetry: tuple[bool, bool, bool],
    edges: tuple[float, float, float],
    shift: tuple[float, float, float],
    scale: float,
    nearly: float,
) -> None:
    for wide in (edges, (3 * edges[1] * (1 + nearly), 4 * edges[1], edges[2])):  # the second is nearly square
        points, cells = _lopsided(wide)
        names = dict(zip(("mirror_x", "mirror_y", "exchange"), symmetry, strict=True))
        twin = _shown(points * scale + np.array(shift), cells, **names)
        assert set(geometry_digests(_case(points, cells))) & set(geometry_digests(twin))


def test_what_training_doesnt_show_is_another_design() -> None:
    points, cells = _lopsided((1.0, 1.0, 1.0))
    upside_down, swapped = points * (1, 1, -1), points[:, [2, 1, 0]]
    stretched, flattened = points * (2.0, 1.0, 1.0), points * (1.0, 3.2, 1.0)
    meshes = [points, upside_down, swapped, stretched, flattened]
    digests = [set(geometry_digests(_case(mesh, cells))) for mesh in meshes]
    for first, second in itertools.combinations(digests, 2):
        assert not first & second
    # Ranks exchanged without the extents: as long and wide as the first, and no twin of it.
    exchanged = _shown(points, cells, mirror_x=False, mirror_y=False, exchange=True)
    as_wide = exchanged.points * np.array([4 / 3, 3 / 4, 1.0])
    assert not digests[0] & set(geometry_digests(_case(as_wide, exchanged.cells)))


def test_digests_of_before_equal_none_of_now() -> None:
    points, cells = _lopsided((1.0, 1.0, 1.0))
    assert all(digest.startswith("2:") for digest in geometry_digests(_case(points, cells)))


def test_twins_lie_in_one_split() -> None:
    records = []
    for number in range(12):
        points, cells = _lopsided((1.0 + number / 10, 1.0, 1.0))
        for name, symmetry in enumerate(SYMMETRIES):
            names = dict(zip(("mirror_x", "mirror_y", "exchange"), symmetry, strict=True))
            records.append(record(f"{number}-{name}", digests=geometry_digests(_shown(points, cells, **names))))
    groups = group_designs(records)
    assert len(set(groups.values())) == 12
    for number in range(12):
        assert len({groups[f"{number}-{name}"] for name in range(8)}) == 1


def test_another_hole_is_another_design() -> None:
    points, cells = box_mesh((3, 3, 1))
    first, second = (_case(points, np.delete(cells, hole, axis=0)) for hole in (0, 4))  # a corner, the middle
    assert not set(geometry_digests(first)) & set(geometry_digests(second))


def test_designs_join_by_name_and_by_shape() -> None:
    groups = group_designs(
        [
            record("a", design="d1", digests=("x", "y")),
            record("b", design="d1", digests=("p",)),
            record("c", design="d2", digests=("y", "z")),
            record("d", design="d3", digests=("z",)),
            record("e", design="d4", digests=("q",)),
        ]
    )
    assert groups == {"a": "d1", "b": "d1", "c": "d1", "d": "d1", "e": "d4"}


designs = st.lists(st.integers(1, 12), min_size=1, max_size=60)


def _records(sizes: list[int]) -> list[CaseRecord]:
    return [record(f"{i}_{j}", design=f"design{i}") for i, size in enumerate(sizes) for j in range(size)]


@given(designs, st.integers(0, 5), st.randoms())
def test_no_design_lies_in_two_splits_and_order_does_not_matter(
    sizes: list[int], seed: int, rng: random.Random
) -> None:
    request = parse_splits("train=0.7,validation=0.1,test=0.2")
    records = _records(sizes)
    split_of = split_records(records, request, seed)
    assert set(split_of) == {r.case_id for r in records}
    per_design: dict[str | None, set[str]] = {}
    for r in records:
        per_design.setdefault(r.design_id, set()).add(split_of[r.case_id])
    assert all(len(splits) == 1 for splits in per_design.values())
    rng.shuffle(records)
    moved = [dataclasses.replace(r, source=SourceRef("elsewhere.zip", "y")) for r in records]
    assert split_records(moved, request, seed) == split_of
    if len(sizes) >= 3:
        assert set(split_of.values()) == set(request.fractions)


@given(designs, st.integers(0, 5))
def test_shares_are_as_near_as_whole_designs_allow(sizes: list[int], seed: int) -> None:
    request = parse_splits("train=0.7,test=0.3")
    split_of = split_records(_records(sizes), request, seed)
    train = sum(split == "train" for split in split_of.values())
    target = 0.7 * sum(sizes)
    # No single design can be moved to come nearer, unless that would empty a split.
    for size in sizes:
        for moved in (train - size, train + size):
            if 0 < moved < sum(sizes) and abs(moved - target) < abs(train - target) - 1e-6:
                members = Counter(split_of.values())
                donor = "train" if moved < train else "test"
                assert not any(
                    s == size and split_of[f"{i}_0"] == donor and members[donor] > size for i, s in enumerate(sizes)
                )


def test_many_single_designs_meet_the_shares() -> None:
    """So many that a cost in proportion to their square would take half an hour."""
    request = parse_splits("train=0.7,validation=0.1,test=0.2")
    counts = Counter(split_records(_records([1] * 100_000), request, 0).values())
    assert counts == {"train": 70_000, "validation": 10_000, "test": 20_000}


def test_many_designs_that_have_to_move() -> None:
    """Fixed designs fill a split beyond its share, large ones overfill another: the small ones make up for it."""
    groups = {f"g{i}": ["x"] * (1 if i % 2 else 3) for i in range(50_000)}
    fixed = {f"g{i}": "train" for i in range(20_000)}
    chosen = assign_splits(groups, {"train": 0.5, "validation": 0.1, "test": 0.4}, 0, fixed)
    assert {name: chosen[name] for name in fixed} == fixed
    filled = Counter(dict.fromkeys(("train", "validation", "test"), 0))
    for name, split in chosen.items():
        filled[split] += len(groups[name])
    assert filled == {"train": 50_000, "validation": 10_000, "test": 40_000}


def test_another_seed_gives_another_division() -> None:
    request = parse_splits("train=0.5,test=0.5")
    records = _records([1] * 40)
    assert split_records(records, request, 0) != split_records(records, request, 1)


def test_earlier_designs_keep_their_split() -> None:
    request = parse_splits("train=0.7,validation=0.1,test=0.2")
    first = _records([2] * 30)
    before = split_records(first, request, 0)
    after = split_records(_records([2] * 50), request, 0, before)
    assert {case: after[case] for case in before} == before
    counts = Counter(after.values())
    assert counts == {"train": 70, "validation": 10, "test": 20}


def test_published_split_is_by_case() -> None:
    request = parse_splits("published")
    records = _records([5] * 278)
    counts = Counter(split_records(records, request, 0).values())
    assert counts == {"train": 1100, "test": 290}
    split_of = split_records(records, request, 0)
    leaks = [i for i in range(278) if len({split_of[f"{i}_{j}"] for j in range(5)}) > 1]
    assert leaks


def test_two_designs_fill_two_of_three_splits() -> None:
    request = parse_splits("train=0.7,validation=0.1,test=0.2")
    split_of = split_records(_records([1, 1]), request, 0)
    assert sorted(split_of.values()) == ["test", "train"]


@pytest.mark.parametrize(
    "text", ["", "train", "train=", "train=x", "train=-1", "train=0", "a b=1", "train=nan", "x=inf"]
)
def test_unreadable_splits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--splits"):
        parse_splits(text)


def test_shares_are_scaled() -> None:
    assert parse_splits("train=7,test=3").fractions == pytest.approx({"train": 0.7, "test": 0.3})


def test_assigning_nothing() -> None:
    assert assign_splits({}, {"train": 1.0}, 0) == {}
