"""Uploaded files: size limits while they arrive, and a temporary folder that is always removed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from filelock import FileLock, Timeout

from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.geometry.surface_formats import SURFACE_SUFFIXES, cad_advice

UPLOAD_SUFFIXES: Final = (*SURFACE_SUFFIXES, ".vtu")
"""Kinds of files that can be sent; a file of these kinds needs no other files."""

_PREFIX: Final = "lpbf-serve-"
_LOCK: Final = "in_use.lock"
_MAX_NAME_BYTES: Final = 100
_SECONDS_WITHOUT_BYTES: Final = 30.0


class TooLargeError(LpbfError):
    """A file that is larger than the limit."""


class StalledError(LpbfError):
    """A file that stopped arriving."""


def plain_name(sent: str) -> str:
    r"""The name of a sent file: without folders, unprintable signs and dots in front, and not too long.

    >>> plain_name("C:\\parts\\..\\bracket.STL"), plain_name("../../etc/my part.3mf")
    ('bracket.STL', 'my part.3mf')

    Args:
        sent: Name that the client sent.

    Raises:
        UsageError: If a file of that name isn't read here.
    """
    name = "".join(sign for sign in re.split(r"[/\\]", sent)[-1] if sign.isprintable()).strip().lstrip(".")
    suffix = PurePosixPath(name).suffix
    if suffix.lower() not in UPLOAD_SUFFIXES:
        if advice := cad_advice(suffix):
            raise UsageError(f"{name}: {advice}")
        what = f"{suffix} files" if suffix else "a file without suffix"
        raise UsageError(f"{name or 'the file'}: {what} can't be read here; send one of {', '.join(UPLOAD_SUFFIXES)}")
    stem = name[: len(name) - len(suffix)]
    # File names are bounded in bytes, signs take up to four.
    return stem.encode()[:_MAX_NAME_BYTES].decode(errors="ignore") + suffix


def check_length(stated: str | None, max_bytes: int) -> None:
    """Refuse a file by the length that it is announced with.

    Args:
        stated: Number of bytes, as a header says it; None where it isn't announced.
        max_bytes: Bytes at most.

    Raises:
        TooLargeError: If that is too much.
    """
    if stated is not None and (not stated.isdecimal() or int(stated) > max_bytes):
        raise TooLargeError(_too_large(max_bytes))


def _too_large(max_bytes: int) -> str:
    return (
        f"the file is larger than {max_bytes / 1e6:,.0f} MB, and was not read further; save it as a binary STL or with "
        "fewer triangles, or start the page with a larger --most_mb"
    )


async def keep_upload(chunks: AsyncIterator[bytes], path: Path, max_bytes: int) -> None:
    """Write a file as it arrives.

    Args:
        chunks: Its bytes.
        path: File to write.
        max_bytes: Bytes at most.

    Raises:
        TooLargeError: As soon as more have come.
        StalledError: If nothing comes for half a minute.
        UsageError: If it is empty.
    """
    size = 0
    with path.open("xb") as file:
        while True:
            try:
                chunk = await asyncio.wait_for(anext(chunks, None), _SECONDS_WITHOUT_BYTES)
            except TimeoutError as error:
                raise StalledError(
                    f"the file stopped arriving after {size:,} bytes, and was given up; send it again"
                ) from error
            if chunk is None:
                break
            size += len(chunk)
            if size > max_bytes:
                raise TooLargeError(_too_large(max_bytes))
            file.write(chunk)
    if not size:
        raise UsageError(f"{path.name}: the file is empty; export it again")


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """A folder for uploads, removed at the end; folders left by killed servers of the same user are removed first.

    Yields:
        The folder, which nobody else can read.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = FileLock(folder / _LOCK)
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove folders whose server has ended, which shows by their lock: it is released when its process ends."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):
            if folder.is_symlink() or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
                continue
            if not (folder / _LOCK).exists():
                continue  # being made at this moment
            with FileLock(folder / _LOCK, timeout=0):
                pass
            shutil.rmtree(folder)
