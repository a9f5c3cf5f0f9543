"""`CaseRecord`: everything known of a case that isn't an array, failures included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Final

from lpbf_data.case.case import Scalar
from lpbf_data.case.statistics import FieldStatistics
from lpbf_data.errors import FailureReason
from lpbf_data.remarks import Remark

OWN_SOLVER: Final = "-lpbf"
"""How `RunInfo.solver_version` ends where this project's simulator made the case, not NetFabb."""


@dataclass(frozen=True, slots=True)
class SourceRef:
    """Where a case was read from, without any local path.

    Attributes:
        archive: File name of the archive or of the folder given as the source.
        member: Path of the case inside it, with forward slashes.
        source_bytes: Size of the files that were read.
        source_digest: SHA-256 over name, size and CRC-32 of each of those files; the same for a folder and its zip.
    """

    archive: str
    member: str
    source_bytes: int | None = None
    source_digest: str | None = None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """How a case was simulated, from its log and input file; None for what they don't state.

    Attributes:
        solver_version: Version of the solver.
        solver_build: Build of the solver.
        material: Material name as the solver logs it.
        machine: Machine, from the label of the process parameters.
        process: Label of the process parameters.
        layer_thickness: Powder layer in mm.
        layers_per_element: Powder layers that one element spans.
        recoater_tolerance: Clearance in percent of a layer below which the solver reports interference.
        supports: Whether any element of the build is a support structure.
        num_frames: Number of frames written.
        stl: File name of the part's surface.
        tensor_order: Order in which the files have the components of symmetric tensors, such as "xx yy zz xy yz xz";
            stores have them in the order of the schema.
        tensor_order_basis: Why they were read so: "solver" (its known order, nothing to check it by), "checked" (it
            gives the principal stresses in the same files), "data" (the principal stresses, against the solver's known
            order), "unconfirmed" (the solver's known order; the principal stresses fit neither).
        family: Family that this project's simulator drew the part from.
        draw: Name of the draw that accepted the part, one of `pipelines.simulate --draw`.
        weight: 1 over the probability with which the draw accepts a part like it; weighted means over accepted parts
            are those over all parts that were drawn and lie within the published limits.
    """

    solver_version: str | None = None
    solver_build: str | None = None
    material: str | None = None
    machine: str | None = None
    process: str | None = None
    layer_thickness: float | None = None
    layers_per_element: int | None = None
    recoater_tolerance: float | None = None
    supports: bool | None = None
    num_frames: int | None = None
    stl: str | None = None
    tensor_order: str | None = None
    tensor_order_basis: str | None = None
    family: str | None = None
    draw: str | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Measures:
    """Scalars measured on one case.

    Attributes:
        num_points: Points of the finished part.
        num_edges: Columns of `edge_index`: every edge counted in both directions.
        num_cells: Hexahedra.
        aspect_ratio_mean: Mean over the cells of longest over shortest edge.
        aspect_ratio_max: Maximum of the same.
        height: Extent along z in mm.
        displacement_z_max: Largest Z displacement in mm, signed (upward).
        displacement_z_abs_max: Largest Z displacement in mm, by absolute value.
        displacement_max: Largest displacement magnitude in mm.
        von_mises_stress_max: Largest von Mises stress in MPa.
        recoater_clearance_min: Least recoater clearance over the build, percent of a layer.
        recoater_clearance_min_height: Height at which it occurs, mm; None when no clearance was below 100 %.
        recoater_interference: Whether that clearance is below the tolerance.
    """

    num_points: int
    num_edges: int
    num_cells: int
    aspect_ratio_mean: float
    aspect_ratio_max: float
    height: float
    displacement_z_max: float
    displacement_z_abs_max: float
    displacement_max: float
    von_mises_stress_max: float
    recoater_clearance_min: float
    recoater_clearance_min_height: float | None
    recoater_interference: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a case is unusable: reason, a sentence, and the file and byte at fault."""

    failure_reason: FailureReason
    failure_detail: str
    failure_path: str | None = None
    failure_offset: int | None = None

    @property
    def description(self) -> str:
        """The sentence, with file and byte in brackets where they are known."""
        parts = [self.failure_path or "", "" if self.failure_offset is None else f"byte {self.failure_offset}"]
        where = ", ".join(filter(None, parts))
        return f"{self.failure_detail} ({where})" if where else self.failure_detail


@dataclass(frozen=True, slots=True)
class Rejection:
    """One filter criterion that a case doesn't meet, with its value and the limit."""

    criterion: str
    value: float
    limit: float


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a kept case is stored: split, shard, row, and Parquet file and Zarr part with size and SHA-256."""

    split: str
    shard: int
    row: int
    parquet_file: str | None = None
    parquet_bytes: int | None = None
    parquet_sha256: str | None = None
    zarr_part: str | None = None
    zarr_bytes: int | None = None
    zarr_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class CaseRecord:
    """One row of the manifest.

    A case is either failed (`failure` is set), rejected (`rejections` isn't empty) or kept (`placement` is set once
    it has been written).

    Attributes:
        case_id: Name of the case.
        source: Where it was read from.
        design_id: The design it belongs to; bodies of one design share it.
        run: How it was simulated.
        measures: What was measured; None for a failed case.
        statistics: Column name (say "displacement_z") to statistics of the values.
        geometry_digests: Three hashes of the mesh up to translation, uniform scale and the symmetries of a square build
            plate; two cases have the same geometry when they share one. Their version is in front ("2:…"); those
            without one differ between mirrored meshes.
        failure: Why it failed.
        rejections: Filter criteria it doesn't meet.
        placement: Where it lies in the data set.
        package_version: Version of this package that measured it.
        remarks: What was guessed, changed, left out or repaired when it was read.
        num_points: Its points, where nothing else was measured: a case that is no printed part.
    """

    case_id: str
    source: SourceRef
    design_id: str | None = None
    run: RunInfo = field(default_factory=RunInfo)
    measures: Measures | None = None
    statistics: Mapping[str, FieldStatistics] = field(default_factory=dict)
    geometry_digests: tuple[str, ...] = ()
    failure: Failure | None = None
    rejections: tuple[Rejection, ...] = ()
    placement: Placement | None = None
    package_version: str | None = None
    remarks: tuple[Remark, ...] = ()
    num_points: int | None = None

    @property
    def status(self) -> str:
        """One of "failed", "rejected" and "kept"."""
        if self.failure is not None:
            return "failed"
        return "rejected" if self.rejections else "kept"


def is_case_id(name: str | None) -> bool:
    r"""Whether a kept case can have this id: one that can name a file.

    >>> [is_case_id(name) for name in ("300_11b839ff_1", "", "..", "../a", "a\\b")]
    [True, False, False, False, False]
    """
    return name is not None and name not in ("", ".", "..") and not any(sign in name for sign in "/\\\0")


_SHARED_RUN_INFO: Final = ("solver_version", "material", "machine", "layer_thickness", "recoater_tolerance")

ATTRIBUTE_TYPES: Final[dict[str, type]] = {
    "design_id": str,
    **{f.name: {"int": int, "float": float, "bool": bool}[str(f.type).split(" | ")[0]] for f in fields(Measures)},
    "solver_version": str,
    "material": str,
    "machine": str,
    "layer_thickness": float,
    "recoater_tolerance": float,
}
"""Scalars that travel with a case into every shard, and their types; any may be unknown (None)."""


def attributes_of(record: CaseRecord) -> dict[str, Scalar]:
    """The scalars of a record that are stored beside its arrays, in the order of ATTRIBUTE_TYPES."""
    flat: dict[str, Scalar] = {"design_id": record.design_id}
    if record.measures is not None:
        flat |= asdict(record.measures)
    run = asdict(record.run)
    flat |= {name: run[name] for name in _SHARED_RUN_INFO}
    return {name: flat.get(name) for name in ATTRIBUTE_TYPES}
