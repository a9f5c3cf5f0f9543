"""Describes the machine that a benchmark ran on, and writes results; not a command."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lpbf_data.durable import write_json

RESULTS = Path(__file__).parent / "results"


def describe_machine(packages: Sequence[str] = ("numpy", "pyarrow", "zarr", "torch")) -> dict[str, Any]:
    """Processor, cores, memory, and versions of Python and of some packages."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def describe_training_machine() -> dict[str, Any]:
    """The machine, its GPUs, and versions of the packages that trainings depend on."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return describe_machine(("numpy", "torch", "pyarrow")) | {"gpus": gpus}


def kept_result(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of a JSON file that an earlier call wrote; if there is none, it is computed and written."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    found = compute()
    write_json(path, found)
    return found


def save_result(name: str, content: dict[str, Any]) -> Path:
    """Write a benchmark's figures; returns the file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
