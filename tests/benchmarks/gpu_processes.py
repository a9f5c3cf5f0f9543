"""Processes of one machine with a GPU each, as torchrun starts them; not a command.

Shared by `gpu_scaling`, `gpu_data_parallel` and `gpu_death`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch

from flare_model.sizes import FlareConfig
from tests.benchmarks.machine import describe_machine

TINY: Final = FlareConfig(channels=16, num_heads=2, num_latents=8, num_blocks=2)
WAIT: Final = timedelta(seconds=300)
"""How long a process waits for the others, one of which may be measuring alone."""


@dataclass(frozen=True)
class WorkerProcess:
    """This process, one of several that compute together.

    Attributes:
        device: Its device.
        rank: Its number among the processes.
        size: Number of processes.
        config: Sizes of the model.
        began: When it began, in seconds of the monotonic clock.
    """

    device: torch.device
    rank: int
    size: int
    config: FlareConfig
    began: float

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self.device.type == "cuda"

    def wait_for_all(self) -> None:
        """Wait for all processes, and for this one's device."""
        if self.on_gpu:
            torch.cuda.synchronize()
        torch.distributed.barrier()

    def largest(self, value: float) -> float:
        """The largest of a value over the processes."""
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return float(found)

    def memory_gib(self) -> float:
        """Memory of its device, GiB; for a CPU no limit."""
        return torch.cuda.get_device_properties(self.device).total_memory / 2**30 if self.on_gpu else 1e9


def join(*, tiny: bool, on_gpu: bool) -> WorkerProcess:
    """Join the processes that torchrun started; without torchrun this process is the only one."""
    began = time.monotonic()
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl", timeout=WAIT, device_id=device)
    else:
        torch.distributed.init_process_group("gloo", timeout=WAIT)
    config = replace(TINY if tiny else FlareConfig(), in_dim=3, out_dim=1)
    return WorkerProcess(device, torch.distributed.get_rank(), torch.distributed.get_world_size(), config, began)


def _describe(process: WorkerProcess) -> dict[str, Any]:
    """Device, versions, and links between the GPUs."""
    found: dict[str, Any] = {"machine": describe_machine(("numpy", "torch")), "device": process.device.type}
    if process.on_gpu:
        from tests.benchmarks.gpu_timing import describe_gpu

        topology = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=False).stdout
        found |= {"gpu": describe_gpu(), "links": topology.splitlines()}
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["nccl_nvls"] = os.environ["NCCL_NVLS_ENABLE"]
    return found


def saver(process: WorkerProcess, out: Path, part: str) -> Callable[[dict[str, Any]], None]:
    """A function that stores results of this number of processes in the file, beside those of other numbers."""

    def save(found: dict[str, Any]) -> None:
        if process.rank:
            return
        content = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        of_size = content.setdefault("by_ranks", {}).setdefault(str(process.size), {})
        if "about" not in of_size or part not in of_size:
            of_size["about"] = _describe(process)
        of_size[part] = found
        aside = out.with_name(out.name + ".part")
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        aside.replace(out)
        print(part, json.dumps(dict([*found.items()][-1:]))[:400], flush=True)

    return save
