"""Surfaces of polygons in text: Wavefront's OBJ and Geomview's OFF.

Both are read line by line, as exporters write them: ends of lines of any system, UTF-16, decimal commas, polygons of
any number of corners, and in OBJ lines continued by a backslash and corners that count back from the latest
vertex. Polygons become fans of triangles, which enclose the same volume.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.face_counts import refuse_too_many
from lpbf_data.remarks import Remark, Treatment

_COMMA: Final = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_OFF: Final = re.compile(r"(?:ST)?C?N?OFF", re.IGNORECASE)

Corners = NDArray[np.float64]


def open_text(path: Path) -> IO[str]:
    """A text of any system: UTF-16 where it begins so, and ends of lines of Windows, Unix and old Macs.

    Args:
        path: The file.
    """
    with path.open("rb") as stream:
        start = stream.read(2)
    encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return path.open(encoding=encoding, errors="replace")


def checked_number(word: str) -> str:
    """A word unchanged; refuses underscores, which Python skips within numbers and no file format allows there.

    Args:
        word: The word.

    Raises:
        ValueError: If it holds an underscore.
    """
    if "_" in word:
        raise ValueError(repr(word[:40]))
    return word


def decimal_commas(count: int, name: str) -> list[Remark]:
    """The remark on numbers with a decimal comma; none where there are none.

    Args:
        count: Lines that had them.
        name: The file.
    """
    sentence = "numbers with a decimal comma were read with a point"
    return [Remark(Treatment.REPAIRED, "decimal_commas", sentence, count, (name,))] if count else []


class Polygons:
    """Vertices and triangles as they come."""

    def __init__(self) -> None:
        self.coordinates = array("d")
        self.triangles = array("q")
        self.commas = 0

    @property
    def num_vertices(self) -> int:
        """Vertices so far."""
        return len(self.coordinates) // 3

    def add_vertex(self, words: Sequence[str], number: int) -> None:
        """Take a vertex from the words of a line; what follows three numbers (weights, colours) has no meaning here.

        Raises:
            GeometryError: If it isn't three numbers.
        """
        three = words[:3]
        if any(_COMMA.fullmatch(word) for word in three):
            three = [word.replace(",", ".") if _COMMA.fullmatch(word) else word for word in three]
            self.commas += 1
        try:
            if len(three) < 3:
                raise ValueError
            self.coordinates.extend([float(checked_number(word)) for word in three])
        except ValueError:
            raise GeometryError(f"line {number:,} isn't three numbers: {' '.join(words)[:60]!r}") from None

    def add_polygon(self, corners: Sequence[int], number: int) -> None:
        """Take a polygon as a fan of triangles.

        Raises:
            GeometryError: If it has fewer than three corners, or there are too many triangles.
        """
        if len(corners) < 3:
            raise GeometryError(f"line {number:,} has a face of {len(corners)} corners; a face needs three")
        for second, third in pairwise(corners[1:]):
            self.triangles.extend((corners[0], second, third))
        refuse_too_many(len(self.triangles) // 3)

    def corners(self) -> Corners:
        """Corners of the triangles, [T, 3, 3].

        Raises:
            GeometryError: If there are none, or one names a vertex that isn't there.
        """
        if not self.triangles:
            raise GeometryError("it holds no faces, and so no surface")
        vertices = np.frombuffer(self.coordinates, np.float64).reshape(-1, 3) if self.coordinates else np.empty((0, 3))
        triangles = np.frombuffer(self.triangles, np.int64).reshape(-1, 3)
        if triangles.min() < 0 or triangles.max() >= len(vertices):
            raise GeometryError("a face names a vertex that isn't there")
        return vertices[triangles]


def read_obj(path: Path) -> tuple[Corners, list[Remark]]:
    """Read the faces of an OBJ file.

    Args:
        path: The file.

    Returns:
        Corners of their triangles, [T, 3, 3], and what was repaired.

    Raises:
        GeometryError: If it holds no faces, or a line that can't be read.
        OSError: If it can't be read.
    """
    found = Polygons()
    with open_text(path) as stream:
        for number, words in _obj_lines(stream):
            if words[0] == "v":
                found.add_vertex(words[1:], number)
            elif words[0] == "f":
                corners = [_obj_corner(word, found.num_vertices, number) for word in words[1:]]
                found.add_polygon(corners, number)
    return found.corners(), decimal_commas(found.commas, path.name)


def _obj_lines(stream: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """Numbers and words of lines; one that ends with a backslash goes on in the next."""
    begun: list[str] = []
    for number, line in enumerate(stream, 1):
        text = line.partition("#")[0].rstrip()
        begun += text.removesuffix("\\").split()
        if begun and not text.endswith("\\"):
            yield number, begun
            begun = []


def _obj_corner(word: str, so_far: int, number: int) -> int:
    """The vertex, from 0, that a corner such as `3`, `3/1/2` or `-1` names."""
    try:
        index = int(checked_number(word.partition("/")[0]))
    except ValueError:
        raise GeometryError(f"line {number:,} has a face whose corner {word[:20]!r} is no number") from None
    if index == 0 or index < -so_far:
        what = "OBJ files count from 1" if index == 0 else f"there are {so_far:,} before it"
        raise GeometryError(f"line {number:,} has a face that names vertex {index}; {what}")
    return index - 1 if index > 0 else so_far + index


def read_off(path: Path) -> tuple[Corners, list[Remark]]:
    """Read the faces of an OFF file in text, with normals, colours and texture coordinates left out.

    Args:
        path: The file.

    Returns:
        Corners of their triangles, [T, 3, 3], and what was repaired.

    Raises:
        GeometryError: If it is cut short, binary, of another dimension, or holds a line that can't be read.
        OSError: If it can't be read.
    """
    found = Polygons()
    with open_text(path) as stream:
        lines = ((number, line.partition("#")[0].split()) for number, line in enumerate(stream, 1))
        lines = ((number, words) for number, words in lines if words)
        vertices, faces = _off_counts(lines)
        for _ in range(vertices):
            number, words = next(lines, (0, []))
            if not words:
                raise GeometryError(_cut_short("vertices", vertices, found.num_vertices))
            found.add_vertex(words, number)
        for done in range(faces):
            number, words = next(lines, (0, []))
            if not words:
                raise GeometryError(_cut_short("faces", faces, done))
            found.add_polygon(_off_face(words, number), number)
        for number, words in lines:
            raise GeometryError(
                f"it says that it holds {faces:,} faces, and line {number:,} follows them: {' '.join(words)[:40]!r}; "
                "save it again"
            )
    return found.corners(), decimal_commas(found.commas, path.name)


def _cut_short(what: str, stated: int, there: int) -> str:
    return f"the file is cut short: it says that it holds {stated:,} {what}, and {there:,} are there; save it again"


def _off_counts(lines: Iterator[tuple[int, list[str]]]) -> tuple[int, int]:
    """How many vertices and faces an OFF file holds; the word OFF may be missing."""
    _, words = next(lines, (0, []))
    if words and not words[0].isdigit():
        kind, *words = words
        if "BINARY" in words:
            raise GeometryError("binary OFF files aren't read; save it in text, or as a binary STL")
        if not _OFF.fullmatch(kind):
            raise GeometryError(f"it begins with {kind[:20]!r}, where OFF files of three dimensions begin with OFF")
        words = words or next(lines, (0, []))[1]
    if len(words) < 2 or not all(word.isdigit() for word in words[:2]):
        raise GeometryError(f"the numbers of vertices and faces are missing; {' '.join(words)[:40]!r} is there instead")
    return int(words[0]), int(words[1])


def _off_face(words: Sequence[str], number: int) -> list[int]:
    """Corners of a face; a colour may follow them."""
    try:
        corners = [int(checked_number(word)) for word in words[1 : int(words[0]) + 1]]
    except ValueError:
        corners = []
    if not corners or len(corners) != int(words[0]):
        raise GeometryError(f"line {number:,} isn't a number of corners and as many vertices: {' '.join(words)[:40]!r}")
    return corners
