"""Pointwise networks: they work on each point by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
import torch.nn.modules.module as everywhere
from torch import Tensor, nn

from flare_model.layers.backend import (
    compute_dtype,
    considers_cpu_kernels,
    is_array,
    network_by_cpu_kernels,
    network_by_kernels,
    residual_linear_by_kernel,
)
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
        if self._uses_cpu_kernel(x):
            return self._apply_cpu_kernel(x, None)
        hidden = F.gelu(self.enter(x), approximate=self.gelu)
        if self.input_residual:
            hidden = x + hidden
        for layer in self.layers:
            hidden = hidden + F.gelu(layer(hidden), approximate=self.gelu)
        out: Tensor = self.leave(hidden)
        return out + hidden if self.output_residual else out

    def after_norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """The network of norm(x), in one kernel with the norm where `takes_norm` says so."""
        if self.takes_norm(x):
            return self._apply_kernel(x, norm)
        return self._apply_cpu_kernel(x, norm) if self.takes_norm_on_cpu(norm, x) else self(norm(x))

    def add_after_norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """Returns x + the network of norm(x), in one kernel where `takes_norm` says so."""
        if self.takes_norm(x) and _holds_sums(x, compute_dtype(x)):
            return self._apply_kernel(x, norm, residual=True)
        if self.takes_norm_on_cpu(norm, x) and self.leave.out_features == x.shape[-1]:
            return self._apply_cpu_kernel(x, norm, residual=True)
        return x + self.after_norm(norm, x)

    def takes_norm(self, x: Tensor) -> bool:
        """Whether the kernel does the LayerNorm too.

        When the model is compiled it does not: the compiler joins norms and residuals, and a step of a million points
        is then faster. Hooks of the network want its input, which is that behind the norm.
        """
        return self.uses_kernel(x) and not torch.compiler.is_compiling() and self._is_plain()

    def takes_norm_on_cpu(self, norm: nn.LayerNorm, x: Tensor) -> bool:
        """Whether a kernel for CPUs does the network and its LayerNorm too."""
        return self._uses_cpu_kernel(x) and self._is_plain() and _is_plain_norm(norm, x.shape[-1])

    def _is_plain(self) -> bool:
        """Whether a call is no more than the `forward` above."""
        return type(self).forward is ResMLP.forward and not _is_wrapped(self)

    def uses_kernel(self, x: Tensor) -> bool:
        """Whether one kernel does it all for such input."""
        if not (self.input_residual and self.output_residual and self.gelu == "tanh" and self._has_linear_layers()):
            return False
        dtype, width = compute_dtype(x), self.enter.in_features
        taken: bool = network_by_kernels(self.implementation, x.device, dtype, width, len(self.layers) + 2)
        return taken

    def _uses_cpu_kernel(self, x: Tensor) -> bool:
        """Whether a kernel for CPUs does it all for such input."""
        if not considers_cpu_kernels(self.implementation, x, x.shape[-1]):
            return False
        if self.gelu != "tanh" or not self._has_linear_layers():
            return False
        hidden = self.enter.out_features
        fits = not self.input_residual or x.shape[-1] == hidden
        fits = fits and (not self.output_residual or hidden == self.leave.out_features)
        return fits and network_by_cpu_kernels(self.implementation, x, self._all_layers())

    def _has_linear_layers(self) -> bool:
        return all(_is_plain(layer) for layer in self._all_layers())

    def _all_layers(self) -> list[nn.Linear]:
        return [cast("nn.Linear", layer) for layer in (self.enter, *self.layers, self.leave)]

    def _apply_kernel(self, x: Tensor, norm: nn.LayerNorm | None, *, residual: bool = False) -> Tensor:
        from flare_model.kernels.pointwise import network

        weights, biases = self.kernel_parameters()
        return network(x, weights, biases, compute_dtype(x), norm, residual=residual)

    def _apply_cpu_kernel(self, x: Tensor, norm: nn.LayerNorm | None, *, residual: bool = False) -> Tensor:
        from flare_model.kernels.cpu.pointwise import Residuals, network

        residuals = Residuals(self.input_residual, self.output_residual, residual)
        return network(x, self._all_layers(), residuals, norm)

    def kernel_parameters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Matrices and biases of all layers, the first and the last among them, as the kernels take them."""
        layers = self._all_layers()
        return [layer.weight for layer in layers], [layer.bias for layer in layers]


def apply_after_norm(networks: Sequence[ResMLP], norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, ...]:
    """Returns x, on the same memory, and several networks of norm(x), by one operator where kernels take the norm.

    Whatever else needs x should take the one that is returned: its gradient is then added in the kernels.
    """
    taken = [network.takes_norm(x) for network in networks]
    # `torch.func` can't look into what is written for autograd alone.
    together = all(taken) and not torch._C._are_functorch_transforms_active()
    if together and len({len(network.layers) for network in networks}) == 1:
        from flare_model.kernels import pointwise

        parameters = [network.kernel_parameters() for network in networks]
        return pointwise.networks(x, [w for w, _ in parameters], [b for _, b in parameters], compute_dtype(x), norm)
    if taken[0] or networks[0].takes_norm_on_cpu(norm, x):
        return (x, *(network.after_norm(norm, x) for network in networks))
    normalised = norm(x)
    return (x, *(network(normalised) for network in networks))


def add_linear(x: Tensor, layer: nn.Module, inputs: Tensor, implementation: Implementation) -> Tensor:
    """Returns x + layer(inputs), in one kernel where it can do so for a linear layer.

    Args:
        x: [..., C].
        layer: From C channels to as many; one that was replaced or has hooks is called.
        inputs: As x.
        implementation: As of the mixing. When the model is compiled no kernel is taken, as for norms.
    """
    dtype = compute_dtype(inputs)
    if (
        not torch.compiler.is_compiling()
        and _is_plain(layer)
        and x.shape == inputs.shape
        and _holds_sums(x, dtype)
        and residual_linear_by_kernel(implementation, x.device, dtype, x.shape[-1])
    ):
        from flare_model.kernels.residual import residual_linear

        linear = cast("nn.Linear", layer)
        return residual_linear(x, inputs, linear.weight, linear.bias, dtype)
    if _is_plain(layer) and x.shape[:-1] == inputs.shape[:-1]:
        linear = cast("nn.Linear", layer)
        if linear.out_features == x.shape[-1] and network_by_cpu_kernels(implementation, inputs, [linear], x):
            from flare_model.kernels.cpu.pointwise import residual_linear as residual_linear_on_cpu

            return residual_linear_on_cpu(x, inputs, linear)
    out: Tensor = x + layer(inputs)
    return out


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of a module does more than its `forward`."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    of_all = (
        everywhere._global_forward_hooks,
        everywhere._global_forward_pre_hooks,
        everywhere._global_backward_hooks,
        everywhere._global_backward_pre_hooks,
    )
    return any(len(hooks) > 0 for hooks in (*own, *of_all))


def _is_wrapped(module: nn.Module) -> bool:
    """Whether a call of a module does more than the `forward` of its class, or something else."""
    return is_hooked(module) or "forward" in vars(module) or module._compiled_call_impl is not None


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is no more than a product and a bias: it wasn't replaced, wrapped, compiled, or given hooks."""
    if type(layer) is not nn.Linear or layer.bias is None or _is_wrapped(layer):
        return False
    return layer.weight.shape == (layer.out_features, layer.in_features) and layer.bias.shape == (layer.out_features,)


def _is_plain_norm(norm: nn.Module, channels: int) -> bool:
    """Whether a norm is PyTorch's LayerNorm of so many channels, with scales and shifts and nothing else."""
    if type(norm) is not nn.LayerNorm or norm.normalized_shape != (channels,):
        return False
    if _is_wrapped(norm) or norm.weight is None or norm.bias is None:
        return False
    return all(is_array(vector) and vector.shape == (channels,) for vector in (norm.weight, norm.bias))


def _holds_sums(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether x plus a tensor of a type has the type of x."""
    return torch.promote_types(x.dtype, dtype) == x.dtype


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
