"""Cases decoded once and kept on this machine's disk, memory-mapped by all workers and ranks.

One Arrow file per case holds the tensors of a sample as they are in memory. A file is written under a temporary name
and renamed, so it is whole or absent; its checksums are compared when a process first maps it, so that a file cut short
by a power failure is decoded again. Processes share the folder, and need no server.

    <root>/<collection>/collection.json     what it was decoded from
    <root>/<collection>/used                when it was last opened; locked while somebody has it open
    <root>/<collection>/00000/0000017.arrow
    <root>/footers/…                        footers of remote shards

A collection is what one selection of arrays gives for one split of one data set. When the cache is full, others are
removed ([cache_eviction][lpbf_data.reading.cache_eviction]). Cases of the collection in use
never replace one another: an epoch visits each case once, in random order, so a new case is no more likely to be needed
than the one that it would replace. Keeping also gives more hits: a cache that holds a share f of the cases serves f of
them; one that replaces the least recently used case serves about f²/2.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import uuid
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import torch
from filelock import FileLock

from lpbf_data.errors import UsageError
from lpbf_data.reading.cache_eviction import DESCRIBED, LOCKABLE, USED, make_room
from lpbf_data.stores.arrow import map_arrays, write_arrays
from lpbf_data.stores.selection import Arrays

try:
    import fcntl
except ImportError:  # Windows has no flock; there, an open file can't be removed anyway
    fcntl = None  # type: ignore[assignment]

Cache = str | Path | bool | None
"""Where to keep decoded cases: a folder; True or None for the default one; False for nowhere."""

CACHE_VERSION: Final = 2
DEFAULT_SIZE: Final = "64 GB"

_MAX_MAPPED: Final = 8192  # cases that a process keeps mapped
_SCAN_EVERY: Final = 64 << 20  # bytes that a process writes before it measures the whole cache again
_LOCKS: Final = 64  # lock files of a collection
_LOCK_SECONDS: Final = 120.0  # after which a process decodes without the lock
_MAX_OPENINGS: Final = 20  # attempts to open a collection that others remove at the same time
_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class CacheWarning(UserWarning):
    """The cache can't be used, or takes no more cases."""


def parse_size(size: int | str) -> int:
    """Bytes, from a number or a text.

    Raises:
        UsageError: If it is no size.

    >>> parse_size("1.5 GB")
    1500000000
    """
    text = str(size).strip().upper()
    number = text.rstrip("KMGTB ")
    try:
        count = float(number) * _UNITS[text[len(number) :].strip()]
    except (KeyError, ValueError) as error:
        raise UsageError(f"a cache size is a number of bytes or a text such as '20 GB', not {size!r}") from error
    if not 0 < count < 2**63:
        raise UsageError(f"a cache size must be positive, not {size!r}")
    return int(count)


def _expanded(folder: str | Path, name: str) -> Path:
    """An absolute path, ~ replaced: programs change their working folder after opening a data set (hydra does).

    Raises:
        UsageError: If no home folder is known for ~.
    """
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"{name} {folder}: no home folder is known for ~; give the whole path") from error


def default_root() -> Path | None:
    """Where the cache lies: LPBF_CACHE, or a folder in the user's cache folder; None where there is no home folder.

    Raises:
        UsageError: If a ~ in LPBF_CACHE stands for no known folder.
    """
    if chosen := os.environ.get("LPBF_CACHE"):
        return _expanded(chosen, "LPBF_CACHE")
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # Neither HOME nor an entry for this user.
        return None
    return base.absolute() / "lpbf_data"


@dataclass(frozen=True, slots=True)
class CollectionKey:
    """What decides the tensors of a collection, and where they can be decoded from again.

    Attributes:
        source: The data set: a local path, a URL or a repository and its commit.
        digest: Hash of its contents.
        split: The split.
        names: Names of the tensors of a sample.
        local: Whether the source is a folder on this machine.
        version: Version of the cache's own format.
    """

    source: str
    digest: str
    split: str
    names: tuple[str, ...]
    local: bool
    version: int = CACHE_VERSION

    @property
    def folder(self) -> str:
        """Name of the collection's folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


class CachedCases:
    """The cases of one collection. Pickles without open files.

    Args:
        root: Folder of the whole cache.
        key: The collection.
        size: Bytes that the whole cache may take.
        offline: Nothing can be fetched again, so nothing that was fetched is removed.
    """

    def __init__(self, root: Path, key: CollectionKey, size: int, *, offline: bool = False) -> None:
        self.root = root
        self.size = size
        self.offline = offline
        self.folder = root / key.folder
        self.key = key
        self.writable = True
        self._mapped: OrderedDict[int, Arrays] = OrderedDict()
        self._unscanned: int | None = None
        self._used: int | None = None
        try:
            self._open_collection()
        except OSError as error:
            self._stop(f"can't be written to ({error})")
            self._mark_used()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": OrderedDict(), "_used": None, "_unscanned": None}

    def _open_collection(self) -> None:
        """Make the folder where it isn't there, and keep it from being removed.

        Raises:
            OSError: If it can't be written to.
        """
        described = json.dumps(asdict(self.key), indent=1)
        for _ in range(_MAX_OPENINGS):
            with contextlib.suppress(FileNotFoundError):  # another process removed it between two of these steps
                self.folder.mkdir(parents=True, exist_ok=True)
                if not _has_text(self.folder / DESCRIBED, described):
                    with _aside(self.folder / DESCRIBED) as aside:
                        aside.write_text(described, encoding="utf-8")
                        aside.replace(self.folder / DESCRIBED)
                (self.folder / USED).touch()
                if self._mark_used():
                    return
        raise OSError(f"{self.folder} is removed by others again and again")

    def _mark_used(self) -> bool:
        """Hold a shared lock for as long as the process lives: nobody removes a collection that is in use.

        Returns:
            Whether the collection is still there, now that nobody can remove it.
        """
        if not LOCKABLE:
            return True
        try:
            descriptor = os.open(self.folder / USED, os.O_RDONLY)
        except OSError:
            return False
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(self.folder / USED))
        except OSError:
            same = False
        if not same:
            os.close(descriptor)
            return False
        self._used = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False  # the system closes it then
        return True

    def path(self, index: int) -> Path:
        """File of a case."""
        return self.folder / f"{index // 1000:05d}" / f"{index:07d}.arrow"

    def __contains__(self, index: int) -> bool:
        """Whether a file of the case exists; whether it is intact, `get` checks."""
        return index in self._mapped or self.path(index).exists()

    @contextlib.contextmanager
    def lock(self, name: object) -> Iterator[None]:
        """Hold a lock while a case or shard is decoded, against other processes; none on file systems without locks.

        Args:
            name: Number of the case, or name of the shard.
        """
        number = int(hashlib.sha256(str(name).encode()).hexdigest(), 16) % _LOCKS
        held = FileLock(self.folder / f"{number:02d}.lock", timeout=_LOCK_SECONDS)
        with contextlib.ExitStack() as stack:
            if self.writable:
                with contextlib.suppress(OSError, RuntimeError):
                    stack.enter_context(held)
            yield

    def get(self, index: int, stamp: str) -> Arrays | None:
        """Arrays of a case, mapped from its file, read-only. None when it isn't there or isn't intact.

        Args:
            index: Its number.
            stamp: State of the files that it is decoded from (`SplitReader.stamp`); a file with another one is
                outdated.
        """
        found = self._mapped.get(index)
        if found is not None:
            return found
        try:
            found = map_arrays(self.path(index), stamp)
        except (OSError, ValueError):
            return None
        self._mapped[index] = found
        if len(self._mapped) > _MAX_MAPPED:
            self._mapped.popitem(last=False)
        return found

    def put(self, index: int, arrays: Arrays, stamp: str) -> None:
        """Keep a case, if there is room. Never raises: training goes on without a cache.

        Args:
            index: Its number.
            arrays: Its arrays in the types that the tensors have.
            stamp: State of the files that it was decoded from (`SplitReader.stamp`).
        """
        size = sum(values.nbytes for values in arrays.values())
        try:
            if not self.writable or not self._has_room(size):
                return
            if not self.folder.exists():  # somebody deleted it
                self._open_collection()
            path = self.path(index)
            path.parent.mkdir(exist_ok=True)
            with _aside(path) as aside:
                write_arrays(aside, arrays, stamp)
                aside.replace(path)
        except (OSError, pa.ArrowException) as error:
            self._stop(f"can't be written to any more ({error})")

    def _stop(self, why: str) -> None:
        self.writable = False
        worker = torch.utils.data.get_worker_info()
        if worker is None or worker.id == 0:  # one warning is enough
            warnings.warn(
                f"the cache {self.root} {why}; what it doesn't hold yet is decoded anew each time. Choose another "
                "folder with cache=… or LPBF_CACHE, or turn it off with cache=False",
                CacheWarning,
                stacklevel=3,
            )

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more fit, after making room where that is possible."""
        if self._unscanned is None or self._unscanned + size > min(_SCAN_EVERY, self.size // 64):
            free = make_room(self.root, self.size, size, keep=self.folder, offline=self.offline)
            self._unscanned = 0
            if free < 0:
                self._stop(f"is full ({self.size / 1e9:.3g} GB, or its disk)")
                return False
        self._unscanned += size
        return True


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A temporary name beside a file, gone in the end."""
    aside = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def _has_text(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def cache_root(cache: Cache) -> Path | None:
    """Folder of the cache.

    Args:
        cache: What the user asked for.

    Returns:
        The folder; None for no cache, with a warning where no folder is known for it.

    Raises:
        UsageError: If a ~ in a path stands for no known folder.
    """
    if cache is False:
        return None
    if cache is not None and cache is not True:
        return _expanded(cache, "cache")
    root = default_root()
    if root is None:
        _warn_of_no_home()
    return root


@functools.cache
def _warn_of_no_home() -> None:
    """Warn once a process: Python's own registry of warnings is reset wherever their filters are changed."""
    warnings.warn(
        "there is no home folder for the cache, so cases are decoded anew each time; name a folder with LPBF_CACHE "
        "or cache=…, or turn it off with cache=False",
        CacheWarning,
        stacklevel=4,
    )
