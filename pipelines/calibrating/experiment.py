"""A build that was measured, as the simulator repeats it: mesh, cut, and displacements at the measured points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.geometry.layer_groups import choose_refinement
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.calibrating.fitting import Values
from pipelines.calibrating.measured_file import Measured
from pipelines.calibrating.measured_points import Interpolation
from pipelines.calibrating.options import Reference
from pipelines.simulation.materials.material import Material
from pipelines.simulation.physics.build_simulation import BuildSimulation

_AXES: Final = np.eye(3)


@dataclass(frozen=True)
class Experiment:
    """What was built, cut and measured.

    Attributes:
        mesh: The part.
        measured: The measured values.
        interpolation: Of simulated displacements at the measured points.
        held: Nodes of the lowest plane that the cut leaves on the plate; None for a part that is cut free.
        reference: Shape from which displacements count.
    """

    mesh: VoxelMesh
    measured: Measured
    interpolation: Interpolation
    held: NDArray[np.bool_] | None
    reference: Reference

    def refinement(self, material: Material) -> int:
        """How planes of cells are grouped: as `pipelines.simulate` does with this material.

        Args:
            material: The material.
        """
        known = material.calibration
        return choose_refinement(self.mesh.num_planes, self.mesh.spacing[2], known.group_thickness, known.fewest_groups)

    def simulate(self, material: Material) -> NDArray[np.float64]:
        """Simulated values, one for each measured value, mm, [n].

        Args:
            material: The material.

        Raises:
            SolverError: If a temperature or a displacement isn't found.
        """
        simulation = BuildSimulation(self.mesh, material, refinement=self.refinement(material))
        moved = {}
        for frame in simulation.frames(held=self.held):
            if frame.phase in ("cooled", "cut"):
                moved[frame.phase] = frame.state.displacement
        whole = moved["cut"] - moved["cooled"] if self.reference == "before_cut" else moved["cut"]
        return self.interpolation.component_of(whole, self.measured.components)

    @property
    def values(self) -> Values:
        """The measured values; a part that was cut free may have moved as a rigid body."""
        measured = self.measured
        motion = np.zeros((len(measured), 0))
        if self.held is None:
            along = _AXES[measured.components]
            arms = measured.coordinates - measured.coordinates.mean(axis=0)
            motion = np.concatenate([along, np.cross(arms, along)], axis=1)
        return Values(measured.values, measured.sigmas, motion)
