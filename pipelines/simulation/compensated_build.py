"""The part to print, found by the simulator: each simulated build corrects the part to print of the one before.

With X the points of the nominal part and u(Y) the displacement of a part Y after its build, the part to print is

    Y[0] = X,  Y[k + 1] = X + scale u(Y[k])

which for a scale of -1 is Y[k] less what it ends up beside X: the aim is Y + u(Y) = X. Each Y is simulated on
the cells of X with moved corners. What is heated, when, and what shrinks by how much goes by the boxes of X: corners
move by a few hundredths of a millimetre.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from lpbf_data.errors import LpbfError
from lpbf_data.geometry.layer_groups import choose_refinement
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.materials.material import Material
from pipelines.simulation.physics.build_simulation import BuildSimulation
from pipelines.simulation.physics.mechanics import rigid_body_motion
from pipelines.simulation.physics.moved_elements import moved_mesh
from pipelines.simulation.results.failures import failure_of


class BuildFailedError(LpbfError):
    """No build would survive: there is no part whose displacement could be compensated."""


@dataclass(frozen=True)
class Distance:
    """Distance of a built part's points from their nominal positions, without rigid-body motion.

    Attributes:
        mean: Root mean square, mm.
        largest: mm.
    """

    mean: float
    largest: float


@dataclass(frozen=True)
class CompensatedMesh:
    """A part to print.

    Attributes:
        displacement: What its points are moved by, over the scale, mm, [n, 3].
        distances: Of the part as it is, and of each later one that was built, from the nominal one.
    """

    displacement: NDArray[np.float64]
    distances: tuple[Distance, ...]


def built_displacement(mesh: VoxelMesh, material: Material) -> NDArray[np.float64]:
    """Displacement of a part that was built and cut free, mm, [n, 3].

    Args:
        mesh: The part, of boxes or with moved corners.
        material: Its material.

    Raises:
        BuildFailedError: If no build would survive.
        SolverError: If the equations can't be solved.
    """
    known = material.calibration
    refinement = choose_refinement(mesh.num_planes, mesh.spacing[2], known.group_thickness, known.fewest_groups)
    with threadpool_limits(limits=1):
        for frame in BuildSimulation(mesh, material, refinement=refinement).frames():
            if reason := failure_of(frame.state.displacement, frame.clearance):
                raise BuildFailedError(reason)
            displacement = frame.state.displacement
    return displacement


def distance(points: NDArray[np.float64], off: NDArray[np.float64]) -> Distance:
    """Distance of points from their nominal positions after the rigid-body motion that fits best.

    Args:
        points: Nominal positions, mm, [n, 3].
        off: How far they are off, mm, [n, 3].
    """
    lengths = np.linalg.norm(off - rigid_body_motion(points, off), axis=1)
    return Distance(float(np.sqrt(np.mean(lengths**2))), float(lengths.max()))


def compensate_mesh(
    mesh: VoxelMesh,
    material: Material,
    scale: float,
    iterations: int,
    step: Callable[[], object] = lambda: None,
) -> CompensatedMesh:
    """Find the part to print.

    Args:
        mesh: The nominal part, of boxes.
        material: Its material.
        scale: -1 for the part to print, 1 for the shape that it warps to.
        iterations: How many times the part to print is corrected by simulating its build.
        step: Called after each build. There is one more than iterations where the scale is -1, to tell how far the last
            part ends up from the nominal one.

    Raises:
        BuildFailedError: If no build would survive.
        SolverError: If the equations can't be solved.
        GeometryError: If a part that is to be printed would turn a cell inside out.
    """
    shift, displacement = np.zeros((mesh.num_points, 3)), np.zeros((mesh.num_points, 3))
    distances: list[Distance] = []
    for number in range(iterations + (scale == -1.0)):
        built = built_displacement(mesh if number == 0 else moved_mesh(mesh, shift), material)
        distances.append(distance(mesh.points, shift + built))
        if number < iterations:
            displacement, shift = built, scale * built
        step()
    return CompensatedMesh(displacement, tuple(distances))
