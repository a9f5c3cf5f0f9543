"""One build from the first layer to the part that was cut free, as a sequence of frames.

Two frames a group of layers, when it is added and when it has shrunk; then the end of cooling, and the state after the
part is cut from the build plate. The block of build plate below the part carries it, gives way under it and lifts it by
its thermal expansion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lpbf_data.cached_property import cached_property
from lpbf_data.case.schema import FULL_CLEARANCE
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from pipelines.simulation.materials.inherent_strain import cell_strains
from pipelines.simulation.materials.material import Material, Process
from pipelines.simulation.physics.base_constraint import ElasticPlate, kept_by_cut
from pipelines.simulation.physics.blade_pass import RecoaterPass, clearance_percent, pass_over
from pipelines.simulation.physics.dense_blocks import blocks_on
from pipelines.simulation.physics.layers import COOLING, LayerGroup, plan_layers
from pipelines.simulation.physics.mechanics import MechanicalState, Mechanics
from pipelines.simulation.physics.moved_elements import elements_of
from pipelines.simulation.physics.thermal import PLATE_LEVELS, LayerTemperature, temperature_history

Phase = Literal["added", "shrunk", "cooled", "cut"]


@dataclass(frozen=True)
class Frame:
    """The part at one moment; nodes and cells that are there come first in the mesh.

    Attributes:
        number: From 1.
        time: s.
        phase: What has just happened.
        group: Number of the latest group of layers.
        num_cells: Cells that are there.
        state: Displacement, strain and stress.
        temperature: °C, [n].
        plate_temperature: °C at `thermal.PLATE_LEVELS`.
        clearance: Recoater clearance, percent of a powder layer, [n].
    """

    number: int
    time: float
    phase: Phase
    group: int
    num_cells: int
    state: MechanicalState
    temperature: NDArray[np.float64]
    plate_temperature: NDArray[np.float64]
    clearance: NDArray[np.float64]

    @property
    def num_points(self) -> int:
        """Nodes that are there."""
        return len(self.temperature)


class BuildSimulation:
    """A build, planned and ready to run.

    Args:
        mesh: The part, its bottom at z = 0.
        material: Its material.
        process: Process parameters; those of the material by default.
        refinement: A group of layers holds 2^refinement planes of cells.
        device: Where equations are solved: `cpu`, or a device of PyTorch such as `cuda`.
    """

    def __init__(
        self,
        mesh: VoxelMesh,
        material: Material,
        process: Process | None = None,
        *,
        refinement: int = 0,
        device: str = "cpu",
    ) -> None:
        self.mesh, self.material, self.device = mesh, material, device
        self.process = material.process if process is None else process
        self.refinement = refinement
        self.groups = plan_layers(mesh, self.process, refinement)
        self.passes: list[RecoaterPass] = []
        self.temperatures: tuple[LayerTemperature, ...] = ()

    @cached_property
    def plate(self) -> ElasticPlate:
        """The block of build plate below the part."""
        return ElasticPlate(self.mesh, self.material.young, self.material.poisson)

    @property
    def num_frames(self) -> int:
        """Frames of the whole build."""
        return 2 * len(self.groups) + 2

    def frame_times(self) -> tuple[float, ...]:
        """Times of all frames, s."""
        times = [time for group in self.groups for time in (group.start, group.end)]
        return (*times, times[-1] + COOLING, times[-1] + 2 * COOLING)

    def frames(self, *, held: NDArray[np.bool_] | None = None) -> Iterator[Frame]:
        """Run the build.

        Args:
            held: Nodes of the lowest plane that the cut leaves on the build plate; none by default.

        Yields:
            The frames in their order.

        Raises:
            SolverError: If a temperature or a displacement isn't found.
        """
        self.passes.clear()
        blocks = blocks_on(self.device)  # before anything else uses a GPU
        self.temperatures = temperature_history(self.mesh, self.groups, self.material, self.process, self.device)
        calibration = self.material.calibration
        mechanics = Mechanics(
            self.mesh,
            elements_of(self.mesh, self.material.young, self.material.poisson),
            cell_strains(self.mesh, calibration.strain, calibration.walls),
            tuple(group.end_plane for group in self.groups),
            self.plate,
            at_once=calibration.at_once,
            blocks=blocks,
        )
        for group, heat in zip(self.groups, self.temperatures, strict=True):
            yield from self._build_group(mechanics, group, heat)
        yield from self._finish(mechanics, held)

    def _build_group(self, mechanics: Mechanics, group: LayerGroup, heat: LayerTemperature) -> Iterator[Frame]:
        expansion = self.material.expansion * (heat.plate - self.process.ambient)
        added = mechanics.add_layer(self._thermal_strain(heat.nodes, group), expansion)
        shrunk = mechanics.shrink_layer()
        clearance = np.full(mechanics.num_points, FULL_CLEARANCE)
        if group is not self.groups[-1]:
            top = self.mesh.point_indices[: mechanics.num_points, 2] == group.end_plane
            upward, thickness = shrunk.rise[top], self._shrunk_at_once(group)
            clearance[top] = clearance_percent(upward, thickness, self.process)
            self.passes.append(pass_over(upward, thickness, group, self.process))
        number = 2 * group.number - 1
        first = Frame(
            number,
            group.start,
            "added",
            group.number,
            mechanics.num_cells,
            added,
            heat.nodes,
            heat.plate,
            clearance,
        )
        yield first
        yield dataclasses.replace(first, number=number + 1, time=group.end, phase="shrunk", state=shrunk)

    def _finish(self, mechanics: Mechanics, held: NDArray[np.bool_] | None) -> Iterator[Frame]:
        times, last = self.frame_times(), self.groups[-1].number
        points, ambient = mechanics.num_points, self.process.ambient
        still = Frame(
            self.num_frames - 1,
            times[-2],
            "cooled",
            last,
            mechanics.num_cells,
            mechanics.heat(0.0),
            np.full(points, ambient),
            np.full(len(PLATE_LEVELS), ambient),
            np.full(points, FULL_CLEARANCE),
        )
        yield still
        known = self.material.calibration
        kept = kept_by_cut(self.mesh, known.cut_height, known.cut_stiffness)
        released = mechanics.release(held, kept)
        yield dataclasses.replace(still, number=self.num_frames, time=times[-1], phase="cut", state=released)

    def _thermal_strain(self, temperature: NDArray[np.float64], group: LayerGroup) -> NDArray[np.float64]:
        """Expansion of each cell that is there, against ambient temperature."""
        cells = self.mesh.cells[self.mesh.indices[:, 2] < group.end_plane]
        warmth: NDArray[np.float64] = temperature[cells].mean(axis=1) - self.process.ambient
        return self.material.expansion * warmth

    def _shrunk_at_once(self, group: LayerGroup) -> float:
        """Thickness of what shrank last before the blade came, mm: the group, or its uppermost plane of cells."""
        return group.top - group.bottom if self.material.calibration.at_once else self.mesh.spacing[2]
