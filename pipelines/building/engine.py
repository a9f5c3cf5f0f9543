"""Running tasks on Dask: processes on this machine, a scheduler that runs already, or a cluster that is started."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import math
import os
import signal
import threading
import time
import uuid
from asyncio import CancelledError as AsyncCancelledError
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lpbf_data.errors import UsageError
from lpbf_data.extras import how_to_install
from pipelines.building.case_process import CaseProcess

if TYPE_CHECKING:
    from distributed import Client

    from pipelines.building.idle_workers import IdleWorkers

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT: Final = 4  # tasks per worker that are submitted at a time
_RECOUNT: Final = 1.0  # seconds between two looks at how many workers there are
_POLL: Final = 0.01  # seconds between two looks for results; tasks take seconds
_TIME_TO_FETCH: Final = 10.0  # seconds for a result, which is small, to come from its worker before it is asked again
_MAY_GROW_TO: Final = 64  # workers that tasks are cut for, where more may join than are there at the start
_MAX_KILLS: Final = 20  # workers that may end while they work on one task before the build gives up
_NO_SCHEDULER: Final = 10.0  # seconds without an answer of a scheduler that is to be joined
_NO_WORKER: Final = 60.0  # seconds without any worker on this machine, where Dask starts a new one within a few
_WORKER_STARTS: Final = 600.0  # the same while a process is starting, for which a busy machine may take minutes
_NO_WORKER_OF_CLUSTER: Final = 3600.0  # the same on a cluster, where jobs wait in a queue
_SETTINGS: Final = {
    # A task whose worker ends goes to another one; the journal of attempts decides when a case is given up, not Dask.
    "distributed.scheduler.allowed-failures": 1000,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.admin.tick.limit": "60s",
    "distributed.worker.daemon": True,
}
_SETTINGS_HERE: Final = _SETTINGS | {
    # Tasks wait at the scheduler, not at workers (see _window), so there is hardly anything to steal; stealing is known
    # to lose tasks (https://github.com/dask/distributed/issues/8787). Clusters that grow need it.
    "distributed.scheduler.work-stealing": False,
}


@dataclass(frozen=True, slots=True)
class Resources:
    """Processes that do the work.

    Attributes:
        workers: Processes on this machine, one thread each; one per core by default; 0 works in this process.
        scheduler: Address of a running scheduler, say "tcp://node1:8786"; its workers must see the same disk.
        cluster: "slurm", or a YAML file that names a Dask cluster class and what it takes.
        apart: With 0 workers, whether a separate process works instead of this one: a case that hangs ends only that.
    """

    workers: int | None = None
    scheduler: str | None = None
    cluster: str | None = None
    apart: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers must be 0 or more, not {self.workers}")
        if self.scheduler and self.cluster:
            raise UsageError("--scheduler joins a cluster that runs, --cluster starts one; give one of them")


SERIAL: Final = Resources(workers=0)
"""Work in this process, without Dask."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Engine:
    """Runs a function over tasks in worker processes; in this process when there are no workers.

    Args:
        client: Client of a Dask cluster, or None.
        may_grow: Whether workers may join while it works.
        beside: A process that works where there are no workers; None for this one.
        idle_workers: Finds workers that hang; None where tasks may wait, for files from a network, say.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        may_grow: bool = False,
        beside: CaseProcess | None = None,
        idle_workers: IdleWorkers | None = None,
    ) -> None:
        self._client = client
        self._beside = beside
        self._may_grow = may_grow
        self._idle_workers = idle_workers

    @property
    def num_workers(self) -> int:
        """Threads that work at a time."""
        if self._client is None:
            return 1
        return max(1, self._running_threads())

    @property
    def workers_to_plan_for(self) -> int:
        """Threads that tasks should be cut for: a cluster often starts with the first of many workers."""
        return max(self.num_workers, _MAY_GROW_TO) if self._may_grow else self.num_workers

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in the order in which they are finished.

        Args:
            function: Pure; it and its tasks must pickle.
            tasks: One argument each. Few are in flight at a time, so there may be many.

        Raises:
            UsageError: If the scheduler goes away, a task kills one worker after the other, or no worker is left.
        """
        if self._client is None or not tasks:
            yield from map(function, tasks) if self._beside is None else self._beside.map(function, tasks)
            return
        from distributed.comm.core import CommClosedError

        try:
            yield from self._map_on_cluster(function, tasks)
        except (CancelledError, AsyncCancelledError, CommClosedError, TimeoutError) as error:
            raise UsageError(
                f"the Dask scheduler went away ({type(error).__name__}); run the same command again, it continues"
            ) from error

    def _map_on_cluster(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Results of worker processes; a task whose worker ended, over and over, is tried so many times."""
        from dask.utils import funcname
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        assert self._client is not None
        client = self._client
        waiting = iter(tasks)
        counter = itertools.count()
        group = f"{funcname(function)}-{uuid.uuid4().hex}"
        submitted: dict[Any, tuple[Task, int]] = {}
        running = as_completed(loop=client.loop)

        def submit(some: Sequence[Task], kills: int = 0) -> None:
            keys = [(group, next(counter)) for _ in some]
            for task, future in zip(some, client.map(function, some, key=keys), strict=True):
                submitted[future.key] = (task, kills)
                running.add(future)

        workers, looked, alive = 0, -math.inf, time.monotonic()
        while True:
            if time.monotonic() - looked > _RECOUNT:  # workers join and leave, also while nothing is finished
                workers, looked = self._count_workers(workers), time.monotonic()
                alive = looked if workers else alive
                self._look_after_workers(looked - alive, waiting=bool(submitted))
            if some := list(itertools.islice(waiting, max(0, self._window(len(tasks), workers) - len(submitted)))):
                submit(some)
            if not submitted:
                return
            if not running.has_ready():
                time.sleep(_POLL)
                continue
            future = next(running)
            task, kills = submitted.pop(future.key)
            try:
                result: Result = self._fetch(future)
            except KilledWorker as error:
                if kills >= _MAX_KILLS:
                    raise UsageError(f"{kills} workers ended while they worked on a task: {error}") from error
                submit([task], kills + 1)
                continue
            if self._idle_workers is not None:
                self._idle_workers.result_came()
            yield result

    def _fetch(self, future: Any) -> Any:
        """The result of a task that is finished, from the worker that has it, or from another if that one hangs."""
        if self._idle_workers is None:  # Dask's own limits find machines that are lost, and take longer
            return future.result()
        while True:
            try:
                return future.result(timeout=_TIME_TO_FETCH)
            except TimeoutError:
                if future.status == "error":  # the task's own
                    raise
                self._idle_workers.look()

    def _window(self, tasks: int, workers: int) -> int:
        """How many tasks are submitted at a time.

        Dask keeps tasks in a queue and gives one to each worker that is free, but only where more than twice as many as
        workers come at once; fewer would all be given out, and the last of them wait for a worker that is busy. To a
        cluster that grows with its tasks all are shown.
        """
        if tasks <= 2 * workers and not self._may_grow:
            return workers
        return _IN_FLIGHT * max(1, workers)

    def _look_after_workers(self, seconds: float, *, waiting: bool) -> None:
        """Refuse to wait longer when there has been no worker for so many seconds; start anew those that hang."""
        limit = self._longest_without_workers(seconds)
        if seconds > limit:
            joined = "those that were started didn't join" if limit == _WORKER_STARTS else "none was started again"
            raise UsageError(
                f"no worker process has been there for {seconds:.0f} s: all of them died and {joined}; "
                "run the same command again, it continues (--workers 0 works without them)"
            )
        if self._idle_workers is not None and waiting:
            self._idle_workers.look()

    def _longest_without_workers(self, seconds: float) -> float:
        """Seconds without any worker after which none will come, where there has been none for so many seconds."""
        if self._may_grow:
            return _NO_WORKER_OF_CLUSTER
        return _WORKER_STARTS if seconds > _NO_WORKER and self._is_worker_starting() else _NO_WORKER

    def _is_worker_starting(self) -> bool:
        """Whether a process of this machine is there that hasn't joined the scheduler yet."""
        from pipelines.building.idle_workers import WorkerProcesses  # needs the extra, which verifying doesn't

        return self._client is not None and WorkerProcesses(self._client).any_alive()

    def _running_threads(self) -> int:
        """Threads of the workers that the scheduler knows now."""
        assert self._client is not None
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return sum(int(worker["nthreads"]) for worker in workers)

    def _count_workers(self, before: int) -> int:
        """Threads that work now; as many as before where the scheduler doesn't answer, which its tasks will tell."""
        try:
            return self._running_threads()
        except (OSError, TimeoutError):
            if not before:
                raise
            return before


@contextlib.contextmanager
def open_engine(resources: Resources, idle_limit: float | None = None) -> Iterator[Engine]:
    """Start worker processes on this machine, join a scheduler, or start a cluster.

    Args:
        resources: Who works.
        idle_limit: Seconds without work after which workers of this machine hang and are started anew, for tasks that
            never wait for anything; None for others.

    Raises:
        UsageError: If the scheduler doesn't answer, the cluster can't be started, or Dask isn't installed.
    """
    if resources.scheduler is None and resources.cluster is None:
        count = available_cores() if resources.workers is None else resources.workers
        if count == 0:
            with CaseProcess() if resources.apart else contextlib.nullcontext() as beside:
                yield Engine(beside=beside)
            return
    try:
        import dask
        from distributed import Client
    except ModuleNotFoundError as error:  # of commands that need no extra for work in this process
        raise UsageError(
            f"work in several processes needs Dask, which isn't installed: {how_to_install('pipelines')}; "
            "--workers 0 works in this process"
        ) from error

    elsewhere = bool(resources.scheduler or resources.cluster)
    with dask.config.set(_SETTINGS if elsewhere else _SETTINGS_HERE), contextlib.ExitStack() as stack:
        if resources.scheduler is not None:
            client = stack.enter_context(_join(resources.scheduler))
        else:
            cluster = _start_cluster(resources) if resources.cluster else _local_cluster(count)
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        if elsewhere:
            client.wait_for_workers(1, timeout=3600)
        idle_workers = None if elsewhere or idle_limit is None else _watch(client, idle_limit)
        yield Engine(client, may_grow=elsewhere, idle_workers=idle_workers)


def _watch(client: Client, idle_limit: float) -> IdleWorkers:
    from pipelines.building.idle_workers import IdleWorkers  # needs the extra, which verifying doesn't

    return IdleWorkers(client, idle_limit)


def _local_cluster(count: int) -> Any:
    from distributed import LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with _interrupts_ignored():
        return LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",  # a free port: Dask serves its health there even without a dashboard
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that start meanwhile don't get the terminal's Ctrl-C, which each would report: this one ends them."""
    if threading.current_thread() is not threading.main_thread():  # where signals can't be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _join(scheduler: str) -> Client:
    from distributed import Client

    try:
        return Client(scheduler, timeout=_NO_SCHEDULER)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"the Dask scheduler at {scheduler} doesn't answer: {error}") from error


def _start_cluster(resources: Resources) -> Any:
    """A cluster of any Dask class.

    The YAML file holds `class` (say dask_jobqueue.SLURMCluster), `init` (its keyword arguments) and either `workers`
    (a number) or `adapt` (`minimum` and `maximum`).
    """
    import yaml

    name = str(resources.cluster)
    if name == "slurm":
        described: dict[str, Any] = {"class": "dask_jobqueue.SLURMCluster", "workers": resources.workers or 1}
    else:
        try:
            described = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
            described = {"init": {}, **described}
        except (OSError, yaml.YAMLError, TypeError) as error:
            raise UsageError(f"--cluster {name} is neither slurm nor a readable YAML file: {error}") from error
    module, _, kind = str(described.get("class", "")).rpartition(".")
    try:
        cluster = getattr(importlib.import_module(module), kind)(**described.get("init", {}))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"--cluster {name}: can't start {described.get('class')!r}: {error}; dask-jobqueue comes with "
            f"{how_to_install('cluster')}"
        ) from error
    if "adapt" in described:
        cluster.adapt(**described["adapt"])
    elif "workers" in described:
        cluster.scale(described["workers"])
    return cluster
