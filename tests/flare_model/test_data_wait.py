"""What counts as waiting for data: the time in which there was nothing to compute."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flare_model.training.data_wait import DataWait


def wait_for_batches(wait: DataWait, loader: Any, *seconds: float) -> float:
    """Let batches come after so many seconds, each followed by a step; returns what was counted of them."""
    before = wait.seconds
    for second in seconds:
        loader.seconds_waiting += second
        wait.batch_arrived()
        wait.step_launched()
    return wait.seconds - before


def test_every_wait_of_a_cpu_counts() -> None:
    loader: Any = SimpleNamespace(seconds_waiting=2.0)  # of an epoch before
    wait = DataWait(loader, torch.device("cpu"))
    assert wait.seconds == 0.0
    assert wait_for_batches(wait, loader, 0.25, 0.0, 0.5) == 0.75


class Computing:
    """The end of a GPU's work, as an event tells of it."""

    done = True

    def record(self) -> None:
        """A step was launched."""

    def query(self) -> bool:
        """Whether the GPU has nothing to do."""
        return self.done


def test_a_wait_counts_where_a_gpu_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Computing)
    loader: Any = SimpleNamespace(seconds_waiting=0.0)
    wait = DataWait(loader, torch.device("cuda"))
    assert wait_for_batches(wait, loader, 0.5) == 0.5
    monkeypatch.setattr(Computing, "done", False)
    assert wait_for_batches(wait, loader, 0.25, 4.0) == 0.0
    monkeypatch.setattr(Computing, "done", True)
    assert wait_for_batches(wait, loader, 0.125) == 0.125  # and nothing of the waits before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a GPU")
def test_a_busy_gpu_waits_for_nothing() -> None:
    loader: Any = SimpleNamespace(seconds_waiting=0.0)
    wait = DataWait(loader, torch.device("cuda"))
    torch.cuda.synchronize()
    loader.seconds_waiting += 1.0
    wait.batch_arrived()
    assert wait.seconds == 1.0
    torch.cuda._sleep(2_000_000_000)  # about a second
    wait.step_launched()
    loader.seconds_waiting += 1.0
    wait.batch_arrived()
    assert wait.seconds == 1.0
    torch.cuda.synchronize()
