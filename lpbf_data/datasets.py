"""The data sets that a user holds: map-style for random access, streamed for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info
from torch_geometric.data import Dataset

from lpbf_data.errors import UsageError
from lpbf_data.folder import DatasetFolder
from lpbf_data.graph import case_to_data, case_to_tensors
from lpbf_data.reader import SplitReader
from lpbf_data.sampling import epoch_order, share_of
from lpbf_data.schema import FieldSpec

SampleFormat = Literal["pyg", "torch"]
Transform = Callable[[Any], Any]


@dataclass(frozen=True)
class Sampler:
    """How a case becomes a sample.

    Attributes:
        specs: Fields to read.
        format: "pyg" for `torch_geometric.data.Data`, "torch" for a dict of tensors.
        edges: Derive `edge_index`.
        cells: Give the cells.
        transform: Applied to every sample.
    """

    specs: tuple[FieldSpec, ...]
    format: SampleFormat = "pyg"
    edges: bool = False
    cells: bool = True
    transform: Transform | None = None

    def sample(self, reader: SplitReader, index: int) -> Any:
        """Read a case and make a sample of it."""
        case = reader.read(index, self.specs)
        convert = case_to_data if self.format == "pyg" else case_to_tensors
        sample = convert(case, edges=self.edges, cells=self.cells)
        return sample if self.transform is None else self.transform(sample)


class CaseDataset(Dataset):  # type: ignore[misc]
    """A split with random access: `len`, indexing, slices.

    Args:
        reader: The split.
        sampler: How a case becomes a sample.
    """

    def __init__(self, reader: SplitReader, sampler: Sampler) -> None:
        super().__init__(root=None, transform=None)
        self.reader = reader
        self.sampler = sampler

    @property
    def case_ids(self) -> list[str]:
        """Case ids in the order of the samples."""
        return [self.reader.addresses[i].case_id for i in self.indices()]

    def len(self) -> int:
        """Number of cases."""
        return len(self.reader)

    def get(self, idx: int) -> Any:
        """One sample."""
        return self.sampler.sample(self.reader, idx)


class CaseStream(IterableDataset[Any]):
    """A split as a stream, shared among the ranks of a process group and the workers of a DataLoader.

    Together they see every case exactly once an epoch.

    Args:
        reader: The split.
        sampler: How a case becomes a sample.
        shuffle: Draw a new permutation of all cases for each epoch.
        seed: Seed of the permutations.
    """

    def __init__(self, reader: SplitReader, sampler: Sampler, *, shuffle: bool = False, seed: int = 0) -> None:
        self.reader = reader
        self.sampler = sampler
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of cases that this rank sees in an epoch."""
        rank, ranks = _rank()
        return len(range(rank, len(self.reader), ranks))

    def __iter__(self) -> Iterator[Any]:
        """Samples of this rank and worker."""
        rank, ranks = _rank()
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        order = epoch_order(len(self.reader), shuffle=self.shuffle, seed=self.seed, epoch=self.epoch)
        for index in share_of(share_of(order, rank, ranks), number, workers):
            yield self.sampler.sample(self.reader, int(index))


def _rank() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def load_dataset(
    name: str | Path,
    split: str = "train",
    *,
    streaming: bool = False,
    format: SampleFormat = "pyg",  # noqa: A002 (the word that users of `datasets` know)
    fields: Sequence[str] | None = None,
    edges: bool = False,
    cells: bool = True,
    transform: Transform | None = None,
    shuffle: bool = False,
    seed: int = 0,
) -> CaseDataset | CaseStream:
    """Open one split of a data set.

    Args:
        name: A local folder or a URL that fsspec knows.
        split: "train", "validation", "test", or whatever the build was asked for.
        streaming: A stream instead of random access.
        format: "pyg" for `torch_geometric.data.Data`, "torch" for a dict of tensors.
        fields: Fields to read; all stored ones by default. Fewer fields are read faster.
        edges: Derive `edge_index` [2, num_edges] from the cells.
        cells: Give the cells [E, 8].
        transform: Applied to every sample.
        shuffle: For a stream: a new permutation of all cases for each epoch.
        seed: Seed of the permutations.

    Returns:
        A data set whose samples have `pos` [N, 3] in mm, `y` [N, 1] (Z displacement, mm), the fields [N, components],
        `cells`, `edge_index` and `case_id`.

    Raises:
        UsageError: If there is no such data set, split or field.
        StoreError: If it can't be read.
    """
    if format not in ("pyg", "torch"):
        raise UsageError(f"unknown format {format!r}; known are: pyg, torch")
    if shuffle and not streaming:
        raise UsageError("shuffle is for streams; shuffle random access with the DataLoader")
    reader = SplitReader(DatasetFolder(name), split)
    sampler = Sampler(reader.select_fields(fields), format, edges, cells, transform)
    if streaming:
        return CaseStream(reader, sampler, shuffle=shuffle, seed=seed)
    return CaseDataset(reader, sampler)
