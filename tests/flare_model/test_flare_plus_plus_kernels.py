"""FLARE++ by kernels: latent queries that depend on the mesh, and gradients through the call that computes them.

Errors against its formulas in float64 are compared with those that rounding makes. Without a GPU the kernels run in
Triton's interpreter, on small shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="the kernels need Triton, which is there for Linux alone")

from flare_model.checkpoints.spec import spec_of
from flare_model.kernels.encoding import encode_operator
from flare_model.kernels.mixing import mix, mix_operator
from flare_model.kernels.tuning import INTERPRETED
from flare_model.layers.flare_plus_plus_mixer import FlarePlusPlusMixer
from flare_model.layers.layout import Layout
from flare_model.layers.mixer import mix_by
from flare_model.models.flare_plus_plus import FlarePlusPlus, FlarePlusPlusConfig
from flare_model.sizes import Implementation
from lpbf_data.errors import UsageError
from tests.flare_model.kernel_support import (
    DEVICE,
    HALVES,
    TOLERANCE,
    assert_close,
    assert_compiles_whole,
    differentiate,
    explicit_mixing,
    explicit_plus_plus_mixing,
    sample,
)
from tests.flare_model.test_kernel_errors import ROUNDINGS
from tests.rounding import assert_same, plus_errors, rounding_errors, spread

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and TRITON_INTERPRET=0"),
]

Function = Callable[..., Tensor]
Shape = tuple[int, int, int, int]

# Heads, channels a head, latents, points; and the layout of the meshes.
CASES: dict[str, tuple[Shape, dict[str, Any]]] = {
    "single": ((2, 8, 16, 40), {}),
    "ragged": ((1, 8, 32, 50), {"sizes": [17, 1, 32]}),
    "several passes, ragged": ((1, 16, 40, 37), {"sizes": [20, 17]}),
    "narrow heads, several": ((2, 4, 16, 18), {"batch": 2}),
    "wide heads": ((1, 32, 5, 33), {}),
    "masked": ((1, 8, 20, 37), {"lengths": [37, 9]}),
    # The score of a point that doesn't exist, 0, is far larger than all others.
    "negative, ragged": ((1, 8, 20, 21), {"sizes": [20, 1]}),
    # Logsumexps differ widely between meshes, and so may the paths that their gradients can take.
    "logsumexps far apart, ragged": ((1, 8, 16, 48), {"sizes": [16, 16, 16]}),
}
LIKE_OTHERS = ("several passes, ragged", "narrow heads, several", "logsumexps far apart, ragged")
# Sizes of the published models and others, for a GPU.
LARGE = [(8, 16, 64, 5000), (8, 16, 128, 3001), (8, 8, 256, 3000), (2, 32, 600, 2100)]


def draw_inputs(shape: Shape, seed: int, batch: int = 1) -> tuple[tuple[Tensor, ...], Tensor]:
    """Seeds, learned queries, gates, the vectors that seeds attend to, keys, values; and a gradient of the output."""
    fixed, keys, values, gradient = sample(shape, seed, batch)
    seeds, seen, _, _ = sample(shape, seed + 100, batch)
    gates = torch.randn(shape[0], generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    return (seeds, fixed, gates, seen, keys, values), gradient


def inputs_of(name: str, seed: int) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Any]]:
    """Inputs and gradient of one of CASES, and the layout of its meshes: `mask` or `sizes`."""
    shape, lie = CASES[name]
    lengths = lie.get("lengths")
    (seeds, fixed, gates, seen, keys, values), gradient = draw_inputs(
        shape, seed, lie.get("batch", len(lengths or [1]))
    )
    if name.startswith("negative"):
        seeds, fixed, seen, keys = seeds.abs() * 20, fixed.abs() * 20, -seen.abs() * 9, -keys.abs() * 9
    if name.startswith("logsumexps"):
        keys = keys * torch.tensor([0.5, 0.2, 9.0], device=DEVICE).repeat_interleave(16)[:, None, None]
    if lengths:
        mask = torch.arange(shape[3], device=DEVICE) < torch.tensor(lengths, device=DEVICE)[:, None]
        return (seeds, fixed, gates, seen, keys, values), gradient, {"mask": mask}
    return (seeds, fixed, gates, seen, keys, values), gradient, {"sizes": lie["sizes"]} if "sizes" in lie else {}


def by_layer(implementation: Implementation, mask: Tensor | None = None, sizes: list[int] | None = None) -> Function:
    """The mixing of the layer itself, for seeds and queries that are already normalised."""

    def mixed(seeds: Tensor, fixed: Tensor, gates: Tensor, *points: Tensor) -> Tensor:
        heads, latents, depth = seeds.shape
        mixer = FlarePlusPlusMixer(heads * depth, heads, latents, implementation=implementation)
        mixer.plain_norm = mixer.seed_norm = nn.Identity()
        for name, tensor in (("latent_seeds", seeds), ("latent_queries", fixed), ("gates", gates)):
            delattr(mixer, name)
            setattr(mixer, name, tensor)
        flat = [t.flatten(-2) for t in points]
        if sizes is not None:
            offsets = torch.tensor([0, *itertools.accumulate(sizes)])
            out = mixer.mix(*(t[0] for t in flat), layout=Layout.of(flat[0][0], offsets, None))[None]
        else:
            out = mixer.mix(*flat, layout=Layout(mask=mask))
        out = out.unflatten(-1, (heads, depth))
        return out if mask is None else out * mask[:, :, None, None]

    return mixed


def by_formulas(mask: Tensor | None = None, sizes: list[int] | None = None) -> Function:
    """The formulas, one mesh after the other."""

    def mixed(seeds: Tensor, fixed: Tensor, gates: Tensor, *points: Tensor) -> Tensor:
        if sizes is None:
            out = explicit_plus_plus_mixing(seeds, fixed, gates, *points, mask=mask)  # type: ignore[misc]
            return out if mask is None else out * mask[:, :, None, None]
        cut = zip(*(t.split(sizes, 1) for t in points), strict=True)
        return torch.cat([explicit_plus_plus_mixing(seeds, fixed, gates, *part) for part in cut], dim=1)

    return mixed


def output_and_gradients(
    function: Function, inputs: tuple[Tensor, ...], gradient: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Output and gradients of all inputs; inputs at points are in the type, learned ones in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    leaves = [t.to(dtype if i > 2 else wide).detach().requires_grad_() for i, t in enumerate(inputs)]
    out = function(*leaves)
    return [t.double() for t in (out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out.dtype)))]


def rounded_in_float64(
    inputs: tuple[Tensor, ...], gradient: Tensor, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The same numbers in float64, where inputs at points were rounded to the type."""
    return tuple((t.to(dtype) if i > 2 else t).double() for i, t in enumerate(inputs)), gradient.to(dtype).double()


def squared_errors(found: list[Tensor], truth: list[Tensor]) -> Tensor:
    assert all(t.isfinite().all() for t in found)
    return torch.stack([(a - b).square().sum() for a, b in zip(found, truth, strict=True)]).cpu()


# In float32 one case of each layout of meshes is in the fast suite.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=pytest.mark.slow if dtype == torch.float32 and name in LIKE_OTHERS else ())
        for name in CASES
        for dtype in (torch.float32, *HALVES)
    ],
)
# Rows of tiles where there is no latent may overflow; their results are not used.
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered in matmul")
def test_errors_are_at_most_those_of_rounding(name: str, dtype: torch.dtype) -> None:
    """Errors of output and gradients, also those of seeds, learned queries and gates."""
    errors = torch.zeros(2, 7, dtype=torch.float64)
    for seed in range(10 if DEVICE == "cuda" else 1):
        inputs, gradient, lie = inputs_of(name, seed)
        exact, g = rounded_in_float64(inputs, gradient, dtype)
        truth = output_and_gradients(by_formulas(**lie), exact, g, torch.float64)
        errors[0] += squared_errors(output_and_gradients(by_layer("triton", **lie), inputs, gradient, dtype), truth)
        errors[1] += plus_errors(exact, g, dtype, truth, **lie)
    ours, rounding = errors.sqrt()
    assert (ours <= ROUNDINGS[dtype] * rounding).all(), (ours, rounding)


@pytest.mark.parametrize("name", CASES)
def test_explicit_matrices_and_attention_calls_compute_the_formulas(name: str) -> None:
    inputs, gradient, lie = inputs_of(name, 0)
    exact, g = rounded_in_float64(inputs, gradient, torch.float64)
    wanted = output_and_gradients(by_formulas(**lie), exact, g, torch.float64)
    ways: tuple[Implementation, ...] = ("reference", "sdpa")
    for way in ways:
        assert_same(output_and_gradients(by_layer(way, **lie), exact, g, torch.float64), wanted)


FAULTS = ["queries of the first mesh", "no gradient into the first call", "the seeds' values have no gradient"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_bound_separates_faults_from_rounding(fault: str) -> None:
    """With faults that kernels of FLARE++ could have, and those of FLARE could not."""
    inputs, gradient, lie = inputs_of("ragged", 0)
    exact, g = rounded_in_float64(inputs, gradient, HALVES[-1])
    truth = output_and_gradients(by_formulas(**lie), exact, g, torch.float64)

    def faulty(seeds: Tensor, fixed: Tensor, gates: Tensor, *points: Tensor) -> Tensor:
        scale, parts, kept = seeds.shape[-1] ** -0.5, [], None
        for seen, keys, values in zip(*(t.split(lie["sizes"], 1) for t in points), strict=True):
            looked = seen.detach() if fault == FAULTS[2] else seen
            weights = (torch.einsum("hmd,bnhd->bhmn", seeds, seen) * scale).softmax(-1)
            moved = weights @ looked.transpose(1, 2)
            kept = moved if kept is None else kept
            used = kept if fault == FAULTS[0] else moved.detach() if fault == FAULTS[1] else moved
            # So that every input has a gradient, though it may be zero.
            q = (fixed + used * gates.sigmoid()[:, None, None] + 0 * moved) * scale
            parts.append(explicit_mixing(q, keys, values))
        return torch.cat(parts, dim=1)

    errors = squared_errors(output_and_gradients(faulty, exact, g, torch.float64), truth).sqrt()
    assert (errors > ROUNDINGS[HALVES[-1]] * plus_errors(exact, g, HALVES[-1], truth, **lie).sqrt()).any()


@pytest.mark.skipif(DEVICE == "cpu", reason="a comparison with a GPU's attention")
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_errors_are_hardly_larger_than_those_of_attention(shape: Shape, dtype: torch.dtype) -> None:
    """On a GPU, over ten seeds, for a single mesh and for three that are joined."""
    errors, points = torch.zeros(2, 7, dtype=torch.float64), shape[3]
    for seed in range(10):
        inputs, gradient = draw_inputs(shape, seed)
        lie: dict[str, Any] = {"sizes": [points // 2, points - points // 2 - 1, 1]} if seed % 2 else {}
        exact, g = rounded_in_float64(inputs, gradient, dtype)
        truth = output_and_gradients(by_formulas(**lie), exact, g, torch.float64)
        ways: tuple[Implementation, ...] = ("triton", "sdpa")
        for row, way in zip(errors, ways, strict=True):
            row.add_(squared_errors(output_and_gradients(by_layer(way, **lie), inputs, gradient, dtype), truth))
    kernels, attention = errors.sqrt()
    # Gates are one number a head: with so few, either may have the smaller errors by chance.
    factor = torch.tensor([1.1, 1.1, 1.1, 2.0, 1.1, 1.1, 1.1])
    assert (kernels <= factor * attention).all(), errors


@pytest.mark.parametrize(("dtype", "sizes"), [(torch.float32, None), *((t, [10, 1, 9]) for t in HALVES)], ids=str)
def test_each_mesh_may_have_its_own_queries(dtype: torch.dtype, sizes: list[int] | None) -> None:
    """FLARE's kernels then give what each mesh gives alone, and a gradient of each mesh's queries."""
    batch = 2 if sizes is None else 1
    _, k, v, g = sample((1, 8, 20, 20), batch=batch)
    q = torch.randn(batch if sizes is None else len(sizes), 1, 20, 8, generator=torch.Generator().manual_seed(1))
    inputs = (q.to(DEVICE), k, v)

    def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if sizes is None:
            return mix(q, k, v)
        return mix(q, k[0], v[0], offsets=torch.tensor([0, *itertools.accumulate(sizes)]))[None]

    def apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if sizes is None:
            return explicit_mixing(q, k, v)
        cut = zip(q.split(1), k.split(sizes, 1), v.split(sizes, 1), strict=True)
        return torch.cat([explicit_mixing(*part) for part in cut], dim=1)

    exact, wide = (
        cast("tuple[Tensor, Tensor, Tensor]", tuple(t.to(dtype).double() for t in inputs)),
        g.to(dtype).double(),
    )
    truth = differentiate(apart, exact, wide, torch.float64)
    found = differentiate(mixed, inputs, g, dtype)
    assert found[1].shape == q.shape
    rounding = rounding_errors(exact, wide, dtype, truth, sizes=sizes).sqrt()
    assert (squared_errors(found, truth).sqrt() <= ROUNDINGS[dtype] * rounding).all()


def test_shared_queries_give_the_same_as_equal_queries_of_each_mesh() -> None:
    """The same bits; the gradient of shared queries is the sum over the meshes."""
    q, k, v, g = sample((1, 8, 16, 20), batch=2)
    together = differentiate(mix, (q, k, v), g, HALVES[-1])
    apart = differentiate(mix, (q.expand(2, -1, -1, -1), k, v), g, HALVES[-1])
    for one, other in zip(together[:1] + together[2:], apart[:1] + apart[2:], strict=True):
        assert torch.equal(one, other)
    assert_close([together[1]], [apart[1].sum(0)], TOLERANCE[HALVES[-1]])


def test_the_same_input_gives_the_same_bits_in_any_order_of_meshes() -> None:
    """Repeated, and with meshes in another order; with points in another order results are the same up to rounding."""
    sizes = [16, 9]
    inputs, g = draw_inputs((1, 8, 16, sum(sizes)), 0)
    first, again = (output_and_gradients(by_layer("triton", sizes=sizes), inputs, g, HALVES[-1]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    moved = [torch.cat(t.split(sizes, 1)[::-1], dim=1) for t in (*inputs[3:], g)]
    turned = output_and_gradients(
        by_layer("triton", sizes=sizes[::-1]), (*inputs[:3], *moved[:3]), moved[3], HALVES[-1]
    )
    for one, other in zip(first[:1] + first[4:], turned[:1] + turned[4:], strict=True):
        assert torch.equal(one, torch.cat(other.split(sizes[::-1], 1)[::-1], dim=1))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    order = torch.cat([order, torch.arange(16, sum(sizes), device=DEVICE)])
    mixed = [t[:, order] for t in (*inputs[3:], g)]
    shuffled = output_and_gradients(by_layer("triton", sizes=sizes), (*inputs[:3], *mixed[:3]), mixed[3], HALVES[-1])
    wanted = [t[:, order] if i == 0 or i > 3 else t for i, t in enumerate(first)]
    assert_close(shuffled, wanted, TOLERANCE[HALVES[-1]])


def test_a_mesh_without_points_has_no_effect() -> None:
    inputs, g = draw_inputs((1, 8, 20, 21), 0, 2)
    mask = torch.zeros(2, 21, dtype=torch.bool, device=DEVICE)
    mask[0] = True
    found = output_and_gradients(by_layer("triton", mask=mask), inputs, g, torch.float32)
    alone = output_and_gradients(by_layer("triton"), (*inputs[:3], *(t[:1] for t in inputs[3:])), g[:1], torch.float32)
    assert all(t.isfinite().all() for t in found)
    assert not any(t[1].any() for t in found[4:5])
    assert_close([t[:1] if i == 0 or i > 3 else t for i, t in enumerate(found)], alone, TOLERANCE[torch.float32])


def test_operators_pass_the_checks_of_torch() -> None:
    q, k, v, _ = sample((1, 4, 3, 7))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    offsets = torch.tensor([0, 3, 7], device=DEVICE)
    own = q.expand(2, -1, -1, -1).contiguous().requires_grad_()
    for operator, arguments in (
        (encode_operator, (q.requires_grad_(), k.requires_grad_(), None, None)),
        (encode_operator, (q, k, None, offsets)),
        (mix_operator, (own, k, v.requires_grad_(), None, offsets)),
    ):
        found = torch.library.opcheck(operator, arguments, test_utils=tests)
        assert set(found.values()) == {"SUCCESS"}
    assert [out.requires_grad for out in encode_operator(q, k, None, None)] == [True, False]


def small_model(mixer: Implementation, **sizes: int) -> FlarePlusPlus:
    torch.manual_seed(0)
    config = {"num_blocks": 1, "num_latents": 16, "num_heads": 2, "channels": 16} | sizes
    return FlarePlusPlus(FlarePlusPlusConfig(**config), mixer).to(DEVICE)  # type: ignore[arg-type]


def gradients(model: nn.Module, points: Tensor, offsets: Tensor | None, *, autocast: bool) -> Tensor:
    """Output and gradients of all parameters, in one row."""
    with torch.autocast(DEVICE, dtype=HALVES[-1], enabled=autocast):
        out = model(points, None, offsets)
    found = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    return torch.cat([out.detach().flatten(), *(t.flatten() for t in found)])


@pytest.mark.parametrize(
    ("autocast", "offsets"),
    [
        pytest.param(False, None, id="False-single"),
        pytest.param(True, [0, 9, 40], id="True-ragged"),
        # Each precision with the other layout of meshes.
        pytest.param(False, [0, 9, 40], id="False-ragged", marks=pytest.mark.slow),
        pytest.param(True, None, id="True-single", marks=pytest.mark.slow),
    ],
)
def test_a_model_with_kernels_gives_the_same_results(autocast: bool, offsets: list[int] | None) -> None:
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    joined, exact = None if offsets is None else torch.tensor(offsets), small_model("reference").double()
    (wanted,), (error,) = spread(
        lambda: [gradients(exact, points.double(), joined, autocast=False)], HALVES[-1] if autocast else torch.float32
    )
    found = gradients(small_model("triton"), points, joined, autocast=autocast)
    assert (found - wanted).norm() <= (1 if autocast else 2) * error < 0.25 * wanted.norm()


@pytest.mark.slow  # FLARE's backbone, which the fast suite tries with its own kernels
def test_activation_checkpoints_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flare_model.models.backbone._CHUNK", 16)
    points, kept = torch.randn(1, 40, 3, generator=torch.Generator().manual_seed(0)).to(DEVICE), []
    for switch in (False, True):
        model = small_model("triton")
        model.activation_checkpointing = switch
        kept.append(gradients(model, points, None, autocast=True))
    # The sum over each chunk is rounded to the type.
    assert (kept[0] - kept[1]).norm() <= torch.finfo(HALVES[-1]).eps * kept[0].norm()


@pytest.mark.slow
@pytest.mark.compiles
def test_compiling_breaks_no_graph() -> None:
    assert_compiles_whole(small_model("triton"), small_model("reference").double())


def test_kernels_are_chosen_and_refused_like_those_of_flare() -> None:
    model, points = small_model("auto"), torch.zeros(1, 9, 3, device=DEVICE)
    spec = spec_of(model)
    mix_by(model, "triton")
    mixer = model.blocks[0].mixer
    assert (mixer.implementation, spec_of(model)) == ("triton", spec)
    no_meshes = model(torch.zeros(0, 5, 3, device=DEVICE))
    assert no_meshes.shape == (0, 5, 1)
    with pytest.raises(UsageError, match="every mesh needs a point"):
        model(points[:, :0])
    with pytest.raises(
        UsageError, match=r"--recipe.mixer triton asks for the kernels, but they take heads of 4, 8, 16, 32"
    ):
        small_model("triton", channels=12)(points)
    with pytest.raises(UsageError, match="they take float16, bfloat16 and float32, not float64"):
        model.double()(points.double())
    with pytest.raises(UsageError, match="mixer must be one of auto, sdpa, triton, reference, not 'fast'"):
        small_model("fast")  # type: ignore[arg-type]
