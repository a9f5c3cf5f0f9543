"""Launches of the pointwise networks' kernels: how points are cut, and which kernel gives the gradients.

N points, C channels, K networks; weights and vectors as in pointwise.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Parameters:
    """Of one network, or of K with as many layers each, in front of the dimensions below.

    Attributes:
        weights: Matrices of all layers, [layers, C, C], float32.
        vectors: [layers, C] or, with a LayerNorm, [layers + 2, C]; float32.
        epsilon: What the LayerNorm adds to a variance.
        dtype: Type of the products.
    """

    weights: Tensor
    vectors: Tensor
    epsilon: float
    dtype: torch.dtype

    def of(self, number: int) -> Parameters:
        """Those of one of several networks."""
        return replace(self, weights=self.weights[number], vectors=self.vectors[number])

    @property
    def layers(self) -> int:
        """Layers, the first and the last among them."""
        return self.weights.shape[-3]

    @property
    def has_norm(self) -> bool:
        """Whether a LayerNorm goes before the network."""
        return self.vectors.shape[-2] > self.layers

    def constants(self, tiles: NetworkTiles) -> dict[str, Any]:
        """Compile-time arguments of the kernels."""
        network = {"LAYERS": self.layers, "C": self.weights.shape[-1], "NORM": self.has_norm}
        cut = {"POINTS": tiles.points, "num_warps": tiles.warps, "num_stages": tiles.stages}
        return network | {"TYPE": DTYPES[self.dtype]} | cut


def launch_networks(x: Tensor, parameters: Parameters, out: Tensor, *, residual: bool) -> None:
    """Write all networks of parameters [K, ...] to out, [K, ..., C]."""
    networks = len(parameters.weights)
    tiles = network_tiles(x.shape[-1], networks=networks)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        network_kernel[(count_programs(x, count_points(x), tiles),)](
            x, parameters.weights, parameters.vectors, out, count_points(x), parameters.epsilon, NETWORKS=networks,
            RESIDUAL=residual, **parameters.constants(tiles),
        )  # fmt: skip


def differentiate(
    gradient: Tensor, added: Tensor | None, x: Tensor, parameters: Parameters, grad_x: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and vectors; that of x, to which `added` is added, is written to grad_x.

    `added` may be grad_x itself.
    """
    by_kernel = _differentiate_at_once if x.shape[-1] <= MAX_IN_REGISTERS else _differentiate_in_chunks
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return by_kernel(gradient, added, x, parameters, grad_x)


def _differentiate_at_once(
    gradient: Tensor, added: Tensor | None, x: Tensor, parameters: Parameters, grad_x: Tensor
) -> tuple[Tensor, Tensor]:
    weights, vectors, layers = parameters.weights, parameters.vectors, parameters.layers
    hopper = takes_hopper_gradient(x.device, x.shape[-1], layers)
    tiles = HOPPER_GRADIENT if hopper else gradient_tiles(x.shape[-1], norm=parameters.has_norm)
    programs = count_programs(x, count_points(x), tiles)
    grad_weights, grad_vectors = (
        weights.new_empty(programs, *weights.shape),
        vectors.new_empty(programs, *vectors.shape),
    )
    tensors = (x, weights, vectors, gradient, grad_x if added is None else added, grad_x, grad_weights, grad_vectors)
    numbers, constants = (count_points(x), parameters.epsilon), parameters.constants(tiles) | {"ADD": added is not None}
    if hopper:
        from flare_model.kernels.hopper_network_gradient import hopper_network_gradient_kernel

        taken = {name: constants[name] for name in ("LAYERS", "NORM", "ADD", "TYPE", "num_warps")}
        hopper_network_gradient_kernel[(programs,)](*tensors, *numbers, **taken)
    else:
        slopes_shape = (programs, layers - 1, tiles.points, x.shape[-1]) if parameters.has_norm else (1,)
        slopes = x.new_empty(slopes_shape, dtype=parameters.dtype)
        network_gradient_kernel[(programs,)](*tensors, slopes, *numbers, **constants)
    return grad_weights.sum(0), grad_vectors.sum(0)


def _differentiate_in_chunks(
    gradient: Tensor, added: Tensor | None, x: Tensor, parameters: Parameters, grad_x: Tensor
) -> tuple[Tensor, Tensor]:
    weights, vectors = parameters.weights, parameters.vectors
    grad_weights, grad_vectors = torch.zeros_like(weights), torch.zeros_like(vectors)
    layers, width = weights.shape[:2]
    tiles = gradient_tiles(width, norm=parameters.has_norm)
    tensors = (x, gradient, grad_x if added is None else added, grad_x)
    for some_x, some_gradient, some_added, some_grad_x in zip(
        *(torch.split(tensor.view(-1, width), _CHUNK) for tensor in tensors), strict=True
    ):
        slices = triton.cdiv(len(some_x), _SLICE)
        layer_inputs, grad_outputs = x.new_empty(2, layers, slices * _SLICE, width, dtype=parameters.dtype)
        programs = count_programs(x, slices * _SLICE, tiles)
        shares = vectors.new_empty(programs, *vectors.shape)
        network_backward_kernel[(programs,)](
            some_x, weights, vectors, some_gradient, some_added, some_grad_x, layer_inputs, grad_outputs, shares,
            len(some_x), slices * _SLICE, parameters.epsilon, ADD=added is not None, **parameters.constants(tiles),
        )  # fmt: skip
        products = _products(grad_outputs.view(-1, _SLICE, width).mT, layer_inputs.view(-1, _SLICE, width))
        grad_weights += products.view(layers, slices, width, width).sum(1)
        grad_vectors += shares.sum(0)
    return grad_weights, grad_vectors


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Products of two batches of matrices, added and returned in float32."""
    return torch.bmm(left, right, out_dtype=torch.float32) if left.is_cuda else left.float() @ right.float()
