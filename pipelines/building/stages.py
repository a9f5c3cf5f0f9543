"""The stages of a build, each a function of what the one before gave: measure, select, write."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpbf_data.case.record import CaseRecord, Placement
from lpbf_data.console import progress, say
from pipelines.building.commit import committed_shards, final_name
from pipelines.building.engine import Engine
from pipelines.building.groups import GroupTask, measure_group
from pipelines.building.request import BuildRequest
from pipelines.building.shards import (
    ShardCase,
    ShardPlan,
    ShardResult,
    ShardTask,
    batch_tasks,
    plan_shards,
    write_staged_shards,
)
from pipelines.building.targets import Target
from pipelines.building.workspace import MeasuredRef, Workspace, measured_key
from pipelines.selection.filters import reject
from pipelines.selection.splits import split_records
from pipelines.sources.case_files import CaseLocation
from pipelines.sources.locations import is_url


def key_of(location: CaseLocation) -> str:
    """Key under which the workspace holds a measured case."""
    return measured_key(location.case_id, location.source, location.signature)


def measured_cases(
    locations: Sequence[CaseLocation], known: Mapping[str, MeasuredRef]
) -> tuple[dict[str, ShardCase], list[CaseLocation]]:
    """Divide cases into those measured already, by case id, and those to measure."""
    found = {x.case_id: ShardCase(x, known[key_of(x)]) for x in locations if key_of(x) in known}
    return found, [x for x in locations if key_of(x) not in known]


def measure(engine: Engine, tasks: Sequence[GroupTask], *, total: int, done: int) -> None:
    """Measure groups of cases into the workspace.

    Args:
        engine: Runs the tasks.
        tasks: The groups.
        total: Cases in all, for the progress bar.
        done: Cases measured before.
    """
    if done and tasks:
        say(f"measuring goes on from case {done:,} of {total:,}")
    with progress(total, "measure", "case", initial=done) as bar:
        failures = 0
        for result in engine.map(measure_group, tasks):
            failures += result.failures
            bar.set_postfix(failed=failures)
            bar.update(result.cases)


@dataclass(frozen=True)
class Selection:
    """What is kept, and where it goes.

    Attributes:
        records: Case id to record, with design and rejections; failed ones included.
        plans: The shards.
    """

    records: Mapping[str, CaseRecord]
    plans: tuple[ShardPlan, ...]


def select(request: BuildRequest, cases: Mapping[str, ShardCase], earlier: Mapping[str, str]) -> Selection:
    """Filter, split and plan; reads no array.

    Args:
        request: Limits, splits, designs, fields.
        cases: Every measured case, failed ones included.
        earlier: Case id to split in an earlier build of the same set.
    """
    records = {}
    for case_id, case in cases.items():
        named = dataclasses.replace(case.record, design_id=request.namer(case.record))
        records[case_id] = reject(named, request.limits)
    split_of = split_records(list(records.values()), request.split_request, request.seed, earlier)
    chosen = {
        case_id: ShardCase(
            cases[case_id].location, MeasuredRef(records[case_id], cases[case_id].ref.group, cases[case_id].ref.index)
        )
        for case_id in split_of
    }
    return Selection(records, tuple(plan_shards(split_of, chosen, request.specs)))


def shard_tasks(
    workspace: Workspace, target: Target, request: BuildRequest, plans: Iterable[ShardPlan]
) -> list[ShardTask]:
    """Tasks for shards; one that lies in the data set already is only checked."""
    committed = committed_shards(workspace)
    out = request.out if is_url(request.out) else str(Path(request.out).absolute())  # workers may stand elsewhere
    tasks = []
    for plan in plans:
        names_before = committed.get(plan.key, {})
        reusable = target.can_take_back or all(
            names_before.get(name) == final_name(plan, name) for name in request.formats
        )
        kept = {name: names_before[name] for name in request.formats if name in names_before} if reusable else {}
        tasks.append(
            ShardTask(plan, request.formats, workspace.measured, workspace.shards, out, kept, request.time_limit)
        )
    return tasks


def write(engine: Engine, tasks: Sequence[ShardTask]) -> dict[str, ShardResult]:
    """Write shards into the workspace; results by key."""
    sizes = {task.plan.key: len(task.plan.cases) for task in tasks}
    results: dict[str, ShardResult] = {}
    with progress(sum(sizes.values()), "write", "case") as bar:
        for batch in engine.map(write_staged_shards, batch_tasks(tasks)):
            for result in batch:
                results[result.key] = result
                bar.update(sizes[result.key])
    return results


def write_all(
    engine: Engine,
    workspace: Workspace,
    target: Target,
    request: BuildRequest,
    cases: Mapping[str, ShardCase],
    earlier: Mapping[str, str],
) -> tuple[list[CaseRecord], tuple[ShardPlan, ...]]:
    """Write every shard; a case that can't be read any more fails, and the rest is planned anew.

    Returns:
        Records with the shard and row of each kept case, and the shards.
    """
    cases = dict(cases)
    while True:
        selection = select(request, cases, earlier)
        results = write(engine, shard_tasks(workspace, target, request, selection.plans))
        failures = [record for result in results.values() for record in result.failures]
        if not failures:
            return _placed(selection, results, request.formats), selection.plans
        for record in failures:
            cases[record.case_id] = ShardCase(cases[record.case_id].location, MeasuredRef(record, "", -1))


def _placed(selection: Selection, results: Mapping[str, ShardResult], formats: Sequence[str]) -> list[CaseRecord]:
    """Records with the shard and row of each kept case, and statistics that were taken when it was written."""
    placed = dict(selection.records)
    for plan in selection.plans:
        result = results[plan.key]
        shard: dict[str, Any] = {}
        for name, what in (("parquet", "file"), ("zarr", "part")):
            if name in formats:
                shard[f"{name}_{what}"] = final_name(plan, name)
                shard[f"{name}_bytes"] = result.sizes[name]
                shard[f"{name}_sha256"] = result.digests[name]
        for row, case in enumerate(plan.cases):
            record = placed[case.record.case_id]
            placed[record.case_id] = dataclasses.replace(
                record,
                statistics=dict(record.statistics) | dict(result.statistics.get(record.case_id, {})),
                placement=Placement(plan.split, plan.index, row, **shard),
            )
    return list(placed.values())
