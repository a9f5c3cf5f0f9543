"""STL files, text and binary: their triangles, or the reason why they can't be read.

The format has no checksum, no units and a count that some writers never fill in; what is repaired on reading becomes a
remark. Memory stays below ten times the size of the file.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface
from lpbf_data.geometry.polygon_text import decimal_commas
from lpbf_data.remarks import Remark, Treatment

_HEADER: Final = 84  # 80 bytes of any text, and the number of triangles
_RECORD: Final = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_KEYWORD: Final = re.compile(rb"^[ \t]*(facet|endfacet|endsolid|solid)\b", re.MULTILINE | re.IGNORECASE)
_VERTEX: Final = re.compile(rb"^[ \t]*vertex[ \t]+([^\r\n]*)", re.MULTILINE | re.IGNORECASE)
_FACET: Final = re.compile(rb"[\r\n][ \t]*facet\s+normal\s")  # in a text with something before the word solid
_LONE_RETURN: Final = re.compile(rb"\r(?!\n)")  # the end of a line of old Macs
_EXPONENT: Final = re.compile(rb"(?<=[\d.])[dD](?=[+-]?\d)")  # as Fortran prints it
_DECIMAL_COMMA: Final = re.compile(rb"(?<![\d.])([+-]?\d+),(\d+(?:[eE][+-]?\d+)?)(?=\s|$)")
_AT_ONCE: Final = 50_000  # lines that are turned into numbers together


def read_stl(path: Path) -> tuple[NDArray[np.float64], list[Remark]]:
    """Read the triangles of an STL file.

    Args:
        path: The file.

    Returns:
        Corners of the triangles, [T, 3, 3], in the unit of the file; and what was repaired on reading.

    Raises:
        GeometryError: If it is cut short, holds something else, or a number that can't be read.
        OSError: If the file can't be read.
    """
    content = path.read_bytes()
    if not content:
        raise GeometryError("the file is empty")
    declared = int.from_bytes(content[80:84], "little") if len(content) >= _HEADER else -1
    if declared > 0 and len(content) == _HEADER + declared * _RECORD.itemsize:
        return _binary(content, declared), []
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        content = content.decode("utf-16", "replace").encode("ascii", "replace")
    begun = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"\0" not in begun and (begun.startswith(b"solid") or _FACET.search(begun)):
        return _text(content, path.name)
    if content[:_HEADER].isascii() and all(sign >= 32 or sign in b"\t\r\n" for sign in content[:_HEADER]):
        first = content[:_HEADER].decode("ascii").split("\n")[0].strip()[:40]
        raise GeometryError(f"it is no STL file: it is text that begins with {first!r}; save it again as STL")
    if len(content) < _HEADER:
        raise GeometryError("it is no STL file: too short for a binary one, and the word solid isn't at its beginning")
    return _repaired_binary(content, declared, path.name)


def _binary(content: bytes, count: int) -> NDArray[np.float64]:
    records = np.frombuffer(content, _RECORD, count, _HEADER)
    with np.errstate(invalid="ignore"):  # what isn't a number is refused later, with a reason
        return records["corners"].astype(np.float64)


def _repaired_binary(content: bytes, declared: int, name: str) -> tuple[NDArray[np.float64], list[Remark]]:
    """A binary file whose count and size disagree."""
    size = len(content) - _HEADER
    there, rest = divmod(size, _RECORD.itemsize)
    if there and not rest and int.from_bytes(content[80:84], "big") == there:
        sentence = "a binary STL in the other byte order (big-endian) was read so"
        corners = np.frombuffer(content, _RECORD.newbyteorder(">"), there, _HEADER)["corners"].astype(np.float64)
        return corners, [Remark(Treatment.REPAIRED, "stl_byte_order", sentence, 1, (name,))]
    if declared == 0 and there and not rest:
        sentence = "a binary STL that says it holds no triangles, and holds some, was read whole"
        return _binary(content, there), [Remark(Treatment.REPAIRED, "stl_count", sentence, 1, (f"{name}: {there:,}",))]
    if declared == 0:
        raise GeometryError(f"it says that it holds no triangles; {size:,} bytes follow")
    if there < declared:
        # Triangles hold bytes of zero, text none: an OBJ or a web page would else count as a binary STL cut short.
        text = b"\0" not in content[:4096]
        if text or not np.isfinite(np.frombuffer(content, _RECORD, min(there, 100), _HEADER)["corners"]).all():
            raise GeometryError("it is no STL file: neither text with facets nor binary triangles")
        raise GeometryError(
            f"the file is cut short: it says that it holds {declared:,} triangles, and {there:,} are there; save or "
            "copy it again"
        )
    extra = size - declared * _RECORD.itemsize
    if extra >= _RECORD.itemsize:
        raise GeometryError(
            f"it says that it holds {declared:,} triangles, and its size is that of {there:,}; save it again"
        )
    sentence = "bytes behind the last triangle of a binary STL were left out"
    examples = (f"{name}: {extra} {'byte' if extra == 1 else 'bytes'}",)
    return _binary(content, declared), [Remark(Treatment.LEFT_OUT, "stl_extra_bytes", sentence, 1, examples)]


def _text(content: bytes, name: str) -> tuple[NDArray[np.float64], list[Remark]]:
    remarks: list[Remark] = []
    if _LONE_RETURN.search(content):
        content = content.replace(b"\r", b"\n")
    corners, commas = _numbers(content)
    counts = dict.fromkeys((b"facet", b"endfacet", b"endsolid", b"solid"), 0)
    for found in _KEYWORD.finditer(content):
        counts[found[1].lower()] += 1
    begun, ended = counts[b"facet"], counts[b"endfacet"]
    if not begun:
        raise GeometryError("it holds no facets; an STL file in text has lines that begin with facet and vertex")
    if begun != ended or len(corners) != 3 * begun:
        if counts[b"endsolid"] < counts[b"solid"]:
            raise GeometryError(
                f"the file is cut short within its facet number {begun:,}, and endsolid is missing; save or copy it "
                "again"
            )
        raise GeometryError(
            f"it has {begun:,} facets, {ended:,} ends of facets and {len(corners):,} corners; three corners belong to "
            "each facet"
        )
    if not counts[b"endsolid"]:
        sentence = "endsolid is missing at the end of an STL in text; it was read up to its last facet"
        remarks.append(Remark(Treatment.REPAIRED, "stl_no_end", sentence, 1, (f"{name}: {begun:,} facets",)))
    remarks += decimal_commas(commas, name)
    return corners.reshape(-1, 3, 3), remarks


def _numbers(content: bytes) -> tuple[NDArray[np.float64], int]:
    """Coordinates of all vertices, [V, 3], and how many lines have decimal commas."""
    lines = (found[1] for found in _VERTEX.finditer(content))
    blocks, commas, number = [np.empty((0, 3))], 0, 0
    while block := list(islice(lines, _AT_ONCE)):
        rows = np.empty((len(block), 3))
        for row, line in enumerate(block):
            number += 1
            if b"," in line:
                line, commas = _DECIMAL_COMMA.sub(rb"\1.\2", line), commas + 1  # noqa: PLW2901
            try:
                words = _EXPONENT.sub(b"e", line).split()
                if len(words) != 3 or b"_" in line:  # NumPy would repeat one number, Python skips underscores
                    raise ValueError
                rows[row] = [float(word) for word in words]
            except ValueError as error:
                shown = line.decode("ascii", "replace").strip()[:60]
                raise GeometryError(f"corner number {number:,} isn't three numbers: {shown!r}") from error
        blocks.append(rows)
    return np.concatenate(blocks), commas


def stl_bytes(surface: Surface, head: str = "") -> bytes:
    """A surface as the content of a binary STL file.

    Args:
        surface: The surface.
        head: ASCII text for the first 80 bytes; zeros without.
    """
    corners = surface.vertices[surface.triangles]
    normals = surface.area_vectors()
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    records = np.zeros(len(corners), _RECORD)
    records["normal"] = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    records["corners"] = corners
    start = head.encode("ascii").ljust(80)[:80] if head else bytes(80)
    return start + len(records).to_bytes(4, "little") + records.tobytes()


def write_stl(path: Path, surface: Surface) -> None:
    """Write a surface as a binary STL file.

    Args:
        path: The file.
        surface: The surface.
    """
    path.write_bytes(stl_bytes(surface))
