"""Measured displacements from a table of comma-separated values, as people type them or Excel writes them.

Columns `point, x_mm, y_mm, z_mm, component, value_mm, sigma_mm`: a name, a point on the part in the coordinates of its
surface file, the component x, y or z, the displacement along it and its standard uncertainty. Lines that begin with #
are left out.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import UsageError
from lpbf_data.remarks import Remark, Treatment

COLUMNS: Final = ("point", "x_mm", "y_mm", "z_mm", "component", "value_mm", "sigma_mm")
"""Columns that a table must have; others are left out."""

COMPONENTS: Final = ("x", "y", "z")
"""Components of a displacement."""

_MAX_FILE: Final = 20_000_000  # bytes
_NUMBERS: Final = ("x_mm", "y_mm", "z_mm", "value_mm", "sigma_mm")
_SEPARATORS: Final = {";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Measured:
    """Measured displacements, one component at one point each.

    Attributes:
        points: Names of the points, n.
        coordinates: Of the points, in the coordinates of the surface, mm, [n, 3].
        components: 0, 1 or 2 for x, y or z, [n].
        values: mm, [n].
        sigmas: Standard uncertainty, mm, [n]; None where nothing is known of it.
        remarks: What was guessed in reading them.
    """

    points: tuple[str, ...]
    coordinates: NDArray[np.float64]
    components: NDArray[np.int64]
    values: NDArray[np.float64]
    sigmas: NDArray[np.float64] | None
    remarks: tuple[Remark, ...] = ()

    def __len__(self) -> int:
        """Number of values."""
        return len(self.values)


def read_measured(path: Path) -> Measured:
    """Read a table of measured displacements.

    Args:
        path: The file.

    Raises:
        UsageError: If it can't be read, or a column, a number or a component is missing or wrong.
    """
    text, remarks = _text(path)
    text = re.sub(r"\Asep=[;,\t]\r?\n", "\n", text)  # Excel's own way to name the separator
    lines = [
        (number, line) for number, line in enumerate(io.StringIO(text, newline=None), 1) if line.strip(" ,;\t\r\n")
    ]
    comments = [line.strip() for _, line in lines if line.lstrip().startswith("#")]
    lines = [(number, line.rstrip("\n")) for number, line in lines if not line.lstrip().startswith("#")]
    if not lines:
        raise UsageError(f"{path} is empty; it must hold the columns {', '.join(COLUMNS)}")
    separator = _separator(lines[0][1])
    if separator in _SEPARATORS:
        sentence = f"a table whose columns are separated by {_SEPARATORS[separator]} was read as Excel writes it"
        remarks.append(Remark(Treatment.GUESSED, "separator", f"{sentence}, commas in numbers as decimal points", 1,
                              (path.name,)))  # fmt: skip
    header = [name.strip().lower() for name in _split(lines[0][1], separator)]
    _check_header(path, header)
    if rows_left_out := [line[:60] for line in comments if len(_split(line, separator)) == len(header)]:
        sentence = "rows that begin with # were left out as comments; a point whose name begins so needs another"
        remarks.append(Remark.of_items(Treatment.LEFT_OUT, "commented_rows", sentence, rows_left_out))
    if others := [name for name in header if name not in COLUMNS and name]:
        sentence = "columns of other names than those that are known were left out"
        remarks.append(Remark.of_items(Treatment.LEFT_OUT, "columns", sentence, others))
    try:
        rows = [_row(header, _split(line, separator), number, separator) for number, line in lines[1:]]
    except UsageError as error:
        raise UsageError(f"{path}, {error}") from error
    if not rows:
        raise UsageError(f"{path} holds no values below the names of its columns")
    names, numbers, components = zip(*rows, strict=True)
    table = np.array(numbers)
    return Measured(names, table[:, :3], np.array(components), table[:, 3], table[:, 4], tuple(remarks))


def _text(path: Path) -> tuple[str, list[Remark]]:
    try:
        if path.stat().st_size > _MAX_FILE:
            raise UsageError(f"{path} is larger than a table of measured values can be ({_MAX_FILE:,} bytes)")
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"the measured values {path} can't be read: {error.strerror or error}") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace"), []
    if content[:2] == b"PK":
        raise UsageError(f"{path} is a workbook; save its sheet as CSV (comma-separated values)")
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        sentence = "a table that isn't UTF-8 was read in the encoding of Windows"
        return content.decode("cp1252", errors="replace"), [
            Remark(Treatment.GUESSED, "encoding", sentence, 1, (path.name,))
        ]


def _separator(header: str) -> str:
    return max(",;\t", key=header.count)


def _split(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return line.split(separator)


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        shown = ", ".join(name[:30] for name in header[:12])
        raise UsageError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; its first line must name "
            f"{', '.join(COLUMNS)} (lengths in mm), and names {shown}"
        )
    if twice := [name for name in COLUMNS if header.count(name) > 1]:
        raise UsageError(f"{path} has the column {twice[0]} twice")


def _row(header: list[str], row: list[str], line: int, separator: str) -> tuple[str, list[float], int]:
    if len(row) != len(header):
        raise UsageError(f"line {line}: it has {len(row)} values below {len(header)} names")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    numbers = [_number(name, cells[name], line, separator) for name in _NUMBERS]
    if numbers[4] <= 0:
        raise UsageError(f"line {line}: sigma_mm must be above 0, not {cells['sigma_mm']}")
    component = cells["component"].lower()
    if component not in COMPONENTS:
        raise UsageError(f"line {line}: unknown component {cells['component'][:40]!r}; known are: x, y, z")
    name = "".join(sign for sign in cells["point"][:60] if sign.isprintable())
    return name or f"line {line}", numbers, COMPONENTS.index(component)


def _number(name: str, cell: str, line: int, separator: str) -> float:
    text = cell if separator == "," else cell.replace(",", ".")
    try:
        number = float(text.replace("\N{MINUS SIGN}", "-")) if "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"line {line}: {name} must be a number, not {cell[:40]!r}")
    return number
