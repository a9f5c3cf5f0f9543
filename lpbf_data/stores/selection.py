"""`Selection`: which arrays of a case are read, and those arrays before they become tensors.

A `Case` holds all arrays and is checked when it is made. Training reads few of them, many thousand times: readers
decode only the selected arrays, in the memory layout of the tensors, and check them once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lpbf_data.case.schema import FIELDS, VECTOR, FieldSpec
from lpbf_data.errors import StoreError
from lpbf_data.geometry.hexahedra import hex_edges
from lpbf_data.geometry.shape_features import shape_features

Arrays = dict[str, NDArray[Any]]
"""Name in a sample to values; see [Selection][lpbf_data.stores.selection.Selection]."""

TARGET_FIELD: Final = "displacement"
TARGET_COMPONENT: Final = 2
TARGET_COLUMN: Final = FIELDS[TARGET_FIELD].columns[TARGET_COMPONENT]
"""The benchmark's target: Z displacement."""

_CURE: Final = "; fetch or build the data set again, or leave this case out of it"


@dataclass(frozen=True, slots=True)
class Selection:
    """What to read of every case.

    Attributes:
        fields: Fields, each `[N, components]` float32 (or `[E, components]`) under its name.
        target: Whether to give `y`, the Z displacement, [N, 1] float32.
        cells: Whether to give `cells`, [E, 8].
        edges: Whether to derive `edge_index`, [2, num_edges].
        features: Features of the shape to derive from points and cells, each [N, components] float32 under its name.
        coordinates: Columns of the points.
        target_columns: Columns of `y`, where a data set has other targets than the benchmark's.
    """

    fields: tuple[FieldSpec, ...] = ()
    target: bool = True
    cells: bool = True
    edges: bool = False
    features: tuple[FieldSpec, ...] = ()
    coordinates: tuple[str, ...] = VECTOR
    target_columns: tuple[str, ...] = (TARGET_COLUMN,)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays in a sample, in their order.

        >>> Selection((FIELDS["temperature"],)).names
        ('pos', 'y', 'temperature', 'cells')
        """
        names = ["pos", *(["y"] if self.target else []), *(spec.name for spec in (*self.fields, *self.features))]
        names += ["cells"] if self.cells else []
        return (*names, "edge_index") if self.edges else tuple(names)

    @property
    def reads_cells(self) -> bool:
        """Whether the connectivity must be read, to be given or to derive edges or features."""
        return self.cells or self.edges or bool(self.features)


def interleave(components: Sequence[NDArray[Any]], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Join planar components point by point.

    Args:
        components: C arrays [N] of one type.
        out: Where to put the result, [N, C].

    Returns:
        [N, C]; a view of the only component where there is but one.
    """
    if out is None:
        if len(components) == 1:
            return components[0].reshape(-1, 1)
        out = np.empty((len(components[0]), len(components)), components[0].dtype)
    # A column at a time is several times as fast as transposing or stacking at these widths.
    for index, component in enumerate(components):
        out[:, index] = component
    return out


def finish_arrays(arrays: Arrays, cells: NDArray[np.int32] | None, selection: Selection) -> Arrays:
    """Add connectivity, and edges and features derived from it, where they are selected.

    Args:
        arrays: Decoded arrays, `pos` among them; changed in place.
        cells: Connectivity, [E, 8] int32; None where nothing selected needs it.
        selection: What is selected.

    Raises:
        CaseError: If features are selected and the mesh is none of boxes.
    """
    if cells is not None and selection.features:
        found = shape_features(arrays["pos"], cells)
        arrays |= {spec.name: found[spec.name].reshape(len(arrays["pos"]), -1) for spec in selection.features}
    if cells is not None and selection.cells:
        arrays["cells"] = cells
    if cells is not None and selection.edges:
        arrays["edge_index"] = hex_edges(cells)
    return arrays


def check_arrays(arrays: Mapping[str, NDArray[Any]], cells: NDArray[Any] | None, num_points: int | None) -> None:
    """Check that arrays have the right lengths, finite values, and indices in range.

    Args:
        arrays: Decoded floating-point arrays, `pos` among them.
        cells: Decoded connectivity, [E, 8].
        num_points: Points that the case must have, when that is known.

    Raises:
        StoreError: If anything is wrong; the reader of the case adds where it lies.
    """
    count = len(arrays["pos"])
    if num_points is not None and count != num_points:
        raise StoreError(f"{count} points are stored, {num_points} are announced{_CURE}")
    for name, values in arrays.items():
        at_cells = name in FIELDS and FIELDS[name].location == "cell"
        if len(values) != count and not at_cells:
            raise StoreError(f"{name} has {len(values)} values at {count} points{_CURE}")
        # A sum is finite only if all its terms are, and is faster than looking at each; an overflow is looked into.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(np.add.reduce(values, axis=None))
        if suspicious and not np.isfinite(values).all():
            label = f"{name} ({TARGET_COLUMN})" if name == "y" else name
            raise StoreError(f"{label} has a value that isn't finite{_CURE}")
    if cells is not None:
        _check_cells(cells, count)


def _check_cells(cells: NDArray[Any], num_points: int) -> None:
    if cells.ndim != 2 or cells.shape[1] != 8 or len(cells) == 0:
        raise StoreError(f"cells must be [E, 8], not {cells.shape}{_CURE}")
    least, largest = int(cells.min()), int(cells.max())
    if least < 0 or largest >= num_points:
        raise StoreError(f"connectivity runs from {least} to {largest}, outside 0 … {num_points - 1}{_CURE}")
