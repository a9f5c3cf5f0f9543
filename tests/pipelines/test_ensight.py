"""EnSight geometry and variable files: round trips, VTK as the judge, and everything that is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import meshio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vtkmodules.vtkCommonCore import vtkFloatArray, vtkIntArray, vtkPoints
from vtkmodules.vtkCommonDataModel import VTK_HEXAHEDRON, vtkUnstructuredGrid
from vtkmodules.vtkIOParallel import vtkEnSightWriter

from lpbf_data.errors import CaseError, FailureReason
from pipelines.ensight import (
    Dialect,
    Encoding,
    read_case_file,
    read_geometry,
    read_points,
    read_variable,
    write_geometry,
    write_variable,
)
from tests.netfabb_cases import VARIABLES, Part, box_mesh, write_part
from tests.pipelines.vtk_oracle import VtkFrames

DIALECTS = [Dialect(e, o) for e in (Encoding.BINARY, Encoding.C_BINARY) for o in ("<", ">")] + [Dialect(Encoding.ASCII)]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: f"{d.encoding}{d.byte_order}")
@given(
    points=hnp.arrays(np.float32, st.tuples(st.integers(8, 40), st.just(3)), elements=finite),
    data=st.data(),
)
def test_geometry_round_trip(dialect: Dialect, points: np.ndarray, data: st.DataObject) -> None:
    cells = data.draw(
        hnp.arrays(np.int32, st.tuples(st.integers(0, 20), st.just(8)), elements=st.integers(0, len(points) - 1))
    )
    again = read_geometry(write_geometry(points, cells, dialect))
    assert again.dialect == dialect
    np.testing.assert_array_equal(again.cells, cells)
    tolerance = 1e-6 if dialect.encoding is Encoding.ASCII else 0
    np.testing.assert_allclose(again.points, points, rtol=tolerance, atol=1e-38 if tolerance else 0)
    only_points, found = read_points(write_geometry(points, cells, dialect))
    np.testing.assert_array_equal(only_points, again.points)
    assert found == dialect


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: f"{d.encoding}{d.byte_order}")
@given(
    values=st.sampled_from([1, 3, 6]).flatmap(
        lambda width: hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(width)), elements=finite)
    ),
    location=st.sampled_from(["point", "cell"]),
)
def test_variable_round_trip(dialect: Dialect, values: np.ndarray, location: str) -> None:
    width = values.shape[1]
    written = write_variable(values[:, 0] if width == 1 else values, dialect, location=location)  # type: ignore[arg-type]
    again = read_variable(written, dialect, count=len(values), num_components=width, location=location)  # type: ignore[arg-type]
    tolerance = 1e-6 if dialect.encoding is Encoding.ASCII else 0
    np.testing.assert_allclose(again.reshape(values.shape), values, rtol=tolerance, atol=1e-38 if tolerance else 0)


@pytest.mark.parametrize("encoding", [Encoding.BINARY, Encoding.ASCII])
def test_vtk_reads_what_is_written(tmp_path: Path, encoding: Encoding) -> None:
    part = Part("p", dialect=Dialect(encoding))
    root = write_part(tmp_path, part)
    oracle = VtkFrames(root / "mechanical.case")
    case = read_case_file((root / "mechanical.case").read_bytes())
    assert oracle.times == pytest.approx(case.frames.times)
    for frame in range(len(case.frames.times)):
        points, cells, point_data, cell_data = oracle.read(frame)
        geometry = read_geometry((root / case.geometry_file(case.geometry_index(frame))).read_bytes())
        np.testing.assert_array_equal(geometry.points, points)
        np.testing.assert_array_equal(geometry.cells, cells)
        for name, (_, _, width, location) in VARIABLES.items():
            ours = read_variable(
                (root / case.variable_file(name, frame)).read_bytes(),
                geometry.dialect,
                count=len(points if location == "point" else cells),
                num_components=width,
                location=location,
            )
            theirs = (point_data if location == "point" else cell_data)[name]
            # VTK keeps symmetric tensors as xx, yy, zz, xy, yz, xz, and takes the file to have xx, yy, zz, xy, xz, yz.
            np.testing.assert_array_equal(ours, theirs[:, [0, 1, 2, 3, 5, 4]] if width == 6 else theirs)


def test_reads_files_written_by_vtk(tmp_path: Path) -> None:
    points, cells = box_mesh((2, 3, 1))
    values = np.sin(points).astype(np.float32)
    grid = vtkUnstructuredGrid()
    vtk_points = vtkPoints()
    for point in points:
        vtk_points.InsertNextPoint(*map(float, point))
    grid.SetPoints(vtk_points)
    for cell in cells:
        grid.InsertNextCell(VTK_HEXAHEDRON, 8, [int(i) for i in cell])
    array, block = vtkFloatArray(), vtkIntArray()
    array.SetName("wave")
    array.SetNumberOfComponents(3)
    for row in values:
        array.InsertNextTuple3(*map(float, row))
    block.SetName("BlockId")
    for _ in cells:
        block.InsertNextValue(1)
    grid.GetPointData().AddArray(array)
    grid.GetCellData().AddArray(block)
    writer = vtkEnSightWriter()
    writer.SetInputData(grid)
    writer.SetFileName(str(tmp_path / "vtk"))
    writer.SetPath(str(tmp_path))
    writer.SetBaseName("vtk")
    writer.Write()
    written = sorted(path.name for path in tmp_path.iterdir())
    geometry = read_geometry((tmp_path / next(n for n in written if ".geo" in n)).read_bytes())
    np.testing.assert_array_equal(geometry.cells, cells)
    np.testing.assert_array_equal(geometry.points, points)
    assert geometry.dialect.encoding is Encoding.C_BINARY
    name = next(n for n in written if "wave" in n)
    again = read_variable((tmp_path / name).read_bytes(), geometry.dialect, count=len(points), num_components=3)
    np.testing.assert_array_equal(again, values)


def test_meshio_reads_the_last_frame_and_writes(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("p", interactive=True))
    mesh = meshio.read(root / "p_mechanical.case")
    points, cells, point_data, _ = VtkFrames(root / "p_mechanical.case").read(-1)
    np.testing.assert_array_equal(mesh.points, points)
    np.testing.assert_array_equal(mesh.cells[0].data, cells)
    np.testing.assert_array_equal(mesh.point_data["Displacement"], point_data["Displacement"])
    meshio.write(tmp_path / "again.case", mesh)
    again = meshio.read(tmp_path / "again.case")
    np.testing.assert_array_equal(again.points, mesh.points)
    for name, values in mesh.point_data.items():
        np.testing.assert_array_equal(again.point_data[name], values)
    np.testing.assert_array_equal(again.cell_data["Structure_type"][0], mesh.cell_data["Structure_type"][0])


def test_meshio_refuses_other_cells(tmp_path: Path) -> None:
    mesh = meshio.Mesh(np.zeros((4, 3)), [("tetra", np.arange(4)[None])])
    with pytest.raises(ValueError, match="tetra"):
        meshio.write(tmp_path / "x.case", mesh)


CUBE, CELL = box_mesh((1, 1, 1))
EIGHT = np.arange(8.0)


@pytest.mark.parametrize(
    ("file", "points", "point_data", "cell_data", "said"),
    [
        ("x.case", CUBE, {"T": EIGHT}, {"T": [np.zeros(1)]}, "a point field and a cell field are both called 'T'"),
        ("x.case", CUBE, {"a b": EIGHT, "a_b": EIGHT + 100}, {}, "can't be called 'a b'"),
        ("x.case", CUBE, {"1": EIGHT}, {}, "can't be called '1'"),
        ("x.case", CUBE, {"": EIGHT}, {}, "can't be called ''"),
        ("x.case", CUBE, {"T" * 80: EIGHT}, {}, "at most 79 long"),
        ("x.case", CUBE, {"id": np.arange(8) + 2**24 + 1}, {}, "float32 rounds, 16777217 for one"),
        ("x.case", CUBE, {"id": np.full(8, 2**64 - 1, np.uint64)}, {}, "float32 rounds"),
        ("x.case", CUBE, {"T": np.where(EIGHT == 1, np.nan, EIGHT)}, {}, "aren't finite"),
        ("x.case", CUBE, {"T": EIGHT * 1e60}, {}, "aren't finite in float32"),
        ("x.case", CUBE, {"T": EIGHT * 1j}, {}, "holds complex128"),
        ("x.case", CUBE, {"T": np.array(list("abcdefgh"))}, {}, "only real numbers"),
        ("x.case", CUBE[:, :2], {"T": EIGHT}, {}, r"points must be \[N, 3\], not \[8, 2\]"),
        ("x.case", CUBE * np.nan, {"T": EIGHT}, {}, "could not be read again: .*a coordinate is nan"),
        ("my part.case", CUBE, {"T": EIGHT}, {}, "can't be called 'my part.case'"),
        ("a*b.case", CUBE, {"T": EIGHT}, {}, "can't be called"),
    ],
)
def test_meshio_refuses_what_it_could_not_read_again(
    tmp_path: Path, file: str, points: np.ndarray, point_data: dict, cell_data: dict, said: str
) -> None:
    mesh = meshio.Mesh(points, [("hexahedron", CELL)], point_data, cell_data)
    with pytest.raises(ValueError, match=said):
        meshio.write(tmp_path / file, mesh)
    assert list(tmp_path.iterdir()) == []


def test_meshio_keeps_every_field_of_a_single_cell(tmp_path: Path) -> None:
    of_cell = {
        "s": [np.array([2.0])],
        "v": [np.array([[1.0, 2, 3]])],
        "t": [np.arange(6.0)[None]],
        "one": [np.ones((1, 1))],
    }
    of_points = {"id": np.arange(8) + 2**24 - 8, "flag": EIGHT > 3, "Recoater_clearance_%": EIGHT, "v2": CUBE + 1}
    meshio.write(tmp_path / "x.case", meshio.Mesh(CUBE, [("hexahedron", CELL)], of_points, of_cell))
    again = meshio.read(tmp_path / "x.case")
    assert set(again.point_data) == set(of_points)
    assert set(again.cell_data) == set(of_cell)
    for name, values in of_points.items():
        np.testing.assert_array_equal(again.point_data[name], values)
    for name, (values,) in of_cell.items():
        np.testing.assert_array_equal(again.cell_data[name][0], values[0] if name == "one" else values)


def test_meshio_says_what_has_no_place(tmp_path: Path) -> None:
    mesh = meshio.Mesh(CUBE, [("hexahedron", CELL)], point_sets={"foot": np.array([0, 1])})
    with pytest.warns(UserWarning, match="can't hold the mesh's point_sets"):
        meshio.write(tmp_path / "x.case", mesh)


def test_two_variables_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write_part(tmp_path, Part("p"))
    text = (root / "mechanical.case").read_text()
    with pytest.raises(CaseError, match="two variables are called 'Temperature'"):
        read_case_file(text.replace("Structure_type", "Temperature").encode())


@pytest.mark.parametrize(
    ("printed", "value"),
    [
        ("1.0D-02", 0.01), ("-1.25d+03", -1250.0), ("1.2-101", 0.0), ("-.5Q+00", -0.5), ("3.", 3.0), ("5.D0", 5.0),
        ("1.5E-01", 0.15),
    ],
)  # fmt: skip
def test_numbers_as_fortran_prints_them(printed: str, value: float) -> None:
    text = write_variable(np.ones(12), Dialect(Encoding.ASCII)).replace(b"1.000000E+00\n", f"{printed}\n".encode(), 3)
    found = read_variable(text, Dialect(Encoding.ASCII), count=12)
    np.testing.assert_array_equal(found, np.array([value] * 3 + [1.0] * 9, np.float32))


@pytest.mark.parametrize("printed", ["1.0D", "D-02", "1.2-10", "1.2-1011", "1.0D-02D", "1.0E+00-2.0E+00", "0x10"])
def test_what_fortran_doesnt_print_is_no_number(printed: str) -> None:
    text = write_variable(np.ones(12), Dialect(Encoding.ASCII)).replace(b"1.000000E+00\n", f"{printed}\n".encode(), 1)
    with pytest.raises(CaseError, match="expected 1 number of"):
        read_variable(text, Dialect(Encoding.ASCII), count=12)


def _geometry(dialect: Dialect = DIALECTS[0]) -> bytes:
    return write_geometry(*box_mesh((2, 1, 1)), dialect)


def _refusal(data: bytes) -> CaseError:
    with pytest.raises(CaseError) as caught:
        read_geometry(data, "x.geo")
    assert caught.value.path == "x.geo"
    assert caught.value.offset is not None
    return caught.value


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: f"{d.encoding}{d.byte_order}")
class TestRefusedGeometry:
    def test_cut_off_anywhere(self, dialect: Dialect) -> None:
        whole = _geometry(dialect)
        # In text, a cut within the last number leaves a number, and a cut between two lines of the last block a
        # shorter block; both must be noticed.
        for length in range(len(whole) - 1):
            error = _refusal(whole[:length])
            assert error.reason in (FailureReason.TRUNCATED_FILE, FailureReason.MALFORMED_FILE), (length, str(error))
            assert error.offset is not None
            assert error.offset <= length

    def test_other_element(self, dialect: Dialect) -> None:
        error = _refusal(_geometry(dialect).replace(b"hexa8 " if dialect.encoding != "ascii" else b"hexa8", b"tetra4"))
        assert error.reason is FailureReason.UNSUPPORTED_ELEMENT
        assert "tetra4" in str(error)

    def test_several_parts(self, dialect: Dialect) -> None:
        whole = _geometry(dialect)
        error = _refusal(whole + whole[whole.index(b"part") :])
        assert error.reason is FailureReason.UNSUPPORTED_DIALECT
        assert "several parts" in str(error)

    def test_several_sections(self, dialect: Dialect) -> None:
        whole = _geometry(dialect)
        more = whole[whole.index(b"hexa8") :].replace(b"hexa8", b"quad4")
        assert _refusal(whole + more).reason is FailureReason.UNSUPPORTED_ELEMENT

    def test_more_bytes(self, dialect: Dialect) -> None:
        assert _refusal(_geometry(dialect) + b"\0" * 7).reason in (
            FailureReason.SIZE_MISMATCH,
            FailureReason.TRUNCATED_FILE,
        )

    def test_structured_block(self, dialect: Dialect) -> None:
        error = _refusal(_geometry(dialect).replace(b"coordinates", b"block      "))
        assert error.reason is FailureReason.UNSUPPORTED_DIALECT

    def test_index_out_of_range(self, dialect: Dialect) -> None:
        points, cells = box_mesh((2, 1, 1))
        for wrong in (-1, len(points)):
            bad = cells.copy()
            bad[1, 3] = wrong
            error = _refusal(write_geometry(points, bad, dialect))
            assert error.reason is FailureReason.INDEX_OUT_OF_RANGE
            assert f"element 2 names node {wrong + 1}" in str(error)

    def test_value_that_is_no_number(self, dialect: Dialect) -> None:
        points, cells = box_mesh((2, 1, 1))
        points[4, 1] = np.nan
        whole = write_geometry(points, cells, dialect)
        error = _refusal(whole)
        assert error.reason is FailureReason.NON_FINITE
        if dialect.encoding is Encoding.ASCII:
            assert whole[error.offset :].lstrip().lower().startswith(b"nan")
        else:
            value = struct.unpack_from(f"{dialect.byte_order}f", whole, error.offset)[0]
            assert np.isnan(value)


def test_true_fortran_records_are_refused() -> None:
    mark = struct.pack("<i", 80)
    error = _refusal(mark + b"Fortran Binary".ljust(80) + mark + b"rest")
    assert error.reason is FailureReason.UNSUPPORTED_DIALECT
    assert "record lengths" in str(error)


@pytest.mark.parametrize("data", [b"", b"\x89HDF\r\n\x1a\n" + b"\0" * 100, b"\0" * 200])
def test_other_files_are_refused(data: bytes) -> None:
    assert _refusal(data).reason in (FailureReason.TRUNCATED_FILE, FailureReason.UNSUPPORTED_DIALECT)


@pytest.mark.parametrize(
    ("ids", "extents"), [("given", False), ("ignore", True), ("assign", True), ("off", True), ("given", True)]
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_ids_and_extents_of_other_writers(ids: str, extents: bool, order: str) -> None:
    points, cells = box_mesh((2, 2, 1))
    stored = ids in ("given", "ignore")
    number = lambda *n: np.array(n, dtype=f"{order}i4").tobytes()  # noqa: E731
    line = lambda text: text.encode().ljust(80)  # noqa: E731
    data = line("C Binary") + line("a") + line("b") + line(f"node id {ids}") + line(f"element id {ids}")
    data += line("extents") + np.zeros(6, f"{order}f4").tobytes() if extents else b""
    data += line("part") + number(7) + line("x") + line("coordinates") + number(len(points))
    data += number(*range(100, 100 + len(points))) if stored else b""
    data += points.T.astype(f"{order}f4").tobytes() + line("hexa8") + number(len(cells))
    data += number(*range(len(cells))) if stored else b""
    data += (cells + 1).astype(f"{order}i4").tobytes()
    geometry = read_geometry(data)
    np.testing.assert_array_equal(geometry.points, points)
    np.testing.assert_array_equal(geometry.cells, cells)


def test_text_with_ids_and_extents() -> None:
    text = "a\nb\nnode id given\nelement id given\nextents\n 0 1\n 0 1\n 0 1\npart\n 1\nx\ncoordinates\n 8\n"
    points, _ = box_mesh((1, 1, 1))
    text += "".join(f"{i}\n" for i in range(8)) + "".join(f"{v:12.5e}\n" for v in points.T.ravel())
    text += "hexa8\n 1\n 5\n" + "".join(f"{i:10d}" for i in (1, 2, 4, 3, 5, 6, 8, 7)) + "\n"
    geometry = read_geometry(text.encode())
    np.testing.assert_array_equal(geometry.points, points)
    assert geometry.cells.tolist() == [[0, 1, 3, 2, 4, 5, 7, 6]]
    for end in ("\r\n", "\r"):
        elsewhere = read_geometry(text.replace("\n", end).encode())
        np.testing.assert_array_equal(elsewhere.points, points)
        np.testing.assert_array_equal(elsewhere.cells, geometry.cells)
    with pytest.raises(CaseError, match=r"expected 1 number of .*, found '1_0'"):
        read_geometry(text.replace(" 8\n0\n", " 8\n1_0\n").encode())


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: f"{d.encoding}{d.byte_order}")
class TestRefusedVariable:
    def _read(self, data: bytes, dialect: Dialect, count: int = 12) -> CaseError:
        with pytest.raises(CaseError) as caught:
            read_variable(data, dialect, count=count, path="x.ens")
        assert caught.value.path == "x.ens"
        return caught.value

    def test_too_many_values(self, dialect: Dialect) -> None:
        error = self._read(write_variable(np.ones(13), dialect), dialect)
        assert error.reason is FailureReason.SIZE_MISMATCH

    def test_too_few_values(self, dialect: Dialect) -> None:
        error = self._read(write_variable(np.ones(11), dialect), dialect)
        assert error.reason is FailureReason.TRUNCATED_FILE

    def test_wrong_location(self, dialect: Dialect) -> None:
        error = self._read(write_variable(np.ones(12), dialect, location="cell"), dialect)
        assert error.reason is FailureReason.MALFORMED_FILE

    def test_undefined_values(self, dialect: Dialect) -> None:
        data = write_variable(np.ones(12), dialect).replace(b"coordinates      ", b"coordinates undef")
        assert self._read(data, dialect).reason is FailureReason.UNSUPPORTED_DIALECT

    def test_infinite(self, dialect: Dialect) -> None:
        values = np.ones(12)
        values[3] = np.inf
        assert self._read(write_variable(values, dialect), dialect).reason is FailureReason.NON_FINITE


def test_garbage_in_text_is_named() -> None:
    data = write_variable(np.ones(12), Dialect(Encoding.ASCII)).replace(b" 1.000000E+00\n", b" ************\n", 4)
    with pytest.raises(CaseError) as caught:
        read_variable(data, Dialect(Encoding.ASCII), count=12)
    assert caught.value.reason is FailureReason.MALFORMED_FILE
    assert "****" in str(caught.value)
    assert data[caught.value.offset :].startswith(b" ****")
