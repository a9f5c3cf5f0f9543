"""Processes that train side by side, spread over the GPUs there are."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import SimpleQueue

import torch


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES would call each GPU that this process sees; one empty word where it sees none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return named.split(",")


def training_pool(processes: int, gpus: Sequence[str] | None = None) -> ProcessPoolExecutor:
    """A pool whose workers have one thread and one GPU each: they are the parallelism.

    Args:
        processes: How many train at a time.
        gpus: What they are spread over evenly; by default all GPUs there are.
    """
    spawn = multiprocessing.get_context("spawn")  # a forked process can't use the GPU
    gpus = visible_gpus() if gpus is None else gpus
    devices: SimpleQueue[str] = spawn.SimpleQueue()
    for number in range(processes):
        devices.put(gpus[number % len(gpus)])
    return ProcessPoolExecutor(processes, mp_context=spawn, initializer=use_device, initargs=(devices,))


def use_device(devices: SimpleQueue[str]) -> None:
    """Take the next GPU of those that are left; runs first in a worker, before PyTorch looks for GPUs."""
    if device := devices.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.set_num_threads(1)
