"""The table of features of a part's shape: names, components, units.

They are derived from points and cells by [shape_features][lpbf_data.geometry.shape_features.shape_features]; the fields
that a solver computes are in [schema][lpbf_data.case.schema].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lpbf_data.case.schema import FieldSpec
from lpbf_data.errors import UsageError

_LATERAL: Final = ("x", "y")
# Two values that have no sign: a mirror leaves them, exchanging x and y exchanges them.
_SIDES: Final = ("xx", "yy")


def _feature(name: str, components: tuple[str, ...], unit: str, description: str) -> FieldSpec:
    return FieldSpec(name, components, unit, "point", description)


_TABLE: Final = (
    _feature("solid_share_4mm", (), "1", "share of solid in a cube of 4 mm around the point"),
    _feature("solid_share_12mm", (), "1", "share of solid in a cube of 12 mm around the point"),
    _feature("solid_above", (), "mm", "solid straight above the point, up to the next gap"),
    _feature("column_foot", (), "mm", "height above the plate at which the solid below the point begins"),
    _feature("surface_distance", (), "mm", "distance to the surface of the part"),
    _feature("slice_area_log", (), "1", "natural logarithm of the solid area of the slice at the point, in mm²"),
    _feature("slice_growth", (), "1", "solid within 2.5 mm above less that below the point, over their sum"),
    _feature("part_above", (), "mm", "height of the part above the point"),
    _feature("volume_above", (), "1", "share of the part's volume that lies above the point"),
    _feature("footprint_log", (), "1", "natural logarithm of 1 mm² plus the area that stands on the plate, in mm²"),
    _feature("part_offset", _LATERAL, "mm", "position from the centroid of the part"),
    _feature("slice_offset", _LATERAL, "mm", "position from the centroid of the slice at the point"),
    _feature("part_radius", _SIDES, "mm", "radius of gyration of the part, along x and y"),
    _feature("slice_radius", _SIDES, "mm", "radius of gyration of the slice at the point, along x and y"),
    _feature("section_centroid", _SIDES, "mm", "height of the centroid of the sections normal to x and to y"),
    _feature("section_radius", _SIDES, "mm", "radius of gyration in z of the sections normal to x and to y"),
)

SHAPE_FEATURES: Final[dict[str, FieldSpec]] = {spec.name: spec for spec in _TABLE}
"""Every feature by name, with components, unit and description."""

FEATURES_VERSION: Final = 1
"""Increased when a feature's values change, so that a cache doesn't give those of earlier versions."""


def resolve_features(names: Iterable[str] | str) -> tuple[FieldSpec, ...]:
    """Turn a selection by name into specifications in the order of the table.

    Args:
        names: Names of features, or one; "geometry" stands for all of them.

    Raises:
        UsageError: If a name is unknown.

    >>> len(resolve_features(["geometry"])) == len(SHAPE_FEATURES)
    True
    """
    requested = {names} if isinstance(names, str) else set(names)
    if "geometry" in requested:
        requested = (requested - {"geometry"}) | set(SHAPE_FEATURES)
    if unknown := sorted(requested - set(SHAPE_FEATURES)):
        raise UsageError(
            f"unknown feature {', '.join(map(repr, unknown))}; known are: geometry for all, {', '.join(SHAPE_FEATURES)}"
        )
    return tuple(spec for spec in _TABLE if spec.name in requested)
