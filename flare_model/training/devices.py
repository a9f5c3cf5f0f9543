"""Where a run computes: processes, devices, precision."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import torch

from flare_model.data.point_ranks import end_soon_after_timeouts
from flare_model.training.recipe import Recipe, check_device, choose_precision
from lpbf_data.errors import LpbfError, UsageError
from lpbf_data.extras import how_to_install

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import Precision

__all__ = [
    "Fabric",
    "FirstProcessError",
    "Precision",
    "device_of",
    "in_process_group",
    "on_first_process",
    "open_fabric",
]

_CUBLAS: Final = ":4096:8"
_INTERACTIVE: Final = ("bash", "interactive")
"""Names of jobs in which people start processes by hand, as Fabric has it."""


def __getattr__(name: str) -> Any:
    if name == "Fabric":
        return _fabric().Fabric
    if name == "Precision":
        return _fabric().plugins.precision.Precision
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _fabric() -> Any:
    """The module of Lightning Fabric, imported by training alone, since its loggers import PyTorch's compiler."""
    try:
        fabric, _ = importlib.import_module("lightning_fabric"), importlib.import_module("lightning_fabric.plugins")
    except ImportError:
        try:  # The package "lightning" brings its own copy.
            fabric, _ = importlib.import_module("lightning.fabric"), importlib.import_module("lightning.fabric.plugins")
        except ImportError as error:
            raise UsageError(
                f"training needs lightning-fabric, which isn't installed: {how_to_install('model')}"
            ) from error
    return fabric


def _make_precision(name: str, device: str) -> Precision:
    """The precision of a name.

    Mixed precision leaves inputs alone: in 16 bits a coordinate of 30 mm would be off by up to 0.06 mm.
    """
    plugins = _fabric().plugins.precision
    if name == "32-true":
        return cast("Precision", plugins.Precision())
    inputs_as_they_are = type("InputsAsTheyAre", (plugins.MixedPrecision,), {"convert_input": lambda _, data: data})
    return cast("Precision", inputs_as_they_are(name, device))


def _leave_cudnn_attention() -> None:
    """Switch off cuDNN's attention, which PyTorch prefers on Hopper GPUs in 16 bits.

    It plans anew for every number of points, which takes tens of milliseconds, and parts differ in their numbers.
    FlashAttention and memory-efficient attention take any number without planning.
    """
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)


def open_fabric(recipe: Recipe, accelerator: Literal["auto", "cpu", "gpu"]) -> tuple[Fabric, Precision]:
    """Join the processes of this run, and choose device and precision.

    One process by itself, or as many as torchrun or srun started.

    Args:
        recipe: Says the precision, and whether kernels are to be deterministic.
        accelerator: Where to train.

    Returns:
        The fabric, launched, and its precision.

    Raises:
        UsageError: If there is no GPU where one is asked for, precision or step graphs don't go with the device, or
            SLURM's tasks weren't started.
    """
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if accelerator == "gpu" and not on_gpu:
        raise UsageError("--accelerator gpu, but PyTorch finds no GPU here; use auto or cpu")
    check_device(recipe, on_gpu=on_gpu)
    name = choose_precision(recipe.precision, on_gpu=on_gpu)
    precision = _make_precision(name, "cuda" if on_gpu else "cpu")
    _leave_cudnn_attention()
    if on_gpu:
        torch.set_float32_matmul_precision("high" if recipe.tf32 else "highest")
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS)
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    end_soon_after_timeouts()
    devices, nodes, launcher = _processes()
    if launcher == "SLURMEnvironment":  # The tasks of srun count; Fabric would compare with those of the whole job.
        step = {"SLURM_NTASKS": devices * nodes, "SLURM_NTASKS_PER_NODE": devices, "SLURM_NNODES": nodes}
        os.environ.update({name: str(number) for name, number in step.items()})
    environment = getattr(_fabric().plugins.environments, launcher)()
    fabric: Fabric = _fabric().Fabric(
        accelerator="gpu" if on_gpu else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if launcher == "LightningEnvironment" else "ddp",
        plugins=[precision, environment],
    )
    fabric.launch()
    if in_process_group(fabric):  # After launching: what is registered last runs first, so before Fabric's own handler.
        atexit.register(_end_process_group)
    return fabric, precision


def _end_process_group() -> None:
    """End the process group, with its threads, before Python ends.

    A thread of gloo that lets go of a finished exchange while Python ends aborts the process (PyTorch 2.13), and Fabric
    destroys groups of NCCL alone. Wrapped models hold the group as well, and are in reference cycles: they are
    collected first. Where such a model is the last to hold it, its end can wait for ever, since a thread of the group
    waits for Python's lock, which the collector has. Functions of torch.distributed.nn would keep a group that there is
    when that module is imported; Fabric imports it earlier.
    """
    gc.collect()
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


def in_process_group(fabric: Fabric) -> bool:
    """Whether a launcher started the run's processes, even if it started one alone."""
    return isinstance(fabric.strategy, _fabric().strategies.ParallelStrategy)


class FirstProcessError(LpbfError):
    """The first process of a run failed in an action that it does for all processes."""


def on_first_process(fabric: Fabric, action: Callable[[], None]) -> None:
    """Run an action in the first process while the others wait; where it fails, all raise.

    Args:
        fabric: The processes.
        action: The action, without communication.

    Raises:
        FirstProcessError: In the others, with the sentence of the error that the first one raises.
    """
    failed: Exception | None = None
    if fabric.is_global_zero:
        try:
            action()
        except Exception as error:  # noqa: BLE001 (raised again, once the others know)
            failed = error
    said = fabric.broadcast("" if failed is None else str(failed) or type(failed).__name__)
    if failed is not None:
        raise failed
    if said:
        raise FirstProcessError(said)


def _processes() -> tuple[int, int, str]:
    """Processes a node, nodes, and the name of Fabric's class for what started them: torchrun, srun or nothing.

    Raises:
        UsageError: If SLURM gave the job several tasks, and srun didn't start them.
    """
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        local, world = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        return local, world // local, "TorchElasticEnvironment"
    if os.environ.get("SLURM_JOB_NAME") in _INTERACTIVE:
        return 1, 1, "LightningEnvironment"
    allocated, started = (_number(name) for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"))
    if started > 1:
        nodes = _number("SLURM_STEP_NUM_NODES")
        if started % nodes:
            raise UsageError(
                f"srun started {started} processes on {nodes} nodes; training takes as many on each: give srun "
                f"--ntasks-per-node instead of --ntasks"
            )
        return started // nodes, nodes, "SLURMEnvironment"
    if allocated > 1 and "SLURM_STEP_ID" not in os.environ:
        raise UsageError(
            f"SLURM gave this job {allocated} tasks, but this process was started alone: write srun before python to "
            "train with all of them, or ask sbatch for --ntasks=1"
        )
    return 1, 1, "LightningEnvironment"


def _number(name: str) -> int:
    """A variable of SLURM as a number; 1 where it isn't set, or is none."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and int(text) else 1


def device_of(accelerator: str) -> torch.device:
    """The device to predict on.

    Raises:
        UsageError: If there is no GPU where one is asked for.
    """
    if accelerator not in ("auto", "cpu", "gpu"):
        raise UsageError(f"--accelerator must be auto, cpu or gpu, not {accelerator}")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UsageError("--accelerator gpu, but PyTorch finds no GPU here; use auto or cpu")
    _leave_cudnn_attention()
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
