"""`make_loader`: batches for training, read ahead, with a position that is exact on any number of ranks and workers.

The order is decided in this process. Workers are told which cases to read, and a DataLoader gives their batches back
in that order, so how many workers there are changes nothing. What was handed to the caller is counted here, batch by
batch; what was read ahead doesn't count.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lpbf_data.errors import UsageError
from lpbf_data.reading.cache import DEFAULT_SIZE, Cache
from lpbf_data.serving.batch_source import COLLATE, BatchSource, Collate, Order, Served, SharedMemoryWarning
from lpbf_data.serving.datasets import CaseDataset, load_dataset
from lpbf_data.serving.ranks import check_rank, check_seed, rank_of_process, warn_of_missing_group
from lpbf_data.serving.read_ahead import ReadAhead
from lpbf_data.serving.samples import CaseSamples, Transform
from lpbf_data.serving.sampling import Sharing, Step, Uneven, epoch_order
from lpbf_data.serving.stream import CaseStream, OnError, SkippedCaseWarning, State, check_state

_WHERE: Final = ("revision", "cache_dir", "token", "offline")
StartMethod = Literal["fork", "spawn", "forkserver"]


class Loader:
    """Batches of one epoch after the other; made by [make_loader][lpbf_data.make_loader].

    Each `for` loop gives a whole epoch, the next one every time, also where the loop before was left early (as
    Lightning leaves its sanity check). Only a position that was loaded is taken up as it is:
    `loader.load_state_dict(saved)`, or `loader.load_state_dict(loader.state_dict())` to go on behind the last batch of
    a loop that was left. Ranks are those of the process group at the time of a loop: it may be made after the loader.

    Attributes:
        dataset: The cases, with random access.
        epoch: Number of the epoch at work.
        seconds_waiting: Time that the caller spent waiting for batches, in all.
        skipped: Id to reason for cases that were left out because they couldn't be read.
    """

    def __init__(
        self,
        dataset: CaseDataset,
        batches: BatchSource,
        sharing: Sharing,
        ranks: tuple[int, int] | None,
        *,
        shuffle: bool,
        read_ahead: int,
    ) -> None:
        self.dataset = dataset
        self.epoch = 0
        self.seconds_waiting = 0.0
        self.skipped: dict[str, str] = {}
        self._batches = batches
        self._shares = sharing
        self._ranks = ranks
        self._told_of_ranks = False
        # Whether the next loop starts at the position that is set, and whether in the epoch that is.
        self._placed = self._epoch_set = True
        self._shuffle = shuffle
        self._read_ahead = read_ahead
        self._position = 0
        self._pin = False
        self._workers: DataLoader[Served] | None = None
        self._hands: tuple[int, StartMethod | None] = 0, None
        self._drawn: tuple[int, NDArray[np.int64]] | None = None
        self._places = batches.places
        self._sizes = dataset.sizes
        self._digest = dataset.samples.digest(self._places)
        sharing.check_sizes(self._sizes)

    @property
    def rank(self) -> int:
        """Whose batches these are: as asked for, or as torch.distributed says now."""
        return (self._ranks or rank_of_process())[0]

    @property
    def world_size(self) -> int:
        """Number of ranks: as asked for, or as torch.distributed says now."""
        return (self._ranks or rank_of_process())[1]

    @property
    def _sharing(self) -> Sharing:
        return self._shares if self._shares.ranks == self.world_size else replace(self._shares, ranks=self.world_size)

    def start_workers(self, count: int, start_method: StartMethod | None) -> None:
        """Let processes read.

        Args:
            count: Number of processes; 0 for none.
            start_method: How to start them; torch's default when None.
        """
        self._hands = count, start_method
        if count:
            self.dataset.samples.tensors.share_memory()
            self._workers = DataLoader(
                self._batches,
                batch_size=None,
                sampler=_Orders(self),
                num_workers=count,
                collate_fn=_unchanged,
                multiprocessing_context=start_method,
                persistent_workers=True,
                # Else each epoch would draw from what models draw from, and one that is resumed once more.
                generator=torch.Generator().manual_seed(self._batches.seed % (1 << 63)),
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_workers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy has workers of its own: those of the original take their orders from the original.
        self.__dict__ |= state
        self.start_workers(*self._hands)

    def pin_memory(self) -> None:
        """Give batches in page-locked memory."""
        self._pin = True

    def _order(self) -> NDArray[np.int64]:
        """Order of the epoch at work; drawn once an epoch, since that takes 0.1 s for a million cases."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            order = epoch_order(len(self._places), shuffle=self._shuffle, seed=self._batches.seed, epoch=self.epoch)
            self._drawn = self.epoch, order
        return self._drawn[1]

    def orders(self) -> Iterator[Order]:
        """What is left of the epoch for this rank."""
        steps = self._sharing.steps(self._order(), self._sizes, self._position)
        return _orders_of(steps, self.rank, self.epoch, self._places)

    def __len__(self) -> int:
        """Number of batches in a whole epoch; it may vary from epoch to epoch where batches have a budget of points."""
        return self._sharing.num_steps(self.rank, self._order(), self._sizes)

    def __iter__(self) -> Iterator[Any]:
        """A whole epoch, or what is left of it behind a position that was loaded."""
        if self._ranks is None and not self._told_of_ranks:
            self._told_of_ranks = True
            warn_of_missing_group((self.rank, self.world_size))
        self._begin()
        waited = self.seconds_waiting
        with ReadAhead(self._source(), self._read_ahead, _pinned if self._pin else None) as ready:
            for served in ready:
                self.seconds_waiting = waited + ready.seconds_waiting
                if served.error is not None:
                    raise served.error
                self._position += served.handed
                self._report(served.skipped)
                yield served.batch
        self.epoch, self._position = self.epoch + 1, 0

    def _source(self) -> Iterator[Served]:
        """The batches that are left of the epoch, from workers or, where there are none, read here."""
        if self._workers is not None:
            try:
                return _Received(iter(self._workers), self._batches)
            except OSError as error:
                self._workers = None
                warnings.warn(
                    f"no workers can be started ({error}), so this process reads by itself. They need /dev/shm, and "
                    "enough processes and open files (ulimit -u, ulimit -n)",
                    SharedMemoryWarning,
                    stacklevel=3,
                )
        return (self._batches[order] for order in self.orders())

    def _begin(self) -> None:
        """Stand where the next loop starts."""
        if self._placed:
            self._skip_finished()
        else:
            self.epoch, self._position = self.epoch + (self._position > 0 and not self._epoch_set), 0
        self._placed = self._epoch_set = False

    def _skip_finished(self) -> None:
        if self._is_finished():
            self.epoch, self._position = self.epoch + 1, 0

    def _is_finished(self) -> bool:
        """Whether nothing is left of the epoch, for any rank, though it was begun."""
        left = self._sharing.steps(self._order(), self._sizes, self._position)
        return self._position > 0 and next(left, None) is None

    def _report(self, skipped: dict[str, str]) -> None:
        for case_id, reason in skipped.items():
            if case_id not in self.skipped:
                warnings.warn(f"left out: {reason}", SkippedCaseWarning, stacklevel=3)
                self.skipped[case_id] = reason

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; a position in it that was loaded stays."""
        self._skip_finished()
        if epoch != self.epoch:
            self.epoch, self._position = epoch, 0
        self._epoch_set = True

    def state_dict(self) -> State:
        """Where training stands: plain numbers and texts, the same on all ranks after the same number of batches.

        `consumed` counts the cases of the epoch that were handed out on all ranks together.
        """
        finished = self._is_finished()
        return {
            "seed": self._batches.seed,
            "shuffle": int(self._shuffle),
            "epoch": self.epoch + finished,
            "consumed": 0 if finished else self._position,
            "count": len(self._places),
            "digest": self._digest,
        }

    def load_state_dict(self, state: State) -> None:
        """Take up a position, with any number of ranks and workers and any batch size.

        Raises:
            UsageError: If it belongs to other data, or to another seed or way of shuffling.
        """
        mine = self.state_dict()
        check_state(state, mine)
        if state["seed"] != mine["seed"]:
            raise UsageError(f"the saved state has seed={state['seed']}, the loader has seed={mine['seed']}")
        self.epoch, self._position, self._placed = int(state["epoch"]), int(state["consumed"]), True


def _orders_of(steps: Iterator[Step], rank: int, epoch: int, places: Sequence[int]) -> Iterator[Order]:
    # A function and no method: held by the DataLoader, which the loader holds, it must not hold the loader.
    for step in steps:
        if step.shares[rank]:
            yield Order(epoch, tuple(places[case] for case in step.shares[rank]), step.handed)


class _Orders:
    """The orders of a loader, for the sampler of a DataLoader: made anew for each epoch."""

    def __init__(self, loader: Loader) -> None:
        # Were loader and DataLoader to hold each other, workers would end late: a garbage collection closes the queue
        # that tells them to end before it ends them, and each is waited for in vain for five seconds.
        self._loader = weakref.ref(loader)

    def __iter__(self) -> Iterator[Order]:
        loader = self._loader()
        return iter(()) if loader is None else loader.orders()


class _Received:
    """What workers have served, and what they had no room for, read here."""

    def __init__(self, served: Iterator[Served], batches: BatchSource) -> None:
        self._served = served
        self._batches = batches

    def __iter__(self) -> Iterator[Served]:
        return self

    def __next__(self) -> Served:
        return self._batches.received(next(self._served))


def _unchanged(served: Any) -> Any:
    return served


def _pinned(served: Served) -> Served:
    return served if served.error is not None else served._replace(batch=served.batch.pin_memory())


def make_loader(
    data: str | Path | CaseDataset | CaseStream,
    split: str = "train",
    *,
    batch_size: int | None = None,
    max_points: int | None = None,
    shuffle: bool | None = None,
    seed: int | None = None,
    num_workers: int = 0,
    fields: Sequence[str] | None = None,
    cells: bool = False,
    edges: bool = False,
    transform: Transform | None = None,
    collate: Collate = "ragged",
    rank: int | None = None,
    world_size: int | None = None,
    uneven: Uneven = "drop",
    on_error: OnError | None = None,
    cache: Cache = None,
    cache_size: int | str = DEFAULT_SIZE,
    in_memory: bool = False,
    pin_memory: bool | None = None,
    start_method: StartMethod | None = None,
    read_ahead: int = 2,
    **where: Any,
) -> Loader:
    """Batches for training.

    Args:
        data: The data set by its name, as [load_dataset][lpbf_data.load_dataset] takes it; or an opened one, which
            has its own fields, cells, edges and cache.
        split: Its split.
        batch_size: Cases a rank and step, 1 by default; together with `max_points` the largest number of them, any by
            default.
        max_points: Points a rank and step at most; steps are balanced over the ranks.
        shuffle: Draw a new permutation of all cases for each epoch; as an opened stream was asked to, else False.
        seed: Seed of the permutations, and of random transforms; that of an opened data set, else 0.
        num_workers: Processes that read; 0 reads in a thread of this one, enough for cached data.
        fields: Fields to read beside points and target; all stored ones by default, `[]` for none.
        cells: Give the cells.
        edges: Derive the edges.
        transform: Applied to every sample, a dict of tensors (PyG data with collate="pyg").
        collate: "ragged" for [RaggedBatch][lpbf_data.serving.collating.RaggedBatch], "pyg" for
            `torch_geometric.data.Batch`, or a function of a list of samples.
        rank: Whose batches; as torch.distributed says by default.
        world_size: Number of ranks; as torch.distributed says by default.
        uneven: What becomes of the last cases of an epoch; see [Uneven][lpbf_data.serving.sampling.Uneven].
        on_error: "raise", or "skip" to leave out what can't be read, with a warning, and count it in `skipped`; as
            an opened stream was asked to, else "raise".
        cache: Where decoded cases are kept; see [load_dataset][lpbf_data.load_dataset].
        cache_size: Bytes that the whole cache may take.
        in_memory: Read all cases now and keep them in memory.
        pin_memory: Give batches in page-locked memory; where there is a GPU by default.
        start_method: How workers are started: "fork", "spawn" or "forkserver"; torch's default when None.
        read_ahead: Batches to have ready in this process.
        **where: `revision`, `cache_dir`, `token` and `offline`, for the hub.

    Raises:
        UsageError: If there is no such data set, split or field, or the options don't fit together.
        StoreError: If it can't be read.
    """
    ranks = check_rank(rank, world_size)
    if not callable(collate) and collate not in COLLATE:
        raise UsageError(f"unknown collate {collate!r}; known are: {', '.join(COLLATE)}, or a function")
    if num_workers < 0:
        raise UsageError(f"num_workers={num_workers} must not be negative")
    if read_ahead < 1:
        raise UsageError(f"read_ahead={read_ahead} must be positive")
    if batch_size is None and max_points is None:
        batch_size = 1
    sharing = Sharing((ranks or rank_of_process())[1], batch_size, max_points, uneven)
    _check_words(where, opened=not isinstance(data, str | Path))
    if isinstance(data, str | Path):
        data = load_dataset(
            data, split, fields=fields, cells=cells, edges=edges, cache=cache, cache_size=cache_size,
            in_memory=in_memory, **where,
        )  # fmt: skip
    elif given := _of_opening(fields, cells, edges, cache, cache_size, in_memory):
        raise UsageError(f"an opened data set has its own {given[0]}; give it to load_dataset")
    if not isinstance(data, CaseDataset | CaseStream):
        raise UsageError(f"data must be a name or an opened data set, not {type(data).__name__}")
    if isinstance(data, CaseStream):
        shuffle = data.shuffle if shuffle is None else shuffle
        on_error = on_error or data.on_error
    seed = data.seed if seed is None else check_seed(seed)
    on_error = on_error or "raise"
    if on_error not in get_args(OnError):
        raise UsageError(f"unknown on_error {on_error!r}; known are: {', '.join(get_args(OnError))}")
    dataset = data if isinstance(data, CaseDataset) else CaseDataset(data.samples, data.seed)
    samples = dataset.samples
    samples = CaseSamples(samples.tensors, "pyg" if collate == "pyg" else "torch", transform or samples.transform)
    batches = BatchSource(samples, list(dataset.indices()), collate, seed, on_error)
    loader = Loader(dataset, batches, sharing, ranks, shuffle=bool(shuffle), read_ahead=read_ahead)
    if pin_memory or (pin_memory is None and torch.cuda.is_available()):
        loader.pin_memory()
    loader.start_workers(num_workers, start_method)
    return loader


def _of_opening(
    fields: Sequence[str] | None, cells: object, edges: object, cache: Cache, cache_size: int | str, in_memory: object
) -> list[str]:
    """Names of the options that decide how a data set is opened, as far as they were given."""
    given = (
        ("fields", fields is not None),
        ("cells", bool(cells)),
        ("edges", bool(edges)),
        ("cache", cache is not None),
        ("cache_size", cache_size != DEFAULT_SIZE),
        ("in_memory", bool(in_memory)),
    )
    return [name for name, is_given in given if is_given]


def _check_words(where: Mapping[str, Any], *, opened: bool) -> None:
    """Refuse options that don't exist, or that come too late.

    Raises:
        UsageError: With the nearest name.
    """
    for name in where:
        if name not in _WHERE:
            known = [*inspect.signature(make_loader).parameters, *_WHERE]
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(f"make_loader has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if opened:
            raise UsageError(f"an opened data set has its own {name}; give it to load_dataset")
