"""Files that are ignored: hidden ones, and those that operating systems and file managers leave beside a user's own."""

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


WORKSPACE_NAME: Final = ".build"
"""Folder in which `pipelines.build` keeps unfinished work."""

WORKING_FOLDER: Final = ".simulate"
"""Folder of a simulation's output that holds the request, and the outcome of each case."""

_KIND: Final = "litter"
"""Kind of the remark; existing manifests hold it, so it can't be renamed."""


def is_ignored(name: str) -> bool:
    r"""Whether a file or folder was left by an operating system, or lies in a folder that was, or is hidden.

    Args:
        name: A name, or a path with forward slashes relative to what was searched: the folder that a user names is
            never ignored.

    >>> [is_ignored(name) for name in ("a/b.case", "a/._b.case", "__MACOSX/a/b", "Thumbs.db", "./a", "../a")]
    [False, True, True, True, False, False]
    """
    return any(_is_ignored(part) for part in name.split("/"))


def _is_ignored(part: str) -> bool:
    if part in ("", ".", ".."):
        return False
    return part.startswith((".", "~$")) or part.lower() in _NAMES


def ignored_files_remark(names: Sequence[str]) -> tuple[Remark, ...]:
    """The remark on ignored files; none where there were none but folders that commands of this project work in.

    Args:
        names: The files and folders, as people shall read them.

    >>> ignored_files_remark(["simulated:.simulate"])
    ()
    """
    names = [
        name for name in names if name.replace(":", "/").rpartition("/")[2] not in (WORKSPACE_NAME, WORKING_FOLDER)
    ]
    if not names:
        return ()
    sentence = "hidden files and folders, and what operating systems leave beside a user's files"
    return (Remark.of_items(Treatment.LEFT_OUT, _KIND, sentence, sorted(names)),)
