"""Targets and input features of a model, by name: fields of the data set at points, or single components of them.

Input features may also be features of the shape, which are derived from points and cells. Names are those of printed
parts, or those that a data set of other points states in its schema.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lpbf_data.case.feature_schema import SHAPE_FEATURES, resolve_features
from lpbf_data.case.point_schema import PointSchema
from lpbf_data.case.schema import FIELDS, FieldSpec
from lpbf_data.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class PointField:
    """A field at points or a feature of the shape, or one component of it: a target or an input feature.

    Attributes:
        name: Name of the field, or of the component's column.
        field: Name of the field or feature of the shape.
        components: Indices of the components.
        columns: Their columns in the data set.
        unit: Their unit.
    """

    name: str
    field: str
    components: tuple[int, ...]
    columns: tuple[str, ...]
    unit: str

    @property
    def width(self) -> int:
        """Number of components."""
        return len(self.components)

    @property
    def is_shape_feature(self) -> bool:
        """Whether it is a feature of the shape, derived from points and cells instead of stored."""
        return self.field in SHAPE_FEATURES


def resolve_target(name: str, point_schema: PointSchema | None = None) -> PointField:
    """Find a field or component by its name.

    Args:
        name: The name.
        point_schema: Coordinates and fields of a data set that isn't one of printed parts.

    Raises:
        UsageError: If there is none of that name, or it belongs to cells.

    >>> resolve_target("displacement_z").components, resolve_target("displacement").width
    ((2,), 3)
    """
    specs = _stored(point_schema)
    if field := _find(name, specs):
        return field
    known = ", ".join(spec.name for spec in specs if spec.location == "point")
    suggestion = did_you_mean(name, _names_of(specs))
    example = ", such as displacement_z" if point_schema is None else ""
    raise UsageError(
        f"there is no field {name!r} at points{_of(point_schema)}{suggestion}; known are {known}, and their "
        f"components{example}"
    )


def _stored(point_schema: PointSchema | None) -> tuple[FieldSpec, ...]:
    return tuple(FIELDS.values()) if point_schema is None else point_schema.fields


def _of(point_schema: PointSchema | None) -> str:
    return "" if point_schema is None else f" of {point_schema.name}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is most like another one, as a question; nothing where none is like it.

    >>> did_you_mean("build_clearance", ["displacement", "build_clearance_min"])
    ' (did you mean build_clearance_min?)'
    """
    suggestion = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {suggestion[0]}?)" if suggestion else ""


def _names_of(specs: Iterable[FieldSpec]) -> list[str]:
    """Names of fields at points, and of their components."""
    return [name for spec in specs if spec.location == "point" for name in dict.fromkeys((spec.name, *spec.columns))]


def _find(name: str, specs: Iterable[FieldSpec]) -> PointField | None:
    for spec in specs:
        if spec.location != "point":
            continue
        if name == spec.name:
            return PointField(name, spec.name, tuple(range(spec.num_components)), spec.columns, spec.unit)
        if name in spec.columns:
            return PointField(name, spec.name, (spec.columns.index(name),), (name,), spec.unit)
    return None


def resolve_inputs(
    names: Sequence[str], option: str, point_schema: PointSchema | None = None
) -> tuple[PointField, ...]:
    """Find the input features of a model: fields, components, and features of the shape, "geometry" for all of those.

    Args:
        names: The names.
        option: The command-line option that named them, for the error message.
        point_schema: Coordinates and fields of a data set that isn't one of printed parts, and has no features of the
            shape.

    Raises:
        UsageError: If one is unknown or named twice, with the option that named it.

    >>> [field.name for field in resolve_inputs(["temperature", "slice_offset"], "--features")]
    ['temperature', 'slice_offset']
    """
    if point_schema is not None:
        return _inputs_of_points(names, option, point_schema)
    spelled_names = [
        n for name in names for n in ([f.name for f in resolve_features(name)] if name == "geometry" else [name])
    ]
    _check_twice(spelled_names, option)
    fields = []
    for name in spelled_names:
        field = _find(name, (*FIELDS.values(), *SHAPE_FEATURES.values()))
        if field is None:
            known = ", ".join(spec.name for spec in FIELDS.values() if spec.location == "point")
            suggestion = did_you_mean(name, ["geometry", *_names_of((*FIELDS.values(), *SHAPE_FEATURES.values()))])
            raise UsageError(
                f"there is nothing called {name!r} at points{suggestion}; known are the fields {known}, the features "
                f"of the shape {', '.join(SHAPE_FEATURES)} (geometry: all of them), and their components"
            )
        fields.append(field)
    return tuple(fields)


def _inputs_of_points(names: Sequence[str], option: str, point_schema: PointSchema) -> tuple[PointField, ...]:
    known_names = [spec.name for spec in point_schema.fields]
    if of_shape := [
        name for name in names if name == "geometry" or (name in SHAPE_FEATURES and name not in known_names)
    ]:
        raise UsageError(
            f"{option} names {of_shape[0]}, which is derived from the hexahedra of a printed part; {point_schema.name} "
            f"is a data set of points without cells, whose fields are {', '.join(known_names)}"
        )
    return resolve_targets(names, option, point_schema)


def _check_twice(names: Sequence[str], option: str) -> None:
    if len(set(names)) != len(names):
        raise UsageError(f"{option} names a field twice: {', '.join(names)}")


def resolve_targets(
    names: Sequence[str], option: str, point_schema: PointSchema | None = None
) -> tuple[PointField, ...]:
    """Find several fields or components.

    Args:
        names: The names.
        option: The command-line option that named them, for the error message.
        point_schema: Coordinates and fields of a data set that isn't one of printed parts.

    Raises:
        UsageError: If one is unknown or named twice, with the option that named it.
    """
    _check_twice(names, option)
    return tuple(resolve_target(name, point_schema) for name in names)


def stack_fields(fields: Mapping[str, Tensor], targets: Sequence[PointField]) -> Tensor:
    """Values of several targets side by side.

    Args:
        fields: Field name to values, [ΣN, components] or [ΣN].
        targets: Fields or components to take.

    Returns:
        [ΣN, T].
    """
    import torch

    columns = []
    for target in targets:
        values = fields[target.field]
        columns.append(values.reshape(len(values), -1)[:, list(target.components)])
    return torch.cat(columns, dim=1)


def column_names(targets: Sequence[PointField]) -> list[str]:
    """Names of the numbers of a point, in the order of `stack_fields`."""
    return [column for target in targets for column in target.columns]


def columns_of(fields: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Column to its values at the points, [N].

    Args:
        fields: Target to values, [N, components].
    """
    targets = resolve_targets(tuple(fields), "the checkpoint")
    return {name: fields[target.name][:, k] for target in targets for k, name in enumerate(target.columns)}


def spans(targets: Sequence[PointField]) -> dict[str, slice]:
    """Target name to its columns in what `stack_fields` returns."""
    slices: dict[str, slice] = {}
    start = 0
    for target in targets:
        slices[target.name] = slice(start, start + target.width)
        start += target.width
    return slices
