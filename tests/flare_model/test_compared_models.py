"""PerceiverIO, LNO, GNOT, Transolver with convolution, FLARE++ and FLARE's ablations against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flare_model.layers.linear_attention import attend_linearly
from flare_model.layers.mixer import mix_by
from flare_model.models.contract import check_contract
from flare_model.models.flare import Flare, FlareConfig
from flare_model.models.flare_plus_plus import FlarePlusPlus, FlarePlusPlusConfig
from flare_model.models.gnot import GNOT, GNOTConfig
from flare_model.models.grid_transolver import GridTransolver, GridTransolverConfig
from flare_model.models.grids import Grid
from flare_model.models.lno import LNO, LNOConfig, decode_modes, encode_modes
from flare_model.models.perceiver import PerceiverConfig, PerceiverIO
from flare_model.models.spectra import spectra
from lpbf_data.errors import UsageError
from tests.flare_model.model_formulas import FORMULAS, GRIDDED, MODELS, RAGGED, TINY, distances, in_double, sample
from tests.rounding import assert_same

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_its_formulas(name: str) -> None:
    model, points = in_double(name), sample(12, 3)
    with torch.no_grad():
        wanted = FORMULAS[name](model, points)
        assert wanted.std() > 0.05
        assert_same(model(points), wanted)


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize(
    "sizes", [(5, 6), (2, 1, 17), (200, 100)], ids=["similar sizes", "different sizes", "with an unused tile"]
)
def test_joined_padded_and_single_meshes_give_the_same(name: str, sizes: tuple[int, ...]) -> None:
    """Joined meshes of similar sizes are padded inside, others computed one by one. Gradients are compared too."""
    model, points = in_double(name), sample(sum(sizes), 3)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    padded = torch.full((len(sizes), max(sizes), 3), math.nan, dtype=torch.float64)
    padded[mask] = points
    outs = [torch.cat([model(p) for p in points.split(sizes)]), model(points, None, offsets), model(padded, mask=mask)]
    outs[2] = outs[2][mask]
    weights = list(model.parameters())
    gradients = [torch.autograd.grad(out.square().sum(), weights) for out in outs]
    for other in (1, 2):
        assert_same(outs[other], outs[0])
        assert_same(gradients[other], gradients[0])


@pytest.mark.parametrize("name", GRIDDED)
def test_joined_grids_give_the_same_as_single_ones(name: str) -> None:
    model, points = in_double(name), sample(24, 3)
    with torch.no_grad():
        single = torch.stack([model(points[:12]), model(points[12:])])
        assert_same(model(points.view(2, 12, 3)), single)
        assert_same(model(points, None, torch.tensor([0, 12, 24])), single.flatten(0, 1))


@pytest.mark.parametrize("name", RAGGED)
def test_points_may_come_in_any_order(name: str) -> None:
    model, points = in_double(name), sample(15, 3)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_same(model(points[order]), model(points)[order])


def test_the_points_of_a_grid_in_another_order_are_another_input() -> None:
    """Convolution takes the neighbours of a point from the order of the points."""
    model, points = in_double("grid transolver"), sample(12, 3)
    with torch.no_grad():
        assert (model(points.flip(0)).flip(0) - model(points)).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """Gradients of points, and of all weights along three random directions, for two joined meshes."""
    model = in_double(name)
    points = sample(24 if name in GRIDDED else 9, 3).requires_grad_()
    offsets = torch.tensor([0, 12, 24] if name in GRIDDED else [0, 2, 9])
    weights = {n: p.detach() for n, p in model.named_parameters()}
    ways = [{n: torch.randn_like(p) for n, p in weights.items()} for _ in range(3)]

    def call(points: Tensor, steps: Tensor) -> Tensor:
        moved = {n: p + sum(s * way[n] for s, way in zip(steps, ways, strict=True)) for n, p in weights.items()}
        out: Tensor = torch.func.functional_call(model, moved, (points, None, offsets))
        return out

    steps = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (points, steps), fast_mode=True)


def test_two_softmaxes_of_lno_by_hand() -> None:
    """Two points, two modes: weights of ¼ and ¾ where a score is ln 3, of ½ where scores are equal."""
    scores = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])
    values = torch.tensor([[[0.0], [8.0]]])
    modes = encode_modes(scores, values)
    torch.testing.assert_close(modes, torch.tensor([[[6.0], [4.0]]]))
    torch.testing.assert_close(decode_modes(scores, modes), torch.tensor([[[5.0], [5.5]]]))
    one = encode_modes(scores, values, mask=torch.tensor([[False, True]]))
    torch.testing.assert_close(one, torch.tensor([[[8.0], [8.0]]]))


def test_linear_attention_of_gnot_by_hand() -> None:
    queries = torch.tensor([[0.25, 0.75], [0.5, 0.5]])[None, :, None]
    keys = torch.tensor([[0.5, 0.5], [0.25, 0.75]])[None, :, None]
    values = torch.tensor([[4.0, 0.0], [0.0, 8.0]])[None, :, None]
    # Σ kᵀv = ((2, 2), (2, 6)) and Σ k = (3/4, 5/4): the first point gets (2, 5) over 9/8, the second (2, 4) over 1.
    wanted = torch.tensor([[16 / 9, 40 / 9], [2.0, 4.0]])[None, :, None]
    torch.testing.assert_close(attend_linearly(queries, keys, values), wanted)
    alone = attend_linearly(queries, keys, values, mask=torch.tensor([[True, False]]))
    torch.testing.assert_close(alone[0, :, 0], torch.tensor([[4.0, 0.0], [4.0, 0.0]]))


def test_unified_positions_are_distances_on_the_index_grid() -> None:
    found = Grid(3, 4).distances(torch.zeros((), dtype=torch.float64))
    assert_same(found, distances())
    assert found[0, 0] == 0
    assert found[11, 63] == 0
    assert found[0, 1] == pytest.approx(1 / 7)  # along a row first


def test_gnot_with_unified_positions_uses_its_input_in_the_gates_alone() -> None:
    """This model has the published parameter counts for Darcy, airfoil and pipe."""
    model, (first, second) = in_double("gnot unified"), sample(2, 12, 3)
    with torch.no_grad():
        assert (model(first) - model(second)).abs().max() > 1e-3
        for block in model.blocks:
            block.gate[4].weight.zero_()
        assert torch.equal(model(first), model(second))


def test_a_single_expert_does_not_depend_on_its_gate() -> None:
    torch.manual_seed(0)
    model, points = GNOT(GNOTConfig(**TINY, num_experts=1)).double(), sample(7, 3)
    before = model(points)
    for block in model.blocks:
        nn.init.normal_(block.gate[4].weight)
    assert_same(model(points), before)


def test_seeds_of_flare_plus_plus_have_an_effect_unless_gates_are_closed() -> None:
    """Seeds make the latent queries depend on the mesh; with closed gates the mixing is FLARE's."""
    model, points = in_double("flare++"), sample(9, 3)
    with torch.no_grad():
        before = model(points)
        for block in model.blocks:
            block.mixer.latent_seeds.normal_()
        assert (model(points) - before).abs().max() > 1e-3
        for block in model.blocks:
            block.mixer.gates.fill_(-1e4)
        closed = model(points)
        for block in model.blocks:
            block.mixer.latent_seeds.normal_()
        assert_same(model(points), closed)


@pytest.mark.parametrize(
    ("name", "parameter", "mean", "deviation"),
    [
        ("flare++", "blocks.0.mixer.latent_seeds", 0, 0.02),
        ("flare++", "blocks.0.mixer.leave.weight", 0, 0.02),
        ("perceiver", "encoder.latents", 0, 1),
        ("perceiver", "encoder.keys.weight", 0, 0.02),
        ("gnot", "blocks.0.cross.keys.weight", 0, 0.02),
        ("grid transolver", "blocks.0.mixer.assign.weight", 0, (9 * 64 * 3) ** -0.5),  # Kaiming's, uniform
        ("lno", "trunk.layers.0.weight", 0, (3 * 64) ** -0.5),
    ],
)
def test_weights_start_as_published(name: str, parameter: str, mean: float, deviation: float) -> None:
    torch.manual_seed(0)
    model = WIDE[name]()
    values = model.get_parameter(parameter).detach()
    assert float(values.std()) == pytest.approx(deviation, rel=0.1)
    assert abs(float(values.mean()) - mean) < 0.1 * deviation


WIDER: dict[str, Any] = {"channels": 64, "num_heads": 2, "num_blocks": 1}
WIDE: dict[str, Callable[[], nn.Module]] = {
    "perceiver": lambda: PerceiverIO(PerceiverConfig(**WIDER, num_latents=64)),
    "lno": lambda: LNO(LNOConfig(**WIDER)),
    "gnot": lambda: GNOT(GNOTConfig(**WIDER)),
    "flare++": lambda: FlarePlusPlus(FlarePlusPlusConfig(**WIDER)),
    "grid transolver": lambda: GridTransolver(GridTransolverConfig(**WIDER)),
}


def test_keys_and_values_of_flare_plus_plus_start_near_the_identity() -> None:
    mixer = WIDE["flare++"]().blocks[0].mixer  # type: ignore[index, union-attr]
    for layer in (mixer.seen, mixer.keys, mixer.values):
        rest = layer.weight.detach() - torch.eye(64)
        assert 0.018 < float(rest.std()) < 0.022
        assert not layer.bias.any()
    assert float(mixer.gates.detach().sigmoid()[0]) == pytest.approx(0.562, abs=1e-3)


@pytest.mark.parametrize("name", RAGGED)
def test_models_keep_the_contract(name: str) -> None:
    torch.manual_seed(0)
    check_contract(MODELS[name](), 0, 2, name=name, all_used=True)


@pytest.mark.parametrize("name", GRIDDED)
def test_a_model_of_grids_refuses_other_meshes_and_names_itself(name: str) -> None:
    model, called = in_double(name), "GNOT with unified_positions" if "gnot" in name else "Transolver with convolution"
    with pytest.raises(UsageError, match=rf"^{called} takes grids of 3 × 4 = 12 points .* got a mesh of 61 points"):
        model(torch.rand(61, 3, dtype=torch.float64))
    check_contract(model.float(), 0, 2, name=name)  # which tries a model of grids on grids of its size
    points = torch.rand(24, 3)
    for inputs, words in (
        ((points[:11],), "got a mesh of 11 points"),
        ((points, None, torch.tensor([0, 10, 24])), "got a mesh of 10 points"),
        ((points.view(2, 12, 3), None, None, torch.ones(2, 12, dtype=torch.bool)), "filled up to one size"),
    ):
        with pytest.raises(UsageError, match=rf"{called} takes grids .*{words}.* take Flare or another"):
            model(*inputs)


@pytest.mark.parametrize(
    ("config", "sizes", "words"),
    [
        (GridTransolverConfig, {"in_dim": 2}, "would not see its input at all"),
        (GridTransolverConfig, {"grid_rows": 0}, "2 rows and columns at least, not 0 × 85"),
        (GNOTConfig, {"unified_positions": True}, "give grid_rows and grid_columns"),
        (GNOTConfig, {"flow": "either"}, "flow must be one of nsl, original, not 'either'"),
        (GNOTConfig, {"unified_positions": 1}, "unified_positions must be true or false, not 1"),
        (LNOConfig, {"residual_layers": -1}, "residual_layers must be a whole number from 0"),
        (FlareConfig, {"pointwise": "none"}, "pointwise must be one of resmlp, mlp"),
        (PerceiverConfig, {"channels": 24, "num_heads": 8}, r"odd number of channels, 3 \(24 channels over 8 heads\)"),
        (LNOConfig, {"channels": 24, "num_heads": 8}, "an odd number of channels, 3"),
        (FlarePlusPlusConfig, {"channels": 8, "num_heads": 8}, "an odd number of channels, 1"),
        (GridTransolverConfig, {"channels": 24, "num_heads": 8}, "an odd number of channels, 3"),
        (PerceiverConfig, {"channels": 60, "num_heads": 8}, "must be a multiple of its heads"),
    ],
)
def test_impossible_sizes_are_refused(config: Any, sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config(**sizes)


@pytest.mark.parametrize("option", ["separate_decoding", "scaled_scores"])
def test_an_ablation_with_equivalent_weights_is_flare(option: str) -> None:
    """An option adds or scales weights without renaming others, and changes nothing else."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**TINY, "num_latents": 5}
    plain, other = Flare(FlareConfig(**sizes)).double(), Flare(FlareConfig(**sizes, **{option: True})).double()
    missing, unexpected = other.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all("decoding" in name for name in missing)
    points = sample(9, 3)
    with torch.no_grad():
        for block, wanted in zip(other.blocks, plain.blocks, strict=True):
            if option == "scaled_scores":
                block.mixer.latent_queries.mul_(2)  # √D
            else:
                block.mixer.decoding_latent_queries.copy_(wanted.mixer.latent_queries)
                block.mixer.decoding_keys.load_state_dict(wanted.mixer.keys.state_dict())
        assert_same(other(points), plain(points))


def test_ablations_mix_by_attention_calls_and_have_no_spectrum() -> None:
    model = in_double("flare ablated")
    for way in ("triton", "reference"):
        with pytest.raises(UsageError, match=rf"--recipe.mixer {way} is for FLARE as published"):
            mix_by(model, way)  # type: ignore[arg-type]
    mix_by(model, "sdpa")
    with pytest.raises(UsageError, match="this model has no such block"):
        spectra(model, sample(9, 3))
    scaled = Flare(FlareConfig(**TINY, num_latents=5, scaled_scores=True)).double()
    assert len(spectra(scaled, sample(9, 3))) == 2


@pytest.mark.parametrize("name", ["perceiver", "lno", "gnot", "flare++", "flare ablated", "grid transolver"])
def test_mixed_precision_keeps_coordinates_and_predictions_in_float32(name: str) -> None:
    """Points 0.003 mm apart in a part 60 mm long: rounded to 16 bits they would coincide."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    points = torch.zeros(12, 3)
    points[:, 0] = torch.linspace(0.5, 0.5006, 12)
    projected: list[Tensor] = []
    with torch.no_grad():
        full = model(points)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.in_features == 3:
                module.register_forward_hook(
                    lambda _, inputs, output: projected.append(output.reshape(-1, output.shape[-1]))
                )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(points)
    assert mixed.dtype == torch.float32
    assert (mixed - full).norm() < 0.05 * full.norm()
    assert projected
    for found in projected:
        assert found.dtype == torch.float32
        assert len(found.unique(dim=0)) == 12


def test_activation_checkpointing_of_gnot_changes_no_gradient() -> None:
    model, points, kept = in_double("gnot"), sample(9, 3), []
    for switch in (False, True):
        model.activation_checkpointing = switch
        kept.append(torch.autograd.grad(model(points).square().sum(), list(model.parameters())))
    assert_same(*kept)
