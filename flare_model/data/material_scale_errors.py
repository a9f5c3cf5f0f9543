"""Errors of predictions that are scaled to another material, as measured with the simulator.

`python -m tests.benchmarks.material_scale` measures them; figures are in tests/benchmarks/results/material_scale.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SHARE_OF_STRAIN: Final[Mapping[str, float]] = {"displacement": 1.06, "clearance": 0.59}
"""Part of a displacement, or of lost clearance, that is due to the strain of the layers; the rest is due to thermal
expansion."""

ERRORS: Final[Mapping[str, tuple[float, float]]] = {
    "expansion": (0.27, 0.28),
    "strain": (1.06, 1.47),
    "at once": (0.55, 0.97),
}
"""Relative errors that nine of ten parts stay below, of scaled displacements (L2) and of the scaled loss of clearance.

Keys say what differs from the training: the thermal expansion, the strain, or both at once. With r the ratio of the
strains over the ratio of the expansions, the error of another strain is the stated number times r - 1, relative to the
values for r = 1."""
