"""Where cases lie: finding them in folders and archives.

A case is found by its files: `…mechanical.out`, `…mechanical.in` or `…mechanical.case`, or results of a mechanical run
in a folder `results/`. It can lie at any depth, in a folder or in an archive.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lpbf_data.errors import CaseError, FailureReason, UsageError
from lpbf_data.record import CaseRecord, Failure, SourceRef
from pipelines.archive import archive_at, group_cases
from pipelines.case_files import ArchiveFiles, CaseLocation, FolderFiles, content_signature
from pipelines.places import is_remote_file, is_url, list_remote
from pipelines.privacy import strip_local_paths

_RESULTS: Final = "results"


@dataclass(frozen=True, slots=True)
class Found:
    """Cases that were found, and what couldn't even be opened."""

    locations: tuple[CaseLocation, ...]
    failures: tuple[CaseRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceScan:
    """What lies in one source, archives unopened.

    Attributes:
        found: Cases in folders.
        archives: Archives and how records call them.
        asked_for: Whether the source is an archive that the user named.
    """

    found: Found
    archives: tuple[tuple[str, str], ...]
    asked_for: bool = False


def no_case_found(sources: Sequence[str]) -> UsageError:
    """The error for sources without any case."""
    names = ", ".join(map(str, sources))
    return UsageError(
        f"no NetFabb case found in {names}; a case is a folder with …mechanical.out or results/…mechanical.case"
    )


def sorted_found(parts: Iterable[Found]) -> Found:
    """Several findings as one, without repeats, in an order that depends on names only."""
    parts = list(parts)
    unique = {(x.container, x.prefix): x for part in parts for x in part.locations}.values()
    return Found(
        tuple(sorted(unique, key=lambda x: (x.case_id, x.source.archive, x.source.member, x.container))),
        tuple(failure for part in parts for failure in part.failures),
    )


def find_cases(sources: Sequence[str | Path]) -> Found:
    """Find every case below the given folders and archives, in this process.

    Args:
        sources: Folders of cases, single cases, zip archives, folders of archives, in any mixture.

    Returns:
        Locations and failures, in an order that depends on their names only.

    Raises:
        UsageError: If a source doesn't exist or can't be read, or no case is found at all.
    """
    parts: list[Found] = []
    for source in map(str, sources):
        scan = scan_source(source)
        parts.append(scan.found)
        for path, label in scan.archives:
            try:
                parts.append(find_in_archive(path, label))
            except (CaseError, OSError) as error:
                if scan.asked_for:
                    raise UsageError(f"the source {source} can't be read: {error}") from error
                parts.append(Found((), (failed_source(path, label, error),)))
    found = sorted_found(parts)
    if not found.locations and not found.failures:
        raise no_case_found(list(map(str, sources)))
    return found


def scan_source(source: str, *, by_content: bool = False) -> SourceScan:
    """Look what lies in a source, without opening archives.

    Args:
        source: A folder or an archive: a path, or a URL that fsspec reads.
        by_content: Sign the cases of folders by what their files hold, not by size and time.

    Raises:
        UsageError: If it doesn't exist or can't be read.
    """
    if is_url(source):
        return _scan_remote(source.rstrip("/"), by_content=by_content)
    path = Path(source)
    if not path.exists():
        raise UsageError(f"the source {source} doesn't exist")
    path = path.resolve() if path.name == ".." else path.absolute()  # its name is a case's, and a link's may be meant
    if not path.is_dir():
        return SourceScan(Found(()), ((str(path), path.name),), asked_for=True)
    locations: list[CaseLocation] = []
    archives: list[tuple[str, str]] = []
    for folder, names in _walk(path):
        relative = folder.relative_to(path).as_posix()
        if any(prefix == "" for prefix, _, _ in group_cases(names)):
            locations.append(_locate(str(folder), folder.name, SourceRef(path.name, relative), by_content=by_content))
        archives += [
            (str(folder / name), (folder / name).relative_to(path).as_posix())
            for name in names
            if name.lower().endswith(".zip") and "/" not in name
        ]
    return SourceScan(Found(tuple(locations)), tuple(archives))


def _locate(container: str, case_id: str, source: SourceRef, *, by_content: bool) -> CaseLocation:
    files = FolderFiles(container)
    try:
        signature = content_signature(files) if by_content else files.signature()
    except CaseError:  # one file that can't be read; measuring tells which, and stops nothing
        signature = files.signature()
    return CaseLocation(case_id, container, None, source, signature)


def _scan_remote(url: str, *, by_content: bool) -> SourceScan:
    name = url.rpartition("/")[2]
    if is_remote_file(url):
        return SourceScan(Found(()), ((url, name),), asked_for=True)
    try:
        names = sorted(list_remote(url))
        locations = [
            _locate(
                f"{url}/{prefix}" if prefix else url,
                prefix.rpartition("/")[2] or name,
                SourceRef(name, prefix or "."),
                by_content=by_content,
            )
            for prefix in sorted({prefix for prefix, _, _ in group_cases(names)})
        ]
    except OSError as error:
        raise UsageError(f"the source {url} can't be read: {error}") from error
    archives = [(f"{url}/{path}", path) for path in names if path.lower().endswith(".zip")]
    return SourceScan(Found(tuple(locations)), tuple(archives))


def _walk(source: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `source` with the names in them and in their `results`; links are followed, cycles are not.

    Hidden folders below it are left out.
    """
    seen: set[tuple[int, int]] = set()
    try:
        os.listdir(source)
    except OSError as error:
        raise UsageError(f"the source {source} can't be read: {error.strerror}") from error
    for folder, folders, names in os.walk(source, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        # Hidden folders are other programs' workplaces; a simulation keeps its unfinished cases in one.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = Path(folder) / _RESULTS
        inside = [f"{_RESULTS}/{name}" for name in os.listdir(inner)] if inner.is_dir() else []
        if _RESULTS in folders:
            folders.remove(_RESULTS)
        yield Path(folder), sorted([*names, *inside])


def find_in_archive(place: str, label: str) -> Found:
    """Find the cases of one archive.

    Args:
        place: The archive: a path or a URL.
        label: How records call it.

    Raises:
        CaseError: If it isn't a readable archive.
    """
    archive = archive_at(place)
    stem = Path(place.rpartition("/")[2]).stem
    locations = [
        CaseLocation(
            prefix.rpartition("/")[2] or stem,
            place,
            prefix,
            SourceRef(label, prefix or "."),
            ArchiveFiles(archive.reader, members).signature(),
        )
        for prefix, members in archive.cases.items()
    ]
    failures = [
        CaseRecord(
            case_id=name,
            source=SourceRef(label, name),
            failure=Failure(FailureReason.UNSAFE_MEMBER, "the member's name leaves the archive", name),
        )
        for name in _unsafe_cases(archive.unsafe)
    ]
    return Found(tuple(locations), tuple(failures))


def _unsafe_cases(names: Sequence[str]) -> list[str]:
    """One name for each folder with unsafe members."""
    return sorted({name.rpartition("/")[0].removesuffix(f"/{_RESULTS}") or name for name in names})


def failed_source(place: str, label: str, error: Exception) -> CaseRecord:
    """The record of an archive that can't be opened."""
    if isinstance(error, CaseError):
        failure = Failure(error.reason, strip_local_paths(error.detail), label)
    else:
        failure = Failure(FailureReason.UNREADABLE_FILE, strip_local_paths(f"can't be read: {error}"), label)
    name = place.replace("\\", "/").rpartition("/")[2]
    return CaseRecord(case_id=name, source=SourceRef(label, "."), failure=failure)
