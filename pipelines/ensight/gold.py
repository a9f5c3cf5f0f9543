"""EnSight Gold geometry and variable files: bytes to arrays, arrays to bytes.

Read are ASCII files and two binary forms that differ in their first record only: "C Binary" and what NetFabb writes,
"Fortran Binary" without the record lengths of a true Fortran file. Both byte orders, one part of hexahedra (hexa8),
variables per node and per element. Everything else is recognised and refused with a sentence. The case file that ties
these files together is in [case_file][pipelines.ensight.case_file].

Format: EnSight User Manual 10.2, section 9.1 "EnSight Gold Casefile Format".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import CaseError, FailureReason
from pipelines.ensight.records import (
    RECORD,
    BinaryReader,
    Dialect,
    Encoding,
    Reader,
    TextReader,
    float_lines,
    integer,
    record,
)

Location = Literal["point", "cell"]
_SECTION: Final[dict[Location, str]] = {"point": "coordinates", "cell": "hexa8"}


@dataclass(frozen=True, slots=True)
class Geometry:
    """Content of a geometry file.

    Attributes:
        points: Coordinates, [N, 3] float32.
        cells: Zero-based hexahedra, [E, 8] int32.
        dialect: How the file is written.
    """

    points: NDArray[np.float32]
    cells: NDArray[np.int32]
    dialect: Dialect


def _open_geometry(data: bytes, path: str) -> tuple[Reader, Encoding]:
    """Recognise the dialect by the first bytes; returns a reader positioned after the header."""
    if not data:
        raise CaseError(FailureReason.TRUNCATED_FILE, "the file is empty", path=path, offset=0)
    for header, encoding in ((b"fortran binary", Encoding.BINARY), (b"c binary", Encoding.C_BINARY)):
        if data[: len(header)].lower() == header:
            reader = BinaryReader(data, path)
            reader.line("header")
            return reader, encoding
        if data[4 : 4 + len(header)].lower() == header:
            detail = "the file has Fortran record lengths; write it as 'C Binary' or ASCII"
            raise CaseError(FailureReason.UNSUPPORTED_DIALECT, detail, path=path, offset=0)
    if b"\0" in data[:RECORD]:
        detail = "the file is neither EnSight Gold text nor one of its binary forms"
        raise CaseError(FailureReason.UNSUPPORTED_DIALECT, detail, path=path, offset=0)
    return TextReader(data, path), Encoding.ASCII


def _expect(reader: Reader, word: str, what: str) -> None:
    start = reader.position
    line = reader.line(what)
    if line.lower() != word:
        detail = f"expected {word!r}, found {line[:40]!r}"
        dialect = line.lower().startswith(("block", "coordinates ", "begin", "hexa8 "))
        reason = FailureReason.UNSUPPORTED_DIALECT if dialect else FailureReason.MALFORMED_FILE
        raise CaseError(reason, detail, path=reader.path, offset=start)


def _id_mode(reader: Reader, kind: str) -> bool:
    """Whether ids of nodes or elements follow in the file."""
    start = reader.position
    words = reader.line(f"{kind} id").lower().split()
    if words[:2] != [kind, "id"] or len(words) != 3 or words[2] not in ("off", "assign", "given", "ignore"):
        detail = f"expected '{kind} id off|given|assign|ignore', found {' '.join(words)[:40]!r}"
        raise CaseError(FailureReason.MALFORMED_FILE, detail, path=reader.path, offset=start)
    return words[2] in ("given", "ignore")


def _read_points(reader: Reader) -> tuple[NDArray[np.float32], bool]:
    """Everything up to the elements: points [N, 3] and whether element ids are stored."""
    reader.line("description")
    reader.line("description")
    node_ids, element_ids = _id_mode(reader, "node"), _id_mode(reader, "element")
    start = reader.position
    if reader.line("part").lower() == "extents":
        reader.floats(6, "extents", per_line=2)
    else:
        reader.position = start
    _expect(reader, "part", "part")
    reader.part_number()
    reader.line("part description")
    _expect(reader, "coordinates", "coordinates")
    count = reader.count("nodes")
    if node_ids:
        reader.integers(count, "node ids")
    start = reader.position
    planar = reader.floats(3 * count, "coordinates")
    _check_finite(reader, planar, start, "a coordinate")
    return np.ascontiguousarray(planar.reshape(3, count).T), element_ids


def _check_finite(reader: Reader, values: NDArray[np.float32], start: int, what: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        index = int(np.argmin(finite))
        offset = reader.offset_of(start, index)
        raise CaseError(FailureReason.NON_FINITE, f"{what} is {values[index]}", path=reader.path, offset=offset)


def _read_cells(reader: Reader, num_points: int, *, element_ids: bool) -> NDArray[np.int32]:
    start = reader.position
    element = reader.line("element type").lower()
    if element != "hexa8":
        detail = f"part 1: expected 'hexa8', found {element[:40]!r}; only hexahedral parts are supported"
        raise CaseError(FailureReason.UNSUPPORTED_ELEMENT, detail, path=reader.path, offset=start)
    count = reader.count("elements")
    if element_ids:
        reader.integers(count, "element ids")
    start = reader.position
    flat = reader.integers(8 * count, "connectivity", per_line=8)
    if count and (int(flat.min()) < 1 or int(flat.max()) > num_points):
        index = int(np.argmax((flat < 1) | (flat > num_points)))
        detail = f"element {index // 8 + 1} names node {flat[index]} of {num_points}"
        offset = reader.offset_of(start, index, per_line=8)
        raise CaseError(FailureReason.INDEX_OUT_OF_RANGE, detail, path=reader.path, offset=offset)
    return (flat - np.int32(1)).reshape(count, 8)


def _refuse_more(reader: Reader) -> None:
    if reader.at_end():
        return
    start = reader.position
    try:
        line = reader.line("end of file").lower()
    except CaseError:
        line = ""
    if line == "part":
        detail = "the file holds several parts; only a single part is supported"
        raise CaseError(FailureReason.UNSUPPORTED_DIALECT, detail, path=reader.path, offset=start)
    if line and line.replace("_", "").isalnum() and not line[0].isdigit():
        detail = f"part 1 also holds {line[:40]!r}; only hexahedral parts of one section are supported"
        raise CaseError(FailureReason.UNSUPPORTED_ELEMENT, detail, path=reader.path, offset=start)
    detail = "the file goes on after the last element"
    raise CaseError(FailureReason.SIZE_MISMATCH, detail, path=reader.path, offset=start)


def read_geometry(data: bytes, path: str = "geometry") -> Geometry:
    """Decode a geometry file.

    Args:
        data: Its content.
        path: Its name in error messages.

    Raises:
        CaseError: With reason, file and byte, if the content is anything but one well-formed part of hexahedra.
    """
    reader, encoding = _open_geometry(data, path)
    points, element_ids = _read_points(reader)
    cells = _read_cells(reader, len(points), element_ids=element_ids)
    _refuse_more(reader)
    return Geometry(points, cells, Dialect(encoding, reader.byte_order))


def read_points(data: bytes, path: str = "geometry") -> tuple[NDArray[np.float32], Dialect]:
    """Decode the points of a geometry file and skip its elements.

    Args:
        data: Its content.
        path: Its name in error messages.

    Returns:
        Points [N, 3] and the dialect.

    Raises:
        CaseError: As `read_geometry` does, for the part that is read.
    """
    reader, encoding = _open_geometry(data, path)
    points, _ = _read_points(reader)
    return points, Dialect(encoding, reader.byte_order)


def read_variable(
    data: bytes,
    dialect: Dialect,
    *,
    count: int,
    num_components: int = 1,
    location: Location = "point",
    path: str = "variable",
) -> NDArray[np.float32]:
    """Decode a variable file.

    Args:
        data: Its content.
        dialect: How the geometry that it belongs to is written.
        count: Nodes or elements of that geometry.
        num_components: 1 for a scalar, 3 for a vector, 6 for a symmetric tensor, whose components stay in the order of
            the file: writers differ in the last two, see [tensor_order][lpbf_data.case.tensor_order].
        location: Per node or per element.
        path: Its name in error messages.

    Returns:
        [count] float32 for a scalar, [count, num_components] otherwise.

    Raises:
        CaseError: With reason, file and byte, if the content is malformed or doesn't fit the geometry.
    """
    reader: Reader
    if dialect.encoding is Encoding.ASCII:
        reader = TextReader(data, path)
    else:
        reader = BinaryReader(data, path, dialect.byte_order)
    reader.line("description")
    _expect(reader, "part", "part")
    reader.part_number()
    _expect(reader, _SECTION[location], "location")
    start = reader.position
    planar = reader.floats(num_components * count, f"{num_components} × {count:,} values")
    if not reader.at_end():
        detail = f"the file holds more than the {num_components} × {count:,} values that its geometry asks for"
        raise CaseError(FailureReason.SIZE_MISMATCH, detail, path=path, offset=reader.position)
    _check_finite(reader, planar, start, "a value")
    if num_components == 1:
        return planar
    return np.ascontiguousarray(planar.reshape(num_components, count).T)


def count_values(data: bytes, dialect: Dialect, *, num_components: int = 1) -> int | None:
    """Nodes or elements that a variable file has values for, from its size alone; None when it is cut short.

    Args:
        data: Its content.
        dialect: How it is written.
        num_components: Components of a value.
    """
    if dialect.encoding is Encoding.ASCII:
        values = data.count(b"\n") - 4 if data.endswith(b"\n") else -1
    else:
        payload = len(data) - 3 * RECORD - 4
        values = payload // 4 if payload % 4 == 0 else -1
    return values // num_components if values >= 0 and values % num_components == 0 else None


def write_geometry(
    points: NDArray[np.floating[Any]],
    cells: NDArray[np.integer[Any]],
    dialect: Dialect = Dialect(),  # noqa: B008 (frozen)
    *,
    description: str = "EnSight Gold geometry file",
) -> bytes:
    """Encode a geometry file with one part of hexahedra.

    Args:
        points: Coordinates, [N, 3].
        cells: Zero-based connectivity, [E, 8].
        dialect: Encoding and byte order.
        description: First line of text.
    """
    one_based = np.asarray(cells, dtype=np.int64) + 1
    planar = np.asarray(points, dtype=np.float32).T
    heads = [description, "", "node id off", "element id off"]
    if dialect.encoding is Encoding.ASCII:
        text = "\n".join([*heads, "part", " 1", "description", "coordinates", f"{len(points):12d}"]) + "\n"
        rows = "".join(("%12d" * 8 + "\n") % tuple(row) for row in one_based.tolist())
        return (text + float_lines(planar) + f"hexa8\n{len(cells):12d}\n" + rows).encode("ascii")
    header = "Fortran Binary" if dialect.encoding is Encoding.BINARY else "C Binary"
    order = dialect.byte_order
    return b"".join(
        [
            *map(record, [header, *heads, "part"]),
            integer(order, 1),
            *map(record, ["description", "coordinates"]),
            integer(order, len(points)),
            planar.astype(order + "f4").tobytes(),
            record("hexa8"),
            integer(order, len(cells)),
            one_based.astype(order + "i4").tobytes(),
        ]
    )


def write_variable(
    values: NDArray[np.floating[Any]],
    dialect: Dialect = Dialect(),  # noqa: B008 (frozen)
    *,
    location: Location = "point",
    description: str = "EnSight Gold variable file",
) -> bytes:
    """Encode a variable file.

    Args:
        values: [N] for a scalar, [N, components] otherwise; components are written in the order given.
        dialect: Encoding and byte order.
        location: Per node or per element.
        description: First line of text.
    """
    planar = np.asarray(values, dtype=np.float32).T
    section = _SECTION[location]
    if dialect.encoding is Encoding.ASCII:
        return (f"{description:<80}\npart\n1\n{section:<80}\n" + float_lines(planar)).encode("ascii")
    payload = planar.astype(dialect.byte_order + "f4").tobytes()
    heads = [record(description), record("part"), integer(dialect.byte_order, 1), record(section)]
    return b"".join([*heads, payload])
