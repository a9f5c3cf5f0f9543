"""Files that hold parts to predict on: which they are, what is wrong with a source, and names that differ.

Nothing here reads a file: commands tell of a missing one before they import what a prediction takes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from lpbf_data.file_access.ignored_files import is_ignored
from lpbf_data.geometry.surface_formats import SURFACE_SUFFIXES, cad_advice
from lpbf_data.remarks import Remark, Treatment

MESH_SUFFIXES: Final = (".vtu", ".vtk", ".xdmf", ".inp", ".msh", ".case")
"""Meshes that are read through meshio."""

PART_SUFFIXES: Final = (*MESH_SUFFIXES, *SURFACE_SUFFIXES)
"""All files that parts are read from."""

_MAX_FOLDERS: Final = 1000  # that are searched only to report what lies in them

RESULT: Final = "mechanical.case"
"""How the name of the file with a simulated part ends, in the folder of its results; the other files there are no parts
of their own."""


def fault_of(source: str) -> str:
    """What is wrong with a source that no part can be read from; empty where there may be one.

    Args:
        source: A file, a folder, a URL, or an id of the Hugging Face hub.
    """
    path = Path(source)
    if path.is_file():
        return unknown_suffix(path)
    if path.is_dir() or "://" in source:
        return ""
    if path.suffix.lower() not in PART_SUFFIXES:
        from lpbf_data.file_access.folder import is_hub_id  # fsspec is imported with it

        if is_hub_id(source):
            return ""
    return f"there is no {source} to predict on"


def unknown_suffix(path: Path) -> str:
    """Why a file of this suffix can't be predicted on; empty where it can."""
    suffix = path.suffix.lower()
    if suffix in PART_SUFFIXES:
        return ""
    if advice := cad_advice(path.suffix):
        return f"{path}: {advice}"
    return f"{path}: can't predict on a {path.suffix or 'file without suffix'}; known are: {', '.join(PART_SUFFIXES)}"


def part_files(source: str) -> list[Path]:
    """The files of a source with parts in them; empty for a data set, and where there are none."""
    path = Path(source)
    return [path] if path.is_file() else _files_in(path) if path.is_dir() else []


def _files_in(folder: Path) -> list[Path]:
    """The parts in a folder: its own simulation result, else its meshes and surfaces and the results in subfolders."""
    from lpbf_data.stores.manifest import MANIFEST_NAME

    if (folder / MANIFEST_NAME).exists():
        return []
    if own := _results_in(folder):
        return own
    entries = sorted(p for p in folder.iterdir() if not is_ignored(p.name))
    files = [p for p in entries if p.is_file() and p.suffix.lower() in PART_SUFFIXES]
    return files + [result for below in entries if below.is_dir() for result in _results_in(below)]


def passed_over(folder: Path, taken: Collection[Path]) -> tuple[Remark, ...]:
    """Remarks on files in a folder that are no parts, and on subfolders with parts that aren't read."""
    if all(is_result(path) for path in taken):
        return ()
    others, below = [], []
    for entry in sorted(folder.iterdir()):
        if entry in taken or is_ignored(entry.name):
            continue
        if not entry.is_dir():
            others.append(f"{folder.name}/{entry.name}")
        elif not _results_in(entry) and (found := _surfaces_below(entry)):
            below.append(f"{folder.name}/{entry.name}: {found}")
    remarks = []
    if others:
        sentence = f"files beside the parts of a folder, of other kinds than {', '.join(PART_SUFFIXES)}"
        remarks.append(Remark.of_items(Treatment.LEFT_OUT, "other_files", sentence, others))
    if below:
        sentence = "folders below the one that was named, with meshes or surfaces in them; name them too, with --src"
        remarks.append(Remark.of_items(Treatment.LEFT_OUT, "folders_below", sentence, below))
    return tuple(remarks)


def _surfaces_below(folder: Path) -> str:
    """How many meshes and surfaces lie in a folder and below; "" for none."""
    count = 0
    for met, (_, folders, names) in enumerate(os.walk(folder)):
        folders[:] = [name for name in folders if not is_ignored(name)]
        count += sum(not is_ignored(name) and Path(name).suffix.lower() in PART_SUFFIXES for name in names)
        if met >= _MAX_FOLDERS:
            return f"more than {count:,}"
    return f"{count:,}" if count else ""


def is_result(path: Path) -> bool:
    """Whether a file is the result of a simulation."""
    return path.name == RESULT or path.name.endswith(f"_{RESULT}")


def _results_in(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if not is_ignored(p.name))
    return sorted(p for p in found if is_result(p))


def name_of(path: Path) -> str:
    """Name of a part: that of its file, or of the simulation whose result the file is."""
    if path.name == RESULT:
        return path.resolve().parent.name
    return path.name.removesuffix(f"_{RESULT}") if path.name.endswith(f"_{RESULT}") else path.stem


def names_of(files: Iterable[Path]) -> dict[Path, str]:
    """Names of the parts of files: those of the files, with as many of the folders before them as tell them apart.

    >>> names = names_of(map(Path, ("a/part.stl", "b/part.stl", "c/lid.stl", "c/box.stl", "c/box.obj")))
    >>> [*names.values()]
    ['a/part', 'b/part', 'lid', 'box.stl', 'box.obj']

    Args:
        files: The files; one that is named twice has one name.
    """
    groups: dict[str, dict[str, list[Path]]] = {}
    unique = list(dict.fromkeys(files))
    for path in unique:
        groups.setdefault(name_of(path).casefold(), {}).setdefault(os.path.abspath(path), []).append(path)
    names: dict[Path, str] = {}
    for group in groups.values():
        told_apart = _told_apart([Path(path) for path in group])
        names |= {path: name for paths, name in zip(group.values(), told_apart, strict=True) for path in paths}
    return {path: names[path] for path in unique}


def _told_apart(files: Sequence[Path]) -> list[str]:
    """Different names for files of one name, from their absolute paths."""
    plain = [name_of(path) for path in files]
    if len(files) == 1:
        return plain
    folders = [(path.parent.parent if path.name == RESULT else path.parent).parts[1:] for path in files]
    whole = [name if path.name == RESULT else path.name for path, name in zip(files, plain, strict=True)]
    for names in (plain, whole):
        for depth in range(max(map(len, folders)) + 1):
            found = ["/".join((*folder[len(folder) - min(depth, len(folder)) :], name))
                     for folder, name in zip(folders, names, strict=True)]  # fmt: skip
            if len({name.casefold() for name in found}) == len(files):
                return found
    return [path.as_posix() for path in files]
