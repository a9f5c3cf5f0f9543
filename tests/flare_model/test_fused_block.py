"""Kernels that do what lies between two mixings, with residual connections and sums of gradients, against float64.

Without a GPU they run in Triton's interpreter, on small shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("triton", reason="the kernels need Triton, which is there for Linux alone")

from flare_model.kernels.pointwise import network, networks
from flare_model.kernels.residual import residual_linear, residual_linear_backward_operator, residual_linear_operator
from flare_model.kernels.tuning import INTERPRETED
from flare_model.layers.flare_plus_plus_mixer import FlarePlusPlusMixer
from flare_model.layers.layout import Layout
from flare_model.layers.mixer import FlareMixer
from flare_model.layers.pointwise import ResMLP, apply_after_norm
from flare_model.models.backbone import Block
from tests.flare_model.kernel_support import DEVICE, HALVES
from tests.rounding import SINGLE, spread

POINTS = 39 if INTERPRETED else 1000  # three tiles, the last not full; two chunks at 128 channels would take 65
HALF = HALVES[-1]

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and TRITON_INTERPRET=0"),
]

counts = st.integers(0, 3 * 16 + 1)
widths = st.sampled_from([16, 32, 64, 128])


def random_norm(channels: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(channels).to(DEVICE)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias, 0.0, 0.3)
    return norm


def random_network(channels: int, layers: int = 1) -> ResMLP:
    made = ResMLP(channels, channels, channels, layers).to(DEVICE)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=1.2 * channels**-0.5)
    return made


def differentiate(
    outs: Sequence[Tensor], leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of the leaves from those of some outputs, in float64."""
    used = [(out, g.to(out.dtype)) for out, g in zip(outs, gradients, strict=True) if g is not None]
    found = torch.autograd.grad(
        [out for out, _ in used], leaves, [g for _, g in used], allow_unused=True, materialize_grads=True
    )
    return [out.detach().double() for out in outs], [g.double() for g in found]


def check(found: Sequence[Tensor], exact: Callable[[], Sequence[Tensor]], dtype: torch.dtype, *, single: float) -> None:
    """Assert that results are those of float64, up to rounding to a type, and to float32 of numbers of some size."""
    for number, (ours, truth, error) in enumerate(zip(found, *spread(exact, dtype), strict=True)):
        assert ours.isfinite().all(), number
        assert float((ours.detach() - truth).norm()) <= error + SINGLE * single, number


def check_residual_network(x: Tensor, gradient: Tensor, channels: int, dtype: torch.dtype) -> None:
    """Neither x nor its gradient around the network are rounded: without them the errors of the network remain."""
    norm, made = random_norm(channels), random_network(channels)
    x.requires_grad_()
    weights = [*norm.parameters(), *made.parameters()]
    out = network(x, *made.kernel_parameters(), dtype, norm, residual=True)
    assert out.dtype == x.dtype == gradient.dtype
    (y,), (grad_x, *others) = differentiate([out], [x, *weights], [gradient])
    exact, wide = copy.deepcopy(nn.Sequential(norm, made)).double(), x.detach().double().requires_grad_()

    def in_double() -> list[Tensor]:
        (y,), found = differentiate([exact(wide)], [wide, *exact.parameters()], [gradient.double()])
        return [y, *found]

    found = [y - x.detach().double(), grad_x - gradient.double(), *others]
    check(found, in_double, dtype, single=float(x.detach().norm() + gradient.norm()))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", [16, 32, 64, 128])
def test_a_network_adds_its_input_and_its_gradient_unrounded(channels: int, dtype: torch.dtype) -> None:
    torch.manual_seed(channels)
    x, gradient = torch.randn(2, POINTS, channels, device=DEVICE)
    check_residual_network(x, gradient, channels, dtype)


def test_chunks_of_points_add_the_gradient_of_the_output_too() -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 70, 128, device=DEVICE)
    check_residual_network(x, gradient, 128, HALF)


@settings(deadline=None, max_examples=10)
@given(counts, st.integers(0, 2**32))
def test_a_network_adds_its_input_for_any_number_of_points(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, gradient = torch.randn(2, count, 16, device=DEVICE)
    check_residual_network(x, gradient, 16, HALF)


def test_a_stream_may_have_16_bits() -> None:
    torch.manual_seed(0)
    norm, made = random_norm(64), random_network(64)
    x = torch.randn(5, 64, device=DEVICE).to(HALF)
    out = network(x, *made.kernel_parameters(), HALF, norm, residual=True)
    assert out.dtype == HALF
    check([out.double()], lambda: [x.double() + copy.deepcopy(nn.Sequential(norm, made)).double()(x.double())], HALF,
          single=0.0)  # fmt: skip


def check_networks(channels: int, count: int, used: Sequence[bool], dtype: torch.dtype, *, several: int) -> None:
    """`networks` against float64, where only some of its results, the first of which is x, have a gradient."""
    norm, made = random_norm(channels), [random_network(channels) for _ in range(several)]
    x = torch.randn(count, channels, device=DEVICE, requires_grad=True)
    gradients = [torch.randn(count, channels, device=DEVICE) if taken else None for taken in used]
    passed, *outs = networks(x, *zip(*(one.kernel_parameters() for one in made), strict=True), dtype, norm)
    assert passed.data_ptr() == x.data_ptr()
    assert {out.dtype for out in outs} == {dtype}
    # Gradients of results come in their type, so that float64 gets the same numbers.
    gradients = [g if g is None or i == 0 else g.to(dtype) for i, g in enumerate(gradients)]
    leaves = [x, *norm.parameters(), *(p for one in made for p in one.parameters())]
    ys, found = differentiate([passed, *outs], leaves, gradients)
    # The gradient of x that is passed on is not rounded.
    around = torch.zeros_like(x, dtype=torch.float64) if gradients[0] is None else gradients[0].double()
    found[0] = found[0] - around
    exact_norm, exact = copy.deepcopy(norm).double(), copy.deepcopy(nn.ModuleList(made)).double()
    wide = x.detach().double().requires_grad_()

    def in_double() -> list[Tensor]:
        normalised = exact_norm(wide)
        outs = [one(normalised) for one in exact]
        wanted = [wide, *exact_norm.parameters(), *exact.parameters()]
        if not any(used[1:]):
            return [*outs, *(torch.zeros_like(leaf) for leaf in wanted)]
        some = [None if g is None else g.double() for g in gradients[1:]]
        return [t for part in differentiate(outs, wanted, some) for t in part]

    size = float(x.detach().norm() + around.norm())
    check([*ys[1:], *found], in_double, dtype, single=size)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("channels", "several"), [(32, 2), (64, 2), (64, 3), (128, 2)])
def test_networks_of_one_norm_are_applied_by_one_operator(channels: int, several: int, dtype: torch.dtype) -> None:
    torch.manual_seed(channels + several)
    check_networks(channels, POINTS, [True] * (several + 1), dtype, several=several)


@settings(deadline=None, max_examples=10)
@given(counts, st.lists(st.booleans(), min_size=3, max_size=3).filter(any), st.integers(0, 2**32))
def test_networks_of_one_norm_take_gradients_of_some_results(count: int, used: list[bool], seed: int) -> None:
    torch.manual_seed(seed)
    check_networks(16, count, used, HALF, several=2)


def check_residual_linear(channels: int, count: int, dtype: torch.dtype) -> None:
    layer = nn.Linear(channels, channels).to(DEVICE)
    x, gradient, inputs = torch.randn(3, count, channels, device=DEVICE)
    leaves = [x.requires_grad_(), inputs.to(dtype).requires_grad_(), layer.weight, layer.bias]
    out = residual_linear(*leaves[:2], layer.weight, layer.bias, dtype)
    assert out.dtype == x.dtype
    (y,), (grad_x, *others) = differentiate([out], leaves, [gradient])
    assert torch.equal(grad_x, gradient.double())
    exact, wide = copy.deepcopy(layer).double(), leaves[1].detach().double().requires_grad_()

    def in_double() -> list[Tensor]:
        (y,), found = differentiate([exact(wide)], [wide, exact.weight, exact.bias], [gradient.double()])
        return [y, *found]

    check([y - x.detach().double(), *others], in_double, dtype, single=float(x.detach().norm() + gradient.norm()))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", [16, 32, 64, 128])
def test_a_linear_layer_and_its_residual_connection_are_one_kernel(channels: int, dtype: torch.dtype) -> None:
    torch.manual_seed(channels)
    check_residual_linear(channels, POINTS, dtype)


@settings(deadline=None, max_examples=15)
@given(widths, counts, st.integers(0, 2**32))
def test_a_linear_layer_is_added_for_any_number_of_points(channels: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    check_residual_linear(channels, count, HALF)


def test_biases_get_gradients_that_16_bits_can_not_resolve() -> None:
    fine = 1 + 2.0**-13  # rounds to 1 in 16 bits
    gradient = torch.full((POINTS, 16), fine, device=DEVICE)
    inputs, weight = torch.ones(POINTS, 16, device=DEVICE, dtype=HALF), torch.eye(16, device=DEVICE)
    grad_inputs, grad_weight, grad_bias = residual_linear_backward_operator(gradient, inputs, weight)
    assert torch.equal(grad_bias, gradient.sum(0))
    assert torch.equal(grad_weight, torch.full_like(grad_weight, POINTS))
    assert torch.equal(grad_inputs, torch.ones_like(grad_inputs))


def test_the_operators_pass_the_checks_of_torch() -> None:
    x, inputs = torch.randn(2, 5, 16, device=DEVICE)
    weight, bias = torch.randn(16, 16, device=DEVICE), torch.randn(16, device=DEVICE)
    arguments = [t.requires_grad_() for t in (x, inputs.half(), weight, bias)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    assert set(torch.library.opcheck(residual_linear_operator, arguments, test_utils=tests).values()) == {"SUCCESS"}


def random_block(channels: int, **more: bool) -> Block:
    mixer = FlareMixer(channels, channels // 8, 4, 1, "triton", **more)
    block = Block(channels, mixer, ResMLP(channels, channels, channels, 1, implementation="triton")).to(DEVICE)
    for norm in (block.mixer_norm, block.pointwise_norm):
        norm.load_state_dict(random_norm(channels).state_dict())
    return block


def by_operators(block: Block) -> Block:
    """The same block by PyTorch's operators."""
    plain = copy.deepcopy(block)
    for module in (plain.mixer, plain.mixer.keys, plain.mixer.values, plain.pointwise):
        module.implementation = "sdpa"
    return plain


def results(block: Block, x: Tensor, gradient: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    with torch.autocast(DEVICE, dtype=dtype or HALF, enabled=dtype is not None):
        out = block(leaf, Layout())
    (y,), found = differentiate([out], [leaf, *block.parameters()], [gradient])
    return [y, *found]


def test_a_block_is_as_accurate_as_by_operators_of_pytorch() -> None:
    """The root mean square of the errors over some draws, relative to those of autocast."""
    squares: dict[str, Tensor] = {}
    for seed in range(6):
        torch.manual_seed(seed)
        block = random_block(64)
        x, gradient = torch.randn(2, 1, 37, 64, device=DEVICE)
        plain = by_operators(block)
        truth = results(copy.deepcopy(plain).double(), x.double(), gradient.double(), None)
        for name, made in (("kernels", block), ("operators", plain)):
            found = results(made, x, gradient, HALF)
            errors = torch.stack([(a - b).square().sum() for a, b in zip(found, truth, strict=True)])
            squares[name] = squares.get(name, torch.zeros_like(errors)) + errors
    names = ("output", "x", *(name for name, _ in block.named_parameters()))
    for name, ours, theirs in zip(names, squares["kernels"].sqrt(), squares["operators"].sqrt(), strict=True):
        # The kernels round what they sum to the gradients of norms, which PyTorch's norms don't; below they are held to
        # what rounding makes.
        assert "_norm" in name or float(ours) <= 1.1 * float(theirs), name


@pytest.mark.parametrize(("channels", "count"), [(64, 1), (64, 20), (128, 5)])
def test_a_block_gives_the_results_of_float64(channels: int, count: int) -> None:
    torch.manual_seed(0)
    block = random_block(channels)
    x, gradient = torch.randn(2, 1, count, channels, device=DEVICE)
    found, exact = results(block, x, gradient, HALF), by_operators(block).double()
    wide = (x.double(), gradient.double(), None)
    # Where the terms of a gradient cancel exactly, as with a single point, only their rounding is left.
    check(found, lambda: results(exact, *wide), HALF, single=64 * float(gradient.norm()))


def operations(out: Tensor) -> list[str]:
    """Names of all steps of the backward pass."""
    found, waiting = set(), [out.grad_fn]
    while waiting:
        if (step := waiting.pop()) is not None and step not in found:
            found.add(step)
            waiting += [following for following, _ in step.next_functions]
    return [step.name() for step in found]


def test_nothing_is_added_or_rounded_between_two_mixings_but_by_kernels() -> None:
    block = random_block(64)
    x = torch.randn(1, 5, 64, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE, dtype=HALF):
        out = block(block(x, Layout()), Layout())
        assert out.dtype == torch.float32
        names = operations(out)
        assert not any(name.startswith(("Add", "Mm", "Linear", "NativeLayerNorm")) for name in names)
        assert sum(name.startswith("_Networks") for name in names) == 2
        # Queries alone are rounded by an operator; of x and its gradients every step has one user.
        assert sum(name.startswith("ToCopy") for name in names) == 2
        assert any(name.startswith("AddBackward") for name in operations(by_operators(block)(x, Layout())))


def test_keys_to_decode_with_come_from_the_same_operator() -> None:
    torch.manual_seed(0)
    mixer, norm = random_block(64, separate_decoding=True).mixer, random_norm(64)
    x = torch.randn(5, 64, device=DEVICE)
    with torch.no_grad(), torch.autocast(DEVICE, dtype=HALF):
        passed, *found = apply_after_norm(mixer._networks(), norm, x)
        assert passed.data_ptr() == x.data_ptr()
        wanted = [one.after_norm(norm, x) for one in (mixer.keys, mixer.values, mixer.decoding_keys)]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_networks_of_different_depths_are_applied_one_by_one() -> None:
    torch.manual_seed(0)
    made, norm, x = [random_network(64, n) for n in (0, 1)], random_norm(64), torch.randn(5, 64, device=DEVICE)
    for one in made:
        one.implementation = "triton"
    with torch.no_grad(), torch.autocast(DEVICE, dtype=HALF):
        _, *found = apply_after_norm(made, norm, x)
        assert all(torch.equal(a, one.after_norm(norm, x)) for a, one in zip(found, made, strict=True))


def test_the_output_of_flare_plus_plus_is_added_by_the_kernel() -> None:
    torch.manual_seed(0)
    mixer, norm = FlarePlusPlusMixer(64, 8, 4, implementation="triton").to(DEVICE), random_norm(64)
    x = torch.randn(1, 5, 64, device=DEVICE)
    with torch.autocast(DEVICE, dtype=HALF):
        out = mixer.add_after_norm(norm, x, Layout())
        assert any("residual_linear" in name for name in operations(out))
        wanted = x + mixer(norm(x), Layout())
    assert (out - wanted).norm() <= 16 * torch.finfo(HALF).eps * wanted.norm()
