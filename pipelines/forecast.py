"""What a build would take, told from a few of its cases; nothing is written where the data set would lie."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lpbf_data.errors import UsageError
from lpbf_data.record import CaseRecord
from pipelines.case_files import CaseLocation, open_case
from pipelines.convert import Measured, measure_location
from pipelines.engine import Resources, available_cores
from pipelines.groups import plan_groups
from pipelines.request import BuildRequest
from pipelines.select import reject
from pipelines.shards import ShardCase, ShardTask, plan_shards, write_staged_shard
from pipelines.sources import find_cases
from pipelines.summary import human_bytes
from pipelines.workspace import MeasuredRef, store_measured

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
    kept = [(x, m, r) for x, m, r in zip(sample, measured, records, strict=True) if r.status == "kept"]
    share = len(kept) / len(sample)
    written, seconds, reductions = _try_shard(request, kept) if kept else (0.0, 0.0, 0.0)
    return Forecast(
        cases=len(locations),
        containers=len({location.container for location in locations}),
        source_bytes=size,
        sampled=len(sample),
        kept=share,
        tasks=len(plan_groups(locations, workers, Path(), Path(), request.time_limit)),
        seconds=(per_case + share * seconds) * len(locations) / workers,
        data_bytes=written * share * len(locations),
        workspace_bytes=reductions * len(locations),
    )


def _try_shard(
    request: BuildRequest, kept: Sequence[tuple[CaseLocation, Measured, CaseRecord]]
) -> tuple[float, float, float]:
    """Bytes, seconds and kept reductions a case, from writing them as one shard in a scratch folder."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        store_measured(scratch, "sample", [m for _, m, _ in kept], ["" for _ in kept])
        reductions = sum(path.stat().st_size for path in scratch.iterdir()) / len(kept)
        order = sorted(range(len(kept)), key=lambda i: kept[i][2].case_id)
        cases = {
            kept[i][2].case_id: ShardCase(kept[i][0], MeasuredRef(kept[i][2], "sample", number))
            for number, i in enumerate(order)
        }
        started = time.perf_counter()
        size = 0
        for plan in plan_shards(dict.fromkeys(cases, "train"), cases, request.specs):
            result = write_staged_shard(ShardTask(plan, request.formats, scratch, scratch))
            size += sum(result.sizes.values())
        return size / len(kept), (time.perf_counter() - started) / len(kept), reductions


def print_forecast(told: Forecast, request: BuildRequest, console: Console) -> None:
    """Print a forecast as a table."""
    table = Table(title=f"plan for {request.out}; nothing was done", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("cases", f"{told.cases:,} in {told.containers:,} folders and archives")
    table.add_row("to read", human_bytes(told.source_bytes))
    table.add_row("tasks to measure", f"{told.tasks:,}")
    table.add_row("time, about", _duration(told.seconds))
    table.add_row("data set, about", human_bytes(round(told.data_bytes)))
    table.add_row("kept for later builds, about", human_bytes(round(told.workspace_bytes)))
    table.add_row("estimated from", f"{told.sampled} cases, {told.kept:.0%} of them kept")
    console.print(table)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
