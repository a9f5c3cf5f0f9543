"""Where cases lie: finding them in folders and archives.

A case is found by its files: `…mechanical.out`, `…mechanical.in` or `…mechanical.case`, or results of a mechanical run
in a folder `results/`. It can lie at any depth, in a folder or in an archive.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lpbf_data.case.record import CaseRecord, Failure, SourceRef
from lpbf_data.errors import CaseError, FailureReason, UsageError
from lpbf_data.file_access.ignored_files import ignored_files_remark
from lpbf_data.remarks import Remark, Treatment, merge_remarks
from pipelines.sources.archive import archive_at
from pipelines.sources.case_files import ArchiveFiles, CaseLocation, FolderFiles, content_signature
from pipelines.sources.grouping import RESULTS, Grouping, group_cases, is_packed, is_text, run_of_case
from pipelines.sources.locations import is_remote_file, is_url, list_remote
from pipelines.sources.privacy import strip_local_paths
from pipelines.sources.tree import walk_tree


@dataclass(frozen=True, slots=True)
class Found:
    """Cases that were found, what couldn't even be opened, and what was left out or guessed."""

    locations: tuple[CaseLocation, ...]
    failures: tuple[CaseRecord, ...] = ()
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceScan:
    """What lies in one source, archives unopened.

    Attributes:
        found: Cases in folders.
        archives: Archives and their names in records.
        asked_for: Whether the source is an archive that the user named.
    """

    found: Found
    archives: tuple[tuple[str, str], ...]
    asked_for: bool = False


def no_case_found(sources: Sequence[str], parts: Iterable[Found] = ()) -> UsageError:
    """The error for sources without any case.

    Args:
        sources: Folders and archives.
        parts: What was found in them instead.
    """
    names = ", ".join(map(str, sources))
    text = f"no NetFabb case found in {names}; a case is a folder with …mechanical.out or results/…mechanical.case"
    parts = list(parts)
    failures = [record for part in parts for record in part.failures]
    met = [f"{r.source.archive}:{r.source.member}: {r.failure.description}" for r in failures if r.failure]
    met += map(str, merge_remarks(remark for part in parts for remark in part.remarks))
    return UsageError("; ".join([text, *met[:5]]))


def sorted_found(parts: Iterable[Found]) -> Found:
    """Several findings as one, without repeats, in an order that depends on names only."""
    parts = list(parts)
    unique = {(x.container, x.prefix, x.run): x for part in parts for x in part.locations}.values()
    return Found(
        tuple(sorted(unique, key=lambda x: (x.case_id, x.source.archive, x.source.member, x.container))),
        tuple(failure for part in parts for failure in part.failures),
        merge_remarks(remark for part in parts for remark in part.remarks),
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
        raise no_case_found(list(map(str, sources)), [found])
    return found


def scan_source(source: str, *, by_content: bool = False) -> SourceScan:
    """Look what lies in a source, without opening archives.

    Args:
        source: A folder or an archive: a path, or a URL that fsspec reads.
        by_content: Take the signature of the cases of folders from the content of their files, not from size and time.

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
        if not path.is_file():
            raise UsageError(f"the source {source} is neither a file nor a folder")
        _check_zip(source)
        return SourceScan(Found(()), ((str(path), path.name),), asked_for=True)
    return _scan_folder(path, by_content=by_content)


def _check_zip(source: str) -> None:
    if is_packed(source) and not source.lower().endswith(".zip"):
        raise UsageError(f"the source {source} can't be read: only zip archives are; unpack it, or pack it as zip")


def _scan_folder(path: Path, *, by_content: bool) -> SourceScan:
    """Cases and archives below a folder of this machine."""
    tree = walk_tree(path)
    if "." in tree.unreadable:
        raise UsageError(f"the source {path} can't be read: {tree.unreadable['.']}")
    if not is_text(str(path)):
        raise UsageError(f"the source {_shown(str(path))} can't be read: its name isn't UTF-8; rename it")
    grouping = group_cases(filter(is_text, tree.names))
    locations: list[CaseLocation] = []
    failures = [_unreadable(path, _shown(relative), reason) for relative, reason in sorted(tree.unreadable.items())]
    failures += [_misnamed(path, folder) for folder in sorted(group_cases(_not_text(tree.names)).folders.values())]
    for case, folder in sorted(grouping.folders.items()):
        if folder in tree.cut:
            continue  # it is among the failures: what can be seen of it isn't the whole case
        location, run = path / folder if folder else path, run_of_case(case, folder)
        source = SourceRef(path.name, _member(case, folder))
        try:
            locations.append(_locate(str(location), run or location.name, source, run=run, by_content=by_content))
        except OSError as error:
            failures.append(_unreadable(path, folder or ".", error.strerror or str(error)))
    archives = [name for name in grouping.packed if _is_source(name)]
    remarks = remarks_of(grouping, path.name, [*grouping.ignored, *tree.ignored], set(archives))
    if broken := [f"{path.name}:{name}" for name in tree.broken]:
        sentence = "links that lead nowhere, or to themselves, and what is neither a file nor a folder"
        remarks += (Remark.of_items(Treatment.LEFT_OUT, "broken_links", sentence, broken),)
    return SourceScan(
        Found(tuple(locations), tuple(failures), remarks), tuple((str(path / name), name) for name in archives)
    )


def _not_text(names: Iterable[str]) -> Iterable[str]:
    return (name for name in names if not is_text(name))


def _shown(name: str) -> str:
    """A name for people: where it isn't UTF-8 it is most likely Windows-1252."""
    return name if is_text(name) else name.encode("utf-8", "surrogateescape").decode("cp1252", "replace")


def _misnamed(source: Path, folder: str) -> CaseRecord:
    """The record of a case in whose path, or among whose files, a name isn't UTF-8."""
    shown = _shown(folder)
    detail = "names of it aren't UTF-8 (most likely Windows-1252); rename its folder and files, and build again"
    failure = Failure(FailureReason.UNREADABLE_FILE, detail, shown)
    case_id = shown.rpartition("/")[2] or source.name
    return CaseRecord(case_id=case_id, source=SourceRef(source.name, shown or "."), failure=failure)


def _is_source(name: str) -> bool:
    """Whether a file in a folder is an archive of cases: a zip, and not among the results of one case."""
    folder = name.rpartition("/")[0]
    return name.lower().endswith(".zip") and folder.rpartition("/")[2].lower() != RESULTS


def _member(case: str, folder: str) -> str:
    return (folder or ".") if case == folder else f"{folder or '.'}:{run_of_case(case, folder)}"


def _unreadable(source: Path, folder: str, reason: str) -> CaseRecord:
    """The record of a folder that can't be listed; for the results folder of a case, the record of that case."""
    detail = f"the folder can't be read: {reason}; change its permissions, or leave it out of the sources"
    above, _, last = folder.rpartition("/")
    case_id, member = ((source / above).name, above or ".") if last.lower() == RESULTS else (folder, folder)
    failure = Failure(FailureReason.UNREADABLE_FILE, detail, folder)
    return CaseRecord(case_id=case_id, source=SourceRef(source.name, member), failure=failure)


def remarks_of(
    grouping: Grouping, label: str, ignored: Sequence[str], opened: Collection[str] = ()
) -> tuple[Remark, ...]:
    """Remarks on what a source holds beside its cases.

    Args:
        grouping: What lies in it.
        label: Its name in records.
        ignored: Ignored files and folders.
        opened: Archives that are sources themselves.
    """
    remarks = list(ignored_files_remark([f"{label}:{name}" for name in ignored]))
    if packed := [f"{label}:{name}" for name in grouping.packed if name not in opened]:
        sentence = (
            "packed files that aren't opened (only zip archives are, and none inside another); "
            "unpack them, or pack them as zip archives beside the others"
        )
        remarks.append(Remark.of_items(Treatment.LEFT_OUT, "packed_files", sentence, packed))
    if shared := [f"{label}:{folder or '.'} ({', '.join(runs)})" for folder, runs in grouping.shared.items()]:
        sentence = "folders with several runs: each run is a case, named by what its files begin with"
        remarks.append(Remark.of_items(Treatment.CHANGED, "several_runs", sentence, shared))
    if twice := [f"{label}:{name}" for name in grouping.twice]:
        sentence = "files of results that a second folder holds, whose name differs in capitals alone; it was taken"
        remarks.append(Remark.of_items(Treatment.LEFT_OUT, "two_results", sentence, twice))
    return tuple(remarks)


def _locate(container: str, case_id: str, source: SourceRef, *, run: str | None, by_content: bool) -> CaseLocation:
    signature = _sign(FolderFiles(container, run), by_content=by_content)
    return CaseLocation(case_id, container, None, source, signature, run=run)


def _sign(files: FolderFiles, *, by_content: bool) -> str:
    try:
        return content_signature(files) if by_content else files.signature()
    except CaseError:  # one file that can't be read; measuring tells which, and stops nothing
        return files.signature()


def _scan_remote(url: str, *, by_content: bool) -> SourceScan:
    name = url.rpartition("/")[2]
    if is_remote_file(url):
        _check_zip(url)
        return SourceScan(Found(()), ((url, name),), asked_for=True)
    try:
        marks = list_remote(url)
    except OSError as error:
        raise UsageError(f"the source {url} can't be read: {error}") from error
    grouping = group_cases(marks)
    locations = []
    for case, folder in sorted(grouping.folders.items()):
        location, run = f"{url}/{folder}" if folder else url, run_of_case(case, folder)
        # The listing of the whole tells of every case; asking for each would cost a request each.
        listed = {path.removeprefix(f"{folder}/"): marks[path] for path in grouping.cases[case].values()}
        signature = _sign(FolderFiles(location, run, listed), by_content=by_content)
        source = SourceRef(name, _member(case, folder))
        case_id, kept = run or location.rpartition("/")[2], tuple((path, *mark) for path, mark in listed.items())
        locations.append(CaseLocation(case_id, location, None, source, signature, run=run, listed=kept))
    archives = [path for path in grouping.packed if _is_source(path)]
    remarks = remarks_of(grouping, name, grouping.ignored, set(archives))
    return SourceScan(Found(tuple(locations), (), remarks), tuple((f"{url}/{path}", path) for path in archives))


def find_in_archive(location: str, label: str) -> Found:
    """Find the cases of one archive.

    Args:
        location: The archive: a path or a URL.
        label: Its name in records.

    Raises:
        CaseError: If it isn't a readable archive.
    """
    archive = archive_at(location)
    stem = Path(location.rpartition("/")[2]).stem
    folders = archive.grouping.folders
    ids = {case: run_of_case(case, folder) or folder.rpartition("/")[2] or stem for case, folder in folders.items()}
    locations = [
        CaseLocation(
            ids[case],
            location,
            case,
            SourceRef(label, _member(case, folders[case])),
            ArchiveFiles(archive.reader, members).signature(),
        )
        for case, members in archive.cases.items()
        if case not in archive.twice
    ]
    detail = "the archive holds two files of this name with different content; pack it anew"
    failures = [
        CaseRecord(
            case_id=ids[case],
            source=SourceRef(label, _member(case, folders[case])),
            failure=Failure(FailureReason.DAMAGED_ARCHIVE, detail, name),
        )
        for case, name in archive.twice.items()
    ]
    failures += [
        CaseRecord(
            case_id=name,
            source=SourceRef(label, name),
            failure=Failure(FailureReason.UNSAFE_MEMBER, "the member's name leaves the archive", name),
        )
        for name in _unsafe_cases(archive.unsafe)
    ]
    remarks = remarks_of(archive.grouping, label, archive.grouping.ignored)
    if archive.guessed:
        sentence = "names in zip archives that are UTF-8, though the archive doesn't say so"
        names = [f"{label}:{name}" for name in archive.guessed]
        remarks += (Remark.of_items(Treatment.GUESSED, "member_names", sentence, names),)
    return Found(tuple(locations), tuple(failures), remarks)


def _unsafe_cases(names: Sequence[str]) -> list[str]:
    """One name for each folder with unsafe members."""
    return sorted({name.rpartition("/")[0].removesuffix(f"/{RESULTS}") or name for name in names})


def failed_source(location: str, label: str, error: Exception) -> CaseRecord:
    """The record of an archive that can't be opened."""
    if isinstance(error, CaseError):
        failure = Failure(error.reason, strip_local_paths(error.detail), label)
    else:
        failure = Failure(FailureReason.UNREADABLE_FILE, strip_local_paths(f"can't be read: {error}"), label)
    name = location.replace("\\", "/").rpartition("/")[2]
    return CaseRecord(case_id=name, source=SourceRef(label, "."), failure=failure)
