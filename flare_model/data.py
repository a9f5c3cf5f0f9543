"""The data set as training and evaluation see it: which cases, in which order, with which statistics."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from flare_model.checkpoint import Normalisation
from flare_model.envelope import BUILD_VOLUME
from flare_model.targets import Target
from lpbf_data.batching import RaggedBatch, collate_ragged
from lpbf_data.datasets import CaseStream, load_dataset
from lpbf_data.errors import UsageError
from lpbf_data.folder import DatasetFolder
from lpbf_data.manifest import Manifest
from lpbf_data.reader import read_manifest
from lpbf_data.record import CaseRecord
from lpbf_data.statistics import FieldStatistics, total


class Split:
    """One split of a data set, by its records; reads no array.

    Args:
        data: The data set: a folder, or a URL that fsspec knows.
        name: Name of the split.
        manifest: Its manifest, where it has been read.

    Raises:
        UsageError: If there is no such data set or split.
    """

    def __init__(self, data: str, name: str, manifest: Manifest | None = None) -> None:
        self.data = data
        self.name = name
        self.manifest = manifest or read_manifest(DatasetFolder(data))
        if name not in self.manifest.splits:
            known = ", ".join(self.manifest.splits) or "none: no case was kept"
            raise UsageError(f"{data} has no split {name!r}; it has: {known}")
        self.records: tuple[CaseRecord, ...] = tuple(
            record for record in self.manifest.records if record.placement and record.placement.split == name
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the ids of its cases: the same cases, the same digest."""
        ids = "\n".join(sorted(record.case_id for record in self.records))
        return hashlib.sha256(ids.encode()).hexdigest()

    def statistics(self, column: str) -> FieldStatistics:
        """Statistics of a column over all its points.

        Raises:
            UsageError: If the data set doesn't hold it.
        """
        parts = [record.statistics[column] for record in self.records if column in record.statistics]
        if len(parts) != len(self.records):
            raise UsageError(
                f"{self.data} holds no {column} in the split {self.name}; build it with --fields that name it, or "
                "choose another target"
            )
        return total(parts)

    def zero_cases(self, target: Target) -> list[str]:
        """Ids of the cases in which a target is zero everywhere."""
        return [
            record.case_id
            for record in self.records
            if all(record.statistics[c].minimum == 0 == record.statistics[c].maximum for c in target.columns)
        ]


def normalisation_of(split: Split, targets: Sequence[Target], features: Sequence[Target]) -> Normalisation:
    """Normalisation from the statistics of a split, as the manifest has them.

    Raises:
        UsageError: If the data set doesn't hold a target or feature.
    """
    stats = {t.name: [split.statistics(c) for c in t.columns] for t in (*targets, *features)}

    def row(of: Sequence[Target], what: str) -> tuple[float, ...]:
        values = [getattr(s, what) for target in of for s in stats[target.name]]
        return tuple(value or 1.0 for value in values) if what == "std" else tuple(values)

    return Normalisation(
        BUILD_VOLUME, row(targets, "mean"), row(targets, "std"), row(features, "mean"), row(features, "std")
    )


class Loader:
    """Batches of one split, epoch after epoch, with a position that can be saved and taken up again.

    Args:
        split: Which split.
        targets: What is predicted.
        features: What is known beside the points.
        batch_size: Cases in a batch.
        shuffle: Draw a new order for each epoch.
        seed: Seed of the orders.
        num_workers: Processes that read ahead.
    """

    def __init__(
        self,
        split: Split,
        targets: Sequence[Target],
        features: Sequence[Target],
        *,
        batch_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        fields = sorted({target.field for target in (*targets, *features)})
        stream = load_dataset(
            split.data,
            split.name,
            streaming=True,
            format="torch",
            fields=fields,
            cells=False,
            shuffle=shuffle,
            seed=seed,
        )
        assert isinstance(stream, CaseStream)
        self._stream = stream
        self._batch_size = batch_size
        self._loader: Any = DataLoader(
            stream,
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=collate_ragged,
            pin_memory=torch.cuda.is_available(),
        )
        self._epoch = 0
        self._given = 0
        self.seconds_waiting = 0.0

    def __len__(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self._stream) / self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, unless it is the one in progress."""
        if epoch != self._epoch:
            self._epoch, self._given = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is."""
        return {"epoch": self._epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up a position."""
        self._epoch, self._given = state["epoch"], state["given"]

    def __iter__(self) -> Iterator[RaggedBatch]:
        """The batches of the epoch that haven't been given yet."""
        self._stream.set_epoch(self._epoch)
        skip = self._given
        source = iter(self._loader)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            self.seconds_waiting += time.perf_counter() - asked
            if batch is None:
                return
            if skip:
                skip -= 1
                continue
            self._given += 1
            yield batch
