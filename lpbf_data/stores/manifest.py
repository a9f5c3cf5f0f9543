"""`manifest.parquet`: one row for each case that was found: kept, rejected or failed.

Nested records become flat columns, named as in [record][lpbf_data.case.record]; others are lists, most of them of
structs (`statistics`, `rejections`, `remarks`, `geometry_digests`). What the build as a whole left out, changed,
guessed or repaired lies as JSON in the table's metadata, under `lpbf_remarks`; the schema of a point set, under
`lpbf_points`. Reader and writer share the table of columns below.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lpbf_data.cached_property import cached_property
from lpbf_data.case.point_schema import POINTS_VERSION, PointSchema
from lpbf_data.case.record import CaseRecord, Failure, Measures, Placement, Rejection, RunInfo, SourceRef, is_case_id
from lpbf_data.case.schema import SCHEMA_VERSION
from lpbf_data.case.statistics import FieldStatistics, combine
from lpbf_data.errors import FailureReason, SchemaError, StoreError, UsageError
from lpbf_data.remarks import Remark

MANIFEST_NAME: Final = "manifest.parquet"

_ARROW: Final = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
_STATISTICS: Final = pa.struct(
    [
        pa.field("column", pa.string()),
        pa.field("count", pa.int64()),
        pa.field("mean", pa.float64()),
        pa.field("squared_deviations", pa.float64()),
        pa.field("minimum", pa.float64()),
        pa.field("maximum", pa.float64()),
    ]
)
_REJECTION: Final = pa.struct(
    [pa.field("criterion", pa.string()), pa.field("value", pa.float64()), pa.field("limit", pa.float64())]
)
_MAY_LACK: Final = dict.fromkeys(("tensor_order", "tensor_order_basis"), 1) | dict.fromkeys(
    ("remarks", "family", "draw", "weight"), 2
)
"""Columns that were added later, to the last schema version whose manifests may lack them: None is read then."""

_REMARK: Final = pa.struct(
    [
        pa.field("treatment", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("sentence", pa.string()),
        pa.field("count", pa.int64()),
        pa.field("examples", pa.list_(pa.string())),
    ]
)
_REMARKS_KEY: Final = b"lpbf_remarks"
_POINTS_KEY: Final = b"lpbf_points"
_VERSION_KEY: Final = b"lpbf_schema_version"
# Parts of a record that become flat columns, in the order of the columns.
_PARTS: Final[tuple[tuple[str, type], ...]] = (
    ("source", SourceRef),
    ("run", RunInfo),
    ("measures", Measures),
    ("failure", Failure),
    ("placement", Placement),
)


def _arrow_type(annotation: str) -> pa.DataType:
    name = annotation.partition(" | ")[0]
    return _ARROW["str" if name == "FailureReason" else name]


def manifest_schema() -> pa.Schema:
    """Arrow schema of the manifest."""
    columns = [pa.field("case_id", pa.string()), pa.field("design_id", pa.string()), pa.field("status", pa.string())]
    for _, part in _PARTS:
        columns += [pa.field(f.name, _arrow_type(str(f.type))) for f in dataclasses.fields(part)]
    columns += [
        pa.field("package_version", pa.string()),
        pa.field("geometry_digests", pa.list_(pa.string())),
        pa.field("rejections", pa.list_(_REJECTION)),
        pa.field("statistics", pa.list_(_STATISTICS)),
        pa.field("remarks", pa.list_(_REMARK)),
    ]
    return pa.schema(columns, metadata={"lpbf_schema_version": str(SCHEMA_VERSION)})


def _row_of(record: CaseRecord) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case_id": record.case_id,
        "design_id": record.design_id,
        "status": record.status,
        "package_version": record.package_version,
        "geometry_digests": list(record.geometry_digests),
        "rejections": [dataclasses.asdict(r) for r in record.rejections],
        "statistics": [{"column": name, **dataclasses.asdict(s)} for name, s in sorted(record.statistics.items())],
        "remarks": [remark.as_dict() for remark in record.remarks],
    }
    for name, _ in _PARTS:
        value = getattr(record, name)
        if value is not None:
            row |= dataclasses.asdict(value)
    if record.num_points is not None:
        row["num_points"] = record.num_points
    return row


def _record_of(row: dict[str, Any]) -> CaseRecord:
    def part(kind: type, present: str | None = None) -> Any:
        if present is not None and row[present] is None:
            return None
        return kind(**{f.name: row[f.name] for f in dataclasses.fields(kind)})

    failure = part(Failure, "failure_reason")
    if failure is not None:
        failure = dataclasses.replace(failure, failure_reason=FailureReason(failure.failure_reason))
    # Points alone are no measures, and measures without points are none either.
    measures = part(Measures, "height") if row["num_points"] is not None else None
    return CaseRecord(
        case_id=row["case_id"],
        design_id=row["design_id"],
        source=part(SourceRef),
        run=part(RunInfo),
        measures=measures,
        statistics={s.pop("column"): FieldStatistics(**s) for s in row["statistics"] or ()},
        geometry_digests=tuple(row["geometry_digests"] or ()),
        failure=failure,
        rejections=tuple(Rejection(**r) for r in row["rejections"] or ()),
        placement=part(Placement, "split"),
        package_version=row["package_version"],
        remarks=tuple(map(Remark.from_dict, row["remarks"] or ())),
        num_points=row["num_points"] if measures is None else None,
    )


def records_to_table(records: Iterable[CaseRecord]) -> pa.Table:
    """Records as an Arrow table, sorted by case id and source."""
    ordered = sorted(records, key=lambda r: (r.case_id, r.source.archive, r.source.member))
    return pa.Table.from_pylist([_row_of(r) for r in ordered], schema=manifest_schema())


def table_to_records(table: pa.Table) -> tuple[CaseRecord, ...]:
    """The inverse of [records_to_table][lpbf_data.stores.manifest.records_to_table]."""
    return tuple(_record_of(row) for row in table.to_pylist())


class Manifest:
    """The manifest of a data set, columns first.

    Args:
        table: Arrow table with the columns of [manifest_schema][lpbf_data.stores.manifest.manifest_schema].
        digest: SHA-256 of the file it was read from, if it was.
        schema_version: Version of the schema that the data set follows.
        points: Schema of a point set; None for a data set of printed parts.
    """

    def __init__(
        self,
        table: pa.Table,
        digest: str | None = None,
        schema_version: int = SCHEMA_VERSION,
        points: PointSchema | None = None,
    ) -> None:
        self.table = table
        self.digest = digest
        self.schema_version = schema_version
        self.points = points

    def need_parts(self, name: str, what: str) -> None:
        """Check that a data set is one of printed parts.

        Args:
            name: The data set, for the message.
            what: What needs printed parts, as the subject of a sentence, such as the name of a command.

        Raises:
            UsageError: If it is a point set.
        """
        if self.points is not None:
            raise UsageError(
                f"{name} is a data set of {self.points.name}, points without cells; {what} is for printed parts alone"
            )

    @cached_property
    def records(self) -> tuple[CaseRecord, ...]:
        """Every row as a [CaseRecord][lpbf_data.case.record.CaseRecord]."""
        return table_to_records(self.table)

    @cached_property
    def remarks(self) -> tuple[Remark, ...]:
        """What the build left out, changed, guessed or repaired, over all cases and sources."""
        stored = (self.table.schema.metadata or {}).get(_REMARKS_KEY, b"[]")
        try:
            return tuple(map(Remark.from_dict, json.loads(stored)))
        except (ValueError, KeyError, TypeError) as error:
            raise SchemaError(f"{MANIFEST_NAME} has remarks that can't be read ({error}); build it again") from error

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one case, train first."""
        names = {name for name in pc.unique(self.table["split"]).to_pylist() if name is not None}
        order = {"train": 0, "validation": 1, "test": 2}
        return tuple(sorted(names, key=lambda name: (order.get(name, len(order)), name)))

    def of_split(self, split: str) -> pa.Table:
        """Rows of one split in the order of shard and row."""
        return self.table.filter(pc.equal(self.table["split"], split)).sort_by(
            [("shard", "ascending"), ("row", "ascending")]
        )

    def statistics(self, case_ids: Sequence[str]) -> dict[str, FieldStatistics]:
        """Statistics of each column over some kept cases.

        Args:
            case_ids: Their ids; a case that is named twice counts twice.

        Returns:
            Column name, say "displacement_z", to statistics, for the columns that all of these cases have.

        Raises:
            StoreError: If a case isn't among those that were kept.
        """
        kept = self.table.filter(pc.is_valid(self.table["split"]))
        rows = pc.index_in(pa.array(case_ids, pa.string()), kept["case_id"].combine_chunks())
        if rows.null_count:
            missing = case_ids[pc.index(pc.is_null(rows), True).as_py()]
            raise StoreError(f"{MANIFEST_NAME} has no case {missing} any more; open the data set again")
        lists = kept["statistics"].combine_chunks().take(rows)
        names, *numbers = [pc.struct_field(lists.flatten(), field.name) for field in _STATISTICS]
        if any(column.null_count for column in (names, *numbers)):
            raise SchemaError(f"{MANIFEST_NAME} has statistics without a number; build it again")
        encoded = names.dictionary_encode()
        # Rows of one column side by side, those of its cases in their order.
        order = np.argsort(encoded.indices.to_numpy(), kind="stable")
        counts = np.bincount(encoded.indices.to_numpy(), minlength=len(encoded.dictionary))
        values = [column.to_numpy()[order] for column in numbers]
        found = {}
        for name, count, stop in zip(encoded.dictionary.to_pylist(), counts, np.cumsum(counts), strict=True):
            if count == len(case_ids):
                found[name] = combine(*(column[stop - count : stop] for column in values))
        return dict(sorted(found.items()))

    def __len__(self) -> int:
        """Number of rows."""
        return cast("int", self.table.num_rows)


def encode_manifest(
    records: Iterable[CaseRecord], remarks: Iterable[Remark] = (), points: PointSchema | None = None
) -> bytes:
    """The bytes of `manifest.parquet`; the same records and remarks give the same bytes.

    Args:
        records: A row each.
        remarks: What the build left out, changed, guessed or repaired, over all cases and sources.
        points: Schema of a point set; None for a data set of printed parts.
    """
    table = records_to_table(records)
    if points is not None:
        table = table.replace_schema_metadata(
            {_VERSION_KEY: str(POINTS_VERSION).encode(), _POINTS_KEY: points.encode()}
        )
    if stored := [remark.as_dict() for remark in remarks]:
        metadata: dict[Any, Any] = dict(table.schema.metadata)
        table = table.replace_schema_metadata(metadata | {_REMARKS_KEY: json.dumps(stored).encode()})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest from its bytes.

    Args:
        data: Content of `manifest.parquet`.

    Raises:
        StoreError: If the bytes aren't a Parquet file.
        SchemaError: If it follows a newer schema, lacks a column, or a kept case has an id that can't name a file.
    """
    try:
        # Without threads, not even to read ahead: with those that read_table starts, PyArrow now and then aborts a
        # process that ends ("terminate called without an active exception").
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{MANIFEST_NAME} can't be read as Parquet ({error}); build the data set again") from error
    metadata = table.schema.metadata or {}
    version = int(metadata.get(_VERSION_KEY, b"0"))
    if not 1 <= version <= POINTS_VERSION:
        raise SchemaError(
            f"{MANIFEST_NAME} has schema version {version}, this package reads 1 to {POINTS_VERSION}; "
            + ("upgrade the package" if version > POINTS_VERSION else "it was not written by this project")
        )
    if (version == POINTS_VERSION) != (_POINTS_KEY in metadata):
        raise SchemaError(f"{MANIFEST_NAME} has schema version {version}, which doesn't go with its schema of points")
    points = PointSchema.decode(metadata[_POINTS_KEY]) if version == POINTS_VERSION else None
    for field in manifest_schema():
        if field.name not in table.column_names:
            if version > _MAY_LACK.get(field.name, 0):
                raise SchemaError(f"{MANIFEST_NAME} lacks the column {field.name!r}")
            table = table.append_column(field.name, pa.nulls(len(table), field.type))
    # Failed cases may have any id: members of archives can have any name.
    kept = table.filter(pc.is_valid(table["split"]))["case_id"].to_pylist()
    if refused := [case_id for case_id in kept if not is_case_id(case_id)]:
        raise SchemaError(
            f"{MANIFEST_NAME} has a case with the id {refused[0]!r}, which can't name a file; build the data set again"
        )
    return Manifest(table, hashlib.sha256(data).hexdigest(), version, points)


def count_by(records: Sequence[CaseRecord], key: Callable[[CaseRecord], Iterable[str]]) -> dict[str, int]:
    """How many records carry each label, most frequent first."""
    counts: dict[str, int] = {}
    for record in records:
        for label in key(record):
            counts[label] = counts.get(label, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
