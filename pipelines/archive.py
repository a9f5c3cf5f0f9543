"""Zip archives of cases, read in place and with suspicion: nothing is unpacked to disk."""

from __future__ import annotations

import functools
import os
import re
import struct
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from lpbf_data.errors import CaseError, FailureReason
from pipelines.places import mark_of, open_binary

MAX_FILE_BYTES: Final = 1 << 30
"""Largest file that is read: a hundred times what a part of 50,000 points needs."""

_TOP_FILE: Final = re.compile(r"(?:.*_)?mechanical\.(?:out|in|case)")
_RESULT_FILE: Final = re.compile(r"(?:.*_)?mechanical.*\.(?:case|geo|ens)")
_RESULTS: Final = "results"


class Archive:
    """An open zip file, its members grouped by case."""

    def __init__(self, place: str) -> None:
        self._file = open_binary(place)
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
        check_size(name, info.file_size)
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


def check_size(name: str, size: int) -> None:
    """Refuse a file that is too large to be one of a case."""
    if size > MAX_FILE_BYTES:
        detail = f"the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read"
        raise CaseError(FailureReason.OVERSIZED_MEMBER, detail, path=name)


@functools.lru_cache(maxsize=2)
def _open_archive(place: str, size: int, mark: str) -> Archive:
    """An archive is opened once a process, and again only when it has changed."""
    del size, mark
    return Archive(place)


def archive_at(place: str) -> Archive:
    """The archive at a path or URL, as it is now.

    Raises:
        CaseError: If it isn't a readable archive.
        OSError: If it can't be read.
    """
    return _open_archive(place, *mark_of(place))
