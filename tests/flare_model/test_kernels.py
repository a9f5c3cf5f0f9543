"""What the GPU's kernels take, and where they are used; without a GPU in Triton's interpreter, on small shapes."""

from __future__ import annotations

import itertools
import logging
import re
import struct
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which is there for Linux alone")

import triton
import triton.language as tl

from flare_model import kernels
from flare_model.kernels import arithmetic, support
from flare_model.kernels.launches import Points
from flare_model.kernels.mesh_slices import slice_of_mesh, slices_of_mesh
from flare_model.kernels.mixing import mix, mix_operator
from flare_model.kernels.tuning import INTERPRETED
from flare_model.layers import backend as implementation
from flare_model.layers.mixer import mix_by, mix_explicitly
from flare_model.models.backbone import in_chunks
from flare_model.models.flare import Flare, FlareConfig
from flare_model.models.transformer import Transformer
from lpbf_data.errors import UsageError
from tests.flare_model.kernel_support import (
    DEVICE,
    HALVES,
    TOLERANCE,
    assert_close,
    assert_compiles_whole,
    differentiate,
    explicit_mixing,
    sample,
)
from tests.rounding import assert_same, rounding_errors, spread

CUDA = torch.device("cuda")

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and TRITON_INTERPRET=0"),
]


@settings(max_examples=5, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_joined_meshes_do_not_affect_each_other(sizes: list[int]) -> None:
    q, k, v, g = sample((1, 8, 16, sum(sizes)), len(sizes))
    offsets = torch.tensor([0, *itertools.accumulate(sizes)], device=DEVICE)

    def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mix(q, k[0], v[0], offsets=offsets)[None]

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(k.split(sizes, 1), v.split(sizes, 1), strict=True)
        return torch.cat([explicit_mixing(q, *part) for part in parts], dim=1)

    exact = tuple(t.double() for t in (q, k, v))
    wanted = differentiate(apart, exact, g.double(), torch.float64)
    rounding = rounding_errors(exact, g.double(), torch.float32, wanted, sizes=sizes).sqrt()
    for ours, truth, error in zip(differentiate(joined, (q, k, v), g, torch.float32), wanted, rounding, strict=True):
        assert (ours - truth).norm() <= 4 * error  # as few as eight numbers: drawn errors may be small by chance


@triton.jit
def _find_slices(
    offsets, found, num_meshes, num_points, slice_length, search_steps, JOINED: tl.constexpr
):  # fmt: skip
    mesh, first, count = slice_of_mesh(
        tl.program_id(0), offsets, num_meshes, num_points, slice_length, search_steps, JOINED
    )
    tl.store(found + 3 * tl.program_id(0), mesh.to(tl.int64))
    tl.store(found + 3 * tl.program_id(0) + 1, first)
    tl.store(found + 3 * tl.program_id(0) + 2, tl.maximum(count, 0).to(tl.int64))


@settings(max_examples=8, deadline=None)
@example(sizes=[(1 << 31) - 5] * 2, cuts=1, equal=True)
@given(sizes=st.lists(st.integers(1, 3 << 31), min_size=1, max_size=5), cuts=st.integers(1, 7), equal=st.booleans())
def test_slices_cover_every_mesh_once_beyond_32_bits(sizes: list[int], cuts: int, equal: bool) -> None:
    if equal:
        sizes = [sizes[0]] * len(sizes)
    ends = list(itertools.accumulate(sizes))
    length = max(1, min(ends[-1] // cuts, 1 << 30))
    slots = len(sizes) * -(-sizes[0] // length) if equal else ends[-1] // length + len(sizes)
    offsets, found = torch.tensor([0, *ends], device=DEVICE), torch.zeros(slots, 3, dtype=torch.int64, device=DEVICE)
    number = sizes[0] if equal else ends[-1]
    steps = (len(sizes) - 1).bit_length()
    _find_slices[(slots,)](offsets, found, len(sizes), number, length, steps, JOINED=not equal)
    for mesh, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        slices = [(first, count) for owner, first, count in found.tolist() if owner == mesh and count > 0]
        assert slices[0][0] == end - size
        assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(slices))
        assert sum(slices[-1]) == end
        assert all(count <= length for _, count in slices)


@triton.jit
def _find_ranges(offsets, found, num_points, slice_length):
    first, end = slices_of_mesh(tl.program_id(0), offsets, num_points, slice_length, True)
    tl.store(found + 2 * tl.program_id(0), first)
    tl.store(found + 2 * tl.program_id(0) + 1, end)


@settings(max_examples=20, deadline=None)
@example(offsets=[0, 1 << 60, -(1 << 60), 9])
@given(offsets=st.lists(st.integers(-100, 100) | st.integers(-(1 << 62), 1 << 62), min_size=2, max_size=5))
def test_wrong_offsets_cause_no_access_outside_of_the_arrays(offsets: list[int]) -> None:
    """Whatever offsets hold, programs read and write existing points and slices alone."""
    number, length, meshes = 50, 16, len(offsets) - 1
    slots, steps, wrong = number // length + meshes, (meshes - 1).bit_length(), torch.tensor(offsets, device=DEVICE)
    found, ranges = (torch.zeros(n, w, dtype=torch.int64, device=DEVICE) for n, w in ((slots, 3), (meshes, 2)))
    _find_slices[(slots,)](wrong, found, meshes, number, length, steps, JOINED=True)
    _find_ranges[(meshes,)](wrong, ranges, number, length)
    for mesh, first, count in found.tolist():
        assert 0 <= mesh < meshes
        assert 0 <= count <= length
        assert count == 0 or 0 <= first <= number - count
    assert all(first >= end or 0 <= first < end <= slots for first, end in ranges.tolist())


def test_the_same_input_gives_the_same_bits() -> None:
    q, k, v, g = sample((1, 8, 20, 120))
    first, again = (differentiate(mix, (q, k, v), g, HALVES[-1]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_inputs_may_have_any_strides() -> None:
    q, k, v, g = sample((2, 4, 16, 30))
    strange = tuple(t.transpose(0, -1).contiguous().transpose(0, -1) for t in (q, k, v))
    assert not strange[1].is_contiguous()
    plain, other = (
        differentiate(mix, t, h, torch.float32) for t, h in (((q, k, v), g), (strange, g.mT.contiguous().mT))
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_offsets_and_masks_may_have_any_strides() -> None:
    q, k, v, g = sample((2, 4, 16, 30), batch=2)
    base = torch.tensor([0, 99, 11, 99, 60], device=DEVICE)[::2]
    joined = (q, k.flatten(0, 1), v.flatten(0, 1))
    for offsets in (base, base.int()):
        assert torch.equal(mix(*joined, offsets=offsets), mix(*joined, offsets=torch.tensor([0, 11, 60])))
    wide = torch.rand(2, 60, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.7
    for mask in (wide[:, ::2], wide[:1, :30].expand(2, -1)):
        assert not mask.is_contiguous()
        plain, strange = (differentiate(mix, (q, k, v), g, torch.float32, m) for m in (mask.contiguous(), mask))
        assert all(torch.equal(a, b) for a, b in zip(plain, strange, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, HALVES[-1]])
def test_a_mesh_without_points_has_no_effect(dtype: torch.dtype) -> None:
    q, k, v, g = sample((2, 8, 20, 37), 3, 2)
    mask = torch.zeros(2, 37, dtype=torch.bool, device=DEVICE)
    mask[0] = True
    found = differentiate(mix, (q, k, v), g, dtype, mask)
    alone = differentiate(mix, (q, k[:1], v[:1]), g[:1], dtype)
    assert_close([t[:1] for t in found[:1]] + [found[1]] + [t[:1] for t in found[2:]], alone, TOLERANCE[dtype])
    assert all(t.isfinite().all() for t in found)
    assert not found[2][1].any()
    assert not found[3][1].any()


def test_a_batch_of_no_meshes_has_no_predictions() -> None:
    for name in ("triton", "sdpa"):
        model = small_model(name)
        out = model(torch.zeros(0, 5, 3, device=DEVICE))
        assert out.shape == (0, 5, 1)
        assert not any(t.any() for t in torch.autograd.grad(out.sum(), list(model.parameters())))


@pytest.mark.parametrize("api", ["old", "new"])
def test_float32_is_rounded_to_tf32_only_on_request(api: str) -> None:
    backend = torch.backends.cuda.matmul
    if api == "new" and not hasattr(backend, "fp32_precision"):
        pytest.skip("this PyTorch has only the old setting")

    def asked(precision: str) -> list[str]:
        if api == "old":
            torch.set_float32_matmul_precision({"ieee": "highest", "tf32": "high"}[precision])
        else:
            torch.backends.fp32_precision = backend.fp32_precision = precision  # type: ignore[attr-defined]
        found = []
        for dtype in (torch.float32, torch.float16):
            points = Points(torch.zeros(1, 3, 1, 4, dtype=dtype), 16, None, None)
            found.append(points.constants(*points.tiles("encode"))["PRECISION"])
        q, k, v, _ = sample((1, 4, 3, 7))
        assert mix(q, k, v).isfinite().all()
        return found

    try:
        assert asked("tf32") == ["tf32", "ieee"]
        assert asked("ieee") == ["ieee", "ieee"]
    finally:
        if api == "new":
            torch.backends.fp32_precision = backend.fp32_precision = "none"  # type: ignore[attr-defined]
        torch.set_float32_matmul_precision("highest")


def test_operators_pass_the_checks_of_torch() -> None:
    q, k, v, _ = sample((1, 4, 3, 7))
    arguments = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), None, None)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    assert set(torch.library.opcheck(mix_operator, arguments, test_utils=tests).values()) == {"SUCCESS"}
    assert [out.requires_grad for out in mix_operator(*arguments)] == [True, False, False, False]


def small_model(mixer: str, **sizes: int) -> Flare:
    torch.manual_seed(0)
    config = {"num_blocks": 1, "num_latents": 16, "num_heads": 8, "channels": 64} | sizes
    return Flare(FlareConfig(**config), mixer).to(DEVICE)  # type: ignore[arg-type]


def gradients(model: Flare, points: Tensor, *, autocast: bool) -> Tensor:
    """Output and gradients of all parameters, in one row."""
    with torch.autocast(DEVICE, dtype=HALVES[-1], enabled=autocast):
        out = model(points)
    found = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    return torch.cat([out.detach().flatten(), *(t.flatten() for t in found)])


def exact_results_and_rounding(mixer: str, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Output and gradients in float64, and the norm of the errors that rounding to a type makes."""
    model = small_model(mixer).double()
    (truth,), (error,) = spread(lambda: [gradients(model, points.double(), autocast=False)], dtype)
    return truth, error


def test_explicit_matrices_and_attention_calls_give_the_same_results() -> None:
    points = torch.randn(1, 40, 3, device=DEVICE, dtype=torch.float64)
    assert_same(*(gradients(small_model(name).double(), points, autocast=False) for name in ("reference", "sdpa")))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_with_kernels_gives_the_same_results(autocast: bool) -> None:
    points = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    wanted, error = exact_results_and_rounding("reference", points, HALVES[-1] if autocast else torch.float32)
    kernels = gradients(small_model("triton"), points, autocast=autocast)
    assert (kernels - wanted).norm() <= (1 if autocast else 2) * error < 0.25 * wanted.norm()


def test_activation_checkpoints_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flare_model.models.backbone._CHUNK", 16)
    points, kept = torch.randn(1, 40, 3, device=DEVICE), []
    for switch in (False, True):
        model = small_model("triton")
        model.activation_checkpointing = switch
        kept.append(gradients(model, points, autocast=True))
    # The sum over each chunk is rounded to the type.
    assert (kept[0] - kept[1]).norm() <= torch.finfo(HALVES[-1]).eps * kept[0].norm()
    seen: list[int] = []
    (parts,) = in_chunks(lambda part: (seen.append(part.shape[-2]) or part * 2,), points)
    assert seen == [16, 16, 8]
    assert torch.equal(parts, points * 2)


@pytest.mark.compiles
def test_compiling_breaks_no_graph() -> None:
    assert_compiles_whole(small_model("triton"), small_model("reference").double())


def test_an_empty_mesh_is_refused() -> None:
    model = small_model("triton")
    with pytest.raises(UsageError, match="every mesh needs a point"):
        model(torch.zeros(1, 0, 3, device=DEVICE))
    with pytest.raises(UsageError, match="a point or more in every mesh"):
        model(torch.zeros(9, 3, device=DEVICE), None, torch.tensor([0, 4, 4, 9]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cuda", torch.float64, 8, 16), "float16, bfloat16 and float32, not float64"),
        (("cuda", torch.bfloat16, 6, 16), "heads of 4, 8, 16, 32 channels, not of 6"),
        (("cuda", torch.bfloat16, 8, 1025), "up to 1024 latents, not 1025"),
        (("mps", torch.float32, 8, 16), "on CUDA devices .* not on mps"),
    ],
)
def test_inputs_that_the_kernels_do_not_take_are_refused(
    arguments: tuple[str, torch.dtype, int, int], words: str
) -> None:
    device, *sizes = torch.device(arguments[0]), *arguments[1:]
    with pytest.raises(UsageError, match=f"^--recipe.mixer triton asks for the kernels, .*{words}"):
        implementation.mix_by_kernels("triton", device, *sizes)
    assert not implementation.mix_by_kernels("auto", device, *sizes)
    assert support.unsupported(torch.device("cuda"), torch.bfloat16, 8, 1024) is None


@pytest.fixture
def fresh_log() -> Iterator[None]:
    implementation._warn_once.cache_clear()
    yield
    implementation._warn_once.cache_clear()


@pytest.mark.usefixtures("fresh_log")
def test_auto_uses_the_kernels_on_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flare_model.layers.backend"):
        assert implementation.mix_by_kernels("auto", CUDA, torch.bfloat16, 8, 128)
        assert implementation.network_by_kernels("auto", CUDA, torch.bfloat16, 64, 5)
    assert not caplog.records


def test_polynomials_have_their_stated_accuracy() -> None:
    """By the constants of the PTX code, which are float32; a GPU's multiply-add rounds once."""
    lines = [line for line in arithmetic._power_of_two(1).splitlines() if line.startswith("fma")]
    cubic = [struct.unpack(">f", bytes.fromhex(word))[0] for line in lines for word in re.findall("0f(.{8})", line)]
    f = torch.linspace(-0.5, 0.5, 10_001, dtype=torch.float64)
    value = torch.zeros_like(f)
    for coefficient in cubic:
        value = value * f + coefficient
    assert len(cubic) == 4
    assert ((value / 2**f) - 1).abs().max() < 7.6e-5
    assert arithmetic._power_of_two(2).count("ex2") == 2


def test_auto_uses_no_kernels_where_they_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device.index == 1 else (9, 0))
    second = torch.device("cuda:1")  # The device of the tensors counts, not the current one.
    assert implementation.mix_by_kernels("auto", CUDA, torch.bfloat16, 8, 128)
    assert not implementation.mix_by_kernels("auto", second, torch.bfloat16, 8, 128)
    with pytest.raises(UsageError, match=r"compute capability 8.0 or more, and this one has 7.5"):
        implementation.mix_by_kernels("triton", second, torch.bfloat16, 8, 128)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    for memory, taken in ((101_376, False), (232_448, True)):
        device = SimpleNamespace(shared_memory_per_block_optin=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=device: found)
        assert implementation.mix_by_kernels("auto", CUDA, torch.bfloat16, 8, 128)
        assert implementation.network_by_kernels("auto", CUDA, torch.bfloat16, 64, 5) is taken
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not implementation.mix_by_kernels("auto", CUDA, torch.bfloat16, 8, 128)


def test_autocast_does_not_change_float64() -> None:
    x = torch.zeros(2, dtype=torch.float64, device=DEVICE)
    with torch.autocast(DEVICE, dtype=HALVES[-1]):
        assert implementation.compute_dtype(x) == torch.float64
        assert implementation.compute_dtype(x.float()) == HALVES[-1]


@pytest.mark.usefixtures("fresh_log")
def test_falling_back_to_attention_calls_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flare_model.layers.backend"):
        for _ in range(3):
            assert not implementation.mix_by_kernels("auto", CUDA, torch.float64, 8, 16)
            assert not implementation.network_by_kernels("triton", CUDA, torch.bfloat16, 80, 5)
            assert not implementation.network_by_kernels("auto", CUDA, torch.bfloat16, 64, 6)
            assert not implementation.network_by_kernels("sdpa", CUDA, torch.float32, 64, 5)
    aside = "pointwise networks by PyTorch's operators instead of the kernels: they take networks of "
    assert [r.message for r in caplog.records] == [
        "mixing by attention calls instead of the kernels: they take float16, bfloat16 and float32, not float64",
        f"{aside}64 or 128 channels, not of 80",
        f"{aside}up to 5 layers, the first and the last among them, not of 6",
    ]
    assert all(r.levelno == logging.WARNING for r in caplog.records)


@pytest.mark.usefixtures("fresh_log")
def test_without_triton_attention_calls_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(kernels, "support")
    monkeypatch.setitem(sys.modules, "flare_model.kernels.support", None)
    with caplog.at_level(logging.WARNING, "flare_model.layers.backend"):
        assert not implementation.mix_by_kernels("auto", CUDA, torch.bfloat16, 8, 16)
        assert not implementation.network_by_kernels("triton", CUDA, torch.bfloat16, 64, 5)
    assert len(caplog.records) == 2
    assert all("Triton 3.6 or newer is not installed here" in r.message for r in caplog.records)
    with pytest.raises(UsageError, match=r"asks for the kernels, but Triton 3\.6 or newer is not installed here"):
        implementation.mix_by_kernels("triton", CUDA, torch.bfloat16, 8, 16)


def test_a_cpu_uses_attention_calls_unless_set_otherwise() -> None:
    assert not implementation.mix_by_kernels("auto", torch.device("cpu"), torch.float32, 8, 16)
    assert not implementation.network_by_kernels("auto", torch.device("cpu"), torch.float16, 64, 5)
    assert not implementation.mix_by_kernels("sdpa", CUDA, torch.bfloat16, 8, 16)
    with pytest.raises(UsageError, match="mixer must be one of auto, sdpa, triton, reference, not 'fast'"):
        Flare(mixer="fast")  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match=r"--recipe.mixer sdpa is for FLARE and FLARE\+\+; Transformer mixes in one way alone"
    ):
        mix_by(Transformer(), "sdpa")


def test_the_reference_mixes_by_explicit_matrices() -> None:
    q, k, v, _ = sample((2, 4, 6, 11))
    ours = mix_explicitly(q.double(), k.double().transpose(1, 2), v.double().transpose(1, 2))
    assert_same(ours.transpose(1, 2), explicit_mixing(q.double(), k.double(), v.double()))
    assert F.cosine_similarity(ours.flatten(), v.double().transpose(1, 2).flatten(), dim=0) < 0.99
