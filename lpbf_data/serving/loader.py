"""`Loader`: batches for training, read ahead, with a position that is exact on any number of ranks and workers.

The order is decided in this process. Workers are told which cases to read, and a DataLoader gives their batches back
in that order, so how many workers there are changes nothing. What was handed to the caller is counted here, batch by
batch; what was read ahead doesn't count.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lpbf_data.errors import UsageError
from lpbf_data.serving.batch_source import BatchSource, Order, Served, SharedMemoryWarning
from lpbf_data.serving.datasets import CaseDataset
from lpbf_data.serving.epoch_order import epoch_order
from lpbf_data.serving.process_rank import rank_of_process, warn_of_missing_group
from lpbf_data.serving.rank_sharing import Sharing, Step
from lpbf_data.serving.read_ahead import ReadAhead
from lpbf_data.serving.stream import SkippedCaseWarning, State, check_state

StartMethod = Literal["fork", "spawn", "forkserver"]
T = TypeVar("T")


class Loader:
    """Batches of one epoch after the other; made by [make_loader][lpbf_data.make_loader].

    Each `for` loop gives a whole epoch, the next one every time, also where the loop before was left early (as
    Lightning leaves its sanity check). Only a position that was loaded is taken up as it is:
    `loader.load_state_dict(saved)`, or `loader.load_state_dict(loader.state_dict())` to go on behind the last batch of
    a loop that was left. A loop ends, with an error where it is gone on with, once another one over the same loader
    begins: they share position and workers. Ranks are those of the process group at the time of a loop: it may be made
    after the loader.

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
        self._loop = 0
        self._reading: weakref.ref[ReadAhead[Served]] | None = None
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
        return self.__dict__ | {"_workers": None, "_reading": None}

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
        loop = self._begin()
        waited = self.seconds_waiting
        with ReadAhead(self._source(), self._read_ahead, _pinned if self._pin else None) as ready:
            self._reading = weakref.ref(ready)
            for served in ready:
                self.seconds_waiting = waited + ready.seconds_waiting
                if served.error is not None:
                    raise served.error
                self._position += served.handed
                self._report(served.skipped)
                yield served.batch
                self._check_alone(loop)
        self.epoch, self._position = self.epoch + 1, 0

    def each(self, read: Callable[[Order], T]) -> Iterator[T]:
        """A whole epoch, or what is left of it, of what a function makes of each order, in place of batches read here.

        The position is counted as in a loop over batches.

        Args:
            read: Is given which cases make the next batch; called in this thread.
        """
        loop = self._begin()
        for order in self.orders():
            made = read(order)
            self._position += order.handed
            yield made
            self._check_alone(loop)
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

    def _begin(self) -> int:
        """Stand where the next loop starts; returns its number. One that was not left yet reads no further."""
        if self._reading is not None and (before := self._reading()) is not None:
            before.stop()  # else two threads would take the batches of the same workers
        self._loop += 1
        if self._placed:
            self._skip_finished()
        else:
            self.epoch, self._position = self.epoch + (self._position > 0 and not self._epoch_set), 0
        self._placed = self._epoch_set = False
        return self._loop

    def _check_alone(self, loop: int) -> None:
        if loop != self._loop:
            raise UsageError(
                "another loop over this loader has begun, which ended this one: they share position and workers; make "
                "a loader for each of two loops at the same time"
            )

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
