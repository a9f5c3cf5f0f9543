"""The GPU's kernels against explicit softmax in float64; without a GPU in Triton's interpreter, on small shapes."""

from __future__ import annotations

import itertools
import logging
import re
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which is there for Linux alone")

import triton
import triton.language as tl

from flare_model import implementation
from flare_model.backbone import in_chunks
from flare_model.kernels import arithmetic, support
from flare_model.kernels.meshes import slice_of_mesh
from flare_model.kernels.mixing import mix, mix_operator
from flare_model.kernels.tuning import INTERPRETED
from flare_model.mixer import mix as mix_by_attention
from flare_model.mixer import mix_explicitly
from flare_model.model import Flare, FlareConfig
from lpbf_data.errors import UsageError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Products of bfloat16 are wrong in the interpreter of some versions.
HALVES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}

pytestmark = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and TRITON_INTERPRET=0")

# Heads, channels a head, latents, points: no multiples of tiles, and a few that are.
SHAPES = [(2, 4, 20, 45), (2, 8, 16, 64), (1, 16, 40, 33), (1, 32, 5, 17), (2, 8, 33, 50)]


def explicit(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, N, H, D] by matrices of softmax, written out."""
    scores = torch.einsum("hmd,bnhd->bhmn", queries, keys)
    among_points = scores if mask is None else scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    encoded = among_points.softmax(-1) @ values.transpose(1, 2)
    return (scores.softmax(-2).transpose(-1, -2) @ encoded).transpose(1, 2)


def by_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    return mix_by_attention(queries, keys.transpose(1, 2), values.transpose(1, 2), mask).transpose(1, 2)


def sample(
    shape: tuple[int, int, int, int], seed: int = 0, batch: int = 1, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and a gradient of the output."""
    heads, depth, latents, points = shape
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads, latents, depth), *[(batch, points, heads, depth)] * 3]
    q, k, v, g = (torch.randn(s, generator=generator).to(DEVICE) for s in shapes)
    return q * scale, k, v, g


def differentiate(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], gradient: Tensor, dtype: torch.dtype, *more: object
) -> list[Tensor]:
    """The output and the gradients, of a function of inputs rounded to a type, in float64."""
    leaves = [t.to(dtype).detach().requires_grad_() for t in inputs]
    out = function(*leaves, *more)
    return [t.double() for t in (out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out.dtype)))]


def oracle(inputs: tuple[Tensor, ...], gradient: Tensor, dtype: torch.dtype, *more: object) -> list[Tensor]:
    """The same by explicit softmax in float64, of the same rounded inputs."""
    rounded = tuple(t.to(dtype).double() for t in inputs)
    return differentiate(explicit, rounded, gradient.to(dtype).double(), torch.float64, *more)


def assert_close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for name, ours, truth in zip(("output", "queries", "keys", "values"), found, wanted, strict=False):
        assert ours.isfinite().all(), name
        # Gradients that cancel exactly, as where all points are one, are known to the rounding of their terms.
        assert (ours - truth).norm() <= tolerance * max(truth.norm(), 0.05 * ours[0].numel() ** 0.5), name


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_errors_are_no_larger_than_those_of_attention(dtype: torch.dtype) -> None:
    """Relative L2 over all shapes and ten seeds; in the interpreter each seed has one shape."""
    squares = {"kernels": torch.zeros(4), "attention": torch.zeros(4)}
    pairs = list(itertools.product(SHAPES, range(10))) if DEVICE == "cuda" else [(SHAPES[s % 5], s) for s in range(10)]
    for shape, seed in pairs:
        q, k, v, g = sample(shape, seed)
        truth = oracle((q, k, v), g, dtype)
        for name, function in (("kernels", mix), ("attention", by_attention)):
            found = differentiate(function, (q, k, v), g, dtype)
            squares[name] += torch.tensor(
                [((a - b).norm() / b.norm()).square() for a, b in zip(found, truth, strict=True)]
            )
    assert (squares["kernels"].sqrt() <= 1.1 * squares["attention"].sqrt()).all(), squares
    assert (squares["kernels"] / len(pairs)).sqrt().max() < TOLERANCE[dtype]


def test_rounding_cancels_over_the_points() -> None:
    """Where the gradient has a mean, a Δ that doesn't see dZ as the products do would double the error."""
    squares = torch.zeros(2, 4)
    for seed in range(2):
        q, k, v, g = sample((1, 8, 16, 240), seed)
        truth = oracle((q, k, v), g + 0.5, HALVES[-1])
        for row, function in zip(squares, (mix, by_attention), strict=True):
            found = differentiate(function, (q, k, v), g + 0.5, HALVES[-1])
            row.add_(torch.tensor([((a - b).norm() / b.norm()).square() for a, b in zip(found, truth, strict=True)]))
    kernels, attention = squares.sqrt()
    assert (kernels <= 1.1 * attention).all()
    if DEVICE == "cpu":  # The attention calls of a CPU make this error.
        assert (kernels[1:3] < 0.75 * attention[1:3]).all()


@pytest.mark.parametrize("dtype", [torch.float32, HALVES[-1]])
@pytest.mark.parametrize("name", ["extreme", "constant", "one point", "one latent", "masked", "several tiles"])
def test_awkward_inputs(name: str, dtype: torch.dtype) -> None:
    shape = {
        "one point": (1, 8, 5, 1), "one latent": (2, 4, 1, 40), "several tiles": (1, 8, 70, 20),
    }.get(name, (2, 8, 20, 37))  # fmt: skip
    batch = 2 if name == "masked" else 1
    q, k, v, g = sample(shape, 3, batch)
    mask = None
    if name == "extreme":  # Scores of about ±1e4: nearly every weight is 0 or 1.
        q, k = q * 60, k * 60
    if name == "constant":
        q, k, v = (torch.full_like(t, 0.25) for t in (q, k, v))
    if name == "masked":
        mask = torch.arange(37, device=DEVICE) < torch.tensor([[37], [9]], device=DEVICE)
        g = g * mask[:, :, None, None]
    found = differentiate(mix, (q, k, v), g, dtype, mask)
    truth = oracle((q, k, v), g, dtype, mask)
    if mask is not None:
        found[0], truth[0] = found[0][mask], truth[0][mask]
    if name != "extreme":
        assert_close(found, truth, 2 * TOLERANCE[dtype])
        return
    # A score of 1e4 is itself known to 1e-3 in float32; gradients of scores vanish but for near ties of two.
    assert_close([found[0], found[3]], [truth[0], truth[3]], 1e-2)
    scale = g.norm() * v.norm() * 60
    assert all(ours.isfinite().all() for ours in found)
    assert all((found[i] - truth[i]).norm() <= 1e-2 * scale for i in (1, 2))


@settings(max_examples=5, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_joined_meshes_never_meet(sizes: list[int]) -> None:
    q, k, v, g = sample((1, 8, 16, sum(sizes)), len(sizes))
    offsets = torch.tensor([0, *itertools.accumulate(sizes)], device=DEVICE)

    def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mix(q, k[0], v[0], offsets=offsets)[None]

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(k.split(sizes, 1), v.split(sizes, 1), strict=True)
        return torch.cat([explicit(q, *part) for part in parts], dim=1)

    wanted = differentiate(apart, tuple(t.double() for t in (q, k, v)), g.double(), torch.float64)
    assert_close(differentiate(joined, (q, k, v), g, torch.float32), wanted, 3e-5)


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


def test_the_same_input_gives_the_same_bits() -> None:
    q, k, v, g = sample((1, 8, 20, 120))
    first, again = (differentiate(mix, (q, k, v), g, HALVES[-1]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_memory_may_lie_in_any_order() -> None:
    q, k, v, g = sample((2, 4, 16, 30))
    strange = tuple(t.transpose(0, -1).contiguous().transpose(0, -1) for t in (q, k, v))
    assert not strange[1].is_contiguous()
    plain, other = (
        differentiate(mix, t, h, torch.float32) for t, h in (((q, k, v), g), (strange, g.mT.contiguous().mT))
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_torch_finds_nothing_wrong_with_the_operators() -> None:
    q, k, v, _ = sample((1, 4, 3, 7))
    arguments = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), None, None)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    assert set(torch.library.opcheck(mix_operator, arguments, test_utils=tests).values()) == {"SUCCESS"}


def small(mixer: str, **sizes: int) -> Flare:
    torch.manual_seed(0)
    config = {"num_blocks": 1, "num_latents": 16, "num_heads": 8, "channels": 64} | sizes
    return Flare(FlareConfig(**config, mixer=mixer)).to(DEVICE)  # type: ignore[arg-type]


def gradients(model: Flare, points: Tensor, *, autocast: bool) -> Tensor:
    with torch.autocast(DEVICE, dtype=HALVES[-1], enabled=autocast):
        out = model(points)
    found = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    return torch.cat([out.detach().flatten(), *(t.flatten() for t in found)])


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_with_kernels_is_the_same_model(autocast: bool) -> None:
    points = torch.randn(1, 40, 3, device=DEVICE)
    wanted = gradients(small("sdpa"), points, autocast=False)
    reference = gradients(small("reference"), points, autocast=False)
    assert (reference - wanted).norm() < 1e-5 * wanted.norm()
    kernels = gradients(small("triton"), points, autocast=autocast)
    if autocast:
        rounding = (gradients(small("sdpa"), points, autocast=True) - wanted).norm()
        assert (kernels - wanted).norm() < 2 * rounding < 0.2 * wanted.norm()
    else:
        assert (kernels - wanted).norm() < 1e-5 * wanted.norm()


def test_checkpoints_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flare_model.backbone._CHUNK", 16)
    points, kept = torch.randn(1, 40, 3, device=DEVICE), []
    for switch in (False, True):
        model = small("triton")
        model.activation_checkpointing = switch
        kept.append(gradients(model, points, autocast=True))
    assert (kept[0] - kept[1]).norm() < TOLERANCE[HALVES[-1]] / 4 * kept[0].norm()
    seen: list[int] = []
    (parts,) = in_chunks(lambda part: (seen.append(part.shape[-2]) or part * 2,), points)
    assert seen == [16, 16, 8]
    torch.testing.assert_close(parts, points * 2)


def test_compiling_breaks_no_graph_and_meets_no_host() -> None:
    torch.compiler.reset()
    model = small("triton")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    points, offsets = torch.randn(30, 3, device=DEVICE), torch.tensor([0, 9, 30], device=DEVICE)
    wanted = torch.cat([model(points[:9]), model(points[9:])])
    out = compiled(points, None, offsets)
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-4)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_empty_case_is_refused() -> None:
    model = small("triton")
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
def test_what_the_kernels_do_not_take(arguments: tuple[str, torch.dtype, int, int], words: str) -> None:
    with pytest.raises(UsageError, match=f"^--model.init_args.config.mixer triton asks for the kernels, .*{words}"):
        implementation.mix_by_kernels("triton", *arguments)
    assert not implementation.mix_by_kernels("auto", *arguments)
    assert support.unsupported("cuda", torch.bfloat16, 8, 1024) is None


@pytest.fixture
def fresh_log() -> Iterator[None]:
    implementation._log_once.cache_clear()
    yield
    implementation._log_once.cache_clear()


@pytest.mark.usefixtures("fresh_log")
def test_auto_takes_the_kernels_on_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flare_model.implementation"):
        assert implementation.mix_by_kernels("auto", "cuda", torch.bfloat16, 8, 128)
        assert implementation.network_by_kernels("auto", "cuda", torch.bfloat16, 64, 5)
    assert not caplog.records


def test_polynomials_are_as_near_as_they_say() -> None:
    """The constants as they stand in the machine's language, in float32, where a GPU's multiply-add rounds once."""
    lines = [line for line in arithmetic._power_of_two(1).splitlines() if line.startswith("fma")]
    cubic = [struct.unpack(">f", bytes.fromhex(word))[0] for line in lines for word in re.findall("0f(.{8})", line)]
    f = torch.linspace(-0.5, 0.5, 10_001, dtype=torch.float64)
    value = torch.zeros_like(f)
    for coefficient in cubic:
        value = value * f + coefficient
    assert len(cubic) == 4
    assert ((value / 2**f) - 1).abs().max() < 7.6e-5
    assert arithmetic._power_of_two(2).count("ex2") == 2


def test_auto_leaves_kernels_out_where_they_do_not_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert not implementation.mix_by_kernels("auto", "cuda", torch.bfloat16, 8, 128)
    with pytest.raises(UsageError, match=r"compute capability 8.0 or more, and this one has 7.5"):
        implementation.mix_by_kernels("triton", "cuda", torch.bfloat16, 8, 128)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    for memory, taken in ((101_376, False), (232_448, True)):
        device = SimpleNamespace(shared_memory_per_block_optin=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=device: device)
        assert implementation.mix_by_kernels("auto", "cuda", torch.bfloat16, 8, 128)
        assert implementation.network_by_kernels("auto", "cuda", torch.bfloat16, 64, 5) is taken
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not implementation.mix_by_kernels("auto", "cuda", torch.bfloat16, 8, 128)


def test_autocast_leaves_float64_alone() -> None:
    x = torch.zeros(2, dtype=torch.float64, device=DEVICE)
    with torch.autocast(DEVICE, dtype=HALVES[-1]):
        assert implementation.compute_dtype(x) == torch.float64
        assert implementation.compute_dtype(x.float()) == HALVES[-1]


@pytest.mark.usefixtures("fresh_log")
def test_falling_back_on_a_gpu_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flare_model.implementation"):
        for _ in range(3):
            assert not implementation.mix_by_kernels("auto", "cuda", torch.float64, 8, 16)
    assert [r.message for r in caplog.records] == [
        "mixing by two attention calls instead of the kernels: they take float16, bfloat16 and float32, not float64"
    ]


def test_a_cpu_takes_the_attention_calls_unless_told_otherwise() -> None:
    assert not implementation.mix_by_kernels("auto", "cpu", torch.float32, 8, 16)
    assert not implementation.network_by_kernels("auto", "cpu", torch.float16, 64, 5)
    assert not implementation.mix_by_kernels("sdpa", "cuda", torch.bfloat16, 8, 16)
    with pytest.raises(UsageError, match="mixer must be one of auto, sdpa, triton, reference, not 'fast'"):
        FlareConfig(mixer="fast")  # type: ignore[arg-type]


def test_the_reference_is_written_out() -> None:
    q, k, v, _ = sample((2, 4, 6, 11))
    ours = mix_explicitly(q.double(), k.double().transpose(1, 2), v.double().transpose(1, 2))
    torch.testing.assert_close(ours.transpose(1, 2), explicit(q.double(), k.double(), v.double()))
    assert F.cosine_similarity(ours.flatten(), v.double().transpose(1, 2).flatten(), dim=0) < 0.99
