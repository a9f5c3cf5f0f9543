"""The EnSight case file: steps, names, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpbf_data.errors import CaseError, FailureReason
from pipelines.ensight import CaseFile, TimeSet, Variable, read_case_file, write_case_file
from pipelines.ensight.case_file import is_utf8

REAL = """FORMAT
type: ensight gold
GEOMETRY
model: 2 ./s_mechanical_*.geo
VARIABLE
vector per node: 1 Displacement ./s_mechanical00_*.dis.ens
scalar per element: 1 Structure_type ./s_mechanical00_*.typ.ens
TIME
time set: 1
number of steps: 8
filename start number: 1
filename increment: 1
time values:
  1.0000000000000000E-02
  1.8906651968582260E+03
  1.8907651968582259E+03
  3.6715164721158926E+03
  3.6716164721158925E+03
  4.9027977264706624E+03
  5.4902797726470664E+04
  1.0490279772647066E+05
TIME
time set: 2
number of steps: 5
filename start number: 1
filename increment: 1
time values:
  1.0000000000000000E-02
  1.8907651968582259E+03
  3.6716164721158925E+03
  5.4902797726470664E+04
  1.0490279772647066E+05
"""


def test_frames_lie_on_the_latest_geometry_that_is_not_later() -> None:
    case = read_case_file(REAL.encode())
    numbers = [case.geometry_file(case.geometry_index(frame)) for frame in range(8)]
    assert numbers == [f"s_mechanical_{g}.geo" for g in (1, 1, 2, 2, 3, 3, 4, 5)]
    assert case.variable_file("Displacement", 7) == "s_mechanical00_8.dis.ens"


@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20, unique=True).map(sorted),
    st.data(),
)
def test_frame_rule_in_general(times: list[float], data: st.DataObject) -> None:
    chosen = sorted(data.draw(st.sets(st.sampled_from(times), min_size=1)) | {times[0]})
    sets = {
        1: TimeSet(tuple(times), tuple(range(1, len(times) + 1))),
        2: TimeSet(tuple(chosen), tuple(range(7, 7 + 2 * len(chosen), 2))),
    }
    variables = {"T": Variable("T", "scalar", "point", "x_***.ens", 1)}
    case = read_case_file(write_case_file(CaseFile("x_*.geo", 2, variables, sets)))
    assert case.time_sets == sets
    for frame, time in enumerate(times):
        index = case.geometry_index(frame)
        # Slow and plain: the last geometry whose time isn't after the frame's.
        assert index == [i for i, t in enumerate(chosen) if t <= time * (1 + 1e-9) + 1e-9][-1]
        assert case.geometry_file(index) == f"x_{7 + 2 * index}.geo"
        assert case.variable_file("T", frame) == f"x_{frame + 1:03d}.ens"


def test_numbers_over_several_lines_comments_and_windows_ends() -> None:
    text = REAL.replace(
        "filename start number: 1\nfilename increment: 1\ntime values:\n  1.0000000000000000E-02\n  1.8907",
        "filename numbers:\n 1 3\n  5 7 9 # five\ntime values:\n  1.0000000000000000E-02\n  1.8907",
    ).replace(" # five", "")
    case = read_case_file(("# a comment\r\n" + text.replace("\n", "\r\n")).encode())
    assert case.time_sets[2].numbers == (1, 3, 5, 7, 9)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be with a mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_texts_of_any_system_say_the_same(encoding: str, end: str) -> None:
    mark, encoding = ("\ufeff", "utf-16-be") if " " in encoding else ("", encoding)
    data = (mark + REAL.replace("\n", end)).encode(encoding)
    assert is_utf8(data)
    assert read_case_file(data) == read_case_file(REAL.encode())


def test_backslashes_are_folders() -> None:
    case = read_case_file(REAL.replace("./s_mechanical00", "results\\\\s_mechanical00").encode())
    assert case.variable_file("Displacement", 0) == "results/s_mechanical00_1.dis.ens"


def test_static_mesh_and_constants() -> None:
    text = "FORMAT\ntype: ensight gold\nGEOMETRY\nmodel: x.geo\nVARIABLE\nconstant per case: g 9.81\n"
    text += "scalar per node: T x.tmp\n"
    case = read_case_file(text.encode())
    assert list(case.variables) == ["T"]
    assert case.frames.times == (0.0,)
    assert case.geometry_file(case.geometry_index(0)) == "x.geo"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("number of steps: 8", "number of steps: 9", FailureReason.INCONSISTENT_STEPS),
        ("number of steps: 8", "number of steps: 1000000000000", FailureReason.MALFORMED_FILE),
        ("1.8906651968582260E+03", "1.89_06651968582260E+03", FailureReason.MALFORMED_FILE),
        ("number of steps: 8", "number of steps: 0", FailureReason.INCONSISTENT_STEPS),
        ("number of steps: 8", "number of steps: x", FailureReason.MALFORMED_FILE),
        ("  3.6716164721158925E+03\n  4.9", "  1.0\n  4.9", FailureReason.INCONSISTENT_STEPS),
        ("  5.4902797726470664E+04\n  1.0490279772647066E+05\nTIME", "TIME", FailureReason.INCONSISTENT_STEPS),
        ("1.0490279772647066E+05\nTIME", "nan\nTIME", FailureReason.INCONSISTENT_STEPS),
        ("model: 2", "model: 3", FailureReason.INCONSISTENT_STEPS),
        ("ensight gold", "ensight", FailureReason.UNSUPPORTED_DIALECT),
        ("./s_mechanical_*.geo", "../../etc/passwd", FailureReason.UNSAFE_MEMBER),
        ("./s_mechanical_*.geo", "/etc/passwd", FailureReason.UNSAFE_MEMBER),
        ("./s_mechanical_*.geo", "C:\\\\secrets", FailureReason.UNSAFE_MEMBER),
        ("vector per node: 1 Displacement", "vector per nodule: 1 Displacement", FailureReason.MALFORMED_FILE),
        ("GEOMETRY\nmodel: 2 ./s_mechanical_*.geo\n", "", FailureReason.TRUNCATED_FILE),
        ("model: 2 ./s_mechanical_*.geo\n", "", FailureReason.MALFORMED_FILE),
    ],
)
def test_refused(old: str, new: str, reason: FailureReason) -> None:
    assert old in REAL
    with pytest.raises(CaseError) as caught:
        read_case_file(REAL.replace(old, new, 1).encode(), "results/x.case")
    assert caught.value.reason is reason
    assert caught.value.path == "results/x.case"
    assert caught.value.offset is not None


def test_variables_with_different_times_are_refused() -> None:
    text = REAL.replace("scalar per element: 1", "scalar per element: 2")
    with pytest.raises(CaseError, match="different times"):
        read_case_file(text.encode())
