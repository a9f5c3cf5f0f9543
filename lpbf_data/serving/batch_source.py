"""Whole batches by the numbers of their cases: what a loader's workers do, and all that they import."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from torch.utils.data import Dataset

from lpbf_data.errors import LpbfError, StoreError
from lpbf_data.serving.batching import collate_pyg, collate_ragged
from lpbf_data.serving.samples import CaseSamples
from lpbf_data.serving.stream import OnError

Collate = Literal["ragged", "pyg"] | Callable[[Sequence[Any]], Any]

COLLATE: Final[dict[str, Callable[[Sequence[Any]], Any]]] = {"ragged": collate_ragged, "pyg": collate_pyg}
"""Ways to join samples, by name."""


class Order(NamedTuple):
    """What to read for one batch: the epoch, numbers of cases, and how many cases the step hands out on all ranks."""

    epoch: int
    cases: tuple[int, ...]
    handed: int


class Served(NamedTuple):
    """A batch, how many cases its step handed out, and what couldn't be read: left out, or the error to raise."""

    batch: Any
    handed: int
    skipped: dict[str, str]
    error: LpbfError | None = None


class BatchSource(Dataset[Served]):
    """Reads whole batches; this is what workers get."""

    def __init__(
        self, samples: CaseSamples, places: Sequence[int], collate: Collate, seed: int, on_error: OnError
    ) -> None:
        self.samples = samples
        self.places = places
        self.collate = collate if callable(collate) else COLLATE[collate]
        self.seed = seed
        self.on_error = on_error

    def __getitem__(self, order: Order) -> Served:
        try:
            return self._serve(order)
        except LpbfError as error:
            # A value among others: a DataLoader would wrap it in pages of text, and wait long for its workers to end.
            return Served(None, order.handed, {}, error)

    def _serve(self, order: Order) -> Served:
        # Joining copies, so that the cache's own tensors can be joined; transforms and other functions get copies.
        direct = self.collate is collate_ragged and self.samples.transform is None
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
        return Served(self.collate(samples), order.handed, skipped)

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
