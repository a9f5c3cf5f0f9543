"""Parts to predict on: cases of a data set, hexahedral meshes that meshio reads, closed surfaces.

N points, E cells of one part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import meshio
import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import LpbfError, StoreError, UsageError
from lpbf_data.folder import DatasetFolder
from lpbf_data.manifest import MANIFEST_NAME
from lpbf_data.mesh import hex_aspect_ratio
from lpbf_data.reader import SplitReader

MESH_SUFFIXES: Final = (".vtu", ".vtk", ".xdmf", ".inp", ".msh", ".case")
"""Meshes that are read through meshio."""

READERS: Final = "flare_model.mesh_readers"
"""Entry points that name modules to import before a mesh is read; they make formats known to meshio. EnSight's is one:
this package and the one that reads simulator output don't import each other."""


@dataclass(frozen=True)
class Part:
    """A part to predict on.

    Attributes:
        name: Name of the part, and of the files written for it.
        points: Coordinates in mm, [N, 3] float32.
        cells: Zero-based hexahedra, [E, 8] int32.
        fields: What is known at the points, by field name or component, [N] or [N, components].
        material: Its material, where known.
    """

    name: str
    points: NDArray[np.float32]
    cells: NDArray[np.int32]
    fields: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    material: str | None = None

    @property
    def aspect_ratio(self) -> float:
        """Aspect ratio of the worst cell."""
        return float(hex_aspect_ratio(self.points, self.cells).max())

    def column(self, name: str, field_name: str, components: Sequence[int]) -> NDArray[np.float32] | None:
        """A field, or components of one, as [N, components]; None where it isn't known."""
        if name in self.fields:
            return np.asarray(self.fields[name], np.float32).reshape(len(self.points), -1)
        if field_name in self.fields:
            values = np.asarray(self.fields[field_name], np.float32).reshape(len(self.points), -1)
            return values[:, list(components)] if max(components) < values.shape[1] else None
        return None


@dataclass(frozen=True)
class Unreadable:
    """A part that can't be read, and why."""

    name: str
    error: LpbfError


def find_parts(source: str, *, split: str, cases: Sequence[str]) -> Iterator[Part | Unreadable]:
    """The parts of a source, one after the other.

    Args:
        source: A data set, a mesh, a surface, or a folder of meshes and surfaces.
        split: Which split of a data set.
        cases: Ids of cases of a data set; all of the split when empty.

    Raises:
        UsageError: If there is no such source, or nothing to predict on in it.
    """
    path = Path(source)
    if "://" in source or (path / MANIFEST_NAME).exists():
        yield from _cases(source, split, cases)
    elif path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in MESH_SUFFIXES)
        if not files:
            raise UsageError(f"{source} is neither a data set nor a folder with {', '.join(MESH_SUFFIXES)} in it")
        for file in files:
            try:
                yield read_part(file)
            except LpbfError as error:
                yield Unreadable(file.stem, error)
    elif path.is_file():
        yield read_part(path)
    else:
        raise UsageError(f"there is no {source} to predict on")


def _cases(source: str, split: str, cases: Sequence[str]) -> Iterator[Part]:
    reader = SplitReader(DatasetFolder(source), split)
    places = {address.case_id: index for index, address in enumerate(reader.addresses)}
    if unknown := [name for name in cases if name not in places]:
        raise UsageError(f"the split {split} of {source} has no case {unknown[0]!r}")
    specs = tuple(spec for spec in reader.field_specs if spec.location == "point")
    for case_id in cases or places:
        case = reader.read(places[case_id], specs)
        material = case.attributes.get("material")
        yield Part(case_id, case.points, case.cells, case.fields, str(material) if material else None)


def read_part(path: Path) -> Part:
    """Read one file.

    Raises:
        UsageError: If its suffix is unknown.
        StoreError: If it can't be read, or holds no hexahedra.
    """
    if path.suffix.lower() in MESH_SUFFIXES:
        return _read_mesh(path)
    raise UsageError(
        f"{path}: can't predict on a {path.suffix or 'file without suffix'}; known are: {', '.join(MESH_SUFFIXES)}"
    )


def _read_mesh(path: Path) -> Part:
    for reader in entry_points(group=READERS):
        reader.load()
    try:
        mesh = meshio.read(path)
    except (Exception, SystemExit) as error:  # meshio's readers raise anything, and exit on some files.
        raise StoreError(f"{path} can't be read as a mesh: {error}") from error
    blocks = [block.data for block in mesh.cells if block.type == "hexahedron"]
    if not blocks or len(blocks) < len(mesh.cells):
        kinds = ", ".join(sorted({block.type for block in mesh.cells})) or "no cells"
        raise StoreError(f"{path} holds {kinds}; only hexahedral meshes can be predicted on")
    points, cells = np.asarray(mesh.points, np.float32), np.concatenate(blocks).astype(np.int32)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise StoreError(f"{path}: points must be [N, 3] finite numbers")
    if cells.size and not (cells.min() >= 0 and cells.max() < len(points)):
        raise StoreError(f"{path}: a cell names a point that isn't there")
    # NetFabb writes "Displacement" and "von_Mises_stress" for what is called displacement and von_mises_stress here.
    fields = {name.lower(): np.asarray(values, np.float32) for name, values in mesh.point_data.items()}
    return Part(path.stem, points, cells, fields)
