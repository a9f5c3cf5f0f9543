"""The table of fields: names, components, units. Nothing else defines them.

Units: lengths in mm, stresses in MPa, temperatures in degrees Celsius, times in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from lpbf_data.case.tensor_order import ENSIGHT_ORDER
from lpbf_data.errors import UsageError

SCHEMA_VERSION: Final = 2
"""Version of what lies on disk; a reader refuses what is newer. The package's README says what each version changed."""

VECTOR: Final = ("x", "y", "z")
# The project's order in memory and in its stores; readers reorder files that have another one.
SYMMETRIC_TENSOR: Final = ENSIGHT_ORDER


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a case.

    Attributes:
        name: Name in every store and in Python.
        components: Suffixes of the components; empty for a scalar.
        unit: Unit, "1" where the quantity has none.
        location: Whether a value belongs to a point or to a cell.
        description: One line for people, the "long name" of the CF conventions.
    """

    name: str
    components: tuple[str, ...]
    unit: str
    location: Literal["point", "cell"]
    description: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names, one per component.

        >>> FIELDS["displacement"].columns
        ('displacement_x', 'displacement_y', 'displacement_z')
        """
        return tuple(f"{self.name}_{c}" for c in self.components) or (self.name,)

    @property
    def num_components(self) -> int:
        """Number of components, 1 for a scalar."""
        return len(self.components) or 1


_TABLE: Final = (
    FieldSpec("displacement", VECTOR, "mm", "point", "displacement after release from the build plate"),
    FieldSpec("temperature", (), "degC", "point", "temperature"),
    FieldSpec("von_mises_stress", (), "MPa", "point", "von Mises stress"),
    FieldSpec("cauchy_stress", SYMMETRIC_TENSOR, "MPa", "point", "Cauchy stress"),
    FieldSpec("principal_stress_max", (), "MPa", "point", "largest principal stress"),
    FieldSpec("principal_stress_mid", (), "MPa", "point", "middle principal stress"),
    FieldSpec("principal_stress_min", (), "MPa", "point", "smallest principal stress"),
    FieldSpec("principal_stress_direction_max", VECTOR, "1", "point", "direction of the largest principal stress"),
    FieldSpec("principal_stress_direction_mid", VECTOR, "1", "point", "direction of the middle principal stress"),
    FieldSpec("principal_stress_direction_min", VECTOR, "1", "point", "direction of the smallest principal stress"),
    FieldSpec(
        "elastic_strain", SYMMETRIC_TENSOR, "1", "point", "mechanical strain: elastic plus inherent; engineering shears"
    ),
    FieldSpec("recoater_clearance", (), "percent", "point", "recoater clearance, in percent of a layer"),
    FieldSpec("recoater_status", (), "1", "point", "recoater status: 1 where the clearance is below the tolerance"),
    FieldSpec("structure_type", (), "1", "cell", "structure type: 0 build plate, 1 powder, 2 part, 4 support"),
    FieldSpec(
        "build_clearance_min", (), "percent", "point", "least recoater clearance over the build, in percent of a layer"
    ),
    FieldSpec("build_displacement_z_max", (), "mm", "point", "largest upward displacement over the build"),
)

FIELDS: Final[dict[str, FieldSpec]] = {spec.name: spec for spec in _TABLE}
"""Every field by name."""

FULL_CLEARANCE: Final = 100.0
"""Recoater clearance of a surface that hasn't moved, percent of a layer; solvers write it where none was measured."""

DEFAULT_TOLERANCE: Final = 80.0
"""Clearance below which NetFabb reports interference unless its input says otherwise, percent of a layer."""

BUILD_VOLUME: Final = (30.0, 30.0, 60.0)
"""Half width, half depth and height of the build volume of the paper's parts (appendices C and G.2), mm.

x and y run from -30 to 30, z from 0 to 60; models divide coordinates by these numbers.
"""

BUILD_FIELDS: Final = ("build_clearance_min", "build_displacement_z_max")
"""Fields that reduce the whole build onto the finished part; stored with every selection."""

SOLVER_FIELDS: Final = tuple(name for name in FIELDS if name not in BUILD_FIELDS)
"""Fields that the solver writes for each frame."""

DEFAULT_FIELDS: Final = ("displacement", "temperature", "von_mises_stress")
"""Fields of the published data set, and the ones measured for every case."""


def resolve_fields(names: Iterable[str]) -> tuple[FieldSpec, ...]:
    """Turn a selection by name into specifications in the order of the table.

    The reductions over the build are always part of the result; "all" selects every field.

    Args:
        names: Field names, or the single word "all".

    Returns:
        The specifications, without repeats.

    Raises:
        UsageError: If a name is unknown.

    >>> [spec.name for spec in resolve_fields(["temperature"])]
    ['temperature', 'build_clearance_min', 'build_displacement_z_max']
    """
    requested = set(names)
    if "all" in requested:
        requested |= set(FIELDS)
        requested.discard("all")
    if unknown := sorted(requested - set(FIELDS)):
        raise UsageError(f"unknown field {', '.join(map(repr, unknown))}; known are: {', '.join(FIELDS)}")
    requested |= set(BUILD_FIELDS)
    return tuple(spec for spec in _TABLE if spec.name in requested)
