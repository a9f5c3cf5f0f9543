"""Parts that an earlier simulation accepted, to be simulated again with other numbers of points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from lpbf_data.errors import UsageError
from lpbf_data.file_access.ignored_files import WORKING_FOLDER
from pipelines.simulation.parts.draws import DRAWS, CandidateStream, at_size, plan_streams
from pipelines.simulation.parts.outcomes import CaseOutcome, load_outcome

_DESCRIPTION: Final = ("draw", "seed", "points", "families")


def accepted_parts(folder: Path, cases: int, num_points: int) -> tuple[tuple[CandidateStream, ...], dict[str, Any]]:
    """The first accepted parts of an earlier simulation with a draw.

    Args:
        folder: Its output.
        cases: How many parts.
        num_points: Median number of points that they are meshed with now.

    Returns:
        The parts, each a stream whose candidate is chosen; and what the earlier simulation was asked for.

    Raises:
        UsageError: If the folder isn't the output of a simulation with a draw, or has too few accepted parts.
    """
    asked = _asked(folder)
    if num_points == asked["points"]:
        raise UsageError(f"--points {num_points} is the number that {folder} was simulated with; ask for another one")
    found: list[CandidateStream] = []
    number = 0
    while len(found) < cases:
        number = max(2 * number, cases)
        found = []
        for stream in plan_streams(asked["draw"], asked["seed"], number, asked["points"], asked["families"]):
            outcome = _outcome(folder, stream.case_id)
            if outcome is None:
                raise UsageError(
                    f"{folder} holds {len(found):,} accepted parts, --cases asks for {cases:,}; extend it first"
                )
            if outcome.status == "completed" and outcome.candidate is not None:
                weight = None if outcome.origin is None else outcome.origin.weight
                found.append(at_size(stream, outcome.candidate, num_points, weight))
            if len(found) == cases:
                break
    return tuple(found), asked


def _asked(folder: Path) -> dict[str, Any]:
    path = folder / WORKING_FOLDER / "request.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        asked = {name: stored[name] for name in _DESCRIPTION}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--parts_of {folder} is no output of pipelines.simulate with --draw: {path} has no draw, or isn't there"
        ) from error
    known = isinstance(asked["draw"], str) and asked["draw"] in DRAWS
    numbers = all(isinstance(asked[name], int) and asked[name] >= 0 for name in ("seed", "points"))
    if not (known and numbers and isinstance(asked["families"], list)):
        raise UsageError(f"--parts_of {folder}: {path} isn't what pipelines.simulate writes")
    return asked


def _outcome(folder: Path, case_id: str) -> CaseOutcome | None:
    try:
        return load_outcome(folder / WORKING_FOLDER / "outcomes", case_id)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"--parts_of {folder}: what came of case {case_id} can't be read ({error})") from error
