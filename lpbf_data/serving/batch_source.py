"""Whole batches by the numbers of their cases: what a loader's workers do, and all that they import."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lpbf_data.errors import LpbfError, StoreError
from lpbf_data.serving.collating import MEMORY_CURE, SharedMemoryError, collate_pyg, collate_ragged, join_ragged
from lpbf_data.serving.samples import CaseSamples
from lpbf_data.serving.stream import OnError

Collate = Literal["ragged", "pyg"] | Callable[[Sequence[Any]], Any]

COLLATE: Final[dict[str, Callable[[Sequence[Any]], Any]]] = {"ragged": join_ragged, "pyg": collate_pyg}
"""Ways to join samples, by name."""


class Order(NamedTuple):
    """What to read for one batch: the epoch, numbers of cases, and how many cases the step hands out on all ranks."""

    epoch: int
    cases: tuple[int, ...]
    handed: int


class Served(NamedTuple):
    """A batch, how many cases its step handed out, and what couldn't be read: left out, or the error to raise.

    A worker that finds no shared memory for its batch leaves it to its parent, with the reason.
    """

    batch: Any
    handed: int
    skipped: dict[str, str]
    error: LpbfError | None = None
    left: tuple[Order, str] | None = None


class SharedMemoryWarning(UserWarning):
    """Workers can't hand their batches over."""


class BatchSource(Dataset[Served]):
    """Reads whole batches; this is what workers get."""

    def __init__(
        self, samples: CaseSamples, places: Sequence[int], collate: Collate, seed: int, on_error: OnError
    ) -> None:
        self.samples = samples
        self.places = places
        named = "ragged" if collate is collate_ragged else collate
        self.collate = named if callable(named) else COLLATE[named]
        self.seed = seed
        self.on_error = on_error
        self._told_of_memory = False

    def __getitem__(self, order: Order) -> Served:
        in_worker = get_worker_info() is not None
        try:
            served = self._serve(order)
            if in_worker:
                _share(served.batch)
            return served
        except (SharedMemoryError, RuntimeError) as error:
            if not in_worker or "shared memory" not in str(error):
                raise
            return Served(None, order.handed, {}, left=(order, str(error)))
        except LpbfError as error:
            # A value among others: a DataLoader would wrap it in pages of text, and wait long for its workers to end.
            return Served(None, order.handed, {}, error)

    def received(self, served: Served) -> Served:
        """What a worker has served; read here where it had no room to hand it over."""
        if served.left is None:
            return served
        order, reason = served.left
        if not self._told_of_memory:
            self._told_of_memory = True
            warnings.warn(
                f"workers find no room in shared memory for some batches, so this process reads them itself ({reason})"
                f". {MEMORY_CURE}, or leave num_workers out",
                SharedMemoryWarning,
                stacklevel=2,
            )
        return self[order]

    def _serve(self, order: Order) -> Served:
        # Joining copies, so that the cache's own tensors can be joined; transforms and other functions get copies.
        direct = self.collate is join_ragged and self.samples.transform is None
        skipped: dict[str, str] = {}
        samples: list[Any] = []
        for index in self._candidates(order, samples):
            try:
                view = self.samples.view(index) if direct else None
                samples.append(view or self.samples.sample(index, seed=self.seed, epoch=order.epoch))
            except StoreError as error:
                if self.on_error == "raise":
                    raise
                skipped[self.samples.case_id(index)] = str(error)
        try:
            return Served(self.collate(samples), order.handed, skipped)
        except Exception as error:
            error.add_note(f"when these cases were joined: {', '.join(self.samples.case_id(i) for i in order.cases)}")
            raise

    def _candidates(self, order: Order, samples: list[Any]) -> Iterator[int]:
        """The cases of a batch; and others after them while none could be read: all ranks need a batch."""
        yield from order.cases
        if samples:
            return
        behind = self.places.index(order.cases[-1]) + 1
        for other in [*self.places[behind:], *self.places[:behind]]:
            yield other
            if samples:
                return
        raise StoreError("no case of the split can be read")


def _share(batch: Any) -> None:
    """Move the tensors of a batch to shared memory, in place, whatever it is made of.

    Left to the queue between the processes, that would happen in a thread of the queue, whose errors nobody is told of:
    the batch would be missing, and its receiver would wait for ever.

    Raises:
        RuntimeError: If there is no room.
        pickle.PicklingError: If the batch can't be sent at all.
    """
    _Sharer(_Nowhere(), protocol=5, buffer_callback=lambda _: None).dump(batch)


class _Sharer(pickle.Pickler):
    """Goes through all that would be sent, and sends nothing."""

    def reducer_override(self, value: Any) -> Any:
        """Move a tensor into shared memory, and leave it out of what is pickled."""
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return NotImplemented  # a sparse tensor is made of others, which come here too
        value.share_memory_()  # type: ignore[no-untyped-call]
        return bool, ()


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, content: Any) -> int:
        """Take some bytes; returns their number."""
        return len(content)
