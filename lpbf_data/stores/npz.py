"""The layout that is published today: a Parquet index, and one compressed npz file per case.

    data/train-00000-of-00001.parquet   case_id, file, num_nodes, num_edges, metadata
    train/<case_id>.npz                 pos, edge_index, elems, temp, disp, vmstr, _metadata

Nothing is unpickled. Every member is an array of numbers whose header is compared with what the index announces before
anything is decompressed; `_metadata`, which is a pickle, is left alone.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray

from lpbf_data.case.schema import FIELDS, FieldSpec
from lpbf_data.errors import StoreError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.file_access.ignored_files import is_ignored
from lpbf_data.stores.selection import TARGET_COMPONENT, TARGET_FIELD, Arrays, Selection

INDEX_COLUMNS: Final = ("case_id", "file", "num_nodes", "num_edges")
_MEMBERS: Final = {"displacement": "disp", "temperature": "temp", "von_mises_stress": "vmstr"}
# Each hexahedron of a mesh without hanging nodes brings about one node; a file that announces many more is no mesh.
_MAX_CELLS_PER_POINT: Final = 8

NPZ_FIELDS: Final[tuple[FieldSpec, ...]] = tuple(spec for name, spec in FIELDS.items() if name in _MEMBERS)
"""Fields of the published files."""


@dataclass(frozen=True, slots=True)
class NpzAddress:
    """One row of the index."""

    case_id: str
    file: str
    num_points: int
    num_edges: int


def find_index(folder: DatasetFolder) -> dict[str, tuple[str, ...]]:
    """Split to the index files of the published layout, "data/<split>-….parquet"."""
    found: dict[str, list[str]] = {}
    for name in folder.files.names("data"):
        stem = name.rpartition("/")[2]
        if is_ignored(stem):
            continue
        if stem.endswith(".parquet") and "-" in stem:
            found.setdefault(stem.partition("-")[0], []).append(name)
    return {split: tuple(names) for split, names in found.items()}


def read_index(folder: DatasetFolder, names: tuple[str, ...]) -> tuple[NpzAddress, ...]:
    """The cases of a split in the order of the index.

    Raises:
        StoreError: If it can't be read, or isn't an index.
    """
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            file = pq.ParquetFile(pa.BufferReader(folder.read(name)))
            if missing := [column for column in INDEX_COLUMNS if column not in file.schema_arrow.names]:
                raise StoreError(
                    f"{folder.name} has no manifest, and {name} is no index of npz files: it has no column {missing[0]}"
                )
            rows += file.read(list(INDEX_COLUMNS)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{folder.name}/{name} can't be read as Parquet: {error}") from error
    return tuple(_address(folder.name, row) for row in rows)


def _address(name: str, row: Mapping[str, Any]) -> NpzAddress:
    file, points, edges = row["file"], row["num_nodes"], row["num_edges"]
    sane = isinstance(file, str) and isinstance(points, int) and isinstance(edges, int) and points > 0 and edges >= 0
    if not sane or file.startswith("/") or ".." in file.split("/") or "\\" in file:
        raise StoreError(f"{name}: the index has an impossible row: file {file!r}, {points} nodes, {edges} edges")
    return NpzAddress(str(row["case_id"]), file, points, edges)


class NpzCase:
    """One npz file.

    Args:
        content: Its bytes.
        num_points: Its number of points, as the index has it.
        name: Its name in error messages.

    Raises:
        StoreError: If it isn't a zip archive.
    """

    def __init__(self, content: bytes, num_points: int, name: str) -> None:
        self.name = name
        self._num_points = num_points
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(content))
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise StoreError(f"{name} is no npz file ({error}); it is cut or altered: fetch it again") from error

    def _open(self, member: str) -> IO[bytes]:
        try:
            return self._archive.open(f"{member}.npy")
        except KeyError as error:
            known = ", ".join(sorted(name.removesuffix(".npy") for name in self._archive.namelist()))
            raise StoreError(f"{self.name} has no array {member!r}; it has: {known}") from error

    def _read(self, member: str, rows: int | None, columns: int, kind: str, max_rows: int) -> NDArray[Any]:
        """An array of numbers, whose shape and type are looked at before its values are decompressed.

        Args:
            member: Its name.
            rows: Its first dimension, when that is known.
            columns: Its second dimension; where it is 1, there may be none.
            kind: Kinds of types that it may have, letters of `numpy.dtype.kind`.
            max_rows: Largest first dimension.
        """
        try:
            with self._open(member) as file:
                shape, dtype, order = _read_header(file)
                right = shape[1:] == (columns,) or (columns == 1 and len(shape) == 1)
                if not right or shape[0] > max_rows or rows not in (None, shape[0]) or dtype.kind not in kind:
                    wanted = f"[{'E' if rows is None else rows}, {columns}]"
                    raise StoreError(
                        f"{self.name}, array {member!r}: expected {wanted} of kind {kind!r}, found {dtype} {shape}; "
                        "it is not read"
                    )
                size = math.prod(shape) * dtype.itemsize
                data = file.read(size)
                if len(data) != size or file.read(1):
                    raise StoreError(f"{self.name}, array {member!r}: its size isn't that of {dtype} {shape}")
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError) as error:
            raise StoreError(f"{self.name}, array {member!r} can't be read: {error}; fetch the file again") from error
        return np.frombuffer(data, dtype).reshape(shape[0], columns, order=order)

    def read_arrays(self, selection: Selection) -> tuple[Arrays, NDArray[np.int32] | None]:
        """The selected arrays but those made from the connectivity, and the connectivity if it is needed.

        Args:
            selection: What to read.

        Raises:
            StoreError: If an array is missing, or isn't one of the announced shape.
        """
        points = self._num_points

        def floats(member: str, components: int) -> NDArray[np.float32]:
            values = self._read(member, points, components, "f", points)
            return np.ascontiguousarray(values, dtype=np.float32)

        arrays: Arrays = {"pos": floats("pos", 3)}
        stored = {spec.name: floats(_MEMBERS[spec.name], spec.num_components) for spec in selection.fields}
        if selection.target:
            displacement = stored[TARGET_FIELD] if TARGET_FIELD in stored else floats(_MEMBERS[TARGET_FIELD], 3)
            arrays["y"] = np.ascontiguousarray(displacement[:, TARGET_COMPONENT : TARGET_COMPONENT + 1])
        return arrays | stored, self._read_cells(points) if selection.reads_cells else None

    def _read_cells(self, points: int) -> NDArray[np.int32]:
        cells = self._read("elems", None, 8, "iu", _MAX_CELLS_PER_POINT * points)
        if len(cells) and (int(cells.min()) < 0 or int(cells.max()) >= points):
            raise StoreError(f"{self.name}: elems names nodes outside 0 … {points - 1}")
        return np.ascontiguousarray(cells, dtype=np.int32)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], Literal["C", "F"]]:
    """Shape, type and order from the header of an npy file."""
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the npy format isn't known")
    return tuple(shape), dtype, "F" if fortran else "C"
