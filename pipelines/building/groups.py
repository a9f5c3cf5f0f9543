"""Groups of cases to measure: a task of seconds each, so that a million cases stay under ten thousand tasks."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lpbf_data.case.schema import SCHEMA_VERSION
from lpbf_data.errors import CaseError
from pipelines.building.attempts import Attempts
from pipelines.building.workspace import MEASURE_VERSION, store_measured
from pipelines.measuring.convert import Measured, failed, measure_location
from pipelines.sources.case_files import CaseLocation

_MAX_CASES: Final = 32  # a group, while there are few cases
_MAX_GROUPS: Final = 4000


@dataclass(frozen=True, slots=True)
class GroupTask:
    """A group of cases to measure.

    Attributes:
        key: Hash of the cases and what they hold.
        locations: The cases.
        measured: Folder that takes the results.
        attempts: Folder that takes the journal.
        time_limit: Seconds that a case may take.
    """

    key: str
    locations: tuple[CaseLocation, ...]
    measured: Path
    attempts: Path
    time_limit: float


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What became of a group: its cases, and how many of them failed."""

    key: str
    cases: int
    failures: int


def plan_groups(
    locations: Sequence[CaseLocation], workers: int, measured: Path, attempts: Path, time_limit: float
) -> list[GroupTask]:
    """Divide cases into groups; those of one archive lie together, so that few workers open it.

    Args:
        locations: Cases to measure.
        workers: Threads that will work; each should get several groups.
        measured: Folder that takes the results.
        attempts: Folder that takes the journals.
        time_limit: Seconds that a case may take.
    """
    ordered = sorted(locations, key=lambda x: (x.container, x.prefix or "", x.case_id))
    size = max(1, min(_MAX_CASES, -(-len(ordered) // (4 * workers))), -(-len(ordered) // _MAX_GROUPS))
    tasks = []
    for start in range(0, len(ordered), size):
        group = tuple(ordered[start : start + size])
        content = [MEASURE_VERSION, SCHEMA_VERSION, *([x.case_id, x.source.archive, x.signature] for x in group)]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
        tasks.append(GroupTask(key, group, measured, attempts, time_limit))
    return tasks


def measure_group(task: GroupTask) -> GroupResult:
    """Measure the cases of a group and store the results."""
    attempts = Attempts(task.attempts / task.key, task.time_limit)
    results: list[Measured] = []
    for index, location in enumerate(task.locations):
        try:
            results.append(attempts.run(index, functools.partial(measure_location, location)))
        except CaseError as error:
            results.append(Measured(failed(location, error), None))
    store_measured(task.measured, task.key, results, [location.signature for location in task.locations])
    return GroupResult(task.key, len(results), sum(result.record.failure is not None for result in results))
