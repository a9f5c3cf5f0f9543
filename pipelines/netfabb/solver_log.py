"""The text files of a run: the solver's log and its input file.

A log holds one or several runs, appended. Each is opened by "Autodesk AM Process Simulation v…" and, when good, holds
"Analysis completed" and ends with "END Autodesk AM Process Simulation". The last run is the one that counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from lpbf_data.remarks import MAX_EXAMPLES, Remark
from pipelines.ensight.numbers import parse_number

REMARK_LINE: Final = "LPBF remark: "
"""How a line begins in which this project's simulator says what it changed or repaired on the way to a mesh."""

ORIGIN_LINE: Final = "LPBF part: "
"""How the line begins in which this project's simulator says how it chose a part."""

_ORIGIN: Final = re.compile(rf"^{ORIGIN_LINE}(\{{.{{1,4000}}\}})[ \t\r]*$", re.MULTILINE)
_REMARK: Final = re.compile(rf"^{REMARK_LINE}(\{{.{{1,4000}}\}})[ \t\r]*$", re.MULTILINE)
_MAX_REMARKS: Final = 50

_RUN: Final = re.compile(r"^[ \t]*Autodesk AM Process Simulation v(?P<version>\S+)", re.MULTILINE)
_FRAME: Final = re.compile(r"^Finished writing file results[\\/]\S*mechanical\.case[ \t]*$", re.MULTILINE)
_AFTER_BUILD: Final = re.compile(r"^[ \t]*(?:\*COOL time increment|Substrate removal time increment)", re.MULTILINE)
_NUMBER: Final = r"([-+]?(?:\d[\d.]*|\.\d+)(?:[dDqQeE][-+]?\d+|[-+]\d{3}(?!\d))?)"


@dataclass(frozen=True, slots=True)
class PartOrigin:
    """How this project's simulator chose a part.

    Attributes:
        family: Family that it was drawn from.
        draw: Name of the draw that accepted it.
        weight: 1 over the probability with which the draw accepts a part like it.
    """

    family: str | None = None
    draw: str | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class LogSummary:
    """What a log tells of its last run; None where it doesn't.

    Attributes:
        completed: Whether the run came to its end.
        complaint: Why it didn't, as far as the log says.
        num_runs: Runs in the log.
        solver_version: Version of the solver.
        solver_build: Build of the solver.
        material: Material name.
        layer_thickness: Powder layer in mm.
        layers_per_element: Powder layers that an element spans.
        build_frames: Frames written before cooling began.
        frames: Frames written in all.
        remarks: What the simulator of this project left out, changed, guessed or repaired of the part.
        origin: How the simulator of this project chose the part.
    """

    completed: bool
    complaint: str = ""
    num_runs: int = 0
    solver_version: str | None = None
    solver_build: str | None = None
    material: str | None = None
    layer_thickness: float | None = None
    layers_per_element: int | None = None
    build_frames: int = 0
    frames: int = 0
    remarks: tuple[Remark, ...] = ()
    origin: PartOrigin = PartOrigin()


@dataclass(frozen=True, slots=True)
class InputSummary:
    """What an input file tells; None where it doesn't.

    Attributes:
        process: Label of the process parameters.
        machine: Machine in that label.
        recoater_tolerance: Clearance below which the recoater interferes, percent of a layer.
        stl: File name of the part's surface.
    """

    process: str | None = None
    machine: str | None = None
    recoater_tolerance: float | None = None
    stl: str | None = None


def read_log(text: str) -> LogSummary:
    """Summarise the last run of a log.

    Args:
        text: Content of `…mechanical.out`.
    """
    starts = list(_RUN.finditer(text))
    if not starts:
        return LogSummary(completed=False, complaint="the log holds no run of the solver")
    run = text[starts[-1].start() :]
    complaint = _complaint(run)
    after_build = _AFTER_BUILD.search(run)
    end_of_build = after_build.start() if after_build else len(run)
    frames = [match.start() for match in _FRAME.finditer(run)]
    return LogSummary(
        completed=not complaint,
        complaint=complaint,
        num_runs=len(starts),
        solver_version=starts[-1]["version"],
        solver_build=_text(run, r"Build ID\s*:\s*(\S+)"),
        material=_text(run, r"^[ \t]*Material name\s*=[ \t]*(\S.*?)[ \t]*$"),
        layer_thickness=_number(run, r"lr thickness\s*=\s*" + _NUMBER),
        layers_per_element=_integer(run, r"Number of layers per element:\s*" + _NUMBER),
        build_frames=sum(position < end_of_build for position in frames),
        frames=len(frames),
        remarks=_remarks(run),
        origin=_origin(run),
    )


def write_origin(origin: PartOrigin) -> str:
    """How the simulator chose a part, as a line of a log, which `read_log` reads.

    Args:
        origin: How.
    """
    return f"{ORIGIN_LINE}{json.dumps(dataclasses.asdict(origin))}\n"


def _origin(run: str) -> PartOrigin:
    """The origin in a log; None for a line that only looks like one."""
    match = _ORIGIN.search(run)
    try:
        stored = json.loads(match[1]) if match else {}
    except (ValueError, RecursionError):
        return PartOrigin()
    names = (stored.get("family"), stored.get("draw"))
    if not all(
        name is None or (isinstance(name, str) and 0 < len(name) <= 80 and name.isprintable()) for name in names
    ):
        return PartOrigin()
    weight = stored.get("weight")
    if isinstance(weight, bool) or not isinstance(weight, float | int) or not (math.isfinite(weight) and weight >= 1):
        return PartOrigin(*names)
    return PartOrigin(*names, float(weight))


def write_remarks(remarks: Iterable[Remark]) -> str:
    """Remarks as lines of a log, which `read_log` reads.

    Args:
        remarks: What was left out, changed, guessed or repaired.
    """
    return "".join(f"{REMARK_LINE}{json.dumps(remark.as_dict())}\n" for remark in remarks)


def _remarks(run: str) -> tuple[Remark, ...]:
    """The remarks in a log; lines that only look like one are ignored."""
    found: list[Remark] = []
    for match in itertools.islice(_REMARK.finditer(run), _MAX_REMARKS):
        try:
            remark = Remark.from_dict(json.loads(match[1]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if remark.count >= 1 and all(map(str.isprintable, (remark.kind, remark.sentence, *remark.examples))):
            found.append(dataclasses.replace(remark, examples=remark.examples[:MAX_EXAMPLES]))
    return tuple(found)


def _complaint(run: str) -> str:
    """Why a run isn't good; empty when it is."""
    terminated = re.search(r"Analysis terminated.*", run)
    if terminated:
        errors = re.findall(r"^[ \t]*\*\*\* (?:FATAL )?ERROR.*(?:\n(?![ \t]*\n).*){0,3}", run, re.MULTILINE)
        said = " ".join(errors[-1].split()) if errors else " ".join(terminated.group().split())
        return f"the solver terminated: {said[:300]}"
    if "Analysis completed" not in run:
        last = run.rstrip().rpartition("\n")[2].strip()
        return f"the log stops before the end of the analysis, at {last[:80]!r}"
    if "\nEND Autodesk AM Process Simulation" not in run.replace("\r", ""):
        return "the log stops before its last line"
    return ""


def _text(run: str, pattern: str) -> str | None:
    match = re.search(pattern, run, re.MULTILINE)
    return match.group(1) if match else None


def _number(run: str, pattern: str) -> float | None:
    text = _text(run, pattern)
    try:
        return None if text is None else parse_number(text)
    except ValueError:
        return None


def _integer(run: str, pattern: str) -> int | None:
    number = _number(run, pattern)
    return None if number is None or abs(number) > 1e9 else round(number)


def read_input(text: str) -> InputSummary:
    r"""Summarise an input file.

    The machine is the word before the layer height in the label of the process parameters, which reads
    "Autodesk <material> <machine> <height> µm".

    Args:
        text: Content of `…mechanical.in`.

    >>> read_input('*RCTR\n80, 0\n*PBPF\n#Autodesk Inc625 Generic 40 µm\n"x.prm"\n').machine
    'Generic'
    """
    cards: dict[str, list[str]] = {}
    body: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("*"):
            body = cards.setdefault(stripped, [])
        elif stripped:
            body.append(stripped)
    process = next((line[1:].strip() for line in cards.get("*PBPF", []) if line.startswith("#")), None)
    parameters = next((line.strip('"') for line in cards.get("*PBPF", []) if line.startswith('"')), None)
    machine = re.fullmatch(r"\S+ \S+ (.+?) [\d.]+ \S?m", process or "")
    tolerance = (cards.get("*RCTR") or [""])[0].split(",")[0].strip()
    stl = next((line.strip('"') for line in cards.get("*STLFILE", []) if not line.startswith("#")), None)
    return InputSummary(
        process=process or parameters,
        machine=machine.group(1) if machine else None,
        recoater_tolerance=_tolerance(tolerance),
        stl=stl.replace("\\", "/").rpartition("/")[2] if stl else None,
    )


def _tolerance(text: str) -> float | None:
    """A clearance in percent; None for what can't be one."""
    try:
        value = parse_number(text)
    except ValueError:
        return None
    return value if 0 <= value < 1e6 else None
