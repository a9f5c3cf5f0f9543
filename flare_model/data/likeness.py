"""Likeness: how similar a new part is to the training parts, by descriptors of its shape and their training quantiles.

N points, E cells of one part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flare_model.data.auxiliary_file import AuxiliaryFile

LIKENESS_NAME: Final = "likeness.json"
LIKENESS_VERSION: Final = 1
_FILE: Final = AuxiliaryFile(
    LIKENESS_NAME,
    "likeness_version",
    LIKENESS_VERSION,
    (
        "doesn't hold the shapes of a checkpoint's training parts",
        "remove it, or make it again: python -m flare_model.release",
    ),
)

QUANTILE_LEVELS: Final = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Levels of the quantiles that are kept of every descriptor."""

_RARE_LEVELS: Final = (0.01, 0.99)
_USUAL_SHARE: Final = 0.95
_SLACK: Final = 0.02  # of the range seen in training, by which a value may lie beyond it and still count as seen

DESCRIPTORS: Final[Mapping[str, tuple[str, str]]] = {
    "width": ("width", "mm"),
    "depth": ("depth", "mm"),
    "height": ("height", "mm"),
    "offset": ("distance of its middle from the middle of the plate", "mm"),
    "volume": ("volume", "mm³"),
    "solid_share": ("share of its bounding box that is solid", ""),
    "thickness": ("thickness (twice the volume over the surface)", "mm"),
    "slenderness": ("height over the width of its foot", ""),
    "footprint_share": ("area on the plate over the largest slice", ""),
    "overhang_share": ("share of its volume that hangs over a gap", ""),
    "overhang_height": ("height of its highest overhang above the plate", "mm"),
    "slice_steps": ("largest change of the slice area between layers, over the largest slice", ""),
    "cell": ("longest edge of a cell", "mm"),
}
"""Descriptors of a shape: name to label and unit; the width is the longer of the horizontal extents."""


def describe_shape(points: NDArray[np.floating[Any]], cells: NDArray[np.integer[Any]]) -> dict[str, float]:
    """The `DESCRIPTORS` of one part.

    Args:
        points: Coordinates in mm, [N, 3].
        cells: Zero-based hexahedra, [E, 8], each a box along the axes.

    Raises:
        CaseError: If the mesh is none of boxes.

    >>> cube = np.array([[x, y, z] for z in (0, 2) for x, y in ((0, 0), (3, 0), (3, 3), (0, 3))], dtype=np.float32)
    >>> found = describe_shape(cube, np.arange(8)[None])
    >>> found["volume"], found["solid_share"], found["overhang_share"], round(found["thickness"], 4)
    (18.0, 1.0, 0.0, 0.8571)
    """
    from lpbf_data.geometry.box_grid import BoxGrid

    grid = BoxGrid.of(points, cells)
    extents = [float(planes[-1] - planes[0]) for planes in grid.planes]
    voxels = np.einsum("i,j,k->ijk", *grid.sizes) * grid.solid
    volume = float(voxels.sum())
    areas = np.einsum("i,j,ijk->k", grid.sizes[0], grid.sizes[1], grid.solid)
    steps = np.abs(np.diff(areas)).max(initial=0.0) / areas.max()
    # A column of voxels overhangs from where it is solid again above a gap.
    gap = np.logical_or.accumulate(~grid.solid, axis=2)
    hangs = grid.solid & gap
    starts = hangs[:, :, 1:] & ~grid.solid[:, :, :-1]
    heights = (grid.planes[2][1:-1] - grid.planes[2][0])[starts.any(axis=(0, 1))]
    foot = math.sqrt(max(float(areas[0]), 1e-6))
    edges = (np.ptp(points[cells, axis], axis=1).max() for axis in range(3))
    return {
        "width": max(extents[:2]),
        "depth": min(extents[:2]),
        "height": extents[2],
        "offset": math.hypot(*((points.min(axis=0) + points.max(axis=0)) / 2)[:2].tolist()),
        "volume": volume,
        "solid_share": volume / math.prod(extents),
        "thickness": 2 * volume / _surface_area(grid.solid, grid.sizes),
        "slenderness": extents[2] / foot,
        "footprint_share": float(areas[0] / areas.max()),
        "overhang_share": float((voxels * hangs).sum()) / volume,
        "overhang_height": float(heights.max(initial=0.0)),
        "slice_steps": float(steps),
        "cell": float(max(edges)),
    }


def _surface_area(solid: NDArray[np.bool_], sizes: Sequence[NDArray[np.float64]]) -> float:
    total = 0.0
    for axis in range(3):
        padded = np.pad(np.moveaxis(solid, axis, 0), ((1, 1), (0, 0), (0, 0)))
        one, other = (sizes[k] for k in range(3) if k != axis)
        total += float(np.einsum("ijk,j,k->", padded[1:] != padded[:-1], one, other))
    return total


@dataclass(frozen=True)
class Reason:
    """One descriptor in which a part is unlike the training parts.

    Attributes:
        name: Which of `DESCRIPTORS`.
        value: Of the part.
        share: Share of the training parts with a smaller value.
        low: The 1 % quantile of the training.
        high: Its 99 % quantile.
        outside: Whether no training part has such a value; else it is rarer than one in a hundred on its side.
    """

    name: str
    value: float
    share: float
    low: float
    high: float
    outside: bool

    def __str__(self) -> str:
        """The reason for people."""
        label, unit = DESCRIPTORS[self.name]
        space = f" {unit}" if unit else ""
        side = "larger" if self.value > self.high else "smaller"
        than = "all" if self.outside else "99 %"
        seen = f"most of them {self.low:,.3g} … {self.high:,.3g}{space}"
        return f"{label} {self.value:,.3g}{space}, {side} than {than} of its parts ({seen})"


@dataclass(frozen=True)
class Likeness:
    """How similar to the training parts a part is.

    Attributes:
        unlike: Whether predictions on it are an extrapolation.
        reasons: In what it is rare or outside; those outside first.
    """

    unlike: bool
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class TrainingShapes:
    """Distribution of the descriptors over the training parts.

    Attributes:
        parts: How many there were.
        quantiles: Name of `DESCRIPTORS` to its quantiles at `QUANTILE_LEVELS`.
        usual_rarities: Number of descriptors beyond the 1 % or 99 % quantile that 95 % of the training parts don't
            exceed.
        weights_sha256: SHA-256 of the file of weights that were trained on them.
    """

    parts: int
    quantiles: Mapping[str, tuple[float, ...]]
    usual_rarities: int
    weights_sha256: str = ""

    @classmethod
    def of(cls, shapes: Sequence[Mapping[str, float]], weights_sha256: str = "") -> TrainingShapes:
        """The distribution over some parts; there must be one or more."""
        table = np.array([[shape[name] for name in DESCRIPTORS] for shape in shapes])
        found = np.quantile(table, QUANTILE_LEVELS, axis=0)
        low, high = (found[QUANTILE_LEVELS.index(level)] for level in _RARE_LEVELS)
        counts = ((table < low) | (table > high)).sum(axis=1)
        quantiles = {name: tuple(found[:, k].tolist()) for k, name in enumerate(DESCRIPTORS)}
        return cls(len(shapes), quantiles, int(np.quantile(counts, _USUAL_SHARE, method="higher")), weights_sha256)

    def compare(self, shape: Mapping[str, float]) -> Likeness:
        """How similar to the training parts a part is.

        Args:
            shape: Its descriptors, from `describe_shape`.
        """
        reasons = []
        for name, quantiles in self.quantiles.items():
            value, known = shape[name], np.array(quantiles)
            low, high = (quantiles[QUANTILE_LEVELS.index(level)] for level in _RARE_LEVELS)
            slack = _SLACK * (known[-1] - known[0]) + 1e-3
            outside = bool(value < known[0] - slack or value > known[-1] + slack)
            if outside or value < low - 1e-6 * abs(low) - 1e-9 or value > high + 1e-6 * abs(high) + 1e-9:
                reasons.append(Reason(name, value, float(np.interp(value, known, QUANTILE_LEVELS)), low, high, outside))
        reasons.sort(key=lambda reason: not reason.outside)
        unlike = any(reason.outside for reason in reasons) or len(reasons) > self.usual_rarities
        return Likeness(unlike, tuple(reasons))


def write_training_shapes(folder: Path, shapes: TrainingShapes) -> None:
    """Write the distribution of shapes into the folder of its checkpoint."""
    _FILE.write(folder, {"levels": QUANTILE_LEVELS, **asdict(shapes)})


def read_training_shapes(folder: Path) -> TrainingShapes | None:
    """Distribution of the descriptors over the training parts of a checkpoint; None where it has none.

    Raises:
        SchemaError: If it can't be read.
    """
    return _FILE.read(folder, _shapes_from)


def _shapes_from(content: Mapping[str, Any]) -> TrainingShapes:
    if tuple(content["levels"]) != QUANTILE_LEVELS:
        raise ValueError(f"version {content['likeness_version']}")
    quantiles = {name: tuple(map(float, content["quantiles"][name])) for name in DESCRIPTORS}
    if not all(len(row) == len(QUANTILE_LEVELS) and all(map(math.isfinite, row)) for row in quantiles.values()):
        raise ValueError("a quantile is missing or isn't finite")
    digest = str(content["weights_sha256"])
    return TrainingShapes(int(content["parts"]), quantiles, int(content["usual_rarities"]), digest)
