"""Forward passes of validation as CUDA graphs: one launch a batch.

Validation meets the same batches each time. The first time they are computed as they come, which also lets libraries
and kernels load; a size that comes again is recorded. Fill batches up to few sizes:
[filled][flare_model.data.batches.Batch.filled].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.training.recorded.recording import Recording, recording
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
        self._seen: set[tuple[int, int]] = set()
        self._recordings: dict[tuple[int, int], Recording] = {}
        self._largest = 0
        self._pool: Any = None

    def __call__(self, batch: Batch) -> Tensor:
        """What the function gives for a batch.

        Args:
            batch: A filled batch; its offsets may lie on the host.
        """
        size = (len(batch.points), len(batch.offsets))
        if size not in self._recordings and not self._is_recorded_now(size, batch):
            self._seen.add(size)
            return self._compute(batch.on(batch.points.device))
        return self._recordings[size].replay(batch)

    def _is_recorded_now(self, size: tuple[int, int], batch: Batch) -> bool:
        """Record a size, if it came before and there is room."""
        if not self._records or size not in self._seen:
            return False
        if size[0] > self._largest:
            # A recording keeps its memory; a larger one could not use that, and smaller ones can use the larger one's.
            self._clear()
            self._largest = size[0]
        elif len(self._recordings) == MAX_SIZES:
            return False
        try:
            self._recordings[size] = self._record(batch)
        except (UsageError, torch.OutOfMemoryError) as error:
            self._clear()
            self._records = False
            why = "there is too little memory" if isinstance(error, torch.OutOfMemoryError) else str(error)
            say(f"validation isn't recorded as CUDA graphs, and takes longer: {why}")
            return False
        return True

    def _clear(self) -> None:
        self._recordings.clear()
        self._pool = None

    def _record(self, batch: Batch) -> Recording:
        static = batch.on(batch.points.device)
        with recording(self._pool, "a validation") as graph:
            result = self._compute(static)
        self._pool = self._pool or graph.pool()
        return Recording(graph, static, result)
