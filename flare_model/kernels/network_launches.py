"""Launches of the pointwise networks' kernels: how points are cut, and which kernel gives the gradients.

N points, C channels, K networks; weights and vectors as in pointwise.py.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from flare_model.kernels.network import network_kernel
from flare_model.kernels.network_gradient import network_backward_kernel, network_gradient_kernel
from flare_model.kernels.support import takes_hopper_gradient
from flare_model.kernels.tuning import HOPPER_GRADIENT, INTERPRETED, NetworkTiles, gradient_tiles, network_tiles

DTYPES: Final = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
TORCH_TYPES: Final = {value: key for key, value in DTYPES.items()}

MAX_IN_REGISTERS: Final = 64
"""Most channels with which gradients of the matrices lie in registers; with more, kernels write their factors, and the
gradients are products of these. With more, the registers of the forward kernel hold no x to be added, and its shared
memory the matrices of one network only."""

_SLICE: Final = 32 if INTERPRETED else 1024
"""Points of one of these products: few enough that there are products for all multiprocessors."""

_CHUNK: Final = 64 if INTERPRETED else 1 << 17
"""Points at a time, which limits the memory for these factors: 320 MiB for 128 channels and five layers."""


def count_points(x: Tensor) -> int:
    """N of [..., C]."""
    return x.numel() // x.shape[-1]


def _multiprocessors(x: Tensor) -> int:
    return int(torch.cuda.get_device_properties(x.device).multi_processor_count) if x.is_cuda else 1


def count_programs(x: Tensor, count: int, tiles: NetworkTiles) -> int:
    """Programs for so many points; each takes tile after tile."""
    return int(max(1, min(triton.cdiv(count, tiles.points), _multiprocessors(x) * tiles.programs)))


def _compile_options(weights: Tensor, vectors: Tensor, dtype: torch.dtype, tiles: NetworkTiles) -> dict[str, Any]:
    """Compile-time arguments of the kernels."""
    layers, channels = weights.shape[-3:-1]
    network = {"LAYERS": layers, "C": channels, "NORM": _has_norm(weights, vectors), "TYPE": DTYPES[dtype]}
    return network | {"POINTS": tiles.points, "num_warps": tiles.warps, "num_stages": tiles.stages}


def _has_norm(weights: Tensor, vectors: Tensor) -> bool:
    """Whether a LayerNorm goes before the network."""
    return vectors.shape[-2] > weights.shape[-3]


def launch_networks(
    x: Tensor, weights: Tensor, vectors: Tensor, epsilon: float, dtype: torch.dtype, out: Tensor, *, residual: bool
) -> None:
    """Write all networks of weights [K, layers, C, C] and vectors [K, rows, C] to out, [K, ..., C]."""
    tiles = network_tiles(x.shape[-1], networks=len(weights))
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        network_kernel[(count_programs(x, count_points(x), tiles),)](
            x, weights, vectors, out, count_points(x), epsilon, NETWORKS=len(weights), RESIDUAL=residual,
            **_compile_options(weights, vectors, dtype, tiles),
        )  # fmt: skip


def differentiate(
    gradient: Tensor,
    added: Tensor | None,
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    epsilon: float,
    dtype: torch.dtype,
    grad_x: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and vectors; that of x, to which `added` is added, is written to grad_x.

    `added` may be grad_x itself.
    """
    by_kernel = _differentiate_at_once if x.shape[-1] <= MAX_IN_REGISTERS else _differentiate_in_chunks
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return by_kernel(gradient, added, x, weights, vectors, epsilon, dtype, grad_x)


def _differentiate_at_once(
    gradient: Tensor,
    added: Tensor | None,
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    epsilon: float,
    dtype: torch.dtype,
    grad_x: Tensor,
) -> tuple[Tensor, Tensor]:
    hopper = takes_hopper_gradient(x.device, x.shape[-1], len(weights))
    tiles = HOPPER_GRADIENT if hopper else gradient_tiles(x.shape[-1], norm=_has_norm(weights, vectors))
    programs = count_programs(x, count_points(x), tiles)
    grad_weights, grad_vectors = (
        weights.new_empty(programs, *weights.shape),
        vectors.new_empty(programs, *vectors.shape),
    )
    launch = _launch_hopper_gradient if hopper else _launch_gradient
    taken = grad_x if added is None else added
    launch(
        programs, (x, weights, vectors, gradient, taken, grad_x, grad_weights, grad_vectors), epsilon,
        _compile_options(weights, vectors, dtype, tiles) | {"ADD": added is not None},
    )  # fmt: skip
    return grad_weights.sum(0), grad_vectors.sum(0)


def _launch_gradient(programs: int, tensors: tuple[Tensor, ...], epsilon: float, options: dict[str, Any]) -> None:
    x = tensors[0]
    slopes_shape = (programs, options["LAYERS"] - 1, options["POINTS"], x.shape[-1]) if options["NORM"] else (1,)
    slopes = x.new_empty(slopes_shape, dtype=TORCH_TYPES[options["TYPE"]])
    network_gradient_kernel[(programs,)](*tensors, slopes, count_points(x), epsilon, **options)


def _launch_hopper_gradient(
    programs: int, tensors: tuple[Tensor, ...], epsilon: float, options: dict[str, Any]
) -> None:
    from flare_model.kernels.hopper_network_gradient import hopper_network_gradient_kernel

    taken = {name: options[name] for name in ("LAYERS", "NORM", "ADD", "TYPE", "num_warps")}
    hopper_network_gradient_kernel[(programs,)](*tensors, count_points(tensors[0]), epsilon, **taken)


def _differentiate_in_chunks(
    gradient: Tensor,
    added: Tensor | None,
    x: Tensor,
    weights: Tensor,
    vectors: Tensor,
    epsilon: float,
    dtype: torch.dtype,
    grad_x: Tensor,
) -> tuple[Tensor, Tensor]:
    grad_weights, grad_vectors = torch.zeros_like(weights), torch.zeros_like(vectors)
    layers, width = weights.shape[:2]
    tiles = gradient_tiles(width, norm=_has_norm(weights, vectors))
    tensors = (x, gradient, grad_x if added is None else added, grad_x)
    for some_x, some_gradient, some_added, some_grad_x in zip(
        *(torch.split(tensor.view(-1, width), _CHUNK) for tensor in tensors), strict=True
    ):
        slices = triton.cdiv(len(some_x), _SLICE)
        layer_inputs, grad_outputs = x.new_empty(2, layers, slices * _SLICE, width, dtype=dtype)
        programs = count_programs(x, slices * _SLICE, tiles)
        shares = vectors.new_empty(programs, *vectors.shape)
        network_backward_kernel[(programs,)](
            some_x, weights, vectors, some_gradient, some_added, some_grad_x, layer_inputs, grad_outputs, shares,
            len(some_x), slices * _SLICE, epsilon, ADD=added is not None,
            **_compile_options(weights, vectors, dtype, tiles),
        )  # fmt: skip
        products = _products(grad_outputs.view(-1, _SLICE, width).mT, layer_inputs.view(-1, _SLICE, width))
        grad_weights += products.view(layers, slices, width, width).sum(1)
        grad_vectors += shares.sum(0)
    return grad_weights, grad_vectors


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Products of two batches of matrices, added and returned in float32."""
    return torch.bmm(left, right, out_dtype=torch.float32) if left.is_cuda else left.float() @ right.float()
