"""The EnSight Gold case file: which geometry and variable files there are, and at which times.

A case file is text with the sections FORMAT, GEOMETRY, VARIABLE and TIME. Names in it may be followed by numbers that
select a time set; a run of `*` in a file name stands for the number of the step, padded with zeros to the width of
the run.
"""

from __future__ import annotations

import codecs
import itertools
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, cast

from lpbf_data.errors import CaseError, FailureReason
from pipelines.ensight.gold import Location
from pipelines.ensight.numbers import parse_number

VariableKind = Literal["scalar", "vector", "tensor symm"]

COMPONENTS: Final[dict[VariableKind, int]] = {"scalar": 1, "vector": 3, "tensor symm": 6}

_SECTIONS: Final = frozenset({"FORMAT", "GEOMETRY", "VARIABLE", "TIME", "FILE", "MATERIAL", "SCRIPTS", "BLOCK"})
_VARIABLE: Final = re.compile(
    r"(?P<kind>scalar|vector|tensor symm|tensor asym|complex scalar|complex vector|constant) per "
    r"(?P<location>node|element|case|measured node|part|measured part|case file):?\s+(?P<rest>.*)"
)
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SET_NUMBER: Final = re.compile(r"[0-9]{1,9}")  # str.isdigit takes ² too, which int refuses
_WORD: Final = re.compile(r'"([^"]*)"|(\S+)')
_ELSEWHERE: Final = ("time values file", "filename numbers file")
_MAX_STEPS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class TimeSet:
    """Times of the steps and the numbers that stand for `*` in file names."""

    times: tuple[float, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """One line of the section VARIABLE that is read.

    Attributes:
        name: Name in the file, say "von_Mises_stress".
        kind: Scalar, vector or symmetric tensor.
        location: Per node or per element.
        pattern: File name with `*` for the number of the step.
        time_set: Time set that it follows; None for a file that doesn't change.
    """

    name: str
    kind: VariableKind
    location: Location
    pattern: str
    time_set: int | None


@dataclass(frozen=True)
class CaseFile:
    """Content of a case file.

    Attributes:
        geometry_pattern: File name of the geometry, with `*` for the number of the step.
        geometry_time_set: Time set of the geometry; None for a mesh that doesn't change.
        variables: Variables by name.
        time_sets: Time sets by number.
    """

    geometry_pattern: str
    geometry_time_set: int | None
    variables: Mapping[str, Variable]
    time_sets: Mapping[int, TimeSet] = field(default_factory=dict)

    @property
    def frames(self) -> TimeSet:
        """The steps at which variables are written."""
        numbers = {v.time_set for v in self.variables.values() if v.time_set is not None}
        if not numbers:
            return TimeSet((0.0,), (0,))
        return self.time_sets[min(numbers)]

    def geometry_index(self, frame: int) -> int:
        """Which step of the geometry a frame lies on: the latest one whose time isn't after the frame's.

        Args:
            frame: Index of the frame, from 0.
        """
        if self.geometry_time_set is None:
            return 0
        time = self.frames.times[frame]
        geometries = self.time_sets[self.geometry_time_set].times
        # The solver prints both times with 16 digits, but rounds them apart now and then.
        slack = 1e-9 * max(1.0, abs(time))
        return max((i for i, t in enumerate(geometries) if t <= time + slack), default=0)

    def geometry_file(self, index: int) -> str:
        """File of a step of the geometry, relative to the case file."""
        if self.geometry_time_set is None:
            return self.geometry_pattern
        return expand(self.geometry_pattern, self.time_sets[self.geometry_time_set].numbers[index])

    def variable_file(self, name: str, frame: int) -> str:
        """File of a variable at a frame, relative to the case file."""
        variable = self.variables[name]
        if variable.time_set is None:
            return variable.pattern
        return expand(variable.pattern, self.time_sets[variable.time_set].numbers[frame])


def expand(pattern: str, number: int) -> str:
    """Put a number in the place of the asterisks of a file name.

    >>> expand("part_***.geo", 7), expand("part_*.geo", 12)
    ('part_007.geo', 'part_12.geo')
    """
    return re.sub(r"\*+", lambda run: str(number).zfill(len(run.group())), pattern)


def is_utf8(data: bytes) -> bool:
    """Whether a text is UTF-8, or UTF-16 by its first bytes; one that isn't is taken for Windows-1252."""
    if data.startswith(_UTF16):
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class _Lines:
    """The lines of a case file without comments and blanks, with their byte offsets."""

    def __init__(self, data: bytes, path: str) -> None:
        self.path = path
        self.lines: list[tuple[int, str]] = []
        offset = 0
        if data.startswith(_UTF16):
            data = data.decode("utf-16", "replace").encode()
        encoding = "utf-8-sig" if is_utf8(data) else "cp1252"
        for raw in data.split(b"\n" if b"\n" in data else b"\r"):  # old Macs end lines by a return alone
            text = raw.decode(encoding, "replace").strip()
            if text and not text.startswith("#"):
                self.lines.append((offset, text))
            offset += len(raw) + 1
        self.end = len(data)

    def error(self, reason: FailureReason, detail: str, offset: int) -> CaseError:
        return CaseError(reason, detail, path=self.path, offset=offset)

    def sections(self) -> Iterator[tuple[str, int, list[tuple[int, str]]]]:
        """Name, offset and lines of each section; a second TIME opens a section of its own."""
        name, start, body = "", 0, list[tuple[int, str]]()
        for offset, text in self.lines:
            if text in _SECTIONS:
                if name:
                    yield name, start, body
                name, start, body = text, offset, []
            else:
                body.append((offset, text))
        if name:
            yield name, start, body


def read_case_file(data: bytes, path: str = "mechanical.case") -> CaseFile:
    """Decode a case file.

    Args:
        data: Its content.
        path: Its name in error messages.

    Raises:
        CaseError: If it is malformed, isn't EnSight Gold, contradicts itself about its steps, or names a file outside
            its own folder.
    """
    lines = _Lines(data, path)
    geometry: tuple[str, int | None] | None = None
    variables: dict[str, Variable] = {}
    time_sets: dict[int, TimeSet] = {}
    for name, start, body in lines.sections():
        if name == "FORMAT":
            _check_format(lines, start, body)
        elif name == "GEOMETRY":
            geometry = _read_model(lines, start, body)
        elif name == "VARIABLE":
            for variable in _read_variables(lines, body):
                if variable.name in variables:
                    detail = f"two variables are called {variable.name!r}; rename one of them"
                    raise lines.error(FailureReason.MALFORMED_FILE, detail, start)
                variables[variable.name] = variable
        elif name == "TIME":
            time_sets |= _read_time_sets(lines, body)
    if geometry is None:
        raise lines.error(FailureReason.TRUNCATED_FILE, "there is no section GEOMETRY", lines.end)
    used = {geometry[1]} | {v.time_set for v in variables.values()}
    if missing := sorted(number for number in used if number is not None and number not in time_sets):
        detail = f"time set {missing[0]} is used but not described"
        raise lines.error(FailureReason.INCONSISTENT_STEPS, detail, lines.end)
    _check_frames(lines, variables, time_sets)
    return CaseFile(geometry[0], geometry[1], variables, time_sets)


def _check_format(lines: _Lines, start: int, body: Sequence[tuple[int, str]]) -> None:
    text = " ".join(text for _, text in body).lower()
    if "ensight gold" not in text:
        detail = f"expected 'type: ensight gold', found {text[:40]!r}"
        raise lines.error(FailureReason.UNSUPPORTED_DIALECT, detail, start)


def _check_frames(lines: _Lines, variables: Mapping[str, Variable], time_sets: Mapping[int, TimeSet]) -> None:
    """All variables must have the same steps: a frame is one state of everything."""
    steps = {time_sets[v.time_set].times for v in variables.values() if v.time_set is not None}
    if len(steps) > 1:
        detail = "variables follow time sets with different times"
        raise lines.error(FailureReason.INCONSISTENT_STEPS, detail, lines.end)


def _split_sets(lines: _Lines, text: str, offset: int) -> tuple[int | None, list[str]]:
    """The leading number of a time set, and the words after it; a name in quotes is one word."""
    words = [quoted or word for quoted, word in _WORD.findall(text)]
    numbers: list[int] = []
    while len(words) > 1 and len(numbers) < 2 and _SET_NUMBER.fullmatch(words[0]):
        numbers.append(int(words.pop(0)))
    if len(numbers) > 1:
        detail = (
            f"all steps lie in one file (file set {numbers[1]}), which isn't read; "
            "export the results with a file for each step"
        )
        raise lines.error(FailureReason.UNSUPPORTED_DIALECT, detail, offset)
    return (numbers[0] if numbers else None), words


def _safe_name(lines: _Lines, name: str, offset: int) -> str:
    """A path relative to the case file, with forward slashes, that stays inside the case."""
    clean = posixpath.normpath(name.strip('"').replace("\\", "/"))
    if clean.startswith(("/", "..")) or ":" in clean:
        raise lines.error(FailureReason.UNSAFE_MEMBER, f"the file name {name[:80]!r} leaves the case's folder", offset)
    return clean


def _time_set_of(pattern: str, time_set: int | None) -> int | None:
    # A name with an asterisk and no number follows the first time set.
    return (time_set or 1) if "*" in pattern else None


def _read_model(lines: _Lines, start: int, body: Sequence[tuple[int, str]]) -> tuple[str, int | None]:
    for offset, text in body:
        key, _, rest = text.partition(":")
        if key.strip() == "model":
            time_set, words = _split_sets(lines, rest, offset)
            if not words:
                raise lines.error(FailureReason.MALFORMED_FILE, "the line 'model:' names no file", offset)
            pattern = _safe_name(lines, words[0], offset)
            return pattern, _time_set_of(pattern, time_set)
    raise lines.error(FailureReason.MALFORMED_FILE, "the section GEOMETRY has no line 'model:'", start)


def _read_variables(lines: _Lines, body: Sequence[tuple[int, str]]) -> Iterator[Variable]:
    for offset, text in body:
        match = _VARIABLE.match(text)
        if match is None:
            raise lines.error(FailureReason.MALFORMED_FILE, f"can't read the variable {text[:60]!r}", offset)
        kind, location = match["kind"], match["location"]
        if kind not in COMPONENTS or location not in ("node", "element"):
            continue  # constants and complex values carry no field of the part
        time_set, words = _split_sets(lines, match["rest"], offset)
        if len(words) != 2:
            raise lines.error(FailureReason.MALFORMED_FILE, f"can't read the variable {text[:60]!r}", offset)
        pattern = _safe_name(lines, words[1], offset)
        where: Location = "point" if location == "node" else "cell"
        yield Variable(words[0], cast("VariableKind", kind), where, pattern, _time_set_of(pattern, time_set))


def _read_time_sets(lines: _Lines, body: Sequence[tuple[int, str]]) -> dict[int, TimeSet]:
    """The time sets of one section TIME, which may open several by its lines `time set:`."""
    groups: list[list[tuple[int, str]]] = []
    for offset, text in body:
        if text.startswith("time set:") or not groups:
            groups.append([])
        groups[-1].append((offset, text))
    return dict(_read_time_set(lines, group) for group in groups)


def _read_time_set(lines: _Lines, body: Sequence[tuple[int, str]]) -> tuple[int, TimeSet]:
    start = body[0][0]
    values: dict[str, list[str]] = {}
    key = ""
    for _, text in body:
        head, colon, rest = text.partition(":")
        if colon:
            key = head.strip()
            values[key] = []
        values.setdefault(key, []).extend((rest if colon else text).split())
    if elsewhere := [name for name in _ELSEWHERE if name in values]:
        named = " ".join([f"{elsewhere[0]}:", *values[elsewhere[0]]])
        detail = f"steps that lie in a file of their own ({named}) aren't read; write them into the case file"
        raise lines.error(FailureReason.UNSUPPORTED_DIALECT, detail, start)
    try:
        number = int(values.get("time set", ["1"])[0])
        steps = int(values["number of steps"][0])
        times = tuple(map(parse_number, values["time values"]))
        numbers = _numbers_of(values, steps)
    except (KeyError, IndexError, ValueError) as error:
        detail = f"can't read the time set: {error}"
        raise lines.error(FailureReason.MALFORMED_FILE, detail, start) from error
    if len(times) != steps or len(numbers) != steps or steps < 1:
        detail = f"{steps} steps are announced, {len(times)} times and {len(numbers)} file numbers are given"
        raise lines.error(FailureReason.INCONSISTENT_STEPS, detail, start)
    if not all(map(math.isfinite, times)) or any(b < a for a, b in itertools.pairwise(times)):
        raise lines.error(FailureReason.INCONSISTENT_STEPS, "the times don't ascend", start)
    return number, TimeSet(times, numbers)


def _numbers_of(values: Mapping[str, list[str]], steps: int) -> tuple[int, ...]:
    if "filename numbers" in values:
        return tuple(map(int, values["filename numbers"]))
    if not 0 <= steps <= _MAX_STEPS:
        raise ValueError(f"{steps} steps")
    first = int(values.get("filename start number", ["0"])[0])
    increment = int(values.get("filename increment", ["1"])[0])
    return tuple(first + increment * i for i in range(steps))


def write_case_file(case: CaseFile) -> bytes:
    """Encode a case file in the form that NetFabb writes."""
    model = "" if case.geometry_time_set is None else f"{case.geometry_time_set} "
    lines = ["FORMAT", "type: ensight gold", "GEOMETRY", f"model: {model}{case.geometry_pattern}", "VARIABLE"]
    for variable in case.variables.values():
        entity = "node" if variable.location == "point" else "element"
        time_set = "" if variable.time_set is None else f"{variable.time_set} "
        lines.append(f"{variable.kind} per {entity}: {time_set}{variable.name} {variable.pattern}")
    for number, steps in sorted(case.time_sets.items()):
        lines += ["TIME", f"time set: {number}", f"number of steps: {len(steps.times)}"]
        first = steps.numbers[0]
        if steps.numbers == tuple(range(first, first + len(steps.numbers))):
            lines += [f"filename start number: {first}", "filename increment: 1"]
        else:
            lines += ["filename numbers:", *(f"{n:12d}" for n in steps.numbers)]
        lines += ["time values:", *(f"{time:24.16E}" for time in steps.times)]
    return ("\n".join(lines) + "\n").encode()
