"""Files of parts to predict on: one of each suffix, written by other software than reads it; bodies, units, limits."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from pathlib import Path

import h5py
import meshio
import numpy as np
import pytest
import pyvista
import trimesh
import vtk

from flare_model.predict import predict
from flare_model.prediction.part_files import MESH_SUFFIXES
from flare_model.prediction.parts import Meshing, Part, Unreadable, find_parts, read_parts
from lpbf_data.command_line import run
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.geometry.hexahedra import hex_corner_volumes
from lpbf_data.geometry.surface_formats import UNIT_SPELLINGS, Units
from tests.lpbf_data.test_surface_files import write_3mf
from tests.netfabb_cases import Part as NetfabbPart
from tests.netfabb_cases import write_part

GRID = pyvista.ImageData(dimensions=(4, 3, 5), spacing=(2.0, 3.0, 1.0), origin=(-3.0, -3.0, 0.0))


def read_one_part(path: Path) -> Part:
    (part,) = read_parts(path)
    assert isinstance(part, Part)
    return part


def hexahedra() -> pyvista.UnstructuredGrid:
    return pyvista.StructuredGrid(
        *np.meshgrid(*(np.arange(n + 1.0) for n in (3, 2, 4)), indexing="ij")
    ).cast_to_unstructured_grid()


def write_vtk(path: Path, grid: pyvista.UnstructuredGrid) -> None:
    """Write a grid by VTK's own writers."""
    writer = vtk.vtkXMLUnstructuredGridWriter() if path.suffix == ".vtu" else vtk.vtkUnstructuredGridWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(grid)
    if path.suffix == ".vtu":
        writer.EncodeAppendedDataOff()
        writer.SetDataModeToBinary()
    else:
        writer.SetFileVersion(42)
    assert writer.Write() == 1


def write_abaqus(path: Path, grid: pyvista.UnstructuredGrid) -> None:
    nodes = [f"{n}, {x}, {y}, {z}" for n, (x, y, z) in enumerate(grid.points.tolist(), 1)]
    cells = [", ".join(map(str, (n, *(c + 1)))) for n, c in enumerate(grid.cells_dict[12], 1)]
    path.write_text("\n".join(["*HEADING", "part", "*NODE", *nodes, "*ELEMENT, TYPE=C3D8", *cells]) + "\n")


def write_gmsh(path: Path, grid: pyvista.UnstructuredGrid) -> None:
    nodes = [f"{n} {x} {y} {z}" for n, (x, y, z) in enumerate(grid.points.tolist(), 1)]
    cells = [" ".join(map(str, (n, 5, 2, 1, 1, *(c + 1)))) for n, c in enumerate(grid.cells_dict[12], 1)]
    lines = ["$MeshFormat", "2.2 0 8", "$EndMeshFormat", "$Nodes", str(len(nodes)), *nodes, "$EndNodes"]
    path.write_text("\n".join([*lines, "$Elements", str(len(cells)), *cells, "$EndElements"]) + "\n")


def write_xdmf(path: Path, grid: pyvista.UnstructuredGrid) -> None:
    cells = np.asarray(grid.cells_dict[12])
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["points"], file["cells"] = np.asarray(grid.points), cells
    item = '<DataItem Dimensions="{} {}" NumberType="{}" Precision="{}" Format="HDF">{}.h5:/{}</DataItem>'
    points = item.format(len(grid.points), 3, "Float", grid.points.dtype.itemsize, path.stem, "points")
    topology = item.format(len(cells), 8, "Int", 8, path.stem, "cells")
    path.write_text(
        f'<Xdmf Version="3.0"><Domain><Grid Name="Grid"><Geometry GeometryType="XYZ">{points}</Geometry>'
        f'<Topology TopologyType="Hexahedron" NumberOfElements="{len(cells)}">{topology}</Topology>'
        "</Grid></Domain></Xdmf>"
    )


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_a_mesh_of_each_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    path, grid = tmp_path / f"part{suffix}", hexahedra()
    if suffix == ".case":
        folder = write_part(tmp_path / "netfabb", NetfabbPart("101635_11b839a3_5"))
        path = next(folder.rglob("*mechanical.case"))
        assert len(read_one_part(path).cells) > 0
        return
    {".inp": write_abaqus, ".msh": write_gmsh, ".xdmf": write_xdmf}.get(suffix, write_vtk)(path, grid)
    part = read_one_part(path)
    assert part.remarks == ()
    np.testing.assert_allclose(part.points, grid.points)
    np.testing.assert_array_equal(part.cells, grid.cells_dict[12])


@pytest.mark.parametrize("suffix", [".vtu", ".vtk"])
def test_voxels_are_hexahedra_in_another_order(tmp_path: Path, suffix: str) -> None:
    grid = GRID.cast_to_unstructured_grid()
    assert set(grid.celltypes.tolist()) == {11}
    write_vtk(tmp_path / f"voxels{suffix}", grid)
    part = read_one_part(tmp_path / f"voxels{suffix}")
    assert len(part.cells) == 3 * 2 * 4
    np.testing.assert_allclose(hex_corner_volumes(part.points, part.cells), 6.0)
    # VTK finds the same cell at each position, the same area of outer faces, and cells without distortion.
    sizes = np.insert(part.cells, 0, 8, axis=1)
    hexahedra = pyvista.UnstructuredGrid(sizes, np.full(len(part.cells), 12), part.points)
    places = GRID.cell_centers().points + 0.1
    np.testing.assert_array_equal(hexahedra.find_containing_cell(places), GRID.find_containing_cell(places))
    assert hexahedra.extract_surface(algorithm=None).area == pytest.approx(2 * (6 * 6 + 6 * 4 + 6 * 4))
    np.testing.assert_allclose(hexahedra.cell_quality("scaled_jacobian")["scaled_jacobian"], 1.0)


def test_other_files_in_a_folder_of_parts_are_reported(tmp_path: Path) -> None:
    box = trimesh.creation.box((20, 20, 10))
    for name in ("in/a.STL", "in/b.stl", "in/sub dir/deep/c.stl", "in/sub dir/d.stl", "in/.hidden/e.stl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        box.export(tmp_path / name)
    write_part(tmp_path / "in", NetfabbPart("run"))
    (tmp_path / "in/notes").mkdir()
    for name in ("part.step", "part.stl.gz", "._a.STL", "notes/x.txt"):
        (tmp_path / "in" / name).write_bytes(b"x")
    parts = list(find_parts(str(tmp_path / "in"), meshing=Meshing(num_points=500)))
    assert [part.name for part in parts] == ["a", "b", "run"]
    told = {remark.kind: remark.examples for part in parts for remark in part.remarks if "mesh" not in remark.kind}
    assert told["other_files"] == ("in/part.step", "in/part.stl.gz")
    assert told["folders_below"] == ("in/sub dir: 2",)
    assert not any(remark.kind == "other_files" for part in parts[1:] for remark in part.remarks)
    assert [part.remarks for part in find_parts(str(tmp_path / "in/run"))] == [()]


def test_units_other_than_mm_are_refused_for_meshes(tmp_path: Path) -> None:
    write_vtk(tmp_path / "part.vtu", hexahedra())
    assert len(list(read_parts(tmp_path / "part.vtu", Meshing(units="mm")))) == 1
    with pytest.raises(UsageError, match="--units m is for surfaces"):
        list(read_parts(tmp_path / "part.vtu", Meshing(units="m")))


def test_meshes_with_cells_of_other_kinds_are_refused(tmp_path: Path) -> None:
    grid = hexahedra()
    strip = pyvista.UnstructuredGrid(np.array([4, 0, 1, 4, 5]), np.array([6]), grid.points)  # a triangle strip
    tetrahedron = pyvista.UnstructuredGrid(np.array([4, 0, 1, 4, 12]), np.array([10]), grid.points)
    for name, other in (("strip", strip), ("tetrahedron", tetrahedron)):
        write_vtk(tmp_path / f"{name}.vtu", grid + other)
        with pytest.raises(StoreError, match="only hexahedral meshes"):
            read_one_part(tmp_path / f"{name}.vtu")


def test_faces_beside_hexahedra_are_left_out_with_a_remark(tmp_path: Path) -> None:
    grid, voxels = hexahedra(), GRID.cast_to_unstructured_grid()
    flat = pyvista.ImageData(dimensions=(3, 3, 1)).cast_to_unstructured_grid()
    assert set(flat.celltypes.tolist()) == {8}  # pixels
    for name, whole, count in (
        ("quads", grid + grid.extract_surface(algorithm=None), 52),
        ("pixels", voxels + flat, 4),
    ):
        write_vtk(tmp_path / f"{name}.vtu", pyvista.UnstructuredGrid(whole))
        part = read_one_part(tmp_path / f"{name}.vtu")
        assert len(part.cells) == 24
        (remark,) = part.remarks
        assert (remark.treatment, remark.kind) == ("left_out", "flat_cells")
        assert f"{count} " in remark.examples[0]


def test_a_file_of_two_bodies_gives_two_parts_and_a_remark(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big, small = trimesh.creation.box((20, 20, 20)), trimesh.creation.box((8, 8, 8))
    small.apply_translation((30, 0, -6))
    trimesh.util.concatenate([big, small]).export(tmp_path / "pair.stl")
    out = tmp_path / "out"
    assert predict(str(trained_run), [str(tmp_path / "pair.stl")], out=str(out), points=300, pictures=False) == 0
    assert {path.name for path in out.iterdir()} == {"answers.json", "pair_1.vtu", "pair_2.vtu", "remarks.json"}
    for name, size in (("pair_1", 20), ("pair_2", 8)):
        np.testing.assert_allclose(np.ptp(meshio.read(out / f"{name}.vtu").points, axis=0), size, atol=1)
    assert (
        capsys.readouterr().err.count("one part a body, each put on the build plate by itself (pair.stl: 2 bodies)")
        == 1
    )
    assert json.loads((out / "remarks.json").read_text())["pair_1"][0]["kind"] == "several_bodies"


def test_units_are_those_of_the_file_or_of_the_option(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_3mf(tmp_path / "cube.3mf", trimesh.creation.box(), "inch")
    trimesh.creation.box((0.02, 0.02, 0.03)).export(tmp_path / "metres.stl")
    sources, out = [str(tmp_path / "cube.3mf")], tmp_path / "out"
    assert predict(str(trained_run), sources, out=str(out), points=300, pictures=False) == 0
    np.testing.assert_allclose(np.ptp(meshio.read(out / "cube.vtu").points, axis=0)[:2], 25.4, atol=1e-3)
    assert "unit" not in capsys.readouterr().err
    metres = [str(tmp_path / "metres.stl")]
    assert predict(str(trained_run), metres, out=str(out), points=300, pictures=False, units="m") == 0
    np.testing.assert_allclose(np.ptp(meshio.read(out / "metres.vtu").points, axis=0)[:2], 20, atol=1e-3)
    trimesh.creation.box((0.2, 0.2, 0.3)).export(tmp_path / "tiny.stl")
    assert predict(str(trained_run), [str(tmp_path / "tiny.stl")], out=str(out), points=100, pictures=False) == 0
    assert (
        "if they are in metres, use --units m, if in inches, --units inch (tiny.stl: 0.3 mm)" in capsys.readouterr().err
    )
    trimesh.creation.annulus(0.012, 0.015, 0.03).export(tmp_path / "tube.stl")  # its mesh isn't quite the part
    tube = str(tmp_path / "tube.stl")
    assert predict(str(trained_run), [tube], out=str(out), pictures=False) == 0
    said = capsys.readouterr()
    assert "read in mm, since the file states no unit (--units), which is doubtful" in said.out
    assert "--points" not in said.out + said.err
    assert said.err.index("use --units m") < said.err.index("the mesh differs from the surface")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("said", "unit"),
    [("in", "inch"), ("Metre", "m"), ("meters", "m"), ("millimetre", "mm"), ("µm", "um"), ("MM", "mm")],
)
@pytest.mark.parametrize("equals", [False, True])
def test_units_have_several_spellings_on_the_command_line(said: str, unit: str, equals: bool) -> None:
    taken: list[str | None] = []

    def command(*, units: Units | None = None) -> None:
        """Take the unit.

        Args:
            units: It.
        """
        taken.append(units)

    words = [f"--units={said}"] if equals else ["--units", said]
    with pytest.raises(SystemExit) as ended:
        run(command, "python -m command", words, spellings={"units": UNIT_SPELLINGS})
    assert (ended.value.code, taken) == (0, [unit])


def test_a_body_that_can_not_be_meshed_does_not_stop_the_others(tmp_path: Path) -> None:
    """One body of two blocks and a wire between them, which the mesh loses, and another body of one block."""
    ends = [trimesh.creation.box(bounds=[(x, 0, 0), (x + 4, 4, 4)]) for x in (0, 40)]
    wire = trimesh.creation.box(bounds=[(2, 2.137, 2.137), (42, 2.157, 2.157)])
    apart = trimesh.boolean.union([*ends, wire], engine="manifold")
    block = trimesh.creation.box(bounds=[(0, 30, 0), (10, 40, 10)])
    trimesh.util.concatenate([apart, block]).export(tmp_path / "both.stl")
    found = list(read_parts(tmp_path / "both.stl", Meshing(100)))
    (meshed,) = (part for part in found if isinstance(part, Part))
    (refused,) = (part for part in found if isinstance(part, Unreadable))
    assert {meshed.name, refused.name} == {"both_1", "both_2"}
    np.testing.assert_allclose(np.ptp(meshed.points, axis=0), 10, atol=1)
    assert f"body {refused.name}: the mesh falls apart into 2 pieces" in str(refused.error)


def test_files_that_decompress_beyond_a_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flare_model.prediction.decompression.MAX_EXPANSION", 2**20)
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file.create_dataset("points", (10**9, 3), "f8", chunks=(1000, 3), compression="gzip")
    item = '<DataItem Dimensions="9 3" NumberType="Float" Precision="8" Format="HDF">part.h5:/points</DataItem>'
    (tmp_path / "part.xdmf").write_text(f"<Xdmf><Domain><Grid><Geometry>{item}</Geometry></Grid></Domain></Xdmf>")
    with pytest.raises(StoreError, match="unfolds to 22,888 MiB"):
        read_one_part(tmp_path / "part.xdmf")
    block = zlib.compress(bytes(20 * 2**20), 9)
    data = b64encode(struct.pack("<4I", 1, 20 * 2**20, 0, len(block))).decode() + b64encode(block).decode()
    points = f'<Points><DataArray type="Float64" NumberOfComponents="3" format="binary">{data}</DataArray></Points>'
    (tmp_path / "part.vtu").write_text(
        '<VTKFile type="UnstructuredGrid" version="0.1" byte_order="LittleEndian" header_type="UInt32" '
        'compressor="vtkZLibDataCompressor"><UnstructuredGrid><Piece NumberOfPoints="9" NumberOfCells="1">'
        f"{points}<Cells/></Piece></UnstructuredGrid></VTKFile>"
    )
    with pytest.raises(StoreError, match="unfolds to more than ten times its size"):
        read_one_part(tmp_path / "part.vtu")
