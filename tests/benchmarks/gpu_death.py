"""When one of two processes that share a mesh is killed, how soon does the other end, and what does it report?

    python -m tests.benchmarks.gpu_death OUT.json

Two processes train on one divided mesh, and the second kills itself in the fourth step. They are started without
torchrun, which would end the other one at once.

Uses two GPUs and NCCL if there are two, else the CPU and gloo. Needs no data. The result goes to OUT.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch

from flare_model.data.point_ranks import PointRanks
from tests.benchmarks.gpu_processes import join
from tests.benchmarks.gpu_scaling import Step, make_mesh

WAIT: Final = 15.0
"""Seconds that a process waits for the other within a step; training waits longer."""
_MOST: Final = 90.0  # seconds after which the first process counts as hung


def train_until_killed() -> None:
    """Train as one of the two processes; the second kills itself in the fourth step."""
    on_gpu = torch.cuda.device_count() > 1
    own = join(tiny=not on_gpu, on_gpu=on_gpu)
    ranks, step = PointRanks.of_world(seconds=WAIT), Step(own)
    points, truth = make_mesh(own, 1 << 16 if on_gpu else 64)
    for number in range(1000):
        if number == 3:
            own.wait_for_all()
            if own.rank:
                os.kill(os.getpid(), signal.SIGKILL)
        step(points, truth, ranks)
        if on_gpu:
            torch.cuda.synchronize()


def main(out: str) -> None:
    """Start both processes, and write how the first one ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(2):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in own.items()}
        command = [sys.executable, "-m", "tests.benchmarks.gpu_death", "process"]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    first, second = started
    found: dict[str, Any] = {"waits_s": WAIT, "by": "NCCL" if torch.cuda.device_count() > 1 else "gloo"}
    second.wait()
    began = time.monotonic()
    try:
        said = first.communicate(timeout=_MOST)[1]
        found |= {"seconds": round(time.monotonic() - began, 1), "status": first.returncode}
        found["said"] = [
            line[:300] for line in said.splitlines() if re.search("rror|imeout", line) and "frame #" not in line
        ][-3:]
    except subprocess.TimeoutExpired:
        first.kill()
        found["hung"] = f"it went on for {_MOST:g} s"
    print(json.dumps(found), flush=True)
    Path(out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.json")
    out = parser.parse_args().out
    train_until_killed() if out == "process" else main(out)  # main starts it with that word
