"""Shards: which cases go into which, and writing one of them whole."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from lpbf_data.case.case import Case
from lpbf_data.case.record import CaseRecord, attributes_of
from lpbf_data.case.schema import SCHEMA_VERSION, FieldSpec
from lpbf_data.case.statistics import FieldStatistics
from lpbf_data.durable import flush_file, flush_folder, flush_tree, sha256_of_file, sha256_of_tree, write_durably
from lpbf_data.errors import CaseError, StoreError
from lpbf_data.stores.parquet import RAW_BYTES, ParquetShard, write_shard
from lpbf_data.stores.zarr_parts import ZarrPart, write_part
from pipelines.building.attempts import run_within
from pipelines.building.targets import open_target, remove_path
from pipelines.building.workspace import MeasuredRef, load_reductions
from pipelines.measuring.convert import failed, load_case
from pipelines.measuring.measure import MEASURED_FIELDS, field_statistics
from pipelines.sources.case_files import CaseLocation

LAYOUT_VERSION: Final = 2
"""Raised when the same cases give other bytes, so that staged shards of an older version aren't used."""

_MAX_BATCHES: Final = 4000
MIN_SHARDS: Final = 4
"""Shards of a split, while it has cases enough: so that a few workers can share it."""


@dataclass(frozen=True, slots=True)
class ShardCase:
    """A case of a shard: where it lies, and what is known of it."""

    location: CaseLocation
    ref: MeasuredRef

    @property
    def record(self) -> CaseRecord:
        """What was measured."""
        return self.ref.record


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard before it is written.

    Attributes:
        split: Its split.
        index: Its number in the split.
        count: Number of shards of the split.
        key: Hash of everything that decides its bytes.
        cases: Its cases in the order of the rows.
        specs: Fields that it stores.
    """

    split: str
    index: int
    count: int
    key: str
    cases: tuple[ShardCase, ...]
    specs: tuple[FieldSpec, ...]

    @property
    def parquet_name(self) -> str:
        """Path of the Parquet file in the data set."""
        return f"data/{self.split}-{self.index:05d}-of-{self.count:05d}.parquet"

    @property
    def zarr_name(self) -> str:
        """Path of the Zarr part in the data set."""
        return f"lpbf.zarr/{self.split}/{self.index:05d}"


@dataclass(frozen=True, slots=True)
class ShardResult:
    """A shard after it was written.

    Attributes:
        key: Key of its plan.
        sizes: Format to bytes.
        digests: Format to SHA-256.
        statistics: Case id to statistics of the fields that weren't measured before.
        failures: Cases that turned out to be unusable; nothing is written when there are any.
    """

    key: str
    sizes: Mapping[str, int]
    digests: Mapping[str, str]
    statistics: Mapping[str, Mapping[str, FieldStatistics]]
    failures: tuple[CaseRecord, ...] = ()


def raw_bytes(record: CaseRecord, specs: Sequence[FieldSpec]) -> int:
    """Size of a case's arrays, uncompressed."""
    if record.measures is None:
        return 0
    points, cells = record.measures.num_points, record.measures.num_cells
    fields = sum(s.num_components * (points if s.location == "point" else cells) for s in specs)
    return 4 * (3 * points + 8 * cells + fields)


def plan_shards(
    split_of: Mapping[str, str],
    cases: Mapping[str, ShardCase],
    specs: Sequence[FieldSpec],
    shard_bytes: int = RAW_BYTES,
) -> list[ShardPlan]:
    """Divide the kept cases of each split into shards of about the same size.

    Within a split, cases lie in the order of a hash of their ids: neighbours in a shard aren't similar parts, so that
    even a reader that doesn't shuffle gets them in a random order.

    Args:
        split_of: Case id to split.
        cases: Case id to case.
        specs: Fields to store.
        shard_bytes: Uncompressed size that a shard should have.
    """
    plans: list[ShardPlan] = []
    for split in sorted(set(split_of.values())):
        members = sorted(
            (case_id for case_id, name in split_of.items() if name == split),
            key=lambda case_id: hashlib.sha256(case_id.encode()).digest(),
        )
        sizes = [raw_bytes(cases[case_id].record, specs) for case_id in members]
        count = min(len(members), max(-(-sum(sizes) // shard_bytes), MIN_SHARDS))
        for index, group in enumerate(_divide(members, sizes, count)):
            chosen = tuple(cases[case_id] for case_id in group)
            plans.append(ShardPlan(split, index, count, _key(chosen, specs), chosen, tuple(specs)))
    return plans


def _divide(members: Sequence[str], sizes: Sequence[int], count: int) -> list[list[str]]:
    """Cut a list into `count` runs of about the same total size, none of them empty."""
    ends = np.cumsum(sizes)
    bounds = [0]
    for index in range(1, count):
        wanted = int(np.searchsorted(ends, ends[-1] * index / count)) + 1
        bounds.append(min(max(wanted, bounds[-1] + 1), len(members) - (count - index)))
    bounds.append(len(members))
    return [list(members[a:b]) for a, b in itertools.pairwise(bounds)]


def _key(cases: Sequence[ShardCase], specs: Sequence[FieldSpec]) -> str:
    """Hash of all that decides a shard's bytes: contents, scalars, fields, versions. Neither name nor path."""
    content = [
        LAYOUT_VERSION,
        SCHEMA_VERSION,
        [spec.name for spec in specs],
        [
            [c.record.case_id, c.record.source.source_digest, c.record.run.tensor_order, attributes_of(c.record)]
            for c in cases
        ],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to write.

    Attributes:
        plan: What goes into it.
        formats: Formats to write.
        measured: Folder of the reductions.
        staging: Folder that it is written to.
        out: Where the data set lies.
        committed: Name of the shard in the data set as it stands, by format.
        time_limit: Seconds that reading one case may take.
    """

    plan: ShardPlan
    formats: tuple[str, ...]
    measured: Path
    staging: Path
    out: str = ""
    committed: Mapping[str, str] = field(default_factory=dict)
    time_limit: float = math.inf


def staged_path(staging: Path, key: str, format_name: str) -> Path:
    """Where a finished shard waits for the commit."""
    return staging / f"{key}.{format_name}"


def load_result(staging: Path, key: str, formats: Sequence[str], *, staged: bool = True) -> ShardResult | None:
    """The result of a shard that is written already, in every format asked for; None otherwise.

    Args:
        staging: Folder of the staged shards.
        key: Key of the shard.
        formats: Formats that are needed.
        staged: Whether its files must be staged; otherwise they lie in the data set.
    """
    path = staging / f"{key}.json"
    if not path.exists() or (staged and not all(staged_path(staging, key, name).exists() for name in formats)):
        return None
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not set(formats) <= set(stored["digests"]):
        return None
    statistics = {
        case_id: {name: FieldStatistics(**values) for name, values in columns.items()}
        for case_id, columns in stored["statistics"].items()
    }
    return ShardResult(key, stored["sizes"], stored["digests"], statistics)


def store_result(staging: Path, result: ShardResult) -> None:
    """Write the file that marks a shard as complete; it comes last."""
    content = {
        "sizes": dict(result.sizes),
        "digests": dict(result.digests),
        "statistics": {
            case_id: {name: dataclasses.asdict(s) for name, s in columns.items()}
            for case_id, columns in result.statistics.items()
        },
    }
    data = json.dumps(content, sort_keys=True, indent=1).encode()
    write_durably(staging / f"{result.key}.json", data)


def write_staged_shard(task: ShardTask) -> ShardResult:
    """Read the cases of a shard, write it in every format, read it back, and stage it.

    Args:
        task: The shard.

    Returns:
        Sizes and checksums; or failures, and nothing written, when a case can't be read any more.

    Raises:
        StoreError: If what was written doesn't read back as what was meant.
    """
    plan = task.plan
    earlier = load_result(task.staging, plan.key, task.formats) or _committed_result(task)
    if earlier is not None:
        return earlier
    cases, failures = _load_cases(task)
    if failures:
        return ShardResult(plan.key, {}, {}, {}, tuple(failures))
    sizes, digests = {}, {}
    for name in task.formats:
        sizes[name], digests[name] = _write_format(name, task, cases)
    extra = [spec for spec in plan.specs if spec.name not in MEASURED_FIELDS]
    statistics = {case.case_id: field_statistics(case, extra) for case in cases} if extra else {}
    result = ShardResult(plan.key, sizes, digests, statistics)
    store_result(task.staging, result)
    return result


def _committed_result(task: ShardTask) -> ShardResult | None:
    """The result of a shard that lies in the data set, if its bytes are still those that were written."""
    if set(task.committed) != set(task.formats):
        return None
    result = load_result(task.staging, task.plan.key, task.formats, staged=False)
    if result is None:
        return None
    target = open_target(task.out)
    intact = (target.is_intact(n, result.digests[f], result.sizes[f]) for f, n in task.committed.items())
    return result if all(intact) else None


def write_staged_shards(tasks: Sequence[ShardTask]) -> list[ShardResult]:
    """Write a batch of shards, one after the other."""
    return [write_staged_shard(task) for task in tasks]


def batch_tasks(tasks: Sequence[ShardTask]) -> list[tuple[ShardTask, ...]]:
    """Put shards into batches, few enough for a scheduler."""
    size = max(1, -(-len(tasks) // _MAX_BATCHES))
    return [tuple(tasks[start : start + size]) for start in range(0, len(tasks), size)]


def _load_cases(task: ShardTask) -> tuple[list[Case], list[CaseRecord]]:
    cases: list[Case] = []
    failures: list[CaseRecord] = []
    for member in task.plan.cases:
        try:
            reductions = load_reductions(task.measured, member.ref)
            load = functools.partial(load_case, member.location, member.record, reductions, task.plan.specs)
            cases.append(run_within(task.time_limit, load))
        except CaseError as error:
            failures.append(failed(member.location, error))
    return cases, failures


def _write_format(name: str, task: ShardTask, cases: Sequence[Case]) -> tuple[int, str]:
    """Write aside, flush, read back, rename. Size and SHA-256 of what lies there then."""
    final = staged_path(task.staging, task.plan.key, name)
    aside = task.staging / f".{task.plan.key}.{uuid.uuid4().hex}.{name}"
    try:
        if name == "parquet":
            write_shard(aside, cases, task.plan.specs)
            flush_file(aside)
            _check_shard(ParquetShard(aside), cases, task.plan.specs)
            size, digest = aside.stat().st_size, sha256_of_file(aside)
        else:
            write_part(aside, cases, task.plan.specs)
            flush_tree(aside)
            _check_shard(ZarrPart(aside), cases, task.plan.specs)
            digest, size = sha256_of_tree(aside)
        remove_path(final)
        aside.replace(final)
        flush_folder(task.staging)
    finally:
        remove_path(aside)
    return size, digest


def _check_shard(shard: ParquetShard | ZarrPart, cases: Sequence[Case], specs: Sequence[FieldSpec]) -> None:
    """Compare what lies on disk with what was meant, array by array."""
    if len(shard) != len(cases):
        raise StoreError(f"{shard.name} holds {len(shard)} cases after writing {len(cases)}")
    for row, case in enumerate(cases):
        stored = shard.read_case(row, specs)
        same = (
            stored.case_id == case.case_id
            and np.array_equal(stored.points, case.points)
            and np.array_equal(stored.cells, case.cells)
            and all(np.array_equal(stored.fields[s.name], case.fields[s.name]) for s in specs)
        )
        if not same:
            raise StoreError(f"{shard.name}, case {case.case_id}: what was read back isn't what was written")
