"""Remote Parquet shards: the footer once, then the pages of the selected columns, in few large requests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import IO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lpbf_data.cached_property import cached_property
from lpbf_data.case.schema import FieldSpec
from lpbf_data.errors import StoreError
from lpbf_data.file_access.folder import Files
from lpbf_data.file_access.ranges import FetchedFile, Range, merge_ranges
from lpbf_data.reading.footer_cache import FooterCache
from lpbf_data.stores.parquet import ParquetShard, fields_among, reason_of

_TRAILER: Final = 8  # length of the footer, and the magic number
_FOOTER_BYTES_PER_ROW: Final = 5_000
_MIN_FOOTER_BYTES: Final = 65_536  # what Arrow reads at once


class RemoteShard:
    """One remote shard, read by byte ranges.

    Args:
        files: The files of the data set.
        relative: Name of the shard among them.
        size: Its size, as the manifest has it.
        rows: Its number of rows, for a guess of the size of its footer.
        footers: Cache of footers, if any.
        checksum: Its SHA-256, as the manifest has it: a shard that is built anew can have name and size of the old one.

    Raises:
        StoreError: If it can't be read.
    """

    def __init__(
        self,
        files: Files,
        relative: str,
        size: int,
        rows: int,
        footers: FooterCache | None = None,
        checksum: str | None = None,
    ) -> None:
        self.name = f"{files.identity}/{relative}"
        self._files = files
        self._relative = relative
        self._size = size
        key = f"{self.name}\0{size}\0{checksum or ''}"
        tail = None if footers is None else footers.get(key)
        if footers is not None and tail is not None:
            with contextlib.suppress(StoreError):
                self._parse_footer(tail)
                return
            footers.drop(key)
        tail = self._read_footer(min(_MIN_FOOTER_BYTES + _FOOTER_BYTES_PER_ROW * rows, size))
        self._parse_footer(tail)
        if footers is not None:
            footers.put(key, tail)

    def _parse_footer(self, tail: bytes) -> None:
        """Read the footer from the end of the file."""
        self._tail = (self._size - len(tail), tail)
        try:
            self.metadata = pq.read_metadata(cast("IO[bytes]", FetchedFile(self._size, [self._tail])))
        except (pa.ArrowException, OSError) as error:
            reason = reason_of(error)
            raise StoreError(f"the footer of shard {self.name} can't be read: {reason}; publish it again") from error

    def _read_footer(self, guess: int) -> bytes:
        """The end of the file from the footer on, or some more of it."""
        tail = self._files.read_range(self._relative, self._size - guess, self._size)
        needed = int.from_bytes(tail[-_TRAILER:-4], "little") + _TRAILER
        if tail[-4:] != b"PAR1" or needed > self._size:
            raise StoreError(f"shard {self.name} doesn't end as a Parquet file; it is cut or altered: publish it again")
        return tail if needed <= guess else self._files.read_range(self._relative, self._size - needed, self._size)

    def __len__(self) -> int:
        """Number of cases."""
        return int(self.metadata.num_row_groups)

    @cached_property
    def field_specs(self) -> tuple[FieldSpec, ...]:
        """Fields that the shard stores."""
        return fields_among(self.metadata.schema.to_arrow_schema().names)

    def has_row(self, row: int) -> bool:
        """Whether there is such a row: manifests can name others."""
        return 0 <= row < len(self)

    def row_bytes(self, row: int) -> int:
        """Size of a row as it is stored, with all its columns: the gaps between those wanted are fetched too."""
        group = self.metadata.row_group(row)
        return sum(int(group.column(number).total_compressed_size) for number in range(group.num_columns))

    def _ranges(self, rows: Sequence[int], columns: Sequence[str]) -> Iterator[Range]:
        """Byte ranges of the pages of some columns of some row groups."""
        wanted = set(columns)
        for row in rows:
            group = self.metadata.row_group(row)
            for number in range(group.num_columns):
                chunk = group.column(number)
                if chunk.path_in_schema.partition(".")[0] in wanted:
                    start = chunk.dictionary_page_offset or chunk.data_page_offset
                    yield int(start), int(start + chunk.total_compressed_size)

    def fetch(self, rows: Sequence[int], columns: Sequence[str]) -> ParquetShard:
        """Some rows and columns, as a shard that holds nothing else.

        Args:
            rows: Rows to fetch.
            columns: Columns to fetch.

        Raises:
            StoreError: If they can't be fetched, or lie outside the file.
        """
        if outside := [row for row in rows if not self.has_row(row)]:
            raise StoreError(f"shard {self.name} has {len(self)} rows, the manifest says it has row {outside[0]}")
        ranges = merge_ranges(self._ranges(rows, columns))
        if ranges and (ranges[0][0] < 0 or ranges[-1][1] > self._size):
            raise StoreError(f"shard {self.name}: its footer points outside the file; publish it again")
        pieces = [(start, self._files.read_range(self._relative, start, stop)) for start, stop in ranges]
        file = cast("IO[bytes]", FetchedFile(self._size, [*pieces, self._tail]))
        return ParquetShard(file, name=self.name, metadata=self.metadata)
