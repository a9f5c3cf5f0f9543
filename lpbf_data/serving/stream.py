"""`CaseStream`: a split as an iterable data set, shared among ranks and workers, with a position to save and resume."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from lpbf_data.errors import StoreError, UsageError
from lpbf_data.serving.attribute_hints import STREAM_HINTS, missing_attribute
from lpbf_data.serving.epoch_order import epoch_order
from lpbf_data.serving.process_rank import (
    check_seed,
    effective_rank,
    rank_of_process,
    shared_by_wrapper,
    warn_of_missing_group,
)
from lpbf_data.serving.rank_sharing import Uneven, positions_of_rank
from lpbf_data.serving.samples import CaseSamples
from lpbf_data.serving.worker_epochs import SharedNumbers, WorkerEpochs

OnError = Literal["raise", "skip"]
State = dict[str, Any]


class SkippedCaseWarning(UserWarning):
    """A case that couldn't be read was left out, as `on_error="skip"` asks."""


class CaseStream(IterableDataset[Any]):
    """A split as a stream. Ranks take turns in the order of the epoch, and so do the workers of a DataLoader.

    Each loop serves a whole epoch, the next one every time, also where the loop before was left early; only a position
    that was loaded, or an epoch that was set, is resumed. That holds also for DataLoader workers that end with every
    epoch. Where accelerate shares out the samples of a stream (`accelerator.prepare`), each process serves all cases.

    `state_dict` is the position of a stream that is iterated directly, or in the workers of torchdata's
    StatefulDataLoader, which resumes with the same number of workers. With a plain DataLoader the workers' copies
    advance and this one doesn't: call `advance` with the number of samples that you received, and `state_dict` is
    right. (Persistent workers get the position of a loop that was left early by
    `stream.load_state_dict(stream.state_dict())`.)

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

    _warned_of_ranks = False

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise missing_attribute(self, name, STREAM_HINTS)

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
        # The position.
        self._epoch = 0
        self._base = 0  # cases of the epoch's order that were consumed on all ranks when the loop began
        self._taken = 0  # samples that this rank or worker has given since
        self._resumed = 0  # samples that the next loop skips: those that a saved worker had given already
        self._position_set = True  # whether the next loop starts at the position that was set
        self._times_set = 0  # how many times the position of this copy was set
        self._loaded = False  # whether a saved position was loaded
        # Ranks.
        self._inherited: tuple[int, int] | None = None  # in a spawned worker: rank and number of ranks of its parent
        self._num_ranks: int | None = None  # in the current loop
        # The current loop.
        self._is_pending = False  # whether a loop was requested and hasn't begun
        self._uses_advance = False  # whether the loop calls `advance`
        self._read: int | None = None  # the epoch that this process has read to its end
        self._is_over = False  # whether only the samples are left with which accelerate pads its last steps
        # Workers of a DataLoader.
        self._worker_epochs = WorkerEpochs()  # the epochs that workers which end with each epoch have served
        self._iteration: int | None = None  # the iteration of the DataLoader that this worker serves
        # For persistent workers: epoch and position as last set between two loops, how many times they were set, and
        # `_times_set` at that time; then the number of settings that this copy knows.
        self._set = SharedNumbers(4)
        self._known = 0
        self._digest = samples.digest(range(len(samples)))

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker isn't in the process group: it gets the rank of its parent.
        rank, ranks = self._rank()
        self._warn_of_ranks(rank, ranks)
        return self.__dict__ | {"_inherited": (rank, ranks)}

    def __copy__(self) -> CaseStream:
        return self._copy(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> CaseStream:
        return self._copy(copy.deepcopy(self.__dict__, memo))

    def _copy(self, attributes: dict[str, Any]) -> CaseStream:
        # A copy in this process asks the process group for its rank, as the original does.
        other = type(self).__new__(type(self))
        other.__dict__ |= attributes
        return other

    def _rank(self) -> tuple[int, int]:
        """Rank and number of ranks; 0 of 1 where a wrapper such as accelerate's shares out the samples."""
        if self._inherited is not None and not shared_by_wrapper():
            return self._inherited
        return effective_rank(self._ranks)

    @property
    def epoch(self) -> int:
        """Number of the current epoch."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; a loaded position in it that wasn't resumed yet stays."""
        self._is_over = False
        self._num_ranks = self._rank()[1]  # accelerate calls this before it iterates, or lets workers iterate
        if epoch != self._epoch or self._is_begun():
            self._publish_position(epoch, 0)

    def _is_begun(self) -> bool:
        """Whether a loop has started from the position that was set, in this process or in workers."""
        return not self._position_set or self._worker_epochs.is_begun(self._times_set)

    def advance(self, consumed: int) -> None:
        """Advance the position by the samples that a DataLoader with workers gave this rank since the last call.

        Args:
            consumed: Number of samples; other ranks got as many.
        """
        if self._is_over:
            return
        processes = (self._ranks or rank_of_process())[1]
        position = self._base + consumed * processes
        self._is_over = position >= self._end() and self._num_ranks == 1 < processes
        # Not published to workers: one that is slow to start would skip what others have served meanwhile.
        self._set_position(*((self._epoch + 1, 0) if position >= self._end() else (self._epoch, position)))
        self._uses_advance = True

    def _set_position(self, epoch: int, position: int) -> None:
        self._epoch, self._base, self._taken, self._resumed = epoch, position, 0, 0
        self._times_set, self._position_set = self._times_set + 1, True

    def _publish_position(self, epoch: int, position: int) -> None:
        """Set the position, in persistent workers too."""
        self._set_position(epoch, position)
        self._uses_advance = self._is_over = False
        self._set[0], self._set[1], self._set[3] = epoch, position, self._times_set
        self._set[2] += 1
        self._known = self._set[2]

    def _end(self) -> int:
        """Position at which an epoch ends: with "drop" the last cases that don't fill all ranks are left out."""
        count, ranks = len(self.samples), self._num_ranks or self._rank()[1]
        left = count - self._base
        return count - left % ranks if self.uneven == "drop" else count

    def __len__(self) -> int:
        """Number of samples of this rank in an epoch."""
        rank, ranks = self._rank()
        return len(positions_of_rank(len(self.samples), 0, rank, ranks, self.uneven))

    def __iter__(self) -> Iterator[Any]:
        """The remaining samples of the epoch for this rank and worker; after them the stream is at the next epoch."""
        self._is_pending = True
        return self._serve()

    def _begin(self) -> None:
        """Move to the position where a loop starts."""
        if self._known != self._set[2]:
            self._epoch, self._base, self._known, self._times_set = self._set.tolist()
            self._resumed, self._position_set = 0, True
        elif self._read == self._epoch or (not self._position_set and self._taken):
            # An epoch that a loop left early, or read to its end, isn't continued.
            self._epoch, self._base, self._resumed = self._epoch + 1, 0, 0
        self._announce_epoch()
        self._position_set = self._uses_advance = self._is_pending = False
        self._read, self._taken = None, self._resumed

    def _serve(self) -> Iterator[Any]:
        """The samples of one loop."""
        worker = get_worker_info()
        if worker is None or self._is_pending or self._position_set:
            self._begin()
        epoch = self._epoch
        rank, self._num_ranks = self._rank()
        self._warn_of_ranks(rank, self._num_ranks)
        order = epoch_order(len(self.samples), shuffle=self.shuffle, seed=self.seed, epoch=epoch)
        cases = order[positions_of_rank(len(order), self._base, rank, self._num_ranks, self.uneven)]
        if worker is not None:
            cases = cases[np.arange(len(cases)) // self.batch_size % worker.num_workers == worker.id]
        done, self._resumed = self._resumed, 0
        self._taken = done
        for index in cases[done:].tolist():
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
        if self._uses_advance or worker is not None:
            # The last samples were taken, but not all handed over yet; and a worker's state is asked for after its last
            # one, when others may still be in this epoch.
            self._read, self._taken = epoch, done
        else:
            self._epoch, self._base, self._taken = epoch + 1, 0, 0

    def _warn_of_ranks(self, rank: int, ranks: int) -> None:
        if self._ranks is None and self._inherited is None and not self._warned_of_ranks:
            self._warned_of_ranks = True
            warn_of_missing_group((rank, ranks))

    def _announce_epoch(self) -> None:
        """In a worker: move to the epoch after the one that the workers before served, and record it."""
        worker = get_worker_info()
        if worker is None:
            return
        iteration = worker.seed - worker.id
        if self._iteration == iteration:  # a persistent worker knows its epoch
            self._worker_epochs.serve(worker.id, iteration, self._epoch, self._times_set)
            return
        self._iteration = iteration
        loaded = self._position_set and self._loaded
        found = self._worker_epochs.begin(worker.id, iteration, self._epoch, self._times_set, fixed=loaded)
        if found is not None:
            self._epoch, self._base, self._resumed = found, 0, 0

    def _skip(self, index: int, error: StoreError) -> None:
        self.skipped[self.samples.case_id(index)] = str(error)
        warnings.warn(f"left out: {error}", SkippedCaseWarning, stacklevel=3)

    def state_dict(self) -> State:
        """The position: plain numbers and texts.

        `consumed` counts the samples of this epoch that were served on all ranks together.
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
        taken = 0 if self._uses_advance else self._taken
        position = self._base + taken * (self._num_ranks or self._rank()[1])
        if position >= self._end():
            return state | {"epoch": self._epoch + 1, "consumed": 0}
        return state | {"consumed": position}

    def load_state_dict(self, state: State) -> None:
        """Resume at a saved position, with any number of ranks.

        Args:
            state: What `state_dict` returned.

        Raises:
            UsageError: If it belongs to other data, or to another way of shuffling.
        """
        check_state(state, self.state_dict())
        self.seed = check_seed(state["seed"])
        if get_worker_info() is None:
            self._publish_position(int(state["epoch"]), int(state["consumed"]))
        else:
            self._epoch, self._base, self._resumed = (int(state[name]) for name in ("epoch", "consumed", "taken"))
            self._known = self._set[2]
            self._position_set = self._loaded = True
            self._announce_epoch()


def check_state(state: State, own: State) -> None:
    """Check that a saved state belongs to the same data and the same way of shuffling.

    Args:
        state: The saved state.
        own: The state of the loader or stream that is to resume.

    Raises:
        UsageError: If it doesn't.
    """
    for name in ("seed", "shuffle", "epoch", "consumed", "count", "digest"):
        if not isinstance(state, Mapping) or name not in state:
            raise UsageError(f"the saved state of the data has no {name!r}; it isn't one of this package")
    if (state["count"], state["digest"]) != (own["count"], own["digest"]):
        raise UsageError(
            f"the saved state belongs to other data: {state['count']} cases with digest {state['digest']}, here are "
            f"{own['count']} with {own['digest']}; open the data set that it was saved with"
        )
    if state["shuffle"] != own["shuffle"]:
        raise UsageError(f"the saved state has shuffle={bool(state['shuffle'])}; open the data set in the same way")
