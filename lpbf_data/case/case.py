"""`Case`: one simulated part, the value that crosses every boundary of the project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.schema import FIELDS, FieldSpec
from lpbf_data.errors import CaseError, FailureReason, SchemaError

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Case:
    """One simulated part in one state; frozen, and checked when it is made.

    Attributes:
        case_id: Name of the case, unique in a data set.
        points: Coordinates in mm, [N, 3] float32.
        cells: Zero-based hexahedra, [E, 8] int32.
        fields: Field name to values, float32: [N] or [E] for a scalar, [N, components] otherwise. Names and
            components are those of [FIELDS][lpbf_data.case.schema.FIELDS].
        attributes: What is known of the case beside its arrays: design, material, measures, and so on.

    Raises:
        CaseError: If an array has the wrong shape, an index is out of range, or a value isn't finite.
        SchemaError: If a field is unknown.
    """

    case_id: str
    points: NDArray[np.float32]
    cells: NDArray[np.int32]
    fields: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    attributes: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_mesh(self.case_id, self.points, self.cells)
        for name, values in self.fields.items():
            if name not in FIELDS:
                raise SchemaError(f"case {self.case_id}: unknown field {name!r}; known are: {', '.join(FIELDS)}")
            _check_field(self, FIELDS[name], values)
        object.__setattr__(self, "fields", MappingProxyType(dict(self.fields)))
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    def __reduce__(self) -> tuple[type[Case], tuple[Any, ...]]:
        # A mapping proxy doesn't pickle, a dict does.
        return Case, (self.case_id, self.points, self.cells, dict(self.fields), dict(self.attributes))

    @property
    def num_points(self) -> int:
        """Number of points N."""
        return len(self.points)

    @property
    def num_cells(self) -> int:
        """Number of cells E."""
        return len(self.cells)

    def planar(self, spec: FieldSpec) -> NDArray[np.float32]:
        """A field with its components first and contiguous, as the stores keep it.

        Args:
            spec: The field.

        Returns:
            [components, N or E] float32.
        """
        return np.ascontiguousarray(np.atleast_2d(self.fields[spec.name].T))


def _check_mesh(case_id: str, points: NDArray[Any], cells: NDArray[Any]) -> None:
    def fail(reason: FailureReason, detail: str) -> CaseError:
        return CaseError(reason, detail, case_id=case_id)

    if points.ndim != 2 or points.shape[1] != 3 or points.dtype != np.float32:
        raise fail(FailureReason.SIZE_MISMATCH, f"points must be [N, 3] float32, not {points.shape} {points.dtype}")
    if cells.ndim != 2 or cells.shape[1] != 8 or cells.dtype != np.int32:
        raise fail(FailureReason.SIZE_MISMATCH, f"cells must be [E, 8] int32, not {cells.shape} {cells.dtype}")
    if len(points) == 0 or len(cells) == 0:
        raise fail(FailureReason.EMPTY_MESH, f"the mesh has {len(points)} points and {len(cells)} cells")
    if not np.isfinite(points).all():
        raise fail(FailureReason.NON_FINITE, "a coordinate is not a finite number")
    if int(cells.min()) < 0 or int(cells.max()) >= len(points):
        detail = f"connectivity runs from {cells.min()} to {cells.max()}, outside 0 … {len(points) - 1}"
        raise fail(FailureReason.INDEX_OUT_OF_RANGE, detail)


def _check_field(case: Case, spec: FieldSpec, values: NDArray[Any]) -> None:
    count = case.num_points if spec.location == "point" else case.num_cells
    shape = (count, spec.num_components) if spec.components else (count,)
    if values.shape != shape or values.dtype != np.float32:
        detail = f"{spec.name} must be {shape} float32, not {values.shape} {values.dtype}"
        raise CaseError(FailureReason.SIZE_MISMATCH, detail, case_id=case.case_id)
    finite = np.isfinite(values)
    if not finite.all():
        where = int(np.flatnonzero(~finite.reshape(count, -1).all(axis=1))[0])
        detail = f"{spec.name} is not a finite number at {spec.location} {where}"
        raise CaseError(FailureReason.NON_FINITE, detail, case_id=case.case_id)
