"""Start programs of several processes as users do, and tell what they said when they fail or hang."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

SECONDS: Final = 240
"""How long a program may take on a machine at work; half a minute before, its processes say where they stand."""
ROOT: Final = Path(__file__).parents[2]
LAUNCHERS: Final = {
    "torchrun": ("torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node={ranks}"),
    "accelerate": (
        "accelerate.commands.launch", "--multi_gpu", "--num_processes={ranks}", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port={port}",
    ),
    "none": (),
}  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_of(folder: Path, others: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program that reports into a folder: gloo on the loopback interface, one thread."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    chosen = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": loopback,
        "MASTER_ADDR": "127.0.0.1",
        "RANKS_REPORT": str(folder),
        "RANKS_SECONDS": str(SECONDS - 30),
        "LPBF_CACHE": os.environ["LPBF_CACHE"],
    }
    return os.environ | chosen | dict(others)


def run_program(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, *, fails: bool = False
) -> str:
    """Run a command and all processes that it starts.

    Args:
        command: The command.
        folder: Where its output goes.
        environment: Variables beside those of this process.
        fails: Whether it should fail.

    Returns:
        What it and its processes said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "output.txt"
    with said.open("wb") as output:
        started = subprocess.Popen(
            list(command),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment_of(folder, environment or {}),
            cwd=folder,
            start_new_session=True,
        )
        try:
            status: int | None = started.wait(SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()
    text = said.read_text(encoding="utf-8", errors="replace")
    assert (status not in (0, None)) if fails else (status == 0), f"{command} ended with {status}:\n{text}"
    return text


def run_ranks(
    program: str,
    folder: Path,
    *words: object,
    ranks: int,
    launcher: str = "torchrun",
    before: Sequence[str] = (),
    module: str = "tests.lpbf_data.rank_programs",
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """Run a program of `rank_programs` in several processes.

    Args:
        program: Its name.
        folder: Where output and reports go.
        words: What it is given, as JSON.
        ranks: Number of processes.
        launcher: One of `LAUNCHERS`.
        module: Where the program stands.
        before: What the command begins with, such as a shell that sets limits.
        environment: Variables beside those of this process.

    Returns:
        What each rank reported, by rank.
    """
    options = [word.format(ranks=ranks, port=_free_port()) for word in LAUNCHERS[launcher]]
    start = [*before, sys.executable, *(["-m", *options] if options else [])]
    said = run_program([*start, "-m", module, program, json.dumps(words)], folder, environment)
    reports = [folder / f"{rank}.json" for rank in range(ranks)]
    assert all(report.exists() for report in reports), said
    return [json.loads(report.read_text(encoding="utf-8")) for report in reports]
