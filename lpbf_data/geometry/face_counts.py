"""Number of faces of a surface file, counted before it is read: memory follows it, not the size of the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from lpbf_data.errors import GeometryError

MAX_TRIANGLES: Final = 3_000_000
"""Triangles that are read from an OBJ, PLY or OFF file; each takes up to 760 bytes."""

_HEADER: Final = 2**16
_CHUNK: Final = 2**20
_FACES: Final = re.compile(rb"^[ \t]*f[ \t]", re.MULTILINE)


def check_face_count(path: Path) -> None:
    """Refuse a file whose surface wouldn't fit into the bounded memory.

    Args:
        path: An OBJ, PLY or OFF file.

    Raises:
        GeometryError: If it holds more than `MAX_TRIANGLES` faces.
        OSError: If it can't be read.
    """
    count = {".obj": _lines_with_faces, ".ply": _stated_by_ply, ".off": _stated_by_off}[path.suffix.lower()](path)
    refuse_too_many(count)


def refuse_too_many(count: int) -> None:
    """Refuse more than `MAX_TRIANGLES` triangles.

    Raises:
        GeometryError: If there are more.
    """
    if count > MAX_TRIANGLES:
        raise GeometryError(
            f"it holds {count:,} triangles; at most {MAX_TRIANGLES:,} are read from OBJ, PLY and OFF files; coarsen "
            "the surface, or save it as a binary STL"
        )


def _lines_with_faces(path: Path) -> int:
    count, line = 0, b""
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            whole, _, line = (line + chunk).rpartition(b"\n")
            count += len(_FACES.findall(whole))
            line = line[:_CHUNK]
    return count + len(_FACES.findall(line))


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEADER)


def _stated_by_ply(path: Path) -> int:
    found = re.search(rb"^element[ \t]+face[ \t]+(\d{1,18})", _head(path), re.MULTILINE)
    return int(found[1]) if found else 0


def _stated_by_off(path: Path) -> int:
    lines = (line.partition(b"#")[0].split() for line in _head(path).splitlines())
    words = [word for line in lines for word in line]
    numbers = words[1:3] if words and words[0].upper().endswith(b"OFF") else words[:2]
    return int(numbers[1]) if len(numbers) == 2 and numbers[1].isdigit() else 0
