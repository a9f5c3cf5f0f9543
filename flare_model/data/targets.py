"""What a model predicts, or is told beside the points: fields of the data set, or single components of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lpbf_data.case.schema import FIELDS
from lpbf_data.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A field, or one component of it.

    Attributes:
        name: Name of the field, or of the component's column.
        field: Name of the field.
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


def resolve_target(name: str) -> Target:
    """Find a field or component by its name.

    Raises:
        UsageError: If there is none of that name, or it belongs to cells.

    >>> resolve_target("displacement_z").components, resolve_target("displacement").width
    ((2,), 3)
    """
    for spec in FIELDS.values():
        if spec.location != "point":
            continue
        if name == spec.name:
            return Target(name, spec.name, tuple(range(spec.num_components)), spec.columns, spec.unit)
        if name in spec.columns:
            return Target(name, spec.name, (spec.columns.index(name),), (name,), spec.unit)
    known = ", ".join(spec.name for spec in FIELDS.values() if spec.location == "point")
    raise UsageError(
        f"there is no field {name!r} at points; known are {known}, and their components, such as displacement_z"
    )


def resolve_targets(names: Sequence[str], option: str) -> tuple[Target, ...]:
    """Find several fields or components.

    Raises:
        UsageError: If one is unknown or named twice, with the option that named it.
    """
    if len(set(names)) != len(names):
        raise UsageError(f"{option} names a field twice: {', '.join(names)}")
    return tuple(resolve_target(name) for name in names)


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


def spans(targets: Sequence[Target]) -> dict[str, slice]:
    """Target name to its columns in what `stack_targets` returns."""
    found: dict[str, slice] = {}
    start = 0
    for target in targets:
        found[target.name] = slice(start, start + target.width)
        start += target.width
    return found
