"""How long do an answer, a ranking of orientations, a folder of parts and a compensation take, and how much memory?

    python -m tests.benchmarks.decisions [--piece answer] [--turns 3]

Each command runs in a process of its own, as an engineer calls it, in several rounds, of which the least time and the
largest memory count. For comparison are timed `import torch` in a process of its own, in the same rounds (answer,
compensation), and before them a forward pass of the package's own model in this process (answer, orientations). The
limits for an answer and for orientations are made of these.

Needs no GPU and no data. The result goes to results/decisions.json; what `--piece` doesn't name stays in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import RESULTS, describe_machine, save_result

NAME = "decisions"
PIECES = ("answer", "orientations", "folder", "compensation")
FINE, COARSE, FOLDER, TRIANGLES = 20_000, 2_000, 16, 200_000  # points, points, parts, triangles of a surface
MEMORY = 1.5  # GB that a command may take


@dataclass(frozen=True)
class Ran:
    """Time and memory of a command.

    Attributes:
        seconds: Until it ended.
        told: Seconds until it printed the line that was waited for; those to its end where none was.
        memory: Its largest resident memory, GB.
    """

    seconds: float
    told: float
    memory: float


def run(words: list[str], until: str | None = None) -> Ran:
    """Run Python in a process of its own.

    Args:
        words: Its arguments.
        until: Begin of the line that is waited for, without leading spaces.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=complaints, text=True)
        assert process.stdout is not None
        told = None
        for line in process.stdout:
            if until is not None and told is None and line.strip().startswith(until):
                told = time.perf_counter() - started
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        complaints.seek(0)
        if os.waitstatus_to_exitcode(status) != 0 or (until is not None and told is None):
            raise RuntimeError(f"{words} failed: {complaints.read()}")
    return Ran(seconds, told or seconds, usage.ru_maxrss * 1024 / 1e9)


def least(turns: int, *calls: Callable[[], Ran]) -> list[Ran]:
    """Least times and largest memory of each call, over rounds in which the calls take turns."""
    rows = [[call() for call in calls] for _ in range(turns)]
    found = []
    for column in zip(*rows, strict=True):
        times = min(one.seconds for one in column), min(one.told for one in column)
        found.append(Ran(*times, max(one.memory for one in column)))
    return found


def forward_seconds(points: int, turns: int) -> tuple[float, int]:
    """Least seconds of a forward pass of the package's own model on a mesh of about so many points, and its points."""
    import torch

    from flare_model import from_pretrained
    from flare_model.data.point_fields import resolve_inputs
    from flare_model.decision.prediction import _part_features
    from tests.benchmarks.unseen_parts import mesh_of

    part = mesh_of(surface_of_bracket(), points)[1]
    surrogate = from_pretrained()
    known = _part_features(part, resolve_inputs(surrogate.usage.features, "the checkpoint"))
    seconds = []
    with torch.inference_mode():
        for _ in range(turns + 2):
            started = time.perf_counter()
            surrogate(part.points, known)
            seconds.append(time.perf_counter() - started)
    return min(seconds), len(part.points)


def surface_of_bracket() -> Any:
    from tests.benchmarks.unseen_parts import unseen_parts

    return next(part.surface for part in unseen_parts(20, 1500) if part.family == "bracket")


def answer(folder: Path, turns: int) -> dict[str, Any]:
    """Time from an STL, meshed with 20,000 points, to the answer on the screen, and until all files are written."""
    forward, points = forward_seconds(FINE, turns)
    command = ["-m", "flare_model.predict", str(folder / "part.stl"), "--points", str(FINE), "--out", str(folder / "a")]
    torch, predicted = least(turns, lambda: run(["-c", "import torch"]), lambda: run(command, "stands for"))
    limit = torch.seconds + 1.5 * forward + 1
    return {
        "points": points,
        "import_torch_s": torch.seconds,
        "forward_s": forward,
        "answer_s": predicted.told,
        "limit_s": limit,
        "over_limit": predicted.told / limit,
        "with_pictures_and_page_s": predicted.seconds,
        "memory_gb": predicted.memory,
    }


def orientations(folder: Path, turns: int) -> dict[str, Any]:
    """Time to rank 24 orientations of 2,000 points, the best three answered in full; with and without pictures."""
    forward, points = forward_seconds(COARSE, turns)
    command = ["-m", "flare_model.predict", str(folder / "part.stl"), "--orientations", "24", "--points", str(COARSE)]
    command += ["--out", str(folder / "o")]
    drawn, plain = least(turns, lambda: run(command), lambda: run([*command, "--pictures", "false"]))
    limit = 24 * forward + 10
    return {
        "points": points,
        "forward_s": forward,
        "seconds": plain.seconds,
        "limit_s": limit,
        "over_limit": plain.seconds / limit,
        "with_pictures_and_page_s": drawn.seconds,
        "memory_gb": drawn.memory,
    }


def folder_of_parts(folder: Path, turns: int) -> dict[str, Any]:
    """Parts a second after the first, of a folder of 16 unseen parts of 2,000 points."""
    found: dict[str, Any] = {"parts": FOLDER, "wanted_parts_a_second": 3.0}
    for name, words in (("without_pictures", ["--pictures", "false"]), ("with_pictures_and_page", [])):
        command = ["-m", "flare_model.predict", "--points", str(COARSE), "--out", str(folder / name), *words, "--src"]
        first, every = least(
            max(1, turns - 1),
            lambda c=command: run([*c, str(folder / "one")]),  # type: ignore[misc]
            lambda c=command: run([*c, str(folder / "parts")]),  # type: ignore[misc]
        )
        found[name] = {
            "first_s": first.seconds,
            "all_s": every.seconds,
            "parts_a_second": (FOLDER - 1) / (every.seconds - first.seconds),
            "memory_gb": every.memory,
        }
    return found


def compensation(folder: Path, turns: int) -> dict[str, Any]:
    """Time to compensate a surface of 200,000 triangles by the model."""
    command = ["-m", "flare_model.compensate", str(folder / "ring.stl"), str(folder / "ring_compensated.stl")]
    torch, moved = least(turns, lambda: run(["-c", "import torch"]), lambda: run(command))
    return {
        "triangles": TRIANGLES,
        "seconds": moved.seconds,
        "limit_s": 10.0,
        "import_torch_s": torch.seconds,
        "memory_gb": moved.memory,
    }


def prepare(folder: Path) -> None:
    """Write an STL, a folder of STL files, and an STL of 200,000 triangles."""
    import trimesh

    from lpbf_data.geometry.stl import write_stl
    from tests.benchmarks.unseen_parts import unseen_parts

    for name in ("one", "parts"):
        (folder / name).mkdir()
    for number, part in enumerate(unseen_parts(FOLDER, COARSE)):
        write_stl(folder / "parts" / f"{number:02d}.stl", part.surface)
        if number == 0:
            write_stl(folder / "one" / "00.stl", part.surface)
    write_stl(folder / "part.stl", surface_of_bracket())
    trimesh.creation.torus(20, 5, major_sections=500, minor_sections=TRIANGLES // 1000).export(folder / "ring.stl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--piece", choices=PIECES, action="append", help="measure this alone; may be given again")
    parser.add_argument("--turns", type=int, default=3, help="rounds of which the least time counts")
    options = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    measured = dict(zip(PIECES, (answer, orientations, folder_of_parts, compensation), strict=True))
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        for piece in options.piece or PIECES:
            content[piece] = measured[piece](Path(place), options.turns)
            print(piece, json.dumps(content[piece], indent=1), flush=True)
            content |= {"memory_limit_gb": MEMORY, "machine": describe_machine(("torch", "numpy", "pyvista"))}
            save_result(NAME, content)


if __name__ == "__main__":
    main()
