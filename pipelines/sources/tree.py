"""The files below a folder of this machine, and the folders there that can't be looked into."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from lpbf_data.file_access.ignored_files import is_ignored
from pipelines.sources.grouping import RESULTS


@dataclass
class Tree:
    """What lies below a folder; paths are relative to it, with forward slashes, and "." is itself.

    Attributes:
        names: Files.
        ignored: Folders that weren't looked into: hidden ones are working folders of other programs (a simulation keeps
            its unfinished cases in one), others are left by operating systems.
        unreadable: Folders that can't be read, with the reason.
        cut: Folders whose results are among the unreadable.
        broken: Links that lead nowhere, or to themselves; pipes, sockets and devices.
    """

    names: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)


def walk_tree(root: Path) -> Tree:
    """List a folder and all folders below it; links are followed, cycles are not.

    Args:
        root: The folder.
    """
    tree = Tree()
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            stat = os.stat(root / folder)
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                waiting += reversed(_look_into(root, folder, tree))
        except OSError as error:
            tree.unreadable[folder or "."] = error.strerror or str(error)
            above, _, last = folder.rpartition("/")
            if last.lower() == RESULTS:
                tree.cut.add(above)
    return tree


def leads_somewhere(entry: os.DirEntry[str]) -> bool:
    """Whether there is something behind a link; one that leads to itself ends in an error of the operating system."""
    try:
        entry.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno != errno.ELOOP
    return True


def _look_into(root: Path, folder: str, tree: Tree) -> list[str]:
    """Note the files of a folder; returns the folders in it."""
    below = []
    with os.scandir(root / folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_symlink() and not leads_somewhere(entry):
                if not is_ignored(entry.name):
                    tree.broken.append(name)
            elif entry.is_file():
                tree.names.append(name)
            elif not entry.is_dir():
                tree.broken.append(name)  # a pipe would be waited at for ever
            elif is_ignored(entry.name):
                tree.ignored.append(name)
            else:
                below.append(name)
    return below
