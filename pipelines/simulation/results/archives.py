"""Zip archives of cases as the published batches are shipped: `SandBox/<case>/…` in `data_0-100.zip`."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lpbf_data.durable import flush_folder

CASES_PER_ARCHIVE: Final = 100

_NAME: Final = re.compile(r"data_(\d+)-(\d+)\.zip")
_NO_TIME: Final = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE: Final = 0o100644 << 16


def archived(folder: Path) -> int:
    """How many cases the archives in a folder hold, counted from the first without a gap.

    Args:
        folder: Folder of the archives.
    """
    spans = sorted((int(m[1]), int(m[2])) for m in map(_NAME.fullmatch, os.listdir(folder)) if m)
    end = 0
    for first, last in spans:
        if first == end:
            end = last
    return end


def plan_archives(first: int, cases: int) -> list[tuple[int, int]]:
    """Ranges of cases that go into an archive each.

    >>> plan_archives(24, 230)
    [(24, 100), (100, 200), (200, 230)]
    """
    spans = []
    while first < cases:
        last = min(cases, (first // CASES_PER_ARCHIVE + 1) * CASES_PER_ARCHIVE)
        spans.append((first, last))
        first = last
    return spans


def write_archive(target: Path, folders: Sequence[Path]) -> None:
    """Pack folders of cases; the same folders give the same bytes.

    Args:
        target: The archive; it is there whole or not at all.
        folders: Folders of cases.
    """
    aside = target.with_name(f".{target.name}.tmp")
    with aside.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for folder in folders:
                for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                    name = f"SandBox/{folder.name}/{path.relative_to(folder).as_posix()}"
                    info = zipfile.ZipInfo(name, _NO_TIME)
                    info.create_system, info.external_attr = 3, _PLAIN_FILE
                    info.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(info, path.read_bytes(), compresslevel=6)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(target)
    flush_folder(target.parent)


def archive_path(folder: Path, span: tuple[int, int]) -> Path:
    """Where the archive of a range of cases lies.

    Args:
        folder: Folder of the archives.
        span: First case, and the one after the last.
    """
    return folder / f"data_{span[0]}-{span[1]}.zip"
