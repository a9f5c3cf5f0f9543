"""A split as a stream, shared among ranks and workers, whose position can be saved and taken up again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from lpbf_data.errors import StoreError, UsageError
from lpbf_data.serving.epoch_order import epoch_order
from lpbf_data.serving.other_names import OF_STREAMS, missing_attribute
from lpbf_data.serving.process_rank import (
    check_seed,
    rank_among_callers,
    rank_of_process,
    shared_by_wrapper,
    warn_of_missing_group,
)
from lpbf_data.serving.rank_sharing import Uneven, turns_of_rank
from lpbf_data.serving.samples import CaseSamples
from lpbf_data.serving.worker_epochs import SharedNumbers, WorkerEpochs

OnError = Literal["raise", "skip"]
State = dict[str, Any]


class SkippedCaseWarning(UserWarning):
    """A case that couldn't be read was left out, as `on_error="skip"` asks."""


class CaseStream(IterableDataset[Any]):
    """A split as a stream. Ranks take turns in the order of the epoch, and so do the workers of a DataLoader.

    Each loop serves a whole epoch, the next one every time, also where the loop before was left early; only a position
    that was loaded, or an epoch that was set, is taken up as it is. Workers of a DataLoader that end with every epoch
    keep to that, too. Where accelerate shares out what it takes from a stream (`accelerator.prepare`), each process
    gives it all cases.

    Iterated directly, `state_dict` says where the stream stands. In the workers of torchdata's StatefulDataLoader it
    does too, for the same number of workers. With a plain DataLoader the workers' copies move and this one doesn't:
    tell it by `advance` how many samples were handed to you, and it knows where to go on. (Workers that live on after a
    loop was left early are told by `stream.load_state_dict(stream.state_dict())`.)

    Args:
        samples: The cases.
        shuffle: Draw a new permutation of all cases for each epoch.
        seed: Seed of the permutations.
        uneven: What becomes of the last cases of an epoch; see [Uneven][lpbf_data.serving.rank_sharing.Uneven].
        batch_size: Batch size of the DataLoader that reads the stream with workers, so that they take turns batch by
            batch; `advance` is exact only then.
        on_error: "raise", or "skip" to leave out what can't be read, with a warning. In workers of a DataLoader,
            batches then close up over what is left out, and positions are exact no more; those of
            [make_loader][lpbf_data.make_loader] stay exact.
        ranks: Rank and number of ranks; as torch.distributed says when None.
    """

    _told_of_ranks = False

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise missing_attribute(self, name, OF_STREAMS)

    def __init__(
        self,
        samples: CaseSamples,
        *,
        shuffle: bool = False,
        seed: int = 0,
        uneven: Uneven = "drop",
        batch_size: int = 1,
        on_error: OnError = "raise",
        ranks: tuple[int, int] | None = None,
    ) -> None:
        self.samples = samples
        self.shuffle = shuffle
        self.seed = check_seed(seed)
        self.uneven: Uneven = uneven
        self.batch_size = batch_size
        self.on_error = on_error
        self.skipped: dict[str, str] = {}
        self._ranks = ranks
        # In a spawned worker, what its parent was; and among how many the iteration at work shares.
        self._inherited: tuple[int, int] | None = None
        self._sharers: int | None = None
        # Whether the loop at work tells by `advance` what it was handed; the epoch that this process has read to its
        # end since; whether a loop was asked for and hasn't begun; whether what accelerate adds to fill its last steps
        # is all that is still to come.
        self._is_told = False
        self._read: int | None = None
        self._is_pending = False
        self._is_over = False
        # Epoch and position as they were last set between two loops, how often, and what `_told` was then: for workers
        # that live on.
        self._set = SharedNumbers(4)
        self._known = 0
        # What workers that end with each epoch leave for the next ones; how often this copy was told where to stand;
        # the iteration of the DataLoader that a worker serves; whether the next loop starts just where the stream
        # stands, and whether a saved position was loaded.
        self._worker_epochs = WorkerEpochs()
        self._told = 0
        self._iteration: int | None = None
        self._placed = True
        self._loaded = False
        # The epoch at work, where in it the iteration began, samples that it gave since, and samples before its first.
        self._epoch = self._base = self._taken = self._resumed = 0
        self._digest = samples.digest(range(len(samples)))

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker isn't in the process group: it is told which rank it works for.
        rank, ranks = self._rank()
        self._warn_of_ranks(rank, ranks)
        return self.__dict__ | {"_inherited": (rank, ranks)}

    def __copy__(self) -> CaseStream:
        return self._copy(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> CaseStream:
        return self._copy(copy.deepcopy(self.__dict__, memo))

    def _copy(self, attributes: dict[str, Any]) -> CaseStream:
        # Within this process, a copy asks for its rank as the original does.
        other = type(self).__new__(type(self))
        other.__dict__ |= attributes
        return other

    def _rank(self) -> tuple[int, int]:
        """Whose turns, of how many; those of all where a wrapper shares them out."""
        if self._inherited is not None and not shared_by_wrapper():
            return self._inherited
        return rank_among_callers(self._ranks)

    @property
    def epoch(self) -> int:
        """Number of the epoch at work."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; a position in it that was loaded, and not taken up yet, stays."""
        self._is_over = False
        self._sharers = self._rank()[1]  # accelerate calls this before it iterates, or lets workers iterate
        if epoch != self._epoch or self._is_begun():
            self._go_to(epoch, 0)

    def _is_begun(self) -> bool:
        """Whether a loop has started from where the stream stands, here or in workers, whose copies moved alone."""
        return not self._placed or self._worker_epochs.is_begun(self._told)

    def advance(self, consumed: int) -> None:
        """Say that so many samples were handed to this rank since the last call, by a DataLoader with workers.

        Args:
            consumed: Number of samples; other ranks got as many.
        """
        if self._is_over:
            return
        processes = (self._ranks or rank_of_process())[1]
        position = self._base + consumed * processes
        self._is_over = position >= self._end() and self._sharers == 1 < processes
        # Not told to workers: one that is slow to start would leave out what others have handed over meanwhile.
        self._stand_at(*((self._epoch + 1, 0) if position >= self._end() else (self._epoch, position)))
        self._is_told = True

    def _stand_at(self, epoch: int, position: int) -> None:
        self._epoch, self._base, self._taken, self._resumed = epoch, position, 0, 0
        self._told, self._placed = self._told + 1, True

    def _go_to(self, epoch: int, position: int) -> None:
        """Stand there, and tell workers that live on."""
        self._stand_at(epoch, position)
        self._is_told = self._is_over = False
        self._set[0], self._set[1], self._set[3] = epoch, position, self._told
        self._set[2] += 1
        self._known = self._set[2]

    def _end(self) -> int:
        """Position from which on an epoch has nothing left for all ranks."""
        count, ranks = len(self.samples), self._sharers or self._rank()[1]
        left = count - self._base
        return count - left % ranks if self.uneven == "drop" else count

    def __len__(self) -> int:
        """Number of samples of this rank in an epoch."""
        rank, ranks = self._rank()
        return len(turns_of_rank(len(self.samples), 0, rank, ranks, self.uneven))

    def __iter__(self) -> Iterator[Any]:
        """What is left of the epoch for this rank and worker; then the stream stands at the next one."""
        self._is_pending = True
        return self._serve()

    def _begin(self) -> None:
        """Stand where a loop starts."""
        if self._known != self._set[2]:
            self._epoch, self._base, self._known, self._told = self._set.tolist()
            self._resumed, self._placed = 0, True
        elif self._read == self._epoch or (not self._placed and self._taken):
            # What a loop served that was left early, or read to its end, doesn't come again.
            self._epoch, self._base, self._resumed = self._epoch + 1, 0, 0
        self._tell_workers()
        self._placed = self._is_told = self._is_pending = False
        self._read, self._taken = None, self._resumed

    def _serve(self) -> Iterator[Any]:
        """The samples of one loop."""
        worker = get_worker_info()
        if worker is None or self._is_pending or self._placed:
            self._begin()
        epoch = self._epoch
        rank, self._sharers = self._rank()
        self._warn_of_ranks(rank, self._sharers)
        order = epoch_order(len(self.samples), shuffle=self.shuffle, seed=self.seed, epoch=epoch)
        mine = order[turns_of_rank(len(order), self._base, rank, self._sharers, self.uneven)]
        if worker is not None:
            mine = mine[np.arange(len(mine)) // self.batch_size % worker.num_workers == worker.id]
        done, self._resumed = self._resumed, 0
        self._taken = done
        for index in mine[done:].tolist():
            done += 1
            try:
                sample = self.samples.sample(index, seed=self.seed, epoch=epoch)
            except StoreError as error:
                if self.on_error == "raise":
                    raise
                self._skip(index, error)
                continue
            self._taken = done
            yield sample
        if self._is_told or worker is not None:
            # The last samples were taken, but not all handed over yet; and a worker's state is asked for after its last
            # one, when others may still be in this epoch.
            self._read, self._taken = epoch, done
        else:
            self._epoch, self._base, self._taken = epoch + 1, 0, 0

    def _warn_of_ranks(self, rank: int, ranks: int) -> None:
        if self._ranks is None and self._inherited is None and not self._told_of_ranks:
            self._told_of_ranks = True
            warn_of_missing_group((rank, ranks))

    def _tell_workers(self) -> None:
        """In a worker: find the epoch that follows what the workers before served, and say which one it is."""
        worker = get_worker_info()
        if worker is None:
            return
        iteration = worker.seed - worker.id
        if self._iteration == iteration:  # a worker that lives on knows its epoch
            self._worker_epochs.serve(worker.id, iteration, self._epoch, self._told)
            return
        self._iteration = iteration
        loaded = self._placed and self._loaded
        found = self._worker_epochs.begin(worker.id, iteration, self._epoch, self._told, fixed=loaded)
        if found is not None:
            self._epoch, self._base, self._resumed = found, 0, 0

    def _skip(self, index: int, error: StoreError) -> None:
        self.skipped[self.samples.case_id(index)] = str(error)
        warnings.warn(f"left out: {error}", SkippedCaseWarning, stacklevel=3)

    def state_dict(self) -> State:
        """Where the stream stands: plain numbers and texts.

        `consumed` counts the samples of this epoch that were handed out on all ranks together.
        """
        state: State = {
            "seed": self.seed,
            "shuffle": int(self.shuffle),
            "epoch": self._epoch,
            "consumed": self._base,
            "taken": 0,
            "count": len(self.samples),
            "digest": self._digest,
        }
        if get_worker_info() is not None:  # a worker's turns are its own
            if self._is_pending:  # asked before its first turn in this loop
                self._begin()
                state |= {"epoch": self._epoch, "consumed": self._base}
            return state | {"taken": self._taken}
        taken = 0 if self._is_told else self._taken
        position = self._base + taken * (self._sharers or self._rank()[1])
        if position >= self._end():
            return state | {"epoch": self._epoch + 1, "consumed": 0}
        return state | {"consumed": position}

    def load_state_dict(self, state: State) -> None:
        """Take up a position, with any number of ranks.

        Raises:
            UsageError: If it belongs to other data, or to another way of shuffling.
        """
        check_state(state, self.state_dict())
        self.seed = check_seed(state["seed"])
        if get_worker_info() is None:
            self._go_to(int(state["epoch"]), int(state["consumed"]))
        else:
            self._epoch, self._base, self._resumed = (int(state[name]) for name in ("epoch", "consumed", "taken"))
            self._known = self._set[2]
            self._placed = self._loaded = True
            self._tell_workers()


def check_state(state: State, mine: State) -> None:
    """Refuse the state of other data, or one of another way of shuffling.

    Raises:
        UsageError: If it doesn't fit.
    """
    for name in ("seed", "shuffle", "epoch", "consumed", "count", "digest"):
        if not isinstance(state, Mapping) or name not in state:
            raise UsageError(f"the saved state of the data has no {name!r}; it isn't one of this package")
    if (state["count"], state["digest"]) != (mine["count"], mine["digest"]):
        raise UsageError(
            f"the saved state belongs to other data: {state['count']} cases with digest {state['digest']}, here are "
            f"{mine['count']} with {mine['digest']}; open the data set that it was saved with"
        )
    if state["shuffle"] != mine["shuffle"]:
        raise UsageError(f"the saved state has shuffle={bool(state['shuffle'])}; open the data set in the same way")
