"""What a model predicts, or is told beside the points: fields of the data set, or single components of them.

It may also be told features of the shape, which are derived from points and cells. Names are those of printed parts, or
those that a data set of other points brings along.
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
class Target:
    """A field or a feature of the shape, or one component of it.

    Attributes:
        name: Name of the field, or of the component's column.
        field: Name of the field or feature.
        components: Numbers of the components.
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
    def of_shape(self) -> bool:
        """Whether it is derived from points and cells instead of stored."""
        return self.field in SHAPE_FEATURES


def resolve_target(name: str, points: PointSchema | None = None) -> Target:
    """Find a field or component by its name.

    Args:
        name: The name.
        points: What lies at the points of a data set that isn't one of printed parts.

    Raises:
        UsageError: If there is none of that name, or it belongs to cells.

    >>> resolve_target("displacement_z").components, resolve_target("displacement").width
    ((2,), 3)
    """
    specs = _stored(points)
    if found := _find(name, specs):
        return found
    known = ", ".join(spec.name for spec in specs if spec.location == "point")
    near = did_you_mean(name, _names_of(specs))
    example = ", such as displacement_z" if points is None else ""
    raise UsageError(
        f"there is no field {name!r} at points{_of(points)}{near}; known are {known}, and their components{example}"
    )


def _stored(points: PointSchema | None) -> tuple[FieldSpec, ...]:
    return tuple(FIELDS.values()) if points is None else points.fields


def _of(points: PointSchema | None) -> str:
    return "" if points is None else f" of {points.name}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is most like another one, as a question; nothing where none is like it.

    >>> did_you_mean("build_clearance", ["displacement", "build_clearance_min"])
    ' (did you mean build_clearance_min?)'
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _names_of(specs: Iterable[FieldSpec]) -> list[str]:
    """Names of what lies at points, and of its components."""
    return [name for spec in specs if spec.location == "point" for name in dict.fromkeys((spec.name, *spec.columns))]


def _find(name: str, specs: Iterable[FieldSpec]) -> Target | None:
    for spec in specs:
        if spec.location != "point":
            continue
        if name == spec.name:
            return Target(name, spec.name, tuple(range(spec.num_components)), spec.columns, spec.unit)
        if name in spec.columns:
            return Target(name, spec.name, (spec.columns.index(name),), (name,), spec.unit)
    return None


def resolve_inputs(names: Sequence[str], option: str, points: PointSchema | None = None) -> tuple[Target, ...]:
    """Find what a model is told: fields, components, and features of the shape, "geometry" for all of those.

    Args:
        names: The names.
        option: What named them.
        points: What lies at the points of a data set that isn't one of printed parts, and has no features of the shape.

    Raises:
        UsageError: If one is unknown or named twice, with the option that named it.

    >>> [told.name for told in resolve_inputs(["temperature", "slice_offset"], "--features")]
    ['temperature', 'slice_offset']
    """
    if points is not None:
        return _inputs_of_points(names, option, points)
    spelled = [
        n for name in names for n in ([f.name for f in resolve_features(name)] if name == "geometry" else [name])
    ]
    _check_twice(spelled, option)
    found = []
    for name in spelled:
        told = _find(name, (*FIELDS.values(), *SHAPE_FEATURES.values()))
        if told is None:
            known = ", ".join(spec.name for spec in FIELDS.values() if spec.location == "point")
            near = did_you_mean(name, ["geometry", *_names_of((*FIELDS.values(), *SHAPE_FEATURES.values()))])
            raise UsageError(
                f"there is nothing called {name!r} at points{near}; known are the fields {known}, the features of the "
                f"shape {', '.join(SHAPE_FEATURES)} (geometry: all of them), and their components"
            )
        found.append(told)
    return tuple(found)


def _inputs_of_points(names: Sequence[str], option: str, points: PointSchema) -> tuple[Target, ...]:
    own = [spec.name for spec in points.fields]
    if of_shape := [name for name in names if name == "geometry" or (name in SHAPE_FEATURES and name not in own)]:
        raise UsageError(
            f"{option} names {of_shape[0]}, which is derived from the hexahedra of a printed part; {points.name} is a "
            f"data set of points without cells, whose fields are {', '.join(own)}"
        )
    _check_twice(names, option)
    return tuple(resolve_target(name, points) for name in names)


def _check_twice(names: Sequence[str], option: str) -> None:
    if len(set(names)) != len(names):
        raise UsageError(f"{option} names a field twice: {', '.join(names)}")


def resolve_targets(names: Sequence[str], option: str, points: PointSchema | None = None) -> tuple[Target, ...]:
    """Find several fields or components.

    Args:
        names: The names.
        option: What named them.
        points: What lies at the points of a data set that isn't one of printed parts.

    Raises:
        UsageError: If one is unknown or named twice, with the option that named it.
    """
    _check_twice(names, option)
    return tuple(resolve_target(name, points) for name in names)


def stack_targets(fields: Mapping[str, Tensor], targets: Sequence[Target]) -> Tensor:
    """Values of several targets side by side.

    Args:
        fields: Field name to values, [ΣN, components] or [ΣN].
        targets: Which.

    Returns:
        [ΣN, T].
    """
    import torch

    columns = []
    for target in targets:
        values = fields[target.field]
        columns.append(values.reshape(len(values), -1)[:, list(target.components)])
    return torch.cat(columns, dim=1)


def column_names(targets: Sequence[Target]) -> list[str]:
    """Names of the numbers of a point, in the order of `stack_targets`."""
    return [column for target in targets for column in target.columns]


def columns_of(fields: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Column to its values at the points, [N].

    Args:
        fields: Target to values, [N, components].
    """
    targets = resolve_targets(tuple(fields), "the checkpoint")
    return {name: fields[target.name][:, k] for target in targets for k, name in enumerate(target.columns)}


def spans(targets: Sequence[Target]) -> dict[str, slice]:
    """Target name to its columns in what `stack_targets` returns."""
    found: dict[str, slice] = {}
    start = 0
    for target in targets:
        found[target.name] = slice(start, start + target.width)
        start += target.width
    return found
