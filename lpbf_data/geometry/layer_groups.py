"""Lumped layers: which planes of cells a simulation adds to a part at a time.

NetFabb adds several powder layers at once: an element spans a whole number of them, a group of elements a power of two
of elements. The rule needs nothing but the height of a cell and the number of planes, so that it holds for what the
simulator builds and for what is known of a part before it is simulated. Heights are in mm; planes of cells count from
0 at the build plate, groups from 1 as in NetFabb's logs.

Sources: the logs of NetFabb 2024 runs (github.com/kevinferg/netfabb-tools, example-result-files), and appendix G of
Puri et al., "FLARE: Fast Low-rank Attention Routing Engine", arXiv:2508.12594.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from lpbf_data.errors import UsageError

GROUP_THICKNESS: Final = 2.5
"""Thickness in mm that a group of layers comes near to: the lumped layer of the published data set."""

MIN_GROUPS: Final = 4
"""Groups that even a low part is divided into, where it has so many planes of cells."""

_MAX_REFINEMENT: Final = 4


@dataclass(frozen=True, slots=True)
class PlaneGroup:
    """Planes of cells that are added at once.

    Attributes:
        number: From 1.
        first_plane: Lowest plane of cells.
        end_plane: Plane of cells above the highest one.
    """

    number: int
    first_plane: int
    end_plane: int

    @property
    def num_planes(self) -> int:
        """Planes of cells in it."""
        return self.end_plane - self.first_plane


def choose_refinement(
    planes: int, cell_height: float, thickness: float = GROUP_THICKNESS, min_groups: int = MIN_GROUPS
) -> int:
    """How often a group is halved to give a cell, so that groups come near to a thickness.

    A low part gets thinner groups.

    Args:
        planes: Planes of cells in the part.
        cell_height: Height of a cell in mm.
        thickness: Thickness in mm that groups come near to.
        min_groups: Groups that even a low part is divided into, where it has so many planes.

    >>> choose_refinement(40, 0.6), choose_refinement(25, 2.4), choose_refinement(8, 0.6), choose_refinement(3, 0.6)
    (2, 0, 1, 0)
    """
    wanted = round(math.log2(thickness / cell_height))
    if min_groups > 1:
        wanted = min(wanted, int(math.log2(planes / min_groups)) if planes >= min_groups else 0)
    return max(0, min(wanted, _MAX_REFINEMENT))


def layers_per_cell(cell_height: float, layer_thickness: float) -> int:
    """Powder layers that a cell spans.

    Args:
        cell_height: Height of a cell in mm.
        layer_thickness: Powder layer in mm.

    Raises:
        UsageError: If it isn't a whole number.

    >>> layers_per_cell(0.8, 0.04)
    20
    """
    layers = cell_height / layer_thickness
    if abs(layers - round(layers)) > 1e-6 * layers or round(layers) < 1:
        raise UsageError(f"cells of {cell_height} mm don't hold a whole number of {layer_thickness} mm layers")
    return round(layers)


def group_planes(planes: int, refinement: int) -> tuple[PlaneGroup, ...]:
    """Divide planes of cells into groups from the build plate upwards; the topmost one takes what is left.

    Args:
        planes: Planes of cells in the part.
        refinement: A group holds 2^refinement of them.

    >>> [(group.number, group.first_plane, group.end_plane) for group in group_planes(10, 2)]
    [(1, 0, 4), (2, 4, 8), (3, 8, 10)]
    """
    size = 2**refinement
    firsts = enumerate(range(0, planes, size), start=1)
    return tuple(PlaneGroup(number, first, min(first + size, planes)) for number, first in firsts)
