"""Parquet shards: one row per case, one case per row group, one column per scalar component.

A reader that wants points and Z displacement decodes four columns of one row group and nothing else. Floats are
BYTE_STREAM_SPLIT, connectivity is DELTA_BINARY_PACKED, both under zstd; every page carries a checksum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lpbf_data.cached_property import cached_property
from lpbf_data.case.case import Case, Scalar
from lpbf_data.case.point_schema import POINTS_VERSION, PointSchema
from lpbf_data.case.record import ATTRIBUTE_TYPES
from lpbf_data.case.schema import FIELDS, SCHEMA_VERSION, FieldSpec
from lpbf_data.errors import SchemaError, StoreError
from lpbf_data.os_errors import read_error
from lpbf_data.stores.selection import Arrays, Selection, interleave

POINT_COLUMNS: Final = ("x", "y", "z")
CELL_COLUMN: Final = "cells"

RAW_BYTES: Final = 96_000_000
"""Uncompressed bytes of the arrays of a shard, unless a single case is larger; about 30 MB in the file."""

_SCALAR: Final = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _flat_list(value_type: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", value_type, nullable=False))


def shard_schema(specs: Sequence[FieldSpec]) -> pa.Schema:
    """Arrow schema of a shard that stores the given fields.

    Args:
        specs: Fields beside the mesh itself.
    """
    scalars = [pa.field("case_id", pa.string(), nullable=False)]
    scalars += [pa.field(name, _SCALAR[kind]) for name, kind in ATTRIBUTE_TYPES.items()]
    names = [*POINT_COLUMNS, *(column for spec in specs for column in spec.columns)]
    arrays = [pa.field(name, _flat_list(pa.float32()), nullable=False) for name in names]
    arrays.append(pa.field(CELL_COLUMN, _flat_list(pa.int32()), nullable=False))
    return pa.schema(scalars + arrays, metadata={"lpbf_schema_version": str(SCHEMA_VERSION)})


def case_columns(case: Case, specs: Sequence[FieldSpec]) -> dict[str, NDArray[Any]]:
    """The flat arrays of a case under their column names.

    Args:
        case: The case.
        specs: Fields to take.

    Returns:
        Column name to a contiguous array of one dimension.
    """
    columns: dict[str, NDArray[Any]] = dict(zip(POINT_COLUMNS, np.ascontiguousarray(case.points.T), strict=True))
    for spec in specs:
        columns |= zip(spec.columns, case.planar(spec), strict=True)
    columns[CELL_COLUMN] = case.cells.reshape(-1)
    return columns


def _as_table(case: Case, specs: Sequence[FieldSpec], schema: pa.Schema) -> pa.Table:
    flat = case_columns(case, specs)
    arrays = []
    for entry in schema:
        if entry.name in flat:
            arrays.append(_as_list(flat[entry.name], entry.type))
        else:
            value = case.case_id if entry.name == "case_id" else case.attributes.get(entry.name)
            arrays.append(pa.array([value], type=entry.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def write_shard(path: Path, cases: Iterable[Case], specs: Sequence[FieldSpec]) -> None:
    """Write one shard; the same cases give the same bytes.

    Args:
        path: File to write; the caller chooses a temporary name and renames.
        cases: Cases in the order of the rows; consumed one by one.
        specs: Fields to store.
    """
    schema = shard_schema(specs)
    _write_rows(path, schema, (_as_table(case, specs, schema) for case in cases))


def point_shard_schema(points: PointSchema) -> pa.Schema:
    """Arrow schema of a shard of a point set.

    Args:
        points: Its schema.
    """
    names = [*points.coordinates, *points.field_columns]
    arrays = [pa.field(name, _flat_list(pa.float32()), nullable=False) for name in names]
    metadata = {"lpbf_schema_version": str(POINTS_VERSION)}
    return pa.schema([pa.field("case_id", pa.string(), nullable=False), *arrays], metadata=metadata)


def write_point_shard(
    path: Path, cases: Iterable[tuple[str, Mapping[str, NDArray[np.float32]]]], points: PointSchema
) -> None:
    """Write one shard of a point set; the same cases give the same bytes.

    Args:
        path: File to write; the caller chooses a temporary name and renames.
        cases: Case id, and column of a coordinate or field to values [N] float32; consumed one by one.
        points: Schema of the point set.
    """
    schema = point_shard_schema(points)

    def tables() -> Iterator[pa.Table]:
        for case_id, columns in cases:
            lists = [_as_list(columns[entry.name], entry.type) for entry in list(schema)[1:]]
            yield pa.Table.from_arrays([pa.array([case_id], pa.string()), *lists], schema=schema)

    _write_rows(path, schema, tables())


def _as_list(flat: NDArray[Any], kind: pa.DataType) -> pa.ListArray:
    values = pa.array(flat)
    return pa.ListArray.from_arrays(pa.array([0, len(values)], type=pa.int32()), values, type=kind)


def _write_rows(path: Path, schema: pa.Schema, rows: Iterable[pa.Table]) -> None:
    encodings = {
        f"{entry.name}.list.element": "DELTA_BINARY_PACKED" if entry.name == CELL_COLUMN else "BYTE_STREAM_SPLIT"
        for entry in schema
        if pa.types.is_list(entry.type)
    }
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        column_encoding=encodings,
        write_page_checksum=True,
        write_statistics=[entry.name for entry in schema if not pa.types.is_list(entry.type)],
        store_schema=True,
    ) as writer:
        for row in rows:
            writer.write_table(row, row_group_size=1)


def reason_of(error: Exception) -> str:
    """What Arrow says, in one line and without a full stop."""
    return " ".join(str(error).split()).rstrip(".")


def fields_among(columns: Collection[str]) -> tuple[FieldSpec, ...]:
    """Fields all of whose components are among some columns."""
    return tuple(spec for spec in FIELDS.values() if set(spec.columns) <= set(columns))


class ParquetShard:
    """Random access to the cases of one shard.

    Args:
        source: Path of the shard, or an open binary file (a remote one, say).
        name: Its name in error messages; its path by default.
        metadata: Its footer, where that was read before.

    Raises:
        StoreError: If it is missing, cut or altered.
    """

    def __init__(self, source: Path | IO[bytes], *, name: str | None = None, metadata: Any = None) -> None:
        self.name = name or str(source)
        try:
            self._file = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True, pre_buffer=False)
        except FileNotFoundError as error:
            raise StoreError(f"shard {self.name} is missing; run the build again, or fetch the file again") from error
        except (pa.ArrowException, OSError, MemoryError) as error:
            damage = f" can't be read ({reason_of(error)}); verify or build the data set again"
            raise read_error(f"shard {self.name}", error, damage) from error

    @cached_property
    def column_names(self) -> frozenset[str]:
        """Names of the columns."""
        return frozenset(self._file.schema_arrow.names)

    @cached_property
    def field_specs(self) -> tuple[FieldSpec, ...]:
        """Fields that the shard stores."""
        return fields_among(self.column_names)

    def __len__(self) -> int:
        """Number of cases."""
        return int(self._file.metadata.num_row_groups)

    def read_columns(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        """Columns of one case: numpy arrays (read-only, without a copy) for lists, Python scalars otherwise.

        Args:
            row: Row group.
            names: Columns to decode.

        Raises:
            SchemaError: If a column isn't stored.
            StoreError: If the shard is cut or altered.
        """
        if missing := [name for name in names if name not in self.column_names]:
            stored = ", ".join(spec.name for spec in self.field_specs)
            raise SchemaError(f"shard {self.name} has no column {missing[0]!r}; its fields are: {stored}")
        try:
            table = self._file.read_row_group(row, columns=list(names), use_threads=False)
        except (pa.ArrowException, OSError, IndexError, MemoryError) as error:
            damage = f": {reason_of(error)}; verify or build the data set again"
            raise read_error(f"shard {self.name}, row {row}", error, damage) from error
        return {name: _unwrap(table.column(name).chunk(0)) for name in names}

    def read_case(self, row: int, specs: Sequence[FieldSpec] | None = None) -> Case:
        """One case with the given fields (all stored ones by default).

        Raises:
            SchemaError: If a field isn't stored.
            StoreError: If the shard is cut or altered.
        """
        specs = self.field_specs if specs is None else specs
        attributes = [name for name in ATTRIBUTE_TYPES if name in self.column_names]
        arrays = [*POINT_COLUMNS, CELL_COLUMN, *(column for spec in specs for column in spec.columns)]
        return case_from_columns(self.read_columns(row, ["case_id", *attributes, *arrays]), specs)

    def case_id(self, row: int) -> str:
        """Id of a case, from the statistics of its row group where they have it."""
        column = self._file.metadata.row_group(row).column(self._case_id_column)
        statistics = column.statistics
        if statistics is not None and statistics.has_min_max and statistics.min == statistics.max:
            return str(statistics.min)
        return str(self.read_columns(row, ["case_id"])["case_id"])

    @cached_property
    def _case_id_column(self) -> int:
        return int(self._file.schema_arrow.names.index("case_id"))

    def read_arrays(self, row: int, selection: Selection) -> tuple[Arrays, NDArray[np.int32] | None]:
        """The selected arrays of one case but those made from its connectivity, and the connectivity if it is needed.

        Args:
            row: Row group.
            selection: What to read.

        Raises:
            SchemaError: If a field isn't stored.
            StoreError: If the shard is cut or altered.
        """
        columns = self.read_columns(row, columns_of(selection))
        arrays: Arrays = {"pos": interleave([columns[name] for name in selection.coordinates])}
        if selection.target:
            arrays["y"] = interleave([columns[name] for name in selection.target_columns])
        for spec in selection.fields:
            arrays[spec.name] = interleave([columns[name] for name in spec.columns])
        return arrays, columns[CELL_COLUMN].reshape(-1, 8) if selection.reads_cells else None


def columns_of(selection: Selection) -> list[str]:
    """Columns that a selection needs, each once."""
    names = [*selection.coordinates, *(column for spec in selection.fields for column in spec.columns)]
    names += selection.target_columns if selection.target else ()
    names += [CELL_COLUMN] if selection.reads_cells else []
    return list(dict.fromkeys(names))


def _unwrap(array: pa.Array) -> Any:
    if pa.types.is_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=True)
    return array[0].as_py()


def case_from_columns(columns: dict[str, Any], specs: Sequence[FieldSpec]) -> Case:
    """Put a case together from the columns of a row, the inverse of `case_columns`."""
    attributes: dict[str, Scalar] = {name: columns[name] for name in ATTRIBUTE_TYPES if name in columns}
    return Case(
        case_id=columns["case_id"],
        points=np.stack([columns[name] for name in POINT_COLUMNS], axis=1),
        cells=columns[CELL_COLUMN].reshape(-1, 8),
        fields={spec.name: join_components([columns[c] for c in spec.columns], spec) for spec in specs},
        attributes=attributes,
    )


def join_components(components: Sequence[NDArray[np.float32]], spec: FieldSpec) -> NDArray[np.float32]:
    """Components of a field as one array: [N] for a scalar, [N, components] otherwise."""
    return np.stack(components, axis=1) if spec.components else components[0]
