"""Writing a point set: shards and manifest, in a temporary folder until all of it is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.point_schema import PointSchema
from lpbf_data.case.record import CaseRecord, Placement, SourceRef, is_case_id
from lpbf_data.case.statistics import FieldStatistics, total
from lpbf_data.durable import check_empty, sha256_of_file, write_durably, written_folder
from lpbf_data.errors import CaseError, FailureReason, LpbfError, UsageError
from lpbf_data.remarks import Remark, merge_remarks
from lpbf_data.stores.manifest import MANIFEST_NAME, encode_manifest
from lpbf_data.stores.parquet import RAW_BYTES, ParquetShard, write_point_shard

_MAX_ROWS: Final = 256
_MIN_STD: Final = 1e-8  # what the published normalisation adds to a standard deviation

Columns = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class PointCase:
    """One case before it is written.

    Attributes:
        case_id: Its id, unique in the data set.
        points: Coordinates, [N, d], real numbers of any type.
        fields: Field name to values, [N] for a scalar and [N, components] otherwise.
        source: Where it was read from.
    """

    case_id: str
    points: NDArray[Any]
    fields: Mapping[str, NDArray[Any]]
    source: SourceRef = field(default_factory=lambda: SourceRef("", ""))


def write_point_set(
    out: Path,
    points: PointSchema,
    splits: Mapping[str, Iterable[PointCase]],
    *,
    standardised: bool = False,
    remarks: Sequence[Remark] = (),
    package_version: str | None = None,
) -> tuple[CaseRecord, ...]:
    """Write a point set; it appears whole or not at all.

    Args:
        out: Its folder; it must not exist yet, or be empty.
        points: Its schema.
        splits: Split to its cases, consumed one by one.
        standardised: Let models see coordinates standardised over the points of the split train.
        remarks: What was left out, changed, guessed or repaired; read after the cases, so that reading them may add to
            the list.
        package_version: Version of the package that writes it.

    Returns:
        The records of the manifest.

    Raises:
        UsageError: If the folder holds something, or a split has no case.
        CaseError: If a case has another shape than the others, or a value that isn't a finite number.
    """
    check_empty(out)
    with written_folder(out) as aside:
        records: list[CaseRecord] = []
        for split, cases in splits.items():
            written = _write_split(aside, split, cases, points, package_version)
            if not written:
                raise UsageError(f"the split {split} has no case")
            records += written
        _check_unique(records)
        if standardised:
            points = replace(points, scales={**points.scales, **_standardised(points, records)})
        write_durably(aside / MANIFEST_NAME, encode_manifest(records, merge_remarks(remarks), points))
    return tuple(records)


def _check_unique(records: Sequence[CaseRecord]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.case_id in seen or not is_case_id(record.case_id):
            reason, detail = FailureReason.DUPLICATE_CASE, "another case has the same id, or it can't name a file"
            raise CaseError(reason, detail, case_id=record.case_id)
        seen.add(record.case_id)


def _standardised(points: PointSchema, records: Sequence[CaseRecord]) -> dict[str, tuple[float, float]]:
    """Mean and unbiased standard deviation of each coordinate over the training points."""
    train = [r.statistics for r in records if r.placement is not None and r.placement.split == "train"]
    if not train:
        raise UsageError("coordinates can't be standardised without a split train")
    found = {}
    for column in points.coordinates:
        whole = total(statistics[column] for statistics in train)
        spread = (whole.squared_deviations / max(whole.count - 1, 1)) ** 0.5 + _MIN_STD
        found[column] = (whole.mean, spread)
    return found


def _write_split(
    root: Path, split: str, cases: Iterable[PointCase], points: PointSchema, package_version: str | None
) -> list[CaseRecord]:
    """Write the shards of a split, and return its records in the order of the rows."""
    records: list[CaseRecord] = []
    rest = _Ahead(cases)
    shard = 0
    while rest.more:
        name = f"data/{split}-{shard:05d}.parquet"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = len(records)
        write_point_shard(path, _rows(rest, split, shard, points, package_version, records), points)
        size, digest = path.stat().st_size, sha256_of_file(path)
        for number in range(begun, len(records)):
            placement = records[number].placement
            assert placement is not None
            kept = replace(placement, parquet_file=name, parquet_bytes=size, parquet_sha256=digest)
            records[number] = replace(records[number], placement=kept)
        shard += 1
    return records


class _Ahead:
    """Cases one by one; `more` says whether there is another."""

    def __init__(self, cases: Iterable[PointCase]) -> None:
        self._cases = iter(cases)
        self._next = next(self._cases, None)

    @property
    def more(self) -> bool:
        return self._next is not None

    def take(self) -> PointCase:
        found = self._next
        assert found is not None
        self._next = next(self._cases, None)
        return found


def _rows(
    rest: _Ahead, split: str, shard: int, points: PointSchema, version: str | None, records: list[CaseRecord]
) -> Iterator[tuple[str, Columns]]:
    """The rows of one shard, noting the record of each."""
    row, raw = 0, 0
    while rest.more and row < _MAX_ROWS and raw < RAW_BYTES:
        case = rest.take()
        columns = columns_of_case(case, points)
        statistics = {name: FieldStatistics.of(values) for name, values in columns.items()}
        records.append(
            CaseRecord(
                case.case_id, case.source, design_id=case.case_id, statistics=statistics,
                placement=Placement(split, shard, row), package_version=version, num_points=len(case.points),
            )
        )  # fmt: skip
        row, raw = row + 1, raw + sum(values.nbytes for values in columns.values())
        yield case.case_id, columns


def differences_of_row(shard: ParquetShard, row: int, record: CaseRecord, points: PointSchema) -> Iterator[str]:
    """How a stored case differs from its record, in sentences.

    Args:
        shard: Its shard.
        row: Its row there.
        record: Its record.
        points: Schema of the point set.
    """
    try:
        columns = shard.read_columns(row, ["case_id", *points.coordinates, *points.field_columns])
    except LpbfError as error:
        yield str(error)
        return
    if (stored := columns.pop("case_id")) != record.case_id:
        yield f"holds case {stored!r}"
        return
    for column, values in columns.items():
        known = record.statistics.get(column)
        if len(values) != record.num_points:
            yield f"has {len(values):,} values of {column} at {record.num_points} points"
        elif known is None or (float(values.min()), float(values.max())) != (known.minimum, known.maximum):
            span = "nothing" if known is None else f"{known.minimum} to {known.maximum}"
            yield f"{column} runs from {values.min()} to {values.max()}, the manifest says {span}"


def columns_of_case(case: PointCase, points: PointSchema) -> Columns:
    """A case as the columns of its row, checked.

    Args:
        case: The case.
        points: Schema of the point set.

    Returns:
        Column to values, [N] float32.

    Raises:
        CaseError: If shapes don't fit, or a value isn't a finite real number.
    """

    def refuse(reason: FailureReason, detail: str) -> CaseError:
        return CaseError(reason, detail, case_id=case.case_id)

    count, width = len(case.points), len(points.coordinates)
    wanted: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {"points": ((count, width), points.coordinates)}
    for spec in points.fields:
        wanted[spec.name] = (count, spec.num_components) if spec.components else (count,), spec.columns
    if count == 0:
        raise refuse(FailureReason.EMPTY_MESH, "it has no points")
    if refused := points.refuse_size(count):
        raise refuse(FailureReason.SIZE_MISMATCH, refused)
    columns: Columns = {}
    for name, (shape, names) in wanted.items():
        values = np.asarray(case.points if name == "points" else case.fields[name])
        if values.shape != shape or values.dtype.kind != "f":
            detail = f"{name} must be {list(shape)} real numbers, not {list(values.shape)} {values.dtype}"
            raise refuse(FailureReason.SIZE_MISMATCH, detail)
        with np.errstate(over="ignore"):
            single = values.astype(np.float32).reshape(count, -1)
        if not np.isfinite(single).all():
            number = int(np.flatnonzero(~np.isfinite(single).all(axis=1))[0])
            raise refuse(FailureReason.NON_FINITE, f"{name} is no finite number at point {number}")
        columns |= {column: np.ascontiguousarray(single[:, k]) for k, column in enumerate(names)}
    return columns
