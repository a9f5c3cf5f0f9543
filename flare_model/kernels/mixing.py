"""FLARE's token mixing as one operator of torch, with its gradient.

B meshes, N points, ΣN points of all meshes together, C channels, H heads, D = C / H channels a head, M latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from flare_model.kernels.decode import decode_kernel
from flare_model.kernels.encode import encode_kernel, merge_encoded_kernel
from flare_model.kernels.gradients import (
    latent_gradient_kernel,
    point_gradient_kernel,
    scale_latents_kernel,
    sum_slices_kernel,
)
from flare_model.kernels.tuning import INTERPRETED, PROGRAMS, Kernel, Tiles, tiles_of

_LEVELS: Final = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
_TYPES: Final = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_MERGED_LATENTS: Final = 16
_MERGED_SLICES: Final = 16
_TILES_A_PROGRAM: Final = 4


@dataclass(frozen=True)
class _Points:
    """How the points of a batch divide, and what every kernel is told of it."""

    keys: Tensor
    num_latents: int
    mask: Tensor | None
    offsets: Tensor | None

    @property
    def heads(self) -> int:
        return self.keys.shape[2]

    @property
    def depth(self) -> int:
        return self.keys.shape[3]

    @property
    def narrow(self) -> int:
        """Columns of what a product of a tile leaves; the matrix units take 8 at a time."""
        return max(8, self.depth)

    @property
    def meshes(self) -> int:
        return len(self.keys) if self.offsets is None else len(self.offsets) - 1

    @property
    def total(self) -> int:
        return self.keys.shape[0] * self.keys.shape[1]

    def tiles(self, kernel: Kernel) -> tuple[Tiles, int]:
        """How to cut a kernel, and the latents of a tile."""
        tiles = tiles_of(kernel, self.num_latents, self.depth, self.keys.element_size())
        return tiles, max(16, min(tiles.latents, triton.next_power_of_2(self.num_latents)))

    def together(self, tiles: Tiles, latents: int) -> int:
        """Latents that one launch of pass two takes."""
        return latents * int(min(tiles.unrolled, triton.cdiv(self.num_latents, latents)))

    def quick_tiles(self) -> tuple[Tiles, int] | None:
        """How to cut the quick way, whose launches take as many latents each; None where it can't be had."""
        # It needs the range of bfloat16, which the interpreter can't multiply: there float16 stands in.
        if self.mask is not None or self.keys.dtype != (torch.float16 if INTERPRETED else torch.bfloat16):
            return None
        tiles, latents = self.tiles("quick_point_gradient")
        while latents >= 16 and self.num_latents % self.together(tiles, latents):
            latents //= 2
        return (tiles, latents) if latents >= 16 else None

    def slices(self, tiles: Tiles, programs_a_slice: int) -> tuple[int, int]:
        """Points of a slice, and the number of slices; see [meshes][flare_model.kernels.meshes]."""
        # Each program reads latents before its first tile: small meshes are not for many programs.
        enough = self.total * programs_a_slice // (_TILES_A_PROGRAM * tiles.points)
        wanted = max(1, min(tiles.programs, max(enough, PROGRAMS)) // programs_a_slice)
        # Places within a slice are counted in 32 bits.
        most = (1 << 30) // (self.heads * self.depth)
        length = min(triton.cdiv(triton.cdiv(self.total, wanted), tiles.points) * tiles.points, most)
        if self.offsets is None:
            return length, self.meshes * triton.cdiv(self.keys.shape[1], length)
        return length, self.total // length + self.meshes

    def place(self, length: int) -> dict[str, int]:
        """Arguments that say where points lie."""
        number = self.total if self.offsets is not None else self.keys.shape[1]
        steps = (self.meshes - 1).bit_length()
        return {
            "num_meshes": self.meshes,
            "num_points": number,
            "num_latents": self.num_latents,
            "slice_length": length,
            "search_steps": steps,
        }

    def polynomials(self, tiles: Tiles) -> int:
        """How many of four exponentials are polynomials: in bfloat16 alone, beside whose rounding they are exact."""
        return tiles.polynomials if self.keys.dtype == torch.bfloat16 else 0

    def constants(self, tiles: Tiles, latents: int) -> dict[str, Any]:
        """Compile-time arguments that all kernels over points share."""
        return {
            "HEADS": self.heads,
            "DEPTH": self.depth,
            "WIDTH": max(16, self.depth),
            "LATENTS": latents,
            "POINTS": tiles.points,
            "PRECISION": _precision(self.keys.dtype),
            "JOINED": self.offsets is not None,
            "num_warps": tiles.warps,
            "num_stages": tiles.stages,
            **({} if tiles.registers is None else {"maxnreg": tiles.registers}),
        }


def _precision(dtype: torch.dtype) -> str:
    """How products round float32 operands, as it was asked of PyTorch; 16 bits are multiplied as they are."""
    if dtype != torch.float32:
        return "ieee"
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _encode(queries: Tensor, values: Tensor, points: _Points) -> tuple[Tensor, Tensor]:
    """Latents [B, H, M, D] and L [B, H, M]."""
    heads, depth, num_latents = points.heads, points.depth, points.num_latents
    tiles, latents = points.tiles("encode")
    rows = heads * triton.cdiv(num_latents, latents)
    length, slices = points.slices(tiles, rows)
    maxima, sums = values.new_empty(2, slices, heads, num_latents, dtype=torch.float32)
    moments = values.new_empty(slices, heads, num_latents, depth, dtype=torch.float32)
    encode_kernel[(slices * rows,)](
        queries, points.keys, values, points.mask, points.offsets, maxima, sums, moments,
        **points.place(length), **points.constants(tiles, latents), MASKED=points.mask is not None,
        POLYNOMIALS=points.polynomials(tiles),
    )  # fmt: skip
    encoded = values.new_empty(points.meshes, heads, num_latents, depth, dtype=torch.float32)
    normalisers = values.new_empty(points.meshes, heads, num_latents, dtype=_LEVELS[values.dtype])
    place = points.place(length)
    merge_encoded_kernel[(points.meshes * heads * triton.cdiv(num_latents, _MERGED_LATENTS),)](
        maxima, sums, moments, points.offsets, encoded, normalisers,
        place["num_points"], num_latents, length,
        HEADS=heads, DEPTH=depth, LATENTS=_MERGED_LATENTS, SLICES=_MERGED_SLICES, JOINED=points.offsets is not None,
        EXACT=points.keys.dtype == torch.float32,
    )  # fmt: skip
    return encoded, normalisers


def _decode(queries: Tensor, encoded: Tensor, points: _Points) -> tuple[Tensor, Tensor]:
    """Mixed values, laid out as the keys, and l [H, ΣN]."""
    tiles, latents = points.tiles("decode")
    length, slices = points.slices(tiles, points.heads)
    decoded = torch.empty_like(points.keys)
    normalisers = encoded.new_empty(points.heads, points.total, dtype=_LEVELS[points.keys.dtype])
    decode_kernel[(slices * points.heads,)](
        queries, points.keys, encoded, points.offsets, decoded, normalisers,
        **points.place(length), total_points=points.total, **points.constants(tiles, latents),
        TILES=triton.cdiv(points.num_latents, latents), UNEVEN=points.num_latents % latents != 0,
        POLYNOMIALS=points.polynomials(tiles),
    )  # fmt: skip
    return decoded, normalisers


def _latent_gradient(queries: Tensor, grad_decoded: Tensor, normalisers: Tensor, points: _Points) -> Tensor:
    """DZ, [B, H, M, D]."""
    heads, depth, num_latents = points.heads, points.depth, points.num_latents
    tiles, latents = points.tiles("latent_gradient")
    rows = heads * triton.cdiv(num_latents, latents)
    length, slices = points.slices(tiles, rows)
    parts = normalisers.new_empty(slices, heads, num_latents, depth, dtype=torch.float32)
    latent_gradient_kernel[(slices * rows,)](
        queries, points.keys, grad_decoded, normalisers, points.offsets, parts,
        **points.place(length), total_points=points.total, NARROW=points.narrow, **points.constants(tiles, latents),
        POLYNOMIALS=points.polynomials(tiles),
    )  # fmt: skip
    if points.offsets is None:
        return parts.view(points.meshes, -1, heads, num_latents, depth).sum(1)
    sums = parts.new_empty(points.meshes, heads, num_latents, depth)
    size = heads * num_latents * depth
    sum_slices_kernel[(points.meshes * triton.cdiv(size, 64),)](
        parts, points.offsets, sums, points.total, size, length, VALUES=64, SLICES=16, JOINED=True
    )
    return sums


def _point_gradients(
    queries: Tensor,
    values: Tensor,
    decoded: Tensor,
    grad_decoded: Tensor,
    encoded: Tensor,
    grad_encoded: Tensor,
    latent_normalisers: Tensor,
    point_normalisers: Tensor,
    points: _Points,
) -> tuple[Tensor, Tensor, Tensor]:
    """DQ [H, M, D], dK and dV laid out as the keys."""
    exact, quick = points.tiles("point_gradient"), points.quick_tiles()
    ways = (quick, exact) if quick else (exact,)
    length, slices = points.slices(ways[0][0], points.heads)
    parts = encoded.new_empty(slices, points.heads, points.num_latents, points.depth)
    finished = torch.empty(slices, points.heads, dtype=torch.int8, device=values.device) if quick else None
    size = latent_normalisers.numel()
    scales, bounds = latent_normalisers.new_empty(4, size), encoded.new_empty(points.meshes * points.heads, 2)
    scale_latents_kernel[(len(bounds),)](
        encoded, grad_encoded, latent_normalisers, scales, bounds, size, points.num_latents,
        DEPTH=points.depth, LATENTS=triton.next_power_of_2(points.num_latents), TYPE=_TYPES[values.dtype],
    )  # fmt: skip
    several = any(points.num_latents > points.together(*way) for way in ways)
    gradients = [torch.empty_like(t, dtype=torch.float32 if several else t.dtype) for t in (points.keys, values)]
    for way in ways:
        together = points.together(*way)
        for latent in range(0, points.num_latents, together):
            point_gradient_kernel[(slices * points.heads,)](
                queries, points.keys, values, decoded, grad_decoded, point_normalisers, encoded, grad_encoded,
                scales, bounds, finished, points.mask, points.offsets, parts, *gradients,
                **points.place(length), total_points=points.total, latent=latent, **points.constants(*way),
                NARROW=points.narrow, TILES=together // way[1], MASKED=points.mask is not None,
                UNEVEN=points.num_latents % together != 0, ADD=latent > 0, QUICK=way is not exact,
            )  # fmt: skip
    grad_keys, grad_values = (t.to(values.dtype) for t in gradients)
    return parts.sum(0).to(queries.dtype), grad_keys, grad_values


@torch.library.custom_op(
    "flare_model::mix",
    mutates_args=(),
    schema="(Tensor queries, Tensor keys, Tensor values, Tensor? mask, Tensor? offsets)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def mix_operator(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encode and decode.

    Args:
        queries: [H, M, D], contiguous.
        keys: [B, N, H, D], contiguous; [1, ΣN, H, D] with offsets.
        values: As the keys.
        mask: True where a point exists, [B, N], contiguous.
        offsets: First point of each mesh and the end of the last, [B + 1], on the device.

    Returns:
        Mixed values, as the keys; and for the backward pass: latents Z [B, H, M, D], their normalisers L [B, H, M] and
        those of the points l [H, ΣN]; no gradient goes through these. All are float32, but L and l are float64 where
        the keys are float32.
    """
    points = _Points(keys, queries.shape[1], mask, offsets)
    with _device(keys):
        encoded, latent_normalisers = _encode(queries, values, points)
        decoded, point_normalisers = _decode(queries, encoded, points)
    return decoded, encoded, latent_normalisers, point_normalisers


@torch.library.custom_op(
    "flare_model::mix_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor queries, Tensor keys, Tensor values, Tensor? mask, Tensor? offsets,"
    " Tensor decoded, Tensor encoded, Tensor latent_normalisers, Tensor point_normalisers) -> (Tensor, Tensor, Tensor)",
)
def mix_backward_operator(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    offsets: Tensor | None,
    decoded: Tensor,
    encoded: Tensor,
    latent_normalisers: Tensor,
    point_normalisers: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; arguments as for and from `mix_operator`, the gradient contiguous."""
    points = _Points(keys, queries.shape[1], mask, offsets)
    with _device(keys):
        grad_encoded = _latent_gradient(queries, gradient, point_normalisers, points)
        return _point_gradients(
            queries, values, decoded, gradient, encoded, grad_encoded, latent_normalisers, point_normalisers, points
        )


def _device(tensor: Tensor) -> Any:
    """Kernels are launched on the current device: make it that of a tensor."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


@mix_operator.register_fake
def _(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    heads, num_latents, depth = queries.shape
    meshes = keys.shape[0] if offsets is None else offsets.shape[0] - 1
    encoded = queries.new_empty(meshes, heads, num_latents, depth, dtype=torch.float32)
    total = keys.shape[0] * keys.shape[1]
    shapes = (encoded.shape[:-1], (heads, total))
    high, low = (encoded.new_empty(shape, dtype=_LEVELS[keys.dtype]) for shape in shapes)
    return torch.empty_like(values), encoded, high, low


@mix_backward_operator.register_fake
def _(gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = mix_backward_operator(gradient.contiguous(), *ctx.saved_tensors)
    return (*gradients, None, None)


mix_operator.register_autograd(_backward, setup_context=_remember)


def mix(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, offsets: Tensor | None = None
) -> Tensor:
    """FLARE's mixing by the kernels.

    Args:
        queries: Latent queries, [H, M, D].
        keys: Keys of the points, [B, N, H, D]; [ΣN, H, D] with offsets.
        values: As the keys.
        mask: True where a point exists, [B, N].
        offsets: First point of each mesh and the end of the last, [B + 1].

    Returns:
        As the keys.
    """
    keys, values = keys.contiguous(), values.contiguous()
    mixed: Tensor
    if offsets is not None:
        offsets = offsets.to(keys.device).contiguous()
        mixed = mix_operator(queries.contiguous(), keys[None], values[None], None, offsets)[0][0]
    else:
        mixed = mix_operator(queries.contiguous(), keys, values, None if mask is None else mask.contiguous(), None)[0]
    return mixed
