"""A lock on the folder of a run, so that two trainings don't write into it at the same time.

It is a lock of the operating system, which is released when its process ends, however that ends.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from lpbf_data.durable import write_json
from lpbf_data.errors import UsageError
from lpbf_data.remarks import Remark, Treatment

LOCK_NAME: Final = ".lock"
HOLDER_NAME: Final = ".running.json"
"""File that names the process that trains here, for people; it can outlive a killed process, and isn't the lock."""

_PATIENCE: Final = 10.0
"""Seconds to wait for the lock: the readers of a killed process keep it until they notice, within five seconds."""

_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MOUNTS: Final = Path("/proc/self/mounts")
_LOCAL_LOCKS: Final = {"nolock", "local_lock=all", "local_lock=flock", "localflock"}
"""Mount options of NFS and Lustre under which a lock is visible on its own machine alone."""


@contextmanager
def locked_run(folder: Path, patience: float = _PATIENCE) -> Iterator[tuple[Remark, ...]]:
    """Hold a run's folder; it is made when absent.

    Args:
        folder: Folder of the run.
        patience: Seconds to wait for another process to let go.

    Yields:
        Remarks that other machines don't see the lock, or that the file system has no locks; empty otherwise.

    Raises:
        UsageError: If another process trains into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise UsageError(
            f"another process{_holder(folder)} trains into {folder}; wait for it to end, or give another --out. "
            "Processes that are to train one model together are started by torchrun or srun"
        ) from error
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        yield (_remark("no_lock", f"the file system of the run's folder has no locks ({error}): nothing", folder),)
        return
    try:
        here = {"host": platform.node(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        write_json(folder / HOLDER_NAME, here)
        local = is_local_lock(folder.resolve(), _mounts())
        what = "other machines that share the file system of the run's folder don't see its lock: it"
        yield (_remark("local_lock", what, folder),) if local else ()
    finally:
        (folder / HOLDER_NAME).unlink(missing_ok=True)
        lock.release()


def _remark(kind: str, what: str, folder: Path) -> Remark:
    keeps = "keeps" if kind == "no_lock" else "doesn't keep"
    sentence = f"{what} {keeps} a second process there from training into it too; start each run once"
    return Remark(Treatment.KEPT, kind, sentence, examples=(str(folder),))


def _holder(folder: Path) -> str:
    """The process that trains there as text, from the file that it wrote; empty where there is none."""
    try:
        holder = json.loads((folder / HOLDER_NAME).read_text(encoding="utf-8"))
        return f" ({holder['pid']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _mounts() -> str:
    try:
        return _MOUNTS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_local_lock(folder: Path, mounts: str) -> bool:
    """Whether a lock in a folder is seen on this machine alone, though others share the folder.

    Args:
        folder: The folder, absolute.
        mounts: Content of /proc/mounts, a line a file system: device, mount point, type, options. Empty where unknown.

    >>> is_local_lock(Path("/home/a/run"), "server:/x /home nfs4 rw,local_lock=all 0 0")
    True
    """
    best, local = -1, False
    for line in mounts.splitlines():
        _, place, _, options, *_ = [*line.split(" "), "", "", "", ""]
        mounted = Path(place.encode().decode("unicode_escape")) if "\\" in place else Path(place)
        if place and folder.is_relative_to(mounted) and len(mounted.parts) >= best:
            best, local = len(mounted.parts), bool(_LOCAL_LOCKS & set(options.split(",")))
    return local
