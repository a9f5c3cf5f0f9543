"""Runs that end as NetFabb's bad ones do, so that readers of real results can be tried on them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class FailureKind(StrEnum):
    """How a run ends that was told to fail."""

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
