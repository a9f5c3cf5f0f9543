"""What a simulation was asked for, checked before any work starts."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from lpbf_data.errors import UsageError
from lpbf_data.geometry.surface_files import load_bodies
from lpbf_data.geometry.surface_formats import MILLIMETRES, SURFACE_SUFFIXES, Units, cad_advice
from lpbf_data.remarks import Remark, merge_remarks
from pipelines.simulation.case_task import KnownPart, SurfacePart
from pipelines.simulation.choices import POINT_LIMITS, DeviceName, DrawName, EncodingName, Naming, Results
from pipelines.simulation.materials.material import Material
from pipelines.simulation.materials.material_files import choose_material, material_values
from pipelines.simulation.parts.corpus import PartPlan, plan_corpus
from pipelines.simulation.parts.draws import DRAWS, CandidateStream, plan_streams
from pipelines.simulation.parts.earlier_parts import accepted_parts
from pipelines.simulation.parts.families import FAMILIES
from pipelines.simulation.parts.named_parts import digest_of_surface, named_part
from pipelines.simulation.results.identity import VERSION

_MAX_CASES: Final = 1_000_000
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class SimulationOptions:
    """Options as they were given.

    Attributes:
        cases: Number of parts.
        seed: Another seed gives other parts.
        points: Median number of points of a part.
        material: Name of the material, or a YAML file.
        families: Families of parts to draw from.
        stl: Surface files to simulate instead of drawn parts.
        encoding: Binary or text results.
        naming: File names of a batch or of an interactive run.
        archive: Whether cases are packed into zip archives.
        failure_rate: Share of cases that fail on purpose.
        units: Unit of lengths in surface files; None for what a file states, or mm.
        calibration: Name of a calibration; None for the material's own, `measured` for those in our table.
        draw: Name of the draw whose candidates are chosen by their simulation; None to take parts as they are planned.
        parts_of: Folder of an earlier simulation, whose accepted parts are meshed with other numbers of points.
        results: All result files, or those alone that a data set is built from.
        part: Parts that are known by name, to simulate instead of drawn ones.
        device: Where equations are solved.
    """

    cases: int = 24
    seed: int = 0
    points: int = 2000
    material: str = "Ti64"
    families: tuple[str, ...] = tuple(FAMILIES)
    stl: tuple[str, ...] = ()
    encoding: EncodingName = "binary"
    naming: Naming = "batch"
    archive: bool = False
    failure_rate: float = 0.0
    units: Units | None = None
    calibration: str | None = None
    draw: DrawName | None = None
    parts_of: str | None = None
    results: Results = "whole"
    part: tuple[str, ...] = ()
    device: DeviceName = "cpu"


@dataclass(frozen=True)
class SimulationRequest:
    """What was asked for, checked.

    Attributes:
        out: Folder of the results.
        options: Options that it came from.
        material: The material, calibrated.
        parts: Case ids and parts: drawn, chosen by their simulation, bodies of surface files, or known by name.
        surface_digests: SHA-256 of the file or the surface of each case; none for drawn parts.
        accepted: For parts of an earlier simulation, what it was asked for.
        remarks: What was guessed or repaired in surface files.
    """

    out: Path
    options: SimulationOptions
    material: Material
    parts: tuple[tuple[str, PartPlan | SurfacePart | KnownPart | CandidateStream], ...]
    surface_digests: Mapping[str, str]
    accepted: Mapping[str, Any] | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def configuration(self) -> dict[str, Any]:
        """What decides the content of a case; an output folder keeps to one. The number of cases isn't part of it."""
        content = asdict(self.options) | {"version": VERSION, "stl": dict(self.surface_digests)}
        content["material"], content["calibration"] = material_values(self.material), self.material.calibration.name
        content["families"] = [] if self.surface_digests else list(self.options.families)
        del content["cases"]
        content["parts_of"] = None if self.accepted is None else dict(self.accepted)  # not where they lie
        for name, before in (
            ("units", None),
            ("part", ()),
            ("draw", None),
            ("parts_of", None),
            ("results", "whole"),
            ("device", "cpu"),
        ):
            if content[name] == before:
                del content[name]  # folders of earlier versions had no such option
        return content


def check_request(out: str, options: SimulationOptions) -> SimulationRequest:
    """Check options before any work starts.

    Args:
        out: Folder of the results.
        options: The options.

    Raises:
        UsageError: If an option is impossible.
        GeometryError: If a surface file can't be simulated.
    """
    _check_numbers(options)
    _check_draw(options)
    _check_device(options.device)
    material = choose_material(options.material, options.calibration)
    known = ", ".join(FAMILIES)
    if unknown := sorted(set(options.families) - set(FAMILIES)):
        raise UsageError(f"unknown --families {', '.join(unknown)}; known are: {known}")
    if not options.families:
        raise UsageError(f"--families names none; known are: {known}")
    if options.stl or options.part:
        surfaces, remarks = _check_surfaces(options.stl, options.units)
        digests = {name: hashlib.sha256(part.path.read_bytes()).hexdigest() for name, part in surfaces}
        known_parts = _check_known_parts(options.part, digests)
        digests |= {name: digest_of_surface(named_part(name).surface()) for name, _ in known_parts}
        return SimulationRequest(Path(out), options, material, (*surfaces, *known_parts), digests, remarks=remarks)
    if options.parts_of is not None:
        streams, accepted = accepted_parts(Path(options.parts_of), options.cases, options.points)
        parts = tuple((stream.case_id, stream) for stream in streams)
        return SimulationRequest(Path(out), options, material, parts, {}, accepted=accepted)
    if options.draw is not None:
        streams = plan_streams(options.draw, options.seed, options.cases, options.points, options.families)
        return SimulationRequest(Path(out), options, material, tuple((one.case_id, one) for one in streams), {})
    plans = plan_corpus(options.seed, options.cases, options.points, options.families)
    return SimulationRequest(Path(out), options, material, tuple((plan.case_id, plan) for plan in plans), {})


def _check_numbers(options: SimulationOptions) -> None:
    if not 1 <= options.cases <= _MAX_CASES:
        raise UsageError(f"--cases must be 1 to {_MAX_CASES:,}, not {options.cases}")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed must be 0 or more, not {options.seed}")
    if not POINT_LIMITS[0] <= options.points <= POINT_LIMITS[1]:
        raise UsageError(f"--points must be {POINT_LIMITS[0]} to {POINT_LIMITS[1]:,}, not {options.points}")
    if not (math.isfinite(options.failure_rate) and 0 <= options.failure_rate <= 1):
        raise UsageError(f"--failure_rate must be 0 to 1, not {options.failure_rate}")


def _check_device(device: DeviceName) -> None:
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no GPU of NVIDIA here; simulate with --device cpu")


def _check_draw(options: SimulationOptions) -> None:
    if options.draw is not None and options.draw not in DRAWS:
        raise UsageError(f"unknown --draw {options.draw}; known are: {', '.join(DRAWS)}")
    ways = {
        "--stl": bool(options.stl),
        "--part": bool(options.part),
        "--draw": options.draw is not None,
        "--parts_of": options.parts_of is not None,
    }
    given = [name for name, is_given in ways.items() if is_given]
    if len(given) > 1 and given != ["--stl", "--part"]:
        raise UsageError(f"{' and '.join(given)} exclude each other: each says which parts are simulated")


def _check_known_parts(names: Sequence[str], taken: Mapping[str, str]) -> tuple[tuple[str, KnownPart], ...]:
    """One case per part, named like it."""
    for index, name in enumerate(names):
        named_part(name)
        if name in taken or name in names[:index]:
            raise UsageError(f"two parts give cases the name {name}; give one of them")
    return tuple((name, KnownPart(name)) for name in names)


def _check_surfaces(
    names: Sequence[str], units: Units | None
) -> tuple[tuple[tuple[str, SurfacePart], ...], tuple[Remark, ...]]:
    """One case per body: named as the file, and numbered where it holds several."""
    if units is not None and units not in MILLIMETRES:
        raise UsageError(f"unknown --units {units}; known are: {', '.join(MILLIMETRES)}")
    parts: dict[str, SurfacePart] = {}
    remarks: list[Remark] = []
    for name in names:
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"the surface file {name} doesn't exist")
        if path.suffix.lower() not in SURFACE_SUFFIXES:
            why = cad_advice(path.suffix) or f"surfaces are read from {', '.join(SURFACE_SUFFIXES)} files"
            raise UsageError(f"{name}: {why}")
        found = load_bodies(path, units)
        remarks += found.remarks
        stem = _UNSAFE.sub("_", path.stem).strip(".") or "part"
        for body in range(len(found.bodies)):
            case_id = stem if len(found.bodies) == 1 else f"{stem}_{body + 1}"
            if case_id in parts:
                raise UsageError(f"two surface files give cases the name {case_id}; rename one of them")
            parts[case_id] = SurfacePart(path.absolute(), body, units)
    return tuple(parts.items()), merge_remarks(remarks)
