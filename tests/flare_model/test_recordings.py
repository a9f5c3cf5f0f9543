"""Which sizes of batches are recorded as CUDA graphs, in which order, and which recordings are dropped."""

from __future__ import annotations

import math
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flare_model.data.batches import Batch
from flare_model.training.recorded.forward_graphs import ForwardGraphs
from flare_model.training.recorded.recordings import Recordings
from flare_model.training.recorded.step_graphs import StepGraphs
from lpbf_data.errors import UsageError


class RecordedSizes:
    """What is recorded in which memory, with a replay that gives the number of points; a recording needs a GPU.

    Args:
        room: Points for which there is memory, in all recordings together.
    """

    def __init__(self, room: float = math.inf, max_sizes: int = 100) -> None:
        self.recorded: list[int] = []
        self.pools: list[Any] = []
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.room = room
        self.recordings = Recordings(self._record, max_sizes)

    def _record(self, batch: Batch, pool: Any) -> Any:
        if sum(recording.points for recording in self.alive) + len(batch.points) > self.room:
            raise torch.OutOfMemoryError(f"no room for {len(batch.points)}")
        self.recorded.append(len(batch.points))
        recording: Any = FakeRecording(batch, pool or f"pool {len(self.recorded)}")
        self.pools.append(recording.pool)
        self.alive.add(recording)
        return recording

    def add(self, *sizes: int, make_room: bool = False) -> None:
        for size in sizes:
            self.recordings.add(batch_of(size), make_room=make_room)


class FakeRecording:
    """A recording that gives the number of points."""

    def __init__(self, batch: Batch, pool: Any) -> None:
        self.points, self.pool, self.batch = len(batch.points), pool, batch

    def replay(self, batch: Batch) -> torch.Tensor:
        assert len(batch.points) == self.points
        return torch.tensor(self.points)


def batch_of(points: int) -> Batch:
    return Batch(torch.ones(points, 3), None, torch.ones(points, 1), torch.tensor([0, points]), ("case",))


def test_recordings_are_kept_when_a_larger_size_comes() -> None:
    """All sizes share one memory pool, and none is recorded twice."""
    sizes = RecordedSizes()
    sizes.add(20, 10, 30, 5)
    assert {points for points in (20, 10, 30, 5) if (points, 2) in sizes.recordings} == {20, 10, 30, 5}
    assert [int(sizes.recordings.replay(batch_of(points))) for points in (5, 30, 10, 20)] == [5, 30, 10, 20]
    assert sizes.pools == ["pool 1"] * 4


def test_the_recording_used_longest_ago_is_dropped_where_there_are_too_many() -> None:
    sizes = RecordedSizes(max_sizes=3)
    sizes.add(20, 10)
    assert not sizes.recordings.full
    sizes.add(30)
    assert sizes.recordings.full
    sizes.recordings.replay(batch_of(20))
    sizes.add(5)
    assert sorted(recording.points for recording in sizes.alive) == [5, 20, 30]
    assert sizes.pools == ["pool 1"] * 4


def test_other_recordings_are_dropped_where_memory_runs_out() -> None:
    """Once, and where that doesn't help the error is raised; nothing holds the memory of what was dropped."""
    sizes = RecordedSizes(room=50)
    sizes.add(20, 10)
    with pytest.raises(torch.OutOfMemoryError, match="no room for 30"):
        sizes.add(30)
    assert sorted(recording.points for recording in sizes.alive) == [10, 20]
    sizes.add(30, make_room=True)
    assert [recording.points for recording in sizes.alive] == [30]
    assert sizes.pools == ["pool 1", "pool 1", "pool 3"]
    sizes.add(15, make_room=True)
    assert sizes.pools[-1] == "pool 3"
    with pytest.raises(torch.OutOfMemoryError, match="no room for 60"):
        sizes.add(60, make_room=True)
    assert not sizes.alive
    sizes.add(40, make_room=True)
    assert sizes.recorded == [20, 10, 30, 15, 40]


def test_steps_are_recorded_once_for_each_size_and_again_where_memory_ran_out() -> None:
    sizes = RecordedSizes(room=50)

    class Steps(StepGraphs):
        def _record(self, batch: Batch, pool: Any) -> Any:
            return sizes._record(batch, pool)

    graphs = Steps(lambda _: torch.zeros(()), lambda: None, torch.optim.SGD([torch.zeros(1)]), torch.nn.Identity())
    graphs.record(batch_of(20))
    assert [int(graphs(batch_of(points))) for points in (10, 20, 10, 5)] == [10, 20, 10, 5]
    assert [int(graphs(batch_of(points))) for points in (30, 10, 20, 30)] == [30, 10, 20, 30]
    assert sizes.recorded == [20, 10, 5, 30, 10, 30, 20]
    with pytest.raises(torch.OutOfMemoryError, match="no room for 60"):
        graphs(batch_of(60))
    assert not graphs.replaying


def test_the_largest_is_recorded_first_again_where_recordings_were_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    """Else it would come to the memory of a smaller one, and run out again. That they were dropped is said once."""
    sizes = RecordedSizes(room=60)
    sizes.add(40, 5, 10, make_room=True)
    assert not capsys.readouterr().err
    sizes.add(15, make_room=True)
    assert sizes.recorded == [40, 5, 10, 40, 15]
    assert sizes.pools == ["pool 1"] * 3 + ["pool 4"] * 2
    sizes.add(10, make_room=True)
    assert sizes.recorded == [40, 5, 10, 40, 15, 40, 10]
    (said,) = capsys.readouterr().err.splitlines()
    assert "too little memory" in said
    assert "recorded again when its size comes again" in said


def test_a_size_without_room_beside_the_largest_is_an_error_each_time() -> None:
    """Two attempts and no more; what else is recorded stays in order."""
    sizes = RecordedSizes(room=50)
    sizes.add(40, 5)
    for attempt in (1, 2):
        with pytest.raises(torch.OutOfMemoryError, match="no room for 20"):
            sizes.add(20, make_room=True)
        assert [recording.points for recording in sizes.alive] == [40]
        assert sizes.recorded == [40, 5] + [40] * attempt
    sizes.add(10, make_room=True)
    assert sizes.recorded == [40, 5, 40, 40, 10]


class Sizes(ForwardGraphs):
    """What is recorded, with a replay that gives the negative of what is computed; a recording itself needs a GPU."""

    def __init__(self, error: Exception | None = None) -> None:
        self.computed: list[int] = []
        self.recorded: list[int] = []
        self.error = error
        super().__init__(self.sum_of)

    def sum_of(self, batch: Batch) -> torch.Tensor:
        self.computed.append(len(batch.points))
        return batch.points.sum()

    def _record(self, batch: Batch, pool: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.recorded.append(len(batch.points))
        return SimpleNamespace(replay=lambda batch: -batch.points.sum(), pool=pool or "pool")


def sums_of(graphs: ForwardGraphs, *sizes: int) -> list[float]:
    return [float(graphs(batch_of(points))) for points in sizes]


def test_a_size_is_recorded_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest that came is recorded first; a larger one later drops none, and where all room is taken stays out."""
    monkeypatch.setattr("flare_model.training.recorded.forward_graphs.MAX_SIZES", 5)
    graphs = Sizes()
    assert sums_of(graphs, 4, 6, 2) == [12, 18, 6]
    assert sums_of(graphs, 4, 6, 2) == [-12, -18, -6]
    assert sums_of(graphs, 4, 6, 2) == [-12, -18, -6]
    assert (graphs.computed, graphs.recorded) == ([4, 6, 2], [6, 4, 2])
    assert sums_of(graphs, 3, 8, 3, 8) == [9, 24, -9, -24]
    assert graphs.recorded == [6, 4, 2, 8, 3]
    assert sums_of(graphs, 4, 6, 2, 9, 9) == [-12, -18, -6, 27, 27]
    assert graphs.recorded == [6, 4, 2, 8, 3]


def test_validation_drops_no_recording_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is room for one size alone, that one is recorded, and not a larger one before it."""
    monkeypatch.setattr("flare_model.training.recorded.forward_graphs.MAX_SIZES", 4)
    graphs = Sizes()
    assert sums_of(graphs, 4, 6, 2, 4, 6, 2) == [12, 18, 6, -12, -18, -6]
    assert sums_of(graphs, 3, 8, 3) == [9, 24, -9]
    assert graphs.recorded == [6, 4, 2, 3]
    assert sums_of(graphs, 4, 6, 2, 3, 8) == [-12, -18, -6, -9, 24]
    assert graphs.recorded == [6, 4, 2, 3]


def test_validation_keeps_no_batch_on_the_device_and_none_once_all_room_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch may hold much memory, and training comes between two validations."""
    monkeypatch.setattr("flare_model.training.recorded.forward_graphs.MAX_SIZES", 2)
    graphs, batch = Sizes(), batch_of(6)
    points = weakref.ref(batch.points)
    graphs(batch)
    del batch
    assert points() is None
    assert sums_of(graphs, 4, 4) == [12, -12]
    assert graphs.recorded == [6, 4]
    graphs(batch_of(8))
    assert graphs._largest is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), UsageError("it reads from the host")])
def test_what_can_not_be_recorded_is_computed(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    graphs = Sizes(error)
    assert [sums_of(graphs, 4, 6) for _ in range(3)] == [[12, 18]] * 3
    (said,) = capsys.readouterr().err.splitlines()
    why = "too little memory" if isinstance(error, torch.OutOfMemoryError) else "it reads from the host"
    assert "validation isn't recorded as CUDA graphs" in said
    assert why in said


def test_validation_is_computed_once_memory_for_its_recordings_runs_out() -> None:
    graphs = Sizes()
    assert sums_of(graphs, 4, 6, 4, 6) == [12, 18, -12, -18]
    graphs.error = torch.OutOfMemoryError("none left")
    assert sums_of(graphs, 8, 8, 4, 6) == [24, 24, 12, 18]
    assert graphs.recorded == [6, 4]
