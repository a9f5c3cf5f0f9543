"""Common parts of the launches of kernels over points: how a batch is cut into slices, and sums over slices.

B meshes, N points, ΣN points of all meshes together, H heads, D channels a head, M latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from flare_model.kernels.gradients import sum_slices_kernel
from flare_model.kernels.tuning import INTERPRETED, PROGRAMS, Kernel, Tiles, tiles_of

LOGSUMEXP_TYPES: Final = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
"""Type of logsumexps, by the type of the keys."""
TYPES: Final = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_TILES_A_PROGRAM: Final = 4


@dataclass(frozen=True)
class Points:
    """How the points of a batch divide into meshes and slices, and the arguments of kernels that describe it.

    Attributes:
        keys: [B, N, H, D]; [1, ΣN, H, D] with offsets.
        num_latents: M.
        mask: True where a point exists, [B, N].
        offsets: First point of each joined mesh and the end of the last, [B + 1].
    """

    keys: Tensor
    num_latents: int
    mask: Tensor | None
    offsets: Tensor | None

    @property
    def heads(self) -> int:
        """H."""
        return self.keys.shape[2]

    @property
    def depth(self) -> int:
        """D, channels of a head."""
        return self.keys.shape[3]

    @property
    def narrow(self) -> int:
        """Columns of the result of a product of tiles: 8, the least of the matrix units, or the channels of a head."""
        return max(8, self.depth)

    @property
    def meshes(self) -> int:
        """B."""
        return len(self.keys) if self.offsets is None else len(self.offsets) - 1

    @property
    def total(self) -> int:
        """ΣN, or B · N."""
        return self.keys.shape[0] * self.keys.shape[1]

    def tiles(self, kernel: Kernel) -> tuple[Tiles, int]:
        """How to cut a kernel, and the latents of a tile."""
        tiles = tiles_of(kernel, self.num_latents, self.depth, self.keys.element_size())
        return tiles, max(16, min(tiles.latents, triton.next_power_of_2(self.num_latents)))

    def latents_per_launch(self, tiles: Tiles, latents: int) -> int:
        """Latents that one launch of a kernel with `unrolled` tiles takes."""
        return latents * int(min(tiles.unrolled, triton.cdiv(self.num_latents, latents)))

    def fast_tiles(self) -> tuple[Tiles, int] | None:
        """How to cut the fast path, whose launches take equally many latents; None where it can't be used."""
        # It needs the range of bfloat16, which the interpreter can't multiply: there float16 is taken in its place.
        if self.mask is not None or self.keys.dtype != (torch.float16 if INTERPRETED else torch.bfloat16):
            return None
        tiles, latents = self.tiles("fast_point_gradient")
        while latents >= 16 and self.num_latents % self.latents_per_launch(tiles, latents):
            latents //= 2
        return (tiles, latents) if latents >= 16 else None

    def slices(self, tiles: Tiles, programs_a_slice: int) -> tuple[int, int]:
        """Points of a slice, and the number of slices; see [meshes][flare_model.kernels.mesh_slices]."""
        # Each program reads latents before its first tile, so that many programs don't pay for small meshes.
        enough = self.total * programs_a_slice // (_TILES_A_PROGRAM * tiles.points)
        wanted = max(1, min(tiles.programs, max(enough, PROGRAMS)) // programs_a_slice)
        # Places within a slice are counted in 32 bits.
        most = (1 << 30) // (self.heads * self.depth)
        length = min(triton.cdiv(triton.cdiv(self.total, wanted), tiles.points) * tiles.points, most)
        if self.offsets is None:
            return length, self.meshes * triton.cdiv(self.keys.shape[1], length)
        return length, self.total // length + self.meshes

    def place(self, length: int) -> dict[str, int]:
        """Arguments of a kernel that describe meshes and slices."""
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
        """How many of four exponentials are polynomials: in bfloat16 alone, whose rounding exceeds their error."""
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


def sum_slices(parts: Tensor, length: int, points: Points) -> Tensor:
    """Sums over the slices of each mesh, of `length` points a slice: [slices, H, M, D] to [B, H, M, D]."""
    size = parts[0].numel()
    if points.offsets is None:
        return parts.view(points.meshes, -1, *parts.shape[1:]).sum(1)
    sums = parts.new_empty(points.meshes, *parts.shape[1:])
    sum_slices_kernel[(points.meshes * triton.cdiv(size, 64),)](
        parts, points.offsets, sums, points.total, size, length, VALUES=64, SLICES=16, JOINED=True
    )
    return sums


def on_device_of(tensor: Tensor) -> Any:
    """A context in which the device of a tensor is the current one, on which kernels are launched."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
