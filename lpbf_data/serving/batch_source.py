"""`BatchSource`: reads whole batches by the numbers of their cases; it runs in the workers of a loader."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lpbf_data.errors import LpbfError, StoreError
from lpbf_data.serving.collating import MEMORY_ADVICE, SharedMemoryError, collate_pyg, collate_ragged, join_ragged
from lpbf_data.serving.samples import CaseSamples
from lpbf_data.serving.stream import OnError

Collate = Literal["ragged", "pyg"] | Callable[[Sequence[Any]], Any]

COLLATE: Final[dict[str, Callable[[Sequence[Any]], Any]]] = {"ragged": join_ragged, "pyg": collate_pyg}
"""Functions that join samples to a batch, by name."""


class BatchRequest(NamedTuple):
    """What to read for one batch of one rank.

    Attributes:
        epoch: Number of the epoch.
        cases: Numbers of the cases in the split.
        consumed: Cases of the epoch's order that the step consumes on all ranks together.
    """

    epoch: int
    cases: tuple[int, ...]
    consumed: int


class BatchResult(NamedTuple):
    """A batch that was read, or why it wasn't.

    Attributes:
        batch: The batch; None where it couldn't be read or sent.
        consumed: Cases of the epoch's order that the step consumes on all ranks together.
        skipped: Case id to reason, for cases that couldn't be read and were left out.
        error: The error to raise in the process that trains.
        unsent: Where a worker has no shared memory for its batch: the request, for the parent process to read, and
            the reason.
    """

    batch: Any
    consumed: int
    skipped: dict[str, str]
    error: LpbfError | None = None
    unsent: tuple[BatchRequest, str] | None = None


class SharedMemoryWarning(UserWarning):
    """Workers can't send their batches to the process that trains."""


class BatchSource(Dataset[BatchResult]):
    """Reads whole batches, indexed by requests; the data set of the DataLoader whose workers read.

    Args:
        samples: The samples of the split.
        indices: Numbers of all cases that are served, in the order of the data set.
        collate: How samples are joined: a name of `COLLATE`, or a function of a list of samples.
        seed: Seed of random transforms.
        on_error: "raise", or "skip" to leave out cases that can't be read.
    """

    def __init__(
        self, samples: CaseSamples, indices: Sequence[int], collate: Collate, seed: int, on_error: OnError
    ) -> None:
        self.samples = samples
        self.indices = indices
        chosen = "ragged" if collate is collate_ragged else collate
        self.collate = chosen if callable(chosen) else COLLATE[chosen]
        self.seed = seed
        self.on_error = on_error
        self._warned_of_memory = False

    def __getitem__(self, request: BatchRequest) -> BatchResult:
        in_worker = get_worker_info() is not None
        try:
            served = self._serve(request)
            if in_worker:
                _share(served.batch)
            return served
        except (SharedMemoryError, RuntimeError) as error:
            if not in_worker or "shared memory" not in str(error):
                raise
            return BatchResult(None, request.consumed, {}, unsent=(request, str(error)))
        except LpbfError as error:
            # Returned, not raised: a DataLoader would wrap it in pages of text, and wait long for its workers to end.
            return BatchResult(None, request.consumed, {}, error)

    def received(self, served: BatchResult) -> BatchResult:
        """The result of a worker; where it had no shared memory for its batch, the batch is read in this process."""
        if served.unsent is None:
            return served
        request, reason = served.unsent
        if not self._warned_of_memory:
            self._warned_of_memory = True
            warnings.warn(
                f"workers find no room in shared memory for some batches, so this process reads them itself ({reason})"
                f". {MEMORY_ADVICE}, or leave num_workers out",
                SharedMemoryWarning,
                stacklevel=2,
            )
        return self[request]

    def _serve(self, request: BatchRequest) -> BatchResult:
        # Joining copies, so that the cache's own tensors can be joined; transforms and other functions get copies.
        direct = self.collate is join_ragged and self.samples.transform is None
        skipped: dict[str, str] = {}
        samples: list[Any] = []
        for index in self._candidates(request, samples):
            try:
                view = self.samples.view(index) if direct else None
                samples.append(view or self.samples.sample(index, seed=self.seed, epoch=request.epoch))
            except StoreError as error:
                if self.on_error == "raise":
                    raise
                skipped[self.samples.case_id(index)] = str(error)
        try:
            return BatchResult(self.collate(samples), request.consumed, skipped)
        except Exception as error:
            error.add_note(f"when these cases were joined: {', '.join(self.samples.case_id(i) for i in request.cases)}")
            raise

    def _candidates(self, request: BatchRequest, samples: list[Any]) -> Iterator[int]:
        """The cases of a batch, and the ones after them while none could be read: all ranks need a batch."""
        yield from request.cases
        if samples:
            return
        following = self.indices.index(request.cases[-1]) + 1
        for other in [*self.indices[following:], *self.indices[:following]]:
            yield other
            if samples:
                return
        raise StoreError("no case of the split can be read")


def _share(batch: Any) -> None:
    """Move the tensors of a batch to shared memory, in place, whatever it is made of.

    The queue between the processes would do it in a thread of its own, whose errors are lost: the batch would be
    missing, and its receiver would wait for ever.

    Raises:
        RuntimeError: If there is no room.
        pickle.PicklingError: If the batch can't be sent at all.
    """
    _SharedMemoryPickler(_NullFile(), protocol=5, buffer_callback=lambda _: None).dump(batch)


class _SharedMemoryPickler(pickle.Pickler):
    """Pickles a batch to nowhere, and moves each tensor that it meets to shared memory."""

    def reducer_override(self, value: Any) -> Any:
        """Move a tensor into shared memory, and leave it out of what is pickled."""
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return NotImplemented  # a sparse tensor is made of others, which come here too
        value.share_memory_()  # type: ignore[no-untyped-call]
        return bool, ()


class _NullFile:
    """A file whose content is discarded."""

    def write(self, content: Any) -> int:
        """Discard some bytes; returns their number."""
        return len(content)
