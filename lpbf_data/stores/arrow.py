"""Arrays of one case in an Arrow IPC file, memory-mapped where they are read.

One row; a column holds one array as a list of its rows, `list<fixed_size_list<float32>[3]>` for points. Anything that
reads Arrow opens it: `pyarrow.ipc.open_file`, polars, `datasets`. The metadata of the schema says what the arrays were
decoded from, and type, shape and checksum of each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lpbf_data.stores.selection import Arrays

_READING: Final = pa.ipc.IpcReadOptions(use_threads=False)
_STAMP: Final = b"stamp"
_ARRAYS: Final = b"arrays"


def write_arrays(path: Path, arrays: Arrays, stamp: str) -> None:
    """Write a file.

    Args:
        path: Where to; the caller chooses a temporary name and renames.
        arrays: Name to values, [rows, columns].
        stamp: State of the files that they were decoded from, any text.

    Raises:
        OSError: If it can't be written.
    """
    contiguous = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    described = {name: _describe(values) for name, values in contiguous.items()}
    columns = [_as_column(values) for values in contiguous.values()]
    schema = pa.schema(
        [pa.field(name, column.type, nullable=False) for name, column in zip(contiguous, columns, strict=True)],
        metadata={_STAMP: stamp, _ARRAYS: json.dumps(described)},
    )
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


def _as_column(values: NDArray[Any]) -> pa.ListArray:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), rows)


def map_arrays(path: Path, stamp: str) -> Arrays:
    """The arrays of a file, mapped and read-only, after comparing their checksums.

    Args:
        path: The file.
        stamp: The stamp that the file must have.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is cut, altered or out of date.
    """
    try:
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file, options=_READING).get_batch(0)
        batch.validate()
        notes = batch.schema.metadata
        if notes[_STAMP].decode() != stamp:
            raise ValueError("out of date")
        described = json.loads(notes[_ARRAYS])
        arrays = {name: _as_array(batch.column(name)) for name in batch.schema.names}
    except (pa.ArrowException, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"altered: {error}") from error
    if {name: _describe(values) for name, values in arrays.items()} != described:
        raise ValueError("altered")
    return arrays


def _as_array(column: pa.ListArray) -> NDArray[Any]:
    rows = column.values
    values: NDArray[Any] = rows.values.to_numpy(zero_copy_only=True)
    return values.reshape(len(rows), rows.type.list_size)


def _describe(values: NDArray[Any]) -> list[Any]:
    """Type, shape and checksum."""
    return [values.dtype.str, *values.shape, int(google_crc32c.value(values.reshape(-1).view(np.uint8)))]
