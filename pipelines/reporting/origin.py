"""Where the cases come from: solvers, and collections with licences of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from lpbf_data.case.record import OWN_SOLVER, CaseRecord
from lpbf_data.stores.manifest import count_by

FUSION_ID: Final = re.compile(r"\d+_[0-9a-f]{8}_\d+")
"""Case ids of parts from the Fusion 360 Gallery, whose licence allows non-commercial research only."""


def fusion_parts(records: Sequence[CaseRecord]) -> list[str]:
    """Ids of kept cases that look like parts of the Fusion 360 Gallery and weren't simulated by this project.

    The project's own simulator gives ids of the same form to parts of its own making.

    Args:
        records: Rows of the manifest.
    """
    kept = [record for record in records if record.status == "kept" and not is_simulated_here(record)]
    return [record.case_id for record in kept if FUSION_ID.fullmatch(record.case_id)]


def is_simulated_here(record: CaseRecord) -> bool:
    """Whether a case comes from this project's simulator rather than from Netfabb, by what its log says."""
    return (record.run.solver_version or "").endswith(OWN_SOLVER)


def solver_sentence(records: Sequence[CaseRecord]) -> str:
    """Which solvers the kept cases come from.

    Args:
        records: Rows of the manifest.
    """
    kept = [record for record in records if record.status == "kept"]

    def name_of(record: CaseRecord) -> str:
        version = record.run.solver_version or "of unknown version"
        if is_simulated_here(record):
            return f"the open simulator of LPBF-FLARE ({version}), not Autodesk Netfabb"
        return f"Autodesk Netfabb Simulation ({version})"

    counts = count_by(kept, lambda record: [name_of(record)])
    if not counts:
        return "No case was kept."
    if len(counts) == 1:
        return f"All kept cases were simulated with {next(iter(counts))}."
    listed = "; ".join(f"{count:,} with {name}" for name, count in counts.items())
    return f"The kept cases were simulated with different solvers: {listed}."
