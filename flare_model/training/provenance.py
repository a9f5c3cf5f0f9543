"""Provenance of a run: versions, devices, and digests of data, split and code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import torch

import flare_model
import lpbf_data
from flare_model.checkpoints.spec import ModelSpec, import_class
from flare_model.data.splits import Split

_VERSIONED: Final = ("torch", "numpy", "pyarrow", "zarr", "safetensors", "lightning-fabric", "lpbf-flare")


def provenance(splits: dict[str, Split], device: torch.device, model: ModelSpec) -> dict[str, Any]:
    """Versions, device and digests.

    Args:
        splits: The splits that the run reads, by name; one or more.
        device: Where it trains.
        model: The model; the code of one from outside of this package gets a digest too.
    """
    first = next(iter(splits.values()))
    return {
        "data": {
            "sha256": first.data_digest,
            "splits": {n: {"cases": len(s), "case_ids_sha256": s.digest} for n, s in splits.items()},
        },
        "code": {"sha256": code_digest(), "commit": _commit(), **_foreign_code(model)},
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
        },
        "command": sys.argv[1:],
    }


def code_digest() -> str:
    """SHA-256 over name and content of every module of the packages that training uses."""
    digest = hashlib.sha256()
    for package in (flare_model, lpbf_data):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{package.__name__}/{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _foreign_code(model: ModelSpec) -> dict[str, str]:
    """SHA-256 over name and content of the modules of a model from another package; empty for a model of this one."""
    if model.is_shipped:
        return {}
    package = import_class(model.class_path).__module__.partition(".")[0]
    digest = hashlib.sha256()
    for name in sorted(name for name in sys.modules if name.partition(".")[0] == package):
        path = getattr(sys.modules[name], "__file__", None)
        if path and Path(path).is_file():
            digest.update(f"{name}\0".encode() + Path(path).read_bytes())
    return {"model_sha256": digest.hexdigest()}


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    # Builds of PyTorch for different CUDA versions have the same package version; torch.__version__ tells them apart.
    return found | {"torch": str(torch.__version__)}


def _commit() -> str | None:
    """The commit of the working tree that the package lies in, with a mark when files were changed since."""
    folder = Path(flare_model.__path__[0])
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        changed = subprocess.run(  # noqa: S603
            [*git, "status", "--porcelain", "--", str(folder)], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
