"""Where cases lie: folders and zip archives, read in place and with suspicion.

A case is found by its files: `…mechanical.out`, `…mechanical.in` or `…mechanical.case`, or results of a mechanical run
in a folder `results/`. It can lie at any depth, in a folder or in an archive. Nothing is unpacked to disk.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import struct
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from lpbf_data.errors import CaseError, FailureReason, UsageError
from lpbf_data.record import CaseRecord, Failure, SourceRef

MAX_FILE_BYTES: Final = 1 << 30
"""Largest file that is read: a hundred times what a part of 50,000 points needs."""

_TOP_FILE: Final = re.compile(r"(?:.*_)?mechanical\.(?:out|in|case)")
_RESULT_FILE: Final = re.compile(r"(?:.*_)?mechanical.*\.(?:case|geo|ens)")
_RESULTS: Final = "results"


@dataclass(frozen=True, slots=True)
class CaseLocation:
    """Where a case lies on this machine, and the name it goes by everywhere.

    Attributes:
        case_id: Name of the case: that of its folder.
        container: Absolute path of the case's folder, or of the archive that holds it.
        prefix: Path inside the archive; None for a folder.
        source: The same place without any local path.
        signature: Signature of its files when it was found.
    """

    case_id: str
    container: str
    prefix: str | None
    source: SourceRef
    signature: str = ""


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
        """A hash that changes when the case changes: of names, sizes and CRC-32 or modification times."""
        ...

    def content_digest(self) -> str:
        """SHA-256 over name, size and CRC-32 of every file; the same for a folder and its archive."""
        ...


def _digest(entries: Iterable[tuple[str, int, int]]) -> str:
    lines = "".join(f"{name}\0{size}\0{mark}\n" for name, size, mark in sorted(entries))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_contents(contents: Mapping[str, tuple[int, int]]) -> str:
    """SHA-256 over name, size and CRC-32 of files.

    Args:
        contents: Name to size and CRC-32.
    """
    return _digest((name, size, crc) for name, (size, crc) in contents.items())


class FolderFiles:
    """Files of a case in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stats: dict[str, os.stat_result] = {}
        for sub in ("", _RESULTS):
            folder = root / sub
            if folder.is_dir():
                for entry in os.scandir(folder):
                    if entry.is_file():
                        self._stats[f"{sub}/{entry.name}" if sub else entry.name] = entry.stat()

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: stat.st_size for name, stat in self._stats.items()}

    def read(self, name: str) -> bytes:
        _check_present(name, self._stats)
        _check_size(name, self._stats[name].st_size)
        try:
            return (self._root / name).read_bytes()
        except OSError as error:
            raise CaseError(FailureReason.UNREADABLE_FILE, f"can't be read: {error.strerror}", path=name) from error

    def crc32(self, name: str, data: bytes) -> int:
        return zlib.crc32(data)

    def signature(self) -> str:
        return _digest((name, stat.st_size, stat.st_mtime_ns) for name, stat in self._stats.items())

    def content_digest(self) -> str:
        return _digest((name, size, zlib.crc32(self.read(name))) for name, size in self.sizes.items())


class ArchiveFiles:
    """Files of a case in a zip archive that stays open."""

    def __init__(self, archive: _Archive, members: Mapping[str, zipfile.ZipInfo]) -> None:
        self._archive = archive
        self._members = members

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: info.file_size for name, info in self._members.items()}

    def read(self, name: str) -> bytes:
        _check_present(name, self._members)
        return self._archive.read(name, self._members[name])

    def crc32(self, name: str, data: bytes) -> int:
        return self._members[name].CRC  # reading checked it

    def signature(self) -> str:
        return self.content_digest()

    def content_digest(self) -> str:
        return _digest((name, info.file_size, info.CRC) for name, info in self._members.items())


def _check_present(name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise CaseError(FailureReason.MISSING_FILE, "the file is missing", path=name)


def _check_size(name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        detail = f"the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read"
        raise CaseError(FailureReason.OVERSIZED_MEMBER, detail, path=name)


class _Archive:
    """An open zip file, its members grouped by case."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)  # the cache forgets an archive; whoever still reads it keeps it open
        try:
            infos = zipfile.ZipFile(self._file).infolist()
        except (zipfile.BadZipFile, OSError, struct.error, NotImplementedError, ValueError) as error:
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, f"not a readable zip archive: {error}") from error
        names = {info.filename.replace("\\", "/"): info for info in infos if not info.is_dir()}
        self.unsafe = sorted(name for name in names if _is_unsafe(name))
        self.cases: dict[str, dict[str, zipfile.ZipInfo]] = {}
        for prefix, relative, name in group_cases(name for name in names if not _is_unsafe(name)):
            self.cases.setdefault(prefix, {})[relative] = names[name]

    def read(self, name: str, info: zipfile.ZipInfo) -> bytes:
        """Inflate a member; never more than it says, and checked against its CRC-32."""
        _check_size(name, info.file_size)
        raw = self._raw(name, info)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            data = self._inflate(name, info, raw)
        elif info.compress_type == zipfile.ZIP_STORED:
            data = raw
        else:
            detail = f"compression method {info.compress_type} is not supported, only stored and deflated are"
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, detail, path=name)
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, "the member doesn't match its checksum", path=name)
        return data

    def _raw(self, name: str, info: zipfile.ZipInfo) -> bytes:
        if info.flag_bits & 0x1:
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, "the member is encrypted", path=name)
        try:
            self._file.seek(info.header_offset)
            header = self._file.read(30)
            if len(header) < 30 or header[:4] != b"PK\3\4":
                raise CaseError(FailureReason.DAMAGED_ARCHIVE, "the member's header is damaged", path=name)
            name_length, extra_length = struct.unpack("<HH", header[26:])
            self._file.seek(name_length + extra_length, os.SEEK_CUR)
            raw = self._file.read(info.compress_size)
        except OSError as error:
            raise CaseError(FailureReason.UNREADABLE_FILE, f"can't be read: {error.strerror}", path=name) from error
        if len(raw) < info.compress_size:
            detail = f"{info.compress_size:,} bytes expected, {len(raw):,} are there"
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, detail, path=name)
        return raw

    def _inflate(self, name: str, info: zipfile.ZipInfo, raw: bytes) -> bytes:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(raw, info.file_size + 1)
        except zlib.error as error:
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, f"can't be inflated: {error}", path=name) from error
        if len(data) > info.file_size:
            detail = f"the member unpacks to more than the {info.file_size:,} bytes that it says"
            raise CaseError(FailureReason.OVERSIZED_MEMBER, detail, path=name)
        return data


def _is_unsafe(name: str) -> bool:
    return ".." in name.split("/") or name.startswith("/") or ":" in name.split("/", 1)[0]


def group_cases(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Tell which names belong to a case.

    Args:
        names: Paths with forward slashes.

    Yields:
        Path of the case, name relative to it, and the name itself, for each file of each case.

    >>> sorted(group_cases(["a/b_mechanical.out", "a/results/b_mechanical.case", "a/notes.txt", "readme.txt"]))
    [('a', 'b_mechanical.out', 'a/b_mechanical.out'), ('a', 'notes.txt', 'a/notes.txt'), \
('a', 'results/b_mechanical.case', 'a/results/b_mechanical.case')]
    """
    split: list[tuple[str, str, str]] = []
    roots: set[str] = set()
    for name in names:
        folder, _, base = name.rpartition("/")
        above, _, last = folder.rpartition("/")
        if last == _RESULTS:
            split.append((above, f"{_RESULTS}/{base}", name))
            if _RESULT_FILE.fullmatch(base):
                roots.add(above)
        else:
            split.append((folder, base, name))
            if _TOP_FILE.fullmatch(base):
                roots.add(folder)
    yield from (entry for entry in split if entry[0] in roots)


@functools.lru_cache(maxsize=2)
def _open_archive(path: str, size: int, modified: int) -> _Archive:
    """An archive is opened once a process, and again only when it has changed."""
    del size, modified
    return _Archive(Path(path))


def _archive_at(path: str) -> _Archive:
    stat = os.stat(path)
    return _open_archive(path, stat.st_size, stat.st_mtime_ns)


def open_case(location: CaseLocation) -> CaseFiles:
    """Open the files of a case.

    Raises:
        CaseError: If the folder or archive can't be read any more.
    """
    try:
        if location.prefix is None:
            return FolderFiles(Path(location.container))
        archive = _archive_at(location.container)
        return ArchiveFiles(archive, archive.cases[location.prefix])
    except (OSError, KeyError) as error:
        detail = f"the source {location.source.archive} can't be read any more ({error})"
        raise CaseError(FailureReason.UNREADABLE_FILE, detail, path=location.source.member) from error


@dataclass(frozen=True, slots=True)
class Found:
    """Cases that were found, and what couldn't even be opened."""

    locations: tuple[CaseLocation, ...]
    failures: tuple[CaseRecord, ...] = ()


def find_cases(sources: Sequence[Path]) -> Found:
    """Find every case below the given folders and archives.

    Args:
        sources: Folders of cases, single cases, zip archives, folders of archives, in any mixture.

    Returns:
        Locations and failures, in an order that depends on their names only.

    Raises:
        UsageError: If a source doesn't exist or can't be read, or no case is found at all.
    """
    locations: list[CaseLocation] = []
    failures: list[CaseRecord] = []
    for source in sources:
        found = _find_in_source(source)
        locations += found.locations
        failures += found.failures
    if not locations and not failures:
        names = ", ".join(map(str, sources))
        raise UsageError(
            f"no NetFabb case found in {names}; a case is a folder with …mechanical.out or results/…mechanical.case"
        )
    unique = {(x.container, x.prefix): x for x in locations}.values()
    return Found(
        tuple(sorted(unique, key=lambda x: (x.case_id, x.source.archive, x.source.member, x.container))),
        tuple(failures),
    )


def _find_in_source(source: Path) -> Found:
    if source.is_dir():
        return _find_in_folder(source)
    if not source.exists():
        raise UsageError(f"the source {source} doesn't exist")
    try:
        return find_in_archive(source.absolute(), source.name)
    except (CaseError, OSError) as error:
        raise UsageError(f"the source {source} can't be read: {error}") from error


def _find_in_folder(source: Path) -> Found:
    source = source.absolute()
    locations: list[CaseLocation] = []
    failures: list[CaseRecord] = []
    for folder, names in _walk(source):
        relative = folder.relative_to(source).as_posix()
        if any(prefix == "" for prefix, _, _ in group_cases(names)):
            member = "." if relative == "." else relative
            place, signature = SourceRef(source.name, member), FolderFiles(folder).signature()
            locations.append(CaseLocation(folder.name, str(folder), None, place, signature))
        for name in names:
            if name.lower().endswith(".zip") and "/" not in name:
                label = (folder / name).relative_to(source).as_posix()
                try:
                    found = find_in_archive(folder / name, label)
                except (CaseError, OSError) as error:
                    failures.append(_failed_source(name, label, error))
                    continue
                locations += found.locations
                failures += found.failures
    return Found(tuple(locations), tuple(failures))


def _walk(source: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `source` with the names in them and in their `results`; links are followed, cycles are not."""
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
        folders.sort()
        inner = Path(folder) / _RESULTS
        inside = [f"{_RESULTS}/{name}" for name in os.listdir(inner)] if inner.is_dir() else []
        if _RESULTS in folders:
            folders.remove(_RESULTS)
        yield Path(folder), sorted([*names, *inside])


def find_in_archive(path: Path, label: str) -> Found:
    """Find the cases of one archive.

    Args:
        path: The archive.
        label: How records call it.

    Raises:
        CaseError: If it isn't a readable archive.
    """
    archive = _archive_at(str(path))
    locations = [
        CaseLocation(
            prefix.rpartition("/")[2] or path.stem,
            str(path),
            prefix,
            SourceRef(label, prefix or "."),
            ArchiveFiles(archive, members).signature(),
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


def _failed_source(name: str, label: str, error: Exception) -> CaseRecord:
    if isinstance(error, CaseError):
        failure = Failure(error.reason, error.detail, label)
    else:
        failure = Failure(FailureReason.UNREADABLE_FILE, f"can't be read: {error}", label)
    return CaseRecord(case_id=name, source=SourceRef(label, "."), failure=failure)
