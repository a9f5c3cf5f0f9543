"""The outcome of a simulated case, and the file that holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lpbf_data.durable import write_durably
from lpbf_data.remarks import Remark
from pipelines.netfabb.solver_log import PartOrigin


@dataclass(frozen=True)
class CaseOutcome:
    """The outcome of a case.

    Attributes:
        case_id: The case.
        status: Whether it was completed.
        reason: Why it wasn't.
        asked_for: Whether the failure was asked for.
        rejected_by: Limits of the published data set that it exceeds.
        num_points: Points of the finished part.
        height: mm.
        displacement_z_max: mm.
        recoater_clearance_min: Percent of a layer.
        recoater_interference: Whether the blade meets the part.
        remarks: What differs between mesh and surface.
        survived: Whether a real build would have gone on to where this one ended.
        origin: Family, draw and weight of a drawn part.
        candidate: Number of the candidate that was accepted, from 0; None where there was no choice.
        passed_over: How many candidates before it weren't accepted, by the reason.
    """

    case_id: str
    status: Literal["completed", "failed"]
    reason: str = ""
    asked_for: bool = False
    rejected_by: tuple[str, ...] = field(default_factory=tuple)
    num_points: int = 0
    height: float = 0.0
    displacement_z_max: float = 0.0
    recoater_clearance_min: float = 0.0
    recoater_interference: bool = False
    remarks: tuple[Remark, ...] = ()
    survived: bool = True
    origin: PartOrigin | None = None
    candidate: int | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)


def outcome_path(folder: Path, case_id: str) -> Path:
    """File of the outcome of a case.

    Args:
        folder: Folder of the outcomes.
        case_id: The case.
    """
    return folder / f"{case_id}.json"


def load_outcome(folder: Path, case_id: str) -> CaseOutcome | None:
    """The outcome of a case in an earlier run; None when it isn't finished.

    Args:
        folder: Folder of the outcomes.
        case_id: The case.
    """
    path = outcome_path(folder, case_id)
    if not path.exists():
        return None
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    remarks = tuple(Remark.from_dict(stored) for stored in content.get("remarks", ()))
    origin = PartOrigin(**content["origin"]) if content.get("origin") else None
    read = {"rejected_by": tuple(content["rejected_by"]), "remarks": remarks, "origin": origin}
    return CaseOutcome(**{**content, **read})


def store_outcome(folder: Path, outcome: CaseOutcome) -> None:
    """Write the outcome of a case.

    Args:
        folder: Folder of the outcomes.
        outcome: The outcome.
    """
    stored = asdict(outcome) | {"remarks": [remark.as_dict() for remark in outcome.remarks]}
    content = json.dumps(stored, indent=1) + "\n"
    write_durably(outcome_path(folder, outcome.case_id), content.encode("utf-8"))
