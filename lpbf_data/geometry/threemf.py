"""3MF files: the triangles of what they build, in the unit that they state.

3MF Core Specification 1.3 (3mf.io): a zip archive whose model states its unit, its objects (meshes, or components:
transformed instances of other objects), and which objects are built where. It is read as a stream: memory follows the
number of triangles, which is bounded before it is used, as is what an archive or an object placed many times can unfold
to.
"""

from __future__ import annotations

import re
import zipfile
from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.polygon_text import checked_number
from lpbf_data.remarks import Remark, Treatment

UNITS: Final = {"micron": "um", "millimeter": "mm", "centimeter": "cm", "meter": "m", "inch": "inch", "foot": "ft"}
"""Units of the specification, and what this package calls them."""

_MODEL: Final = "3d/3dmodel.model"
_ROOT: Final = "_rels/.rels"
_ROOT_TYPE: Final = "http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"
_EXTENSIONS: Final = ("/production/", "/material/", "/trianglesets/")  # that take nothing from the meshes
_SLICERS: Final = re.compile(
    rb'"(ParameterModifier|NegativeVolume|SupportEnforcer|SupportBlocker|modifier_part|negative_part|support_enforcer'
    rb'|support_blocker)"|key="(modifier)" value="1"'
)  # what PrusaSlicer and its descendants say of volumes that are no solids
_CURA: Final = re.compile(r"cura:(anti_overhang|cutting|infill|support)_mesh")
_UNPACKED: Final = 256 * 2**20  # bytes that any archive may unfold to, beside ten times its size
_MAX_TRIANGLES: Final = 3_000_000  # that a small archive may build
_MAX_DEPTH: Final = 16
_CHUNK: Final = 2**18


@dataclass
class _Object:
    """A mesh, or components: other objects as (file, id, transform [4, 3])."""

    kind: str = "model"
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
    not_printed: int = 0
    beams: int = 0
    extensions: list[str] = field(default_factory=list)


def read_3mf(path: Path) -> tuple[NDArray[np.float64], str, list[Remark]]:
    """Read what a 3MF file builds.

    Args:
        path: The file.

    Returns:
        Corners of the triangles, [T, 3, 3], the unit that they are in, a value of `UNITS`, and what was left out or
        guessed.

    Raises:
        GeometryError: If it is no 3MF file, or unfolds to more than a bound.
        OSError: If the file can't be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            corners, main, others, left_out = _read(archive, path.stat().st_size)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise GeometryError(f"it is no archive as 3MF files are ({error}); save it again") from error
    except expat.ExpatError as error:
        raise GeometryError(f"its model isn't well-formed XML ({error}); save it again") from error
    except (KeyError, ValueError, OverflowError) as error:
        raise GeometryError(f"its model lacks something or holds a wrong number: {error}") from error
    return corners, UNITS[main.unit], _remarks(path.name, main, others, left_out)


def _remarks(name: str, main: _Model, models: Collection[_Model], supports: int) -> list[Remark]:
    """What was left out of a file, and the unit where its models don't agree on one."""
    found = []
    if supports:
        sentence = "objects of a 3MF that are supports, or no solids, were left out"
        found.append(Remark(Treatment.LEFT_OUT, "3mf_supports", sentence, supports, (f"{name}: {supports}",)))
    if main.not_printed:
        sentence = "objects of a 3MF that its build doesn't print were left out"
        found.append(
            Remark(Treatment.LEFT_OUT, "3mf_not_printed", sentence, main.not_printed, (f"{name}: {main.not_printed}",))
        )
    if beams := sum(model.beams for model in models):
        sentence = "beams of lattices in a 3MF were left out; its meshes were read"
        found.append(Remark(Treatment.LEFT_OUT, "3mf_beams", sentence, beams, (f"{name}: {beams:,} beams",)))
    placed = {file for one in main.objects.values() for file, _, _ in one.components}
    placed |= {file for file, _, _ in main.items}
    if any(model.name in placed and model.unit != main.unit for model in models):
        sentence = "models within a 3MF that state another unit than the first were read in that of the first"
        found.append(Remark(Treatment.GUESSED, "3mf_units", sentence, 1, (f"{name}: {main.unit}",)))
    return found


def _read(archive: zipfile.ZipFile, size: int) -> tuple[NDArray[np.float64], _Model, tuple[_Model, ...], int]:
    """Corners, the main model, all models, and how many objects were left out as supports."""
    members = {info.filename.replace("\\", "/").lstrip("/").lower(): info for info in archive.infolist()}
    models = {name: info for name, info in members.items() if name.endswith(".model")}
    root = _root_of(archive, members)
    if root not in models:
        raise GeometryError(f"it holds no {root}; save it again")
    unpacked, max_bytes = sum(info.file_size for info in models.values()), 10 * size + _UNPACKED
    if unpacked > max_bytes:
        raise GeometryError(f"it unfolds to {unpacked / 2**20:,.0f} MiB; at most {max_bytes / 2**20:,.0f} MiB are read")
    _check_slicer(archive, members)
    parsed = {}
    for name, info in models.items():
        with archive.open(info) as stream:
            parsed[name] = _parse(name, stream)
    main = parsed[root]
    if main.extensions:
        raise GeometryError(
            f"it can't be read without {main.extensions[0][:80]}, an extension of 3MF that isn't known here; save it "
            "without, or as STL"
        )
    if not main.items:
        raise GeometryError("its build is empty: it holds objects, and places none of them; save it again")
    if main.unit not in UNITS:
        raise GeometryError(f"its unit {main.unit[:20]!r} is unknown; known are: {', '.join(UNITS)}")
    max_triangles = _MAX_TRIANGLES + size // 40
    pieces, count, supports = [np.empty((0, 3, 3))], 0, [0]
    for piece in _instances(parsed, main.items, 0, [4 * max_triangles], supports):
        count += len(piece)
        if count > max_triangles:
            raise GeometryError(f"it places more than {max_triangles:,} triangles")
        pieces.append(piece)
    if supports[0] and not count:
        raise GeometryError("it builds supports alone, and no solid")
    return np.concatenate(pieces), main, tuple(parsed.values()), supports[0]


def _check_slicer(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Refuse a slicer's project with volumes that aren't printed: as meshes they look like any other."""
    for name, info in members.items():
        if name.startswith("metadata/") and name.endswith(".config") and info.file_size <= _UNPACKED:
            with archive.open(info) as stream:
                kept = b""
                while chunk := stream.read(_CHUNK):
                    if found := _SLICERS.search(kept + chunk):
                        raise _no_solid((found[1] or found[2]).decode())
                    kept = chunk[-100:]


def _no_solid(kind: str) -> GeometryError:
    return GeometryError(
        f"it is a slicer's project with a volume that is no solid ({kind}); save the part alone, or as STL"
    )


def _root_of(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> str:
    """The model that the archive names as its first; usually, and where it names none, 3D/3dmodel.model."""
    if _ROOT not in members or members[_ROOT].file_size > _CHUNK:
        return _MODEL
    found: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag.rpartition(" ")[2] == "Relationship" and attributes.get("Type") == _ROOT_TYPE:
            found.append(attributes.get("Target", ""))

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = _no_document_type
    parser.Parse(archive.read(members[_ROOT]), True)  # noqa: FBT003 (positional in the library)
    return found[0].lstrip("/").lower() if found else _MODEL


def _instances(
    models: dict[str, _Model],
    items: list[tuple[str, str, NDArray[np.float64]]],
    depth: int,
    budget: list[int],
    supports: list[int],
) -> Iterator[NDArray[np.float64]]:
    """Triangles of the instances of objects, each transformed.

    `budget` bounds how many objects are visited; `supports` counts those that are left out, being supports or no solid.
    """
    if depth > _MAX_DEPTH:
        raise GeometryError(f"its objects hold one another more than {_MAX_DEPTH} deep")
    for file, number, transform in items:
        budget[0] -= 1000
        if budget[0] < 0:
            raise GeometryError("it places too many objects")
        found = models[file].objects.get(number) if file in models else None
        if found is None:
            raise GeometryError(f"its object {number[:20]!r} is missing")
        if found.kind != "model":
            supports[0] += 1
            continue
        if found.triangles:
            yield _transformed(_triangles_of(found), transform)
        for piece in _instances(models, found.components, depth + 1, budget, supports):
            yield _transformed(piece, transform)


def _transformed(corners: NDArray[np.float64], transform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transformed triangles, [T, 3, 3]; where the transform mirrors, their orientation is flipped back."""
    moved: NDArray[np.float64] = corners @ transform[:3] + transform[3]
    return moved[:, ::-1] if np.linalg.det(transform[:3]) < 0 else moved


def _triangles_of(mesh: _Object) -> NDArray[np.float64]:
    vertices = np.frombuffer(mesh.vertices, np.float64).reshape(-1, 3) if mesh.vertices else np.empty((0, 3))
    triangles = np.frombuffer(mesh.triangles, np.int64).reshape(-1, 3)
    if triangles.min() < 0 or triangles.max() >= len(vertices):
        raise GeometryError("a triangle names a vertex that isn't there")
    return vertices[triangles]


def _no_document_type(*_: Any) -> None:
    raise GeometryError("its model declares a document type, which 3MF forbids")


def _parse(name: str, stream: IO[bytes]) -> _Model:
    model = _Model(name)

    def start(tag: str, attributes: dict[str, str]) -> None:
        _start(model, tag.rpartition(" ")[2], {key.rpartition(" ")[2]: v for key, v in attributes.items()})

    def prefix(short: str | None, name: str) -> None:
        prefixes[short or ""] = name

    prefixes: dict[str, str] = {}
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartNamespaceDeclHandler = prefix
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = _no_document_type
    while chunk := stream.read(_CHUNK):
        parser.Parse(chunk)
    parser.Parse(b"", True)  # noqa: FBT003 (positional in the library)
    named = [prefixes.get(short, short) for short in model.extensions]
    model.extensions = [name for name in named if not any(known in name for known in _EXTENSIONS)]
    return model


def _start(model: _Model, tag: str, given: dict[str, str]) -> None:
    """Take one element of the XML."""
    now = model.current
    if tag == "vertex" and now is not None:
        now.vertices.extend([float(checked_number(given[name])) for name in ("x", "y", "z")])
    elif tag == "triangle" and now is not None:
        now.triangles.extend([int(checked_number(given[name])) for name in ("v1", "v2", "v3")])
    elif tag == "object":
        model.current = model.objects[given["id"]] = _Object(given.get("type", "model"))
    elif tag == "item" and given.get("printable", "1") in ("0", "false"):
        model.not_printed += 1
    elif tag in ("component", "item"):
        file = given.get("path", model.name).lstrip("/").lower()
        instances = model.items if tag == "item" else now.components if now is not None else []
        instances.append((file, given["objectid"], _transform(given.get("transform"))))
    elif tag == "model":
        model.unit = given.get("unit", model.unit)
        model.extensions = given.get("requiredextensions", "").split()
    elif tag == "beam":
        model.beams += 1
    elif tag == "metadata" and _CURA.fullmatch(given.get("name", "")):
        raise _no_solid(given["name"])


def _transform(text: str | None) -> NDArray[np.float64]:
    """A transform as the specification writes it, [4, 3] float64, applied to row vectors from the right."""
    if text is None:
        return np.eye(4, 3)
    transform = np.array([float(checked_number(word)) for word in text.split()])
    if transform.size != 12 or not np.isfinite(transform).all():
        raise GeometryError(f"the transform {text[:40]!r} isn't 12 numbers")
    return transform.reshape(4, 3)
