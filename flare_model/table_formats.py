"""Tables: on the screen by rich, and on disk as Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def screen_table() -> Table:
    """An empty table with a line under its head, narrow enough for terminals of 80 columns."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def parquet_bytes(columns: Mapping[str, Sequence[object]]) -> bytes:
    """Columns as a Parquet file, compressed by zstd.

    Args:
        columns: Name to values, all of one length.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def format_number(value: float | None, form: str = ".4f") -> str:
    """A number by a format specification; a dash for None."""
    return "–" if value is None else format(value, form)
