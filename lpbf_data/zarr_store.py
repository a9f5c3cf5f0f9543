"""Zarr parts: the cases of one shard as arrays that xarray, dask and zarr open without this package.

The layout is the "contiguous ragged array" of the CF conventions (section 9.3.3): all points of a part in one array,
`num_points` with its `sample_dimension` to tell the cases apart, and offsets for direct slices. Components come first
and lie apart (planar), because equal things compress well together:

    points (axis, point)   displacement (displacement_component, point)   temperature (point)   cells (corner, cell)
    point_offset (point_boundary)   cell_offset (cell_boundary)   case_id, num_points, num_cells, height, … (case)

Connectivity is zero-based within its case. A part is written whole by one task.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from lpbf_data.case import Case, Scalar
from lpbf_data.errors import StoreError
from lpbf_data.record import ATTRIBUTE_TYPES
from lpbf_data.schema import FIELDS, SCHEMA_VERSION, FieldSpec

ZARR_NAME: Final = "lpbf.zarr"
CHUNK_LENGTH: Final = 8192
"""Points (or cells) in a chunk, the unit of compression."""

_READING: Final = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
# Several writing threads would order the inner chunks of a shard as they finish: the same input, other bytes.
_WRITING: Final = _READING | {"async.concurrency": 1, "threading.max_workers": 1}
_SETTINGS_LOCK: Final = threading.RLock()
_CF: Final = {"Conventions": "CF-1.12", "featureType": "point"}


@contextmanager
def _settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """Zarr's settings hold for the whole process, so only one thread of it may change them at a time."""
    with _SETTINGS_LOCK, zarr.config.set(dict(settings)):
        yield


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
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=data.dtype.itemsize),
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
            attributes=_CF | {"lpbf_schema_version": SCHEMA_VERSION, "case_ids": [case.case_id for case in cases]},
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
    for name, type_ in ATTRIBUTE_TYPES.items():
        if name not in ("num_points", "num_cells"):
            _write_scalars(group, name, _column_of(type_, [case.attributes.get(name) for case in cases]))


def _column_of(kind: type, values: Sequence[Scalar]) -> NDArray[Any]:
    """Scalars of all cases as an array; an unknown one is NaN or an empty text, and integers stay integers."""
    if kind is str:
        return np.array(["" if value is None else value for value in values], dtype=object)
    if kind is not float and None not in values:
        return np.array(values, dtype=kind)
    return np.array([np.nan if value is None else float(value) for value in values])


def _write_scalars(
    group: zarr.Group, name: str, values: NDArray[Any], attributes: Mapping[str, Any] | None = None
) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype="string" if values.dtype == object else values.dtype,
        chunks=(max(len(values), 1),),
        dimension_names=("case",),
        attributes=dict(attributes or {}),
    )
    array[...] = values


class ZarrPart:
    """Random access to the cases of one part.

    Args:
        store: Folder of the part, or any Zarr store.
        name: How errors call it; by default its path.
    """

    def __init__(self, store: Any, *, name: str | None = None) -> None:
        self.name = name or str(store)
        try:
            with _settings(_READING):
                self._group = zarr.open_group(store, mode="r", zarr_format=3)
                self._arrays = dict(self._group.arrays())
            self.case_ids: tuple[str, ...] = tuple(cast("list[str]", self._group.attrs["case_ids"]))
            self._point_offset = self._read("point_offset", ...)
            self._cell_offset = self._read("cell_offset", ...)
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise StoreError(f"Zarr part {self.name} can't be opened ({error}); build the data set again") from error

    @property
    def field_specs(self) -> tuple[FieldSpec, ...]:
        """Fields that the part stores."""
        return tuple(spec for name, spec in FIELDS.items() if name in self._arrays)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case_ids)

    def _read(self, name: str, selection: Any) -> NDArray[Any]:
        try:
            with _settings(_READING):
                return np.asarray(self._arrays[name][selection])
        except KeyError as error:
            stored = ", ".join(spec.name for spec in self.field_specs)
            raise StoreError(f"Zarr part {self.name} has no array {name!r}; its fields are: {stored}") from error
        except (RuntimeError, ValueError, OSError) as error:
            raise StoreError(f"Zarr part {self.name}, array {name}: {error}; verify the data set") from error

    def read_field(self, row: int, spec: FieldSpec) -> NDArray[np.float32]:
        """Values of one field of one case: [N] for a scalar, [N, components] otherwise.

        Args:
            row: Number of the case in the part.
            spec: The field.
        """
        offset = self._point_offset if spec.location == "point" else self._cell_offset
        span = slice(int(offset[row]), int(offset[row + 1]))
        values = self._read(spec.name, (slice(None), span) if spec.components else span)
        return np.ascontiguousarray(values.T)

    def read_mesh(self, row: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Points [N, 3] and cells [E, 8] of one case."""
        points = slice(int(self._point_offset[row]), int(self._point_offset[row + 1]))
        cells = slice(int(self._cell_offset[row]), int(self._cell_offset[row + 1]))
        return (
            np.ascontiguousarray(self._read("points", (slice(None), points)).T),
            np.ascontiguousarray(self._read("cells", (slice(None), cells)).T),
        )

    def read_case(self, row: int, specs: Sequence[FieldSpec] | None = None) -> Case:
        """One case with the given fields (all stored ones by default); its scalars lie in the manifest.

        Args:
            row: Number of the case in the part.
            specs: Fields to read.
        """
        specs = self.field_specs if specs is None else specs
        points, cells = self.read_mesh(row)
        fields = {spec.name: self.read_field(row, spec) for spec in specs}
        return Case(self.case_ids[row], points, cells, fields)
