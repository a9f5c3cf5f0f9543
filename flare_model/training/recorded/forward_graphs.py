"""Forward passes of validation as CUDA graphs: one launch a batch.

Validation meets the same batches each time. The first time they are computed as they come, which also lets libraries
and kernels load; a size that comes again is recorded, but the largest size first where there is room for both. Fill
batches up to few sizes: [filled][flare_model.data.batches.Batch.filled].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.training.recorded.recording import Recording, recording
from flare_model.training.recorded.recordings import Recordings, Size, size_of
from lpbf_data.console import say
from lpbf_data.errors import UsageError

MAX_SIZES: Final = 128
"""Most recordings, each with a copy of its batch; what comes in other sizes is launched as it comes."""


class ForwardGraphs:
    """A function of batches without gradients, recorded when a size of batch comes for the second time.

    Weights that it reads must keep their memory; they may change there. Where it can't be recorded, or there is too
    little memory for recordings, it is computed as it comes from then on, and that is said once.

    Args:
        compute: The function, of a batch whose tensors, offsets included, lie on the device.
    """

    def __init__(self, compute: Callable[[Batch], Tensor]) -> None:
        self._compute = compute
        self._records = True
        self._seen: set[Size] = set()
        self._largest: Batch | None = None  # on the host: it is kept while other batches take the device's memory
        self._recordings = Recordings(self._record, MAX_SIZES)

    def __call__(self, batch: Batch) -> Tensor:
        """What the function gives for a batch.

        Args:
            batch: A filled batch; its offsets may lie on the host.
        """
        if size_of(batch) not in self._recordings and not self._is_recorded_now(batch):
            self._remember(batch)
            return self._compute(batch.on(batch.points.device))
        return self._recordings.replay(batch)

    def _remember(self, batch: Batch) -> None:
        """Note a size that was computed, and keep the batch until it is recorded if it is larger than all before."""
        records = self._records and not self._recordings.full
        if records and len(batch.points) > max((points for points, _ in self._seen), default=0):
            self._largest = batch.on("cpu")
        self._seen.add(size_of(batch))

    def _is_recorded_now(self, batch: Batch) -> bool:
        """Record a size, if it came before and there is room."""
        if not self._records or size_of(batch) not in self._seen or self._recordings.full:
            return False
        largest, self._largest = self._largest, None
        try:
            if largest is not None and size_of(largest) != size_of(batch) and self._recordings.room > 1:
                self._recordings.add(largest.to(batch.points.device))
            self._recordings.add(batch)
        except (UsageError, torch.OutOfMemoryError) as error:
            self._records = False
            why = "there is too little memory" if isinstance(error, torch.OutOfMemoryError) else str(error)
            say(f"validation isn't recorded as CUDA graphs, and takes longer: {why}")
        if not self._records:  # after the handler, since the error holds the tensors of the attempt that failed
            self._recordings.clear()
        return self._records

    def _record(self, batch: Batch, pool: Any) -> Recording:
        static = batch.on(batch.points.device)
        with recording(pool, "a validation") as graph:
            result = self._compute(static)
        return Recording(graph, static, result)
