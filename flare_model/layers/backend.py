"""Which code computes: kernels for GPUs or for CPUs where they can run, PyTorch's own operators elsewhere."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from flare_model.sizes import Implementation
from lpbf_data.errors import UsageError

OPTION: Final = "--recipe.mixer"

CPU_POINTS: Final = 1 << 14
"""Points of a call from which on kernels for CPUs compute it: to load them takes longer than they save on fewer."""

_CPU_DEPTHS: Final = range(4, 33, 4)
_CPU_WIDTH: Final = 256
"""Depths of heads and widths of networks that kernels for CPUs compute faster than PyTorch's operators."""

_NO_TRITON: Final = "Triton 3.6 or newer is not installed here"

_log = logging.getLogger(__name__)


def _constant(function: Callable[..., bool]) -> Callable[..., bool]:
    """Tell PyTorch's compiler that the result is constant.

    torch.compiler.assume_constant_result does no more, but imports the compiler to do it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class ChosenMixer(nn.Module):
    """A mixer that the kernels can compute; its implementation is chosen by `flare_model.layers.mixer.mix_by`.

    Args:
        implementation: triton for the kernels, sdpa for attention calls, reference for matrices written out; auto takes
            the kernels where they can run, else the attention calls.
    """

    separable = True
    """It consists of `project`, `mix` and `leave`, of which only `mix` depends on more than one point."""

    as_published = True
    """Whether it mixes as its paper does; otherwise by attention calls alone."""

    def __init__(self, implementation: Implementation) -> None:
        super().__init__()
        self.implementation: Implementation = implementation


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that products of a tensor are taken in: that of autocast where it is on, which leaves float64 alone."""
    device = x.device.type
    taken = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if taken else x.dtype


@_constant
def mix_by_kernels(
    implementation: Implementation, device: torch.device, dtype: torch.dtype, depth: int, num_latents: int
) -> bool:
    """Whether the kernels mix; a warning says once why auto doesn't use them on a GPU.

    Args:
        implementation: What was asked for.
        device: Where the tensors lie.
        dtype: Of the products.
        depth: D, channels of a head.
        num_latents: M.

    Raises:
        UsageError: If the kernels are asked for by name where they can't run.
    """
    if not _considered(implementation, device):
        return False
    support = _support()
    reason: str | None = support.unsupported(device, dtype, depth, num_latents) if support else _NO_TRITON
    if reason and implementation == "triton":
        raise UsageError(f"{OPTION} triton asks for the kernels, but {reason}; {OPTION} auto takes what can run")
    if reason:
        _warn_once(f"mixing by attention calls instead of the kernels: {reason}")
    return reason is None


@_constant
def network_by_kernels(
    implementation: Implementation, device: torch.device, dtype: torch.dtype, channels: int, layers: int
) -> bool:
    """Whether a kernel applies a pointwise network; a warning says once why not, also where it is asked for by name.

    Args:
        implementation: What was asked for.
        device: Where the tensors lie.
        dtype: Of the products.
        channels: C.
        layers: Its layers, the first and the last among them.
    """
    if not _considered(implementation, device):
        return False
    support = _support()
    reason: str | None = support.unsupported_network(device, dtype, channels, layers) if support else _NO_TRITON
    if reason:
        _warn_once(f"pointwise networks by PyTorch's operators instead of the kernels: {reason}")
    return reason is None


@_constant
def residual_linear_by_kernel(
    implementation: Implementation, device: torch.device, dtype: torch.dtype, channels: int
) -> bool:
    """Whether a kernel computes a linear layer with its residual connection.

    Args:
        implementation: What was asked for.
        device: Where the tensors lie.
        dtype: Of the products.
        channels: C, as many in as out.
    """
    if not _considered(implementation, device):
        return False
    support = _support()
    return support is not None and support.supports_residual_linear(device, dtype, channels)


def mix_by_cpu_kernels(implementation: Implementation, queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether kernels for CPUs mix.

    Args:
        implementation: What was asked for.
        queries: [H, M, D].
        keys: [..., H, D].
        values: As the keys.
    """
    if not considers_cpu_kernels(implementation, keys, keys.shape[-2:].numel()):
        return False
    heads, latents, depth = queries.shape
    fits = latents > 0 and keys.shape == values.shape and keys.shape[-2:] == (heads, depth) and depth in _CPU_DEPTHS
    return fits and _cpu_kernels_read(queries, keys, values)


def network_by_cpu_kernels(
    implementation: Implementation, x: Tensor, layers: Sequence[nn.Linear], *added: Tensor
) -> bool:
    """Whether kernels for CPUs apply linear layers, one after the other.

    Args:
        implementation: What was asked for.
        x: [..., C].
        layers: Layers that are no more than a product and a bias.
        added: What is added to the result.
    """
    if not considers_cpu_kernels(implementation, x, x.shape[-1]):
        return False
    widths = [x.shape[-1], *(layer.out_features for layer in layers)]
    if [layer.in_features for layer in layers] != widths[:-1] or max(widths) > _CPU_WIDTH:
        return False
    return _cpu_kernels_read(x, *(parameter for layer in layers for parameter in (layer.weight, layer.bias)), *added)


def considers_cpu_kernels(implementation: Implementation, x: Tensor, width: int) -> bool:
    """Whether kernels for CPUs may compute something of x, which has so many numbers a point.

    The call alone decides, and not what was called before, so that the same call gives the same bits. It is asked in
    every call, also of few points, on GPUs, and in training.
    """
    if implementation != "auto" or torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return x.device.type == "cpu" and x.numel() >= CPU_POINTS * width


def _cpu_kernels_read(*arrays: Tensor) -> bool:
    """Whether kernels for CPUs can read tensors, nothing else follows what is computed, and the kernels run here."""
    plain = all(is_array(one) for one in arrays) and compute_dtype(arrays[0]) == torch.float32
    return plain and not _is_transformed() and _has_cpu_kernels()


def is_array(tensor: Tensor) -> bool:
    """Whether a tensor is no more than numbers of float32 in a CPU's memory, which kernels read by themselves.

    Exactly these types: others have operators of their own, as what is traced, differentiated or vectorised does.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_neg():
        return False
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _is_transformed() -> bool:
    """Whether PyTorch follows what is computed: for derivatives forward, `torch.func`, a trace, or a mode.

    Where another version of PyTorch doesn't tell, it may.
    """
    try:
        return (
            forward_ad._current_level >= 0
            or torch._C._are_functorch_transforms_active()
            or torch._C._get_tracing_state() is not None
            or torch._C._len_torch_dispatch_stack() > 0
            or torch._C._len_torch_function_stack() > 0
        )
    except AttributeError:
        return True


@functools.cache
def _has_cpu_kernels() -> bool:
    """Whether kernels for CPUs can run here; one of them is compiled to see it."""
    if importlib.util.find_spec("llvmlite") is None:
        return False
    try:
        from flare_model.kernels.cpu.compiling import check_executable_memory
        from flare_model.kernels.cpu.network import network_kernel

        check_executable_memory()
        network_kernel()
    except Exception as error:  # noqa: BLE001 (LLVM may refuse a system or a processor: PyTorch can do without.)
        _log.warning("PyTorch's operators in place of kernels for the CPU, which can't be compiled: %s", error)
        return False
    return True


def _support() -> ModuleType | None:
    """The module of the kernels' requirements; None where Triton is not installed."""
    try:
        from flare_model.kernels import support
    except ImportError:
        return None
    return support


def _considered(implementation: Implementation, device: torch.device) -> bool:
    """Whether the kernels are asked for.

    auto takes them on GPUs alone, as an interpreter on a CPU is slow, and leaves them out of exported models, which are
    to run elsewhere, without this package.
    """
    automatically = implementation == "auto" and device.type == "cuda" and not torch.compiler.is_exporting()
    return implementation == "triton" or automatically


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)
