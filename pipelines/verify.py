"""`python -m pipelines.verify lpbf/`: is a data set what its manifest says, to the last byte?

Every shard is hashed, decoded and held against the manifest, and its Parquet file against its Zarr part; then the
splits are checked for leaks. Bounded by reading and hashing; a shard is one task.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lpbf_data.command_line import run
from lpbf_data.console import open_console, progress
from lpbf_data.durable import sha256_of_file, sha256_of_tree
from lpbf_data.errors import LpbfError, StoreError, UsageError
from pipelines.building.engine import SERIAL, Resources, open_engine

if TYPE_CHECKING:
    import numpy as np

    from lpbf_data.case.case import Case
    from lpbf_data.case.point_schema import PointSchema
    from lpbf_data.case.record import CaseRecord
    from lpbf_data.stores.manifest import Manifest
    from lpbf_data.stores.parquet import ParquetShard
    from lpbf_data.stores.zarr_parts import ZarrPart

_MAX_SHOWN: Final = 50


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that isn't as it should be: where, and what."""

    file: str
    what: str
    row: int | None = None
    case_id: str | None = None

    def __str__(self) -> str:
        """One line for people."""
        row = "" if self.row is None else f", row {self.row}"
        case = "" if self.case_id is None else f", case {self.case_id}"
        return f"{self.file}{row}{case}: {self.what}"


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """A shard to check: where the data set lies, and the records of the shard's cases in the order of the rows.

    `points` is given for a data set that isn't one of printed parts.
    """

    root: str
    records: tuple[CaseRecord, ...]
    points: PointSchema | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What checking gave."""

    problems: tuple[Problem, ...]
    cases: int = 0
    bytes_read: int = 0
    known_fault: str | None = None


def check_shard(task: ShardCheck) -> Verdict:
    """Hash and decode one shard in every format, and hold it against the manifest.

    A shard of a remote data set is copied onto this machine for as long as it takes.

    Args:
        task: The shard.
    """
    from pipelines.sources.locations import fetch, is_url

    if not is_url(task.root):
        return _check_files(Path(task.root), task)
    placement = task.records[0].placement
    assert placement is not None
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(None, (placement.parquet_file, placement.zarr_part)):
            # What can't be fetched is missing, and is reported below.
            with contextlib.suppress(OSError):
                fetch(f"{task.root}/{name}", Path(folder) / name)
        return _check_files(Path(folder), task)


def _check_files(root: Path, task: ShardCheck) -> Verdict:
    from lpbf_data.stores.parquet import ParquetShard
    from lpbf_data.stores.point_sets import differences_of_row
    from lpbf_data.stores.zarr_parts import ZarrPart

    placement = task.records[0].placement
    assert placement is not None
    problems: list[Problem] = []
    size = 0
    shards: list[tuple[str, ParquetShard | ZarrPart]] = []
    for name, expected, sha256 in (
        (placement.parquet_file, placement.parquet_bytes, placement.parquet_sha256),
        (placement.zarr_part, placement.zarr_bytes, placement.zarr_sha256),
    ):
        if name is None:
            continue
        path = root / name
        if not path.exists():
            problems.append(Problem(name, "is missing"))
            continue
        digest, found = sha256_of_tree(path) if path.is_dir() else (sha256_of_file(path), path.stat().st_size)
        size += found
        if digest != sha256:
            problems.append(
                Problem(name, f"has SHA-256 {digest[:12]}… and {found:,} bytes, not {expected:,} as written")
            )
        try:
            shards.append((name, ZarrPart(path) if path.is_dir() else ParquetShard(path)))
        except LpbfError as error:
            problems.append(Problem(name, str(error)))
    for name, shard in shards:
        if len(shard) != len(task.records):
            problems.append(Problem(name, f"holds {len(shard)} cases, the manifest says {len(task.records)}"))
    for row, record in enumerate(task.records):
        if task.points is None:
            problems += _check_row(shards, row, record)
            continue
        for name, shard in shards:
            if not isinstance(shard, ParquetShard):
                problems.append(Problem(name, "is no Parquet shard, as one of points without cells must be"))
                break
            differences = differences_of_row(shard, row, record, task.points)
            problems += [Problem(name, what, row, record.case_id) for what in differences]
    return Verdict(tuple(problems), len(task.records), size)


def _check_row(
    shards: Sequence[tuple[str, ParquetShard | ZarrPart]], row: int, record: CaseRecord
) -> Iterator[Problem]:
    """One case in every format, against the manifest and against each other."""
    first: tuple[str, Case] | None = None
    for name, shard in shards:
        if row >= len(shard):
            continue
        try:
            case = shard.read_case(row)  # its construction checks shapes, finite values and connectivity
        except LpbfError as error:
            yield Problem(name, str(error), row, record.case_id)
            continue
        for what in _differences(case, record):
            yield Problem(name, what, row, record.case_id)
        if first is None:
            first = (name, case)
        elif what := _unequal(first[1], case):
            yield Problem(name, f"{what} differs from {first[0]}", row, record.case_id)


def _differences(case: Case, record: CaseRecord) -> Iterator[str]:
    """What a stored case has other than its record says."""
    from lpbf_data.case.record import attributes_of
    from lpbf_data.geometry.hexahedra import count_hex_edges

    measures = record.measures
    if case.case_id != record.case_id:
        yield f"holds case {case.case_id!r}"
        return
    if measures is None:
        yield "has no measures in the manifest"
        return
    counted = (case.num_points, case.num_cells, count_hex_edges(case.cells))
    if counted != (measures.num_points, measures.num_cells, measures.num_edges):
        yield f"has {counted[0]} points, {counted[1]} cells and {counted[2]} edges"
    wanted = attributes_of(record)
    if wrong := [name for name, value in case.attributes.items() if value != wanted[name]]:
        yield f"says {wrong[0]} = {case.attributes[wrong[0]]!r}, the manifest {wanted[wrong[0]]!r}"
    for column, stats in record.statistics.items():
        values = _column(case, column)
        if values is None:
            yield f"has no column {column}"
        elif (float(values.min()), float(values.max())) != (stats.minimum, stats.maximum):
            yield f"{column} runs from {values.min()} to {values.max()}, not {stats.minimum} to {stats.maximum}"


def _column(case: Case, column: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    from lpbf_data.case.schema import FIELDS

    for name, values in case.fields.items():
        columns = FIELDS[name].columns
        if column in columns:
            return values[:, columns.index(column)] if FIELDS[name].components else values
    return None


def _unequal(one: Case, other: Case) -> str:
    """Name of the first array that two cases don't share; empty when they are equal."""
    import numpy as np

    if not np.array_equal(one.points, other.points):
        return "points"
    if not np.array_equal(one.cells, other.cells):
        return "cells"
    names = sorted(set(one.fields) | set(other.fields))
    empty = np.empty(0)
    return next((n for n in names if not np.array_equal(one.fields.get(n, empty), other.fields.get(n, empty))), "")


def check_documents(root: str, manifest: Manifest) -> Iterator[Problem]:
    """`build.json`, the card, and the splits, against the manifest."""
    from lpbf_data.stores.manifest import MANIFEST_NAME
    from pipelines.reporting.documents import BUILD_NAME
    from pipelines.selection.split_options import PUBLISHED
    from pipelines.sources.locations import read_bytes

    try:
        described = json.loads(read_bytes(f"{root}/{BUILD_NAME}"))
    except (OSError, ValueError) as error:
        yield Problem(BUILD_NAME, f"can't be read: {error}")
        described = {}
    if not isinstance(described, dict) or not isinstance(described.get("configuration", {}), dict):
        yield Problem(BUILD_NAME, "isn't what a build writes; build again to write it anew")
        described = {}
    if described and described.get("manifest_sha256") != manifest.digest:
        yield Problem(MANIFEST_NAME, f"has SHA-256 {str(manifest.digest)[:12]}…, {BUILD_NAME} says another")
    yield from _check_card(root, manifest)
    yield from _check_report(root, manifest)
    kept = [record for record in manifest.records if record.placement is not None]
    if described.get("configuration", {}).get("splits") != PUBLISHED:
        yield from _find_leaks(manifest.records)
    known = {n for r in kept if r.placement for n in (r.placement.parquet_file, r.placement.zarr_part) if n}
    for name in sorted(_shards_at(root) - known):
        yield Problem(name, "isn't in the manifest")
    ids = [record.case_id for record in kept]
    for case_id in sorted({case_id for case_id in ids if ids.count(case_id) > 1}) if len(set(ids)) < len(ids) else []:
        yield Problem(MANIFEST_NAME, "is kept twice", None, case_id)


def _shards_at(root: str) -> set[str]:
    """Parquet files and Zarr parts that lie there."""
    from lpbf_data.stores.zarr_parts import ZARR_NAME
    from pipelines.building.targets import FolderTarget
    from pipelines.sources.locations import is_url, list_remote

    if not is_url(root):
        return set(FolderTarget(Path(root)).shards())
    names = list_remote(root)
    parts = {
        "/".join(name.split("/")[:3]) for name in names if name.startswith(f"{ZARR_NAME}/") and name.count("/") > 2
    }
    return parts | {name for name in names if name.startswith("data/")}


def _check_card(root: str, manifest: Manifest) -> Iterator[Problem]:
    import yaml

    from pipelines.reporting.documents import PICTURES_NAME
    from pipelines.sources.locations import read_bytes, size_and_version

    try:
        card = read_bytes(f"{root}/README.md").decode()
        front = yaml.safe_load(card.split("---\n")[1])
    except (OSError, IndexError, UnicodeError, yaml.YAMLError) as error:
        yield Problem("README.md", f"has no readable metadata: {error}")
        return
    for picture in re.findall(rf"\]\(({PICTURES_NAME}/[^)]*)\)", card):
        try:
            size_and_version(f"{root}/{picture}")
        except OSError:
            yield Problem("README.md", f"shows {picture}, which is missing")
    # The card may have been edited by hand: its metadata can hold anything.
    configs = front.get("configs", []) if isinstance(front, dict) else None
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        yield Problem("README.md", "has metadata that plain datasets can't read; build again to write the card anew")
        return
    has_parquet = any(r.placement is not None and r.placement.parquet_file is not None for r in manifest.records)
    if has_parquet and not configs:
        yield Problem("README.md", "names no splits, so plain datasets can't tell them; build again to write it anew")
    for config in configs:
        yield from _check_config(config, manifest)


def _check_config(config: dict[Any, Any], manifest: Manifest) -> Iterator[Problem]:
    """One configuration of the card's metadata: its splits, and the version by which plain datasets keep rows."""
    from pipelines.reporting.card import dataset_version

    files = config.get("data_files")
    entries = files if isinstance(files, list) else []
    named = {str(entry.get("split")) if isinstance(entry, dict) else "?" for entry in entries}
    if named != set(manifest.splits):
        yield Problem("README.md", f"names the splits {sorted(named)}, the manifest {list(manifest.splits)}")
    if config.get("version") != dataset_version(str(manifest.digest), manifest.schema_version):
        yield Problem("README.md", "has a version that doesn't follow the manifest: plain datasets may give old rows")


def _check_report(root: str, manifest: Manifest) -> Iterator[Problem]:
    """A report isn't always there; where it is, it must show this data set."""
    from pipelines.reporting.documents import REPORT_NAME
    from pipelines.sources.locations import read_bytes

    try:
        found = re.search(rb'name="lpbf-manifest-sha256" content="([0-9a-f]*)"', read_bytes(f"{root}/{REPORT_NAME}"))
    except OSError:
        return
    if found is None or found[1].decode() != manifest.digest:
        yield Problem(REPORT_NAME, "shows another state of the data set; make it again with python -m pipelines.report")


def _find_leaks(records: Sequence[CaseRecord]) -> Iterator[Problem]:
    """Designs that lie in more than one split."""
    from lpbf_data.stores.manifest import MANIFEST_NAME
    from pipelines.selection.splits import leaking_designs

    for design, cases in leaking_designs(records).items():
        listed = ", ".join(f"{case} in {split}" for split, case in sorted(cases.items()))
        yield Problem(MANIFEST_NAME, f"design {design} lies in several splits: {listed}")


def shard_checks(root: str, records: Iterable[CaseRecord], points: PointSchema | None = None) -> list[ShardCheck]:
    """One check a shard, from the files that the manifest names."""
    shards: dict[tuple[str, int], list[CaseRecord]] = {}
    for record in records:
        if record.placement is not None:
            shards.setdefault((record.placement.split, record.placement.shard), []).append(record)
    ordered = (sorted(cases, key=lambda r: r.placement.row if r.placement else 0) for cases in shards.values())
    return [ShardCheck(root, tuple(cases), points) for cases in ordered]


def verify_dataset(root: str | Path, resources: Resources = SERIAL) -> Verdict:
    """Check a data set.

    Args:
        root: Its folder: a path, or a URL that fsspec reads.
        resources: Who does the work.

    Returns:
        Problems, in the order of shards and rows; none when it is sound.

    Raises:
        UsageError: If there is no data set.
    """
    from lpbf_data.stores.known_faults import known_fault
    from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest
    from pipelines.sources.locations import read_bytes

    dataset = str(root).rstrip("/")
    try:
        data = read_bytes(f"{dataset}/{MANIFEST_NAME}")
    except OSError as error:
        raise UsageError(
            f"{root} has no {MANIFEST_NAME}: it is no data set, or a build of it was interrupted; build it"
        ) from error
    try:
        manifest = decode_manifest(data)
    except (StoreError, LpbfError) as error:
        return Verdict((Problem(MANIFEST_NAME, str(error)),), 0, len(data))
    # Cards, reports and designs are those of printed parts.
    problems = list(check_documents(dataset, manifest)) if manifest.points is None else []
    tasks = shard_checks(dataset, manifest.records, manifest.points)
    cases = size = 0
    with open_engine(resources) as engine, progress(len(tasks), "verify", "shard") as bar:
        for verdict in engine.map(check_shard, tasks):
            problems += verdict.problems
            cases += verdict.cases
            size += verdict.bytes_read
            bar.update()
    ordered = tuple(sorted(problems, key=lambda p: (p.file, p.row or 0, p.what)))
    return Verdict(ordered, cases, size, known_fault(manifest))


def verify(data: str, *, workers: int | None = None, scheduler: str | None = None) -> int:
    """Check a data set: checksums, schema, counts, both formats, finite values, connectivity, splits without leaks.

    Args:
        data: The data set: a folder, or a URL that fsspec reads, such as s3://bucket/lpbf or hf://datasets/user/name.
        workers: Worker processes on this machine, one a core by default; 0 works in this process, which is the default
            where Dask (of the extra pipelines) isn't installed.
        scheduler: Address of a running Dask scheduler to use instead.

    Returns:
        Exit status: 0 when it is sound, 1 otherwise.
    """
    if workers is None and scheduler is None and find_spec("distributed") is None:
        workers = 0
    resources = Resources(workers, scheduler)
    from rich.table import Table

    from pipelines.numbers import human_bytes

    verdict = verify_dataset(data, resources)
    console = open_console()
    table = Table(title=f"data set {data}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("cases", f"{verdict.cases:,}")
    table.add_row("read", human_bytes(verdict.bytes_read))
    table.add_row("problems", f"{len(verdict.problems):,}")
    console.print(table)
    if verdict.known_fault:
        console.print(f"note: {verdict.known_fault}")
    for problem in verdict.problems[:_MAX_SHOWN]:
        console.print(str(problem))
    if len(verdict.problems) > _MAX_SHOWN:
        console.print(f"… and {len(verdict.problems) - _MAX_SHOWN:,} more")
    return 1 if verdict.problems else 0


def main() -> None:
    """Entry point of `lpbf-verify`."""
    run(verify, "python -m pipelines.verify", positional=["data"])


if __name__ == "__main__":
    main()
