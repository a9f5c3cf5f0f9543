"""A run's results as files in NetFabb's form: what [netfabb](../netfabb/run.py) reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.cached_property import cached_property
from lpbf_data.case.schema import FIELDS, FULL_CLEARANCE, SYMMETRIC_TENSOR
from lpbf_data.case.tensor_order import reorder
from lpbf_data.geometry.closed_surface import Surface
from lpbf_data.geometry.stl import write_stl
from pipelines.ensight import (
    CaseFile,
    Dialect,
    Encoding,
    TimeSet,
    Variable,
    VariableKind,
    write_case_file,
    write_geometry,
    write_variable,
)
from pipelines.netfabb.run import NETFABB_ORDER, VARIABLES
from pipelines.simulation.choices import EncodingName, Results
from pipelines.simulation.physics.build_plate import PlatedMesh, add_build_plate
from pipelines.simulation.physics.build_simulation import BuildSimulation, Frame
from pipelines.simulation.physics.elements import STRAINS
from pipelines.simulation.physics.fields import principal_stresses, von_mises
from pipelines.simulation.results.identity import GENERATOR, SOLVER_VERSION
from pipelines.simulation.results.run_log import RunNames

_SUFFIXES: Final[Mapping[str, str]] = {
    "displacement": "dis",
    "cauchy_stress": "sig",
    "von_mises_stress": "svm",
    "principal_stress_max": "sp1",
    "principal_stress_mid": "sp2",
    "principal_stress_min": "sp3",
    "principal_stress_direction_max": "sd1",
    "principal_stress_direction_mid": "sd2",
    "principal_stress_direction_min": "sd3",
    "elastic_strain": "ept",
    "temperature": "tmp",
    "structure_type": "typ",
    "recoater_clearance": "rct",
    "recoater_status": "rcd",
}
"""Ending of each field's files, in the order in which NetFabb's case file lists them."""

_LEAN: Final = ("displacement", "von_mises_stress", "temperature", "recoater_clearance")
"""Fields that a data set is built from."""

_KINDS: Final[Mapping[int, VariableKind]] = {1: "scalar", 3: "vector", 6: "tensor symm"}
_PLATE, _PART = 0.0, 2.0
_STRUCTURE_TYPES: Final = {
    "-1": "Unsupported volume",
    "0": "Build Plate",
    "1": "Powder",
    "2": "Part",
    "3": "Homogenized part",
    "4": "Support Structure",
    "5": "Failed Support Structure",
}


def _description(field_name: str) -> str:
    location = "Nodal" if FIELDS[field_name].location == "point" else "Elemental"
    return f"{location} {VARIABLES[field_name]}"


def _ranges(values: NDArray[np.float32]) -> dict[str, list[float]] | list[float]:
    """Least and largest values, by component for vectors and tensors."""

    def of(array: NDArray[np.float32]) -> list[float]:
        return [float(array.min()), float(array.max())]

    if values.ndim == 1:
        return of(values)
    if values.shape[1] == 6:
        ordered = reorder(values, STRAINS, NETFABB_ORDER)
        return {name: of(ordered[:, k]) for k, name in enumerate(("x", "y", "z", "xy", "yz", "zx"))}
    lengths = np.linalg.norm(values, axis=1).astype(np.float32)
    return {"magnitude": of(lengths)} | {name: of(values[:, k]) for k, name in enumerate("xyz")}


def _widen(old: Any, new: Any) -> Any:
    """Ranges that hold both."""
    if isinstance(new, list):
        return [min(old[0], new[0]), max(old[1], new[1])]
    return {name: _widen(old[name], new[name]) for name in new}


@dataclass
class ResultWriter:
    """Writes a run frame by frame; files that speak of all frames come last.

    Args:
        folder: Folder of the case.
        names: Names of its files.
        simulation: The planned build.
        encoding: Binary or text.
        results: All files, or those alone that a data set is built from.
    """

    folder: Path
    names: RunNames
    simulation: BuildSimulation
    encoding: EncodingName = "binary"
    results: Results = "whole"
    _times: list[float] = field(default_factory=list)
    _geometry_times: list[float] = field(default_factory=list)
    _extremes: dict[str, Any] = field(default_factory=dict)
    _least_clearance: NDArray[np.float64] | None = None

    @cached_property
    def plated(self) -> PlatedMesh:
        """The part on its plate."""
        return add_build_plate(self.simulation.mesh)

    @property
    def _dialect(self) -> Dialect:
        return Dialect(Encoding.BINARY if self.encoding == "binary" else Encoding.ASCII)

    @property
    def _suffixes(self) -> Mapping[str, str]:
        names = _SUFFIXES if self.results == "whole" else _LEAN
        return {name: suffix for name, suffix in _SUFFIXES.items() if name in names}

    def _result(self, name: str) -> Path:
        return self.folder / "results" / f"{self.names.prefix}{name}"

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run.

        Args:
            name: Its name after the prefix.
            text: Its content.
        """
        (self.folder / f"{self.names.prefix}{name}").write_bytes(text.encode("utf-8"))

    def write_setup(self, surface: Surface) -> None:
        """Write what is known before the first layer: the surface and the mesh of part and plate.

        Args:
            surface: The part's surface.
        """
        (self.folder / "results").mkdir(parents=True, exist_ok=True)
        write_stl(self.folder / self.names.stl, surface)
        mesh = self.plated
        for kind, ending in (("mechanical", "geo"), ("thermal", "geoc")):
            self._write_geometry(f"{kind}_0.{ending}", mesh.points, mesh.cells)
            self._write_variable("structure_type", 0, self._types(self.simulation.mesh.num_cells), kind)
            variables = (("Structure_type", "scalar", "cell", "typ"),)
            self._write_case(f"{kind}_mesh_geom", kind, ending, variables, ([0.0], [0]), ([0.0], [0]), inner=False)

    def _types(self, num_cells: int) -> NDArray[np.float32]:
        types = np.full(len(self.plated.plate_cells) + num_cells, _PART, dtype=np.float32)
        types[: len(self.plated.plate_cells)] = _PLATE
        return types

    def _write_geometry(self, name: str, points: NDArray[np.float32], cells: NDArray[np.int32]) -> None:
        description = f"EnSight Gold Geometry File, generated by {GENERATOR}"
        self._result(name).write_bytes(write_geometry(points, cells, self._dialect, description=description))

    def _write_variable(
        self, field_name: str, frame: int, values: NDArray[np.float32], kind: str = "mechanical"
    ) -> None:
        self._write_values(
            f"{kind}00_{frame}.{_SUFFIXES[field_name]}.ens", _description(field_name), values, field_name
        )

    def _write_values(
        self, name: str, description: str, values: NDArray[np.float32], field_name: str = "temperature"
    ) -> None:
        if FIELDS[field_name].components == SYMMETRIC_TENSOR:
            values = reorder(values, STRAINS, NETFABB_ORDER)
        data = write_variable(values, self._dialect, location=FIELDS[field_name].location, description=description)
        self._result(name).write_bytes(data)

    def write_frame(self, frame: Frame) -> None:
        """Write a frame, with its geometry when the mesh has changed.

        Args:
            frame: The next frame.
        """
        part = self.simulation.mesh
        with_plate = frame.phase != "cut"
        self._times.append(frame.time)
        if frame.phase != "shrunk":
            self._geometry_times.append(frame.time)
            number, nodes = len(self._geometry_times), len(self.plated.plate_points)
            if with_plate:
                cells = self.plated.cells[: len(self.plated.plate_cells) + frame.num_cells]
                self._write_geometry(f"mechanical_{number}.geo", self.plated.points[: nodes + frame.num_points], cells)
            else:
                self._write_geometry(f"mechanical_{number}.geo", part.points.astype(np.float32), part.cells)
        for name, values in self._fields(frame, with_plate=with_plate).items():
            self._write_variable(name, frame.number, values)
            ranges = _ranges(values)
            self._extremes[name] = _widen(self._extremes.get(name, ranges), ranges)
        self._remember_clearance(frame)

    def _remember_clearance(self, frame: Frame) -> None:
        least = np.full(self.simulation.mesh.num_points, FULL_CLEARANCE)
        least[: frame.num_points] = frame.clearance
        earlier = self._least_clearance
        self._least_clearance = least if earlier is None else np.minimum(earlier, least)

    def _fields(self, frame: Frame, *, with_plate: bool) -> dict[str, NDArray[np.float32]]:
        """The fields that are written of a frame, plate first; stresses in the plate aren't computed and are zero."""
        state = frame.state
        of_part: dict[str, NDArray[Any]] = {
            "displacement": state.displacement,
            "cauchy_stress": state.stress,
            "von_mises_stress": von_mises(state.stress),
            # NetFabb's "Elastic_strain" is mechanical strain (without thermal expansion), with engineering shears.
            "elastic_strain": state.strain + state.inherent,
            "temperature": frame.temperature,
            "recoater_clearance": frame.clearance,
            "recoater_status": frame.clearance < self.simulation.process.recoater_tolerance,
        }
        if self.results == "whole":
            principal, directions = principal_stresses(state.stress)
            for k, size in enumerate(("max", "mid", "min")):
                of_part[f"principal_stress_{size}"] = principal[:, k]
                of_part[f"principal_stress_direction_{size}"] = directions[:, k]
        if not with_plate:
            types = np.full(frame.num_cells, _PART, dtype=np.float32)
            return {n: of_part.get(n, types).astype(np.float32) for n in self._suffixes}
        of_plate = self._plate_fields(frame)
        whole = {
            name: np.concatenate([of_plate.get(name, np.zeros((self._plate_size, *values.shape[1:]))), values])
            for name, values in of_part.items()
            if name in self._suffixes
        }
        whole["structure_type"] = self._types(frame.num_cells)
        return {name: whole[name].astype(np.float32) for name in self._suffixes}

    @property
    def _plate_size(self) -> int:
        return len(self.plated.plate_points)

    def _plate_fields(self, frame: Frame) -> dict[str, NDArray[np.float64]]:
        levels = self.plated.plate_levels
        fields = {
            "displacement": self.simulation.plate.at(self.plated.plate_points, frame.state.plate),
            "temperature": frame.plate_temperature[levels],
            "recoater_clearance": np.full(self._plate_size, FULL_CLEARANCE),
        }
        for k, size in enumerate(("max", "mid", "min")):
            fields[f"principal_stress_direction_{size}"] = np.tile(np.eye(3)[k], (self._plate_size, 1))
        return fields

    def write_results(self) -> None:
        """Write the case files for the frames so far, and what sums them up; without frames there are none."""
        if not self._times:
            return
        variables = tuple(
            (VARIABLES[name], _KINDS[FIELDS[name].num_components], FIELDS[name].location, suffix)
            for name, suffix in self._suffixes.items()
        )
        steps = (self._times, list(range(1, len(self._times) + 1)))
        geometries = (self._geometry_times, list(range(1, len(self._geometry_times) + 1)))
        self._write_case("mechanical", "mechanical", "geo", variables, steps, geometries)
        self.write_text("mechanical.simresult", self._summary("mechanical", self._extremes))

    def write_global_clearance(self) -> None:
        """Write the least recoater clearance over the build at every node of the part."""
        assert self._least_clearance is not None
        part, number = self.simulation.mesh, len(self._times)
        tolerance = self.simulation.process.recoater_tolerance
        self._write_geometry("mechanical_0.geof", part.points.astype(np.float32), part.cells)
        for suffix, what, values in (
            ("grc", "Global_recoater_clearance_%", self._least_clearance),
            ("grd", "Global_recoater_status", self._least_clearance < tolerance),
        ):
            self._write_values(f"mechanical00_{number}.{suffix}.ens", f"Nodal {what}", values.astype(np.float32))
        time = self._times[-1:]
        self._write_case(
            "mechanical_f",
            "mechanical",
            "geof",
            (
                ("Global_recoater_clearance_%", "scalar", "point", "grc"),
                ("Global_recoater_status", "scalar", "point", "grd"),
            ),
            (time, [number]),
            (time, [0]),
        )

    def write_thermal(self) -> None:
        """Write the temperature at the end of every group of layers, and that at which each node was buried."""
        if self.results == "lean":
            return
        groups, nodes = self.simulation.groups, self._plate_size
        buried = np.full(self.simulation.mesh.num_points, self.simulation.process.ambient)
        first = 0
        extremes: Any = None
        for group, heat in zip(groups, self.simulation.temperatures, strict=True):
            values = np.concatenate([heat.plate[self.plated.plate_levels], heat.nodes]).astype(np.float32)
            cells = len(self.plated.plate_cells) + int((self.simulation.mesh.indices[:, 2] < group.end_plane).sum())
            self._write_geometry(
                f"thermal_{group.number}.geoc", self.plated.points[: nodes + len(heat.nodes)], self.plated.cells[:cells]
            )
            self._write_variable("temperature", 2 * group.number, values, "thermal")
            extremes = _ranges(values) if extremes is None else _widen(extremes, _ranges(values))
            buried[first : len(heat.nodes)] = heat.nodes[first:]
            first = len(heat.nodes)
        ends = [group.end for group in groups]
        numbers = [group.number for group in groups]
        temperature = (("Temperature", "scalar", "point", "tmp"),)
        steps = (ends, [2 * number for number in numbers])
        self._write_case("thermal_c", "thermal", "geoc", temperature, steps, (ends, numbers))
        self._write_geometry(
            "thermal_0.geo", self.simulation.mesh.points.astype(np.float32), self.simulation.mesh.cells
        )
        self._write_values(
            f"thermal00_{2 * len(groups)}.us1.ens", "Nodal Interlayer_Temperature1", buried.astype(np.float32)
        )
        interlayer = (("Interlayer_Temperature", "scalar", "point", "us1"),)
        self._write_case("thermal", "thermal", "geo", interlayer, (ends[-1:], [2 * len(groups)]), (ends[-1:], [0]))
        self.write_text("thermal.simresult", self._summary("thermal", {"temperature": extremes}))

    def _write_case(
        self,
        name: str,
        kind: str,
        ending: str,
        variables: Sequence[tuple[str, str, str, str]],
        steps: tuple[Sequence[float], Sequence[int]],
        geometries: tuple[Sequence[float], Sequence[int]],
        *,
        inner: bool = True,
    ) -> None:
        """Write a case file beside `results/` and, with other paths, inside it."""
        for folder, start in ((self.folder, "results/"), *([(self.folder / "results", "./")] if inner else [])):
            stem = f"{start}{self.names.prefix}{kind}"
            case = CaseFile(
                f"{stem}_*.{ending}",
                2,
                {
                    v: Variable(v, how, where, f"{stem}00_*.{suffix}.ens", 1)  # type: ignore[arg-type]
                    for v, how, where, suffix in variables
                },
                {1: TimeSet(tuple(steps[0]), tuple(steps[1])), 2: TimeSet(tuple(geometries[0]), tuple(geometries[1]))},
            )
            (folder / f"{self.names.prefix}{name}.case").write_bytes(write_case_file(case))

    def _summary(self, kind: str, extremes: Mapping[str, Any]) -> str:
        """Content of the .simresult file: the case files and the range of every variable."""
        fine = f"{kind}_f" if kind == "mechanical" else kind
        coarse = kind if kind == "mechanical" else f"{kind}_c"
        files = ((coarse, "Coarse"), (fine, "Fine"), (f"{kind}_mesh_geom", "Mesh preview"))
        content = {
            "schema": "com.autodesk.pan.simulationresult-1.0",
            "generator": GENERATOR,
            "version": SOLVER_VERSION,
            "case_files": [
                {"name": f"{self.names.prefix}{name}.case", "path": ".", "type": what} for name, what in files
            ],
            "ensight_ranges": {VARIABLES[name]: ranges for name, ranges in extremes.items()},
            "structure_type": _STRUCTURE_TYPES,
        }
        return json.dumps(content, indent="\t") + "\n"
