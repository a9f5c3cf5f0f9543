"""Do the simulator's two solvers, multigrid iterations and block Cholesky, give the same displacements?

    python -m tests.benchmarks.both_solvers [part …]

The simulator chooses one of the two for each part by its size. Here six tilted parts of 8,000 to 20,000 points are
built twice, once with each solver, and the displacements of all frames are compared. Tilted parts are the hardest for
iterations: the lowest cells of an overhang are connected to nothing until the part below has grown up to them. The
parts are the first candidates of the draw `balanced`, with a seed of no corpus, that are tilted, have one of the
sizes, consist of several unconnected pieces at some height, and are of a family that isn't there yet. A number from 1
to 6 measures that part alone. A build ends early where `pipelines.simulate` would end it as failed; frames that both
builds have are compared.

Needs no GPU and no data. Each part is written to results/both_solvers.json as soon as it is measured; the other parts
of the file stay.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lpbf_data.errors import GeometryError
from lpbf_data.geometry.layer_groups import choose_refinement
from lpbf_data.geometry.voxel_mesh import VoxelMesh
from lpbf_data.geometry.voxelize import voxelize_to_size
from pipelines.simulation.materials.material import MATERIALS, Material
from pipelines.simulation.parts.corpus import PartPlan, part_surface
from pipelines.simulation.parts.draws import plan_streams
from pipelines.simulation.parts.families import FAMILIES
from pipelines.simulation.physics import stiffness
from pipelines.simulation.physics.build_simulation import BuildSimulation
from pipelines.simulation.physics.elements import elastic_element
from pipelines.simulation.physics.floating_pieces import floating_pieces
from pipelines.simulation.physics.iterations import SolverError
from pipelines.simulation.results.failures import failure_of
from pipelines.simulation.results.identity import VERSION
from tests.benchmarks.machine import RESULTS, describe_machine, save_result

SEED: Final = 1_000_004  # used for no corpus
SIZES: Final = (8_000, 9_500, 11_500, 14_000, 17_000, 20_000)
CHEAPER: Final = {"cholesky": 1e30, "multigrid": 1.0}
"""Values of the speed of dense kernels, operations a second, that make the simulator choose the one or the other."""

_FEWEST_PIECES: Final = 2

DENSE_RATE: Final = stiffness._DENSE_RATE
LARGEST_BLOCKS: Final = stiffness._MAX_BLOCKS
"""The simulator's own values, by which it chooses a solver."""

Solver = Literal["cholesky", "multigrid"]


def candidates() -> Iterator[PartPlan]:
    """The first candidate of each stream of the draw, where it is tilted."""
    for stream in plan_streams("balanced", SEED, 200, SIZES[0], tuple(FAMILIES)):
        plan, _ = stream.candidate(0)
        if plan.tilt is not None:
            yield plan


def parts() -> Iterator[tuple[PartPlan, VoxelMesh, int]]:
    """Plan and mesh of a part for each of `SIZES`, and the largest number of unconnected pieces at any height."""
    known: set[str] = set()
    wanted = list(SIZES)
    for plan in candidates():
        if not wanted or plan.family in known:
            continue
        surface = part_surface(plan.family, plan.parameters, plan.up, tilt=plan.tilt, sized_for=wanted[0])
        try:
            mesh = voxelize_to_size(surface, wanted[0], plan.aspect_ratio, layer=0.04, planes=2)
        except GeometryError:
            continue
        pieces = max(len(floating_pieces(mesh, planes)) for planes in range(1, mesh.num_planes + 1))
        if pieces >= _FEWEST_PIECES and abs(mesh.num_points / wanted[0] - 1) < 0.1:
            known.add(plan.family)
            wanted.pop(0)
            yield plan, mesh, pieces


@dataclass(frozen=True)
class Built:
    """A build with one of the solvers, to its end or to where the simulator would end it as failed.

    Attributes:
        frames: Displacements of each frame before that, [N, 3] float64, mm.
        ended: Why it ended as failed, in the simulator's words; None where it came to its end.
        seconds: Processor time.
    """

    frames: list[NDArray[np.float64]]
    ended: str | None
    seconds: float


def build(mesh: VoxelMesh, solver: Solver) -> Built:
    """Build a part with a solver, to its end or to where the simulator would end it as failed."""
    stiffness._DENSE_RATE = CHEAPER[solver]  # type: ignore[misc]
    stiffness._MAX_BLOCKS = 1e11  # type: ignore[misc]
    material = MATERIALS["Ti64"]
    frames: list[NDArray[np.float64]] = []
    started, ended = time.process_time(), None
    try:
        for frame in BuildSimulation(mesh, material, refinement=_refinement(mesh, material)).frames():
            ended = failure_of(frame.state.displacement, frame.clearance)
            if ended:
                break
            frames.append(frame.state.displacement)
    except SolverError as error:
        ended = f"The solver gave up: {error}"
    return Built(frames, ended, round(time.process_time() - started, 1))


def chosen_solver(mesh: VoxelMesh) -> Solver:
    """The solver that the simulator chooses for a part."""
    speeds = stiffness._DENSE_RATE, stiffness._MAX_BLOCKS
    stiffness._DENSE_RATE, stiffness._MAX_BLOCKS = DENSE_RATE, LARGEST_BLOCKS  # type: ignore[misc]
    material = MATERIALS["Ti64"]
    simulation = BuildSimulation(mesh, material, refinement=_refinement(mesh, material))
    element = elastic_element(mesh.spacing, material.young, material.poisson).stiffness
    found = stiffness.make_stiffness(mesh, element, simulation.plate.constraint, len(simulation.groups))
    stiffness._DENSE_RATE, stiffness._MAX_BLOCKS = speeds  # type: ignore[misc]
    return "cholesky" if isinstance(found, stiffness.PlaneCholesky) else "multigrid"


def _refinement(mesh: VoxelMesh, material: Material) -> int:
    known = material.calibration
    return choose_refinement(mesh.num_planes, mesh.spacing[2], known.group_thickness, known.fewest_groups)


def compare(plan: PartPlan, mesh: VoxelMesh, pieces: int) -> dict[str, Any]:
    """Largest difference of the displacements over all frames that both builds have, and in the last of these."""
    exact, iterated = build(mesh, "cholesky"), build(mesh, "multigrid")
    common = list(zip(exact.frames, iterated.frames, strict=False))
    differences = [float(np.abs(a - b).max()) for a, b in common]
    assert plan.tilt is not None
    return {
        "family": plan.family,
        "tilt_degrees": round(plan.tilt[0], 1),
        "points": mesh.num_points,
        "floating_pieces": pieces,
        "frames_compared": len(common),
        "largest_displacement_mm": round(max(float(np.abs(a).max()) for a, _ in common), 4),
        "largest_difference_mm": round(max(differences), 6),
        "at_the_end_mm": round(differences[-1], 6),
        "ended_as_failed": {"cholesky": exact.ended, "multigrid": iterated.ended},
        "cpu_seconds": {"cholesky": exact.seconds, "multigrid": iterated.seconds},
    }


def main() -> None:
    """Measure the parts that were asked for; the other parts of the file stay."""
    wanted = {int(word) for word in sys.argv[1:]} or set(range(1, len(SIZES) + 1))
    known = RESULTS / "both_solvers.json"
    chosen: dict[str, Solver] = {}
    for number, (plan, mesh, pieces) in enumerate(parts(), start=1):
        chosen[str(number)] = chosen_solver(mesh)
        if number not in wanted:
            continue
        found = compare(plan, mesh, pieces)
        print(number, found, flush=True)
        result: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
        rows = result.get("parts", {}) | {str(number): found}
        worst = max(one["largest_difference_mm"] for one in rows.values())
        machine = describe_machine(("numpy", "scipy", "pyamg", "numba", "manifold3d"))
        result = {
            "machine": machine,
            "simulator": VERSION,
            "parts": {key: rows[key] for key in sorted(rows)},
            "chosen_by_the_simulator": result.get("chosen_by_the_simulator", {}) | chosen,
            "largest_difference_mm": worst,
        }
        save_result("both_solvers", result)


if __name__ == "__main__":
    main()
