"""Parts that no model was trained on, meshed as `flare_model.predict` meshes a surface, and their simulation.

Shared by `compensation`, `decisions`, `material_scale` and `orientations`; not a command. The parts are first
candidates of the draw `balanced` with a seed that no corpus has: of the fourteen families of the training, with
parameters of their own, without any selection by hits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from flare_model.prediction.part import FromSurface, Part
from flare_model.prediction.surface_parts import LAYER
from lpbf_data.case.schema import FULL_CLEARANCE
from lpbf_data.errors import GeometryError
from lpbf_data.geometry.closed_surface import Surface
from lpbf_data.geometry.faithful_mesh import mesh_and_check
from lpbf_data.geometry.layer_groups import choose_refinement
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.geometry.voxelize import voxelize_to_size
from pipelines.simulation.materials.material import MATERIALS, Material
from pipelines.simulation.parts.corpus import part_surface
from pipelines.simulation.parts.draws import plan_streams
from pipelines.simulation.parts.families import FAMILIES
from pipelines.simulation.physics.build_simulation import BuildSimulation
from pipelines.simulation.results.failures import failure_of

SEED: Final = 20_977
"""Used for no corpus; those of training and tests have 101, 102, 103 and 111."""

TITANIUM: Final = MATERIALS["Ti64"]


@dataclass(frozen=True)
class UnseenPart:
    """A part that no model was trained on.

    Attributes:
        name: Its case id.
        family: Its family.
        surface: Its surface, standing on the plate, mm.
    """

    name: str
    family: str
    surface: Surface


def unseen_parts(count: int, points: int, seed: int = SEED) -> Iterator[UnseenPart]:
    """The first `count` parts of a seed that can be meshed with about `points` points."""
    found = 0
    for stream in plan_streams("balanced", seed, 4 * count, points, tuple(FAMILIES)):
        if found == count:
            return
        plan = stream.candidate(0)[0]
        try:
            surface = part_surface(
                *(plan.family, plan.parameters, plan.up), height=plan.height, tilt=plan.tilt, sized_for=plan.sized_for
            )
            mesh_of(surface, points)
        except GeometryError:
            continue
        found += 1
        yield UnseenPart(stream.case_id, plan.family, surface)


def mesh_of(surface: Surface, points: int) -> tuple[VoxelMesh, Part]:
    """Mesh a surface as `flare_model.predict` does: the mesh for the simulator, and the part for a model."""
    mesh, check, differences = mesh_and_check(
        surface, points, "part", lambda of, n: voxelize_to_size(of, n, layer=LAYER)
    )
    origin = FromSurface(surface, check, "mm", unit_told=True)
    return mesh, Part("part", mesh.points.astype(np.float32), mesh.cells, remarks=differences, origin=origin)


@dataclass(frozen=True)
class Built:
    """Result of a simulation.

    Attributes:
        displacement: Displacement after release, [N, 3] float64, mm.
        clearance: Least clearance of all passes of the blade, percent of a layer's thickness.
        failure: Why a build wouldn't survive; empty where it would.
    """

    displacement: NDArray[np.float64]
    clearance: float
    failure: str


def build(mesh: VoxelMesh, material: Material = TITANIUM) -> Built:
    """Simulate a build on one core."""
    known = material.calibration
    refinement = choose_refinement(mesh.num_planes, mesh.spacing[2], known.group_thickness, known.fewest_groups)
    simulation = BuildSimulation(mesh, material, refinement=refinement)
    failure = ""
    with threadpool_limits(limits=1):
        for frame in simulation.frames():
            failure = failure or failure_of(frame.state.displacement, frame.clearance) or ""
            last = frame
    least = min((one.clearance for one in simulation.passes), default=FULL_CLEARANCE)
    return Built(last.state.displacement, min(least, FULL_CLEARANCE), failure)
