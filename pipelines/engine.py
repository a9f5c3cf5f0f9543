"""Running tasks on Dask: a cluster of processes on this machine, or a scheduler that runs already."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import dask
from distributed import Client, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from lpbf_data.errors import UsageError

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT: Final = 4  # tasks a worker that are submitted at a time
_SETTINGS: Final = {
    # A worker that dies takes its task along; the journal of attempts decides when a case is given up, not Dask.
    "distributed.scheduler.allowed-failures": 1000,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.admin.tick.limit": "60s",
    "distributed.worker.daemon": True,
}


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Engine:
    """Runs a function over tasks in worker processes; in this process when there are no workers.

    Args:
        client: Client of a Dask cluster, or None.
    """

    def __init__(self, client: Client | None = None) -> None:
        self._client = client

    @property
    def num_workers(self) -> int:
        """Threads that work at a time."""
        if self._client is None:
            return 1
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return max(1, sum(int(worker["nthreads"]) for worker in workers))

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in the order in which they are finished.

        Args:
            function: Pure; it and its tasks must pickle.
            tasks: One argument each. Few are in flight at a time, so there may be many.
        """
        if self._client is None:
            yield from map(function, tasks)
            return
        waiting = iter(tasks)
        submitted: dict[Any, Task] = {}

        def submit(task: Task) -> Any:
            assert self._client is not None
            future = self._client.submit(function, task, pure=False)
            submitted[future.key] = task
            return future

        window = _IN_FLIGHT * self.num_workers
        running = as_completed([submit(task) for task, _ in zip(waiting, range(window), strict=False)])
        for future in running:
            task = submitted.pop(future.key)
            try:
                result = future.result()
            except KilledWorker:
                running.add(submit(task))
                continue
            for following in waiting:
                running.add(submit(following))
                break
            yield result


def check_workers(workers: int | None) -> None:
    """Refuse a number of workers that can't be.

    Raises:
        UsageError: If it is negative.
    """
    if workers is not None and workers < 0:
        raise UsageError(f"--workers must be 0 or more, not {workers}")


@contextlib.contextmanager
def open_engine(workers: int | None = None, scheduler: str | None = None) -> Iterator[Engine]:
    """Start worker processes on this machine, or join a scheduler.

    Args:
        workers: Processes, one thread each; one a core by default; 0 works in this process, without Dask.
        scheduler: Address of a running scheduler, say "tcp://node1:8786"; its workers must see the same disk.

    Raises:
        UsageError: If the scheduler doesn't answer, or a number is out of range.
    """
    check_workers(workers)
    if scheduler is not None:
        with _join(scheduler) as client:
            yield Engine(client)
        return
    count = available_cores() if workers is None else workers
    if count == 0:
        yield Engine()
        return
    with dask.config.set(_SETTINGS):
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        with (
            LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield Engine(client)


@contextlib.contextmanager
def _join(scheduler: str) -> Iterator[Client]:
    try:
        client = Client(scheduler, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"the Dask scheduler at {scheduler} doesn't answer: {error}") from error
    with client:
        client.wait_for_workers(1, timeout=60)
        yield client
