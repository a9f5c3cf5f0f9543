"""Predictions of a model for the cases of a data set: one Parquet file, one row per case, one row group per row.

Each predicted column has the name of the column that it predicts (say `displacement_z`) and the order of the points of
the case, so truth and prediction are laid side by side without a key. The metadata say which data set it was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lpbf_data.case.schema import FIELDS
from lpbf_data.durable import write_durably
from lpbf_data.errors import SchemaError, StoreError
from lpbf_data.os_errors import read_error

_VERSION: Final = b"1"
_COLUMNS: Final = {column: spec for spec in FIELDS.values() if spec.location == "point" for column in spec.columns}


def predictions_schema(
    columns: Sequence[str], manifest_sha256: str, model: str = "", known: Collection[str] = _COLUMNS
) -> pa.Schema:
    """Arrow schema of a file of predictions.

    Args:
        columns: Columns that are predicted.
        manifest_sha256: SHA-256 of the manifest of the data set.
        model: What predicted, for people.
        known: Columns of fields at points; those of printed parts by default.

    Raises:
        SchemaError: If a column is none of a field at points.
    """
    if unknown := [name for name in columns if name not in known]:
        raise SchemaError(f"{unknown[0]!r} is no column of a field at points; known are: {', '.join(known)}")
    values = pa.list_(pa.field("element", pa.float32(), nullable=False))
    fields = [pa.field("case_id", pa.string(), nullable=False)]
    fields += [pa.field(name, values, nullable=False) for name in columns]
    metadata = {"lpbf_predictions": _VERSION, "manifest_sha256": manifest_sha256, "model": model}
    return pa.schema(fields, metadata=metadata)


def write_predictions(
    path: Path,
    predictions: Iterable[tuple[str, Mapping[str, NDArray[np.float32]]]],
    columns: Sequence[str],
    manifest_sha256: str,
    model: str = "",
    known: Collection[str] = _COLUMNS,
) -> None:
    """Write the predictions of a model; the file appears whole or not at all.

    Args:
        path: File to write.
        predictions: Case id, and column to values [N] in the order of the case's points; consumed one by one.
        columns: Columns that are predicted.
        manifest_sha256: SHA-256 of the manifest of the data set.
        model: What predicted, for people.
        known: Columns of fields at points; those of printed parts by default.
    """
    schema = predictions_schema(columns, manifest_sha256, model, known)
    sink = pa.BufferOutputStream()
    encodings = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in columns}
    with pq.ParquetWriter(
        sink, schema, compression="zstd", use_dictionary=False, column_encoding=encodings, write_page_checksum=True
    ) as writer:
        for case_id, values in predictions:
            arrays = [pa.array([case_id], type=pa.string())]
            for entry in list(schema)[1:]:
                flat = pa.array(np.ascontiguousarray(values[entry.name], dtype=np.float32))
                arrays.append(pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat, type=entry.type))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=1)
    write_durably(path, sink.getvalue().to_pybytes())


class PredictionFile:
    """Predictions by case.

    Args:
        path: A file that `write_predictions` wrote.

    Raises:
        StoreError: If it can't be read.
        SchemaError: If it isn't a file of predictions, or one of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            table = self._file.read(columns=["case_id"])
        except FileNotFoundError as error:
            raise StoreError(f"{path} doesn't exist") from error
        except (pa.ArrowException, OSError, KeyError) as error:
            raise read_error(str(path), error, f" can't be read as predictions ({error}); predict again") from error
        schema = self._file.schema_arrow
        metadata = schema.metadata or {}
        if metadata.get(b"lpbf_predictions") != _VERSION or "case_id" not in schema.names:
            raise SchemaError(f"{path} isn't a file of predictions that this package reads; predict again")
        self.columns: tuple[str, ...] = tuple(name for name in schema.names if name in _COLUMNS)
        if not self.columns or self._file.metadata.num_row_groups != table.num_rows:
            raise SchemaError(f"{path} has no predicted column, or not one row per row group; predict again")
        self.manifest_sha256 = metadata.get(b"manifest_sha256", b"").decode()
        self.model = metadata.get(b"model", b"").decode()
        self._rows = {case_id: row for row, case_id in enumerate(table["case_id"].to_pylist())}
        if len(self._rows) != table.num_rows:
            raise SchemaError(f"{path} predicts a case twice; predict again")

    @property
    def case_ids(self) -> frozenset[str]:
        """Cases that are predicted."""
        return frozenset(self._rows)

    def read(self, case_id: str, num_points: int) -> dict[str, NDArray[np.float32]]:
        """Predicted columns of one case.

        Args:
            case_id: The case.
            num_points: How many points it has.

        Returns:
            Column name to values, [N] float32.

        Raises:
            StoreError: If it can't be read, has another number of points, or a value that isn't finite.
        """
        row = self._rows[case_id]
        try:
            table = self._file.read_row_group(row, columns=list(self.columns), use_threads=False)
            found = {
                name: np.asarray(table[name].chunk(0).flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
                for name in self.columns
            }
        except (pa.ArrowException, OSError, AttributeError, ValueError) as error:
            raise read_error(f"{self.path}, case {case_id}", error, f": {error}; predict again") from error
        for name, values in found.items():
            if len(values) != num_points:
                raise StoreError(
                    f"{self.path}, case {case_id}: {name} has {len(values):,} values, the case {num_points:,} points; "
                    "it was predicted for another data set"
                )
            if not np.isfinite(values).all():
                raise StoreError(f"{self.path}, case {case_id}: {name} has values that aren't finite numbers")
        return found
