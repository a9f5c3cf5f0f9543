"""Where a data set is put: a folder of this machine, or an object store.

A commit needs one thing of the storage: that a file appears whole or not at all. A file system gives it by renaming; an
object store gives it by its put. Storage with neither is refused.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, cast

import fsspec

from lpbf_data.durable import flush_folder, remove_leftovers, sha256_of_file, sha256_of_tree, write_durably
from lpbf_data.errors import UsageError
from lpbf_data.file_access.ignored_files import WORKSPACE_NAME
from lpbf_data.stores.manifest import MANIFEST_NAME
from lpbf_data.stores.zarr_parts import ZARR_NAME
from pipelines.sources.locations import is_url

ATOMIC_PUT: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "memory")
"""Protocols of fsspec whose put shows the whole object or nothing."""

_REMOVALS: Final = 100  # attempts, 50 ms apart

_GROUP: Final = b'{\n  "attributes": {},\n  "zarr_format": 3,\n  "node_type": "group"\n}'


class Target(Protocol):
    """Where a data set is written to; names are relative to it."""

    def read(self, name: str) -> bytes | None:
        """Content of a file; None when it isn't there."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a file, whole."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all in it, if it is there; it stays removed after a power cut."""
        ...

    def publish(self, staged: Path, name: str) -> None:
        """Move a staged file or folder to its final name, whole."""
        ...

    def take_back(self, name: str, staged: Path) -> None:
        """Move a file or folder back to where shards are staged."""
        ...

    def shards(self) -> list[str]:
        """Parquet files and Zarr parts that lie there."""
        ...

    def is_intact(self, name: str, sha256: str, size: int) -> bool:
        """Whether a shard still is what was written, as far as the storage tells without reading it."""
        ...

    def is_foreign(self) -> bool:
        """Whether something else than a data set of this project lies there."""
        ...

    @property
    def can_take_back(self) -> bool:
        """Whether a shard can get another name without being written again."""
        ...


class FolderTarget:
    """A folder of this machine.

    Args:
        root: The folder.
    """

    can_take_back = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        remove_leftovers(path.parent, path.name)
        write_durably(path, data)

    def remove(self, name: str) -> None:
        path = self.root / name
        if path.exists() or path.is_symlink():
            remove_path(path)
            flush_folder(path.parent)  # what is done next must not reach the disk before

    def publish(self, staged: Path, name: str) -> None:
        _move(staged, self.root / name)

    def take_back(self, name: str, staged: Path) -> None:
        _move(self.root / name, staged)

    def shards(self) -> list[str]:
        found = [*self.root.glob("data/*.parquet"), *(p for p in self.root.glob(f"{ZARR_NAME}/*/*") if p.is_dir())]
        return [path.relative_to(self.root).as_posix() for path in found]

    def is_intact(self, name: str, sha256: str, size: int) -> bool:
        path = self.root / name
        if not path.exists():
            return False
        return sha256 == (sha256_of_file(path) if path.is_file() else sha256_of_tree(path)[0])

    def is_foreign(self) -> bool:
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"the output {self.root} is a file; choose another --out")
        ours = (WORKSPACE_NAME, MANIFEST_NAME)
        return self.root.is_dir() and any(self.root.iterdir()) and not any((self.root / n).exists() for n in ours)


class ObjectTarget:
    """A prefix of an object store. A shard is known to be intact by its size; `verify` looks closer.

    Args:
        url: The prefix, say "s3://bucket/lpbf".

    Raises:
        UsageError: If the protocol isn't known, or gives no atomic put.
    """

    can_take_back = False

    def __init__(self, url: str) -> None:
        protocol = url.partition("://")[0].rpartition("::")[2]
        if protocol not in ATOMIC_PUT:
            raise UsageError(
                f"--out {url}: {protocol} shows files before they are whole, so a build there could be seen half done; "
                "build into a local folder and copy it, or use an object store"
            )
        try:
            self._system, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"can't open --out {url}: {error}") from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes | None:
        path = self._path(name)
        self._system.invalidate_cache()
        return cast("bytes", self._system.cat_file(path)) if self._system.exists(path) else None

    def write(self, name: str, data: bytes) -> None:
        self._system.pipe_file(self._path(name), data)

    def remove(self, name: str) -> None:
        path = self._path(name)
        self._system.invalidate_cache()
        if self._system.exists(path):
            self._system.rm(path, recursive=True)

    def publish(self, staged: Path, name: str) -> None:
        self.remove(name)
        files = sorted(path for path in staged.rglob("*") if path.is_file()) if staged.is_dir() else [staged]
        for path in files:
            relative = path.relative_to(staged).as_posix()
            self._system.put_file(str(path), self._path(name if relative == "." else f"{name}/{relative}"))
        remove_path(staged)

    def take_back(self, name: str, staged: Path) -> None:
        raise AssertionError(f"{name} can't be renamed in an object store; it is written again")

    def _sizes(self, name: str) -> Mapping[str, Any]:
        self._system.invalidate_cache()
        found: dict[str, Any] = self._system.find(self._path(name), detail=True)
        return {path.removeprefix(self._root).lstrip("/"): info["size"] for path, info in found.items()}

    def shards(self) -> list[str]:
        parquet = [name for name in self._sizes("data") if name.endswith(".parquet")]
        parts = {"/".join(name.split("/")[:3]) for name in self._sizes(ZARR_NAME) if name.count("/") > 2}
        return parquet + sorted(parts)

    def is_intact(self, name: str, sha256: str, size: int) -> bool:
        del sha256
        return sum(map(int, self._sizes(name).values())) == size

    def is_foreign(self) -> bool:
        return self.read(MANIFEST_NAME) is None and bool(self._sizes(""))


def open_target(out: str) -> Target:
    """The target that `--out` names.

    Raises:
        UsageError: If a data set can't be committed there.
    """
    return ObjectTarget(out) if is_url(out) else FolderTarget(Path(out))


def default_workspace(out: str) -> Path:
    """Where a build keeps its work: in the folder of the data set, or here for a data set on an object store."""
    if not is_url(out):
        return Path(out) / WORKSPACE_NAME
    return Path(f"{WORKSPACE_NAME}-{hashlib.sha256(out.encode()).hexdigest()[:12]}")


def write_zarr_groups(target: Target, splits: Mapping[str, Any] | list[str]) -> None:
    """Metadata of the Zarr root group and of one group per split.

    Args:
        target: The place of the data set.
        splits: Splits that have parts; without any, whatever is left of the Zarr store is removed.
    """
    if not splits:
        target.remove(ZARR_NAME)
        return
    for folder in ("", *(f"/{split}" for split in splits)):
        target.write(f"{ZARR_NAME}{folder}/zarr.json", _GROUP)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_path(target)
    source.replace(target)
    flush_folder(target.parent)


def remove_path(path: Path) -> None:
    """Remove a file or a folder with all in it, if it is there.

    Where a write failed, on a full disk say, Zarr's threads may still make or remove files of theirs in the folder.
    """
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for _ in range(_REMOVALS):
        try:
            shutil.rmtree(path)
        except OSError as error:
            if not path.exists():
                return
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
            time.sleep(0.05)
        else:
            return
    shutil.rmtree(path)
