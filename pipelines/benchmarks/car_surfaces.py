"""DrivAerML's cars: which runs are published, how they are split, and reading the surface of one."""

from __future__ import annotations

import json
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.record import SourceRef
from lpbf_data.console import follow
from lpbf_data.errors import CaseError, FailureReason, UsageError
from lpbf_data.stores.point_sets import PointCase

RUNS: Final = 500

UNPUBLISHED: Final = frozenset((167, 211, 218, 221, 248, 282, 291, 295, 316, 325, 329, 364, 370, 376, 403, 473))
"""Runs that weren't published."""

_VALIDATION: Final = frozenset((
    4, 22, 56, 109, 150, 165, 177, 191, 228, 234, 241, 247, 252, 253, 260, 271, 275, 298, 303, 311, 321, 324, 328, 341,
    352, 366, 380, 390, 401, 423, 441, 447, 454, 487,
))  # fmt: skip
_TEST: Final = frozenset((
    11, 12, 19, 20, 24, 26, 29, 41, 55, 59, 108, 124, 127, 133, 142, 158, 173, 180, 187, 188, 197, 199, 203, 205, 207,
    208, 210, 215, 222, 226, 258, 263, 280, 284, 290, 322, 337, 350, 354, 363, 372, 382, 387, 405, 410, 424, 428, 429,
    436, 472,
))  # fmt: skip

Runs = dict[str, tuple[int, ...]]
"""Split to numbers of runs."""

PUBLIC: Final[Runs] = {
    "train": tuple(sorted(set(range(1, RUNS + 1)) - UNPUBLISHED - _VALIDATION - _TEST)),
    "validation": tuple(sorted(_VALIDATION)),
    "test": tuple(sorted(_TEST)),
}
"""400, 34 and 50 runs: the split of AB-UPT and of others after it."""

_NPZ: Final = re.compile(r"run_(\d+)\.npz")
_VTP: Final = re.compile(r"boundary_(\d+)\.vtp")
_ARRAYS: Final = ("surface_mesh_centers", "surface_fields")
_CELL_ARRAYS: Final = {"pressure": "pMeanTrim", "wall_shear_stress": "wallShearStressMeanTrim"}
_LARGEST: Final = 20.0  # m from the origin; what reaches further has another unit
_UNREADABLE: Final = (
    OSError, ValueError, KeyError, EOFError, SyntaxError, NotImplementedError, zipfile.BadZipFile, zlib.error,
    tokenize.TokenError,
)  # fmt: skip
"""What NumPy, zipfile and VTK raise on files that are damaged."""

_SPLITS: Final = ("train", "validation", "test")


def find_runs(src: Path) -> dict[int, Path]:
    """Number of a run to its file: run_<i>.npz, or boundary_<i>.vtp, in any folder below.

    Raises:
        UsageError: If there are none, or one lies there twice.
    """
    found: dict[int, Path] = {}
    for path in sorted(p for p in src.rglob("*") if p.suffix in (".npz", ".vtp")):
        name = _NPZ.fullmatch(path.name) or _VTP.fullmatch(path.name)
        if name is None:
            continue
        if (number := int(name[1])) in found:
            raise UsageError(f"--src {src} has run {number} twice: {found[number].name} and {path.relative_to(src)}")
        found[number] = path
    if not found:
        raise UsageError(f"--src {src} has neither run_<i>.npz nor boundary_<i>.vtp in any folder below")
    return found


def split_runs(src: Path, found: Mapping[int, Path], split: str | None) -> Runs:
    """Which runs go into which split.

    Args:
        src: Where the files lie.
        found: Number of a run to its file.
        split: "folders" for the folders train, validation and test that the files lie in; "public"; a JSON file of
            lists of numbers by split; None for folders where there are any, else public.

    Raises:
        UsageError: If it asks for a run that isn't published, or isn't there, or for one twice.
    """
    by_folder = {name: tuple(n for n, path in found.items() if name in path.relative_to(src).parts) for name in _SPLITS}
    in_folders = {name: runs for name, runs in by_folder.items() if runs}
    if split == "folders" or (split is None and in_folders):
        if "train" not in in_folders:
            raise UsageError(f"--src {src} has no folder train with runs; name another --split")
        chosen = in_folders
    elif split in (None, "public"):
        chosen = PUBLIC
    else:
        chosen = _read_split(str(split))
    numbers = [number for runs in chosen.values() for number in runs]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise UsageError(f"the split asks for run {twice[0]} twice")
    if secret := sorted(n for n in numbers if n in UNPUBLISHED or not 1 <= n <= RUNS):
        raise UsageError(
            f"the split asks for run {secret[0]}, which isn't published: runs are 1 to {RUNS} without "
            f"{', '.join(map(str, sorted(UNPUBLISHED)))}"
        )
    if missing := sorted(set(numbers) - set(found)):
        raise UsageError(
            f"the split asks for {len(numbers)} runs, and {len(missing)} of them aren't below --src {src}, run "
            f"{missing[0]} among them; fetch them, or name fewer in a JSON file: --split split.json"
        )
    return chosen


def _read_split(path: str) -> Runs:
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        numbers = {
            str(name): tuple(int(str(run).removeprefix("run_")) for run in runs) for name, runs in dict(stored).items()
        }
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"--split {path} is neither folders nor public, nor a JSON file such as "
            f'{{"train": [1, 2], "test": [3]}} ({error})'
        ) from error
    chosen = {name: numbers[name] for name in _SPLITS if numbers.get(name)}
    if unknown := sorted(set(numbers) - set(_SPLITS)):
        raise UsageError(f"--split {path} has {unknown[0]!r}; splits are {', '.join(_SPLITS)}")
    if "train" not in chosen:
        raise UsageError(f"--split {path} has no run to train on")
    return chosen


def cases_of_cars(src: Path, split: str | None, count: int) -> dict[str, Iterator[PointCase]]:
    """Split to cars, each read when it is asked for.

    Args:
        src: Where the files lie.
        split: As for `split_runs`.
        count: As for `read_run`.

    Raises:
        UsageError: As `find_runs` and `split_runs` say.
    """
    found = find_runs(src)
    chosen = split_runs(src, found, split)

    def cars(name: str) -> Iterator[PointCase]:
        for number in follow(chosen[name], len(chosen[name]), name, "car"):
            case = read_run(number, found[number], count)
            reach = float(np.abs(np.asarray(case.points, np.float64)).max()) if case.points.dtype.kind == "f" else 0.0
            if not reach <= _LARGEST:
                detail = f"it reaches {reach:g} m from the origin; its lengths must be in m"
                raise CaseError(FailureReason.MALFORMED_FILE, detail, case_id=case.case_id, path=found[number].name)
            yield case

    return {name: cars(name) for name in chosen}


def read_run(number: int, path: Path, count: int) -> PointCase:
    """The surface of a car: centres of its cells, pressure and wall shear stress there.

    Args:
        number: Number of the run.
        path: Its file.
        count: Cells that are drawn as the published sets of 40,000 and others were; 0 for all.

    Raises:
        CaseError: If it holds something else.
    """
    case_id = f"run_{number}"

    def refuse(detail: str) -> CaseError:
        return CaseError(FailureReason.MALFORMED_FILE, detail, case_id=case_id, path=path.name)

    try:
        centres, pressure, shear = (_read_npz if path.suffix == ".npz" else _read_vtp)(path)
    except _UNREADABLE as error:
        raise refuse(f"it can't be read as a surface: {' '.join(str(error).split())}") from error
    cells = len(centres)
    if centres.shape != (cells, 3) or pressure.shape != (cells,) or shear.shape != (cells, 3):
        shapes = f"{list(centres.shape)}, {list(pressure.shape)} and {list(shear.shape)}"
        raise refuse(f"centres, pressure and shear stress must be [n, 3], [n] and [n, 3], not {shapes}")
    if count and cells < count:
        raise refuse(f"it has {cells:,} cells, fewer than the {count:,} that are to be drawn; see --points")
    if count and cells > count:
        drawn = np.random.RandomState(number).choice(cells, count, replace=False)
        centres, pressure, shear = centres[drawn], pressure[drawn], shear[drawn]
    source = SourceRef(path.parent.name, path.name, path.stat().st_size)
    return PointCase(case_id, centres, {"pressure": pressure, "wall_shear_stress": shear}, source)


Surface = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def _read_npz(path: Path) -> Surface:
    with np.load(path, allow_pickle=False) as stored:
        if missing := [name for name in _ARRAYS if name not in stored]:
            raise KeyError(f"there is no array {missing[0]}; there are {', '.join(stored)}")
        centres, fields = (stored[name] for name in _ARRAYS)
    if fields.ndim != 2 or fields.shape[1] != 4:
        raise ValueError(f"surface_fields must be [n, 4], pressure and shear stress, not {list(fields.shape)}")
    return centres, fields[:, 0], fields[:, 1:]


def _read_vtp(path: Path) -> Surface:
    import pyvista as pv

    mesh = pv.read(path)
    arrays: Sequence[str] = mesh.cell_data.keys()
    if missing := [name for name in _CELL_ARRAYS.values() if name not in arrays]:
        raise KeyError(f"its cells have no {missing[0]}; they have {', '.join(arrays) or 'nothing'}")
    pressure, shear = (np.asarray(mesh.cell_data[name]) for name in _CELL_ARRAYS.values())
    return np.asarray(mesh.cell_centers().points), pressure, shear
