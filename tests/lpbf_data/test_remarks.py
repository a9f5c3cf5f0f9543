"""What was left out, changed, guessed or repaired is reported once and with numbers."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpbf_data.console import open_console, print_remarks
from lpbf_data.remarks import MAX_EXAMPLES, Remark, Treatment, merge_remarks

REMARKS = st.builds(
    Remark,
    treatment=st.sampled_from(Treatment),
    kind=st.sampled_from(["ignored_files", "merged_facets"]),
    sentence=st.sampled_from(["files of the system", "triangles that stood twice"]),
    count=st.integers(1, 1000),
    examples=st.lists(st.sampled_from("abcdef"), max_size=MAX_EXAMPLES).map(tuple),
)


@given(st.lists(REMARKS))
def test_merging_keeps_every_kind_and_every_count(remarks):
    merged = merge_remarks(remarks)
    for treatment in Treatment:
        for kind in ("ignored_files", "merged_facets"):
            for sentence in ("files of the system", "triangles that stood twice"):
                mine = [r for r in remarks if (r.treatment, r.kind, r.sentence) == (treatment, kind, sentence)]
                found = [r for r in merged if (r.treatment, r.kind, r.sentence) == (treatment, kind, sentence)]
                assert len(found) == bool(mine)
                if mine:
                    assert found[0].count == sum(r.count for r in mine)
                    assert set(found[0].examples) <= {e for r in mine for e in r.examples}
                    assert len(found[0].examples) <= MAX_EXAMPLES
    assert merge_remarks(merged) == merged


@given(REMARKS)
def test_a_remark_survives_json(remark):
    assert Remark.from_dict(json.loads(json.dumps(remark.as_dict()))) == remark


def test_what_is_not_named_is_shown_to_be_there():
    remark = Remark(Treatment.LEFT_OUT, "ignored_files", "2 files", count=2, examples=("a",))
    assert str(remark) == "left out: 2 files (a, …)"
    assert str(Remark(Treatment.GUESSED, "units", "millimetres")) == "guessed: millimetres"


def test_what_json_holds_is_checked():
    stored = Remark(Treatment.GUESSED, "units", "millimetres").as_dict()
    with pytest.raises(ValueError, match="lost"):
        Remark.from_dict(stored | {"treatment": "lost"})
    with pytest.raises(TypeError, match="whole number"):
        Remark.from_dict(stored | {"count": "1"})


def test_remarks_are_printed_in_one_way_once_each() -> None:
    """Marks of a console's markup are left alone."""
    remark = Remark(Treatment.LEFT_OUT, "ignored_files", "hidden files of [bold]", examples=("a/._b[/b]",))
    shown = io.StringIO()
    print_remarks(iter([remark, remark, Remark(Treatment.KEPT, "large", "3 parts")]), open_console(file=shown))
    assert shown.getvalue() == "note: left out, 2 in all: hidden files of [bold] (a/._b[/b], …)\nnote: kept: 3 parts\n"
    long = Remark(Treatment.CHANGED, "long", 100 * "ab ", 3, ("first", "second"))
    print_remarks([long], open_console(file=(shown := io.StringIO())))
    assert shown.getvalue() == f"note: changed, 3 in all: {100 * 'ab '}:\n  first\n  second\n  …\n"
