"""Files of a prediction on all parts, and those of an earlier call in the same folder."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class EarlierFiles:
    """Files that an earlier prediction wrote into a folder, from the names of the parts in its `answers.json`.

    Surfaces to build from aren't among them: they are no answers, and may be all that is left of a long ranking.

    Attributes:
        files: Path to inode and time of its last change.
    """

    files: Mapping[Path, tuple[int, int]]

    @classmethod
    def in_folder(cls, out: Path) -> EarlierFiles:
        """Those that lie in a folder now; none where it holds no answers that can be read."""
        try:
            parts = json.loads((out / ANSWERS_NAME).read_text(encoding="utf-8"))["parts"].keys()
            written = [path for path in out.iterdir() if path.suffix != ".stl" and is_of_parts(path.name, parts)]
            return cls({path: _version(path) for path in written})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls({})

    def remove_stale(self, parts: Collection[str], sources: Collection[Path]) -> list[str]:
        """Remove those of some parts that weren't written again since; they would be taken for new ones.

        Args:
            parts: Names of the files of this call's parts, without suffixes, those of parts that failed among them.
            sources: Files that were predicted on, and stay.

        Returns:
            Names of the files that were removed.
        """
        kept = {path.resolve() for path in sources}
        of_parts = {path: version for path, version in self.files.items() if is_of_parts(path.name, parts)}
        unchanged = [path for path, version in of_parts.items() if path.exists() and _version(path) == version]
        stale = [path for path in unchanged if path.resolve() not in kept]
        for path in stale:
            path.unlink()
        return sorted(path.name for path in stale)


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


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


def describe_others(out: Path, removed: Sequence[str], parts: Collection[str]) -> list[str]:
    """Sentences on files of an earlier call that were removed, and on others that would be taken for predictions.

    Args:
        out: Folder of the results.
        removed: Names of files that were removed.
        parts: Names of the files of this call's parts, without suffixes.
    """
    said = []
    if removed:
        said.append(f"files of an earlier prediction on these parts were removed from {out}: {_named(removed)}")
    names = sorted(path.name for path in out.iterdir() if _TAKEN_FOR_RESULTS.fullmatch(path.name))
    if left := [name for name in names if not is_of_parts(name, parts)]:
        said.append(f"{out} holds files that aren't of this prediction, and stay: {_named(left)}")
    return said


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
