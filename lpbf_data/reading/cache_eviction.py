"""Which collections of the cache are removed when it is full, and how.

Those that nobody has open: first those whose data set is gone, then those that can be decoded or fetched again, the
longest unused first. A collection is renamed while it is locked, and then removed: who opens it meanwhile finds it
whole or not at all, and makes it anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

try:
    import fcntl
except ImportError:  # Windows has no flock; there, an open file can't be removed anyway
    fcntl = None  # type: ignore[assignment]
LOCKABLE: bool = fcntl is not None

DESCRIBED: Final = "collection.json"
"""File of a collection that says what it was decoded from."""

USED: Final = "used"
"""File of a collection that is touched, and locked, by whoever opens it."""

FOOTERS: Final = "footers"
"""Folder for the footers of remote shards."""

_RESERVE: Final = 1 << 30
"""Bytes of the disk that stay free: checkpoints have to be written somewhere."""

_STALE_SECONDS: Final = 3600.0
_COLLECTION: Final = re.compile(r"[0-9a-f]{32}")
_GONE: Final = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{32}\.gone")
_STAYS: Final = (2, 0.0)


def make_room(root: Path, size: int, needed: int, *, keep: Path, offline: bool) -> int:
    """Remove collections until so many bytes fit.

    Args:
        root: The cache.
        size: Bytes that it may take.
        needed: Bytes to be written.
        keep: A collection that stays.
        offline: Collections that were fetched stay too.

    Returns:
        Bytes that are left then; negative when they don't fit.

    Raises:
        OSError: If the folder can't be listed.
    """
    root.mkdir(parents=True, exist_ok=True)
    # Other folders are no matter of the cache, whoever put them there.
    ours = [folder for folder in root.iterdir() if folder.is_dir() and not folder.is_symlink()]
    for folder in ours:
        if _GONE.fullmatch(folder.name):  # whoever removed it was killed
            shutil.rmtree(folder, ignore_errors=True)
    collections = [folder for folder in ours if _COLLECTION.fullmatch(folder.name)]
    sizes = {folder: _size_of(folder) for folder in collections}
    total = sum(sizes.values()) + _size_of(root / FOOTERS) + needed

    def left() -> int:
        return min(size - total, shutil.disk_usage(root).free - _RESERVE)

    removable = [(_value(folder, offline=offline), folder) for folder in collections if folder != keep]
    for value, folder in sorted(removable):
        if left() >= 0:
            break
        if value != _STAYS and (_remove(folder) or not folder.exists()):  # another process may be faster
            total -= sizes[folder]
    return left()


def _value(folder: Path, *, offline: bool) -> tuple[int, float]:
    """Priority of a collection: the smallest is removed first, and `_STAYS` never."""
    try:
        key: Mapping[str, Any] = json.loads((folder / DESCRIBED).read_text(encoding="utf-8"))
        local, source = bool(key["local"]), str(key["source"])
        last_used = (folder / USED).stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        # A collection without a description can't be opened, unless another process is just making it.
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                return 0, 0.0
        return _STAYS
    if local:
        return (1 if Path(source).exists() else 0), last_used
    return _STAYS if offline else (1, last_used)


def _remove(folder: Path) -> bool:
    """Remove a collection, unless somebody has it open."""
    gone = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.gone")
    try:
        with contextlib.ExitStack() as stack:
            if LOCKABLE and (folder / USED).exists():
                descriptor = os.open(folder / USED, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder.rename(gone)
    except OSError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _size_of(folder: Path) -> int:
    """Bytes of the files of a collection; what a killed writer left behind is removed."""
    total, now = 0, time.time()
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            with contextlib.suppress(OSError):
                status = path.stat()
                if name.endswith(".tmp") and now - status.st_mtime > _STALE_SECONDS:
                    path.unlink()
                else:
                    total += status.st_size
    return total
