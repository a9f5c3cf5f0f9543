"""Arrays of numbers in MATLAB's files of version 5 to 7, read with every length looked at.

(MathWorks, "MAT-File Format", level 5.) SciPy's reader, which reads more, ends the process on some damaged files.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_HEADER: Final = 128
_HDF: Final = b"\x89HDF\r\n\x1a\n"
_MATRIX, _COMPRESSED = 14, 15
_COMPLEX: Final = 0x0800
_STORED: Final = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
"""Types of numbers as they are stored; doubles that are whole numbers are stored as smaller ones."""

_CLASSES: Final = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
"""Types of arrays."""

_BEGIN: Final = 4096  # bytes of a compressed array that hold its name


class _Element(NamedTuple):
    """A data element: its type, its content, and where the next one begins."""

    kind: int
    content: memoryview
    end: int


def read_mat_array(path: Path, name: str) -> NDArray[Any]:
    """An array of a file.

    Args:
        path: The file.
        name: The array.

    Returns:
        Its numbers in the type of the array, in memory of their own.

    Raises:
        NotImplementedError: If the file is of version 7.3, which is HDF5.
        ValueError: If it is cut, damaged or no such file, or has no array of this name that holds real numbers.
        OSError: If it can't be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER + len(_HDF))
        if len(head) < _HEADER:
            raise ValueError("it is no MATLAB file")
        order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
        version = None if order is None else int(np.frombuffer(head[124:126], f"{order}u2")[0])
        if head.startswith((b"MATLAB 7.3", _HDF)) or version == 0x0200:
            raise NotImplementedError
        if order is None or version != 0x0100:
            raise ValueError("it is no MATLAB file of version 5 to 7")
    return _find(np.memmap(path, np.uint8, "r").data, name, order)


def _find(view: memoryview, name: str, order: str) -> NDArray[Any]:
    """The first array of a name."""
    position, others = _HEADER, []
    while position < len(view):
        element = _element(view, position, order, padded=False)
        position = element.end
        begin = element.content[: _BEGIN + 8]
        if element.kind == _COMPRESSED:
            begin = memoryview(zlib.decompressobj().decompress(begin, _BEGIN))
            begin = begin[8:]  # the tag of what was compressed
        elif element.kind != _MATRIX:
            continue
        *_, stored = _parts(begin, order, 3)
        if bytes(stored.content) != name.encode():
            others.append(bytes(stored.content).decode("ascii", "replace"))
            continue
        content = element.content
        if element.kind == _COMPRESSED:
            content = _decompressed(content, order)
        return _array(content, order)
    raise ValueError(f"it has no array {name!r}" + (f"; it has {', '.join(others)}" if others else ""))


def _decompressed(content: memoryview, order: str) -> memoryview:
    """The content of an array that was compressed, and no more than its tag announces."""
    inflating = zlib.decompressobj()
    tag = inflating.decompress(content, 8)
    if len(tag) < 8:
        raise ValueError("an array in it is cut")
    kind, size = (int(number) for number in np.frombuffer(tag, f"{order}u4"))
    if kind != _MATRIX:
        raise ValueError("what was compressed is no array")
    inflated = inflating.decompress(inflating.unconsumed_tail, max(size, 1))
    if len(inflated) != size:
        raise ValueError("an array in it is cut")
    return memoryview(inflated)


def _element(view: memoryview, position: int, order: str, *, padded: bool = True) -> _Element:
    if position + 8 > len(view):
        raise ValueError("it ends within an array")
    kind, size = (int(number) for number in np.frombuffer(view[position : position + 8], f"{order}u4"))
    start = position + 8
    if kind >> 16:  # a small one, which lies in its own tag
        kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        if size > 4:
            raise ValueError("an element of an array has a length that can't be")
        return _Element(kind, view[start : start + size], position + 8)
    end = start + size
    return _Element(kind, view[start:end], end + (-size % 8 if padded else 0))


def _parts(content: memoryview, order: str, count: int) -> Iterator[_Element]:
    """The first elements that an array is made of: flags, lengths, name, numbers."""
    position = 0
    for _ in range(count):
        element = _element(content, position, order)
        position = element.end
        yield element


def _array(content: memoryview, order: str) -> NDArray[Any]:
    flags, lengths, _, numbers = _parts(content, order, 4)
    if len(flags.content) != 8 or len(lengths.content) % 4 or len(lengths.content) < 8:
        raise ValueError("an array in it is damaged")
    flag = int(np.frombuffer(flags.content[:4], f"{order}u4")[0])
    kind = _CLASSES.get(flag & 0xFF)
    if kind is None or numbers.kind not in _STORED:
        raise ValueError("an array in it holds no plain numbers")
    if flag & _COMPLEX:
        raise ValueError("an array in it holds complex numbers; real ones are needed")
    shape = [int(length) for length in np.frombuffer(lengths.content, f"{order}i4")]
    stored = np.dtype(f"{order}{_STORED[numbers.kind]}")
    if min(shape) < 0 or math.prod(shape) * stored.itemsize != len(numbers.content):
        raise ValueError("an array in it is cut, or has other lengths than it says")
    flat = np.frombuffer(numbers.content, stored)
    return flat.reshape(shape, order="F").astype(np.dtype(kind), order="C", copy=True)
