"""Files and folders at a location: a path of this machine, or a URL that fsspec reads (`s3://bucket/batches`, …)."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from lpbf_data.errors import UsageError


def is_url(location: str | Path) -> bool:
    """Whether a location is a URL.

    >>> is_url("s3://bucket/batches"), is_url("netfabb_out/")
    (True, False)
    """
    return "://" in str(location)


def _resolve(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise UsageError(f"can't open {url}: {error}") from error


def open_binary(location: str) -> IO[bytes]:
    """A file to read from and to seek in.

    Raises:
        OSError: If it isn't there or can't be read.
    """
    if not is_url(location):
        return Path(location).open("rb")
    system, path = _resolve(location)
    return cast("IO[bytes]", system.open(path, "rb"))


def read_bytes(location: str) -> bytes:
    """Content of a file.

    Raises:
        OSError: If it isn't there or can't be read.
    """
    if not is_url(location):
        return Path(location).read_bytes()
    system, path = _resolve(location)
    return cast("bytes", system.cat_file(path))


def size_and_version(location: str) -> tuple[int, str]:
    """Size of a file, and its version, known without reading it: time of change, or an object store's ETag.

    Raises:
        OSError: If it isn't there.
    """
    if not is_url(location):
        stat = Path(location).stat()
        return stat.st_size, str(stat.st_mtime_ns)
    system, path = _resolve(location)
    return _size_and_version(system.info(path))


def _size_and_version(info: dict[str, Any]) -> tuple[int, str]:
    keys = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")
    return int(info["size"] or 0), next((str(info[key]) for key in keys if info.get(key)), "")


def list_remote(url: str, *, depth: int | None = None) -> dict[str, tuple[int, str]]:
    """Files below a URL: relative name to size and version, as `size_and_version` gives them.

    Args:
        url: A folder.
        depth: How deep to look.

    Raises:
        OSError: If it isn't there or can't be listed.
    """
    system, root = _resolve(url)
    found = system.find(root, maxdepth=depth, detail=True)
    if not found and not system.exists(root):  # asked only then: every request takes its time
        raise FileNotFoundError(f"{url} doesn't exist")
    return {
        posixpath.relpath(name, root): _size_and_version(info) for name, info in found.items() if info["type"] == "file"
    }


def fetch(location: str, target: Path) -> None:
    """Copy a file or a folder with all in it onto this machine.

    Args:
        location: A URL.
        target: Where to; must not exist.

    Raises:
        OSError: If it isn't there or can't be read.
    """
    system, path = _resolve(location)
    target.parent.mkdir(parents=True, exist_ok=True)
    system.get(path, str(target), recursive=not system.isfile(path))


def is_remote_file(url: str) -> bool:
    """Whether a URL is a file rather than a folder.

    Raises:
        UsageError: If there is nothing.
    """
    system, path = _resolve(url)
    try:
        if not system.exists(path):
            raise UsageError(f"the source {url} doesn't exist")
        return bool(system.isfile(path))
    except OSError as error:
        raise UsageError(f"the source {url} can't be read: {error}") from error
