"""Listing what the sources hold: folders here and now, archives in parallel, each archive once.

Reading the directory of an archive of a few hundred parts takes seconds to tens of seconds, so its listing is kept in
the workspace and used again while the archive's size and modification time stay what they were; beside it lies an
index of the members, so that a case is read without the archive's own directory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lpbf_data.case.record import CaseRecord, Failure, SourceRef
from lpbf_data.console import progress
from lpbf_data.durable import write_durably
from lpbf_data.errors import CaseError, FailureReason, UsageError
from lpbf_data.remarks import Remark
from pipelines.building.engine import Engine
from pipelines.building.workspace import Workspace
from pipelines.sources.archive import archive_at
from pipelines.sources.case_files import CaseLocation
from pipelines.sources.finding import (
    Found,
    SourceScan,
    failed_source,
    find_in_archive,
    no_case_found,
    scan_source,
    sorted_found,
)
from pipelines.sources.locations import size_and_version
from pipelines.sources.member_index import IndexRange, write_index

_LISTING_VERSION: Final = 3


@dataclass(frozen=True, slots=True)
class ArchiveTask:
    """An archive to list.

    Attributes:
        location: The archive: a path or a URL.
        label: Its name in records.
        asked_for: Whether the user named it, so that it must be readable.
        cache: Folder of the listings.
    """

    location: str
    label: str
    asked_for: bool
    cache: Path


def list_archive(task: ArchiveTask) -> Found:
    """List an archive, or read the listing of an earlier time.

    Raises:
        UsageError: If the user named it and it can't be read.
    """
    try:
        mark = size_and_version(task.location)
        name = json.dumps([_LISTING_VERSION, task.location, task.label, *mark])
        kept = task.cache / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"
        index = kept.with_suffix(".arrow")
        if (known := _read_listing(kept, index)) is not None:
            return known
        found = find_in_archive(task.location, task.label)
        cases = archive_at(task.location).cases
        ranges = write_index(index, (cases[x.prefix or ""] for x in found.locations), mark)
        listing = json.dumps(_encode(found, ranges)).encode()
        write_durably(kept, listing)
        return _decode(json.loads(listing), index)
    except (CaseError, OSError) as error:
        if task.asked_for:
            raise UsageError(f"the source {task.location} can't be read: {error}") from error
        return Found((), (failed_source(task.location, task.label, error),))


def _read_listing(kept: Path, index: Path) -> Found | None:
    """A listing of an earlier time; None where there is none, or it is damaged."""
    try:
        return _decode(json.loads(kept.read_bytes()), index) if index.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _encode(found: Found, ranges: Sequence[IndexRange]) -> dict[str, Any]:
    failures = [dataclasses.asdict(r.failure) | {"member": r.source.member} for r in found.failures if r.failure]
    sources = [x.source for x in found.locations] + [record.source for record in found.failures]
    return {
        "archive": sources[0].archive if sources else "",
        "cases": [
            [x.case_id, x.container, x.prefix, x.source.member, x.signature, rows.first, rows.count]
            for x, rows in zip(found.locations, ranges, strict=True)
        ],
        "failures": failures,
        "remarks": [remark.as_dict() for remark in found.remarks],
    }


def _decode(stored: dict[str, Any], index: Path) -> Found:
    archive = stored["archive"]
    locations = tuple(
        CaseLocation(
            case_id, container, prefix, SourceRef(archive, member), signature, IndexRange(str(index), first, count)
        )
        for case_id, container, prefix, member, signature, first, count in stored["cases"]
    )
    failures = []
    for entry in stored["failures"]:
        member = entry.pop("member")
        failure = Failure(**(entry | {"failure_reason": FailureReason(entry["failure_reason"])}))
        failures.append(CaseRecord(case_id=member, source=SourceRef(archive, member), failure=failure))
    return Found(locations, tuple(failures), tuple(map(Remark.from_dict, stored["remarks"])))


def scan_sources(sources: Sequence[str], *, by_content: bool = False) -> list[SourceScan]:
    """Look what lies in each source, without opening archives.

    Args:
        sources: Folders and archives.
        by_content: Take the signature of the cases of folders from the content of their files, not from size and time.

    Raises:
        UsageError: If a source doesn't exist or can't be read, or there is neither case nor archive.
    """
    scans = [scan_source(source, by_content=by_content) for source in sources]
    if not any(scan.found.locations or scan.archives for scan in scans):
        raise no_case_found(sources, [scan.found for scan in scans])
    return scans


def list_sources(sources: Sequence[str], scans: Sequence[SourceScan], engine: Engine, workspace: Workspace) -> Found:
    """Find every case of the sources.

    Args:
        sources: Folders and archives.
        scans: What was seen in them.
        engine: Lists archives in parallel.
        workspace: Keeps the listings.

    Returns:
        Locations and failures, in an order that depends on their names only.

    Raises:
        UsageError: If an archive that the user named can't be read, or no case is found.
    """
    found = [scan.found for scan in scans]
    tasks = [
        ArchiveTask(location, label, scan.asked_for, workspace.listings)
        for scan in scans
        for location, label in scan.archives
    ]
    with progress(len(tasks), "list", "archive", shown=bool(tasks)) as bar:
        for one in engine.map(list_archive, tasks):
            found.append(one)
            bar.update()
    everything = sorted_found(found)
    if not everything.locations and not everything.failures:
        raise no_case_found(sources, [everything])
    return everything
