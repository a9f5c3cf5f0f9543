"""The pointwise network's kernels, with and without a LayerNorm, against PyTorch's operators in float64.

Without a GPU they run in Triton's interpreter, on small shapes.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="the kernels need Triton, which is there for Linux alone")

from flare_model.kernels import network_launches
from flare_model.kernels.pointwise import network, network_operator
from flare_model.kernels.tuning import INTERPRETED
from flare_model.layers import backend as implementation
from flare_model.layers.mixer import FlareMixer
from flare_model.layers.pointwise import FeedForward, ResMLP
from flare_model.models.backbone import Block
from flare_model.models.flare import Flare, FlareConfig
from tests.flare_model.kernel_support import DEVICE, HALVES
from tests.rounding import SINGLE, spread

# More than one tile and, at 128 channels, more than one chunk; a multiple of neither.
POINTS = 83 if INTERPRETED else 1000

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and TRITON_INTERPRET=0"),
]


@pytest.fixture(autouse=True, params=["Hopper", "any GPU"] if DEVICE == "cuda" else ["any GPU"])
def gradient_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the kernels that give the gradient: Hopper GPUs have one of their own."""
    if request.param == "any GPU":
        monkeypatch.setattr(network_launches, "takes_hopper_gradient", lambda *_: False)


def sample(channels: int, layers: int = 3) -> tuple[nn.LayerNorm, ResMLP, Tensor, Tensor]:
    """A LayerNorm and a network, all of whose parameters are random, an input, and a gradient of the output."""
    torch.manual_seed(0)
    norm, plain = nn.LayerNorm(channels).to(DEVICE), ResMLP(channels, channels, channels, layers).to(DEVICE)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=1.2 * channels**-0.5)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias, 0.0, 0.3)
    x, gradient = torch.randn(2, POINTS, channels, device=DEVICE)
    return norm, plain, x, gradient


def by_kernel(x: Tensor, plain: ResMLP, norm: nn.LayerNorm | None, dtype: torch.dtype) -> Tensor:
    layers = [plain.enter, *plain.layers, plain.leave]
    return network(x, [layer.weight for layer in layers], [layer.bias for layer in layers], dtype, norm)


def differentiate(out: Tensor, x: Tensor, gradient: Tensor, *modules: nn.Module) -> dict[str, Tensor]:
    """The output, and the gradients of x and of every parameter, in float64."""
    leaves = {"x": x} | {f"{i}.{name}": p for i, m in enumerate(modules) for name, p in m.named_parameters()}
    found = torch.autograd.grad(out, list(leaves.values()), gradient.to(out.dtype))
    return {"output": out.detach().double()} | {n: t.double() for n, t in zip(leaves, found, strict=True)}


def check_against_float64(
    norm: nn.LayerNorm | None, plain: ResMLP, x: Tensor, gradient: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Assert that the kernels give the results of float64, up to rounding to the type, and return their results."""
    used = [plain] if norm is None else [plain, norm]
    fast = x.clone().requires_grad_()
    gradient = gradient.to(dtype)
    found = differentiate(by_kernel(fast, plain, norm, dtype), fast, gradient, *used)
    exact = copy.deepcopy(nn.Sequential(*reversed(used))).double()
    slow = x.double().requires_grad_()

    def in_double() -> dict[str, Tensor]:
        return differentiate(exact(slow), slow, gradient.double(), *reversed(list(exact)))

    names = in_double().keys()
    assert found.keys() == names
    for name, truth, error in zip(names, *spread(lambda: list(in_double().values()), dtype), strict=True):
        assert (found[name] - truth).norm() <= error, name
    return found


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("behind_norm", [False, True])
def test_a_network_in_one_kernel_gives_the_same_results(behind_norm: bool, channels: int, dtype: torch.dtype) -> None:
    norm, plain, x, gradient = sample(channels)
    check_against_float64(norm if behind_norm else None, plain, x, gradient, dtype)


@pytest.mark.parametrize("channels", [64, 128])
def test_a_norm_takes_inputs_that_16_bits_can_not_resolve(channels: int) -> None:
    """Inputs far from zero: the norm takes x in float32, so that a large mean leaves the variance accurate."""
    norm, plain, x, gradient = sample(channels, layers=1)
    check_against_float64(norm, plain, 1000 + x, gradient, HALVES[-1])


@pytest.mark.parametrize("channels", [64, 128])
def test_points_whose_channels_are_all_equal_get_the_bias_of_the_norm(channels: int) -> None:
    """Their variance is 0: the norm returns its bias, and their gradient is that of ε alone."""
    norm, plain, x, gradient = sample(channels, layers=1)
    x[::3] = 0.25
    found = check_against_float64(norm, plain, x, gradient, HALVES[-1])
    assert all(t.isfinite().all() for t in found.values())
    assert (found["output"][0] - found["output"][3]).norm() <= torch.finfo(HALVES[-1]).eps * found["output"][0].norm()


def test_an_input_may_have_16_bits() -> None:
    norm, plain, x, gradient = sample(64, layers=1)
    assert check_against_float64(norm, plain, x.half(), gradient, HALVES[-1])["x"].shape == x.shape


@pytest.mark.parametrize("channels", [64, 128])
def test_the_same_input_gives_the_same_bits(channels: int) -> None:
    norm, plain, x, gradient = sample(channels, layers=1)
    x.requires_grad_()
    one, other = (differentiate(by_kernel(x, plain, norm, HALVES[-1]), x, gradient, plain, norm) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_inputs_may_have_any_strides() -> None:
    norm, plain, x, gradient = sample(64, layers=1)
    found = []
    for strange in (False, True):
        some, behind = (t.t().contiguous().t() if strange else t for t in (x, gradient.to(HALVES[-1])))
        assert some.is_contiguous() is behind.is_contiguous() is not strange
        some.requires_grad_()
        found.append(differentiate(by_kernel(some, plain, norm, HALVES[-1]), some, behind, plain, norm))
    assert all(torch.equal(a, b) for a, b in zip(*(f.values() for f in found), strict=True))


def test_a_network_with_replaced_layers_uses_no_kernel() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    _, plain, x, _ = sample(64, layers=1)
    plain.implementation = "triton"
    with torch.autocast(DEVICE, dtype=HALVES[-1]):
        assert plain.uses_kernel(x)
        for other in (Doubled(64, 64).to(DEVICE), nn.Sequential(nn.Linear(64, 64)).to(DEVICE)):
            plain.layers[0] = other
            assert not plain.uses_kernel(x)


def test_sums_of_products_are_float32() -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(3, 16, 16, device=DEVICE).half() for _ in range(2))
    found = network_launches._products(a, b)
    assert found.dtype == torch.float32
    magnitudes = a.double().abs() @ b.double().abs()
    assert ((found.double() - a.double() @ b.double()).abs() <= 16 * SINGLE * magnitudes).all()  # sixteen products each


def test_without_points_all_gradients_are_zero() -> None:
    for channels in (64, 128):
        norm, plain, x, gradient = sample(channels, layers=0)
        x = x[:0].requires_grad_()
        found = differentiate(by_kernel(x, plain, norm, HALVES[-1]), x, gradient[:0], plain, norm)
        assert not any(t.any() for t in found.values())


@pytest.mark.parametrize("channels", [64, 128])
def test_the_operator_passes_the_checks_of_torch(channels: int) -> None:
    x = torch.randn(5, channels, device=DEVICE, requires_grad=True)
    weights = torch.randn(2, channels, channels, device=DEVICE, requires_grad=True)
    for rows in (2, 4):
        vectors = torch.randn(rows, channels, device=DEVICE, requires_grad=True)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        for residual in (False, True):
            arguments = (x, weights, vectors, 1e-5, torch.float16, residual)
            assert set(torch.library.opcheck(network_operator, arguments, test_utils=tests).values()) == {"SUCCESS"}


def small_model(mixer: str, channels: int) -> Flare:
    torch.manual_seed(0)
    config = FlareConfig(num_blocks=1, num_latents=16, num_heads=8, channels=channels)
    model = Flare(config, mixer).to(DEVICE)  # type: ignore[arg-type]
    for block in model.blocks:  # With its initial weights a norm that is left out might go unnoticed.
        assert isinstance(block, Block)
        for norm in (block.mixer_norm, block.pointwise_norm):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return model


@pytest.mark.parametrize(
    ("in_chunks", "channels", "count"),
    # Two chunks, the second not full; more chunks and other sizes are slow.
    [
        (True, 64, 20),
        *(
            pytest.param(chunks, channels, 40, marks=pytest.mark.slow)
            for chunks in (False, True)
            for channels in (64, 128)
        ),
    ],
)
def test_a_model_whose_kernels_include_the_norms_gives_the_same_results(
    in_chunks: bool, channels: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flare_model.models.backbone._CHUNK", 16)
    points = torch.randn(1, count, 3, device=DEVICE)
    plain, fast = small_model("sdpa", channels), small_model("triton", channels)
    fast.activation_checkpointing = in_chunks
    assert plain.state_dict().keys() == fast.state_dict().keys()
    norms: list[nn.Module] = []
    for model in (plain, fast):
        for module in model.modules():
            if isinstance(module, nn.LayerNorm) and module is not model.norm:
                module.register_forward_hook(lambda module, *_: norms.append(module))
    plain(points)
    assert len(norms) == 2
    with torch.autocast(DEVICE, dtype=HALVES[-1]):
        out = fast(points)
    found = torch.autograd.grad(out.square().sum(), list(fast.parameters()))
    assert len(norms) == 2, "the kernels left a norm to PyTorch"
    plain.double()

    def in_double() -> list[Tensor]:
        wanted = plain(points.double())
        return [wanted, *torch.autograd.grad(wanted.square().sum(), list(plain.parameters()))]

    names = ("output", *(name for name, _ in fast.named_parameters()))
    for name, ours, truth, error in zip(names, (out, *found), *spread(in_double, HALVES[-1]), strict=True):
        assert (ours - truth).norm() <= error, name


@pytest.mark.compiles
def test_compiling_breaks_no_graph() -> None:
    torch.compiler.reset()
    norm, plain, x, _ = sample(64, layers=1)
    fast = copy.deepcopy(plain)
    fast.implementation = "triton"
    compiled = torch.compile(fast.after_norm, fullgraph=True, dynamic=True, backend="aot_eager")
    for some in (x[:20], x[:33]):
        with torch.autocast(DEVICE, dtype=HALVES[-1]):
            out = compiled(norm, some)
        exact = copy.deepcopy(nn.Sequential(norm, plain)).double()
        (wanted,), (error,) = spread(lambda some=some, exact=exact: [exact(some.double())], HALVES[-1])
        assert (out - wanted).norm() <= error
        out.sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.any()


def test_a_norm_is_left_to_pytorch_where_the_kernels_do_not_apply() -> None:
    norm, plain, x, _ = sample(64)
    for name in ("sdpa", "auto", "triton"):  # Without autocast products are of float32.
        plain.implementation = name  # type: ignore[assignment]
        assert not plain.uses_kernel(x)
        torch.testing.assert_close(plain.after_norm(norm, x), plain(norm(x)), atol=0, rtol=0)
    for channels, taken in ((64, True), (128, True), (80, False)):
        assert implementation.network_by_kernels("triton", torch.device("cuda"), torch.bfloat16, channels, 5) is taken
    mixer = FlareMixer(64, 8, 4, 1, "sdpa").to(DEVICE)
    keys, values = mixer.project(norm, x)
    torch.testing.assert_close((keys, values), (mixer.keys(norm(x)), mixer.values(norm(x))), atol=0, rtol=0)
    assert not hasattr(FeedForward(64, 64, 64), "behind")
