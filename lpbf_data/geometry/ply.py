"""PLY files, text and binary of both byte orders: the triangles of their faces.

The header describes elements (vertices, faces, others) whose properties are numbers, or lists with their length before
them; elements come in any order, properties too, and faces may have any number of corners (Turk, The PLY Polygon File
Format, 1994).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.face_counts import refuse_too_many
from lpbf_data.geometry.polygon_text import checked_number, open_text
from lpbf_data.remarks import Remark, Treatment

_TYPES: Final = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS: Final = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LISTS: Final = ("vertex_indices", "vertex_index")
_MAX_HEADER_BYTES: Final = 2**16
_AT_ONCE: Final = 10_000  # lines that are turned into numbers together

Row = dict[str, Any]


@dataclass
class _Element:
    """Elements of one kind; properties are (name, type, type of the length of a list or nothing)."""

    name: str
    count: int
    properties: list[tuple[str, str, str]] = field(default_factory=list)


class _Rows(Protocol):
    """Reads the values of elements, which have to be asked for in the order of the file."""

    def columns(self, element: _Element, names: tuple[str, ...]) -> NDArray[np.float64]: ...

    def lists(self, element: _Element, name: str) -> Iterator[NDArray[np.int64]]: ...

    def rest(self) -> int: ...


def read_ply(path: Path) -> tuple[NDArray[np.float64], list[Remark]]:
    """Read the faces of a PLY file.

    Args:
        path: The file.

    Returns:
        Corners of their triangles, [T, 3, 3], and what was left out.

    Raises:
        GeometryError: If it is cut short, or holds no faces, or something that can't be read.
        OSError: If it can't be read.
    """
    order, elements, start = _read_header(path)
    rows: _Rows = _Binary(path.read_bytes(), start, order) if order else _Text(path)
    vertices, found_triangles = np.empty((0, 3)), array("q")
    for element in elements:
        listed = next((name for name, _, length in element.properties if length and name in _LISTS), "")
        if element.name == "face" and listed:
            for polygons in rows.lists(element, listed):
                found_triangles.frombytes(_fans(polygons).tobytes())
                refuse_too_many(len(found_triangles) // 3)
        else:
            found = rows.columns(element, ("x", "y", "z") if element.name == "vertex" else ())
            vertices = found if element.name == "vertex" else vertices
    if not found_triangles:
        others = ", ".join(element.name for element in elements if element.name != "vertex") or "vertices alone"
        raise GeometryError(f"it holds no faces ({others}), and so no surface")
    triangles = np.frombuffer(found_triangles, np.int64).reshape(-1, 3)
    if triangles.min() < 0 or triangles.max() >= len(vertices):
        raise GeometryError("a face names a vertex that isn't there")
    corners: NDArray[np.float64] = vertices[triangles]
    remarks = []
    if rest := rows.rest():
        sentence = "what follows the last element of a PLY file was left out"
        unit = "bytes" if order else "lines"
        remarks = [Remark(Treatment.LEFT_OUT, "ply_extra", sentence, 1, (f"{path.name}: {rest:,} {unit}",))]
    return corners, remarks


def _fans(polygons: NDArray[np.int64]) -> NDArray[np.int64]:
    """Triangles of polygons of one number of corners, [P, corners]."""
    if polygons.shape[1] < 3:
        raise GeometryError(f"it has a face of {polygons.shape[1]} corners; a face needs three")
    fan = [polygons[:, [0, second, second + 1]] for second in range(1, polygons.shape[1] - 1)]
    return np.concatenate(fan)


def _read_header(path: Path) -> tuple[str, list[_Element], int]:
    """Byte order ("" for text), elements, and where they begin."""
    with path.open("rb") as stream:
        head = stream.read(_MAX_HEADER_BYTES)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        with open_text(path) as stream_of_text:
            head = stream_of_text.read(_MAX_HEADER_BYTES).encode("ascii", "replace")
    head = head.removeprefix(b"\xef\xbb\xbf")
    mark = head.find(b"end_header")
    if not head.startswith(b"ply") or mark < 0:
        raise GeometryError("it is no PLY file: a header from the word ply to end_header is missing")
    start = mark + len(b"end_header")
    start += 2 if head[start : start + 2] == b"\r\n" else 1
    order, elements = None, list[_Element]()
    try:
        for line in head[:mark].decode("ascii", "replace").splitlines():
            words = line.split()
            if words[:1] == ["format"]:
                order = _ORDERS[words[1]]
            elif words[:1] == ["element"]:
                elements.append(_Element(words[1], int(words[2])))
            elif words[:2] == ["property", "list"]:
                elements[-1].properties.append((words[4], _TYPES[words[3]], _TYPES[words[2]]))
            elif words[:1] == ["property"]:
                elements[-1].properties.append((words[2], _TYPES[words[1]], ""))
    except (KeyError, IndexError, ValueError) as error:
        raise GeometryError(f"its header has a line that can't be read: {line[:60]!r}") from error
    for element in elements:
        names = [name for name, _, _ in element.properties]
        if len(set(names)) < len(names):
            raise GeometryError(f"two properties of {element.name} have one name")
    if order is None or any(element.count < 0 or not element.properties for element in elements):
        raise GeometryError("its header names no format, or an element without properties")
    return order, elements, start


def _cut_short(element: _Element, there: int) -> GeometryError:
    return GeometryError(
        f"the file is cut short: it says that it holds {element.count:,} of {element.name}, and {there:,} are there; "
        "save or copy it again"
    )


class _Binary:
    def __init__(self, content: bytes, start: int, order: str) -> None:
        self.content, self.position, self.order = content, start, order

    def rest(self) -> int:
        return len(self.content) - self.position

    def columns(self, element: _Element, names: tuple[str, ...]) -> NDArray[np.float64]:
        if any(length for _, _, length in element.properties):
            for _ in self._each(element, ""):
                pass
            return np.empty((0, 3))
        kind = np.dtype([(name, self.order + number) for name, number, _ in element.properties])
        if element.count * kind.itemsize > self.rest():
            raise _cut_short(element, self.rest() // kind.itemsize)
        table = np.frombuffer(self.content, kind, element.count, self.position)
        self.position += element.count * kind.itemsize
        return _columns_of(table, kind.names or (), names)

    def lists(self, element: _Element, name: str) -> Iterator[NDArray[np.int64]]:
        """Lists of one length together where all are alike, else one by one."""
        first = next(self._each(element, "", peek=True), None)
        if first is None:
            return
        parts: list[tuple[Any, ...]] = []
        for (label, number, length), value in zip(element.properties, first.values(), strict=True):
            if length:
                parts.append((f"{label} length", self.order + length))
            parts.append((label, self.order + number, (len(value),)) if length else (label, self.order + number))
        kind = np.dtype(parts)
        if element.count * kind.itemsize <= self.rest():
            table = np.frombuffer(self.content, kind, element.count, self.position)
            lists = [label for label, _, length in element.properties if length]
            if all((table[f"{label} length"] == len(first[label])).all() for label in lists):
                self.position += element.count * kind.itemsize
                yield table[name].astype(np.int64)
                return
        for row in self._each(element, name):
            yield row[name].astype(np.int64)[None]

    def _each(self, element: _Element, wanted: str, *, peek: bool = False) -> Iterator[Row]:
        """Rows one by one, with the list that is wanted; with `peek` the whole first row, without moving on."""
        begin = self.position
        kinds = [
            (name, np.dtype(self.order + number), np.dtype(self.order + length) if length else None)
            for name, number, length in element.properties
        ]
        for done in range(element.count):
            row: Row = {}
            for name, kind, length in kinds:
                count = 1
                if length is not None:
                    if self.rest() < length.itemsize:
                        raise _cut_short(element, done)
                    count = int(np.frombuffer(self.content, length, 1, self.position)[0])
                    self.position += length.itemsize
                if not 0 <= count * kind.itemsize <= self.rest():
                    raise _cut_short(element, done)
                if peek or name == wanted:
                    row[name] = np.frombuffer(self.content, kind, count, self.position)
                self.position += count * kind.itemsize
            if peek:
                self.position = begin
                yield row
                return
            yield row


class _Text:
    def __init__(self, path: Path) -> None:
        self.lines = _words_of(path)
        for words in self.lines:
            if words[0] == "end_header":
                break

    def rest(self) -> int:
        return sum(1 for _ in self.lines)

    def columns(self, element: _Element, names: tuple[str, ...]) -> NDArray[np.float64]:
        labels = tuple(name for name, _, _ in element.properties)
        table = [_numbers(words, element)[: len(labels)] for words in self._rows(element)]
        if not names:
            return np.empty((0, 3))
        if any(len(row) < len(labels) for row in table):
            raise GeometryError(f"a line of {element.name} holds fewer numbers than the header says")
        return _columns_of(np.array(table, np.float64).reshape(-1, len(labels)), labels, names)

    def lists(self, element: _Element, name: str) -> Iterator[NDArray[np.int64]]:
        rows = self._rows(element)
        while block := list(islice(rows, _AT_ONCE)):
            width = len(block[0])
            alone = len(element.properties) == 1 and block[0][0] == str(width - 1)
            if alone and all(len(words) == width and words[0] == block[0][0] for words in block):
                numbers = _numbers([word for words in block for word in words], element)
                yield _whole(numbers).reshape(-1, width)[:, 1:]
            else:
                for words in block:
                    yield self._list(words, element, name)

    def _list(self, words: list[str], element: _Element, name: str) -> NDArray[np.int64]:
        """One list of a line, [1, length]."""
        numbers, position = _numbers(words, element), 0
        for label, _, length in element.properties:
            count = int(numbers[position]) if length and position < len(numbers) else 1
            begin = position + bool(length)
            position = begin + count
            if count < 0 or position > len(numbers):
                break
            if label == name:
                return _whole(numbers[begin:position])[None]
        raise GeometryError(f"a line of {element.name} isn't what the header says: {' '.join(words)[:40]!r}")

    def _rows(self, element: _Element) -> Iterator[list[str]]:
        for done in range(element.count):
            words = next(self.lines, None)
            if words is None:
                raise _cut_short(element, done)
            yield words


def _words_of(path: Path) -> Iterator[list[str]]:
    with open_text(path) as stream:
        yield from (words for words in map(str.split, stream) if words)


def _numbers(words: list[str], element: _Element) -> list[float]:
    try:
        return [float(checked_number(word)) for word in words]
    except ValueError:
        raise GeometryError(f"a line of {element.name} holds what is no number: {' '.join(words)[:60]!r}") from None


def _whole(numbers: list[float]) -> NDArray[np.int64]:
    found = np.array(numbers, np.float64)
    if not (np.abs(found) < 2**31).all():
        raise GeometryError("a face names a vertex that isn't there")
    return found.astype(np.int64)


def _columns_of(table: NDArray[Any], labels: tuple[str, ...], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Columns of a table, [rows, names]."""
    if missing := [name for name in names if name not in labels]:
        raise GeometryError(f"its vertices have no {missing[0]}")
    if table.dtype.names:
        found = [table[name].astype(np.float64) for name in names]
    else:
        found = [table[:, labels.index(name)] for name in names]
    return np.stack(found, axis=1) if names else np.empty((0, 3))
