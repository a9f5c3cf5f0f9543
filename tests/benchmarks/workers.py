"""Processes that train at the same time, spread over all visible GPUs; not a command."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import SimpleQueue

import torch


def visible_gpus() -> list[str]:
    """The name in CUDA_VISIBLE_DEVICES of each GPU that this process sees; one empty name where it sees none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return named.split(",")


def training_pool(processes: int, gpus: Sequence[str] | None = None) -> ProcessPoolExecutor:
    """A pool whose workers have one thread and one GPU each, since they run in parallel themselves.

    Args:
        processes: Number of workers.
        gpus: Names of the GPUs that they are spread over evenly; by default all visible ones.
    """
    spawn = multiprocessing.get_context("spawn")  # CUDA can't be used in a forked process
    gpus = visible_gpus() if gpus is None else gpus
    devices: SimpleQueue[str] = spawn.SimpleQueue()
    for number in range(processes):
        devices.put(gpus[number % len(gpus)])
    return ProcessPoolExecutor(processes, mp_context=spawn, initializer=use_device, initargs=(devices,))


def use_device(devices: SimpleQueue[str]) -> None:
    """Let a worker use the next GPU of the queue; runs first in it, before PyTorch looks for GPUs."""
    if device := devices.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(1)
