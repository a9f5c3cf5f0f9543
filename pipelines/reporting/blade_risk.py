"""What the recoater blade finds on a part."""

from __future__ import annotations

from typing import Literal

from lpbf_data.case.record import Measures

BladeRisk = Literal["contact", "hit", "clear"]


def blade_risk(measures: Measures) -> BladeRisk:
    """How near a part comes to the recoater's blade: in contact with it, hit otherwise, or clear of it.

    A clearance of 100 % is that of a part that doesn't rise, 0 % that of one whose highest point stands as high as the
    blade passes. Solvers report interference long before: below a tolerance, 80 % of a layer in NetFabb, which is a
    rise by 8 of 40 µm. That is a hit, here and in `flare_model`; contact is the worst one, and named apart.

    Args:
        measures: What was measured on a case.
    """
    if measures.recoater_clearance_min <= 0:
        return "contact"
    return "hit" if measures.recoater_interference else "clear"
