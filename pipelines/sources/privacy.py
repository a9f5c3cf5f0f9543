"""Keeping paths of this machine out of what others will read."""

from __future__ import annotations

import re
from typing import Final

_ROOTS: Final = (
    "home root users tmp work mnt media scratch data opt var private gpfs lustre nfs volumes beegfs ceph afs net "
    "cluster project projects proj storage store export shared share groups group ptmp cfs vol run srv usr etc "
    "workspace content"
)
_TAIL: Final = r"[^\s'\"|)]*"
_LOCAL_PATH: Final = re.compile(
    r"file://" + _TAIL
    # C:\x, D:/x; in a text of JSON the backslash is doubled. Not the end of "https://".
    + r"|(?<![\w.])[A-Za-z]:(?:\\{1,2}|/(?!/))" + _TAIL
    # \\server\share, with its backslashes doubled or not, and //server/share.
    + r"|(?<![\w\\])\\{2,4}[\w.$-]+\\{1,2}[\w$]" + _TAIL
    + r"|(?<![\w.:/\\])//[\w.-]+/[\w$]" + _TAIL
    # What file systems are called, with what is often added: /home2, /nfs-data, /scratch_fast.
    + rf"|(?<![\w.:/])/(?:{'|'.join(_ROOTS.split())})(?:[\d_-][\w-]*|s)?[\\/]" + _TAIL,
    re.IGNORECASE,
)  # fmt: skip


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
