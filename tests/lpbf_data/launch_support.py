"""Start programs of several processes, and show their output when they fail or hang."""

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

from tests.forked import SECONDS, Program, end_all, function

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


def launch_command(launcher: str, ranks: int) -> list[str]:
    """The beginning of a command that starts so many processes.

    Args:
        launcher: One of `LAUNCHERS`.
        ranks: Number of processes.
    """
    options = [word.format(ranks=ranks, port=_free_port()) for word in LAUNCHERS[launcher]]
    return [sys.executable, *(["-m", *options] if options else [])]


def torchrun_variables(ranks: int, nodes: int = 1) -> list[dict[str, str]]:
    """What torchrun sets in the environment of each of its processes.

    Args:
        ranks: Number of processes.
        nodes: Number of machines that they are taken to be on.
    """
    local = ranks // nodes
    shared = {
        "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": local, "GROUP_WORLD_SIZE": nodes, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": _free_port(), "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_MAX_RESTARTS": 0,
    }  # fmt: skip
    own = ({"RANK": rank, "LOCAL_RANK": rank % local, "GROUP_RANK": rank // local} for rank in range(ranks))
    return [{name: str(value) for name, value in (shared | each).items()} for each in own]


def _run_forked(
    program: str,
    folder: Path,
    words: Sequence[object],
    variables: Sequence[Mapping[str, str]],
    module: str,
    environment: Mapping[str, str],
) -> str:
    """Run a program in several forked processes; what they said."""
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output.txt"
    started = [
        Program(function, output, module, program, *words,
                environment=environment_of(folder, {**environment, **own}), folder=folder)
        for own in variables
    ]  # fmt: skip
    ended = end_all(started)
    assert not any(ended), f"{program} ended with {ended}:\n{started[0].text()}"
    return started[0].text()


def run_ranks(
    program: str,
    folder: Path,
    *words: object,
    ranks: int,
    launcher: str = "forked",
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
        launcher: One of `LAUNCHERS`; or "forked" for processes with the variables that torchrun sets, and "forked
            alone" for one without, which both begin with everything imported.
        module: Where the program stands.
        before: What the command begins with, such as a shell that sets limits.
        environment: Variables beside those of this process.

    Returns:
        What each rank reported, by rank.
    """
    if launcher.startswith("forked"):
        sets = torchrun_variables(ranks) if launcher == "forked" else [{}]
        said = _run_forked(program, folder, words, sets, module, environment or {})
    else:
        start = [*before, *launch_command(launcher, ranks)]
        said = run_program([*start, "-m", module, program, json.dumps(words)], folder, environment)
    reports = [folder / f"{rank}.json" for rank in range(ranks)]
    assert all(report.exists() for report in reports), said
    return [json.loads(report.read_text(encoding="utf-8")) for report in reports]
