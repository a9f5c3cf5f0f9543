"""The files of one case, in a folder or in an archive."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lpbf_data.case.record import SourceRef
from lpbf_data.errors import CaseError, FailureReason
from lpbf_data.file_access.ignored_files import is_ignored
from pipelines.sources.archive import ArchiveReader, Member, archive_at, check_size, reader_at
from pipelines.sources.grouping import RESULTS, group_cases, is_text, split_name
from pipelines.sources.locations import is_url, list_remote, read_bytes
from pipelines.sources.member_index import IndexRange, read_members
from pipelines.sources.tree import leads_somewhere


@dataclass(frozen=True, slots=True)
class CaseLocation:
    """Where a case lies on this machine, and its id.

    Attributes:
        case_id: Name of the case: that of its folder, or of its run where a folder holds several.
        container: Absolute path or URL of the case's folder, or of the archive that holds it.
        prefix: The case's key among those of the archive: its path inside, and the run's name where a folder holds
            several; None for a folder.
        source: The same location without any local path.
        signature: Signature of its files when it was found.
        index: Where its archive's members are written down; None where the archive's own directory is read.
        run: Name of the run in a folder that holds several; None where the whole folder is the case.
        listed: Path, size and version (time of change, ETag) of the files of a case on an object store; None elsewhere.
    """

    case_id: str
    container: str
    prefix: str | None
    source: SourceRef
    signature: str = ""
    index: IndexRange | None = None
    run: str | None = None
    listed: tuple[tuple[str, int, str], ...] | None = None


class CaseFiles(Protocol):
    """The files of one case; names are relative to it, with forward slashes."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size of each file, by name."""
        ...

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            CaseError: If it is missing, damaged, too large, or unreadable.
        """
        ...

    def crc32(self, name: str, data: bytes) -> int:
        """CRC-32 of a file whose content was just read."""
        ...

    def signature(self) -> str:
        """A text "kind:hash" that changes when the case changes, from what is known without reading its files."""
        ...

    def content_digest(self) -> str:
        """SHA-256 over name, size and CRC-32 of every file; the same for a folder and its archive."""
        ...


def _digest(entries: Iterable[tuple[str, int, int | str]]) -> str:
    lines = "".join(f"{name}\0{size}\0{mark}\n" for name, size, mark in sorted(entries))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_contents(contents: Mapping[str, tuple[int, int]]) -> str:
    """SHA-256 over name, size and CRC-32 of files.

    Args:
        contents: Name to size and CRC-32.
    """
    return _digest((name, size, crc) for name, (size, crc) in contents.items())


def content_signature(files: CaseFiles) -> str:
    """A signature from the content of the files; for a folder, every file is read."""
    return "content:" + files.content_digest()


def is_unchanged(files: CaseFiles, signature: str) -> bool:
    """Whether the files of a case still have a signature, taken either way."""
    now = content_signature(files) if signature.startswith("content:") else files.signature()
    return now == signature


class FolderFiles:
    """Files of a case in a folder.

    Args:
        location: The folder: a path or a URL.
        run: Name of the run whose files are meant, in a folder that holds several.
        listed: Name to size and version of the files below it, where they are known already.

    Raises:
        OSError: If it can't be listed.
    """

    def __init__(
        self, location: str, run: str | None = None, listed: Mapping[str, tuple[int, str]] | None = None
    ) -> None:
        self._location = location
        if listed is None:
            listed = list_remote(location, depth=2) if is_url(location) else _list_local(Path(location))
        own = group_cases(listed).cases.get("" if run is None else f":{run}")
        if own is None:  # several runs, or none: all files are listed, and reading them says what is wrong
            own = _all_files(listed) if run is None else {}
        self._paths = own
        self._marks = {name: listed[path] for name, path in self._paths.items()}

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: size for name, (size, _) in self._marks.items()}

    def read(self, name: str) -> bytes:
        _check_present(name, self._marks)
        check_size(name, self._marks[name][0])
        try:
            return read_bytes(f"{self._location}/{self._paths[name]}")
        except OSError as error:
            detail = f"can't be read: {error.strerror or error}"
            raise CaseError(FailureReason.UNREADABLE_FILE, detail, path=name) from error

    def crc32(self, name: str, data: bytes) -> int:
        return zlib.crc32(data)

    def signature(self) -> str:
        return "stat:" + _digest((name, size, mark) for name, (size, mark) in self._marks.items())

    def content_digest(self) -> str:
        return _digest((name, size, zlib.crc32(self.read(name))) for name, size in self.sizes.items())


def _list_local(root: Path) -> dict[str, tuple[int, str]]:
    """Size and modification time of the files of a folder and of its results."""
    marks = {}
    results = [e.name for e in os.scandir(root) if e.name.lower() == RESULTS and leads_somewhere(e) and e.is_dir()]
    for sub in ("", *results):
        for entry in os.scandir(root / sub):
            if is_text(entry.name) and leads_somewhere(entry) and entry.is_file():
                stat = entry.stat()
                marks[f"{sub}/{entry.name}" if sub else entry.name] = (stat.st_size, str(stat.st_mtime_ns))
    return marks


def _all_files(listed: Iterable[str]) -> dict[str, str]:
    """Every file of a folder and of its results: name in the case to path."""
    split = {path: split_name(path) for path in sorted(listed) if not is_ignored(path)}
    return {relative: path for path, (folder, relative) in split.items() if not folder}


class ArchiveFiles:
    """Files of a case in a zip archive that stays open."""

    def __init__(self, reader: ArchiveReader, members: Mapping[str, Member]) -> None:
        self._reader = reader
        self._members = members

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: member.size for name, member in self._members.items()}

    def read(self, name: str) -> bytes:
        _check_present(name, self._members)
        return self._reader.read(name, self._members[name])

    def crc32(self, name: str, data: bytes) -> int:
        return self._members[name].crc32  # reading checked it

    def signature(self) -> str:
        return content_signature(self)

    def content_digest(self) -> str:
        return _digest((name, member.size, member.crc32) for name, member in self._members.items())


def _check_present(name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise CaseError(FailureReason.MISSING_FILE, "the file is missing", path=name)


def open_case(location: CaseLocation, *, anew: bool = False) -> CaseFiles:
    """Open the files of a case.

    Args:
        location: Where it lies.
        anew: List it again even where its listing came along, to see whether it changed.

    Raises:
        CaseError: If the folder or archive can't be read any more.
    """
    try:
        if location.prefix is None:
            listed = None if anew or location.listed is None else {name: (n, m) for name, n, m in location.listed}
            return FolderFiles(location.container, location.run, listed)
        reader = reader_at(location.container)
        if location.index is not None and (members := read_members(location.index, reader.mark)) is not None:
            files = ArchiveFiles(reader, members)
            if files.signature() == location.signature:
                return files
        return ArchiveFiles(reader, archive_at(location.container).cases[location.prefix])
    except (OSError, KeyError) as error:
        detail = f"the source {location.source.archive} can't be read any more"
        raise CaseError(FailureReason.UNREADABLE_FILE, detail, path=location.source.member) from error
