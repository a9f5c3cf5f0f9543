"""EnSight Gold as a format of meshio: `meshio.read("x_mechanical.case")`, and `meshio.write` for hexahedra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import meshio
import numpy as np

from pipelines.ensight.case_file import (
    COMPONENTS,
    CaseFile,
    TimeSet,
    Variable,
    VariableKind,
    read_case_file,
    write_case_file,
)
from pipelines.ensight.gold import Location, read_geometry, read_variable, write_geometry, write_variable


def read(filename: str | Path) -> meshio.Mesh:
    """Read the last frame of a case file.

    Args:
        filename: Path of the `.case` file; the files that it names lie relative to it.

    Returns:
        A mesh of hexahedra with every variable of the last frame as point or cell data.

    Raises:
        CaseError: If a file is malformed or doesn't fit the others.
        OSError: If a file can't be read.
    """
    path = Path(filename)
    case = read_case_file(path.read_bytes(), path.name)
    frame = len(case.frames.times) - 1
    geometry_name = case.geometry_file(case.geometry_index(frame))
    geometry = read_geometry((path.parent / geometry_name).read_bytes(), geometry_name)
    data: dict[Location, dict[str, Any]] = {"point": {}, "cell": {}}
    for name, variable in case.variables.items():
        file_name = case.variable_file(name, frame)
        values = read_variable(
            (path.parent / file_name).read_bytes(),
            geometry.dialect,
            count=len(geometry.points if variable.location == "point" else geometry.cells),
            num_components=COMPONENTS[variable.kind],
            location=variable.location,
            path=file_name,
        )
        data[variable.location][name] = values
    cell_data = {name: [values] for name, values in data["cell"].items()}
    return meshio.Mesh(geometry.points, [("hexahedron", geometry.cells)], data["point"], cell_data)


def write(filename: str | Path, mesh: meshio.Mesh) -> None:
    """Write a mesh of hexahedra as a case file of one step, with its geometry and variables beside it.

    Args:
        filename: Path of the `.case` file.
        mesh: The mesh; scalars, vectors and symmetric tensors (6 components) are written.

    Raises:
        ValueError: If the mesh holds cells other than hexahedra, or data of another shape.
    """
    path = Path(filename)
    if [block.type for block in mesh.cells] != ["hexahedron"]:
        found = ", ".join(block.type for block in mesh.cells)
        raise ValueError(f"only one block of hexahedra can be written as EnSight Gold here, the mesh has: {found}")
    kinds: dict[int, VariableKind] = {count: kind for kind, count in COMPONENTS.items()}
    located: list[tuple[Location, str, Any]] = [("point", n, v) for n, v in mesh.point_data.items()]
    located += [("cell", name, blocks[0]) for name, blocks in mesh.cell_data.items()]
    variables: dict[str, Variable] = {}
    for number, (location, name, values) in enumerate(located):
        array = np.asarray(values)
        width = 1 if array.ndim == 1 else array.shape[1]
        if array.ndim > 2 or width not in kinds:
            raise ValueError(f"{name} has shape {array.shape}; only 1, 3 or 6 components can be written")
        safe = "_".join(name.split())
        variables[safe] = Variable(safe, kinds[width], location, f"{path.stem}_*.{number:03d}.ens", 1)
        data = write_variable(np.squeeze(array), location=location, description=safe)
        (path.parent / f"{path.stem}_1.{number:03d}.ens").write_bytes(data)
    (path.parent / f"{path.stem}_1.geo").write_bytes(write_geometry(mesh.points, mesh.cells[0].data))
    case = CaseFile(f"{path.stem}_*.geo", 1, variables, {1: TimeSet((0.0,), (1,))})
    path.write_bytes(write_case_file(case))


def register() -> None:
    """Make the format known to meshio under the extension `.case`."""
    meshio.register_format("ensight", [".case"], read, {"ensight": write})
