"""Processes that share the points of every mesh: the division of the points, and the sums that are exchanged.

P processes, B meshes, H heads, M latents, D channels a head.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lpbf_data.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SECONDS: Final = 50.0
"""How long a process waits for the others within a step, before it ends with an error."""

_WATCHDOG: Final = "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC"

_MIN_LOGSUMEXP: Final = -1e30


def end_soon_after_timeouts() -> None:
    """Let a process whose wait for others timed out end after two seconds, in NCCL groups that are made from now on.

    After a timeout PyTorch's watchdog pauses for four times the milliseconds of the environment variable
    TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC (15,000 by default), so that every process can write a dump: that is a minute in
    which the machine does nothing. A value that the user set is kept.
    """
    os.environ.setdefault(_WATCHDOG, "500")


@dataclass(frozen=True)
class Share:
    """The points of one process.

    Attributes:
        slices: Slices of these points among all points, one for each mesh; some may be empty.
        offsets: First of them in each mesh and the end of the last, [B + 1]; on the host.
    """

    slices: tuple[slice, ...]
    offsets: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Values at this process's points, from values at all points, [ΣN, …]."""
        parts = [values[part] for part in self.slices]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class PointRanks:
    """Processes that share the points of every mesh, and this one among them.

    Attributes:
        group: The processes. All must call the same methods in the same order, and with the same number of meshes;
            any of them may have no point of a mesh, or none at all.
    """

    group: ProcessGroup

    @classmethod
    def of_world(cls, over: int | None = None, *, seconds: float = SECONDS) -> PointRanks:
        """The processes that share points with this one; every process of the world must call it.

        Args:
            over: P, consecutive ranks of the world; all of it by default.
            seconds: How long to wait for the others within a step. One that is gone is noticed at once by gloo, and
                after so long by NCCL, whose watchdog then ends this process (see `end_soon_after_timeouts`).

        Raises:
            UsageError: If there is no process group, or P doesn't divide its processes.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise UsageError("to share points takes a process group: call torch.distributed.init_process_group first")
        world = torch.distributed.get_world_size()
        over = world if over is None else over
        if over < 1 or world % over:
            raise UsageError(f"{world} processes can't be divided into groups of {over} that share points")
        end_soon_after_timeouts()
        own_group: Any = None
        for first in range(0, world, over):
            group = torch.distributed.new_group([*range(first, first + over)], timeout=timedelta(seconds=seconds))
            if first <= torch.distributed.get_rank() < first + over:
                own_group = group
        return cls(own_group)

    @property
    def size(self) -> int:
        """P."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.group.rank()

    def share(self, offsets: Tensor | Sequence[int]) -> Share:
        """The points of this process: of each mesh a P-th, one after the other.

        Args:
            offsets: First point of each whole mesh and the end of the last, [B + 1].
        """
        bounds = offsets.tolist() if isinstance(offsets, Tensor) else list(offsets)
        slices = tuple(
            slice(a + (b - a) * self.rank // self.size, a + (b - a) * (self.rank + 1) // self.size)
            for a, b in itertools.pairwise(bounds)
        )
        own_offsets = [0, *itertools.accumulate(part.stop - part.start for part in slices)]
        return Share(slices, torch.tensor(own_offsets))

    def total(self, part: Tensor) -> Tensor:
        """The sum of a tensor over the processes, without a gradient."""
        total = part.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=self.group)
        return total

    def sum(self, part: Tensor) -> Tensor:
        """Sum over the processes of a value that each has computed from its points, such as its share of a norm.

        Every process gets the whole sum. The gradient is passed on for the own value alone, so that gradients of
        parameters must be added up over the processes (`sum_gradients`).
        """
        total: Tensor = _Sum.apply(part, self)  # type: ignore[no-untyped-call]
        return total

    def merge(self, encoded: Tensor, logsumexps: Tensor, *, binary: bool = False) -> tuple[Tensor, Tensor]:
        """Merge the latents that each process has encoded from its points into those of whole meshes.

        Every process sends B·H·M·(D + 1) numbers, which are added up in the order of the ranks, so that all processes
        get the same bits.

        Args:
            encoded: Weighted means over the points of this process, [B, H, M, D].
            logsumexps: Logarithms of their weights' sums, [B, H, M]; -∞ where it has no point of a mesh.
            binary: Whether logsumexps are logarithms to the base of two.

        Returns:
            Weighted means and logarithms of whole meshes, with the shapes and types of the arguments; 0 and a very low
            logsumexp for a mesh of which no process has a point.
        """
        packed = torch.cat([encoded.to(logsumexps.dtype), logsumexps[..., None]], dim=-1)
        gathered = packed.new_empty(self.size, *packed.shape)
        _gather(gathered.view(-1, *packed.shape[1:]), packed, self.group)
        merged, logsumexp = merge_latents(gathered[..., :-1], gathered[..., -1], binary=binary)
        return merged.to(encoded.dtype), logsumexp

    def merged(self, encoded: Tensor, logsumexps: Tensor) -> Tensor:
        """The latents that `merge` gives, with gradients for encoded and logsumexps."""
        merged: Tensor = _Merge.apply(encoded, logsumexps, self)  # type: ignore[no-untyped-call]
        return merged

    def sum_gradients(self, parameters: nn.Module | Iterable[nn.Parameter]) -> None:
        """Add up the gradients of parameters over the processes, after the backward pass, before clipping.

        With data parallelism in addition, average over its processes before or after.

        Args:
            parameters: A module, or parameters; those that need no gradient are left alone.
        """
        members = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in members:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            total = self.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            parts = torch.split(total, [gradient.numel() for gradient in gradients])
            shaped = [part.view_as(gradient) for gradient, part in zip(gradients, parts, strict=True)]
            torch._foreach_copy_(gradients, shaped)  # one launch; hundreds of small copies took 6 ms a step


def merge_latents(encoded: Tensor, logsumexps: Tensor, *, binary: bool = False) -> tuple[Tensor, Tensor]:
    """Merge latents that parts of the points were encoded into; parts are added up in their order.

    Args:
        encoded: Weighted means over the points of each part, [P, B, H, M, D].
        logsumexps: Logarithms of their weights' sums, [P, B, H, M]; -∞ where a part has no point of a mesh.
        binary: Whether logsumexps are logarithms to the base of two.

    Returns:
        Weighted means [B, H, M, D] and logarithms [B, H, M] of all parts, in the wider of both types; 0 and a very low
        logsumexp for a mesh of which no part has a point.
    """
    exp, log = (torch.exp2, torch.log2) if binary else (torch.exp, torch.log)
    maximum = logsumexps.amax(0).clamp_min(_MIN_LOGSUMEXP)  # -∞ less -∞ is no number
    weights = exp(logsumexps - maximum)
    total = weights.sum(0).clamp_min(1.0)  # the largest weight is 1, where there is one
    return (encoded * weights[..., None]).sum(0) / total[..., None], maximum + log(total)


def _gather(gathered: Tensor, part: Tensor, group: ProcessGroup) -> None:
    """Gather the tensors of all processes, one after the other, by the name that this version of PyTorch has for it."""
    gather: Any = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
    gather(gathered, part, group=group)


class _Sum(torch.autograd.Function):
    """A sum over processes that goes on in each of them; its gradient goes to the own summand alone."""

    @staticmethod
    def forward(_: Any, part: Tensor, ranks: PointRanks) -> Tensor:
        """The sum."""
        return ranks.total(part)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of this process's own part."""
        return gradient, None


class _Merge(torch.autograd.Function):
    """Latents of whole meshes; every process decodes them onto its own points, so that their gradients add up."""

    @staticmethod
    def forward(ctx: Any, encoded: Tensor, logsumexps: Tensor, ranks: PointRanks) -> Tensor:
        """As `PointRanks.merge`."""
        merged, merged_logsumexp = ranks.merge(encoded, logsumexps)
        ctx.save_for_backward(encoded, (logsumexps - merged_logsumexp).exp(), merged)
        ctx.ranks = ranks
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of merged = Σ w·encoded with w = exp(logsumexp - merged logsumexp): w·dZ, and w·dZ·(encoded - merged)."""
        encoded, weights, merged = ctx.saved_tensors
        slopes = ctx.ranks.total(gradient) * weights[..., None]
        return slopes, (slopes * (encoded - merged)).sum(-1), None
