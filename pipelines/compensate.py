"""`python -m pipelines.compensate --src part.stl --out part_compensated.stl`: what to print, by the simulator.

Each vertex of the surface moves against the displacement that the simulator finds; then the moved part is simulated,
and so on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lpbf_data.command_line import run
from lpbf_data.console import open_console, print_remarks, progress
from lpbf_data.durable import write_durably
from lpbf_data.errors import GeometryError, LpbfError, UsageError
from lpbf_data.geometry.surface_formats import UNIT_SPELLINGS, Units
from lpbf_data.remarks import Remark, Treatment, merge_remarks
from pipelines.simulation.choices import POINT_LIMITS, CalibrationName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lpbf_data.geometry.closed_surface import Surface
    from pipelines.simulation.materials.material import Material

_MAX_ITERATIONS: Final = 10
_UNEVEN: Final = 1e-3  # mm that a foot may be uneven by without a remark


def compensate(
    src: str,
    out: str,
    *,
    scale: float = -1.0,
    iterations: int = 2,
    points: int = 2000,
    units: Units | None = None,
    material: str = "Ti64",
    calibration: CalibrationName | None = None,
) -> int:
    """Move a surface against the displacement that the simulator finds, so that the printed part comes out straight.

    Args:
        src: A file of closed surfaces: STL, OBJ, PLY, OFF or 3MF.
        out: The STL to write, in mm, where the bodies of the file lie; what was done goes into a JSON file beside it.
        scale: How many times the displacement is added, -5 to 5: -1 compensates it, 1 shows the part as it warps.
        iterations: How many times the part to print is corrected, 1 to 10, each time by simulating its build; one more
            build shows how far the last part ends up from the nominal shape.
        points: Points that each body is meshed with.
        units: Unit of lengths in the file; by default the one that it states (3MF), else mm.
        material: Material of the part: Ti64, Inc625, SS316L, 15-5PH, AlSi10Mg, or a YAML file with one of your own.
        calibration: How layers shrink: measured or netfabb; by default what the material's file says.

    Returns:
        Exit status: 0; 1 where the surface would cross itself or no build would survive, and nothing is written.
    """
    from lpbf_data.geometry.compensation import check_files

    source, target = Path(src), Path(out)
    if not 1 <= iterations <= _MAX_ITERATIONS:
        raise UsageError(f"--iterations must be 1 to {_MAX_ITERATIONS}, not {iterations}")
    if not POINT_LIMITS[0] <= points <= POINT_LIMITS[1]:
        raise UsageError(f"--points must be {POINT_LIMITS[0]} to {POINT_LIMITS[1]:,}, not {points}")
    check_files(source, target, scale)

    from lpbf_data.geometry.compensation import joined
    from lpbf_data.geometry.stl import stl_bytes
    from lpbf_data.geometry.surface_files import load_bodies
    from pipelines.simulation.materials.material_files import choose_material

    chosen = choose_material(material, calibration)
    file = load_bodies(source, units)
    names = [source.stem] if len(file.bodies) == 1 else [f"{source.stem}_{k + 1}" for k in range(len(file.bodies))]
    moved, done, remarks = [], [], [*file.remarks]
    builds = len(names) * (iterations + (scale == -1.0))
    with progress(builds, "compensate", "build") as bar:
        for name, body in zip(names, file.bodies, strict=True):
            try:
                surface, content, found = compensate_body(
                    body, name, chosen, points=points, scale=scale, iterations=iterations, step=bar.update
                )
            except LpbfError as error:
                if len(names) == 1:
                    raise
                raise GeometryError(f"body {name}: {error}") from error
            moved.append(surface)
            done.append(content)
            remarks += found
    write_durably(target, stl_bytes(joined(moved), "lengths in mm"))
    said = merge_remarks(remarks)
    stored = {"scale": scale, "iterations": iterations, "material": chosen.label, "bodies": done}
    stored["remarks"] = [remark.as_dict() for remark in said]
    write_durably(target.with_suffix(".json"), (json.dumps(stored, indent=1) + "\n").encode())
    console = open_console()
    for content in done:
        console.print(said_of(content))
    console.print(f"{scale:g} times the displacement in {chosen.label} is in {target}")
    print_remarks(said, open_console(stderr=True))
    return 0


def compensate_body(
    body: Surface,
    name: str,
    material: Material,
    *,
    points: int,
    scale: float,
    iterations: int,
    step: Callable[[], object] = lambda: None,
) -> tuple[Surface, dict[str, Any], tuple[Remark, ...]]:
    """A body as it is to be printed, where it lies in its file.

    Args:
        body: The body, mm.
        name: Its name.
        material: Its material.
        points: Points that it is meshed with.
        scale: -1 for the part to print, 1 for the shape that it warps to.
        iterations: How many times the part to print is corrected by simulating its build.
        step: Called after each build.

    Returns:
        The surface, what was done as JSON takes it (lengths in mm), and remarks.

    Raises:
        LpbfError: If it can't be meshed or built, or would cross itself.
    """
    from lpbf_data.geometry.closed_surface import on_build_plate
    from lpbf_data.geometry.compensation import compensate_surface, refuse_crossings
    from lpbf_data.geometry.faithful_mesh import mesh_faithfully
    from lpbf_data.geometry.voxelize import voxelize_to_size
    from pipelines.simulation.compensated_build import compensate_mesh

    surface, layer = on_build_plate(body), material.process.layer_thickness
    mesh, remarks = mesh_faithfully(
        surface, points, name, lambda one, count: voxelize_to_size(one, count, layer=layer, planes=2)
    )
    found = compensate_mesh(mesh, material, scale, iterations, step)
    moved = compensate_surface(surface, mesh.points, mesh.cells, found.displacement, scale)
    refuse_crossings(moved, name, scale)
    back = body.vertices[0] - surface.vertices[0]
    content = {"name": name, "points": mesh.num_points} | moved.as_dict()
    content |= {"distances": [{"mean": one.mean, "largest": one.largest} for one in found.distances]}
    remarks += _on_foot(scale * found.displacement[mesh.point_indices[:, 2] == 0, 2], name)
    return replace(moved.surface, vertices=moved.surface.vertices + back), content, remarks


def _on_foot(heights: NDArray[np.float64], name: str) -> tuple[Remark, ...]:
    """A remark where the foot isn't flat any more, none where it is; `heights` of its points, mm."""
    uneven = float(heights.max() - heights.min())
    if uneven < _UNEVEN:
        return ()
    sentence = "feet aren't flat any more: build them on supports or on stock that is cut along the new shape"
    return (Remark(Treatment.CHANGED, "uneven_foot", sentence, 1, (f"{name}: by {1000 * uneven:.0f} µm",)),)


def said_of(done: dict[str, Any]) -> str:
    """What was done to one body, in a sentence."""
    from lpbf_data.geometry.compensation import triangles_said

    words = f"{done['name']}: moved by up to {1000 * done['largest_move']:.3g} µm; "
    shown = [f"{1000 * one['mean']:.3g} µm (at most {1000 * one['largest']:.3g})" for one in done["distances"]]
    words += f"ends up {shown[0]} from the nominal shape as it is"
    if len(shown) > 1:
        words += f", then {', '.join(shown[1:])}"
    return f"{words}; {triangles_said(done)}"


def main() -> None:
    """Entry point of `lpbf-compensate-simulated`."""
    run(compensate, "python -m pipelines.compensate", positional=("src", "out"), spellings={"units": UNIT_SPELLINGS})


if __name__ == "__main__":
    main()
