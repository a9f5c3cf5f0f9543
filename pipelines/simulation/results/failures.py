"""Runs that end as NetFabb's bad ones do: some because a real build would be stopped, others on purpose.

Those that fail on purpose are there to test readers of real results.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_DISPLACEMENT: Final = 2.0
"""Largest displacement in mm that a build survives. The published data set keeps parts that rise by up to 1 mm (its
largest rises by 0.998 mm), so NetFabb finished those and more; at twice that, parts of 60 mm are strained by several
percent, where metal tears and small strains no longer describe it."""

MIN_CLEARANCE: Final = -100.0
"""Least recoater clearance in percent of a powder layer that a build survives. Below 0 metal stands in the blade's way;
at -100 it stands a whole layer higher than the blade's edge, where a blade jams or breaks what it hits."""


class FailureKind(StrEnum):
    """How a run ends that fails on purpose."""

    PREPARATION = "preparation"
    """Before the first layer: a log and nothing else."""
    TERMINATED = "terminated"
    """In the middle: results up to some group of layers, and the log says that it was terminated."""
    KILLED = "killed"
    """In the middle, without a word: the log stops and the latest file is cut short."""


@dataclass(frozen=True, slots=True)
class PlannedFailure:
    """A failure that was asked for.

    Attributes:
        kind: How the run ends.
        share: How much of the build is simulated before it does.
    """

    kind: FailureKind
    share: float


def failure_of(displacement: NDArray[np.floating[Any]], clearance: NDArray[np.floating[Any]]) -> str | None:
    """Why a real build would be stopped at this moment, as a sentence for the log; None where it wouldn't.

    Args:
        displacement: Of the nodes that are there, mm, [n, 3].
        clearance: Recoater clearance at them, or the least of each pass, percent of a powder layer, [k]; may be empty.
    """
    largest = float(np.linalg.norm(displacement, axis=1).max(initial=0.0))
    if not largest <= MAX_DISPLACEMENT:  # not "larger": a value that isn't a number must not slip through
        limit = f"{MAX_DISPLACEMENT:g} mm that a build survives"
        return f"The part is displaced by {largest:.2f} mm, more than the {limit}"
    least = float(np.min(clearance, initial=np.inf))
    if not least >= MIN_CLEARANCE:
        return (
            f"The recoater blade jams: its clearance is {least:.0f} percent of a powder layer, "
            f"less than the {MIN_CLEARANCE:g} percent that a build survives"
        )
    return None


def plan_failure(seed: int, case_id: str, rate: float) -> PlannedFailure | None:
    """Whether and how a case fails on purpose; it depends on nothing but the arguments.

    Args:
        seed: Seed of the corpus.
        case_id: The case.
        rate: Share of cases that fail.
    """
    digest = hashlib.sha256(f"failure/{seed}/{case_id}".encode()).digest()
    if int.from_bytes(digest[:8], "big") / 2**64 >= rate:
        return None
    kinds = tuple(FailureKind)
    return PlannedFailure(kinds[digest[8] % len(kinds)], digest[9] / 256)


def cut_short(path: Path, share: float) -> None:
    """Keep the first part of a file.

    Args:
        path: The file.
        share: How much of it stays.
    """
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
