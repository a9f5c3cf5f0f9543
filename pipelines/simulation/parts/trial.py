"""A candidate of a draw while it is simulated: whether it is accepted, and its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from lpbf_data.case.record import CaseRecord
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.parts.corpus import PartPlan
from pipelines.simulation.parts.draws import DRAWS, CandidateStream

FAR: Final = 4.0
"""Times as many points as were asked for: a sign that thin walls force the cells to be narrow."""

NOT_SURVIVED: Final = "no build would survive"
"""In the counts of candidates: runs that ended because of `failures.failure_of`."""
FAILED: Final = "couldn't be meshed or solved"
"""In the counts of candidates: runs that ended otherwise."""


class CandidateRejectedError(Exception):
    """The candidate isn't accepted; its text is the reason, as it is counted."""


@dataclass(frozen=True)
class Trial:
    """A candidate that is accepted or not by what its simulation gives.

    Attributes:
        stream: Its stream.
        threshold: Drawn uniformly from 0 to 1: the candidate is accepted if its acceptance is above it. None where it
            was accepted before, at another size.
    """

    stream: CandidateStream
    threshold: float | None

    def check(self, height: float, *, hit: bool) -> None:
        """End the run where no part of this height that has met the blade, or hasn't yet, would be accepted."""
        if self.threshold is not None and self.threshold >= DRAWS[self.stream.draw].most(height, hit=hit):
            raise CandidateRejectedError("hit by the blade" if hit else "of a height")

    def check_mesh(self, mesh: VoxelMesh, plan: PartPlan) -> None:
        """End the run before it begins where a mesh of this size or height wouldn't be accepted."""
        if self.threshold is not None and mesh.num_points > FAR * plan.num_points:
            raise CandidateRejectedError("of walls too thin for its points")
        self.check(height_of(mesh), hit=False)

    def weight(self, record: CaseRecord) -> float | None:
        """1 over the acceptance of a part; raises `CandidateRejectedError` where it isn't accepted."""
        if self.threshold is None:
            return self.stream.weight
        assert record.measures is not None
        if record.rejections:
            raise CandidateRejectedError(f"beyond {record.rejections[0].criterion}")
        draw = DRAWS[self.stream.draw]
        acceptance = draw.acceptance(record.measures)
        if self.threshold >= acceptance:
            by_blade = "hit by the blade" if record.measures.recoater_interference else "clear of the blade"
            raise CandidateRejectedError("of a displacement" if draw.hit == draw.clear else by_blade)
        return 1.0 / acceptance


def height_of(mesh: VoxelMesh) -> float:
    """Height of a part as it is measured, mm."""
    return float(np.ptp(mesh.points[:, 2].astype(np.float32)))
