"""Where kernels between two mixings step aside: for hooks, replaced layers, other types, second derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="the kernels need Triton, which is there for Linux alone")

from flare_model.kernels import support
from flare_model.layers.layout import Layout
from flare_model.layers.mixer import FlareMixer
from flare_model.layers.pointwise import ResMLP, add_linear, apply_after_norm
from flare_model.models.backbone import Block, add_after_norm
from tests.flare_model.kernel_support import DEVICE
from tests.flare_model.test_fused_block import HALF, by_operators, pytestmark, random_block, random_network, random_norm

__all__ = ["pytestmark"]


def sample() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 5, 64, device=DEVICE)


def near(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() <= 16 * torch.finfo(HALF).eps * theirs.norm())


KINDS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
PLACES = ("mixer", "mixer.leave", "mixer.keys", "mixer.values", "mixer.keys.enter", "pointwise", "pointwise.leave")


# In the fast suite one kind in every module, and every kind in a whole network and in a layer of one.
@pytest.mark.parametrize(
    ("where", "kind"),
    [
        pytest.param(
            where,
            kind,
            marks=() if kind == KINDS[0] or where in ("mixer.keys.enter", "pointwise") else pytest.mark.slow,
        )
        for where in PLACES
        for kind in KINDS
    ],
)
def test_hooks_of_modules_are_called(where: str, kind: str) -> None:
    torch.manual_seed(0)
    block, x, calls = random_block(64), sample().requires_grad_(), []

    def hook(*_: Any) -> None:
        calls.append(where)

    getattr(block.get_submodule(where), f"register_{kind}")(hook)
    with torch.autocast(DEVICE, dtype=HALF):
        hooked = block(x, Layout())
        if "backward" in kind:
            hooked.sum().backward()
        assert calls == [where]
        plain = by_operators(block)(x, Layout())
    assert near(hooked, plain)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_of_all_modules_are_called(kind: str) -> None:
    torch.manual_seed(0)
    block, seen = random_block(64), []

    def hook(module: nn.Module, *_: Any) -> None:
        seen.append(module)

    handle = getattr(nn.modules.module, f"register_module_{kind}")(hook)
    try:
        with torch.no_grad(), torch.autocast(DEVICE, dtype=HALF):
            block(sample(), Layout())
    finally:
        handle.remove()
    assert {id(block.mixer.leave), id(block.pointwise.leave), id(block.mixer.keys.enter)} <= {id(one) for one in seen}


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_another_class_or_without_a_bias_is_called(bias: bool) -> None:
    torch.manual_seed(0)
    layer = (Doubled if bias else nn.Linear)(64, 64, bias=bias).to(DEVICE)
    x, inputs = torch.randn(2, 5, 64, device=DEVICE)
    with torch.autocast(DEVICE, dtype=HALF):
        torch.testing.assert_close(add_linear(x, layer, inputs, "triton"), x + layer(inputs), atol=0, rtol=0)
        network = random_network(64)
        network.layers[0], network.implementation = layer, "triton"
        assert not network.uses_kernel(x)


def test_a_wrapped_forward_is_called() -> None:
    torch.manual_seed(0)
    block, calls = random_block(64), []
    plain = block.mixer.leave.forward

    def wrapped(x: Tensor) -> Tensor:
        calls.append(x)
        return plain(x)

    block.mixer.leave.forward = wrapped
    with torch.no_grad(), torch.autocast(DEVICE, dtype=HALF):
        block(sample(), Layout())
    assert len(calls) == 1


class OwnNetwork(ResMLP):
    def after_norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return 0.0 * x


class OwnMixer(FlareMixer):
    def after_norm(self, norm: nn.LayerNorm, x: Tensor, layout: Layout) -> Tensor:
        return 0.0 * x


def test_a_class_that_has_its_own_after_norm_keeps_it() -> None:
    x = sample()
    made = OwnNetwork(64, 64, 64, 1, implementation="triton").to(DEVICE)
    mixer = OwnMixer(64, 8, 4, 1, implementation="triton").to(DEVICE)
    with torch.autocast(DEVICE, dtype=HALF):
        assert torch.equal(add_after_norm(random_norm(64), made, x), x)
        assert torch.equal(add_after_norm(random_norm(64), mixer, x, Layout()), x)


def test_a_mixer_without_add_output_is_checkpointed_too() -> None:
    class Plain(nn.Module):
        separable = True

        def __init__(self) -> None:
            super().__init__()
            self.leave = nn.Linear(8, 8)

        def forward(self, x: Tensor, layout: Layout) -> Tensor:
            return self.leave(x)

        def project(self, norm: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
            return (norm(x),)

        def mix(self, *projected: Tensor, layout: Layout) -> Tensor:
            return projected[0]

    torch.manual_seed(0)
    block, x = Block(8, Plain(), nn.Linear(8, 8)), torch.randn(1, 5, 8, requires_grad=True)
    torch.testing.assert_close(block.forward_in_chunks(x, Layout()), block(x, Layout()))


@pytest.mark.parametrize("kept", [torch.float32, torch.float64])
def test_sums_that_x_has_no_room_for_are_left_to_pytorch(kept: torch.dtype) -> None:
    """Half precision x under autocast to bfloat16 gives float32, as an addition does."""
    if DEVICE == "cpu":
        pytest.skip("the interpreter has no bfloat16")
    torch.manual_seed(0)
    x, inputs = torch.randn(2, 5, 64, device=DEVICE)
    layer, made, norm = nn.Linear(64, 64).to(DEVICE), random_network(64), random_norm(64)
    made.implementation = "triton"
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        for one in (x.half(), x.to(kept)):
            wanted = torch.promote_types(one.dtype, torch.bfloat16)
            assert add_linear(one, layer, inputs, "triton").dtype == wanted
        assert made.add_after_norm(norm, x.half()).dtype == torch.float32


def test_a_second_derivative_is_refused_and_not_taken_for_zero() -> None:
    torch.manual_seed(0)
    block, x = random_block(64), sample().requires_grad_()
    with torch.autocast(DEVICE, dtype=HALF):
        out = block(x, Layout())
    (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError), match="backward"):
        torch.autograd.grad(first.square().sum(), x, allow_unused=True)


def test_what_needs_no_gradient_gets_none() -> None:
    torch.manual_seed(0)
    networks, norm, x = [random_network(64) for _ in range(2)], random_norm(64), sample()
    for one in networks:
        one.implementation = "triton"
    with torch.autocast(DEVICE, dtype=HALF):
        passed, *outs = apply_after_norm(networks, norm, x)
    assert not passed.requires_grad
    assert all(out.requires_grad for out in outs)
    alone = torch.autograd.grad(outs[0].float().sum(), networks[0].enter.weight)[0]
    assert alone.abs().max() > 0


def test_torch_func_maps_over_blocks() -> None:
    torch.manual_seed(0)
    block, x = random_block(64), torch.randn(3, 1, 5, 64, device=DEVICE)
    with torch.no_grad(), torch.autocast(DEVICE, dtype=HALF):
        mapped = torch.func.vmap(lambda one: block.pointwise(block.pointwise_norm(one)), randomness="error")(x)
        wanted = torch.stack([block.pointwise(block.pointwise_norm(one)) for one in x])
    assert near(mapped, wanted)


@pytest.mark.parametrize("there", [101_376, 166_912])
def test_a_linear_layer_takes_a_kernel_where_shared_memory_holds_it(
    monkeypatch: pytest.MonkeyPatch, there: int
) -> None:
    """101,376 bytes have GPUs of compute capability 8.6 and 8.9, 166,912 those of 8.0."""
    monkeypatch.setattr(support, "_shared_memory", lambda device: there)
    device = torch.device(DEVICE)
    assert support.supports_residual_linear(device, torch.float16, 64)
    assert support.supports_residual_linear(device, torch.float16, 128) == (there > 131_072)
    assert not support.supports_residual_linear(device, torch.float16, 48)
    assert not support.supports_residual_linear(device, torch.float32, 64)
