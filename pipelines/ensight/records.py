"""How EnSight Gold stores lines and numbers: binary records and text, each with its reader and its writer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import CaseError, FailureReason
from pipelines.ensight.numbers import parse_number, with_usual_exponents

ByteOrder = Literal["<", ">"]

RECORD: Final = 80
_MAX_LINE: Final = 4096
_TEXT_PIECE: Final = 1 << 20  # bytes of text that are split into tokens at a time


class Encoding(StrEnum):
    """How numbers and lines are stored."""

    BINARY = "binary"
    """As NetFabb writes it: the header says "Fortran Binary", but no record lengths follow."""
    C_BINARY = "c_binary"
    ASCII = "ascii"


@dataclass(frozen=True, slots=True)
class Dialect:
    """Encoding and byte order, found in a geometry file and valid for the variables on it."""

    encoding: Encoding = Encoding.BINARY
    byte_order: ByteOrder = "<"


class Reader(Protocol):
    """What the two readers, of binary records and of text lines, have in common.

    Every method but the last two moves `position` on, and raises `CaseError` with the byte at fault when the file is
    cut or malformed there; `what` says what was expected.
    """

    path: str
    position: int
    byte_order: ByteOrder

    def line(self, what: str) -> str:
        """A line of text, without blanks around it."""
        ...

    def part_number(self) -> int:
        """The number of the part; the binary reader learns the byte order from it."""
        ...

    def count(self, what: str) -> int:
        """A number of nodes or elements, not negative."""
        ...

    def integers(self, count: int, what: str, per_line: int = 1) -> NDArray[np.int32]:
        """So many integers, in text so many to a line."""
        ...

    def floats(self, count: int, what: str, per_line: int = 1) -> NDArray[np.float32]:
        """So many numbers, in text so many to a line."""
        ...

    def at_end(self) -> bool:
        """Whether nothing but blanks is left."""
        ...

    def offset_of(self, start: int, index: int, per_line: int = 1) -> int:
        """Byte of the number `index` of a block that began at `start`."""
        ...


class BinaryReader:
    """Records of 80 characters, 4-byte integers and floats."""

    def __init__(self, data: bytes, path: str, byte_order: ByteOrder = "<") -> None:
        self.data, self.path, self.position, self.byte_order = data, path, 0, byte_order

    def _take(self, size: int, what: str) -> int:
        start, left = self.position, len(self.data) - self.position
        if size > left:
            detail = f"expected {size:,} bytes of {what}, the file ends after {left:,}"
            raise CaseError(FailureReason.TRUNCATED_FILE, detail, path=self.path, offset=start)
        self.position += size
        return start

    def line(self, what: str) -> str:
        start = self._take(RECORD, what)
        raw = self.data[start : self.position].split(b"\0", 1)[0]
        try:
            return raw.decode("ascii").strip()
        except UnicodeDecodeError as error:
            detail = f"expected a line of text ({what})"
            raise CaseError(FailureReason.MALFORMED_FILE, detail, path=self.path, offset=start) from error

    def part_number(self) -> int:
        """Read the part number and learn the byte order from it: the smaller reading is the right one."""
        start = self._take(4, "part number")
        raw = self.data[start : self.position]
        little, big = int.from_bytes(raw, "little"), int.from_bytes(raw, "big")
        self.byte_order = "<" if little <= big else ">"
        return min(little, big)

    def count(self, what: str) -> int:
        start = self._take(4, f"number of {what}")
        value = int(np.frombuffer(self.data, self.byte_order + "i4", 1, start)[0])
        if value < 0:
            detail = f"the number of {what} is {value}"
            raise CaseError(FailureReason.MALFORMED_FILE, detail, path=self.path, offset=start)
        return value

    def integers(self, count: int, what: str, per_line: int = 1) -> NDArray[np.int32]:
        start = self._take(4 * count, what)
        return np.frombuffer(self.data, self.byte_order + "i4", count, start).astype(np.int32, copy=False)

    def floats(self, count: int, what: str, per_line: int = 1) -> NDArray[np.float32]:
        start = self._take(4 * count, what)
        return np.frombuffer(self.data, self.byte_order + "f4", count, start).astype(np.float32, copy=False)

    def at_end(self) -> bool:
        return self.position == len(self.data)

    def offset_of(self, start: int, index: int, per_line: int = 1) -> int:
        return start + 4 * index


class TextReader:
    """Lines of text with numbers in columns."""

    byte_order: ByteOrder = "<"
    """Text has none; this is what its numbers get where they are written in binary."""

    def __init__(self, data: bytes, path: str) -> None:
        if b"\n" not in data:  # old Macs end lines by a return alone
            data = data.replace(b"\r", b"\n")
        self.data, self.path, self.position = data, path, 0

    def line(self, what: str) -> str:
        start = self.position
        end = self.data.find(b"\n", start, start + _MAX_LINE)
        if end < 0 and start + _MAX_LINE < len(self.data):
            detail = f"expected a line of text ({what}), found {_MAX_LINE} bytes without an end of line"
            raise CaseError(FailureReason.MALFORMED_FILE, detail, path=self.path, offset=start)
        if end < 0:  # no line that is read here is the last of its file
            detail = f"expected a line of text ({what}), the file ends"
            raise CaseError(FailureReason.TRUNCATED_FILE, detail, path=self.path, offset=start)
        self.position = end + 1
        return self.data[start:end].decode("ascii", "replace").strip()

    def part_number(self) -> int:
        return self.count("the part")

    def count(self, what: str) -> int:
        start = self.position
        text = self.line(f"number of {what}")
        if not text.isdigit() or len(text) > 18:
            detail = f"the number of {what} is {text[:40]!r}"
            raise CaseError(FailureReason.MALFORMED_FILE, detail, path=self.path, offset=start)
        return int(text)

    def _numbers(self, count: int, what: str, per_line: int, dtype: str) -> NDArray[Any]:
        if 2 * count > len(self.data) - self.position + 1:  # each takes a digit and a separator
            detail = f"expected {count:,} values of {what}, {len(self.data) - self.position:,} bytes are left"
            raise CaseError(FailureReason.TRUNCATED_FILE, detail, path=self.path, offset=self.position)
        values = np.empty(count, dtype=dtype)
        done = 0
        while done < count:
            piece = self.data[self.position : self.position + _TEXT_PIECE]
            ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n"))
            if len(ends) == 0:
                self._refuse_value(piece[:40], what, piece_is_last=len(piece) < _TEXT_PIECE)
            lines = min(len(ends), -(-(count - done) // per_line))
            expected = min(lines * per_line, count - done)
            taken = piece[: int(ends[lines - 1]) + 1]
            tokens = taken.split()
            if len(tokens) != expected or b"_" in taken:  # which Python skips between digits
                self._refuse_lines(piece, ends[:lines], per_line, what)
            try:
                values[done : done + expected] = _values_of(tokens, dtype)
            except (ValueError, OverflowError):
                self._refuse_lines(piece, ends[:lines], per_line, what)
            done += expected
            self.position += int(ends[lines - 1]) + 1
        return values

    def _refuse_value(self, text: bytes, what: str, *, piece_is_last: bool) -> None:
        reason = FailureReason.TRUNCATED_FILE if piece_is_last else FailureReason.MALFORMED_FILE
        detail = f"expected {what}, found {text.decode('ascii', 'replace')!r} and no end of line"
        raise CaseError(reason, detail, path=self.path, offset=self.position)

    def _refuse_lines(self, piece: bytes, ends: NDArray[np.intp], per_line: int, what: str) -> None:
        """Name the first line that doesn't hold `per_line` numbers."""
        start = 0
        for number, end in enumerate(ends.tolist()):
            text = piece[start:end]
            tokens = text.split()
            full = len(tokens) == per_line or (number == len(ends) - 1 and 0 < len(tokens) < per_line)
            if not full or not all(map(_is_number, tokens)):
                shown = text.decode("ascii", "replace").strip()[:60]
                detail = f"expected {per_line} number{'s' * (per_line > 1)} of {what}, found {shown!r}"
                raise CaseError(FailureReason.MALFORMED_FILE, detail, path=self.path, offset=self.position + start)
            start = end + 1
        detail = f"a number of {what} is out of range"
        raise CaseError(FailureReason.MALFORMED_FILE, detail, path=self.path, offset=self.position)

    def integers(self, count: int, what: str, per_line: int = 1) -> NDArray[np.int32]:
        wide: NDArray[np.int64] = self._numbers(count, what, per_line, "i8")
        return np.clip(wide, -(2**31), 2**31 - 1).astype(np.int32)

    def floats(self, count: int, what: str, per_line: int = 1) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            values: NDArray[np.float32] = self._numbers(count, what, per_line, "f8").astype(np.float32)
        return values

    def at_end(self) -> bool:
        return not self.data[self.position : self.position + 4096].strip() and self.position + 4096 >= len(self.data)

    def offset_of(self, start: int, index: int, per_line: int = 1) -> int:
        position = start
        for _ in range(index // per_line):
            position = self.data.find(b"\n", position) + 1
        return position


def _values_of(tokens: list[bytes], dtype: str) -> NDArray[Any]:
    """Numbers from text; floats also as Fortran prints them.

    Raises:
        ValueError: If one is no number.
        OverflowError: If a whole number is out of range.
    """
    try:
        return np.array(tokens).astype(dtype)
    except ValueError:
        if dtype != "f8":
            raise
        return np.array(with_usual_exponents(b" ".join(tokens)).split()).astype(dtype)


def _is_number(token: bytes) -> bool:
    try:
        parse_number(token.decode("ascii", "replace"))
    except ValueError:
        return False
    return True


def record(text: str) -> bytes:
    """A line of text as a binary record."""
    return text.encode("ascii", "replace")[:RECORD].ljust(RECORD)


def integer(order: ByteOrder, value: int) -> bytes:
    """A 4-byte integer."""
    return np.array([value], dtype=order + "i4").tobytes()


def float_lines(values: NDArray[np.float32]) -> str:
    """Numbers as text, one to a line, in the order of memory."""
    flat = values.ravel().tolist()
    return ("%13.6E\n" * len(flat)) % tuple(flat)
