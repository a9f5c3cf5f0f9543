"""Programs that start without importing anything: each is forked from a process that has imported what most need.

A process of its own that trains spends more time in its imports than in its training. What forks is the server of
`multiprocessing`, which has imported and does nothing else: whatever it forks is as if started anew, with an
environment, a folder and outputs of its own. Where a program's start is what is tested, start Python. Where there is a
GPU each is started anew.
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

IMPORTED: Final = (
    "accelerate", "lightning", "lightning_fabric", "matplotlib.figure", "pandas", "pyarrow.parquet", "torch._dynamo",
    "torchdata.stateful_dataloader", "zarr", "flare_model.evaluate", "flare_model.spectrum", "flare_model.train",
    "flare_model.training.trainer", "lpbf_data.serving.make_loader", "lpbf_data.serving.graph",
)  # fmt: skip
"""What is there before a program begins; nothing that reads the environment when it is imported."""

SECONDS: Final = 240
"""How long a program may take on a machine at work; half a minute before, its processes say where they stand."""


class Program:
    """A running program.

    Args:
        target: What it does: a function of a module.
        said: File for what it writes to both outputs; its standard error alone where `apart` names another for that.
        arguments: Of the function.
        environment: All of its variables; those of this process by default.
        folder: Where it works.
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
        # The server may have imported what asks for GPUs; CUDA works in no process that is forked after that.
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
        """Whether it hasn't ended."""
        return self._process.exitcode is None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def end(self, seconds: float = SECONDS) -> int:
        """Wait for its end; its exit status, minus a signal's number where that ended it.

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
        """What it said so far."""
        return self.said.read_text(encoding="utf-8", errors="replace") if self.said.exists() else ""


def command(module: str, *words: str) -> None:
    """What `python -m module words…` does, for a module with a function `main`."""
    sys.argv = [module, *words]
    sys.exit(importlib.import_module(module).main())


def function(module: str, name: str, *arguments: object) -> None:
    """Call a function of a module."""
    getattr(importlib.import_module(module), name)(*arguments)


def end_all(programs: Sequence[Program], seconds: float = SECONDS) -> list[int]:
    """Wait for the end of all; none is left running.

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
    """The program, in its process."""
    os.setpgid(0, 0)
    multiprocessing.set_start_method(None, force=True)  # It was handed down; workers are started as by default.
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
