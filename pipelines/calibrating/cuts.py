"""Which nodes of a part's foot a cut sets free, from a condition such as `x<56` or `x<29 or x>43`."""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import UsageError
from lpbf_data.geometry.voxel_mesh import VoxelMesh

_CONDITION: Final = re.compile(r"\s*([xy])\s*(<=|>=|<|>)\s*([-+]?\d+(?:\.\d*)?)\s*")
_NEAR: Final = 1e-6  # mm
_LONGEST: Final = 200


def held_by(cut: str, mesh: VoxelMesh) -> NDArray[np.bool_] | None:
    """Nodes of the lowest plane that stay on the plate; None where the part comes free.

    Args:
        cut: Conditions on x and y in mm for what is cut, joined by `and` and `or` (`and` binds first); `all` for a part
            that is cut free.
        mesh: The part.

    Raises:
        UsageError: If it can't be understood, or cuts nothing.
    """
    if cut.strip() == "all":
        return None
    if len(cut) > _LONGEST:
        raise UsageError(f"--cut has {len(cut):,} letters; at most {_LONGEST} are read")
    foot = mesh.points[mesh.point_levels == 0]
    free = np.zeros(len(foot), dtype=bool)
    for alternative in re.split(r"\bor\b", cut):
        together = np.ones(len(foot), dtype=bool)
        for condition in re.split(r"\band\b", alternative):
            together &= _meets(condition, cut, foot)
        free |= together
    if not free.any():
        low, high = foot.min(axis=0), foot.max(axis=0)
        raise UsageError(
            f"--cut {cut!r} cuts nothing: the part's foot spans x {low[0]:.4g} to {high[0]:.4g} and y {low[1]:.4g} to "
            f"{high[1]:.4g} mm"
        )
    return None if free.all() else ~free


def _meets(condition: str, cut: str, foot: NDArray[np.float64]) -> NDArray[np.bool_]:
    found = _CONDITION.fullmatch(condition)
    if found is None:
        raise UsageError(f"--cut {cut!r} isn't understood; it must be like 'x<56', 'x<29 or x>43', or all")
    values, bound = foot[:, "xy".index(found[1])], float(found[3])
    met: NDArray[np.bool_] = {
        "<": values < bound - _NEAR,
        "<=": values < bound + _NEAR,
        ">": values > bound + _NEAR,
        ">=": values > bound - _NEAR,
    }[found[2]]
    return met
