"""Forward passes of validation as CUDA graphs: one launch a batch.

Validation meets the same batches each time. The first time they are computed as they come, which also lets libraries
and kernels load; a size that comes again is recorded. Fill batches up to few sizes:
[filled][flare_model.data.batches.Batch.filled].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from flare_model.data.batches import Batch
from flare_model.training.recording import Recording, recording

MAX_SIZES: Final = 128
"""Most recordings, each with a copy of its batch; what comes in other sizes is launched as it comes."""


class ForwardGraphs:
    """A function of batches without gradients, recorded when a size of batch comes for the second time.

    Weights that it reads must keep their memory; they may change there.

    Args:
        compute: The function, of a batch whose tensors, offsets included, lie on the device.
    """

    def __init__(self, compute: Callable[[Batch], Tensor]) -> None:
        self._compute = compute
        self._seen: set[tuple[int, int]] = set()
        self._recordings: dict[tuple[int, int], Recording] = {}
        self._pool: Any = None

    def __call__(self, batch: Batch) -> Tensor:
        """What the function gives for a batch.

        Args:
            batch: A filled batch; its offsets may lie on the host.

        Raises:
            UsageError: If the function can't be recorded.
        """
        size = (len(batch.points), len(batch.offsets))
        if size not in self._recordings:
            if size not in self._seen or len(self._recordings) == MAX_SIZES:
                self._seen.add(size)
                return self._compute(batch.on(batch.points.device))
            self._recordings[size] = self._record(batch)
        return self._recordings[size].replay(batch)

    def _record(self, batch: Batch) -> Recording:
        static = batch.on(batch.points.device)
        with recording(self._pool) as graph:
            result = self._compute(static)
        self._pool = self._pool or graph.pool()
        return Recording(graph, static, result)
