"""Programs for tests that start without imports: each is forked from a process that has imported most modules already.

A short training spends more time in imports than in training. The fork server of `multiprocessing` imports the modules
and does nothing else, so each program that it forks behaves as if started anew, with its own environment, folder and
outputs. Tests of a program's start must start Python instead. Where there is a GPU, each program is started anew.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from tests.flushes import leave_out_flushes

IMPORTED: Final = (
    "accelerate", "lightning", "lightning_fabric", "matplotlib.figure", "pandas", "pyarrow.parquet", "torch._dynamo",
    "torchdata.stateful_dataloader", "zarr", "flare_model.evaluate", "flare_model.spectrum", "flare_model.train",
    "flare_model.training.trainer", "lpbf_data.serving.make_loader", "lpbf_data.serving.graph",
)  # fmt: skip
"""Modules that are imported before a program begins; none of them reads the environment at import."""

SECONDS: Final = 240
"""Longest time of a program, on a busy machine; half a minute earlier its processes print where they are and end."""


class Program:
    """A running program.

    Args:
        target: The function that it runs.
        said: File for its standard output, and for its standard error too unless `apart` names another.
        arguments: Arguments of the function.
        environment: All its environment variables; by default those of this process.
        folder: Its working directory; by default that of this process.
        apart: File for its standard error.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        said: Path,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        apart: Path | None = None,
    ) -> None:
        # Modules that the server imported may have initialised CUDA, which then works in no forked process.
        context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        variables = dict(os.environ if environment is None else environment)
        self.said = said
        self._process = context.Process(
            target=_run, args=(target, arguments, str(said), str(apart or said), variables, str(folder or Path.cwd()))
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def running(self) -> bool:
        """Whether it is still running."""
        return self._process.exitcode is None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def end(self, seconds: float = SECONDS) -> int:
        """Wait for its end; its exit status, or the negative number of the signal that ended it.

        Raises:
            TimeoutError: If it takes longer; then it, and all that it started, are killed.
        """
        self._process.join(seconds)
        if self._process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.join()
            raise TimeoutError(f"a program took more than {seconds} s:\n{self.text()}")
        return self._process.exitcode

    def text(self) -> str:
        """Content of the file `said` so far."""
        return self.said.read_text(encoding="utf-8", errors="replace") if self.said.exists() else ""


def command(module: str, *words: str) -> None:
    """Run what `python -m module words…` runs, for a module with a function `main`."""
    sys.argv = [module, *words]
    sys.exit(importlib.import_module(module).main())


def function(module: str, name: str, *arguments: object) -> None:
    """Call a function of a module."""
    getattr(importlib.import_module(module), name)(*arguments)


def end_all(programs: Sequence[Program], seconds: float = SECONDS) -> list[int]:
    """Wait for the end of all programs; none is left running. Their exit statuses.

    Raises:
        TimeoutError: If one takes longer.
    """
    limit = time.monotonic() + seconds
    try:
        return [program.end(max(1.0, limit - time.monotonic())) for program in programs]
    finally:
        for program in programs:
            if program.running():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGKILL)


def _run(
    target: Callable[..., Any], arguments: Sequence[object], said: str, apart: str, variables: Mapping[str, str],
    folder: str,
) -> None:  # fmt: skip
    """Set up the process of a program, and run its function."""
    os.setpgid(0, 0)
    leave_out_flushes()
    multiprocessing.set_start_method(
        None, force=True
    )  # The start method is inherited; workers are to be started by the default one.
    encoding, _, errors = variables.get("PYTHONIOENCODING", "utf-8").partition(":")
    for number, path, kept in ((0, os.devnull, ""), (1, said, errors or "strict"), (2, apart, "backslashreplace")):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
        name, mode = ("stdin", "r") if number == 0 else ("stdout" if number == 1 else "stderr", "w")
        setattr(sys, name, os.fdopen(number, mode, 1, encoding=encoding, errors=kept or None, closefd=False))
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    faulthandler.dump_traceback_later(SECONDS - 30, exit=True)
    try:
        target(*arguments)
    finally:
        sys.stdout.flush()
