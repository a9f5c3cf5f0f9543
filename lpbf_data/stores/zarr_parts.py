"""Zarr parts: the cases of one shard as arrays that xarray, dask and zarr open without this package.

The layout is the "contiguous ragged array" of the CF conventions (section 9.3.3): all points of a part in one array,
`num_points` with its `sample_dimension` to tell the cases apart, and offsets for direct slices. Components come first
and lie apart (planar), because equal things compress well together:

    points (axis, point)   displacement (displacement_component, point)   temperature (point)   cells (corner, cell)
    point_offset (point_boundary)   cell_offset (cell_boundary)   case_id, num_points, num_cells (case)
    measures (measures_component, case)   labels (labels_component, case)

Numbers and texts of cases lie in one array each, `measures` and `labels`, since an array takes two files; the attribute
`components` names their rows, as it does for fields. That is layout 2, which the attribute `lpbf_part_layout` names.
Parts without it have layout 1, an array for every number and text instead; both are read, also in one data set.
What the arrays mean didn't change, so the schema version, which counts that, is the same.

Connectivity is zero-based within its case. A part is written whole by one task.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from lpbf_data.cached_property import cached_property
from lpbf_data.case.case import Case, Scalar
from lpbf_data.case.record import ATTRIBUTE_TYPES
from lpbf_data.case.schema import FIELDS, SCHEMA_VERSION, FieldSpec
from lpbf_data.errors import SchemaError, StoreError
from lpbf_data.file_access.remote_zarr import RemoteZarr
from lpbf_data.os_errors import read_error
from lpbf_data.stores.selection import TARGET_COMPONENT, TARGET_FIELD, Arrays, Selection
from lpbf_data.stores.zarr_direct_reader import ShardedArray, SpanReader, open_sharded_array
from lpbf_data.stores.zarr_fetching import FetchedPart

ZARR_NAME: Final = "lpbf.zarr"
TABLES: Final = ("measures", "labels")
"""Arrays with a row for every number, and for every text, that is known of a case."""
PART_LAYOUT: Final = 2
LAYOUT_NAME: Final = "lpbf_part_layout"
CHUNK_LENGTH: Final = 8192
"""Points (or cells) in a chunk, the unit of compression."""

_READING: Final = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
# Several writing threads would order the inner chunks of a shard as they finish: the same input, other bytes.
_WRITING: Final = _READING | {"async.concurrency": 1, "threading.max_workers": 1}
_settings_lock = threading.RLock()
_KINDS: Final = ("point", "cell")
_CF: Final = {"Conventions": "CF-1.12", "featureType": "point"}


@contextmanager
def _settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """Zarr's settings hold for the whole process, so only one thread of it may change them at a time."""
    with _settings_lock, zarr.config.set(dict(settings)):
        yield


def _renew_lock() -> None:
    """Make a new lock in a forked worker, where the thread that might hold the old one doesn't exist."""
    global _settings_lock  # noqa: PLW0603
    _settings_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _write_array(
    group: zarr.Group,
    name: str,
    data: NDArray[Any],
    dimensions: Sequence[str],
    attributes: Mapping[str, Any],
) -> None:
    """Store an array in one shard; its last dimension is cut into chunks."""
    length = data.shape[-1]
    chunk = min(max(length, 1), CHUNK_LENGTH)
    whole = -(-max(length, 1) // chunk) * chunk
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(*data.shape[:-1], chunk),
        shards=(*data.shape[:-1], whole),
        compressors=[
            BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=data.dtype.itemsize),
            Crc32cCodec(),  # blosc has no checksum: an altered chunk would decode to other numbers without an error
        ],
        # Zarr reads a missing chunk as its fill value without a word; no valid case holds these.
        fill_value=np.nan if data.dtype.kind == "f" else -1,
        dimension_names=dimensions,
        attributes=dict(attributes),
    )
    array[...] = data


def _offsets(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def write_part(path: Path, cases: Sequence[Case], specs: Sequence[FieldSpec]) -> None:
    """Write one part as a Zarr group; the same cases give the same bytes.

    Args:
        path: Folder of the group, made anew; the caller chooses a temporary name and renames.
        cases: Cases of the part.
        specs: Fields to store beside the mesh.
    """
    shutil.rmtree(path, ignore_errors=True)
    with _settings(_WRITING):
        group = zarr.create_group(
            LocalStore(path),
            zarr_format=3,
            attributes={
                **_CF,
                "lpbf_schema_version": SCHEMA_VERSION,
                LAYOUT_NAME: PART_LAYOUT,
                "case_ids": [case.case_id for case in cases],
            },
        )
        _write_ragged(group, cases, specs)
        _write_per_case(group, cases)


def _write_ragged(group: zarr.Group, cases: Sequence[Case], specs: Sequence[FieldSpec]) -> None:
    points = np.concatenate([case.points.T for case in cases], axis=1)
    cells = np.concatenate([case.cells.T for case in cases], axis=1)
    _write_array(group, "points", points, ("axis", "point"), {"units": "mm", "long_name": "coordinates x, y, z"})
    attributes = {"long_name": "zero-based hexahedra, node order of VTK", "cf_role": "cell_node_connectivity"}
    _write_array(group, "cells", cells, ("corner", "cell"), attributes)
    for spec in specs:
        values = np.concatenate([case.planar(spec) for case in cases], axis=1)
        attributes = {"units": spec.unit, "long_name": spec.description}
        if spec.components:
            attributes["components"] = " ".join(spec.components)
            _write_array(group, spec.name, values, (f"{spec.name}_component", spec.location), attributes)
        else:
            _write_array(group, spec.name, values[0], (spec.location,), attributes)


def _write_per_case(group: zarr.Group, cases: Sequence[Case]) -> None:
    for kind, counts in (
        ("point", [case.num_points for case in cases]),
        ("cell", [case.num_cells for case in cases]),
    ):
        _write_scalars(group, f"num_{kind}s", np.array(counts, dtype=np.int64), {"sample_dimension": kind})
        attributes = {"long_name": f"first {kind} of each case, and the end of the last"}
        _write_array(group, f"{kind}_offset", _offsets(counts), (f"{kind}_boundary",), attributes)
    _write_scalars(group, "case_id", np.array([case.case_id for case in cases], dtype=object))
    labels = [name for name, kind in ATTRIBUTE_TYPES.items() if kind is str]
    measures = [name for name in ATTRIBUTE_TYPES if name not in ("num_points", "num_cells", *labels)]
    for table, names in zip(TABLES, (measures, labels), strict=True):
        rows = [_row_of(ATTRIBUTE_TYPES[name], [case.attributes.get(name) for case in cases]) for name in names]
        _write_scalars(group, table, np.array(rows), {"components": " ".join(names)})


def _row_of(kind: type, values: Sequence[Scalar]) -> NDArray[Any]:
    """Scalars of all cases as float64 or as texts; an unknown one is NaN or an empty text."""
    if kind is str:
        return np.array(["" if value is None else value for value in values], dtype=object)
    return np.array([np.nan if value is None else float(value) for value in values])


def _write_scalars(
    group: zarr.Group, name: str, values: NDArray[Any], attributes: Mapping[str, Any] | None = None
) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype="string" if values.dtype == object else values.dtype,
        chunks=tuple(max(size, 1) for size in values.shape),
        dimension_names=("case",) if values.ndim == 1 else (f"{name}_component", "case"),
        attributes=dict(attributes or {}),
    )
    array[...] = values


def check_layout(attributes: Mapping[str, Any], name: str) -> None:
    """Refuse a part that a later version of this package laid out in another way.

    Args:
        attributes: Those of the part's group.
        name: Its name in error messages.

    Raises:
        SchemaError: If this package doesn't know its layout.
    """
    layout = attributes.get(LAYOUT_NAME, 1)
    if layout not in range(1, PART_LAYOUT + 1):
        raise SchemaError(
            f"Zarr part {name} has layout {layout}, this package reads 1 to {PART_LAYOUT}; upgrade the package"
        )


class ZarrPart:
    """Random access to the cases of one part.

    Args:
        store: Folder of the part, or any Zarr store.
        name: Its name in error messages; its path by default.

    Raises:
        StoreError: If it is missing, cut or altered.
        SchemaError: If a later version of this package wrote it.
    """

    def __init__(self, store: Any, *, name: str | None = None) -> None:
        self.name = name or str(store)
        self._store = store
        self._folder = store if isinstance(store, Path) else None
        # zarrs reads local parts; zarr-python reads remote ones, chunk by chunk.
        self._reading = {} if self._folder is None else _READING
        self._direct: dict[str, ShardedArray | None] = {}
        self._fetched = FetchedPart(store, self.name) if isinstance(store, RemoteZarr) else None
        try:
            attributes = self._attributes()
            check_layout(attributes, self.name)
            self.case_ids: tuple[str, ...] = tuple(attributes["case_ids"])
            if self._fetched is not None:
                self._fetched.fetch({f"{kind}_offset": () for kind in _KINDS})
            self._offsets = {kind: self._read_all(f"{kind}_offset").tolist() for kind in _KINDS}
        except (OSError, KeyError, TypeError, ValueError) as error:
            damage = f" can't be opened ({error}); build the data set again"
            raise read_error(f"Zarr part {self.name}", error, damage) from error

    @cached_property
    def _group(self) -> zarr.Group:
        """The part by way of zarr-python."""
        with _settings(self._reading):
            return zarr.open_group(self._store, mode="r", zarr_format=3)

    def _attributes(self) -> Mapping[str, Any]:
        if self._fetched is not None:
            return self._fetched.attributes()
        if self._folder is None:
            return cast("Mapping[str, Any]", self._group.attrs)
        return cast("Mapping[str, Any]", json.loads((self._folder / "zarr.json").read_bytes())["attributes"])

    @cached_property
    def field_specs(self) -> tuple[FieldSpec, ...]:
        """Fields that the part stores."""
        stored = set(self._group.array_keys()) if self._folder is None else {p.name for p in self._folder.iterdir()}
        return tuple(spec for name, spec in FIELDS.items() if name in stored)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case_ids)

    def case_id(self, row: int) -> str:
        """Id of a case."""
        return self.case_ids[row]

    def _direct_array(self, name: str) -> SpanReader | None:
        """The array by way of the direct reader; None where it has another layout."""
        if self._fetched is not None:
            return self._fetched.array(name)
        if name not in self._direct:
            self._direct[name] = None if self._folder is None else open_sharded_array(self._folder / name)
        return self._direct[name]

    def _read(self, name: str, selection: Any) -> NDArray[Any]:
        """Values by way of zarr-python."""
        try:
            with _settings(self._reading):
                array = self._group[name]
                return np.asarray(cast("zarr.Array[Any]", array)[selection])
        except KeyError as error:
            stored = ", ".join(spec.name for spec in self.field_specs)
            raise StoreError(f"Zarr part {self.name} has no array {name!r}; its fields are: {stored}") from error
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            damage = f": {error}; verify the data set"
            raise read_error(f"Zarr part {self.name}, array {name}", error, damage) from error

    def _read_all(self, name: str) -> NDArray[Any]:
        direct = self._direct_array(name)
        return self._read(name, ...) if direct is None else direct.read(0, direct.length)[:, 0]

    def _read_span(self, name: str, row: int, kind: str, components: slice = slice(None)) -> NDArray[Any]:
        """Values of one case, [N or E, components]."""
        start, stop = self._offsets[kind][row], self._offsets[kind][row + 1]
        direct = self._direct_array(name)
        if direct is not None:
            return direct.read(start, stop, components)
        planar = np.atleast_2d(self._read(name, (..., slice(start, stop))))
        return np.ascontiguousarray(planar[components].T)

    def _spans(self, row: int, selection: Selection) -> dict[str, tuple[int, int]]:
        """What a case needs of each array."""
        kinds = {"points": "point"} | {spec.name: spec.location for spec in selection.fields}
        kinds |= {TARGET_FIELD: "point"} if selection.target else {}
        kinds |= {"cells": "cell"} if selection.reads_cells else {}
        return {name: (self._offsets[kind][row], self._offsets[kind][row + 1]) for name, kind in kinds.items()}

    @property
    def is_remote(self) -> bool:
        """Whether the part is remote, so that cases are worth fetching together."""
        return self._fetched is not None

    def fetch(self, rows: Sequence[int], selection: Selection) -> None:
        """Fetch what some cases need of a remote part, and keep it until `drop_fetched`; does nothing for a local one.

        Args:
            rows: Numbers of the cases in the part.
            selection: What is going to be read.

        Raises:
            UnreachableError: If it can't be fetched now.
        """
        if self._fetched is not None:
            each = [self._spans(row, selection) for row in rows if 0 <= row < len(self)]
            self._fetched.fetch({name: [spans[name] for spans in each] for name in (each[0] if each else ())})

    def drop_fetched(self) -> None:
        """Drop the chunks that were fetched."""
        if self._fetched is not None:
            self._fetched.drop_fetched()

    def has_row(self, row: int) -> bool:
        """Whether there is such a case: manifests can name others."""
        return 0 <= row < len(self)

    def row_bytes(self, row: int) -> int:
        """Stored bytes of a case in those arrays of a remote part that were read already; 0 for a local part."""
        everything = Selection(tuple(FIELDS.values()))  # to ask which of them are stored would be to list them
        return 0 if self._fetched is None else self._fetched.bytes_of(self._spans(row, everything))

    def read_arrays(self, row: int, selection: Selection) -> tuple[Arrays, NDArray[np.int32] | None]:
        """The selected arrays of one case but those made from its connectivity, and the connectivity if it is needed.

        Args:
            row: Number of the case in the part.
            selection: What to read.

        Raises:
            StoreError: If a field isn't stored, or a chunk is missing, cut or altered.
        """
        arrays: Arrays = {"pos": self._read_span("points", row, "point")}
        stored = {spec.name: self._read_span(spec.name, row, spec.location) for spec in selection.fields}
        component = slice(TARGET_COMPONENT, TARGET_COMPONENT + 1)
        if selection.target and TARGET_FIELD in stored:
            arrays["y"] = np.ascontiguousarray(stored[TARGET_FIELD][:, component])
        elif selection.target:
            arrays["y"] = self._read_span(TARGET_FIELD, row, "point", component)
        cells = self._read_span("cells", row, "cell") if selection.reads_cells else None
        return arrays | stored, cells

    def read_field(self, row: int, spec: FieldSpec) -> NDArray[np.float32]:
        """Values of one field of one case: [N] for a scalar, [N, components] otherwise.

        Args:
            row: Number of the case in the part.
            spec: The field.

        Raises:
            StoreError: If it isn't stored, or a chunk is missing, cut or altered.
        """
        values = self._read_span(spec.name, row, spec.location)
        return values if spec.components else values[:, 0]

    def read_case(self, row: int, specs: Sequence[FieldSpec] | None = None) -> Case:
        """One case with the given fields (all stored ones by default); its scalars are in the manifest.

        Args:
            row: Number of the case in the part.
            specs: Fields to read.

        Raises:
            StoreError: If a field isn't stored, or a chunk is missing, cut or altered.
        """
        specs = self.field_specs if specs is None else specs
        points = self._read_span("points", row, "point")
        cells = self._read_span("cells", row, "cell")
        fields = {spec.name: self.read_field(row, spec) for spec in specs}
        return Case(self.case_ids[row], points, cells, fields)
