"""Splits that ask for extrapolation: chosen by rule, whole designs, before all others."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpbf_data.case.record import CaseRecord, SourceRef
from lpbf_data.errors import UsageError
from pipelines.selection.split_options import SplitRequest, parse_splits
from pipelines.selection.splits import split_records
from tests.pipelines.test_select import MEASURES


def case(case_id: str, design: str, *, height: float = 1.0, displacement: float = 0.1) -> CaseRecord:
    measures = dataclasses.replace(MEASURES, height=height, displacement_z_abs_max=displacement)
    return CaseRecord(case_id, SourceRef("x.zip", case_id), design_id=design, measures=measures)


def test_the_tallest_designs_are_held_out() -> None:
    records = [case(f"c{i}", f"d{i}", height=float(i)) for i in range(20)]
    split_of = split_records(records, parse_splits("train=0.8,validation=0.2,test=tallest:0.25"), 0)
    assert {i for i, s in split_of.items() if s == "test"} == {"c15", "c16", "c17", "c18", "c19"}
    assert sorted(s for s in split_of.values() if s != "test") == ["train"] * 12 + ["validation"] * 3


def test_the_largest_displacement_is_told_from_height() -> None:
    records = [case(f"c{i}", f"d{i}", height=float(i), displacement=1.0 / (i + 1)) for i in range(10)]
    split_of = split_records(records, parse_splits("train=1,test=largest_displacement:0.2"), 0)
    assert {i for i, s in split_of.items() if s == "test"} == {"c0", "c1"}


def test_a_design_goes_as_a_whole_with_its_tallest_body() -> None:
    records = [case(f"a{i}", "small", height=1.0) for i in range(6)]
    records += [case("b0", "mixed", height=9.0), case("b1", "mixed", height=0.5), case("b2", "tall", height=8.0)]
    split_of = split_records(records, parse_splits("train=1,test=tallest:0.2"), 0)
    assert {i for i, s in split_of.items() if s == "test"} == {"b0", "b1"}


def test_a_family_is_held_out_by_the_name_of_its_designs() -> None:
    records = [case(f"c{i}", f"{'bracket' if i % 3 == 0 else 'plate'}_{i}") for i in range(12)]
    split_of = split_records(records, parse_splits("train=0.5,validation=0.5,brackets=design:^bracket"), 0)
    assert {i for i, s in split_of.items() if s == "brackets"} == {"c0", "c3", "c6", "c9"}
    assert set(split_of.values()) == {"train", "validation", "brackets"}


def test_a_family_is_held_out_by_where_its_cases_lie() -> None:
    records = [case(f"c{i}", f"d{i // 2}") for i in range(12)]
    placed = [
        dataclasses.replace(r, source=SourceRef("lattices" if i in (2, 7) else "plates", r.case_id))
        for i, r in enumerate(records)
    ]
    split_of = split_records(placed, parse_splits("train=1,test=source:^lattices/"), 0)
    assert {i for i, s in split_of.items() if s == "test"} == {"c2", "c3", "c6", "c7"}


def test_a_rule_is_followed_when_a_data_set_grows() -> None:
    before = [case(f"c{i}", f"d{i}", height=float(i)) for i in range(10)]
    request = parse_splits("train=1,test=tallest:0.1")
    earlier = split_records(before, request, 0)
    assert [i for i, s in earlier.items() if s == "test"] == ["c9"]
    grown = split_records([*before, case("new", "new", height=99.0)], request, 0, earlier)
    assert [i for i, s in grown.items() if s == "test"] == ["new"]
    assert grown["c9"] == "train"


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0, 60)), min_size=1, max_size=40),
    st.floats(0.01, 0.9),
    st.randoms(use_true_random=False),
)
def test_no_design_that_stays_is_taller_than_one_that_is_held_out(
    bodies: list[tuple[int, float]], share: float, shuffler: random.Random
) -> None:
    records = [case(f"c{i}", f"d{design}", height=height) for i, (design, height) in enumerate(bodies)]
    request = parse_splits(f"train=1,test=tallest:{share}")
    split_of = split_records(records, request, 0)
    tallest: dict[str, float] = {}
    splits: dict[str, set[str]] = {}
    for record in records:
        assert record.measures is not None
        assert record.design_id is not None
        tallest[record.design_id] = max(tallest.get(record.design_id, 0.0), record.measures.height)
        splits.setdefault(record.design_id, set()).add(split_of[record.case_id])
    assert all(len(of_design) == 1 for of_design in splits.values())
    held = [tallest[d] for d, s in splits.items() if s == {"test"}]
    stay = [tallest[d] for d, s in splits.items() if s == {"train"}]
    assert held
    assert not stay or min(held) >= max(stay)
    shuffler.shuffle(records)
    assert split_records(records, request, 0) == split_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train=1,test=widest:0.2", "widest"),
        ("train=1,test=tallest:none", "tallest:none"),
        ("train=1,test=tallest:-0.1", "tallest:-0.1"),
        ("train=1,test=design:", "design:"),
        ("train=1,test=design:(", "no regular expression"),
        ("train=1,train=tallest:0.2", "train=tallest"),
        ("test=tallest:0.2", "nothing to train on"),
        ("train=1,test=tallest:1", "nothing to train on"),
    ],
)
def test_rules_that_can_not_be_read_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", "\\(")):
        parse_splits(text)


def test_plain_shares_are_as_before() -> None:
    assert parse_splits("train=0.7,validation=0.1,test=0.2") == SplitRequest(
        {"train": 0.7 / (0.7 + 0.1 + 0.2), "validation": 0.1 / (0.7 + 0.1 + 0.2), "test": 0.2 / (0.7 + 0.1 + 0.2)}
    )
