"""Errors of the operating system, distinguished from damaged files: only the latter are cured by building again."""

from __future__ import annotations

import errno
import os
import re
from typing import Final

from lpbf_data.errors import StoreError, UnreachableError

_RIGHTS: Final = "ask for the right to read it"
_OPEN_FILES: Final = "raise the limit of open files (ulimit -n), or read with fewer workers"
_ROOM: Final = "make room on the disk"
_MEMORY: Final = "free some memory, or read with fewer workers"
_DISK: Final = "the disk or its connection fails: look at it, and try again"
_CONNECTION: Final = "the connection fails: try again"

_ADVICE: Final[dict[int, str]] = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "choose a folder that can be written to",
    errno.ENOMEM: _MEMORY,
    errno.EIO: _DISK,
    errno.ENXIO: _DISK,
    errno.ENODEV: _DISK,
    errno.ESTALE: _DISK,
    errno.EBUSY: "try again",
    errno.EPIPE: _CONNECTION,
    errno.ECONNRESET: _CONNECTION,
    errno.ECONNABORTED: _CONNECTION,
    errno.ECONNREFUSED: _CONNECTION,
    errno.ETIMEDOUT: _CONNECTION,
    errno.EHOSTUNREACH: _CONNECTION,
    errno.ENETUNREACH: _CONNECTION,
    errno.ENETDOWN: _CONNECTION,
}
# Libraries in Rust give the error number in their text alone: "Too many open files (os error 24)".
_NUMBER_IN_TEXT: Final = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")


def describe_os_error(error: BaseException | None) -> str | None:
    """What the operating system refused, and what the user can do; None for any other error.

    Args:
        error: The error; the errors that caused it are looked at too.

    >>> describe_os_error(OSError(errno.EMFILE, "…"))
    'the operating system refuses it (Too many open files): raise the limit of open files (ulimit -n), or read with \
fewer workers'
    >>> describe_os_error(OSError("Unexpected end of stream")) is None
    True
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = _number_of(error)
        if number in _ADVICE:
            return f"the operating system refuses it ({os.strerror(number)}): {_ADVICE[number]}"
        error = error.__cause__ or error.__context__
    return None


def _number_of(error: BaseException) -> int:
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _NUMBER_IN_TEXT.search(str(error)) if isinstance(error, OSError | RuntimeError | ValueError) else None
    return 0 if found is None else int(found[1] or found[2])


def read_error(what: str, error: BaseException, otherwise: str) -> StoreError:
    """The error to raise where a file can't be read.

    Args:
        what: The file, such as "shard data/train-00000.parquet"; the beginning of the message.
        error: The error of reading it.
        otherwise: The rest of the message for errors other than the operating system's: the content is at fault.

    Returns:
        An UnreachableError where the operating system refused it, else a StoreError.
    """
    refusal = describe_os_error(error)
    return StoreError(f"{what}{otherwise}") if refusal is None else UnreachableError(f"{what} can't be read: {refusal}")
