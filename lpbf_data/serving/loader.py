"""`Loader`: batches for training, read ahead, with a position that is exact on any number of ranks and workers.

The order of the cases is decided in this process. Workers get requests for batches, and a DataLoader returns their
batches in the order of the requests, so the number of workers changes nothing. The position counts the batches that the
caller got; batches that were read ahead don't count.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lpbf_data.errors import UsageError
from lpbf_data.serving.batch_source import BatchRequest, BatchResult, BatchSource, SharedMemoryWarning
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

    Each `for` loop serves a whole epoch, the next one every time, also where the loop before was left early (as
    Lightning leaves its sanity check). Only a position that was loaded is resumed: `loader.load_state_dict(saved)`, or
    `loader.load_state_dict(loader.state_dict())` to continue after the last batch of a loop that was left. A loop ends
    once another one over the same loader begins, since they share position and workers; continuing it raises an error.
    Rank and number of ranks are asked for when a loop begins: the process group may be made after the loader.

    Attributes:
        dataset: The cases, with random access.
        epoch: Number of the current epoch.
        seconds_waiting: Time in seconds that the caller spent waiting for batches, in all.
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
        self._base_sharing = sharing
        self._ranks = ranks
        self._warned_of_ranks = False
        self._position_set = True  # whether the next loop starts at the position that was loaded
        self._epoch_set = True  # whether the next loop serves `epoch`, not the one after it
        self._loop = 0
        self._reading: weakref.ref[ReadAhead[BatchResult]] | None = None
        self._shuffle = shuffle
        self._read_ahead = read_ahead
        self._position = 0
        self._pin = False
        self._workers: DataLoader[BatchResult] | None = None
        self._worker_options: tuple[int, StartMethod | None] = 0, None
        self._drawn: tuple[int, NDArray[np.int64]] | None = None
        self._indices = batches.indices
        self._sizes = dataset.sizes
        self._digest = dataset.samples.digest(self._indices)
        sharing.check_sizes(self._sizes)

    @property
    def rank(self) -> int:
        """Rank that the batches are for: as given, or as torch.distributed says now."""
        return (self._ranks or rank_of_process())[0]

    @property
    def world_size(self) -> int:
        """Number of ranks: as given, or as torch.distributed says now."""
        return (self._ranks or rank_of_process())[1]

    @property
    def _sharing(self) -> Sharing:
        return replace(self._base_sharing, ranks=self.world_size)

    def start_workers(self, count: int, start_method: StartMethod | None) -> None:
        """Read in worker processes from now on.

        Args:
            count: Number of processes; 0 for none.
            start_method: How to start them; torch's default when None.
        """
        self._worker_options = count, start_method
        if count:
            self.dataset.samples.tensors.share_memory()
            self._workers = DataLoader(
                self._batches,
                batch_size=None,
                sampler=_Requests(self),
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
        # A copy has workers of its own: those of the original take their requests from the original.
        self.__dict__ |= state
        self.start_workers(*self._worker_options)

    def pin_memory(self) -> None:
        """Give batches in page-locked memory."""
        self._pin = True

    def _order(self) -> NDArray[np.int64]:
        """Order of the cases in the current epoch; drawn once an epoch, since that takes 0.1 s for a million cases."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            self._drawn = self.epoch, self._order_of(self.epoch)
        return self._drawn[1]

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        return epoch_order(len(self._indices), shuffle=self._shuffle, seed=self._batches.seed, epoch=epoch)

    def requests(self) -> Iterator[BatchRequest]:
        """Requests for the remaining batches of the epoch on this rank."""
        steps = self._sharing.steps(self._order(), self._sizes, self._position)
        return _requests_of(steps, self.rank, self.epoch, self._indices)

    def request(self, epoch: int, number: int) -> BatchRequest:
        """The request for one batch of any epoch on this rank; the position stays.

        Args:
            epoch: Number of the epoch.
            number: Number of the batch in it, from 0.

        Raises:
            IndexError: If the epoch has fewer batches.
        """
        sharing = self._sharing
        whole, cases = sharing.whole_steps(len(self._indices))
        skipped = min(number, whole)
        steps = sharing.steps(self._order_of(epoch), self._sizes, skipped * cases)
        requests = _requests_of(steps, self.rank, epoch, self._indices)
        found = next(islice(requests, number - skipped, None), None)
        if found is None:
            raise IndexError(f"epoch {epoch} has no batch number {number}")
        return found

    def points_of_batches(self, epoch: int, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Points of each batch of any epoch on this rank, without a request for each; the position stays.

        Args:
            epoch: Number of the epoch.
            sizes: Points of each case, [cases], in the order of the data set.

        Returns:
            [batches] int64.
        """
        sharing, rank, order = self._sharing, self.rank, self._order_of(epoch)
        whole, cases = sharing.whole_steps(len(order))
        # As `Sharing.steps` shares out whole steps: each rank takes the next batch_size cases.
        of_whole = sizes[order[: whole * cases]].reshape(whole, sharing.ranks, -1 if whole else 1)[:, rank].sum(axis=1)
        shares = (step.shares[rank] for step in sharing.steps(order, self._sizes, whole * cases))
        rest = [sizes[list(share)].sum() for share in shares if share]
        return np.concatenate([of_whole, np.array(rest, dtype=np.int64)])

    def __len__(self) -> int:
        """Number of batches in a whole epoch; it may vary from epoch to epoch where batches have a budget of points."""
        return self._sharing.num_steps(self.rank, self._order(), self._sizes)

    def __iter__(self) -> Iterator[Any]:
        """The batches of a whole epoch, or those after a position that was loaded.

        Raises:
            StoreError: If a case can't be read, and `on_error` is "raise".
            UsageError: If another loop over this loader has begun since.
        """
        if self._ranks is None and not self._warned_of_ranks:
            self._warned_of_ranks = True
            warn_of_missing_group((self.rank, self.world_size))
        loop = self._begin()
        waited = self.seconds_waiting
        with ReadAhead(self._source(), self._read_ahead, _pinned if self._pin else None) as ready:
            self._reading = weakref.ref(ready)
            for served in ready:
                self.seconds_waiting = waited + ready.seconds_waiting
                if served.error is not None:
                    raise served.error
                self._position += served.consumed
                self._report(served.skipped)
                yield served.batch
                self._check_latest(loop)
        self.epoch, self._position = self.epoch + 1, 0

    def each(self, read: Callable[[BatchRequest], T]) -> Iterator[T]:
        """As iterating, but with batches that a function makes of the requests instead of batches that are read here.

        The position is counted as in a loop over batches.

        Args:
            read: Makes a batch of a request, which names its cases; called in this thread.
        """
        loop = self._begin()
        for request in self.requests():
            batch = read(request)
            self._position += request.consumed
            yield batch
            self._check_latest(loop)
        self.epoch, self._position = self.epoch + 1, 0

    def read(self, request: BatchRequest) -> Any:
        """The batch of a request, read in this process; the position stays.

        Args:
            request: One of `requests`.

        Raises:
            StoreError: If a case can't be read, and `on_error` is "raise"; or if none can be.
        """
        served = self._batches[request]
        if served.error is not None:
            raise served.error
        return served.batch

    def _source(self) -> Iterator[BatchResult]:
        """The remaining batches of the epoch, from workers or, where there are none, read in this process."""
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
        return (self._batches[request] for request in self.requests())

    def _begin(self) -> int:
        """Move to the position where the next loop starts, and stop the loop before; returns the number of the loop."""
        if self._reading is not None and (before := self._reading()) is not None:
            before.stop()  # else two threads would take the batches of the same workers
        self._loop += 1
        if self._position_set:
            self._skip_finished()
        else:
            self.epoch, self._position = self.epoch + (self._position > 0 and not self._epoch_set), 0
        self._position_set = self._epoch_set = False
        return self._loop

    def _check_latest(self, loop: int) -> None:
        """Raise a UsageError in a loop that isn't the latest one over this loader."""
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
        """The position: plain numbers and texts, the same on all ranks after the same number of batches.

        `consumed` counts the cases of the epoch that were served on all ranks together.
        """
        finished = self._is_finished()
        return {
            "seed": self._batches.seed,
            "shuffle": int(self._shuffle),
            "epoch": self.epoch + finished,
            "consumed": 0 if finished else self._position,
            "count": len(self._indices),
            "digest": self._digest,
        }

    def load_state_dict(self, state: State) -> None:
        """Resume at a saved position, with any number of ranks and workers and any batch size.

        Args:
            state: What `state_dict` returned.

        Raises:
            UsageError: If it belongs to other data, or to another seed or way of shuffling.
        """
        own = self.state_dict()
        check_state(state, own)
        if state["seed"] != own["seed"]:
            raise UsageError(f"the saved state has seed={state['seed']}, the loader has seed={own['seed']}")
        self.epoch, self._position, self._position_set = int(state["epoch"]), int(state["consumed"]), True


def _requests_of(steps: Iterator[Step], rank: int, epoch: int, indices: Sequence[int]) -> Iterator[BatchRequest]:
    # A function and no method: held by the DataLoader, which the loader holds, it must not hold the loader.
    for step in steps:
        if step.shares[rank]:
            yield BatchRequest(epoch, tuple(indices[case] for case in step.shares[rank]), step.consumed)


class _Requests:
    """The requests of a loader, as the sampler of a DataLoader: made anew for each epoch."""

    def __init__(self, loader: Loader) -> None:
        # Were loader and DataLoader to hold each other, workers would end late: a garbage collection closes the queue
        # that tells them to end before it ends them, and each is waited for in vain for five seconds.
        self._loader = weakref.ref(loader)

    def __iter__(self) -> Iterator[BatchRequest]:
        loader = self._loader()
        return iter(()) if loader is None else loader.requests()


class _Received:
    """The results of workers; batches that had no room in shared memory are read in this process."""

    def __init__(self, served: Iterator[BatchResult], batches: BatchSource) -> None:
        self._served = served
        self._batches = batches

    def __iter__(self) -> Iterator[BatchResult]:
        return self

    def __next__(self) -> BatchResult:
        return self._batches.received(next(self._served))


def _unchanged(served: Any) -> Any:
    return served


def _pinned(served: BatchResult) -> BatchResult:
    return served if served.error is not None else served._replace(batch=served.batch.pin_memory())
