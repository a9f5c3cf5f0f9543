"""Parts to predict on: cases of a data set, hexahedral meshes, and closed surfaces, meshed as the simulator does.

N points, E cells of one part.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.data.non_finite import describe_non_finite
from flare_model.prediction.part import DEFAULT_MESHING, Meshing, Part, Unreadable
from flare_model.prediction.part_files import (
    MESH_SUFFIXES,
    PART_SUFFIXES,
    fault_of,
    is_result,
    name_of,
    part_files,
    passed_over,
    unknown_suffix,
)
from lpbf_data.case.schema import FIELDS, SYMMETRIC_TENSOR
from lpbf_data.case.tensor_order import VTK_ORDER, reorder
from lpbf_data.errors import LpbfError, StoreError, UsageError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.remarks import Remark, Treatment
from lpbf_data.stores.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    import meshio

_HEXAHEDRA: Final = ("hexahedron", "voxel")
_FLAT: Final = frozenset({"vertex", "line", "triangle", "quad", "pixel"})  # the boundary of a mesh of hexahedra
_VOXEL_CORNERS: Final = [0, 1, 3, 2, 4, 5, 7, 6]  # VTK counts the corners of a voxel row by row

__all__ = ["Meshing", "Part", "Unreadable", "cases_of", "find_parts", "read_parts"]

READERS: Final = "flare_model.mesh_readers"
"""Entry points that name modules to import before a mesh is read; they make formats known to meshio. EnSight's is one:
this package and the one that reads simulator output don't import each other."""

MATERIALS: Final = "flare_model.materials_of_results"
"""Entry points that name functions which tell the material of a simulation's result; None where they can't."""


def find_parts(
    source: str,
    *,
    split: str = "test",
    cases: Sequence[str] = (),
    fields: Collection[str] | None = None,
    meshing: Meshing = DEFAULT_MESHING,
    names: Mapping[Path, str] | None = None,
) -> Iterator[Part | Unreadable]:
    """The parts of a source, one after the other.

    Args:
        source: A mesh, a surface, the results of a simulation, or a folder of any of these; else a data set: a folder,
            a URL, or an id of the Hugging Face hub.
        split: Which split of a data set.
        cases: Ids of cases of a data set; all of the split when empty.
        fields: Fields of a data set to read; all by default.
        meshing: How surfaces become meshes.
        names: Files to names of their parts, as `names_of` makes them; those of the files by default.

    Raises:
        UsageError: If there is no such source, or nothing to predict on in it.
        StoreError: If a data set can't be opened.
    """
    path, files = Path(source), part_files(source)
    if not files:
        _check_data_set(source)
        yield from cases_of(source, split, cases, fields)
    left_out = passed_over(path, files) if path.is_dir() else ()  # stated once, with the first part
    for file in files:
        name = (names or {}).get(file, name_of(file))
        try:
            for part in read_parts(file, meshing, name):
                yield replace(part, remarks=left_out + part.remarks)
                left_out = ()
        except LpbfError as error:
            yield Unreadable(name, error, left_out)
            left_out = ()


def _check_data_set(source: str) -> None:
    """Refuse a source that can't be a data set, with a message for a user who meant a part."""
    from lpbf_data.stores.npz import find_index

    path = Path(source)
    if path.is_dir() and not ((path / MANIFEST_NAME).exists() or find_index(DatasetFolder(path))):
        raise UsageError(
            f"{path} is neither a data set nor a folder with {', '.join(PART_SUFFIXES)} or results of simulations in it"
        )
    if fault := fault_of(source):
        raise UsageError(fault)


def cases_of(
    source: str, split: str, cases: Sequence[str] = (), fields: Collection[str] | None = None
) -> Iterator[Part | Unreadable]:
    """Cases of a data set as parts.

    Args:
        source: The data set: a folder, a URL, or an id of the Hugging Face hub.
        split: Which split.
        cases: Ids of cases; all of the split when empty.
        fields: Fields to read; all by default.

    Raises:
        UsageError: If there is no such data set, split or case.
        StoreError: If the data set can't be opened.
    """
    from lpbf_data.reading.split_reader import SplitReader, read_manifest

    reader = SplitReader(DatasetFolder(source), split)
    if reader.points is not None:
        raise UsageError(f"{source} holds points without cells, and this is for printed parts")
    places = {address.case_id: index for index, address in enumerate(reader.addresses)}
    if unknown := [name for name in cases if name not in places]:
        raise UsageError(f"the split {split} of {source} has no case {unknown[0]!r}")
    at_points = (spec for spec in reader.field_specs if spec.location == "point")
    specs = tuple(spec for spec in at_points if fields is None or spec.name in fields)
    manifest = None if reader.catalog.layout == "npz" else read_manifest(reader.folder)
    materials = {record.case_id: record.run.material for record in manifest.records} if manifest else {}
    for case_id in cases or places:
        try:
            case = reader.read(places[case_id], specs)
        except LpbfError as error:
            yield Unreadable(case_id, error)
        else:
            yield Part(case_id, case.points, case.cells, case.fields, materials.get(case_id))


def read_parts(path: Path, meshing: Meshing = DEFAULT_MESHING, name: str | None = None) -> Iterator[Part | Unreadable]:
    """Read one file.

    Args:
        path: A hexahedral mesh or a file of closed surfaces.
        meshing: How a surface becomes a mesh.
        name: Name of the part; that of the file by default.

    Returns:
        The part; of a file with several bodies a part each, named by their numbers, or why one can't be meshed.

    Raises:
        UsageError: If its suffix is unknown, or a mesh is to be read in another unit than mm.
        StoreError: If it can't be read, or holds no hexahedra.
        GeometryError: If it is a surface that isn't closed, or can't be meshed.
    """
    if fault := unknown_suffix(path):
        raise UsageError(fault)
    name = name_of(path) if name is None else name
    if path.suffix.lower() in MESH_SUFFIXES:
        if meshing.units not in (None, "mm"):
            raise UsageError(
                f"{path}: meshes are read in mm, and --units {meshing.units} is for surfaces; scale the mesh, or "
                "predict it without"
            )
        yield _read_mesh(path, name)
    else:
        from flare_model.prediction.surface_parts import mesh_bodies
        from lpbf_data.geometry.surface_files import load_bodies

        yield from mesh_bodies(path, load_bodies(path, meshing.units), meshing, name)


def _read_mesh(path: Path, name: str) -> Part:
    for reader in entry_points(group=READERS):
        reader.load()
    mesh = _open_mesh(path)
    cells, remarks = _cells_of(path, mesh)
    points = np.asarray(mesh.points, np.float32)
    if points.ndim != 2 or points.shape[1] != 3:
        raise StoreError(f"{path}: points must be [N, 3] numbers, but are {list(points.shape)}")
    if said := describe_non_finite(points):
        raise StoreError(f"{path}: coordinates aren't finite numbers: {said}; write the mesh again from a sound one")
    if not cells.size:
        raise StoreError(f"{path} holds no cells; only hexahedral meshes can be predicted on")
    if not (cells.min() >= 0 and cells.max() < len(points)):
        raise StoreError(f"{path}: a cell names a point that isn't there")
    # NetFabb writes "Displacement" and "von_Mises_stress" for what is called displacement and von_mises_stress here.
    fields = {name.lower(): np.asarray(values, np.float32) for name, values in mesh.point_data.items()}
    for field, values in fields.items():
        if field in FIELDS and FIELDS[field].components == SYMMETRIC_TENSOR and values.shape[1:] == (6,):
            fields[field] = reorder(values, VTK_ORDER, SYMMETRIC_TENSOR)  # as VTK's formats have them
    return Part(name, points, cells, fields, _material_of(path), remarks)


def _material_of(path: Path) -> str | None:
    """Material of a simulation's result, where a package that is installed can tell; None for other meshes."""
    if not is_result(path):
        return None
    told = (reader.load()(path) for reader in entry_points(group=MATERIALS))
    return next((material for material in told if material), None)


def _open_mesh(path: Path) -> meshio.Mesh:
    """Read a mesh with meshio, whose readers raise errors of any type, and on some files print a line and exit."""
    _register_voxels()
    if path.stat().st_size == 0:
        raise StoreError(f"{path} can't be read as a mesh: the file is empty; write it again")
    import meshio

    from flare_model.prediction.decompression import bounded_vtu, check_hdf

    said = io.StringIO()
    try:
        if path.suffix.lower() == ".xdmf":
            check_hdf(path)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), bounded_vtu(path):
            mesh = meshio.read(path)
    except StoreError:
        raise
    except SystemExit as error:
        raise StoreError(
            f"{path} can't be read as a mesh: it is cut short or no {path.suffix} file; write it again"
        ) from error
    except Exception as error:
        raise StoreError(f"{path} can't be read as a mesh: {error}; write it again") from error
    if "cannot handle" in said.getvalue():  # meshio goes on without them
        raise StoreError(f"{path} holds cells of unknown types; only hexahedral meshes can be predicted on")
    return mesh


def _cells_of(path: Path, mesh: meshio.Mesh) -> tuple[NDArray[np.int32], tuple[Remark, ...]]:
    """Hexahedra of a mesh, [E, 8], and a remark on other cells that were left out."""
    blocks = [_hexahedra(block) for block in mesh.cells if block.type in _HEXAHEDRA]
    other: Counter[str] = Counter()
    for block in mesh.cells:
        if block.type not in _HEXAHEDRA:
            other[block.type] += len(block.data)
    if not blocks or set(other) - _FLAT:
        kinds = ", ".join(sorted({block.type for block in mesh.cells})) or "no cells that can be read"
        raise StoreError(f"{path} holds {kinds}; only hexahedral meshes (VTK's types 12 and 11) can be predicted on")
    remarks: tuple[Remark, ...] = ()
    if other:
        sentence = "faces, edges and points beside the hexahedra of a mesh were left out"
        listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(other.items()))
        remarks = (Remark(Treatment.LEFT_OUT, "flat_cells", sentence, 1, (f"{path.name}: {listed}",)),)
    return np.concatenate(blocks).astype(np.int32), remarks


def _hexahedra(block: meshio.CellBlock) -> NDArray[np.int64]:
    """Corners of a block of hexahedra or voxels, in the order of hexahedra, [E, 8]."""
    cells = np.asarray(block.data, np.int64)
    return cells[:, _VOXEL_CORNERS] if block.type == "voxel" else cells


def _register_voxels() -> None:
    """Let meshio read VTK's voxels (type 11), which it leaves out for the order of their corners."""
    from meshio._mesh import num_nodes_per_cell, topological_dimension
    from meshio._vtk_common import vtk_to_meshio_type
    from meshio.vtk._vtk_42 import vtk_type_to_numnodes

    vtk_to_meshio_type.setdefault(11, "voxel")
    num_nodes_per_cell.setdefault("voxel", 8)
    num_nodes_per_cell.setdefault("pixel", 4)
    topological_dimension.setdefault("voxel", 3)
    topological_dimension.setdefault("pixel", 2)
    vtk_type_to_numnodes[[8, 11]] = 4, 8  # of legacy files
