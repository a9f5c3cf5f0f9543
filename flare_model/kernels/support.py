"""Where the kernels can run."""

from __future__ import annotations

from typing import Final

import torch
import triton

from flare_model.kernels.tuning import INTERPRETED

DEPTHS: Final = (4, 8, 16, 32)
DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32)
MOST_LATENTS: Final = 1024

NETWORK_CHANNELS: Final = (64, 128)
MOST_LAYERS: Final = 5

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
    if dtype not in DTYPES:
        return f"they take float16, bfloat16 and float32, not {str(dtype).removeprefix('torch.')}"
    if depth not in DEPTHS:
        return f"they take heads of {', '.join(map(str, DEPTHS))} channels, not of {depth}"
    if num_latents > MOST_LATENTS:
        return f"they take up to {MOST_LATENTS} latents, not {num_latents}"
    return None


def takes_network(device: str, dtype: torch.dtype, channels: int, layers: int) -> bool:
    """Whether the kernels apply a residual pointwise network of equal widths.

    Args:
        device: Type of the device.
        dtype: Of its products.
        channels: C.
        layers: Its layers, the first and the last among them.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    return _runs_on(device) and half and channels in NETWORK_CHANNELS and layers <= MOST_LAYERS


def _runs_on(device: str) -> bool:
    return device == "cuda" or (device == "cpu" and INTERPRETED)
