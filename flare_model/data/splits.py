"""Splits of a data set for training and evaluation: cases, their order, statistics and batches."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from flare_model.data.envelope import Envelope
from flare_model.data.metrics import floor_of
from flare_model.data.normalisation import Normalisation
from flare_model.data.point_fields import PointField
from lpbf_data.cached_property import cached_property
from lpbf_data.case.point_schema import PointSchema
from lpbf_data.case.record import CaseRecord
from lpbf_data.case.schema import BUILD_VOLUME
from lpbf_data.case.statistics import FieldStatistics
from lpbf_data.errors import UsageError
from lpbf_data.reading.split_reader import read_manifest
from lpbf_data.serving.collating import collate_ragged
from lpbf_data.serving.datasets import CaseDataset, load_dataset
from lpbf_data.serving.loader import Loader
from lpbf_data.serving.make_loader import make_loader
from lpbf_data.serving.rank_sharing import Uneven
from lpbf_data.serving.transforms import Compose, RandomSymmetry, SubsamplePoints


class Split:
    """One split of a data set, opened for the fields that a model needs.

    Args:
        data: The data set: a folder, a URL that fsspec knows, or an id of the Hugging Face hub.
        name: Name of the split.
        targets: Targets and input features to open.

    Raises:
        UsageError: If there is no such data set or split, or it doesn't store a target.
    """

    def __init__(self, data: str, name: str, targets: Sequence[PointField] = ()) -> None:
        self.data = data
        self.name = name
        fields = sorted({target.field for target in targets if not target.is_shape_feature})
        shape = sorted({target.field for target in targets if target.is_shape_feature})
        dataset = load_dataset(data, name, format="torch", fields=fields, cells=False, features=shape)
        assert isinstance(dataset, CaseDataset)
        self.dataset = dataset
        self.case_ids = tuple(dataset.case_ids)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case_ids)

    def evenly_chosen(self, count: int) -> Self:
        """So many of its cases, evenly spaced over all; all of them where it has no more."""
        if count >= len(self):
            return self
        return self._chosen(np.linspace(0, len(self) - 1, count).round().astype(int).tolist())

    def only(self, case_ids: Iterable[str]) -> Self:
        """Those of its cases that are named, in its own order."""
        wanted = set(case_ids)
        return self._chosen([number for number, case_id in enumerate(self.case_ids) if case_id in wanted])

    def _chosen(self, numbers: list[int]) -> Self:
        # A new object in which nothing is cached: records and statistics are those of the cases.
        chosen = copy.copy(self)
        for name in ("records", "statistics"):
            chosen.__dict__.pop(name, None)
        chosen.dataset = self.dataset[numbers]
        chosen.case_ids = tuple(chosen.dataset.case_ids)
        return chosen

    @property
    def point_schema(self) -> PointSchema | None:
        """Coordinates and fields of a data set that isn't one of printed parts; None for one that is."""
        return self.dataset.samples.tensors.reader.points

    @property
    def data_digest(self) -> str:
        """Digest of the data set: of a built one, the SHA-256 of its manifest."""
        return self.dataset.samples.tensors.reader.catalog.digest

    @property
    def digest(self) -> str:
        """SHA-256 of the ids of the cases: the same cases, the same digest."""
        return hashlib.sha256("\n".join(sorted(self.case_ids)).encode()).hexdigest()

    @cached_property
    def records(self) -> Mapping[str, CaseRecord]:
        """Case id to record; none for data sets without a manifest, such as the published one."""
        reader = self.dataset.samples.tensors.reader
        if reader.catalog.layout == "npz":
            return {}
        own_ids = set(self.case_ids)
        return {record.case_id: record for record in read_manifest(reader.folder).records if record.case_id in own_ids}

    @cached_property
    def statistics(self) -> Mapping[str, FieldStatistics]:
        """Statistics of every column over all points, by the names of the columns; features of the shape included."""
        return self.dataset.statistics() | self.dataset.feature_statistics()

    @property
    def envelope(self) -> Envelope | None:
        """Envelope of its cases; None where nothing was measured."""
        return Envelope.of(self.records.values()) if self.records and self.point_schema is None else None

    def zero_cases(self, target: PointField) -> list[str]:
        """Ids of the cases in which a target is zero everywhere but for rounding, by the manifest's statistics."""
        floor = floor_of([self.statistics[column].std or 1.0 for column in target.columns])

        def largest(record: CaseRecord) -> float:
            found = [record.statistics[column] for column in target.columns]
            return max(max(-s.minimum, s.maximum) for s in found)

        return [case_id for case_id, record in self.records.items() if largest(record) <= floor]


def has_split(data: str, name: str) -> bool:
    """Whether a data set has a split; the data set itself must be there."""
    try:
        Split(data, name)
    except UsageError:
        return False
    return True


def normalisation_of(split: Split, targets: Sequence[PointField], features: Sequence[PointField]) -> Normalisation:
    """Normalisation from the statistics of a split; columns whose normalisation the data set states take that."""
    fixed = {} if split.point_schema is None else split.point_schema.scales

    def rows(of: Sequence[PointField]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        columns = [column for target in of for column in target.columns]
        measured = {c: (split.statistics[c].mean, split.statistics[c].std or 1.0) for c in columns}
        pairs = [fixed.get(column, measured[column]) for column in columns]
        return tuple(mean for mean, _ in pairs), tuple(std for _, std in pairs)

    (target_mean, target_std), (feature_mean, feature_std) = rows(targets), rows(features)
    if split.point_schema is None:
        return Normalisation(BUILD_VOLUME, target_mean, target_std, feature_mean, feature_std)
    scales = [fixed.get(column, (0.0, 1.0)) for column in split.point_schema.coordinates]
    shift = tuple(shift for shift, _ in scales) if any(shift for shift, _ in scales) else ()
    scale = tuple(scale for _, scale in scales)
    return Normalisation(scale, target_mean, target_std, feature_mean, feature_std, shift)


class Thin:
    """Keep a random subset of a sample's points, another one in each epoch.

    Args:
        count: Points to keep; a part with fewer keeps them all.
    """

    random = True

    def __init__(self, count: int) -> None:
        self._subsample = SubsamplePoints(count)

    def __call__(self, sample: Any, generator: np.random.Generator) -> Any:
        """The sample with fewer points, without entries such as cells that can't be thinned."""
        thinned = self._subsample(sample, generator)
        return {name: thinned[name] for name in sample if name in thinned}


def open_loader(
    split: Split,
    *,
    batch_size: int | None = 1,
    max_points: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    thin_to: int | None = None,
    symmetries: bool = False,
    uneven: Uneven = "drop",
    ranks: tuple[int, int] | None = None,
) -> Loader:
    """Batches of a split, epoch after epoch, with a position that can be saved and restored.

    Args:
        split: Which split.
        batch_size: Cases in a batch of each process; with max_points the most of them, None for any number.
        max_points: Points in a batch of each process at most, before thinning; None for batch_size cases.
        shuffle: Draw a new order for each epoch.
        seed: Seed of the orders, and of thinning.
        num_workers: Processes that read ahead.
        thin_to: Points that a case is thinned to at random.
        symmetries: Show each case under one of the symmetries of a square build plate, drawn at random.
        uneven: What becomes of cases that can't be shared out evenly among processes.
        ranks: Number of this process and number of processes that share the batches; by default those of
            torch.distributed.
    """
    transforms = [*([RandomSymmetry()] if symmetries else []), *([Thin(thin_to)] if thin_to else [])]
    rank, world_size = ranks or (None, None)
    has_displacement = split.dataset.samples.tensors.selection.target
    return make_loader(
        split.dataset,
        batch_size=batch_size,
        max_points=max_points,
        shuffle=shuffle,
        seed=seed,
        num_workers=num_workers,
        transform=Compose(*transforms) if transforms else None,
        collate="ragged" if has_displacement else _join_without_displacement,
        uneven=uneven,
        rank=rank,
        world_size=world_size,
    )


def _join_without_displacement(samples: Sequence[Mapping[str, Any]]) -> Any:
    """Join samples of a data set that stores no displacement: the points stand in for the benchmark's target."""
    return collate_ragged([{**sample, "y": sample["pos"]} for sample in samples])
