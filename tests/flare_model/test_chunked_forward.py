"""Forward passes over large meshes in chunks of points: the numbers of a whole pass, in less memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flare_model.models.chunked_forward as chunked
from flare_model import Flare, FlareConfig, from_pretrained
from flare_model.kernels.tuning import INTERPRETED
from flare_model.layers.chunked_mixing import ChunkedMixing
from flare_model.models.spectra import spectra
from tests.flare_model.kernel_support import DEVICE, HALVES, TOLERANCE, explicit_mixing, sample

POINTS = 300


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let meshes of more than a hundred points count as large; the sizes of the chunks that were encoded."""
    seen: list[int] = []
    encode = ChunkedMixing.encode

    def count(self: ChunkedMixing, keys: Tensor, values: Tensor) -> None:
        seen.append(len(keys))
        encode(self, keys, values)

    monkeypatch.setattr(ChunkedMixing, "encode", count)
    monkeypatch.setattr(chunked, "LARGE", 100)
    monkeypatch.setattr(chunked, "CHUNK", 128)
    return seen


def model_of(**sizes: Any) -> Flare:
    torch.manual_seed(0)
    config = FlareConfig(**{"in_dim": 5, "channels": 16, "num_blocks": 3, "num_heads": 2, "num_latents": 7, **sizes})
    model = Flare(config, mixer="sdpa").eval()
    for parameter in model.parameters():  # biases are zero in a new model
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def whole(model: Flare, *inputs: Any) -> Tensor:
    """The prediction where a gradient is asked for, which isn't computed in chunks."""
    with torch.enable_grad():
        found: Tensor = model(*inputs)
    return found.detach()


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"scaled_scores": True}, {"pointwise": "mlp"}])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_chunks_give_the_numbers_of_a_whole_pass(
    small_chunks: list[int], sizes: dict[str, Any], joined: bool, dtype: torch.dtype, bound: float
) -> None:
    model = model_of(**sizes).to(dtype)
    points, features = torch.randn(POINTS, 3, dtype=dtype), torch.randn(POINTS, 2, dtype=dtype)
    inputs = (points, features, torch.tensor([0, POINTS])) if joined else (points, features)
    with torch.inference_mode():
        found = model(*inputs)
    assert small_chunks == 3 * [128, 128, 44]
    wanted = whole(model, *inputs)
    assert small_chunks == 3 * [128, 128, 44]
    assert found.shape == (POINTS, 1)
    assert (found - wanted).norm() <= bound * wanted.norm()


def test_chunks_under_bfloat16_are_as_near_as_a_whole_pass(small_chunks: list[int]) -> None:
    model = model_of()
    inputs = torch.randn(POINTS, 3), torch.randn(POINTS, 2)
    exact = whole(model.double(), *(t.double() for t in inputs))
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            found = model(*inputs)
        wanted = whole(model, *inputs)
    assert len(small_chunks) == 9
    assert (found - exact).norm() <= 1.5 * (wanted - exact).norm()


def test_chunks_need_no_private_operator(small_chunks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch has no attention that gives logsumexps, explicit matrices give them."""
    monkeypatch.setattr("flare_model.layers.chunked_mixing._ATTENTION", "no such operator")
    model = model_of().double()
    inputs = torch.randn(POINTS, 3).double(), torch.randn(POINTS, 2).double()
    with torch.inference_mode():
        found = model(*inputs)
    assert len(small_chunks) == 9
    wanted = whole(model, *inputs)
    assert (found - wanted).norm() <= 1e-12 * wanted.norm()


@pytest.mark.parametrize("sizes", [{"separate_decoding": True}, {"latent_layers": 1}])
def test_ablations_are_computed_whole(small_chunks: list[int], sizes: dict[str, Any]) -> None:
    model = model_of(**sizes)
    inputs = torch.randn(POINTS, 3), torch.randn(POINTS, 2)
    with torch.inference_mode():
        torch.testing.assert_close(model(*inputs), whole(model, *inputs))
    assert small_chunks == []


def test_several_meshes_small_ones_and_spectra_are_computed_whole(small_chunks: list[int]) -> None:
    model = model_of()
    points, features = torch.randn(POINTS, 3), torch.randn(POINTS, 2)
    with torch.inference_mode():
        model(points, features, torch.tensor([0, 120, POINTS]))
        model(points[:100], features[:100])
        model(points.expand(2, -1, -1), features.expand(2, -1, -1))
        assert len(spectra(model, points, features)) == 3
        with model.blocks[1].register_forward_hook(lambda *_: None):
            model(points, features)
    assert small_chunks == []


def test_the_packaged_model_predicts_in_chunks(small_chunks: list[int]) -> None:
    surrogate = from_pretrained()
    points = torch.rand(POINTS, 3) * 40
    features = torch.rand(POINTS, len(surrogate.feature_mean)) * surrogate.feature_std + surrogate.feature_mean
    with torch.inference_mode():
        found = surrogate(points, features)
    assert len(small_chunks) == 3 * len(surrogate.model.blocks)
    with torch.enable_grad():
        wanted = surrogate(points, features).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="the kernels need a GPU or Triton's interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_the_kernels_mix_in_chunks(dtype: torch.dtype) -> None:
    queries, keys, values, _ = (t.to(dtype) for t in sample((2, 8, 16, 90), scale=2.0))
    mixing = ChunkedMixing(queries, "triton")
    mixing._takes_kernels = lambda _: True  # type: ignore[method-assign]  # on a CPU, by the interpreter
    chunks = [slice(0, 40), slice(40, 41), slice(41, 90)]
    for chunk in chunks:
        mixing.encode(keys[0, chunk], values[0, chunk])
    found = torch.cat([mixing.decode(keys[0, chunk]) for chunk in chunks]).double()
    wanted = explicit_mixing(queries.double(), keys.double(), values.double())[0]
    assert (found - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()


PEAK = """
import sys
from pathlib import Path
import torch
import flare_model.models.chunked_forward as chunked
from flare_model import Flare, FlareConfig

def kibibytes(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(name))

torch.set_num_threads(1)
model = Flare(FlareConfig(in_dim=3, num_blocks=2, num_latents=16), mixer="sdpa")
points = torch.rand(400_000, 3)
chunked.LARGE = int(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here; getrusage's is inherited from pytest
before = kibibytes("VmRSS")
with torch.inference_mode():
    model(points)
print(kibibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of the memory")
def test_chunks_take_a_fraction_of_the_memory() -> None:
    def kibibytes(large: int) -> int:
        run = subprocess.run([sys.executable, "-c", PEAK, str(large)], capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert kibibytes(1000) < 0.6 * kibibytes(1 << 30)
