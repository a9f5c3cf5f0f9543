"""Time and disk that a build would take, estimated from a few cases; nothing is written to the data set's folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lpbf_data.case.record import CaseRecord
from lpbf_data.errors import UsageError
from lpbf_data.stores.parquet import RAW_BYTES
from pipelines.building.engine import Resources, available_cores
from pipelines.building.groups import plan_groups
from pipelines.building.request import BuildRequest
from pipelines.building.shards import (
    MIN_SHARDS,
    ShardCase,
    ShardPlan,
    ShardTask,
    raw_bytes,
    write_staged_shard,
)
from pipelines.building.workspace import MeasuredRef, Workspace, store_measured
from pipelines.measuring.convert import Measured, measure_location
from pipelines.numbers import human_bytes
from pipelines.selection.filters import reject
from pipelines.sources.case_files import CaseLocation, open_case
from pipelines.sources.finding import find_cases

_SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a build would take.

    Attributes:
        cases: Cases found.
        containers: Folders and archives that they lie in.
        source_bytes: Size of their files.
        sampled: Cases that were tried.
        kept: Share of the sampled cases that would be kept.
        tasks: Tasks that would be given out.
        seconds: Estimated time with the workers asked for.
        data_bytes: Estimated size of the data set.
        workspace_bytes: Estimated size of what is kept for later builds.
    """

    cases: int
    containers: int
    source_bytes: int
    sampled: int
    kept: float
    tasks: int
    seconds: float
    data_bytes: float
    workspace_bytes: float


def forecast(request: BuildRequest, resources: Resources) -> Forecast:
    """Try a few cases, spread over the sources, and extrapolate.

    Args:
        request: What would be built.
        resources: Who would do it; a cluster is not started, its workers count as one.

    Raises:
        UsageError: If nothing is found or a source can't be read.
    """
    locations = sorted(find_cases(request.sources).locations, key=lambda x: (x.container, x.prefix or ""))
    if not locations:
        raise UsageError("nothing but archives that can't be read was found")
    workers = max(1, available_cores() if resources.workers is None else resources.workers)
    size = sum(sum(open_case(location).sizes.values()) for location in locations)
    step = max(1, len(locations) // _SAMPLES)
    sample = locations[::step][:_SAMPLES]
    started = time.perf_counter()
    measured = [measure_location(location) for location in sample]
    per_case = (time.perf_counter() - started) / len(sample)
    records = [reject(result.record, request.limits) for result in measured]
    share = sum(record.status == "kept" for record in records) / len(sample)
    groups = plan_groups(locations, workers, Path(), Path(), request.time_limit)
    tried = _try_shards(request, list(zip(sample, measured, records, strict=True)), len(groups[0].locations))
    return Forecast(
        cases=len(locations),
        containers=len({location.container for location in locations}),
        source_bytes=size,
        sampled=len(sample),
        kept=share,
        tasks=len(groups),
        seconds=(per_case + share * tried.seconds) * len(locations) / workers,
        data_bytes=_data_bytes(request, tried, share * len(locations)),
        workspace_bytes=tried.workspace_bytes * len(locations),
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """What the cases that were tried take.

    Attributes:
        case_bytes: Bytes of a kept case in the data set.
        shard_bytes: Bytes of a shard beside those of its cases.
        raw_bytes: Bytes of a kept case's arrays, uncompressed.
        seconds: Time to write a kept case.
        workspace_bytes: Bytes that are kept for later builds, a case.
    """

    case_bytes: float
    shard_bytes: float
    raw_bytes: float
    seconds: float
    workspace_bytes: float


def _try_shards(
    request: BuildRequest, measured: Sequence[tuple[CaseLocation, Measured, CaseRecord]], per_group: int
) -> _Trial:
    """Keep what was measured and write the kept cases as a build does, in a scratch folder.

    Args:
        request: What would be built.
        measured: Where each case lies, what was measured, and its record with rejections.
        per_group: Cases that a build would measure and keep together.
    """
    cases: dict[str, ShardCase] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Workspace(Path(name), request.out)
        with scratch.locked():
            for start in range(0, len(measured), per_group):
                group = measured[start : start + per_group]
                store_measured(
                    scratch.measured, f"{start}", [m for _, m, _ in group], [x.signature for x, _, _ in group]
                )
            refs = {ref.record.case_id: ref for ref in scratch.load_measured(transient=True).values()}
        for location, _, record in measured:
            if record.status == "kept":
                ref = refs[record.case_id]
                cases[record.case_id] = ShardCase(location, MeasuredRef(record, ref.group, ref.index))
        kept_bytes = _size_of(scratch.measured) / len(measured)
        if not cases:
            return _Trial(0.0, 0.0, 0.0, 0.0, kept_bytes)
        chosen = [cases[case_id] for case_id in sorted(cases)]
        started = time.perf_counter()
        whole = _write_shard(request, scratch, "all", chosen)
        seconds = (time.perf_counter() - started) / len(chosen)
        raw = [raw_bytes(case.record, request.specs) for case in chosen]
        shard = 0.0
        if len(chosen) > 1:  # two shards of different sizes tell what a shard takes whatever it holds
            alone = _write_shard(request, scratch, "one", chosen[:1])
            shard = max(0.0, alone - (whole - alone) / (sum(raw) - raw[0]) * raw[0])
        described = sum(path.stat().st_size for path in scratch.shards.glob("*.json"))
    per_case = (whole - shard) / len(chosen)
    return _Trial(per_case, shard, sum(raw) / len(raw), seconds, kept_bytes + described / len(measured))


def _write_shard(request: BuildRequest, scratch: Workspace, key: str, cases: Sequence[ShardCase]) -> int:
    """Bytes of a shard of some cases, in all formats."""
    plan = ShardPlan("train", 0, 1, key, tuple(cases), request.specs)
    return sum(write_staged_shard(ShardTask(plan, request.formats, scratch.measured, scratch.shards)).sizes.values())


def _data_bytes(request: BuildRequest, tried: _Trial, kept: float) -> float:
    """Size of a data set of so many kept cases: what they take, and what their shards take beside them."""
    splits = len(request.split_request.names)
    shards = min(kept, max(kept * tried.raw_bytes / RAW_BYTES, MIN_SHARDS * splits))
    return kept * tried.case_bytes + shards * tried.shard_bytes


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def print_forecast(estimate: Forecast, request: BuildRequest, console: Console) -> None:
    """Print a forecast as a table."""
    table = Table(title=f"plan for {request.out}; nothing was done", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("cases", f"{estimate.cases:,} in {estimate.containers:,} folders and archives")
    table.add_row("to read", human_bytes(estimate.source_bytes))
    table.add_row("tasks to measure", f"{estimate.tasks:,}")
    table.add_row("time, about", _duration(estimate.seconds))
    table.add_row("data set, about", human_bytes(round(estimate.data_bytes)))
    table.add_row("kept for later builds, about", human_bytes(round(estimate.workspace_bytes)))
    table.add_row("estimated from", f"{estimate.sampled} cases, {estimate.kept:.0%} of them kept")
    console.print(table)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
