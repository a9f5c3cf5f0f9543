"""Requirements of the kernels: devices, types and sizes."""

from __future__ import annotations

import functools
import logging
from typing import Any, Final

import torch
import triton

from flare_model.kernels.tuning import INTERPRETED

DEPTHS: Final = (4, 8, 16, 32)
DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)
MAX_LATENTS: Final = 1024

_LINEAR_SHARED_MEMORY: Final = {16: 10_752, 32: 22_528, 64: 57_344, 128: 131_072}
"""Bytes of a multiprocessor that a linear layer needs with its residual connection, by channels: compiled for an H100,
which needs most."""

MAX_LAYERS: Final = 5

_SHARED_MEMORY: Final = {64: 192_512, 128: 229_376}
"""Bytes of a multiprocessor that the network's kernels need, by channels: GPUs of the H100's class have them."""
_HOPPER_SHARED_MEMORY: Final = 226_952
"""The same of the gradient's kernel for GPUs of compute capability 9.0."""
_MIN_CAPABILITY: Final = (8, 0)
_HOPPER: Final = (9, 0)

_log = logging.getLogger(__name__)

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 6):
    raise ImportError(f"the kernels need Triton 3.6 or newer, not {triton.__version__}")


def unsupported(device: torch.device, dtype: torch.dtype, depth: int, num_latents: int) -> str | None:
    """Why the kernels can't mix such input, as half a sentence; None where they can.

    Args:
        device: Where the tensors lie.
        dtype: Of keys and values.
        depth: D, channels of a head.
        num_latents: M.
    """
    if missing := _missing_support(device):
        return missing
    if dtype not in DTYPES:
        return f"they take float16, bfloat16 and float32, not {_name(dtype)}"
    if depth not in DEPTHS:
        return f"they take heads of {', '.join(map(str, DEPTHS))} channels, not of {depth}"
    if num_latents > MAX_LATENTS:
        return f"they take up to {MAX_LATENTS} latents, not {num_latents}"
    return None


def unsupported_network(device: torch.device, dtype: torch.dtype, channels: int, layers: int) -> str | None:
    """Why the kernels can't apply a residual network of equal widths, as half a sentence; None where they can.

    Args:
        device: Where the tensors lie.
        dtype: Of its products.
        channels: C.
        layers: Its layers, the first and the last among them.
    """
    if missing := _missing_support(device):
        return missing
    if dtype not in (torch.float16, torch.bfloat16):
        return f"they take products of float16 and bfloat16, not of {_name(dtype)}"
    if channels not in _SHARED_MEMORY:
        return f"they take networks of {' or '.join(map(str, _SHARED_MEMORY))} channels, not of {channels}"
    if layers > MAX_LAYERS:
        return f"they take networks of up to {MAX_LAYERS} layers, the first and the last among them, not of {layers}"
    if (there := _shared_memory(device)) < (needed := _SHARED_MEMORY[channels]):
        return f"{channels} channels need {needed} bytes of a multiprocessor's shared memory, and this GPU has {there}"
    return None


def supports_residual_linear(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether a kernel can compute a linear layer with its residual connection.

    Args:
        device: Where the tensors lie.
        dtype: Of its products.
        channels: C, as many in as out.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    if not half or channels not in _LINEAR_SHARED_MEMORY or _missing_support(device) is not None:
        return False
    return _shared_memory(device) >= _LINEAR_SHARED_MEMORY[channels]


@functools.cache
def takes_hopper_gradient(device: torch.device, channels: int, layers: int) -> bool:
    """Whether the gradient of a network is computed by the kernel for GPUs of compute capability 9.0.

    Args:
        device: Where the tensors lie.
        channels: C.
        layers: The network's layers, the first and the last among them.
    """
    if INTERPRETED or device.type != "cuda" or torch.cuda.get_device_capability(device) != _HOPPER:
        return False
    if channels != 64 or not 2 <= layers <= MAX_LAYERS or _shared_memory(device) < _HOPPER_SHARED_MEMORY:
        return False
    try:
        from flare_model.kernels.hopper_network_gradient import compile_kernel

        compile_kernel(layers)
    except Exception as error:  # noqa: BLE001 (Gluon is experimental: with another Triton anything may be missing.)
        what = "gradients of pointwise networks by the kernel for all GPUs, which takes longer, since that for this one"
        _log.warning("%s can't be compiled: %s", what, error)
        return False
    return True


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _missing_support(device: torch.device) -> str | None:
    """Why the kernels can't run on a device, as half a sentence; None where they can, or that isn't known."""
    if device.type == "cpu" and INTERPRETED:
        return None
    if device.type != "cuda":
        return f"they run on CUDA devices (on a CPU in Triton's interpreter: TRITON_INTERPRET=1), not on {device.type}"
    if torch.version.hip is not None:
        return "they are written for NVIDIA's GPUs"
    if torch.cuda.is_available() and (capability := torch.cuda.get_device_capability(device)) < _MIN_CAPABILITY:
        least, found = (".".join(map(str, version)) for version in (_MIN_CAPABILITY, capability))
        return f"they need a GPU of compute capability {least} or more, and this one has {found}"
    return None


def _shared_memory(device: torch.device) -> int:
    """Bytes that a program may take of a multiprocessor."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return max(_SHARED_MEMORY.values())
    properties: Any = torch.cuda.get_device_properties(device)  # Its annotations lack this one.
    return int(properties.shared_memory_per_block_optin)
