"""Which code computes: the GPU's kernels where they can run, PyTorch's own operators elsewhere."""

from __future__ import annotations

import functools
import logging
from typing import Final, Literal

import torch
from torch import Tensor

from lpbf_data.errors import UsageError

Implementation = Literal["auto", "sdpa", "triton", "reference"]
IMPLEMENTATIONS: Final = ("auto", "sdpa", "triton", "reference")
OPTION: Final = "--model.init_args.config.mixer"

_log = logging.getLogger(__name__)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that products of a tensor are taken in: that of autocast where it is on, which leaves float64 alone."""
    device = x.device.type
    taken = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if taken else x.dtype


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def mix_by_kernels(
    implementation: Implementation, device: str, dtype: torch.dtype, depth: int, num_latents: int
) -> bool:
    """Whether the kernels mix; why auto leaves them out on a GPU is logged once.

    Args:
        implementation: What was asked for.
        device: Type of the device.
        dtype: Of the products.
        depth: D, channels of a head.
        num_latents: M.

    Raises:
        UsageError: If the kernels are asked for by name where they can't run.
    """
    if not _considered(implementation, device):
        return False
    reason = _why_not(device, dtype, depth, num_latents)
    if reason and implementation == "triton":
        raise UsageError(f"{OPTION} triton asks for the kernels, but {reason}; {OPTION} auto takes what can run")
    if reason:
        _log_once(f"mixing by two attention calls instead of the kernels: {reason}")
    return reason is None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def network_by_kernels(
    implementation: Implementation, device: str, dtype: torch.dtype, channels: int, layers: int
) -> bool:
    """Whether a kernel applies a pointwise network of so many layers, the first and the last among them."""
    if not _considered(implementation, device):
        return False
    try:
        from flare_model.kernels.support import takes_network
    except ImportError:
        return False
    return takes_network(device, dtype, channels, layers)


def _considered(implementation: Implementation, device: str) -> bool:
    """Whether the kernels are asked for.

    auto takes them on GPUs alone, as an interpreter on a CPU is slow, and leaves them out of exported models, which are
    to run elsewhere, without this package.
    """
    automatically = implementation == "auto" and device == "cuda" and not torch.compiler.is_exporting()
    return implementation == "triton" or automatically


def _why_not(device: str, dtype: torch.dtype, depth: int, num_latents: int) -> str | None:
    try:
        from flare_model.kernels.support import unsupported
    except ImportError:
        return "Triton 3.6 or newer is not installed here"
    return unsupported(device, dtype, depth, num_latents)


@functools.cache
def _log_once(message: str) -> None:
    _log.info(message)
