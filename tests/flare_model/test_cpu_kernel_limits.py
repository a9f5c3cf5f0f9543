"""Where kernels for CPUs step aside: for tensors that they can't read, other shapes, and what has ways of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from flare_model.kernels.cpu import threads
from flare_model.layers import backend
from flare_model.layers.layout import Layout
from flare_model.layers.mixer import mix_meshes
from flare_model.layers.pointwise import ResMLP, add_linear
from flare_model.models.flare import Flare
from flare_model.sizes import FlareConfig
from tests.flare_model.cpu_kernel_support import record_calls


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the kernels were asked to compute; they take few points too."""
    monkeypatch.setattr(backend, "CPU_POINTS", 1)
    return record_calls(monkeypatch)


def outcome(call: Callable[[], Tensor]) -> Tensor | type[Exception]:
    """What a call without gradients returns, or the class of its error."""
    try:
        with torch.no_grad():
            return call()
    except Exception as error:  # noqa: BLE001 (whatever PyTorch raises)
        return type(error)


def assert_same(ours: Tensor | type[Exception], theirs: Tensor | type[Exception]) -> None:
    if isinstance(theirs, Tensor) and isinstance(ours, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)
    else:
        assert ours == theirs


class Subclass(Tensor):
    """A tensor with ways of its own."""


class Doubled(ResMLP):
    """A network with a `forward` of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice the network."""
        return 2 * super().forward(x)


def network(width: int = 16, made: type[ResMLP] = ResMLP, **more: Any) -> ResMLP:
    torch.manual_seed(0)
    return made(width, width, width, 2, implementation="auto", **more).requires_grad_(False)


def with_weight(change: Callable[[Tensor], Tensor]) -> ResMLP:
    """A network one of whose matrices is another tensor."""
    changed = network()
    layer: Any = changed.layers[0]
    layer.weight = nn.Parameter(change(layer.weight.data), requires_grad=False)
    return changed


def with_double_bias() -> ResMLP:
    changed = network()
    changed.leave.bias = nn.Parameter(changed.leave.bias.double(), requires_grad=False)
    return changed


def with_own_forward() -> ResMLP:
    changed = network()
    plain = changed.forward
    changed.forward = lambda x: plain(x) + 1  # type: ignore[method-assign]
    return changed


def sample() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(40, 16)


def in_dual_level(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent: Tensor = forward_ad.unpack_dual(call(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    return tangent


def under_a_mode(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with FlopCounterMode(display=False) as mode:
        call(x)
    return torch.tensor(float(mode.get_total_flops()))


NETWORKS: dict[str, tuple[Callable[[], ResMLP], Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]]] = {
    "float64": (lambda: network().double(), lambda call, x: call(x)),
    "bfloat16": (lambda: network().bfloat16(), lambda call, x: call(x)),
    "one bias": (with_double_bias, lambda call, x: call(x)),
    "another shape": (lambda: with_weight(lambda weight: weight[:, :8].clone()), lambda call, x: call(x)),
    "meta": (lambda: network().to("meta"), lambda call, x: call(x)),
    "sparse": (lambda: with_weight(lambda weight: weight.to_sparse_csr()), lambda call, x: call(x)),
    "negated": (network, lambda call, x: call(torch._neg_view(x))),
    "narrow": (network, lambda call, x: call(x[:, :8])),
    "subclass": (network, lambda call, x: call(x.as_subclass(Subclass)).as_subclass(Tensor)),
    "exact GELU": (lambda: network(gelu="none"), lambda call, x: call(x)),
    "wide": (lambda: network(257), lambda call, x: call(x.repeat(1, 17)[:, :257])),
    "tangents": (network, in_dual_level),
    "mode": (network, under_a_mode),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("case", NETWORKS)
def test_networks_that_kernels_can_not_read_are_pytorchs(case: str, calls: list[str]) -> None:
    make, apply = NETWORKS[case]
    found = []
    for implementation in ("auto", "sdpa"):
        made = make()
        made.implementation = implementation  # type: ignore[assignment]
        found.append(outcome(lambda made=made: apply(made, sample())))  # type: ignore[misc]
    assert_same(*found)
    assert not calls


@pytest.mark.parametrize("way", ["forward", "after_norm", "add_after_norm"])
@pytest.mark.parametrize("made", [lambda: network(made=Doubled), with_own_forward], ids=["class", "instance"])
def test_networks_with_a_forward_of_their_own_are_called(way: str, made: Callable[[], ResMLP]) -> None:
    found = []
    for implementation in ("auto", "sdpa"):
        one, norm = made(), nn.LayerNorm(16)
        one.implementation = implementation  # type: ignore[assignment]
        arguments = (sample(),) if way == "forward" else (norm, sample())
        call = one if way == "forward" else getattr(one, way)
        found.append(outcome(lambda call=call, arguments=arguments: call(*arguments)))  # type: ignore[misc]
    assert_same(*found)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(16).double(),
        nn.LayerNorm(16, elementwise_affine=False),
        nn.LayerNorm(16, bias=False),
        nn.LayerNorm((1, 16)),
        nn.LayerNorm(16, eps=0.5),
    ],
    ids=["float64", "not affine", "no bias", "two dimensions", "large epsilon"],
)
@pytest.mark.parametrize("way", ["after_norm", "add_after_norm"])
def test_norms_are_those_of_pytorch(norm: nn.LayerNorm, way: str) -> None:
    found = []
    for implementation in ("auto", "sdpa"):
        one = network()
        one.implementation = implementation  # type: ignore[assignment]
        found.append(outcome(lambda one=one: getattr(one, way)(norm, sample()[:, None])))  # type: ignore[misc]
    assert_same(*found)


def test_strided_tensors_are_read_as_they_lie(calls: list[str]) -> None:
    one, layer, norm = network(), nn.Linear(16, 16), nn.LayerNorm(16)
    wide = torch.randn(40, 32)
    for x in (
        wide[:, 16:],
        wide[:, ::2],
        wide[:, :16].flip(1),
        torch.randn(16, 40).T,
        torch.ones(1, 16).expand(40, 16),
    ):
        for implementation in ("auto", "sdpa"):
            one.implementation = implementation  # type: ignore[assignment]
            with torch.no_grad():
                found = one(x), one.add_after_norm(norm, x), add_linear(x, layer, x * 2, one.implementation)
            if implementation == "auto":
                ours = found
        for a, b in zip(ours, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert calls == ["network", "network", "residual_linear"] * 5


LINEAR: dict[str, tuple[tuple[int, ...], tuple[int, ...], nn.Linear]] = {
    "narrow inputs": ((40, 16), (40, 8), nn.Linear(16, 16)),
    "broadcast": ((40, 1), (40, 16), nn.Linear(16, 16)),
    "float64": ((40, 16), (40, 16), nn.Linear(16, 16).double()),
}


@pytest.mark.parametrize("case", LINEAR)
def test_linear_layers_that_do_not_fit_are_pytorchs(case: str, calls: list[str]) -> None:
    x, inputs, layer = LINEAR[case]
    found = [
        outcome(lambda way=way: add_linear(torch.ones(x), layer, torch.ones(inputs), way))  # type: ignore[misc]
        for way in ("auto", "sdpa")
    ]
    assert_same(*found)
    assert not calls


def mixed(change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]], implementation: Any) -> Tensor:
    torch.manual_seed(0)
    inputs = change(torch.randn(2, 8, 8), torch.randn(1, 40, 2, 8), torch.randn(1, 40, 2, 8))
    return mix_meshes(*inputs, Layout(), implementation)


MIXED: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "values in float64": lambda q, k, v: (q, k, v.double()),
    "values in bfloat16": lambda q, k, v: (q, k, v.bfloat16()),
    "queries in float64": lambda q, k, v: (q.double(), k, v),
    "narrow values": lambda q, k, v: (q, k, v[..., :4].contiguous()),
    "queries for all heads": lambda q, k, v: (q[:1], k, v),
    "fewer values": lambda q, k, v: (q, k, v[:, :7].contiguous()),
    "no latents": lambda q, k, v: (q[:, :0], k, v),
    "negated keys": lambda q, k, v: (q, torch._neg_view(k), v),
    "heads of 6 channels": lambda q, k, v: (q[..., :6], k[..., :6], v[..., :6]),
    "heads of 40 channels": lambda q, k, v: (q.repeat(1, 1, 5), k.repeat(1, 1, 1, 5), v.repeat(1, 1, 1, 5)),
}


@pytest.mark.parametrize("case", MIXED)
def test_mixing_that_kernels_can_not_read_is_pytorchs(case: str, calls: list[str]) -> None:
    assert_same(*(outcome(lambda way=way: mixed(MIXED[case], way)) for way in ("auto", "sdpa")))  # type: ignore[misc]
    assert not calls


def test_a_replaced_output_layer_is_called(calls: list[str]) -> None:
    torch.manual_seed(0)
    model = Flare(FlareConfig(channels=16, num_blocks=1, num_heads=2, num_latents=8))
    block: Any = model.blocks[0]
    wanted = outcome(lambda: model(torch.ones(40, 3)))
    calls.clear()
    block.pointwise.leave = nn.Sequential(block.pointwise.leave)
    assert_same(outcome(lambda: model(torch.ones(40, 3))), wanted)
    assert calls.count("network") == 4  # projections, keys, values
    assert model(torch.ones(40, 3)).requires_grad


def test_another_pytorch_that_does_not_tell_what_it_follows_computes(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C, "_len_torch_function_stack")
    assert isinstance(outcome(lambda: network()(sample())), Tensor)
    assert not calls


def test_where_no_thread_starts_any_more_this_one_computes(monkeypatch: pytest.MonkeyPatch, four_threads: None) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    wanted = outcome(lambda: network()(sample()))
    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", refuse)
    assert_same(outcome(lambda: network()(sample())), wanted)


def test_an_interrupt_stops_the_other_threads(four_threads: None) -> None:
    main, done, begun = threading.current_thread(), list[int](), threading.Event()

    def work(scratch: Tensor, first: int, end: int) -> None:
        if threading.current_thread() is main:
            begun.set()
            raise KeyboardInterrupt
        begun.wait(60)
        threading.Event().wait(0.2)
        done.append(first)

    with pytest.raises(KeyboardInterrupt):
        threads.run(work, 1000, lambda: torch.zeros(1))
    assert len(done) <= 6  # of 31 blocks: one or two a thread


REFUSED = """
import ctypes, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    sys.exit(77)
import torch
from flare_model.layers import backend
from flare_model.layers.pointwise import ResMLP
backend.CPU_POINTS = 1
with torch.no_grad():
    print(ResMLP(16, 16, 16, 1, implementation="auto")(torch.ones(40, 16)).shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to refuse")
def test_without_executable_memory_pytorch_computes() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(f"this kernel can't refuse executable memory (errno {ctypes.get_errno()})")
    assert done.returncode == 0, done.stderr
    assert "torch.Size([40, 16])" in done.stdout
    assert "this system allows no memory that can be executed" in done.stderr
