"""Files that are either whole or absent: write aside, flush, rename; and their checksums."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from lpbf_data.errors import UsageError

_FLUSHES: Final = 16  # files flushed at a time


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tree(root: Path) -> tuple[str, int]:
    """SHA-256 over the relative path and SHA-256 of every file of a folder, and the sum of their sizes.

    The order of the file system doesn't matter.
    """
    digest, size = hashlib.sha256(), 0
    for path in sorted((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.relative_to(root).as_posix()):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_of_file(path)}\n".encode())
        size += path.stat().st_size
    return digest.hexdigest(), size


def flush_file(path: Path) -> None:
    """Push a file's content to the disk."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """Push a folder's entries to the disk, so that a rename in it survives a power cut."""
    if os.name == "nt":  # Windows can't open a folder; its renames are journaled by the file system.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(root: Path) -> None:
    """Push every file and folder below (and with) `root` to the disk.

    Files are flushed side by side: a journaling file system then commits many at a time.
    """
    walked = list(os.walk(root))
    files = [Path(folder) / name for folder, _, names in walked for name in names]
    with ThreadPoolExecutor(max_workers=_FLUSHES) as pool:
        for _ in pool.map(flush_file, files):
            pass
    for folder, _, _ in walked:
        flush_folder(Path(folder))


def _name_aside(path: Path) -> str:
    return f".{path.name}.{uuid.uuid4().hex}.tmp"


def check_writable(path: Path) -> None:
    """Refuse a file that `write_durably` couldn't write, before its content is computed; nothing is left behind.

    Args:
        path: The file; its folder may be absent.

    Raises:
        UsageError: If it is a folder, or its folder is none, can't be made or can't be written to.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name a file in it")
        existing = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if not existing.is_dir():
            raise UsageError(f"{path} can't be written: {existing} isn't a folder")
        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=existing) as folder:
            (Path(folder) / _name_aside(path)).touch()
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror or error}; name another file or folder") from error


def check_empty(folder: Path) -> None:
    """Refuse an output folder that holds something; one that doesn't exist yet is fine.

    Args:
        folder: The folder, as the option `--out` names it.

    Raises:
        UsageError: If it holds something, or isn't a folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out {folder} holds something already; name an empty folder or a new one")


@contextlib.contextmanager
def written_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `out` when the block ends; after an error in it, it is removed.

    Args:
        out: The folder, absent or empty; its parent is made when absent.

    Yields:
        The temporary folder, empty.
    """
    aside = out.with_name(_name_aside(out))
    aside.mkdir(parents=True)
    try:
        yield aside
        flush_tree(aside)
        if out.exists():
            out.rmdir()
        aside.replace(out)
        flush_folder(out.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file by new content so that any moment shows the old or the new content, never a part.

    Args:
        path: The file; its folder is made when absent.
        data: The whole content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(_name_aside(path))
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove temporary files of writers that were killed; no other writer may be at work in the folder.

    Args:
        folder: The folder; those below it are left alone.
        name: Name of the file that was being written; any by default.
    """
    pattern = name if name == "*" else glob.escape(name)
    for left in folder.glob(f".{pattern}.*.tmp"):
        left.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file by JSON that people can read, as `write_durably` does.

    Args:
        path: The file; its folder is made when absent.
        content: What to write.
    """
    write_durably(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
