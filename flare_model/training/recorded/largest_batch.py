"""The largest batch of a training run, known from the order and the sizes of its cases before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

import numpy as np

from lpbf_data.serving.batch_source import BatchRequest
from lpbf_data.serving.loader import Loader

MAX_BATCHES: Final = 200_000
"""Most batches of a run that are looked at, for which the host takes about a second."""


def largest_request(loader: Loader, steps: int, *, thin_to: int | None = None) -> BatchRequest:
    """Which of the batches that this process takes in a run has the most points.

    Only the first batches of a very long run are looked at (`MAX_BATCHES`).

    Args:
        loader: The loader of the run; it is left at the beginning of its first epoch.
        steps: Steps of the run, one batch each.
        thin_to: Most points that a case keeps; None for all.
    """
    stored = loader.dataset.samples.sizes
    sizes = (stored if thin_to is None else np.minimum(stored, thin_to)).tolist()
    run = islice(_requests(loader), min(steps, MAX_BATCHES))
    largest = max(run, key=lambda request: sum(sizes[case] for case in request.cases))
    loader.set_epoch(0)
    return largest


def _requests(loader: Loader) -> Iterator[BatchRequest]:
    """The requests of a run, epoch after epoch without end."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader.requests()
        epoch += 1
