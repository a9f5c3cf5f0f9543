"""How long a training waits for data: while a GPU still computes, the host may wait for the next batch at no cost."""

from __future__ import annotations

import torch

from lpbf_data.serving.loader import Loader


class DataWait:
    """Seconds in which training had nothing to compute, as the next batch wasn't there.

    The host launches steps on a GPU ahead of their computation, and then waits for a batch in any case. Such a wait
    counts only where the GPU has nothing to do any more when it ends, and then as a whole: no less than the GPU waited.
    Without a GPU every wait counts.

    Args:
        loader: The loader of the batches, which counts how long the host waits for it.
        device: Where steps are computed.

    Attributes:
        seconds: The seconds so far.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self.seconds = 0.0
        self._loader, self._seen = loader, loader.seconds_waiting
        self._computing = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def batch_arrived(self) -> None:
        """Count the wait for the batch that has come."""
        waited, self._seen = self._loader.seconds_waiting - self._seen, self._loader.seconds_waiting
        if self._computing is None or self._computing.query():  # type: ignore[no-untyped-call]
            self.seconds += waited

    def step_launched(self) -> None:
        """Remember where the GPU's work ends for now."""
        if self._computing is not None:
            self._computing.record()
