"""3MF files: the triangles of what they build, in the unit that they state.

3MF Core Specification 1.3 (3mf.io): a zip archive whose model says its unit, its objects (meshes, or components that
place other objects), and which objects are built where. It is read as a stream: memory follows the number of triangles,
which is bounded before it is used, as is what an archive or an object placed many times can unfold to.
"""

from __future__ import annotations

import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import GeometryError

UNITS: Final = {"micron": "um", "millimeter": "mm", "centimeter": "cm", "meter": "m", "inch": "inch", "foot": "ft"}
"""Units of the specification, and what this package calls them."""

_MODEL: Final = "3d/3dmodel.model"
_UNPACKED: Final = 256 * 2**20  # bytes that any archive may unfold to, beside ten times its size
_MOST_TRIANGLES: Final = 3_000_000  # that a small archive may place
_DEEPEST: Final = 16
_CHUNK: Final = 2**18


@dataclass
class _Object:
    """A mesh, or other objects at places: (file, id, [4, 3])."""

    vertices: array[float] = field(default_factory=lambda: array("d"))
    triangles: array[int] = field(default_factory=lambda: array("q"))
    components: list[tuple[str, str, NDArray[np.float64]]] = field(default_factory=list)


@dataclass
class _Model:
    name: str
    unit: str = "millimeter"
    objects: dict[str, _Object] = field(default_factory=dict)
    items: list[tuple[str, str, NDArray[np.float64]]] = field(default_factory=list)
    current: _Object | None = None


def read_3mf(path: Path) -> tuple[NDArray[np.float64], str]:
    """Read what a 3MF file builds.

    Args:
        path: The file.

    Returns:
        Corners of the triangles, [T, 3, 3], and the unit that they are in, a value of `UNITS`.

    Raises:
        GeometryError: If it is no 3MF file, or unfolds to more than a bound.
        OSError: If the file can't be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path.stat().st_size)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise GeometryError(f"it is no archive as 3MF files are ({error}); save it again") from error
    except expat.ExpatError as error:
        raise GeometryError(f"its model isn't well-formed XML ({error}); save it again") from error
    except (KeyError, ValueError, OverflowError) as error:
        raise GeometryError(f"its model lacks something or holds a wrong number: {error}") from error


def _read(archive: zipfile.ZipFile, size: int) -> tuple[NDArray[np.float64], str]:
    members = {info.filename.lstrip("/").lower(): info for info in archive.infolist()}
    models = {name: info for name, info in members.items() if name.endswith(".model")}
    if _MODEL not in models:
        raise GeometryError(f"it holds no {_MODEL}; save it again")
    unpacked, most = sum(info.file_size for info in models.values()), 10 * size + _UNPACKED
    if unpacked > most:
        raise GeometryError(f"it unfolds to {unpacked / 2**20:,.0f} MiB; at most {most / 2**20:,.0f} MiB are read")
    parsed = {}
    for name, info in models.items():
        with archive.open(info) as stream:
            parsed[name] = _parse(name, stream)
    main = parsed[_MODEL]
    if main.unit not in UNITS:
        raise GeometryError(f"its unit {main.unit[:20]!r} is unknown; known are: {', '.join(UNITS)}")
    most_triangles = _MOST_TRIANGLES + size // 40
    pieces, count = [np.empty((0, 3, 3))], 0
    for piece in _placed(parsed, main.items, 0, [4 * most_triangles]):
        count += len(piece)
        if count > most_triangles:
            raise GeometryError(f"it places more than {most_triangles:,} triangles")
        pieces.append(piece)
    return np.concatenate(pieces), UNITS[main.unit]


def _placed(
    models: dict[str, _Model], items: list[tuple[str, str, NDArray[np.float64]]], depth: int, budget: list[int]
) -> Iterator[NDArray[np.float64]]:
    """Triangles of objects at their places; `budget` bounds how many objects are visited."""
    if depth > _DEEPEST:
        raise GeometryError(f"its objects hold one another more than {_DEEPEST} deep")
    for file, number, place in items:
        budget[0] -= 1000
        if budget[0] < 0:
            raise GeometryError("it places too many objects")
        found = models[file].objects.get(number) if file in models else None
        if found is None:
            raise GeometryError(f"its object {number[:20]!r} is missing")
        if found.triangles:
            yield _triangles_of(found) @ place[:3] + place[3]
        for piece in _placed(models, found.components, depth + 1, budget):
            yield piece @ place[:3] + place[3]


def _triangles_of(mesh: _Object) -> NDArray[np.float64]:
    vertices = np.frombuffer(mesh.vertices, np.float64).reshape(-1, 3) if mesh.vertices else np.empty((0, 3))
    triangles = np.frombuffer(mesh.triangles, np.int64).reshape(-1, 3)
    if triangles.min() < 0 or triangles.max() >= len(vertices):
        raise GeometryError("a triangle names a vertex that isn't there")
    return vertices[triangles]


def _parse(name: str, stream: IO[bytes]) -> _Model:
    model = _Model(name)

    def start(tag: str, attributes: dict[str, str]) -> None:
        _start(model, tag.rpartition(" ")[2], {key.rpartition(" ")[2]: v for key, v in attributes.items()})

    def no_document_type(*_: Any) -> None:
        raise GeometryError("its model declares a document type, which 3MF forbids")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = no_document_type
    while chunk := stream.read(_CHUNK):
        parser.Parse(chunk)
    parser.Parse(b"", True)  # noqa: FBT003 (positional in the library)
    return model


def _start(model: _Model, tag: str, given: dict[str, str]) -> None:
    """Take one element of the XML."""
    now = model.current
    if tag == "vertex" and now is not None:
        now.vertices.extend((float(given["x"]), float(given["y"]), float(given["z"])))
    elif tag == "triangle" and now is not None:
        now.triangles.extend((int(given["v1"]), int(given["v2"]), int(given["v3"])))
    elif tag == "object":
        model.current = model.objects[given["id"]] = _Object()
    elif tag in ("component", "item"):
        file = given.get("path", model.name).lstrip("/").lower()
        places = model.items if tag == "item" else now.components if now is not None else []
        places.append((file, given["objectid"], _place(given.get("transform"))))
    elif tag == "model":
        model.unit = given.get("unit", model.unit)


def _place(text: str | None) -> NDArray[np.float64]:
    """A transform of the specification, rows of [4, 3]; points are rows and stand before it."""
    if text is None:
        return np.eye(4, 3)
    place = np.array([float(word) for word in text.split()])
    if place.size != 12 or not np.isfinite(place).all():
        raise GeometryError(f"the transform {text[:40]!r} isn't 12 numbers")
    return place.reshape(4, 3)
