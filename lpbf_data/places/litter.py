"""Litter: files that operating systems and file managers leave beside a user's own, and hidden ones; all ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lpbf_data.remarks import Remark, Treatment

_NAMES: Final = frozenset(
    {
        "__macosx",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "@eadir",
    }
)


def is_litter(name: str) -> bool:
    r"""Whether a file or folder was left by an operating system, or lies in a folder that was, or is hidden.

    Args:
        name: A name, or a path with forward slashes relative to what was searched: the folder that a user names is
            never litter.

    >>> [is_litter(name) for name in ("a/b.case", "a/._b.case", "__MACOSX/a/b", "Thumbs.db", "./a", "../a")]
    [False, True, True, True, False, False]
    """
    return any(_is_litter(part) for part in name.split("/"))


def _is_litter(part: str) -> bool:
    if part in ("", ".", ".."):
        return False
    return part.startswith((".", "~$")) or part.lower() in _NAMES


def litter_remark(names: Sequence[str]) -> tuple[Remark, ...]:
    """The remark on litter that was left out; none where there was none.

    Args:
        names: The files and folders, as people shall read them.
    """
    if not names:
        return ()
    sentence = "hidden files and folders, and what operating systems leave beside a user's files"
    return (Remark.of_places(Treatment.LEFT_OUT, "litter", sentence, sorted(names)),)
