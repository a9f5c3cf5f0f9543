"""Zip archives of cases, read without unpacking them to disk, and without trusting their directories."""

from __future__ import annotations

import functools
import os
import struct
import threading
import weakref
import zipfile
from dataclasses import dataclass
from typing import Final

from zlib_ng import zlib_ng as zlib  # inflates half again as fast as the standard library's

from lpbf_data.errors import CaseError, FailureReason
from pipelines.sources.grouping import group_cases
from pipelines.sources.locations import open_binary, size_and_version

MAX_FILE_BYTES: Final = 1 << 30
"""Largest file that is read: a hundred times what a part of 50,000 points needs."""

_MOST: Final = 1 << 62  # a directory that says more lies; so much fits an index of 64-bit integers

_UTF8_FLAG: Final = 0x800


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive, as the archive's directory tells.

    Attributes:
        offset: Where its header begins.
        packed_size: Bytes that it takes in the archive.
        size: Bytes that it has.
        crc32: Their CRC-32.
        method: How it is compressed: 0 stored, 8 deflated.
        flags: Flags of the zip format; bit 0 says that it is encrypted.
    """

    offset: int
    packed_size: int
    size: int
    crc32: int
    method: int
    flags: int


class ArchiveReader:
    """An open zip file of which members are read; its directory isn't.

    Attributes:
        file: The open file.
        mark: Size and version that it was opened with, as `size_and_version` gives them.
    """

    def __init__(self, location: str, mark: tuple[int, str]) -> None:
        self.file = open_binary(location)
        self.mark = mark
        self.lock = threading.Lock()  # threads of one worker share the file, and with it the offset to read from
        weakref.finalize(self, self.file.close)  # the cache forgets a reader; whoever still reads keeps it open

    def read(self, name: str, member: Member) -> bytes:
        """Inflate a member; never more than it says, and checked against its CRC-32."""
        check_size(name, member.size)
        raw = self._raw(name, member)
        if member.method == zipfile.ZIP_DEFLATED:
            data = self._inflate(name, member, raw)
        elif member.method == zipfile.ZIP_STORED:
            data = raw
        else:
            detail = f"compression method {member.method} is not supported, only stored and deflated are"
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, detail, path=name)
        if len(data) != member.size or zlib.crc32(data) != member.crc32:
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, "the member doesn't match its checksum", path=name)
        return data

    def _raw(self, name: str, member: Member) -> bytes:
        if member.flags & 0x1:
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, "the member is encrypted", path=name)
        if not 0 <= member.offset <= member.offset + member.packed_size <= self.mark[0]:
            detail = "the archive's directory says that this member lies outside of the archive"
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, detail, path=name)
        try:
            with self.lock:
                self.file.seek(member.offset)
                header = self.file.read(30)
                if len(header) < 30 or header[:4] != b"PK\3\4":
                    raise CaseError(FailureReason.DAMAGED_ARCHIVE, "the member's header is damaged", path=name)
                name_length, extra_length = struct.unpack("<HH", header[26:])
                self.file.seek(name_length + extra_length, os.SEEK_CUR)
                raw = self.file.read(member.packed_size)
        except OSError as error:
            raise CaseError(FailureReason.UNREADABLE_FILE, f"can't be read: {error.strerror}", path=name) from error
        if len(raw) < member.packed_size:
            detail = f"{member.packed_size:,} bytes expected, {len(raw):,} are there"
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, detail, path=name)
        return raw

    def _inflate(self, name: str, member: Member, raw: bytes) -> bytes:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(raw, member.size + 1)
        except zlib.error as error:  # type: ignore[misc]  # its stub hides that it is one
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, f"can't be inflated: {error}", path=name) from error
        if len(data) > member.size:
            detail = f"the member unpacks to more than the {member.size:,} bytes that it says"
            raise CaseError(FailureReason.OVERSIZED_MEMBER, detail, path=name)
        return data


class Archive:
    """The directory of a zip file, its members grouped by case.

    Attributes:
        cases: Path of each case to its files.
        grouping: What else lies there.
        unsafe: Names that leave the archive.
        guessed: Names that are read as UTF-8 although the archive doesn't say that they are.
        twice: Cases of which the archive holds two files of one name with different content, to the first such name.
    """

    def __init__(self, location: str) -> None:
        self.reader = reader_at(location)
        try:
            with self.reader.lock:
                infos = zipfile.ZipFile(self.reader.file).infolist()
        except (zipfile.BadZipFile, OSError, struct.error, NotImplementedError, ValueError) as error:
            raise CaseError(FailureReason.DAMAGED_ARCHIVE, f"not a readable zip archive: {error}") from error
        names: dict[str, zipfile.ZipInfo] = {}
        twice: set[str] = set()
        self.guessed: list[str] = []
        for info in infos:
            name = _true_name(info)
            if name != info.filename:
                self.guessed.append(name)
            name = name.replace("\\", "/")
            if not name.endswith("/"):
                name = _tidy_name(name)
                before = names.get(name, info)
                if (before.CRC, before.file_size) != (info.CRC, info.file_size):
                    twice.add(name)
                names[name] = info
        self.unsafe = sorted(name for name in names if _is_unsafe(name))
        self.grouping = group_cases(name for name in names if not _is_unsafe(name))
        self.cases = {
            case: {relative: _member(names[name]) for relative, name in files.items()}
            for case, files in self.grouping.cases.items()
        }
        self.twice = {
            case: min(twice.intersection(files.values()))
            for case, files in self.grouping.cases.items()
            if twice and not twice.isdisjoint(files.values())
        }


def _true_name(info: zipfile.ZipInfo) -> str:
    """Name of a member; many programs write UTF-8 without the flag that says so, which is read as code page 437."""
    if info.flag_bits & _UTF8_FLAG:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _tidy_name(name: str) -> str:
    """A name without the doubled slashes and "." that some programs write; one that leaves the archive stays as it is.

    >>> _tidy_name("./p1//results/./a.geo"), _tidy_name("/p1//a"), _tidy_name("p1//../a")
    ('p1/results/a.geo', '/p1//a', 'p1//../a')
    """
    return name if _is_unsafe(name) else "/".join(part for part in name.split("/") if part not in ("", "."))


def _member(info: zipfile.ZipInfo) -> Member:
    offset = min(max(info.header_offset, -1), _MOST)
    packed_size, size = min(info.compress_size, _MOST), min(info.file_size, _MOST)
    return Member(offset, packed_size, size, info.CRC, info.compress_type, info.flag_bits)


def _is_unsafe(name: str) -> bool:
    return ".." in name.split("/") or name.startswith("/") or ":" in name.split("/", 1)[0]


def check_size(name: str, size: int) -> None:
    """Refuse a file that is too large to be one of a case."""
    if size > MAX_FILE_BYTES:
        detail = f"the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read"
        raise CaseError(FailureReason.OVERSIZED_MEMBER, detail, path=name)


@functools.lru_cache(maxsize=64)
def _open_reader(location: str, size: int, mark: str) -> ArchiveReader:
    """An archive is opened once a process, and again only when it has changed."""
    return ArchiveReader(location, (size, mark))


@functools.lru_cache(maxsize=2)
def _open_archive(location: str, size: int, mark: str) -> Archive:
    """A directory of tens of thousands of members takes its time and room: two at a time are kept."""
    del size, mark
    return Archive(location)


def reader_at(location: str) -> ArchiveReader:
    """The archive at a path or URL, as it is now, its directory unread.

    Raises:
        OSError: If it can't be read.
    """
    return _open_reader(location, *size_and_version(location))


def archive_at(location: str) -> Archive:
    """The archive at a path or URL, as it is now.

    Raises:
        CaseError: If it isn't a readable archive.
        OSError: If it can't be read.
    """
    return _open_archive(location, *size_and_version(location))
