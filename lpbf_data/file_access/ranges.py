"""Byte ranges: few large requests instead of many small ones, and a file made of what they brought."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Final

Range = tuple[int, int]
"""First byte, and one past the last."""

REQUEST_COST: Final = 1 << 20
"""Bytes that arrive in the time of one more request (some 50 ms at 20 MB/s): a smaller gap is cheaper to fetch."""

MAX_REQUEST_BYTES: Final = 16 << 20
"""Bytes a request: a broken connection costs no more than this."""


def merge_ranges(ranges: Iterable[Range], gap: int = REQUEST_COST, max_bytes: int = MAX_REQUEST_BYTES) -> list[Range]:
    """Join ranges that lie close together.

    Args:
        ranges: Ranges in any order; they may overlap.
        gap: Bytes between two ranges that are fetched rather than spent a request on.
        max_bytes: Size from which on a result is not joined with the next one.

    Returns:
        Ranges in ascending order that cover all the given ones.

    >>> merge_ranges([(10, 20), (0, 5), (1000, 1001)], gap=100)
    [(0, 20), (1000, 1001)]
    """
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if merged and start - merged[-1][1] <= gap and stop - merged[-1][0] <= max_bytes:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        elif not merged or stop > merged[-1][1]:
            merged.append((max(start, merged[-1][1]) if merged else start, stop))
    return merged


class FetchedFile(io.RawIOBase):
    """A file of which only some ranges are there; reading beyond them is an error.

    Args:
        size: Size of the whole file.
        pieces: Start and content of each range that was fetched.
    """

    def __init__(self, size: int, pieces: Iterable[tuple[int, bytes]]) -> None:
        super().__init__()
        self._size = size
        self._pieces = sorted(pieces)
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; as for any file."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next bytes.

        Raises:
            OSError: If they weren't fetched.
        """
        stop = self._size if size < 0 else min(self._position + size, self._size)
        data = self._slice(self._position, stop)
        self._position = max(self._position, stop)
        return data

    def _slice(self, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        for begin, content in self._pieces:
            if begin <= start and stop <= begin + len(content):
                return content[start - begin : stop - begin]
        raise OSError(f"bytes {start} to {stop} weren't fetched")
