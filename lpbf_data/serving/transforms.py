"""Transforms of samples, each with its inverse.

They take and give dicts of tensors or PyG data, and change neither what they are given nor its tensors. Those that
draw at random have `random = True` and are given a generator, so that a case at an epoch is treated the same on any
rank and worker, and after a resume. Those that know what printed parts are like have `of_parts = True`, and are refused
on other data.

    >>> import torch
    >>> scale = ScalePoints((30.0, 30.0, 60.0))
    >>> scale({"pos": torch.tensor([[30.0, 15.0, 60.0]])})["pos"]
    tensor([[1.0000, 0.5000, 1.0000]])
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from lpbf_data.case.feature_schema import SHAPE_FEATURES
from lpbf_data.case.point_schema import PointSchema
from lpbf_data.case.schema import BUILD_VOLUME, FIELDS
from lpbf_data.errors import UsageError
from lpbf_data.geometry.hexahedra import hex_edges
from lpbf_data.stores.selection import TARGET_COLUMN

if TYPE_CHECKING:
    from lpbf_data.serving.datasets import CaseDataset

_CONNECTIVITY: Final = ("cells", "edge_index")
_EXCHANGED: Final = str.maketrans("xy", "yx")
_MIRRORED_CELL: Final = [1, 0, 3, 2, 5, 4, 7, 6]
"""Corners of a mirrored hexahedron in the order that keeps its volume positive."""


def _replace(sample: Any, changes: Mapping[str, Any], remove: Sequence[str] = ()) -> Any:
    """A copy of a sample with other values under some names."""
    changed = dict(sample) if isinstance(sample, dict) else copy.copy(sample)
    for name, value in changes.items():
        changed[name] = value
    for name in remove:
        if name in changed:
            del changed[name]
    return changed


@dataclass(frozen=True)
class ScalePoints:
    """Divide each coordinate of the points by a length.

    Attributes:
        scale: Three lengths in mm.

    Raises:
        UsageError: If one isn't positive.
    """

    scale: tuple[float, float, float] = BUILD_VOLUME
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if len(self.scale) != 3 or min(self.scale) <= 0:
            raise UsageError(f"points are scaled by three positive lengths, not {self.scale}")

    def __call__(self, sample: Any) -> Any:
        """Scale `pos`."""
        return _replace(sample, {"pos": sample["pos"] / torch.tensor(self.scale)})

    def inverse(self, sample: Any) -> Any:
        """Points in mm again."""
        return _replace(sample, {"pos": sample["pos"] * torch.tensor(self.scale)})


@dataclass(frozen=True)
class Standardise:
    """Subtract the mean and divide by the standard deviation, a component at a time.

    Attributes:
        mean: Name in the sample to the mean of each component.
        std: Name in the sample to the standard deviation of each component; a constant has 1.
    """

    mean: Mapping[str, tuple[float, ...]]
    std: Mapping[str, tuple[float, ...]]
    random: ClassVar[bool] = False

    @classmethod
    def of(cls, train: CaseDataset, names: Sequence[str] = ("y",)) -> Standardise:
        """From the statistics of a data set, which should be the training split.

        Args:
            train: The data set.
            names: What to standardise: "y" or fields.

        Raises:
            UsageError: If the data set has no statistics of one of them.
        """
        stats = train.statistics()
        points = train.samples.tensors.reader.points
        columns = {name: _columns(name, points) for name in names}
        if missing := [c for group in columns.values() for c in group if c not in stats]:
            raise UsageError(f"there are no statistics of {missing[0]!r}; there are: {', '.join(stats)}")
        mean = {name: tuple(stats[c].mean for c in group) for name, group in columns.items()}
        std = {name: tuple(stats[c].std or 1.0 for c in group) for name, group in columns.items()}
        return cls(mean, std)

    def __call__(self, sample: Any) -> Any:
        """Standardise what the sample has of the names."""
        here = [name for name in self.mean if name in sample]
        return _replace(sample, {name: self.apply(name, sample[name]) for name in here})

    def inverse(self, sample: Any) -> Any:
        """Physical units again."""
        here = [name for name in self.mean if name in sample]
        return _replace(sample, {name: self.restore(name, sample[name]) for name in here})

    def apply(self, name: str, values: Tensor) -> Tensor:
        """Standardise values [N, components]."""
        return (values - values.new_tensor(self.mean[name])) / values.new_tensor(self.std[name])

    def restore(self, name: str, values: Tensor) -> Tensor:
        """Physical units of standardised values [N, components], such as a prediction of "y"."""
        return values * values.new_tensor(self.std[name]) + values.new_tensor(self.mean[name])


def _columns(name: str, points: PointSchema | None) -> tuple[str, ...]:
    if name == "y":
        return (TARGET_COLUMN,) if points is None else points.target_columns
    known = FIELDS if points is None else {spec.name: spec for spec in points.fields}
    if name not in known:
        raise UsageError(f"unknown field {name!r}; known are: y, {', '.join(known)}")
    return known[name].columns


@dataclass(frozen=True)
class SubsamplePoints:
    """Keep a random subset of the points, in their order; a part with fewer keeps them all.

    The sample gets `point_index`, the numbers of the points that are left, and loses its connectivity, which names
    points that are gone.

    Attributes:
        count: Points to keep.

    Raises:
        UsageError: If it isn't positive.
    """

    count: int
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"a subset needs at least one point, not {self.count}")

    def __call__(self, sample: Any, generator: np.random.Generator | None = None) -> Any:
        """Draw a subset.

        Args:
            sample: A sample.
            generator: What to draw from.
        """
        total = len(sample["pos"])
        generator = np.random.default_rng() if generator is None else generator
        kept = np.sort(generator.choice(total, min(self.count, total), replace=False))
        index = torch.from_numpy(kept)
        changes = {name: sample[name][index] for name in _point_values(sample, total)}
        changes |= {"point_index": index, "num_points": torch.tensor([total])}
        return _replace(sample, changes, _CONNECTIVITY)

    def inverse(self, sample: Any) -> Any:
        """All points again, with NaN where a point wasn't drawn."""
        index, total = sample["point_index"], int(sample["num_points"])
        changes = {}
        for name in _point_values(sample, len(index)):
            values = sample[name]
            changes[name] = values.new_full((total, *values.shape[1:]), torch.nan)
            changes[name][index] = values
        return _replace(sample, changes, ("point_index", "num_points"))


def _point_values(sample: Any, count: int) -> list[str]:
    """Names of the values at points: floating-point tensors of their number that aren't values at cells."""
    names = list(sample) if isinstance(sample, dict) else list(sample.keys())
    at_cells = {name for name in names if name in FIELDS and FIELDS[name].location == "cell"}
    return [
        name
        for name in names
        if isinstance(sample[name], Tensor)
        and sample[name].is_floating_point()
        and name not in at_cells
        and sample[name].shape[:1] == (count,)
    ]


@dataclass(frozen=True)
class RandomSymmetry:
    """One of the eight symmetries of a square build plate, drawn at random: mirrored along x, along y, both exchanged.

    A part that is built mirrored or turned by a quarter moves the same way, as long as material, scanning and plate
    prefer neither x nor y. Vectors and tensors go along; directions of principal stress have no sign of their own.
    """

    random: ClassVar[bool] = True
    of_parts: ClassVar[bool] = True

    def __call__(self, sample: Any, generator: np.random.Generator | None = None) -> Any:
        """Draw a symmetry and apply it.

        Args:
            sample: A sample; `y` is a Z displacement, which stays.
            generator: What to draw from.
        """
        generator = np.random.default_rng() if generator is None else generator
        mirror_x, mirror_y, exchange = (bool(drawn) for drawn in generator.integers(2, size=3))
        return self.apply(sample, mirror_x=mirror_x, mirror_y=mirror_y, exchange=exchange)

    def apply(self, sample: Any, *, mirror_x: bool, mirror_y: bool, exchange: bool) -> Any:
        """Apply a symmetry.

        Args:
            sample: A sample.
            mirror_x: Mirror along x.
            mirror_y: Mirror along y.
            exchange: Then exchange x and y.
        """

        def moved(values: Tensor, components: Sequence[str]) -> Tensor:
            signs = [(-1.0) ** (mirror_x * name.count("x") + mirror_y * name.count("y")) for name in components]
            values = values * values.new_tensor(signs)
            if not exchange:
                return values
            exchanged = ["".join(sorted(name.translate(_EXCHANGED))) for name in components]
            return values[:, [list(components).index(name) for name in exchanged]]

        names = list(sample) if isinstance(sample, dict) else list(sample.keys())
        known = FIELDS | SHAPE_FEATURES
        fields = [name for name in names if name in known and known[name].components]
        changes = {name: moved(sample[name], known[name].components) for name in fields}
        changes["pos"] = moved(sample["pos"], "xyz")
        if "cells" in names and (mirror_x + mirror_y + exchange) % 2:
            changes["cells"] = sample["cells"][:, _MIRRORED_CELL]
        return _replace(sample, changes)


@dataclass(frozen=True)
class AddHexEdges:
    """Derive `edge_index` [2, num_edges] from the cells, every edge in both directions."""

    random: ClassVar[bool] = False

    def __call__(self, sample: Any) -> Any:
        """Add the edges.

        Raises:
            UsageError: If the sample has no cells.
        """
        if "cells" not in sample:
            raise UsageError("edges are derived from the cells; load the data set with cells=True, or with edges=True")
        return _replace(sample, {"edge_index": torch.from_numpy(hex_edges(sample["cells"].numpy()))})

    def inverse(self, sample: Any) -> Any:
        """Without the edges."""
        return _replace(sample, {}, ("edge_index",))


class Compose:
    """Several transforms, one after the other.

    Args:
        transforms: In the order in which they are applied; the inverse goes back.
    """

    def __init__(self, *transforms: Any) -> None:
        self.transforms = transforms
        self.random = any(getattr(transform, "random", False) for transform in transforms)
        self.of_parts = any(getattr(transform, "of_parts", False) for transform in transforms)

    def __call__(self, sample: Any, generator: np.random.Generator | None = None) -> Any:
        """Apply all."""
        for transform in self.transforms:
            random = getattr(transform, "random", False)
            sample = transform(sample, generator) if random else transform(sample)
        return sample

    def inverse(self, sample: Any) -> Any:
        """Undo all, the last first."""
        for transform in reversed(self.transforms):
            sample = transform.inverse(sample)
        return sample
