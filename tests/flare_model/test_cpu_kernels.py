"""Tests of the kernels for CPUs: their arithmetic against float64, when they are taken, and threads."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flare_model import Flare, FlareConfig
from flare_model.kernels.cpu import mixing, pointwise, threads
from flare_model.kernels.cpu.compiling import compile_kernel, pointers
from flare_model.kernels.cpu.expressions import LANES, Code, Vector
from flare_model.layers import backend
from flare_model.layers.mixer import mix_by
from flare_model.layers.pointwise import ResMLP
from flare_model.models import chunked_forward
from flare_model.models.spectra import spectra
from tests.flare_model.cpu_kernel_support import record_calls
from tests.flare_model.kernel_support import explicit_mixing, mix_by_attention_calls, sample

pytestmark = pytest.mark.numeric

EPSILON: Final = torch.finfo(torch.float32).eps

CONFIG: Final = FlareConfig(in_dim=5, channels=16, num_blocks=2, num_heads=2, num_latents=21)


def of_vectors(operation: Callable[[Vector], Vector], x: Tensor) -> Tensor:
    """An operation of each number."""

    def describe(code: Code) -> None:
        (numbers, results), (count,) = code.arrays, code.integers
        with code.loop(0, count, LANES) as first:
            results.store(first, operation(numbers.load(first)))

    padded = F.pad(x, (0, -len(x) % LANES))
    found = torch.empty_like(padded)
    compile_kernel("operation", 2, 1, describe)(*pointers(padded, found), len(padded))
    return found[: len(x)]


def test_exponentials_are_exact_to_rounding() -> None:
    x = torch.cat([torch.linspace(-87.3, 88.3, 200_001), -torch.logspace(-20, 1.9, 10_000), torch.tensor([0.0, -0.0])])
    found = of_vectors(Vector.exponential, x)
    assert (found.double() / x.double().exp() - 1).abs().max() <= 2e-7
    assert (found[-2:] == 1).all()
    beyond = of_vectors(Vector.exponential, torch.tensor([-88.0, -1e30, -torch.inf, torch.nan]))
    assert ((beyond[:3] >= 0) & (beyond[:3] < 1.3e-38)).all()
    assert beyond[3].isnan()
    bits = torch.tensor([0x7F800001, 0x7FC00123, -1], dtype=torch.int32).view(torch.float32)
    assert of_vectors(Vector.exponential, bits).isnan().all()


def test_gelu_is_its_tanh_form() -> None:
    x = torch.cat([torch.linspace(-30, 30, 100_001), torch.tensor([0.0, 1e10, -1e10, 1e30, -1e30])])
    exact = F.gelu(x.double(), approximate="tanh")
    assert (of_vectors(Vector.gelu, x) - exact).abs().div(x.double().abs() + 1e-30).max() <= 3e-7
    special = torch.tensor([torch.inf, -torch.inf, torch.nan])
    torch.testing.assert_close(
        of_vectors(Vector.gelu, special), F.gelu(special, approximate="tanh"), equal_nan=True, rtol=0, atol=0
    )


def test_the_larger_and_the_smaller_of_two_keep_nan() -> None:
    x = torch.tensor([torch.nan, 1.0, -1.0, -torch.inf, torch.inf])
    zero = lambda vector: vector - vector.at_most(vector)  # noqa: E731
    assert of_vectors(lambda v: v.at_least(zero(v)), x)[0].isnan()
    assert of_vectors(lambda v: v.at_least(v - v), x)[1:3].tolist() == [1.0, 0.0]
    assert of_vectors(lambda v: v.at_most(v - v), x)[1:3].tolist() == [0.0, -1.0]


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 3),
    depth=st.sampled_from([4, 8, 20, 32]),
    latents=st.integers(1, 70),
    sizes=st.lists(st.one_of(st.integers(1, 40), st.integers(100, 300), st.just(2100)), min_size=1, max_size=4),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_joined_meshes_mix_as_by_explicit_matrices(
    heads: int, depth: int, latents: int, sizes: list[int], scale: float
) -> None:
    q, k, v, _ = sample((heads, depth, latents, sum(sizes)), scale=scale)
    offsets = torch.tensor([0, *np.cumsum(sizes)])
    found = mixing.mix(q, k[0], v[0], offsets=offsets)
    for first, end in pairwise(offsets.tolist()):
        exact = explicit_mixing(q.double(), k[:, first:end].double(), v[:, first:end].double())[0]
        largest = (scale * depth**0.5 + 1) * 8
        assert (found[first:end] - exact).norm() <= EPSILON * largest * 4 * exact.norm().clamp_min(0.1)


def errors(inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Squared errors of the kernels and of attention calls."""
    exact = explicit_mixing(*(t.double() for t in inputs))
    ours, theirs = ((f(*inputs) - exact).square().sum().item() for f in (mixing.mix, mix_by_attention_calls))
    return ours, theirs


@pytest.mark.parametrize(
    ("shape", "scale", "shift", "seeds"),
    [
        ((2, 8, 128, 1000), 0.3, 0.0, 10),
        ((1, 4, 256, 700), 1.0, 0.0, 10),
        ((1, 16, 16, 3000), 1.0, 0.0, 10),
        ((1, 32, 64, 500), 0.2, 0.0, 10),
        ((1, 8, 512, 400), 0.3, 0.0, 10),
        ((1, 8, 33, 1), 1.0, 0.0, 10),
        ((1, 8, 64, 600), 7.0, 0.0, 10),  # scores of ± 40
        ((1, 8, 64, 600), 1.0, 10.0, 10),  # keys with a mean
        ((1, 8, 32, 50_000), 0.3, 0.0, 3),
    ],
)
def test_errors_are_at_most_those_of_attention(
    shape: tuple[int, int, int, int], scale: float, shift: float, seeds: int
) -> None:
    found = []
    for seed in range(seeds):
        q, k, v, _ = sample(shape, seed=seed, scale=scale)
        found.append(errors((q, k + shift, v)))
    ours, theirs = np.sqrt(np.sum(found, axis=0))
    assert ours <= 1.1 * theirs + EPSILON


@pytest.mark.parametrize("factor", [1e3, 1e4])
def test_scores_of_thousands_are_as_exact_as_by_attention(factor: float) -> None:
    found = []
    for seed in range(10):
        q, k, v, _ = sample((1, 8, 64, 900), seed=seed)
        found.append(errors((q * factor, k, v)))
    ours, theirs = np.sqrt(np.sum(found, axis=0))
    assert ours <= 1.1 * theirs + EPSILON


def test_maxima_that_rise_from_block_to_block_are_followed() -> None:
    q, k, v, _ = sample((1, 4, 20, 5000))
    k = k + torch.linspace(-60, 60, 5000)[:, None, None] * q[0, :1] / q[0, 0].square().sum()
    exact = explicit_mixing(q.double(), k.double(), v.double())
    assert (mixing.mix(q, k, v) - exact).norm() <= 1e-4 * exact.norm()
    assert (mixing.mix(q, k.flip(1), v.flip(1)).flip(1) - exact).norm() <= 1e-4 * exact.norm()


def test_constant_keys_give_the_mean() -> None:
    q, k, v, _ = sample((2, 8, 17, 5003))
    found = mixing.mix(q, k[:, :1].expand_as(k), v + 1)
    torch.testing.assert_close(found, (v + 1).double().mean(1, keepdim=True).expand_as(v).float(), rtol=1e-6, atol=0)


def test_latents_and_their_logarithms_are_those_of_all_points() -> None:
    q, k, v, _ = sample((2, 8, 21, 2500), batch=2)
    latents, logsumexps = mixing.encode(q, k, v)
    scores = torch.einsum("hmd,bnhd->bhmn", q.double(), k.double())
    torch.testing.assert_close(logsumexps, scores.logsumexp(-1), rtol=0, atol=2e-6)
    exact = scores.softmax(-1) @ v.double().transpose(1, 2)
    torch.testing.assert_close(latents.double(), exact, rtol=0, atol=2e-6)
    points = (scores.softmax(-2).mT @ exact).transpose(1, 2)
    torch.testing.assert_close(mixing.decode(q, k, latents).double(), points, rtol=0, atol=2e-6)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", ["queries", "keys", "values"])
def test_what_is_not_finite_shows(number: float, which: str) -> None:
    q, k, v, _ = sample((2, 8, 19, 300), batch=2)
    {"queries": q[0], "keys": k[1, :, 0], "values": v[1, :, 0]}[which][7, 3] = number
    found, theirs = mixing.mix(q, k, v), mix_by_attention_calls(q, k, v)
    assert torch.equal(found.isfinite(), theirs.isfinite())
    if number != number:
        assert torch.equal(found.isnan(), theirs.isnan())


def test_nothing_is_written_beyond_the_result() -> None:
    q, k, v, _ = sample((1, 4, 5, 17))
    inputs = [t.clone() for t in (q, k, v)]
    mixing.mix(q, k, v)
    assert all(torch.equal(t, before) for t, before in zip((q, k, v), inputs, strict=True))


def network_of(sizes: tuple[int, int, int], layers: int, **options: Any) -> tuple[ResMLP, nn.LayerNorm]:
    torch.manual_seed(0)
    network, norm = ResMLP(*sizes, layers, implementation="auto", **options), nn.LayerNorm(sizes[0])
    for parameter in (*network.parameters(), *norm.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False), norm.requires_grad_(False)


@pytest.mark.parametrize("sizes", [(25, 64, 64), (64, 64, 64), (64, 64, 5), (3, 7, 1), (64, 32, 64), (18, 18, 18)])
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("points", [1, 16, 53])
@pytest.mark.parametrize("residuals", [False, True])
def test_networks_are_those_of_the_layers(
    sizes: tuple[int, int, int], layers: int, points: int, residuals: bool, all_sizes: None
) -> None:
    network, norm = network_of(sizes, layers, input_residual=residuals, output_residual=residuals)
    x = torch.randn(2, points, sizes[0]) * 2 + 1
    before = x.clone()
    with torch.no_grad():
        found = [network(x), network.after_norm(norm, x)]
        found += [network.add_after_norm(norm, x)] if sizes[0] == sizes[2] else []
    network, norm, wide = network.double(), norm.double(), x.double()
    exact = [network(wide), network(norm(wide))]
    exact += [wide + network(norm(wide))] if sizes[0] == sizes[2] else []
    assert torch.equal(x, before)
    for ours, truth in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - truth).norm() <= 1e-6 * truth.norm()


@pytest.mark.parametrize("channels", [64, 128, 256])
def test_errors_of_networks_are_at_most_those_of_operators(channels: int, all_sizes: None) -> None:
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        network, x = ResMLP(*[channels] * 3, 3, implementation="auto").requires_grad_(False), torch.randn(600, channels)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=channels**-0.5)
        with torch.no_grad():
            ours = network(x)
            network.implementation = "sdpa"
            theirs, exact = network(x), network.double()(x.double())
        found.append([float((one - exact).square().sum()) for one in (ours, theirs)])
    ours_squared, theirs_squared = np.sum(found, axis=0)
    assert ours_squared <= 1.1**2 * theirs_squared


def test_a_linear_layer_and_its_residual() -> None:
    layer = nn.Linear(24, 40).requires_grad_(False)
    x, inputs = torch.randn(3, 11, 40), torch.randn(3, 11, 24)
    found = pointwise.residual_linear(x, inputs, layer)
    torch.testing.assert_close(found, x + layer(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_networks_show_what_is_not_finite(number: float, all_sizes: None) -> None:
    network, norm = network_of((16, 16, 16), 1)
    x = torch.randn(40, 16)
    x[33, 5] = number
    with torch.no_grad():
        found = network.add_after_norm(norm, x)
    assert not found[33].isfinite().any()
    assert found[torch.arange(40) != 33].isfinite().all()


@pytest.fixture
def all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernels take calls of few points too."""
    monkeypatch.setattr(backend, "CPU_POINTS", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, all_sizes: None) -> list[str]:
    """What the kernels were asked to compute."""
    return record_calls(monkeypatch)


def flare(**more: Any) -> Flare:
    torch.manual_seed(0)
    model = Flare(FlareConfig(**{**CONFIG.__dict__, **more})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


BATCHES: Final = {
    "one mesh": {"points": (77, 3)},
    "a batch": {"points": (3, 40, 3)},
    "joined": {"points": (90, 3), "offsets": [0, 1, 40, 90]},
    "one joined": {"points": (90, 3), "offsets": [0, 90]},
    "unequal": {"points": (90, 3), "offsets": [0, 80, 82, 90]},
    "padded": {"points": (2, 30, 3), "mask": [30, 11]},
}


def batch_of(kind: str) -> tuple[Any, ...]:
    chosen: dict[str, Any] = BATCHES[kind]
    torch.manual_seed(1)
    points = torch.randn(*chosen["points"])
    offsets = torch.tensor(chosen["offsets"]) if "offsets" in chosen else None
    mask = torch.arange(30) < torch.tensor(chosen["mask"])[:, None] if "mask" in chosen else None
    return points, torch.randn(*points.shape[:-1], 2), offsets, mask


@pytest.mark.parametrize("kind", BATCHES)
def test_a_model_predicts_the_same_for_every_layout(kind: str, calls: list[str]) -> None:
    model, batch = flare(), batch_of(kind)
    with torch.no_grad():
        found = model(*batch)
        assert calls.count("mix") == (0 if kind == "padded" else 2)
        assert calls.count("network") == 8
        assert calls.count("residual_linear") == 2
        again = model(*batch)
    assert torch.equal(found, again)
    exact = model.double()(*(t.double() if t is not None and t.is_floating_point() else t for t in batch))
    exists = slice(None) if batch[3] is None else batch[3]
    torch.testing.assert_close(found[exists].double(), exact[exists].detach(), rtol=1e-4, atol=1e-4)


def test_a_large_mesh_is_computed_in_chunks_by_the_kernels(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_forward, "LARGE", 100)
    monkeypatch.setattr(chunked_forward, "CHUNK", 128)
    model, x = flare(scaled_scores=True), torch.randn(300, 5)
    with torch.inference_mode():
        found = model(x)
    assert calls.count("encode") == calls.count("decode") == 6
    assert "mix" not in calls
    torch.testing.assert_close(found.double(), model.double()(x.double()).detach(), rtol=1e-4, atol=1e-4)


def cases_without_kernels() -> Iterator[tuple[str, Callable[[Flare, Tensor], object]]]:
    def with_gradients(model: Flare, x: Tensor) -> object:
        with torch.enable_grad():
            return model(x)

    def by(implementation: Any) -> Callable[[Flare, Tensor], object]:
        def call(model: Flare, x: Tensor) -> object:
            mix_by(model, implementation)
            return model(x)

        return call

    def in_16_bits(model: Flare, x: Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return [block(model.enter(x), layout_of(x)) for block in model.blocks]

    def layout_of(x: Tensor) -> Any:
        from flare_model.layers.layout import Layout

        return Layout.of(x, None, None)

    yield "gradients", with_gradients
    yield "sdpa", by("sdpa")
    yield "reference", by("reference")
    yield "float64", lambda model, x: model.double()(x.double())
    yield "autocast", in_16_bits
    yield "vmap", lambda model, x: torch.func.vmap(model.enter)(x)
    yield "jvp", lambda model, x: torch.func.jvp(model.enter, (x,), (x,))
    yield "export", lambda model, x: torch.export.export(model, (x,))
    yield "trace", lambda model, x: torch.jit.trace(model, (x,), check_trace=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("case", "call"), [pytest.param(*case, id=case[0]) for case in cases_without_kernels()])
def test_kernels_are_left_out_where_others_follow(
    case: str, call: Callable[[Flare, Tensor], object], calls: list[str]
) -> None:
    with torch.no_grad():
        call(flare(), torch.randn(2, 40, 5))
    assert not calls


def test_a_call_of_fewer_points_is_left_to_pytorch(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CPU_POINTS", 101)
    model = flare()
    with torch.no_grad():
        model(torch.randn(100, 5))
        assert not calls
        model(torch.randn(101, 5))
    assert calls


def test_without_the_compiler_pytorch_computes(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As if llvmlite weren't installed; the answer is kept for the process otherwise.
    monkeypatch.setattr(backend, "_has_cpu_kernels", functools.cache(backend._has_cpu_kernels.__wrapped__))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with torch.no_grad():
        flare()(torch.randn(100, 5))
    assert not calls
    assert not caplog.records


def test_a_compiler_that_fails_is_named_once(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise RuntimeError("no such processor")

    monkeypatch.setattr(backend, "_has_cpu_kernels", functools.cache(backend._has_cpu_kernels.__wrapped__))
    monkeypatch.setattr("flare_model.kernels.cpu.network.network_kernel", refuse)
    with torch.no_grad():
        flare()(torch.randn(100, 5))
    assert not calls
    assert [record.getMessage() for record in caplog.records] == [
        "PyTorch's operators in place of kernels for the CPU, which can't be compiled: no such processor"
    ]


def test_replaced_and_hooked_layers_are_called(calls: list[str]) -> None:
    model, seen = flare(), []
    block: Any = model.blocks[0]
    block.mixer.keys.enter.register_forward_hook(lambda *_: seen.append("layer"))
    block.pointwise.register_forward_hook(lambda *_: seen.append("network"))
    block.mixer_norm.register_forward_hook(lambda *_: seen.append("norm"))
    block.mixer.leave = nn.Sequential(block.mixer.leave)
    with torch.no_grad():
        found = model(torch.ones(40, 5))
    assert sorted(set(seen)) == ["layer", "network", "norm"]
    assert calls.count("residual_linear") == 1
    assert found.isfinite().all()


def test_spectra_are_those_of_attention_calls(all_sizes: None) -> None:
    model, points, features = flare(), torch.randn(200, 3), torch.randn(200, 2)
    ours = spectra(model, points, features)
    mix_by(model, "sdpa")
    for one, other in zip(ours, spectra(model, points, features), strict=True):
        np.testing.assert_allclose(one.eigenvalues, other.eigenvalues, rtol=1e-3, atol=1e-5)


def test_results_do_not_depend_on_the_number_of_threads(four_threads: None) -> None:
    q, k, v, _ = sample((3, 8, 40, 6000))
    network, norm = network_of((24, 24, 24), 1)
    residuals = pointwise.Residuals(True, True, True)

    def compute() -> list[Tensor]:
        x = k[0].flatten(1)
        return [mixing.mix(q, k, v), pointwise.network(x, network._all_layers(), residuals, norm)]

    by_four = compute()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        assert all(torch.equal(one, other) for one, other in zip(compute(), by_four, strict=True))


def test_an_error_in_a_thread_reaches_the_caller(four_threads: None) -> None:
    def work(_: Tensor, first: int, __: int) -> None:
        if first > 20:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        threads.run(work, 64, lambda: torch.zeros(1))


FORK: Final = """
import os, signal, torch
from flare_model.kernels.cpu import mixing

torch.set_num_threads(3)
q, k, v = torch.randn(2, 9, 8), torch.randn(1, 5000, 2, 8), torch.randn(1, 5000, 2, 8)
before = mixing.mix(q, k, v)
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if torch.equal(mixing.mix(q, k, v), before) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(mixing.mix(q, k, v), before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", FORK], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
