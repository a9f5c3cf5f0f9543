"""`PointSchema`: the schema of a point set, a data set of points without cells: any dimension, fields of any name.

A point set has the same Parquet layout and manifest as a data set of printed parts, without cells and without measures.
Its fields are defined in the manifest's metadata; those of printed parts are in [schema][lpbf_data.case.schema].
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from lpbf_data.case.schema import FIELDS, FieldSpec
from lpbf_data.errors import SchemaError

POINTS_VERSION: Final = 3
"""Schema version of manifests and shards of point sets; those of printed parts have `SCHEMA_VERSION`."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_AT_CELLS: Final = {spec.name for spec in FIELDS.values() if spec.location == "cell"}
_TAKEN: Final = frozenset(
    {"batch", "case_id", "cells", "edge_index", "num_points", "point_index", "pos", "ptr", "y", *_AT_CELLS}
)
"""Names that samples and batches use for something else."""


@dataclass(frozen=True)
class PointSchema:
    """Coordinates and fields at the points of a point set.

    Attributes:
        name: What the data set is, in a word.
        coordinates: Names of the coordinates, which are the columns of the points; one or more.
        unit: Unit of the coordinates.
        fields: Fields at points.
        inputs: Names of the fields that are inputs of a model.
        targets: Names of the fields that are to be predicted.
        grid: Rows and columns where all cases are grids of one size, the column varying fastest; None for any points.
        scales: Column of a coordinate or field to (shift, scale); models see (value - shift) / scale. A coordinate
            without an entry stays as it is, a field without one is standardised over the training points.

    Raises:
        SchemaError: If these don't fit together.
    """

    name: str
    coordinates: tuple[str, ...]
    unit: str
    fields: tuple[FieldSpec, ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    grid: tuple[int, int] | None = None
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names, columns = [spec.name for spec in self.fields], [*self.coordinates, *self.field_columns]
        for name in (self.name, *self.coordinates, *names, *columns):
            if not _NAME.fullmatch(name):
                raise SchemaError(f"{name!r} can't be a name at points: letters, digits and _ alone, a letter first")
        if taken := sorted(_TAKEN.intersection((*names, *self.field_columns))):
            raise SchemaError(f"a field can't be called {taken[0]!r}: samples have something else of this name")
        if not self.coordinates or len(set(columns)) != len(columns) or len(set(names)) != len(names):
            raise SchemaError(f"coordinates and fields must have names of their own; they are {', '.join(columns)}")
        if any(spec.location != "point" for spec in self.fields):
            raise SchemaError("fields of points without cells lie at the points")
        if unknown := [name for name in (*self.inputs, *self.targets) if name not in names]:
            raise SchemaError(f"there is no field {unknown[0]!r}; there are {', '.join(names)}")
        if not self.targets or set(self.inputs) & set(self.targets):
            raise SchemaError("at least one field must be a target, and no target may be an input")
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise SchemaError(f"a grid has rows and columns, not {self.grid}")
        for column, (shift, scale) in self.scales.items():
            if column not in columns or not (math.isfinite(shift) and 0 < scale < math.inf):
                raise SchemaError(f"{column} can't be scaled by ({shift}, {scale})")

    @property
    def field_columns(self) -> tuple[str, ...]:
        """Columns of the fields."""
        return tuple(column for spec in self.fields for column in spec.columns)

    @property
    def target_columns(self) -> tuple[str, ...]:
        """Columns of what is to be predicted."""
        return tuple(column for spec in self.fields if spec.name in self.targets for column in spec.columns)

    def refuse_size(self, num_points: int) -> str:
        """Why a case can't have so many points; empty where it can.

        Args:
            num_points: Its number of points.
        """
        if self.grid is None or num_points == self.grid[0] * self.grid[1]:
            return ""
        rows, columns = self.grid
        return f"{num_points:,} points are no grid of {rows} × {columns} = {rows * columns:,}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        fields = [{k: v for k, v in asdict(spec).items() if k != "location"} for spec in self.fields]
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()},
            "fields": [{**spec, "components": list(spec["components"])} for spec in fields],
            "scales": {column: list(pair) for column, pair in self.scales.items()},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> PointSchema:
        """The inverse of `as_dict`.

        Raises:
            SchemaError: If something is missing or of another type.
        """
        try:
            fields = tuple(
                FieldSpec(
                    str(spec["name"]), tuple(map(str, spec["components"])), str(spec["unit"]), "point",
                    str(spec["description"]),
                )
                for spec in stored["fields"]
            )  # fmt: skip
            grid = stored["grid"]
            named = {name: tuple(map(str, stored[name])) for name in ("coordinates", "inputs", "targets")}
            return cls(
                name=str(stored["name"]),
                unit=str(stored["unit"]),
                fields=fields,
                grid=None if grid is None else (int(grid[0]), int(grid[1])),
                scales={str(name): (float(pair[0]), float(pair[1])) for name, pair in stored["scales"].items()},
                **named,
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise SchemaError(
                f"the schema of its points can't be read ({error!r}); convert the data set again"
            ) from error

    @classmethod
    def decode(cls, content: bytes) -> PointSchema:
        """The inverse of `encode`.

        Raises:
            SchemaError: If it isn't what `encode` writes.
        """
        try:
            stored = json.loads(content)
        except ValueError as error:
            problem = f"the schema of its points can't be read ({error}); convert the data set again"
            raise SchemaError(problem) from error
        if not isinstance(stored, dict):
            raise SchemaError("the schema of its points can't be read; convert the data set again")
        return cls.from_dict(stored)

    def encode(self) -> bytes:
        """As it stands in metadata."""
        return json.dumps(self.as_dict()).encode()
