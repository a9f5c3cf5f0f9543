"""Pointwise networks: they work on each point by itself."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from flare_model.layers.backend import compute_dtype, network_by_kernels
from flare_model.sizes import Implementation


class ResMLP(nn.Module):
    """A residual pointwise network (FLARE, appendix A).

    Args:
        in_dim: Width of the input.
        hidden: Width of the residual layers.
        out_dim: Width of the output.
        layers: Residual layers.
        input_residual: Add the input to the first layer where the widths agree.
        output_residual: Add the last hidden state to the output where the widths agree.
        gelu: The tanh form of GELU, or the exact one ("none").
        implementation: triton or auto to let one kernel do it all where it can; anything else for one layer at a time.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int,
        out_dim: int,
        layers: int,
        *,
        input_residual: bool = True,
        output_residual: bool = True,
        gelu: Literal["none", "tanh"] = "tanh",
        implementation: Implementation = "sdpa",
    ) -> None:
        super().__init__()
        self.implementation: Implementation = implementation
        self.enter = nn.Linear(in_dim, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.leave = nn.Linear(hidden, out_dim)
        self.input_residual = input_residual and in_dim == hidden
        self.output_residual = output_residual and hidden == out_dim
        self.gelu: Literal["none", "tanh"] = gelu

    def forward(self, x: Tensor) -> Tensor:
        """[…, in_dim] to […, out_dim]."""
        if self.uses_kernel(x):
            return self._apply_kernel(x, None)
        hidden = F.gelu(self.enter(x), approximate=self.gelu)
        if self.input_residual:
            hidden = x + hidden
        for layer in self.layers:
            hidden = hidden + F.gelu(layer(hidden), approximate=self.gelu)
        out: Tensor = self.leave(hidden)
        return out + hidden if self.output_residual else out

    def after_norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """The network of norm(x), in one kernel with the norm where `takes_norm` says so."""
        return self._apply_kernel(x, norm) if self.takes_norm(x) else self(norm(x))

    def takes_norm(self, x: Tensor) -> bool:
        """Whether the kernel does the LayerNorm too.

        When the model is compiled it does not: the compiler joins norms and residuals, and a step of a million points
        is then faster.
        """
        return self.uses_kernel(x) and not torch.compiler.is_compiling()

    def uses_kernel(self, x: Tensor) -> bool:
        """Whether one kernel does it all for such input."""
        if not (self.input_residual and self.output_residual and self.gelu == "tanh" and self._has_linear_layers()):
            return False
        dtype, width = compute_dtype(x), self.enter.in_features
        taken: bool = network_by_kernels(self.implementation, x.device, dtype, width, len(self.layers) + 2)
        return taken

    def _has_linear_layers(self) -> bool:
        """Whether all layers are plain linear ones: replaced ones, as by adapters, may do more than a product."""
        return all(type(layer) is nn.Linear for layer in (self.enter, *self.layers, self.leave))

    def _apply_kernel(self, x: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        from flare_model.kernels.pointwise import network

        layers = [cast("nn.Linear", layer) for layer in (self.enter, *self.layers, self.leave)]
        return network(x, [layer.weight for layer in layers], [layer.bias for layer in layers], compute_dtype(x), norm)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, as in "Attention is all you need".

    Args:
        in_dim: Width of the input.
        hidden: Width of the hidden layer.
        out_dim: Width of the output.
        gelu: The exact GELU ("none") or its tanh form.
    """

    def __init__(self, in_dim: int, hidden: int, out_dim: int, gelu: Literal["none", "tanh"] = "tanh") -> None:
        super().__init__()
        self.enter = nn.Linear(in_dim, hidden)
        self.leave = nn.Linear(hidden, out_dim)
        self.gelu: Literal["none", "tanh"] = gelu

    def forward(self, x: Tensor) -> Tensor:
        """[…, in_dim] to […, out_dim]."""
        out: Tensor = self.leave(F.gelu(self.enter(x), approximate=self.gelu))
        return out
