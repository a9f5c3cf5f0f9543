"""The kernels of layers in float32 and of LayerNorm against float64: no less accurate than PyTorch's own operators.

Without a GPU they run in Triton's interpreter, on small shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="the kernels need Triton, which is there for Linux alone")

from flare_model.kernels import projection
from flare_model.kernels.tuning import INTERPRETED
from flare_model.layers.pointwise import ResMLP, normalise
from flare_model.models.flare import Flare, FlareConfig
from tests.flare_model.kernel_support import DEVICE
from tests.rounding import spread

# Several tiles, the last not full.
POINTS = 83 if INTERPRETED else 100_003
DRAWS = 4
ALLOWED = 1.1
"""Times the error of PyTorch's operators in float32, without TF32."""

KINDS = ("output", "x", "weight", "bias")

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and TRITON_INTERPRET=0"),
]


@pytest.fixture(autouse=True)
def _highest_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def sample(widths: tuple[int, int, int], seed: int = 0, **options: bool) -> tuple[ResMLP, Tensor, Tensor]:
    """A network all of whose parameters are random, an input, and a gradient of the output."""
    torch.manual_seed(seed)
    network = ResMLP(*widths, 2, **options).to(DEVICE)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=1.2 * parameter.shape[-1] ** -0.5)
    return network, torch.randn(POINTS, widths[0], device=DEVICE), torch.randn(POINTS, widths[2], device=DEVICE)


def sample_norm(channels: int, seed: int = 0) -> tuple[nn.LayerNorm, Tensor, Tensor]:
    """A LayerNorm with random parameters, an input far from zero, and a gradient of the output."""
    torch.manual_seed(seed)
    norm = nn.LayerNorm(channels).to(DEVICE)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias, 0.0, 0.3)
    return norm, 3 + torch.randn(POINTS, channels, device=DEVICE), torch.randn(POINTS, channels, device=DEVICE)


def differentiate(
    function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, module: nn.Module
) -> dict[str, Tensor]:
    """The output, and the gradients of x and of every parameter, in float64."""
    x = x.clone().requires_grad_()
    leaves = {"x": x} | dict(module.named_parameters())
    out = function(x)
    found = torch.autograd.grad(out, list(leaves.values()), gradient)
    return {"output": out.detach().double()} | {n: t.double() for n, t in zip(leaves, found, strict=True)}


def squared_errors(module: nn.Module, by_kernel: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    """Squared errors of the kernels and of PyTorch's operators in float32: [2, output, x, weights and biases].

    They are relative to the mean square of each tensor. Those of all weights are added, and those of all biases: a
    single number may be exact by chance.
    """
    exact = copy.deepcopy(module).double()
    truth = differentiate(exact, x.double(), gradient.double(), exact)
    errors = torch.zeros(2, len(KINDS), dtype=torch.float64)
    for row, function in zip(errors, (by_kernel, module), strict=True):
        found = differentiate(function, x, gradient, module)
        assert found.keys() == truth.keys()
        for name, wanted in truth.items():
            row[KINDS.index(name.split(".")[-1])] += (
                (found[name] - wanted).square().sum() / wanted.square().mean()
            ).cpu()
    return errors


@pytest.mark.parametrize("widths", [(3, 64, 64), (64, 64, 1), (17, 32, 32), (16, 16, 5), (48, 48, 48)])
def test_layers_are_no_less_accurate_than_pytorch(widths: tuple[int, int, int]) -> None:
    samples = (sample(widths, seed) for seed in range(DRAWS))
    ours, theirs = sum(squared_errors(some, some._apply_float_kernels, x, g) for some, x, g in samples).sqrt()
    assert (ours <= ALLOWED * theirs).all(), ours / theirs


@pytest.mark.parametrize("channels", [16, 64, 128])
def test_a_norm_is_no_less_accurate_than_pytorch(channels: int) -> None:
    samples = (sample_norm(channels, seed) for seed in range(DRAWS))
    ours, theirs = sum(
        squared_errors(norm, partial(projection.apply_norm, norm=norm), x, g) for norm, x, g in samples
    ).sqrt()
    assert (ours <= ALLOWED * theirs).all(), ours / theirs


@pytest.mark.parametrize("options", [{"input_residual": False}, {"output_residual": False}])
def test_networks_without_a_residual_connection(options: dict[str, bool]) -> None:
    network, x, gradient = sample((16, 16, 16), **options)
    ours, theirs = squared_errors(network, network._apply_float_kernels, x, gradient)
    assert (ours <= 4 * theirs).all()  # One draw; a residual connection too many is off by a million times as much.


def test_the_same_input_gives_the_same_bits() -> None:
    network, x, gradient = sample((64, 64, 1))
    norm = nn.LayerNorm(64).to(DEVICE)

    def by_kernel(x: Tensor) -> Tensor:
        return network._apply_float_kernels(projection.apply_norm(x, norm))

    one, other = (differentiate(by_kernel, x, gradient, nn.Sequential(norm, network)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_inputs_may_have_any_strides_and_dimensions() -> None:
    network, x, gradient = sample((16, 16, 5))
    found = []
    for strange in (False, True):
        some, behind = (t.t().contiguous().t() if strange else t for t in (x, gradient))
        assert some.is_contiguous() is behind.is_contiguous() is not strange
        found.append(differentiate(network._apply_float_kernels, some, behind, network))
    assert all(torch.equal(a, b) for a, b in zip(*(f.values() for f in found), strict=True))
    assert network._apply_float_kernels(x[None, None]).shape == (1, 1, POINTS, 5)


def test_an_input_without_a_gradient_gets_none() -> None:
    network, x, gradient = sample((3, 16, 16))
    wanted = differentiate(network._apply_float_kernels, x, gradient, network)
    found = torch.autograd.grad(network._apply_float_kernels(x), list(network.parameters()), gradient)
    for (name, _), ours in zip(network.named_parameters(), found, strict=True):
        assert torch.equal(ours.double(), wanted[name])


def test_tf32_is_taken_where_it_was_asked_for() -> None:
    network, _, _ = sample((3, 16, 16))
    tiles = projection.float_layer_tiles(gradient=False)
    for asked, taken in (("highest", "tf32x3"), ("high", "tf32")):
        torch.set_float32_matmul_precision(asked)
        options = projection._layer_options(network.enter.weight, tiles, gelu=True, residual=False)
        assert options["PRECISION"] == taken


def test_networks_that_the_kernels_do_not_take() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    def takes(network: ResMLP, x: Tensor) -> bool:
        network.implementation = "triton"
        return network.uses_float_kernels(x)

    network, x, _ = sample((3, 16, 16))
    assert takes(network, x)
    assert not takes(network, x[:0])
    assert network(x[:0]).shape == (0, 16)
    assert not takes(copy.deepcopy(network).double(), x.double())
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert not takes(network, x)
    for widths in ((3, 128, 128), (65, 16, 16), (16, 16, 65)):
        assert not takes(*sample(widths)[:2])
    exact = copy.deepcopy(network)
    exact.gelu = "none"
    hooked, replaced = copy.deepcopy(network), copy.deepcopy(network)
    hooked.layers[0].register_forward_hook(lambda *_: None)
    replaced.layers[0] = Doubled(16, 16).to(DEVICE)
    assert not any(takes(other, x) for other in (exact, hooked, replaced))
    for other in (exact, hooked, replaced):
        slow = copy.deepcopy(other)
        slow.implementation = "sdpa"
        assert torch.equal(other(x), slow(x))
    looked = torch.func.grad(lambda x: network(x).square().sum())(x)
    slow = copy.deepcopy(network)
    slow.implementation = "sdpa"
    assert torch.equal(looked, torch.func.grad(lambda x: slow(x).square().sum())(x))


def test_norms_that_the_kernel_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []

    def apply_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        taken.append(x)
        return norm(x)  # type: ignore[no-any-return]

    monkeypatch.setattr(projection, "apply_norm", apply_norm)
    norm, x, _ = sample_norm(16)
    hooked = copy.deepcopy(norm)
    hooked.register_forward_hook(lambda *_: None)
    plain = nn.LayerNorm(16, elementwise_affine=False).to(DEVICE)
    for other in (hooked, plain, nn.LayerNorm(16, bias=False).to(DEVICE), nn.Identity(), nn.RMSNorm(16).to(DEVICE)):
        assert torch.equal(normalise(other, x, "triton"), other(x))
    assert torch.equal(normalise(nn.LayerNorm(24).to(DEVICE), x.new_ones(2, 24), "triton"), x.new_zeros(2, 24))
    assert normalise(norm, x[:0], "triton").shape == (0, 16)
    assert torch.equal(normalise(norm, x, "sdpa"), norm(x))
    assert not taken
    normalise(norm, x, "triton")
    assert len(taken) == 1


@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_model_projects_by_the_kernels(in_chunks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flare_model.models.backbone._CHUNK", 16)
    torch.manual_seed(0)
    model = Flare(FlareConfig(num_blocks=1, num_latents=16, num_heads=2, channels=16), "triton").to(DEVICE)
    exact = Flare(model.config, "sdpa").to(DEVICE).double()
    exact.load_state_dict(model.state_dict())
    model.activation_checkpointing = in_chunks
    calls: list[str] = []
    for name in ("apply_layer", "apply_norm"):
        own = getattr(projection, name)
        monkeypatch.setattr(projection, name, lambda *a, own=own, name=name, **k: calls.append(name) or own(*a, **k))
    points = torch.randn(1, 20, 3, device=DEVICE)
    out = model(points)
    assert "apply_layer" in calls
    assert "apply_norm" in calls
    found = torch.autograd.grad(out.square().sum(), list(model.parameters()))

    def in_double() -> list[Tensor]:
        wanted = exact(points.double())
        return [wanted, *torch.autograd.grad(wanted.square().sum(), list(exact.parameters()))]

    names = ("output", *(name for name, _ in model.named_parameters()))
    for name, ours, truth, error in zip(names, (out, *found), *spread(in_double, torch.float32), strict=True):
        assert (ours - truth).norm() <= 4 * error, name
