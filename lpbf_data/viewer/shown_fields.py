"""Which columns of a case the 3D view shows, and what they are called for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.case import Case
from lpbf_data.case.schema import FIELDS, FieldSpec

_LABELS: Final = {
    "displacement_x": "X displacement",
    "displacement_y": "Y displacement",
    "displacement_z": "Z displacement",
    "build_clearance_min": "Least recoater clearance over the build",
    "build_displacement_z_max": "Largest upward displacement over the build",
}
_UNITS: Final = {"degC": "°C", "percent": "% of a layer", "1": ""}


@dataclass(frozen=True, slots=True)
class ShownField:
    """A column that the 3D view can show.

    Attributes:
        column: Its name in the data set.
        label: Name for people.
        unit: Unit for people.
        signed: Whether zero has a meaning of its own, with negative values below and positive ones above it.
    """

    column: str
    label: str
    unit: str
    signed: bool


def shown_fields(specs: Iterable[FieldSpec]) -> tuple[ShownField, ...]:
    """Columns worth colouring a surface by: displacement by component, and every scalar at points; Z comes first.

    Args:
        specs: Fields that are stored.
    """
    found = []
    for spec in specs:
        if spec.location == "point" and (spec.name == "displacement" or not spec.components):
            for column in spec.columns:
                label = _LABELS.get(column) or spec.description[0].upper() + spec.description[1:]
                signed = "displacement" in column or column.startswith("principal_stress")
                found.append(ShownField(column, label, _UNITS.get(spec.unit, spec.unit), signed))
    return tuple(sorted(found, key=lambda field: field.column != "displacement_z"))


def column_of(case: Case, column: str) -> NDArray[np.float32]:
    """One column of a case, [N]."""
    for spec in FIELDS.values():
        if column in spec.columns:
            values = case.fields[spec.name]
            return values[:, spec.columns.index(column)] if spec.components else values
    raise KeyError(column)


def fields_of(columns: Iterable[str]) -> list[str]:
    """Names of the fields that some columns belong to."""
    requested = set(columns)
    return [spec.name for spec in FIELDS.values() if requested & set(spec.columns)]
