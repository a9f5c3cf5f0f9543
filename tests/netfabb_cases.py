"""Small simulated parts in NetFabb's form, written with the project's own EnSight writer.

The fields are made up (smooth functions of position and frame), the files are not: names, frames, meshes that grow, log
and input file follow real output. A part is a box of `shape` cells on a plate of one layer of cells.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.ensight import (
    CaseFile,
    Dialect,
    TimeSet,
    Variable,
    write_case_file,
    write_geometry,
    write_variable,
)
from pipelines.ensight.gold import Location

LOG = """\

Autodesk AM Process Simulation v24.0.18
 Build ID    : 24.0.0.120

Analysis control (Input) file: {prefix}mechanical.in
Material name = {material}

lr thickness   =   4.000000000000000E-002

Number of layers per element:             20
{increments}
{verdict}
"""
GOOD = "Analysis completed\n\nCPU wall = 00:00:02.62\n\nEND Autodesk AM Process Simulation LT"
TERMINATED = "*** ERROR: 1\nThe STL can't be meshed.\n\nAnalysis terminated"
INPUT = '*RCTR\n80, 0\n*PBPF\n#Autodesk Ti64 AM250 40 µm\n"x.prm"\n*STLFILE\n"{stl}"\n*END\n'

VARIABLES: dict[str, tuple[str, str, int, Location]] = {
    "Displacement": ("vector", "dis", 3, "point"),
    "Cauchy_stress": ("tensor symm", "sig", 6, "point"),
    "von_Mises_stress": ("scalar", "svm", 1, "point"),
    "Principal_stress_max": ("scalar", "sp1", 1, "point"),
    "Principal_stress_mid": ("scalar", "sp2", 1, "point"),
    "Principal_stress_min": ("scalar", "sp3", 1, "point"),
    "Principal_stress_direction_max": ("vector", "sd1", 3, "point"),
    "Principal_stress_direction_mid": ("vector", "sd2", 3, "point"),
    "Principal_stress_direction_min": ("vector", "sd3", 3, "point"),
    "Elastic_strain": ("tensor symm", "ept", 6, "point"),
    "Temperature": ("scalar", "tmp", 1, "point"),
    "Structure_type": ("scalar", "typ", 1, "cell"),
    "Recoater_clearance_%": ("scalar", "rct", 1, "point"),
    "Recoater_status": ("scalar", "rcd", 1, "point"),
}


BINARY = Dialect()


@dataclass(frozen=True)
class Part:
    """What a made-up part looks like.

    Attributes:
        case_id: Name of the case.
        shape: Cells along x, y and z.
        layer: Cells that a layer is high.
        cell: Edges of a cell in mm.
        amplitude: Scale of the displacement in mm.
        clearance: Least recoater clearance, met above the first layer.
        interactive: Name files after the case.
        material: As the log says it.
        verdict: End of the log.
        stl: Name of the surface.
    """

    case_id: str
    shape: tuple[int, int, int] = (3, 2, 3)
    layer: int = 1
    cell: tuple[float, float, float] = (1.0, 1.0, 1.0)
    amplitude: float = 0.1
    clearance: float = 90.0
    interactive: bool = False
    material: str = "ti64"
    verdict: str = GOOD
    stl: str = "test.stl"
    dialect: Dialect = BINARY

    @property
    def prefix(self) -> str:
        """What the names of its files begin with."""
        return f"{self.case_id}_" if self.interactive else ""


def box_mesh(shape: tuple[int, int, int]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Unit cubes in a box: points [N, 3] with z slowest, cells [E, 8]."""
    counts = [n + 1 for n in shape]
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in reversed(counts)), indexing="ij")
    points = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    index = np.arange(len(points), dtype=np.int32).reshape(z.shape)
    corners = [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 0)]
    nz, ny, nx = reversed(shape)
    cells = np.stack([index[a : a + nz, b : b + ny, c : c + nx] for a, b, c in corners], axis=-1)
    return points, cells.reshape(-1, 8)


def part_mesh(part: Part, height: int, *, plate: bool) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The mesh of a part up to a height in cells, with or without the plate below it."""
    nx, ny, _ = part.shape
    points, cells = box_mesh((nx, ny, height + plate))
    points = points - np.array([nx / 2, ny / 2, float(plate)], dtype=np.float32)
    return (points * np.array(part.cell, dtype=np.float32)).astype(np.float32), cells


def field_values(part: Part, name: str, points: NDArray[np.float32], cells: NDArray[np.int32], frame: int) -> object:
    """Made-up values of a variable at a frame, [N or E, components]."""
    _, _, width, _ = VARIABLES[name]
    if name == "Structure_type":
        return (points[cells][:, :, 2].mean(axis=1) > 0).astype(np.float32) * 2
    if name == "Recoater_clearance_%":
        top = (frame < 2) & (np.abs(points[:, 2] - part.layer * part.cell[2]) < 1e-4)
        return np.where(top, np.float32(part.clearance), np.float32(100)).astype(np.float32)
    if name == "Recoater_status":
        return (np.abs(points[:, 2] - part.layer * part.cell[2]) < 1e-4).astype(np.float32) * np.float32(
            part.clearance < 80
        )
    if name == "Temperature":
        return np.full(len(points), 25.0 + 10 * frame, dtype=np.float32)
    columns = [
        part.amplitude * np.sin(0.3 * (k + 1) * points[:, k % 3] + 0.5 * frame + 0.1) * (points[:, 2] / 3)
        for k in range(width)
    ]
    scale = 1000.0 if "stress" in name else 1.0
    values = (np.abs(np.stack(columns, axis=1)) * scale if "von" in name else np.stack(columns, axis=1)).astype("f4")
    return values[:, 0] if width == 1 else values


def write_part(folder: Path, part: Part) -> Path:
    """Write the result folder of a part; returns it."""
    root = folder / part.case_id
    results = root / "results"
    results.mkdir(parents=True)
    height = part.shape[2]
    tops = [min(top + part.layer, height) for top in range(0, height, part.layer)]
    # Two frames a layer, the end of cooling, and the part alone.
    frames = [(top, True) for top in tops for _ in range(2)] + [(height, True), (height, False)]
    times = [10.0 * (i + 1) for i in range(len(frames))]
    meshes = list(dict.fromkeys(frames))
    first = [frames.index(mesh) for mesh in meshes]
    stem = f"{part.prefix}mechanical"
    for number, (upto, plate) in enumerate(meshes, start=1):
        points, cells = part_mesh(part, upto, plate=plate)
        (results / f"{stem}_{number}.geo").write_bytes(write_geometry(points, cells, part.dialect))
    for number, (upto, plate) in enumerate(frames, start=1):
        points, cells = part_mesh(part, upto, plate=plate)
        for name, (_, short, _, location) in VARIABLES.items():
            data = write_variable(
                np.asarray(field_values(part, name, points, cells, number - 1)),
                part.dialect,
                location=location,
                description=f"Nodal {name}",
            )
            (results / f"{stem}00_{number}.{short}.ens").write_bytes(data)
    sets = {
        1: TimeSet(tuple(times), tuple(range(1, len(frames) + 1))),
        2: TimeSet(tuple(times[i] for i in first), tuple(range(1, len(meshes) + 1))),
    }
    for path, where in ((results / f"{stem}.case", "./"), (root / f"{stem}.case", "results/")):
        variables = {
            name: Variable(name, kind, location, f"{where}{stem}00_*.{short}.ens", 1)  # type: ignore[arg-type]
            for name, (kind, short, _, location) in VARIABLES.items()
        }
        path.write_bytes(write_case_file(CaseFile(f"{where}{stem}_*.geo", 2, variables, sets)))
    written = f"Finished writing file results\\{stem}.case\n"
    increments = written * (2 * len(tops)) + " *COOL time increment\n" + written * 2
    log = LOG.format(prefix=part.prefix, material=part.material, increments=increments, verdict=part.verdict)
    (root / f"{stem}.out").write_text(log, encoding="utf-8")
    (root / f"{stem}.in").write_text(INPUT.format(stl=part.stl), encoding="utf-8")
    (root / part.stl).write_bytes(b"solid\nendsolid\n")
    return root


def zip_folder(archive: Path, folder: Path, *, inside: str = "SandBox") -> Path:
    """Pack a folder of cases as NetFabb batches are shipped; returns the archive."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target.write(path, f"{inside}/{path.relative_to(folder).as_posix()}")
    return archive
