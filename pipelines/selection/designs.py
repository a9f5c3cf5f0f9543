"""Which design a case belongs to, inferred from names.

Published case ids carry it: `101635_11b839a3_5` is body 5 of design `101635_11b839a3`. A folder of an interactive run
says nothing, but its STL does.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lpbf_data.case.record import CaseRecord
from lpbf_data.errors import UsageError
from lpbf_data.remarks import Remark, Treatment

_PUBLISHED_ID: Final = re.compile(r"(?P<design>\d+_[0-9a-f]{8})_\d+(?!\d)")


@dataclass(frozen=True)
class DesignNamer:
    """Names the design of a case, and says where a rule named none.

    Attributes:
        rule: The design by the rule, None where it names none.
        otherwise: The design then.
        unnamed: What is said of cases that the rule doesn't name; empty where that is as it should be.
        table: Case ids that a table names, as long as the rule is one.
    """

    rule: Callable[[CaseRecord], str | None]
    otherwise: Callable[[CaseRecord], str]
    unnamed: str = ""
    table: frozenset[str] = frozenset()

    def __call__(self, record: CaseRecord) -> str:
        """The design of a case."""
        return self.rule(record) or self.otherwise(record)

    def remarks(self, records: Iterable[CaseRecord]) -> tuple[Remark, ...]:
        """Cases that the rule doesn't name, and names in a table that no case has.

        Args:
            records: All cases of a data set.
        """
        ordered = sorted(records, key=lambda record: record.case_id)
        found = []
        if self.unnamed and (missed := [r.case_id for r in ordered if r.status == "kept" and not self.rule(r)]):
            found.append(Remark.of_items(Treatment.GUESSED, "unnamed_designs", self.unnamed, missed))
        if idle := sorted(self.table - {_composed(record.case_id) for record in ordered}):
            sentence = "rows of the table of --design_id whose case_id no case has"
            found.append(Remark.of_items(Treatment.LEFT_OUT, "design_rows", sentence, idle))
        return tuple(found)


def _published_design(text: str) -> str | None:
    match = _PUBLISHED_ID.match(text)
    return match["design"] if match else None


def _by_folder(record: CaseRecord) -> str:
    return _published_design(record.case_id) or record.case_id


def _by_stl(record: CaseRecord) -> str | None:
    if not record.run.stl:
        return None
    stem = Path(record.run.stl).stem
    return _published_design(stem) or stem


def _by_case(record: CaseRecord) -> str:
    return record.case_id


def _automatic(record: CaseRecord) -> str:
    from_folder = _published_design(record.case_id)
    from_stl = _published_design(record.run.stl or "")
    return from_folder or from_stl or record.case_id


def design_namer(rule: str) -> DesignNamer:
    """Make the function that names a case's design.

    Args:
        rule: "auto" (the id in the folder's name, else in the STL's, else the folder's name), "folder", "stl", the path
            of a CSV file with the columns case_id and design_id (with commas, semicolons or tabs, as spreadsheets
            write it), or a regular expression that is searched in the case
            id (its group "design", or its first group, or the whole match).

    Raises:
        UsageError: If the file can't be read or the expression is malformed.

    >>> from lpbf_data.case.record import SourceRef
    >>> design_namer("auto")(CaseRecord("101635_11b839a3_5", SourceRef("a.zip", "x")))
    '101635_11b839a3'
    """
    by_stl = (
        "cases whose log names no STL, so that --design_id stl can't name their design: each is a design of its own"
    )
    named = {
        "auto": DesignNamer(_automatic, _by_case),
        "folder": DesignNamer(_by_folder, _by_case),
        "stl": DesignNamer(_by_stl, _by_case, by_stl),
    }
    if rule in named:
        return named[rule]
    if rule.lower().endswith(".csv"):
        return _from_table(Path(rule))
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise UsageError(
            f"--design_id {rule!r} is neither auto, folder, stl, a .csv file nor a regular expression: {error}"
        ) from error

    def by_pattern(record: CaseRecord) -> str | None:
        match = pattern.search(record.case_id)
        if match is None:
            return None
        if "design" in pattern.groupindex:
            return match["design"]
        return match.group(1) if pattern.groups else match.group()

    sentence = "cases in whose id the expression of --design_id finds no design: each is a design of its own"
    return DesignNamer(by_pattern, _by_case, sentence)


def _from_table(path: Path) -> DesignNamer:
    try:
        table = _read_table(path)
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(
            f"--design_id {path} can't be read as a table with the columns case_id and design_id: {error}"
        ) from error
    sentence = "cases that the table of --design_id doesn't name: their design was taken from their names"
    return DesignNamer(lambda record: table.get(_composed(record.case_id)), _automatic, sentence, frozenset(table))


def _composed(name: str) -> str:
    """A name with accents as parts of their letters: macOS stores them apart."""
    return unicodedata.normalize("NFC", name)


def _read_table(path: Path) -> dict[str, str]:
    """Case id to design id, from a table as scripts and as spreadsheets write it.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it has no such columns, or gives a case two designs.
    """
    text = _decoded(path.read_bytes()).lstrip("\r\n")
    text = re.sub(r"\Asep=[;,\t|]\r?\n", "", text)  # Excel's own way to name the separator
    for separator in ",;\t|":
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        header = [(name or "").strip().lower() for name in rows.fieldnames or ()]
        if {"case_id", "design_id"} <= set(header):
            break
    else:
        raise ValueError(f"its first line is {text.partition(chr(10))[0][:80]!r}")
    if twice := [name for name in ("case_id", "design_id") if header.count(name) > 1]:
        raise ValueError(f"it has the column {twice[0]} twice")
    names = dict(zip(header, rows.fieldnames or (), strict=True))
    table: dict[str, str] = {}
    for row in rows:
        case, design = (_composed(row[names[name]] or "").strip() for name in ("case_id", "design_id"))
        if case and table.setdefault(case, design) != design:
            raise ValueError(f"line {rows.line_num} gives case {case} the design {design}, before it was {table[case]}")
    return table


def _decoded(data: bytes) -> str:
    """Text of a table: UTF-8 with or without a byte order mark, UTF-16 with one, else Windows' cp1252."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")
