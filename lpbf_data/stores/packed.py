"""A packed corpus: a data set in a few numbered files that travel easily, its reader and its writer.

    corpus-00000-of-00003.parquet   a row per case: its row of the manifest, its voxels, its quantised fields

A piece is Parquet with a checksum for each page, and each case has one over what was stored of it. Nothing is
unpickled, and sizes are compared with each other before memory is allocated for them. Meshes are restored to the bit,
values within the tolerance that each piece states: a share of a field's largest value (for vectors: of the longest one)
in a case. Fields of cells, and meshes that this project's mesher didn't number, can't be packed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lpbf_data.case.case import Case
from lpbf_data.case.record import CaseRecord, Placement, attributes_of, is_case_id
from lpbf_data.case.schema import SCHEMA_VERSION, FieldSpec
from lpbf_data.errors import SchemaError, StoreError, UsageError
from lpbf_data.stores.manifest import manifest_schema, records_to_table, table_to_records
from lpbf_data.stores.packed_codec import PackedCase, known_fields, origin_of, pack_case, unpack_case
from lpbf_data.stores.parquet import reason_of

PIECE_BYTES: Final = 60 * 2**20
"""Most bytes of a piece."""

DEFAULT_TOLERANCE: Final = 2e-5
"""Share of a field's largest value in a case that its values may be off."""

_VERSION: Final = 1
_KEY: Final = b"lpbf_packed"
_NAME: Final = re.compile(r"corpus-(\d{5})-of-(\d{5})\.parquet")
_AXES: Final = ("planes_x", "planes_y", "planes_z")
_STORED: Final = pa.schema(
    [
        *(pa.field(name, pa.list_(pa.float32())) for name in _AXES),
        pa.field("occupied", pa.binary()),
        pa.field("steps", pa.list_(pa.float64())),
        pa.field("residuals", pa.list_(pa.int32())),
        pa.field("packed_sha256", pa.string()),
    ]
)
_GROUP: Final = 32  # cases that are compressed together
_MAX_GROUP_BYTES: Final = 2**30  # bytes, uncompressed: far beyond 32 parts of 200,000 points
_LEVEL: Final = 19  # of zstd
_OF_FLOATS: Final = 2e-7  # of a value as it is stored, its origin included: rounding of what is restored


@dataclass(frozen=True)
class PackedHeader:
    """Metadata of a piece.

    Attributes:
        piece: Its number, from 0.
        pieces: How many there are.
        cases: How many cases it holds.
        tolerance: Share of a field's largest value in a case that its values may be off.
        fields: Fields that it holds.
    """

    piece: int
    pieces: int
    cases: int
    tolerance: float
    fields: tuple[str, ...]

    @property
    def specs(self) -> tuple[FieldSpec, ...]:
        """Specifications of the fields."""
        return known_fields(self.fields)


class PackedWriter:
    """Writes the pieces of a packed corpus; they get their names when it is known how many there are.

    Args:
        folder: An empty folder.
        specs: Fields of points to keep.
        tolerance: Share of a field's largest value in a case that its values may be off, 1e-6 or more.
        piece_bytes: Most bytes of a piece.
    """

    def __init__(
        self,
        folder: Path,
        specs: Sequence[FieldSpec],
        tolerance: float = DEFAULT_TOLERANCE,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self._folder, self._specs, self._tolerance, self._piece_bytes = folder, tuple(specs), tolerance, piece_bytes
        self._waiting: list[tuple[CaseRecord, PackedCase]] = []
        self._groups: list[Path] = []

    def add(self, record: CaseRecord, case: Case) -> dict[str, float] | None:
        """Add a case.

        Args:
            record: Its record.
            case: Its arrays.

        Returns:
            For each field, the largest error over the field's largest value; None when the case can't be packed.

        Raises:
            StoreError: If what would be read back isn't the case within the tolerance.
        """
        packed = pack_case(case, self._specs, self._tolerance)
        if packed is None:
            return None
        errors = self._errors(packed, case)
        self._waiting.append((record, packed))
        if len(self._waiting) == _GROUP:
            self._flush()
        return errors

    def _errors(self, packed: PackedCase, case: Case) -> dict[str, float]:
        """Errors of what would be read back; numbers are floats there, so they may be off by a little more."""
        back = unpack_case(packed, case.case_id, self._specs, case.attributes)
        same = np.array_equal(back.points, case.points) and np.array_equal(back.cells, case.cells)
        errors = {spec.name: relative_error(back, case, spec) for spec in self._specs}
        if not same or any(errors[spec.name] > self._tolerance + _rounding(case, spec) for spec in self._specs):
            raise StoreError(f"case {case.case_id}: what would be read back isn't what is packed")
        return errors

    def _flush(self) -> None:
        """Write a row group as a file of its own: its size decides where a piece ends."""
        if self._waiting:
            table = _table_of(self._waiting)
            self._waiting = []
            path = self._folder / f"group-{len(self._groups):06d}"
            _write(path, [table], table.schema)
            self._groups.append(path)

    def close(self) -> tuple[Path, ...]:
        """Write the pieces.

        Returns:
            Their files.

        Raises:
            UsageError: If nothing was added.
        """
        self._flush()
        pieces: list[list[Path]] = []
        size = self._piece_bytes
        for path in self._groups:
            bytes_here = path.stat().st_size
            if size + bytes_here > self._piece_bytes:
                pieces.append([])
                size = 0
            pieces[-1].append(path)
            size += bytes_here
        if not pieces:
            raise UsageError("no case can be packed: no mesh is numbered as this project's mesher numbers it")
        files = []
        for number, groups in enumerate(pieces):
            cases = sum(pq.ParquetFile(path, pre_buffer=False).metadata.num_rows for path in groups)
            names = tuple(spec.name for spec in self._specs)
            header = PackedHeader(number, len(pieces), cases, self._tolerance, names)
            final = self._folder / f"corpus-{number:05d}-of-{len(pieces):05d}.parquet"
            stored = {_KEY: json.dumps(dataclasses.asdict(header) | {"version": _VERSION}).encode()}
            schema = _schema().with_metadata({**manifest_schema().metadata, **stored})
            _write(final, (pq.read_table(path, use_threads=False) for path in groups), schema)
            files.append(final)
        for path in self._groups:
            path.unlink()
        return tuple(files)


def relative_error(one: Case, other: Case, spec: FieldSpec) -> float:
    """Largest difference between a field of two cases, any component, over its largest value in the second.

    A field with an origin of its own, such as a clearance of 100 %, is measured from there.
    """
    values, largest = _measured(other, spec)
    difference = float(np.abs(one.planar(spec) - values).max())
    return difference / largest if largest else (math.inf if difference else 0.0)


def _measured(case: Case, spec: FieldSpec) -> tuple[NDArray[np.float64], float]:
    """Values of a field, [components, N], and the largest distance of any from the field's origin."""
    values = case.planar(spec).astype(np.float64)
    return values, float(np.linalg.norm(values - origin_of(spec), axis=0).max())


def _rounding(case: Case, spec: FieldSpec) -> float:
    """What floats of a field's size are rounded by, over its largest distance from its origin."""
    values, largest = _measured(case, spec)
    return _OF_FLOATS * float(np.abs(values).max()) / largest if largest else 0.0


def _schema() -> pa.Schema:
    return pa.schema([*manifest_schema(), *_STORED])


def _table_of(cases: Sequence[tuple[CaseRecord, PackedCase]]) -> pa.Table:
    ordered = sorted(cases, key=lambda pair: (pair[0].case_id, pair[0].source.archive, pair[0].source.member))
    table = records_to_table(record for record, _ in ordered)
    packed = [one for _, one in ordered]
    columns: list[list[Any]] = [[one.planes[axis] for one in packed] for axis in range(3)]
    columns += [[one.occupied for one in packed], [one.steps for one in packed]]
    columns += [[one.residuals.reshape(-1).astype(np.int32) for one in packed], [one.digest for one in packed]]
    for field, values in zip(_STORED, columns, strict=True):
        table = table.append_column(field, pa.array(values, field.type))
    return table


def _write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in (*_AXES, "steps", "residuals")}
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=_LEVEL,
        use_dictionary=[field.name for field in manifest_schema() if pa.types.is_string(field.type)],
        column_encoding=split,
        write_page_checksum=True,
        write_statistics=False,
    ) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=_GROUP)


def find_pieces(source: Path) -> tuple[Path, ...]:
    """The pieces of a packed corpus, in their order.

    Args:
        source: Folder that holds them, or one of them.

    Raises:
        UsageError: If there are none, or those of several corpora.
        StoreError: If one is missing.
    """
    folder = source if source.is_dir() else source.parent
    matches = [match for path in sorted(folder.glob("corpus-*-of-*.parquet")) if (match := _NAME.fullmatch(path.name))]
    counts = {int(match[2]) for match in matches}
    if len(counts) != 1:
        found = "pieces of several corpora" if counts else "no corpus-….parquet"
        raise UsageError(f"{source} holds {found}; name the folder that python -m pipelines.pack wrote")
    (count,) = counts
    missing = sorted(set(range(count)) - {int(match[1]) for match in matches})
    if missing:
        raise StoreError(f"{folder} lacks piece {missing[0]} of {count} ({len(missing)} in all); fetch it too")
    return tuple(folder / f"corpus-{number:05d}-of-{count:05d}.parquet" for number in range(count))


class PackedPiece:
    """One piece, to be read.

    Args:
        path: The file.

    Raises:
        StoreError: If it can't be read, or isn't what its name says.
        SchemaError: If it follows a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
        except (pa.ArrowException, OSError, MemoryError, ValueError) as error:  # names that aren't UTF-8 among them
            raise self._broken(error) from error
        self.header = self._read_header()
        groups = [self._file.metadata.row_group(number) for number in range(self._file.metadata.num_row_groups)]
        if any(group.num_rows > _GROUP or group.total_byte_size > _MAX_GROUP_BYTES for group in groups):
            raise StoreError(f"{path.name} announces more than a piece can hold; it is not read")
        if not self._file.metadata.num_rows == sum(group.num_rows for group in groups) == self.header.cases:
            raise StoreError(f"{path.name} doesn't hold the {self.header.cases:,} cases that it says; fetch it again")

    def _broken(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self.path.name} can't be read ({reason_of(error)}); fetch it again, or pack the data set again"
        )

    def _read_header(self) -> PackedHeader:
        metadata = self._file.schema_arrow.metadata or {}
        try:
            stored = json.loads(metadata[_KEY])
            version, schema = int(stored["version"]), int(metadata[b"lpbf_schema_version"])
            piece, pieces, cases = (int(stored[name]) for name in ("piece", "pieces", "cases"))
            header = PackedHeader(piece, pieces, cases, float(stored["tolerance"]), tuple(stored["fields"]))
            newer = version > _VERSION or schema > SCHEMA_VERSION
            specs = () if newer else header.specs
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise StoreError(f"{self.path.name} is no piece of a packed corpus: its header can't be read") from error
        if newer:
            raise SchemaError(f"{self.path.name} follows version {version}.{schema}; upgrade the package")
        named = _NAME.fullmatch(self.path.name)
        if named is None or (int(named[1]), int(named[2])) != (header.piece, header.pieces):
            raise StoreError(f"{self.path.name} says that it is piece {header.piece} of {header.pieces}; name it so")
        if not specs or self._file.schema_arrow.names != _schema().names:
            raise StoreError(f"{self.path.name} has other columns than a piece of a packed corpus")
        return header

    def records(self) -> tuple[CaseRecord, ...]:
        """The rows of the manifest.

        Raises:
            StoreError: If they can't be read, or a case isn't a measured one with a split and an id that names a file.
        """
        records = self._records(self._read(None, manifest_schema().names))
        for record in records:
            split = None if record.placement is None else record.placement.split
            if record.measures is None or not is_case_id(record.case_id) or not re.fullmatch(r"\w[\w.-]*", split or ""):
                raise StoreError(f"{self.path.name}: case {record.case_id!r} has no measures, or an impossible name")
        return records

    def _records(self, table: pa.Table) -> tuple[CaseRecord, ...]:
        try:
            return table_to_records(table.cast(manifest_schema()))
        except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
            raise self._broken(error) from error

    def _read(self, group: int | None, columns: list[str]) -> pa.Table:
        try:
            if group is None:
                return self._file.read(columns, use_threads=False)
            return self._file.read_row_group(group, columns, use_threads=False)
        except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
            raise self._broken(error) from error

    def cases(self) -> Iterator[Case]:
        """Every case, in the order of `records`; a row group is in memory at a time.

        Raises:
            StoreError: If one is damaged.
        """
        columns = [*manifest_schema().names, *_STORED.names]
        for group in range(self._file.metadata.num_row_groups):
            table = self._read(group, columns)
            records = self._records(table.select(manifest_schema().names))
            for row, record in zip(table.select(_STORED.names).to_batches(max_chunksize=1), records, strict=True):
                yield self._case(row, record)

    def _case(self, row: pa.RecordBatch, record: CaseRecord) -> Case:
        specs = self.header.specs
        columns = sum(spec.num_components for spec in specs)
        try:
            values = {f.name: row.column(f.name).cast(f.type) for f in _STORED}
            flat = {name: v.flatten().to_numpy(zero_copy_only=False) for name, v in values.items() if name in _FLAT}
            residuals = flat["residuals"].astype(np.int32).view(np.uint32)
            packed = PackedCase(
                (flat["planes_x"], flat["planes_y"], flat["planes_z"]),
                values["occupied"][0].as_py() or b"",
                flat["steps"],
                residuals.reshape(columns, -1),
            )
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise self._broken(error) from error
        if packed.digest != values["packed_sha256"][0].as_py():
            raise StoreError(f"{self.path.name}: case {record.case_id} isn't what was packed; fetch the piece again")
        return unpack_case(packed, record.case_id, specs, attributes_of(record))


_FLAT: Final = (*_AXES, "steps", "residuals")


def with_split_only(record: CaseRecord) -> CaseRecord:
    """A record whose placement has its split alone: shards and rows are assigned anew when it is unpacked."""
    assert record.placement is not None
    return dataclasses.replace(record, placement=Placement(record.placement.split, 0, 0))
