"""Samples in arrays: finding the files of a benchmark, looking at what they hold, and cases of it, one by one."""

from __future__ import annotations

import tokenize
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.record import SourceRef
from lpbf_data.console import follow
from lpbf_data.errors import CaseError, FailureReason, UsageError
from lpbf_data.remarks import Remark, Treatment
from lpbf_data.stores.point_sets import PointCase
from pipelines.benchmarks.mat_arrays import read_mat_array
from pipelines.benchmarks.systems import COARSE, EVERY, FINE, SAMPLES, Column, System


def cases_of_arrays(
    system: System, src: Path, train: int, test: int, remarks: list[Remark]
) -> dict[str, Iterator[PointCase]]:
    """Split to cases of a system whose samples lie in arrays; shapes and types are looked at before any is read.

    Args:
        system: The system.
        src: Folder with its files, or one above as upstream lays them out.
        train: Samples to train on.
        test: Samples of the test.
        remarks: Takes a remark on anything unusual, while the cases are read.

    Raises:
        UsageError: If files are missing, can't be read, hold something else, or fewer samples.
    """
    home = _home(system, src)
    if system.test == "file":
        parts = {"train": (1, range(train)), "test": (2, range(test))}
        opened = {name: _open(system, home, number) for name, (number, _) in parts.items()}
        positions = (
            f"positions: those of papers, from 0 to 1 in {COARSE} points, up to half a stored cell from the values"
        )
        remarks.append(Remark(Treatment.KEPT, "positions", positions))
        counts = {name: _samples(arrays) for name, arrays in opened.items()}
    else:
        arrays = _open(system, home, 1)
        count = _samples(arrays)
        begin = train if system.test == "next" else count - test
        parts = {"train": (1, range(train)), "test": (1, range(max(begin, train), max(begin, train) + test))}
        opened, counts = dict.fromkeys(parts, arrays), dict.fromkeys(parts, count)
        if count > train + test:
            left = f"of {count:,} samples, {train:,} and {test:,} are taken as in papers"
            remarks.append(Remark(Treatment.LEFT_OUT, "unused_samples", f"samples: {left}", count - train - test))
    for name, (_, taken) in parts.items():
        if taken.stop > counts[name]:
            raise UsageError(
                f"the files of {system.points.name} have {counts[name]:,} samples for {name}, and the split asks for "
                f"{train:,} to train on and {test:,} for the test; name fewer by --train and --test"
            )
    return {name: _cases(system, opened[name], number, taken, name, remarks) for name, (number, taken) in parts.items()}


def _home(system: System, src: Path) -> Path:
    """Where the files lie: in the folder that was named, or in one of those that upstream has below the root."""
    below = Path(system.home).parts
    folders = [src.joinpath(*below[start:]) for start in range(len(below) + 1)]
    first = system.columns[0].file.format(1)
    for folder in reversed(folders):
        if folder.is_dir() and any(folder.glob(first)):
            return folder
    raise UsageError(f"--src {src} has no {first}, neither itself nor in {system.home} or the end of that")


Opened = dict[str, tuple[Path, NDArray[Any]]]
"""Column to its file and its array, samples first, [samples, …] without channels."""


def _open(system: System, home: Path, number: int) -> Opened:
    return {column.name: _open_column(column, home, number) for column in system.columns}


def _samples(arrays: Opened) -> int:
    """Number of samples, which all arrays share."""
    counts = {path.name: len(values) for path, values in arrays.values()}
    if len(set(counts.values())) > 1:
        raise UsageError(f"files have unlike numbers of samples: {', '.join(f'{n} {c:,}' for n, c in counts.items())}")
    return next(iter(counts.values()))


def _open_column(column: Column, home: Path, number: int) -> tuple[Path, NDArray[Any]]:
    """An array of a file, of which no number is looked at yet.

    Raises:
        UsageError: If the file isn't there, can't be read, or its array is of another shape or type.
    """
    pattern = column.file.format(number)
    found = sorted(home.glob(pattern))
    if len(found) != 1:
        raise UsageError(f"{home} has {'no' if not found else 'more than one'} {pattern}")
    path = found[0]
    values = _load(path, column.key)
    name = f"{column.key} of {path.name}" if column.key else path.name
    fits = values.ndim == len(column.axes) and all(
        size == axis or (isinstance(axis, str) and size > 0)
        for size, axis in zip(values.shape, column.axes, strict=True)
    )
    if not fits:
        fine = f" or [{SAMPLES}, {FINE}, {FINE}]" if column.key else ""
        wanted = f"[{', '.join(map(str, column.axes))}]{fine}"
        raise UsageError(
            f"{name} must be {wanted}, not {list(values.shape)}; it is another array, or its axes are exchanged"
        )
    if values.dtype.kind != "f":
        raise UsageError(f"{name} holds {values.dtype} numbers; real numbers of floating type are needed")
    if column.channel is not None:
        values = values[:, column.channel]
    return path, np.moveaxis(values, -1, 0) if column.axes[-1] == SAMPLES else values


def _load(path: Path, key: str) -> NDArray[Any]:
    try:
        if path.suffix == ".npy":
            mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
        array = read_mat_array(path, key)
        if array.shape[1:] != (FINE, FINE):
            return array
        return np.ascontiguousarray(array[:, ::EVERY, ::EVERY])  # all of it takes 1.4 GB
    except NotImplementedError as error:
        raise UsageError(f"{path.name} is a MATLAB file of version 7.3; save it as version 7 (save -v7)") from error
    except (OSError, ValueError, EOFError, SyntaxError, zlib.error, tokenize.TokenError) as error:
        raise UsageError(f"{path.name} can't be read: {' '.join(str(error).split())}; fetch it again") from error


def _cases(
    system: System, arrays: Opened, number: int, taken: range, split: str, remarks: list[Remark]
) -> Iterator[PointCase]:
    """Samples as cases, checked."""
    points = system.points
    for sample in follow(taken, len(taken), split, "case"):
        part = f"smooth{number}_" if system.test == "file" else ""
        case_id = f"{points.name}_{part}{sample:04d}"
        columns = {c.name: _column(c, arrays[c.name], sample, case_id) for c in system.columns}
        if points.name == "darcy":
            columns |= dict(zip("yx", np.meshgrid(*[np.linspace(0, 1, COARSE)] * 2, indexing="ij"), strict=True))
        if not _look(points.name, columns, case_id, remarks):
            continue
        path = arrays[system.columns[0].name][0]
        flat = {name: values.reshape(-1) for name, values in columns.items()}
        coordinates = np.stack([flat[name] for name in points.coordinates], axis=1)
        fields = {spec.name: flat[spec.name] for spec in points.fields}
        yield PointCase(case_id, coordinates, fields, SourceRef(path.parent.name, f"{path.name}[{sample}]"))


def _column(column: Column, opened: tuple[Path, NDArray[Any]], sample: int, case_id: str) -> NDArray[np.float64]:
    path, values = opened
    found = np.asarray(values[sample], dtype=np.float64)
    least, largest = float(found.min()), float(found.max())
    low, high = column.bounds
    if np.isfinite(found).all() and not (low <= least and largest <= high):
        detail = f"{column.name} runs from {least:.6g} to {largest:.6g}, outside of {low:g} … {high:g}: it has another "
        detail += "unit, or is something else"
        raise CaseError(FailureReason.MALFORMED_FILE, detail, case_id=case_id, path=path.name)
    return found


def _is_grid(columns: Mapping[str, NDArray[np.float64]]) -> bool:
    """Whether coordinates that lie on a grid, [rows, columns] each, have their neighbours beside them."""
    points = columns["x"] + 1j * columns["y"]
    if points.ndim < 2:
        return True
    apart = np.median(np.abs(points.ravel() - np.random.default_rng(0).permutation(points.ravel())))
    beside = max(np.median(np.abs(np.diff(points, axis=axis))) for axis in (0, 1))
    return bool(0 < beside < apart / 2)


def _look(name: str, columns: Mapping[str, NDArray[np.float64]], case_id: str, remarks: list[Remark]) -> bool:
    """Remark on what is known to be odd in published files; returns whether the sample is taken."""

    def remark(treatment: Treatment, kind: str, sentence: str) -> None:
        remarks.append(Remark(treatment, kind, sentence, examples=(case_id,)))

    if not _is_grid(columns):
        detail = "its points don't lie in the order of a grid: neighbours are as far apart as others, or coincide"
        raise CaseError(FailureReason.MALFORMED_FILE, detail, case_id=case_id)
    if name == "airfoil" and not columns["mach_number"].any():
        sentence = "samples whose Mach number is 0 everywhere, which stands for a simulation that failed"
        remark(Treatment.LEFT_OUT, "failed_simulation", sentence)
        return False
    if name == "darcy":
        sides = [columns["pressure"][where] for where in ((0,), (-1,), (slice(None), 0), (slice(None), -1))]
        if any(side.any() for side in sides):
            sentence = (
                "samples whose pressure isn't 0 along the boundary: it is that of cell centres, half a cell inside"
            )
            remark(Treatment.KEPT, "boundary", sentence)
        if not set(np.unique(columns["permeability"]).tolist()) <= {3.0, 12.0}:
            remark(Treatment.KEPT, "permeability", "samples with other permeabilities than the published 3 and 12")
    return True
