"""Where the kernels can run."""

from __future__ import annotations

from typing import Any, Final

import torch
import triton

from flare_model.kernels.tuning import INTERPRETED

DEPTHS: Final = (4, 8, 16, 32)
DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)
MOST_LATENTS: Final = 1024

MOST_LAYERS: Final = 5

_SHARED_MEMORY: Final = {64: 192_512, 128: 229_376}
"""Bytes of a multiprocessor that the network's kernels need, by channels: GPUs of the H100's class have them."""
_LEAST_CAPABILITY: Final = (8, 0)

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 6):
    raise ImportError(f"the kernels need Triton 3.6 or newer, not {triton.__version__}")


def unsupported(device: str, dtype: torch.dtype, depth: int, num_latents: int) -> str | None:
    """Why the kernels can't mix such input, as half a sentence; None where they can.

    Args:
        device: Type of the device.
        dtype: Of keys and values.
        depth: D, channels of a head.
        num_latents: M.
    """
    if not _runs_on(device):
        return f"they run on CUDA devices (on a CPU in Triton's interpreter: TRITON_INTERPRET=1), not on {device}"
    if device == "cuda" and (lacking := _lacking()):
        return lacking
    if dtype not in DTYPES:
        return f"they take float16, bfloat16 and float32, not {str(dtype).removeprefix('torch.')}"
    if depth not in DEPTHS:
        return f"they take heads of {', '.join(map(str, DEPTHS))} channels, not of {depth}"
    if num_latents > MOST_LATENTS:
        return f"they take up to {MOST_LATENTS} latents, not {num_latents}"
    return None


def takes_network(device: str, dtype: torch.dtype, channels: int, layers: int) -> bool:
    """Whether the kernels apply a residual pointwise network of equal widths, on the current device.

    Args:
        device: Type of the device.
        dtype: Of its products.
        channels: C.
        layers: Its layers, the first and the last among them.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    if not (_runs_on(device) and half and channels in _SHARED_MEMORY and layers <= MOST_LAYERS):
        return False
    return device != "cuda" or (not _lacking() and _shared_memory() >= _SHARED_MEMORY[channels])


def _lacking() -> str | None:
    """What keeps the kernels from the current GPU; without one, nothing that is known."""
    if torch.version.hip is not None:
        return "they are written for NVIDIA's GPUs"
    if torch.cuda.is_available() and (capability := torch.cuda.get_device_capability()) < _LEAST_CAPABILITY:
        least, found = (".".join(map(str, version)) for version in (_LEAST_CAPABILITY, capability))
        return f"they need a GPU of compute capability {least} or more, and this one has {found}"
    return None


def _shared_memory() -> int:
    """Bytes that a program may take of a multiprocessor of the current GPU."""
    if not torch.cuda.is_available():
        return max(_SHARED_MEMORY.values())
    properties: Any = torch.cuda.get_device_properties()  # Its annotations lack this one.
    return int(properties.shared_memory_per_block_optin)


def _runs_on(device: str) -> bool:
    return device == "cuda" or (device == "cpu" and INTERPRETED)
