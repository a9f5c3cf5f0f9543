"""Where the members of an archive lie, written down once.

The cases of a shard come from many archives. Reading an archive's own directory, tens of thousands of members, takes
seconds each time; a case's own rows of this index, an Arrow file in the workspace, take a millisecond.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from lpbf_data.durable import write_durably
from pipelines.sources.archive import Member

_SCHEMA: Final = pa.schema(
    [
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("packed_size", pa.int64()),
        ("size", pa.int64()),
        ("crc32", pa.uint32()),
        ("method", pa.uint16()),
        ("flags", pa.uint16()),
    ]
)


@dataclass(frozen=True, slots=True)
class IndexRange:
    """The rows of one case.

    Attributes:
        path: The index.
        first: Number of its first row.
        count: How many there are.
    """

    path: str
    first: int
    count: int


def write_index(path: Path, cases: Iterable[Mapping[str, Member]], mark: tuple[int, str]) -> list[IndexRange]:
    """Write the index of an archive: where the members of all its cases lie.

    Args:
        path: File to write.
        cases: Of each case, its members by their names within the case.
        mark: Size and version of the archive, as `size_and_version` gives them.

    Returns:
        Where each case lies, in their order.
    """
    rows: list[dict[str, object]] = []
    ranges = []
    for members in cases:
        ranges.append(IndexRange(str(path), len(rows), len(members)))
        rows += [{"name": name, **dataclasses.asdict(member)} for name, member in members.items()]
    schema = _SCHEMA.with_metadata({"archive": _text(mark)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    write_durably(path, sink.getvalue().to_pybytes())
    return ranges


def read_members(rows: IndexRange, mark: tuple[int, str]) -> dict[str, Member] | None:
    """The members of a case.

    Args:
        rows: Where they are written down.
        mark: Size and version that the archive has now.

    Returns:
        Members by their names within the case; None when the index is gone or belongs to another state of the archive.
    """
    try:
        if rows.first < 0 or rows.count < 1:
            return None
        with pa.memory_map(rows.path) as file:
            table = pa.ipc.open_file(file).read_all()
            if (table.schema.metadata or {}).get(b"archive") != _text(mark).encode():
                return None
            own = table.slice(rows.first, rows.count)
            own.validate(full=True)
            members = {row.pop("name"): Member(**row) for row in own.to_pylist()}
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    return members if len(members) == rows.count else None


def _text(mark: tuple[int, str]) -> str:
    return f"{mark[0]} {mark[1]}"
