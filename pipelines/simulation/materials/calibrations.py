"""What a calibration decides: the inherent strain of layers, and how layers are lumped. Two are built in.

`measured` is fitted to NIST's AM-Bench bridges, `netfabb` has the inherent strain that NetFabb's own files hold.
Neither number comes from a material's handbook; both are carried to other materials by their thermal expansion, because
what shrinks a layer is that it cools while it is held. README.md beside this file has both tables of figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from lpbf_data.geometry.layer_groups import GROUP_THICKNESS, MIN_GROUPS
from lpbf_data.shrinkage import MEASURED_COOLING, strain_of
from pipelines.simulation.materials.inherent_strain import WallRule


@dataclass(frozen=True, slots=True)
class Calibration:
    """How layers shrink.

    Attributes:
        name: Name in options, logs and cards.
        strain: Inherent strain along x and y of a layer inside a part; negative.
        walls: How it is less along walls; None if it isn't.
        at_once: Whether a group of layers shrinks at once, as NetFabb's do, instead of layer by layer.
        group_thickness: Thickness in mm that groups of layers come near to.
        fewest_groups: Groups that even a low part is divided into, where it has so many planes of cells.
        source: What it was fitted on.
        cut_height: Height above the build plate of the metal that the cut softens, mm.
        cut_stiffness: Share of its stiffness, and of its stress, that this metal keeps.
    """

    name: str
    strain: float
    walls: WallRule | None
    at_once: bool
    group_thickness: float
    fewest_groups: int
    source: str
    cut_height: float = 0.0
    cut_stiffness: float = 1.0


_NETFABB_WALLS: Final = WallRule(reach=2.5, onset=0.09, full=0.656, normal=0.6257, along=0.3860)
_NETFABB_CUT: Final = (0.8, 0.1)
"""Its cut leaves the lowest plane of cells, 0.8 mm high, nearly without stress (at the lowest nodes of step2 46 MPa in
the median, 965 before) and strains it along z and in shear; the share is fitted on both parts' warp and stress."""


def measured(expansion: float) -> Calibration:
    """The calibration on NIST's bridges.

    Args:
        expansion: Coefficient of thermal expansion of the material, 1/K.
    """
    return Calibration(
        name="measured",
        strain=strain_of("measured", expansion),
        walls=None,
        at_once=False,
        group_thickness=GROUP_THICKNESS,
        fewest_groups=MIN_GROUPS,
        source=(
            f"thermal contraction over {MEASURED_COOLING:g} K, fitted on the AM-Bench 2018 bridges in IN625 and "
            "15-5PH (NIST, CHAL-AMB2018-01-PD); other materials by their thermal expansion"
        ),
    )


def netfabb(expansion: float) -> Calibration:
    """The calibration on NetFabb's results.

    Args:
        expansion: Coefficient of thermal expansion of the material, 1/K.
    """
    return Calibration(
        name="netfabb",
        strain=strain_of("netfabb", expansion),
        walls=_NETFABB_WALLS,
        at_once=True,
        group_thickness=3.2,
        fewest_groups=1,
        source=(
            "inherent strain in the cells of two NetFabb 2024 results in Inc625 (github.com/kevinferg/netfabb-tools, "
            "example-result-files); other materials by their thermal expansion"
        ),
        cut_height=_NETFABB_CUT[0],
        cut_stiffness=_NETFABB_CUT[1],
    )


CALIBRATIONS: Final[Mapping[str, Callable[[float], Calibration]]] = MappingProxyType(
    {"measured": measured, "netfabb": netfabb}
)
"""Every named calibration, from a material's thermal expansion."""
