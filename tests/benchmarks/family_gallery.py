"""Draws the picture of the families of parts: one of each, simulated, coloured by its final displacement along z.

    python -m tests.benchmarks.family_gallery        # in the root of the repository

Measures nothing. Needs no GPU and no data; the picture goes to pipelines/simulation/pictures/families.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from lpbf_data.case.case import Case
from lpbf_data.geometry.layer_groups import choose_refinement
from lpbf_data.geometry.render import Panel, render_panels
from lpbf_data.geometry.voxelize import voxelize_to_size
from pipelines.simulation.materials.material import MATERIALS
from pipelines.simulation.parts.corpus import parameters_of, part_surface
from pipelines.simulation.parts.families import FAMILIES
from pipelines.simulation.physics.build_simulation import BuildSimulation

PICTURE: Final = Path("pipelines/simulation/pictures/families.png")
_UP: Final = {"truss": 1, "shaft": 2, "tee": 2, "cantilever": 2, "clevis": 1, "bracket": 2, "bridge": 1}
_LIMITS: Final = (-0.5, 0.5)  # ends of the colour scale, mm; unsupported overhangs move further


def family_panel(name: str) -> Panel:
    """Simulate one part of a family, with its parameters in the middle of their ranges."""
    family = FAMILIES[name]
    shares = {key: 0.6 if span.whole else 0.5 for key, span in family.ranges.items()}
    surface = part_surface(name, parameters_of(family, shares), _UP.get(name, 0))
    mesh = voxelize_to_size(surface, 6000, 1.0, layer=0.04, planes=2)
    simulation = BuildSimulation(
        mesh, MATERIALS["Ti64"], refinement=choose_refinement(mesh.num_planes, mesh.spacing[2])
    )
    *_, last = simulation.frames()
    fields = {"displacement": last.state.displacement.astype(np.float32)}
    return Panel(Case(name, mesh.points.astype(np.float32), mesh.cells, fields), name.replace("_", " "))


def main() -> None:
    """Simulate one part of each family and draw them."""
    panels = [family_panel(name) for name in FAMILIES]
    render_panels(panels, PICTURE, columns=5, panel_size=(300, 250), limits=_LIMITS)
    print(PICTURE, PICTURE.stat().st_size)


if __name__ == "__main__":
    main()
