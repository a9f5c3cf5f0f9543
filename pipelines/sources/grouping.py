"""Which files make a case: those of one run, recognised by what their names begin with.

A run names its files `<p>mechanical…` and `<p>thermal…`; `<p>` is empty in batch runs and ends with an underscore in
interactive ones. A folder can hold several runs: each is a case of its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from lpbf_data.file_access.ignored_files import is_ignored

RESULTS: Final = "results"

_TOP_FILE: Final = re.compile(r"(?P<prefix>(?:.*_)?)mechanical\.(?:out|in|case)", re.IGNORECASE)
_RESULT_FILE: Final = re.compile(r"(?P<prefix>(?:.*_)?)mechanical.*\.(?:case|geo|ens)", re.IGNORECASE)
_OWN_FILE: Final = re.compile(r"(?:mechanical|thermal)", re.IGNORECASE)
_PACKED: Final = re.compile(
    r".*\.(?:zip|7z|rar|tar|tgz|tbz2?|txz|tzst|gz|bz2|xz|zst|lzma|cab|arj|lzh|z\d\d|r\d\d|(?:zip|7z|rar)\.\d{3})",
    re.IGNORECASE,
)


@dataclass
class Grouping:
    """Files of a tree, by the case that they belong to.

    Attributes:
        cases: Path of the case (for one of several runs in a folder, the folder's path and the run's name, joined with
            a colon) to its files: name relative to its folder, with "results/" in lower case, to full name.
        folders: Path of the case to the path of its folder.
        shared: Folders with several runs, to the names of these runs.
        ignored: Names of hidden files and of those that operating systems leave.
        packed: Archives.
        twice: Files of results that another folder of results, whose name has other capitals, holds too.
    """

    cases: dict[str, dict[str, str]] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    shared: dict[str, list[str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)


def is_packed(name: str) -> bool:
    """Whether a file is an archive by its name.

    >>> [is_packed(name) for name in ("a.zip", "b/a.tar.gz", "a.7z", "a.part1.rar", "a.zip.001", "zip", "a.geo")]
    [True, True, True, True, True, False, False]
    """
    return _PACKED.fullmatch(name.rpartition("/")[2]) is not None


def is_text(name: str) -> bool:
    r"""Whether a name is UTF-8: others come along as bytes that nothing beside the file system takes.

    >>> is_text("Prüf"), is_text("Pr\udcfcf")
    (True, False)
    """
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def fold_name(name: str) -> str:
    """A name without what differs between systems: Windows ignores capitals, macOS stores accents apart from letters.

    >>> fold_name("Results/Pru\u0308f") == fold_name("results/Pr\u00fcf")
    True
    """
    return unicodedata.normalize("NFC", name).casefold()


def split_name(name: str) -> tuple[str, str]:
    """Folder of the case that a file would belong to, and its name there."""
    folder, _, base = name.rpartition("/")
    above, _, last = folder.rpartition("/")
    return (above, f"{RESULTS}/{base}") if last.lower() == RESULTS else (folder, base)


def run_prefix(relative: str) -> str | None:
    """Prefix of the file names of a run, from one of its files; None for a file that belongs to no run.

    Args:
        relative: Name in the folder of the case.

    >>> run_prefix("results/b_mechanical_1.geo"), run_prefix("mechanical.out"), run_prefix("test.stl")
    ('b_', '', None)
    """
    inner = relative.startswith(f"{RESULTS}/")
    match = (_RESULT_FILE if inner else _TOP_FILE).fullmatch(relative.removeprefix(f"{RESULTS}/"))
    return None if match is None else match["prefix"]


def runs_of(names: Iterable[str]) -> list[str]:
    """The runs that lie in one folder: what their files begin with, each once.

    Args:
        names: Names in the folder, those in its results with "results/".
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        prefix = None if is_ignored(name) else run_prefix(name)
        if prefix is not None:
            found.setdefault(fold_name(prefix), prefix)
    return list(found.values())


def _owner(relative: str, prefixes: Iterable[str]) -> str | None:
    """The run that a file belongs to, where there are several; None for a file that could be anyone's."""
    base = relative.removeprefix(f"{RESULTS}/")
    base = fold_name(base)
    folded = {fold_name(prefix): prefix for prefix in prefixes}
    for start in sorted(folded, key=len, reverse=True):
        if base.startswith(start) and _OWN_FILE.match(base[len(start) :]):
            return folded[start]
    stem = base.rpartition(".")[0]
    return folded.get(f"{stem}_")


def group_cases(names: Iterable[str]) -> Grouping:
    """Tell which names belong to a case.

    Args:
        names: Paths with forward slashes.

    >>> sorted(group_cases(["a/b_mechanical.out", "a/Results/b_mechanical.case", "readme.txt"]).cases["a"].items())
    [('b_mechanical.out', 'a/b_mechanical.out'), ('results/b_mechanical.case', 'a/Results/b_mechanical.case')]
    >>> list(group_cases(["a/b_mechanical.out", "a/c_mechanical.out"]).cases)
    ['a:b', 'a:c']
    """
    found = Grouping()
    folders: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        if is_ignored(name):
            found.ignored.append(name)
            continue
        if is_packed(name):
            found.packed.append(name)
        folder, relative = split_name(name)
        if (other := folders.setdefault(folder, {}).get(relative)) is not None:
            found.twice.append(other)
        folders[folder][relative] = name  # "results" sorts behind "Results" and wins
    for folder, files in folders.items():
        _add_runs(found, folder, files)
    return found


def _add_runs(found: Grouping, folder: str, files: Mapping[str, str]) -> None:
    prefixes = runs_of(files)
    if len(prefixes) == 1:
        found.cases[folder], found.folders[folder] = dict(files), folder
    elif prefixes:
        own = {prefix: dict[str, str]() for prefix in prefixes}
        for relative, name in files.items():
            if (owner := _owner(relative, prefixes)) is not None:
                own[owner][relative] = name
        for prefix in prefixes:
            case = f"{folder}:{prefix.removesuffix('_')}"
            found.cases[case], found.folders[case] = own[prefix], folder
        found.shared[folder] = [prefix.removesuffix("_") or "(without a name)" for prefix in prefixes]


def run_of_case(case: str, folder: str) -> str | None:
    """The name of the run of a case that shares its folder with others; None for one that has it alone.

    >>> run_of_case("a:b", "a"), run_of_case("a", "a"), run_of_case("a:", "a")
    ('b', None, '')
    """
    return None if case == folder else case.removeprefix(f"{folder}:")
