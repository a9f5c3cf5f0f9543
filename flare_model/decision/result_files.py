"""Files of a prediction on all parts, and those of an earlier call in the same folder."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flare_model.data.intervals import INTERVALS_NAME
from flare_model.data.point_fields import resolve_target
from lpbf_data.durable import write_durably
from lpbf_data.errors import UsageError
from lpbf_data.remarks import Remark

if TYPE_CHECKING:
    from flare_model.decision.answer import Auxiliary
    from flare_model.decision.prediction import Prediction

ANSWERS_NAME: Final = "answers.json"

_OF_ORIENTATIONS: Final = re.compile(r"orientations\.(json|png)|best_\d+\.stl")
_TAKEN_FOR_RESULTS: Final = re.compile(r".*\.(vtu|png)|.*_best_\d+\.stl")
_MAX_NAMED: Final = 3


def extremes_of(prediction: Prediction) -> dict[str, dict[str, float | str]]:
    """Column to the part's extreme value and the half-width of its interval, lengths in µm."""
    from flare_model.judging.scores import unit_of_errors

    found: dict[str, dict[str, float | str]] = {}
    for column, (extreme, half) in prediction.extremes.items():
        factor, unit = unit_of_errors(resolve_target(column).unit)
        found[column] = {"extreme": factor * extreme, "half_width": factor * half, "unit": unit}
    return found


def write_extremes(
    out: Path, auxiliary: Auxiliary, shown: Mapping[str, Mapping[str, Mapping[str, float | str]]]
) -> None:
    """Write the extreme values of parts with their intervals into `intervals.json`, by the names of the files."""
    if auxiliary.intervals is None:
        (out / INTERVALS_NAME).unlink(missing_ok=True)  # those of an earlier run
        return
    content = {"level": auxiliary.intervals.level, "parts": shown}
    write_durably(out / INTERVALS_NAME, (json.dumps(content, indent=1) + "\n").encode())


def write_remarks(out: Path, remarks: Mapping[str, Sequence[Remark]]) -> None:
    """Write what was left out, changed, guessed or repaired into `remarks.json`, by names of the files."""
    path = out / "remarks.json"
    if remarks:
        stored = {name: [remark.as_dict() for remark in found] for name, found in remarks.items()}
        write_durably(path, (json.dumps(stored, indent=1) + "\n").encode())
    else:
        path.unlink(missing_ok=True)  # those of an earlier run


Version = tuple[int, int]
"""Bytes of a file, and when it was last changed, in ns."""


class WrittenFiles:
    """Files that a call writes into a folder, and those that the call before it wrote.

    `answers.json` lists them with their sizes and times, so that a file that somebody has changed since, or put there,
    is never taken for one of these. Surfaces to build from aren't among them: they are no answers, and may be all that
    is left of a long ranking.

    Args:
        out: The folder, before anything is written.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._before = _versions(out)
        self._earlier = {path for path, version in _listed(out).items() if self._before.get(path) == version}

    def new(self) -> dict[str, Version]:
        """Names of the files that were written since, with their sizes and times."""
        now = sorted(_versions(self._out).items())
        return {path.name: version for path, version in now if self._before.get(path) != version}

    def listed(self, parts: Collection[str]) -> dict[str, list[int]]:
        """The files of parts that were written since, as `answers.json` lists them.

        Args:
            parts: Names of the files of this call's parts, without suffixes.
        """
        new = self.new().items()
        return {name: [*version] for name, version in new if not name.endswith(".stl") and is_of_parts(name, parts)}

    def remove_stale(self, parts: Collection[str], sources: Collection[Path]) -> tuple[list[str], list[str]]:
        """Remove what the call before wrote on some parts and this one didn't write again: it would be taken for new.

        Args:
            parts: Names of the files of this call's parts, without suffixes, those of parts that failed among them.
            sources: Files that were predicted on, and stay.

        Returns:
            Names of the files that were removed, and sentences on those that can't be.
        """
        kept, now = {path.resolve() for path in sources}, _versions(self._out)
        removed, failed = [], []
        for path in sorted(self._earlier):
            if path.resolve() in kept or now.get(path) != self._before[path] or not is_of_parts(path.name, parts):
                continue
            try:
                path.unlink()
            except OSError as error:
                failed.append(f"{path} is of an earlier prediction and can't be removed: {error.strerror or error}")
            else:
                removed.append(path.name)
        return removed, failed


def _versions(folder: Path) -> dict[Path, Version]:
    """The files in a folder."""
    try:
        return {path: _version(path) for path in folder.iterdir() if path.is_file()}
    except OSError:
        return {}


def _version(path: Path) -> Version:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _listed(out: Path) -> dict[Path, Version]:
    """The files that `answers.json` lists; none where it can't be read."""
    try:
        listed = json.loads((out / ANSWERS_NAME).read_text(encoding="utf-8"))["files"]
        return {out / Path(name).name: (int(size), int(changed)) for name, (size, changed) in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_of_parts(name: str, parts: Collection[str]) -> bool:
    """Whether a file is one that a prediction writes for some parts.

    >>> [is_of_parts(name, {"lid"}) for name in ("lid.vtu", "lid_best_1.stl", "lid_displacement_z.png", "lid_mine.png")]
    [True, True, True, False]

    Args:
        name: Name of the file.
        parts: Names of the parts' files, without suffixes.
    """
    stem, dot, suffix = name.rpartition(".")
    if suffix == "vtu" and stem in parts:
        return True
    ends = (match.start() for match in re.finditer("_", stem))
    return any(stem[:end] in parts and _is_written(stem[end + 1 :] + dot + suffix) for end in ends)


def _is_written(rest: str) -> bool:
    """Whether a prediction writes files whose names end so, after the part's name and "_"."""
    if _OF_ORIENTATIONS.fullmatch(rest):
        return True
    try:
        return rest.endswith(".png") and bool(resolve_target(rest.removesuffix(".png")))
    except UsageError:
        return False


def describe_others(out: Path, removed: Sequence[str], new: Collection[str]) -> list[str]:
    """Sentences on files of an earlier call that were removed, and on others that would be taken for predictions.

    Args:
        out: Folder of the results.
        removed: Names of files that were removed.
        new: Names of the files that this call wrote.
    """
    said = []
    if removed:
        said.append(f"files of an earlier prediction on these parts were removed from {out}: {_named(removed)}")
    names = sorted(path.name for path in out.iterdir() if _TAKEN_FOR_RESULTS.fullmatch(path.name))
    if left := [name for name in names if name not in new]:
        said.append(f"{out} holds files that aren't of this prediction, and stay: {_named(left)}")
    return said


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
