"""Keeping paths of this machine out of what others will read."""

from __future__ import annotations

import re
from typing import Final

_LOCAL_PATH: Final = re.compile(
    r"(?<![\w.:/])(?:[A-Za-z]:\\|/)(?:home|root|Users|tmp|work|mnt|media|scratch|data|opt|var|private)[\\/][^\s'\"|)]*"
)


def find_local_paths(text: str) -> list[str]:
    """Absolute paths in a text.

    >>> find_local_paths("can't read /home/ada/parts/x.zip: no such file")
    ['/home/ada/parts/x.zip:']
    """
    return [match.group() for match in _LOCAL_PATH.finditer(text)]


def strip_local_paths(text: str) -> str:
    r"""A text whose absolute paths are cut to their last name.

    >>> strip_local_paths("can't read C:\\Users\\ada\\x.zip and /home/ada/y.zip")
    "can't read …x.zip and …y.zip"
    """
    return _LOCAL_PATH.sub(lambda match: "…" + re.split(r"[\\/]", match.group().rstrip("\\/"))[-1], text)
