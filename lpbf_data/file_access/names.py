"""Names of files in a data set, which come from manifests and listings that others wrote."""

from __future__ import annotations

import re
from typing import Final

from lpbf_data.errors import StoreError

_DRIVE: Final = re.compile(r"[A-Za-z]:")


def checked_name(relative: str) -> str:
    """A name unchanged, after checking that it stays within the data set on every system.

    Args:
        relative: With forward slashes; a folder's may be empty.

    Raises:
        StoreError: If it is absolute, leaves the data set by "..", or holds a backslash, a drive, or a NUL character.

    >>> checked_name("data/train-00000.parquet")
    'data/train-00000.parquet'
    """
    parts = relative.split("/")
    outside = relative.startswith("/") or ".." in parts or any(_DRIVE.match(part) for part in parts)
    if outside or "\\" in relative or "\0" in relative:
        raise StoreError(
            f"the data set names a file {relative!r}, which would lie outside of it: it isn't read; ask for a sound "
            "data set where this one comes from"
        )
    return relative
