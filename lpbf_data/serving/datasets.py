"""`load_dataset` and its data sets: map-style for random access, iterable for streaming."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, get_args

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from lpbf_data.case.feature_schema import FEATURES_VERSION, resolve_features
from lpbf_data.case.statistics import FieldStatistics
from lpbf_data.errors import UsageError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.reading.cache import DEFAULT_SIZE, Cache, CachedCases, CollectionKey, cache_root, parse_size
from lpbf_data.reading.cache_eviction import FOOTERS
from lpbf_data.reading.footer_cache import FooterCache
from lpbf_data.reading.split_reader import SplitReader
from lpbf_data.reading.tensors import CaseTensors
from lpbf_data.serving.attribute_hints import DATASET_HINTS, missing_attribute
from lpbf_data.serving.process_rank import check_rank, check_seed
from lpbf_data.serving.rank_sharing import Uneven
from lpbf_data.serving.samples import CaseSamples, SampleFormat, Transform
from lpbf_data.serving.stream import CaseStream, OnError
from lpbf_data.serving.worker_epochs import SharedNumbers
from lpbf_data.stores.selection import TARGET_FIELD, Selection

__all__ = ["CaseDataset", "CaseStream", "load_dataset"]


class CaseDataset(Dataset[Any]):
    """A split with random access: `len`, indexing, slices; samples as [load_dataset][lpbf_data.load_dataset] says.

    In the format "pyg" it is a [GraphDataset][lpbf_data.serving.graph.GraphDataset], a data set of PyG as well.

    Random transforms draw anew every time that a case is read. After `set_epoch` they draw from (seed, epoch, case)
    alone: the same in any process, and whenever the case is read.

    Args:
        samples: The cases.
        seed: Seed of random transforms.
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise missing_attribute(self, name, DATASET_HINTS)

    def __init__(self, samples: CaseSamples, seed: int = 0) -> None:
        self.samples = samples
        self._indices: Sequence[int] | None = None
        self.seed = check_seed(seed)
        # Shared with the workers of a DataLoader that live on: the epoch and one, 0 until one is set.
        self._epoch = SharedNumbers(1)
        self._reads: Counter[int] = Counter()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which with seed and case decides what random transforms draw.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self._epoch[0] = epoch + 1

    @property
    def case_ids(self) -> list[str]:
        """Case ids in the order of the samples."""
        return [self.samples.case_id(index) for index in self.indices()]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Points of each case, in the order of the samples."""
        return self.samples.sizes[list(self.indices())]

    def __getitem__(self, idx: Any) -> Any:
        """A sample, or the data set of some of the cases: slice, numbers, or mask.

        Raises:
            IndexError: If there is no such case.
            UsageError: If it is the name of a split.
        """
        if isinstance(idx, str):
            split = self.samples.tensors.reader.split
            raise UsageError(
                f"this is the split {split}, whose cases are indexed by numbers, not by {idx!r}; load_dataset opens "
                'one split, train unless another is named: load_dataset(…, split="test")'
            )
        if not isinstance(idx, SupportsIndex) or getattr(idx, "ndim", 0) > 0:
            return self.index_select(idx)
        number = idx.__index__()
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no case {number}: the data set has {len(self)}")
        return self.get(self.indices()[number])

    def index_select(self, idx: Any) -> Self:
        """The data set of some of the cases.

        Args:
            idx: A slice, whose ends may be shares of the whole such as 0.9; numbers of cases; or a mask.

        Raises:
            IndexError: If there is no such case, or if a mask is not as long as the data set.
        """
        if isinstance(idx, slice):
            start, stop = (round(end * len(self)) if isinstance(end, float) else end for end in (idx.start, idx.stop))
            chosen: Any = slice(start, stop, idx.step)
        else:
            chosen = np.asarray(idx) if len(idx) else np.empty(0, int)
        part = copy.copy(self)
        part._indices = np.asarray(self.indices(), int)[chosen].ravel().tolist()
        return part

    def indices(self) -> Sequence[int]:
        """Numbers of the cases in the split, in the order of the samples."""
        return range(len(self.samples)) if self._indices is None else self._indices

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.indices())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)})"

    def get(self, idx: int) -> Any:
        """One sample, by the number of its case in the split."""
        if not getattr(self.samples.transform, "random", False):
            return self.samples.sample(idx)
        if (epoch := self._epoch[0] - 1) >= 0:
            return self.samples.sample(idx, seed=self.seed, epoch=epoch)
        # Nobody says which epoch it is. A worker's seed differs from iteration to iteration of a DataLoader, unless
        # workers live on; how often a case was read here, where they do.
        self._reads[idx] += 1
        worker = get_worker_info()
        drawn = [self._reads[idx] - 1] if worker is None else [self._reads[idx] - 1, worker.seed]
        return self.samples.sample(idx, seed=self.seed, epoch=drawn)

    def feature_statistics(self) -> dict[str, FieldStatistics]:
        """Statistics of each column of the features that it was opened with; every case is read once.

        Returns:
            Column name, say "part_offset_x", to statistics.
        """
        return self.samples.feature_statistics(self.indices())

    def statistics(self) -> dict[str, FieldStatistics]:
        """Statistics of each column over the cases, by the names of the columns, such as "displacement_z".

        From the manifest; for the published layout, which has none, from the values of the selected fields.
        """
        return self.samples.statistics(self.indices())


def load_dataset(
    name: str | Path,
    split: str = "train",
    *,
    streaming: bool = False,
    format: SampleFormat = "pyg",  # noqa: A002 (the word that users of `datasets` know)
    fields: Sequence[str] | str | None = None,
    edges: bool = False,
    cells: bool = True,
    features: Sequence[str] | str = (),
    transform: Transform | None = None,
    shuffle: bool = False,
    seed: int = 0,
    uneven: Uneven = "drop",
    batch_size: int = 1,
    rank: int | None = None,
    world_size: int | None = None,
    on_error: OnError = "raise",
    cache: Cache = None,
    cache_size: int | str = DEFAULT_SIZE,
    in_memory: bool = False,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    offline: bool | None = None,
) -> CaseDataset | CaseStream:
    """Open one split of a data set: train, unless another is named.

    This differs from `datasets.load_dataset`, which without a split gives all of them in a dict.

    Args:
        name: A local folder; else a URL that fsspec knows; else an id of the Hugging Face hub, such as
            "vedantpuri/LPBF_FLARE".
        split: "train" (which is taken where none is named), "validation", "test", or another split that the build made.
        streaming: A stream instead of random access.
        format: "pyg" for `torch_geometric.data.Data`, "torch" for a dict of tensors.
        fields: Fields to read; all stored ones by default. Fewer fields are read faster; `[]` reads points and target.
        edges: Derive `edge_index` [2, num_edges] from the cells.
        cells: Give the cells [E, 8], of a data set that has any.
        features: Features of the shape, derived from points and cells when a case is decoded: names of
            [SHAPE_FEATURES][lpbf_data.case.feature_schema.SHAPE_FEATURES], or "geometry" for all.
        transform: Applied to every sample.
        shuffle: For a stream: a new permutation of all cases for each epoch.
        seed: Seed of the permutations, and of random transforms.
        uneven: For a stream shared by ranks: what becomes of the last cases; see
            [Uneven][lpbf_data.serving.rank_sharing.Uneven].
        batch_size: For a stream read by a DataLoader with workers: its batch size.
        rank: For a stream: rank that the cases are for; as torch.distributed says by default.
        world_size: For a stream: number of ranks.
        on_error: For a stream: "raise", or "skip" to leave out what can't be read.
        cache: Where decoded cases are kept: a folder; None for LPBF_CACHE or the user's cache folder; False for none.
        cache_size: Bytes that the whole cache may take, as a number or such as "20 GB".
        in_memory: Read all cases now and keep them in memory.
        revision: For the hub: branch, tag or commit.
        cache_dir: For the hub: where huggingface_hub keeps files.
        token: For the hub: token; the saved one by default.
        offline: For the hub: use only what lies on this machine; as HF_HUB_OFFLINE says by default.

    Returns:
        A data set whose samples have `pos` [N, 3] in mm, `y` [N, 1] (Z displacement, mm) where displacement is stored,
        the fields and features [N, components], `cells`, `edge_index` and `case_id`. Samples of a point set have `pos`
        [N, d] in the unit of its coordinates, `y` [N, F] with its targets, and neither cells nor edges; see
        [PointSchema][lpbf_data.case.point_schema.PointSchema].

    Raises:
        UsageError: If there is no such data set, split or field, or the options don't fit together.
        StoreError: If it can't be read.
    """
    check_choice("format", format, get_args(SampleFormat))
    check_choice("on_error", on_error, get_args(OnError))
    check_choice("uneven", uneven, get_args(Uneven))
    seed = check_seed(seed)
    ranks = check_rank(rank, world_size)
    if batch_size < 1:
        raise UsageError(f"batch_size must be positive, not {batch_size}")
    if shuffle and not streaming:
        raise UsageError("shuffle is for streams; shuffle random access with the DataLoader, or use make_loader")
    folder = DatasetFolder(name, revision=revision, cache_dir=cache_dir, token=token, offline=offline)
    root, limit = cache_root(cache), parse_size(cache_size)
    reader = SplitReader(folder, split, None if root is None else FooterCache(root / FOOTERS))
    tensors = CaseTensors(reader, _select(reader, fields, features, cells=cells, edges=edges))
    if in_memory:
        tensors.load_into_memory()
    elif root is not None:
        no_network = getattr(folder.files, "offline", False)
        tensors.cache = CachedCases(root, _collection_key(tensors), limit, offline=no_network)
    samples = CaseSamples(tensors, format, transform)
    if not streaming and format == "pyg":
        from lpbf_data.serving.graph import GraphDataset  # torch_geometric takes seconds to import

        return GraphDataset(samples, seed)
    if not streaming:
        return CaseDataset(samples, seed)
    return CaseStream(
        samples, shuffle=shuffle, seed=seed, uneven=uneven, batch_size=batch_size, on_error=on_error, ranks=ranks
    )


def _select(
    reader: SplitReader,
    fields: Sequence[str] | str | None,
    features: Sequence[str] | str,
    *,
    cells: bool,
    edges: bool,
) -> Selection:
    """What to read of each case.

    Raises:
        UsageError: If a field isn't stored, or cells are needed and there are none.
    """
    derived = resolve_features(features)
    if (points := reader.points) is None:
        target = TARGET_FIELD in {spec.name for spec in reader.field_specs}
        return Selection(reader.select_fields(fields), target, cells, edges, derived)
    if edges or derived:
        what = "edges are" if edges else "features of the shape are"
        raise UsageError(f"{what} derived from hexahedra, and {reader.folder.name} holds points without cells")
    return Selection(
        reader.select_fields(fields),
        cells=False,
        coordinates=points.coordinates,
        target_columns=points.target_columns,
    )


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Check the value of an option that has a few known ones.

    Args:
        name: Name of the option.
        value: Its value.
        known: The known values.

    Raises:
        UsageError: If it is none of them.
    """
    if value not in known:
        raise UsageError(f"unknown {name} {value!r}; known are: {', '.join(known)}")


def _collection_key(tensors: CaseTensors) -> CollectionKey:
    """Key of the cached tensors: everything that they depend on."""
    reader = tensors.reader
    local = reader.folder.local
    source = reader.folder.files.identity if local is None else str(local.resolve())
    names = tensors.selection.names
    if tensors.selection.features:
        names = (*names, f"features of version {FEATURES_VERSION}")
    return CollectionKey(source, reader.catalog.digest, reader.split, names, local is not None)
