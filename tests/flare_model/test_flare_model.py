"""Models: parameter counts, attention against explicit matrices, every layout of meshes, compiling, exporting.

What is computed in two ways is compared in float64, where rounding is far smaller than a fault (`tests.rounding`).
"""

from __future__ import annotations

import copy
import inspect
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flare_model
from flare_model.checkpoints.restore_model import built_without_memory
from flare_model.checkpoints.spec import ModelSpec
from flare_model.configs import FOLDER, config_names, config_path, spell_out_config
from flare_model.layers.layout import Layout
from flare_model.layers.mixer import mix, mix_meshes
from flare_model.models import backbone
from flare_model.models.flare import Flare, FlareConfig
from flare_model.models.mesh_model import MeshModel
from flare_model.models.transformer import SelfAttention, Transformer, TransformerConfig
from flare_model.models.transolver import PhysicsAttention, Transolver, TransolverConfig
from flare_model.train import train
from flare_model.training.recipe import Recipe
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import tiny_flare
from tests.rounding import assert_same, spread

pytestmark = pytest.mark.numeric


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("elasticity", 592_641),
        ("darcy", 691_009),
        ("airfoil", 690_945),
        ("pipe", 625_409),
        ("drivaerml_40k", 691_009),
        ("lpbf", 625_473),
        ("lpbf_transformer", 660_241),
        ("lpbf_transolver", 713_921),
    ],
)
def test_configurations_have_the_published_sizes(name: str, parameters: int) -> None:
    path = config_path(name)
    assert path is not None
    content = yaml.safe_load(path.read_text())
    assert count(ModelSpec(**content["model"]).build()) == parameters
    Recipe(**content["recipe"])


def test_every_configuration_is_valid() -> None:
    assert {"lpbf", "elasticity", "darcy", "airfoil", "pipe", "drivaerml_40k"} <= set(config_names())
    for name in config_names():
        content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        options = set(inspect.signature(train).parameters)
        assert {"model", "recipe"} <= set(content) <= options
        Recipe(**content["recipe"])
        assert isinstance(built_without_memory(ModelSpec(**content["model"])), MeshModel)


def test_names_of_configurations_are_replaced_by_their_files() -> None:
    words = spell_out_config(["--config", "lpbf", "--config=pipe", "--out", "lpbf", "--config", "no/such.yaml"])
    assert words[1] == str(FOLDER / "lpbf.yaml")
    assert words[2] == f"--config={FOLDER / 'pipe.yaml'}"
    assert words[3:] == ["--out", "lpbf", "--config", "no/such.yaml"]


def test_a_folder_named_like_a_configuration_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lpbf").mkdir()
    assert spell_out_config(["--config", "lpbf"]) == ["--config", str(FOLDER / "lpbf.yaml")]
    (tmp_path / "pipe").write_text("model: {}")
    assert spell_out_config(["--config", "pipe"]) == ["--config", "pipe"]


@pytest.mark.parametrize("words", [["--config", "nothing"], ["--config=nothing"]])
def test_an_unknown_configuration_is_refused_with_a_list(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        spell_out_config(words)
    assert left.value.code == 2
    assert f"--config nothing is neither a file nor one of {', '.join(config_names())}" in capsys.readouterr().err


def test_compared_models_have_the_published_sizes_in_two_dimensions() -> None:
    assert count(Transformer(TransformerConfig(in_dim=2))) == 660_161
    assert count(Transolver(TransolverConfig(in_dim=2))) == 713_665


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"channels": 60}, "multiple of its heads"),
        ({"num_latents": 0}, "num_latents must be a whole number"),
        ({"num_blocks": 10**9}, "num_blocks must be a whole number from 1 to 1024"),
        ({"channels": 64.0}, "not 64.0"),
        ({"mixer_layers": -1}, "mixer_layers"),
        ({"initial_deviation": 0.0}, "initial_deviation must be a number above 0"),
        ({"initial_deviation": float("nan")}, "initial_deviation"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FlareConfig(**sizes)


@pytest.mark.parametrize("deviation", [0.02, 0.08])
def test_first_weights_have_the_configured_deviation(deviation: float) -> None:
    model = Flare(FlareConfig(num_blocks=2, initial_deviation=deviation))
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])
    assert float(weights.detach().std()) == pytest.approx(deviation, rel=0.02)
    assert Flare(FlareConfig()).config.initial_deviation == 0.02  # as in the paper's code


def explicit_mix(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """FLARE's mixing from its matrices (equations 7 and 8): [H, M, D], [N, H, D] and [N, H, D] to [N, H, D]."""
    out = []
    for head in range(len(queries)):
        scores = queries[head] @ keys[:, head].T
        encode = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
        decode = scores.T.exp() / scores.T.exp().sum(dim=1, keepdim=True)
        out.append(decode @ encode @ values[:, head])
    return torch.stack(out, dim=1)


def sample(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_mixing_is_the_product_of_two_softmax_matrices() -> None:
    queries, keys, values = sample(3, 5, 4), sample(17, 3, 4), sample(17, 3, 4)
    mixed = mix(queries, keys.transpose(0, 1)[None], values.transpose(0, 1)[None])[0].transpose(0, 1)
    assert_same(mixed, explicit_mix(queries, keys, values))


def test_another_number_of_heads_gives_another_result() -> None:
    """Shapes alone don't show the heads: the same channels divided into fewer heads must not give the same."""
    queries, keys, values = sample(4, 5, 2), sample(9, 4, 2), sample(9, 4, 2)
    wanted = explicit_mix(queries, keys, values).flatten(1)
    fewer = queries.view(2, 2, 5, 2).transpose(1, 2).reshape(2, 5, 4)
    layout = Layout.of(keys.flatten(1), torch.tensor([0, 9]), None)
    wrong = mix_meshes(fewer, keys.reshape(9, 2, 4), values.reshape(9, 2, 4), layout).flatten(1)
    right = mix_meshes(queries, keys, values, layout).flatten(1)
    assert_same(right, wanted)
    assert (wrong - wanted).abs().max() > 1e-2


def test_the_flare_mixer_applies_its_matrices_between_its_networks() -> None:
    model = tiny_flare().double()
    mixer = model.blocks[0].mixer
    x = sample(11, 16)
    keys, values = (network(x).view(11, 4, 4) for network in (mixer.keys, mixer.values))
    wanted = mixer.leave(explicit_mix(mixer.latent_queries, keys, values).flatten(1))
    assert_same(mixer(x[None], Layout())[0], wanted)


def test_self_attention_is_its_softmax_matrix() -> None:
    attention = SelfAttention(8, 2).double()
    torch.nn.init.normal_(attention.enter.weight)
    x = sample(7, 8)
    queries, keys, values = attention.enter(x).view(7, 3, 2, 4).unbind(1)
    heads = [((queries[:, h] @ keys[:, h].T) / 2.0).softmax(dim=1) @ values[:, h] for h in range(2)]
    assert_same(attention(x[None], Layout())[0], attention.leave(torch.cat(heads, dim=1)))


def test_physics_attention_slices_attends_and_deslices() -> None:
    attention = PhysicsAttention(8, 2, 3).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.constant_(attention.temperature, 0.7)
    x = sample(7, 8)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        weights = (attention.slices(attention.assign(x)[:, part]) / 0.7).softmax(dim=1)
        tokens = (weights.T @ attention.values(x)[:, part]) / (weights.sum(dim=0)[:, None] + 1e-5)
        queries, keys, values = (tokens @ w.T for w in attention.slice_attention.weight.chunk(3))
        heads.append(weights @ (((queries @ keys.T) / 2.0).softmax(dim=1) @ values))
    assert_same(attention(x[None], Layout())[0], attention.leave(torch.cat(heads, dim=1)))


SIZES: dict[str, Any] = {"channels": 16, "num_heads": 2, "num_blocks": 2}
MODELS = {
    "flare": tiny_flare,
    "transformer": lambda: Transformer(TransformerConfig(**SIZES)).eval(),
    "transolver": lambda: Transolver(TransolverConfig(**SIZES, num_slices=4)).eval(),
}
# Exports in the fast suite: of FLARE; the models that it is compared with are exported in the slow one.
FLARE_FAST_OTHERS_SLOW = ["flare", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "flare")]


def in_double(name: str) -> torch.nn.Module:
    """A model in float64, with the same weights each time."""
    torch.manual_seed(0)
    return MODELS[name]().double()


def output_and_gradients(model: torch.nn.Module, *inputs: Tensor | None) -> list[Tensor]:
    out = model(*inputs)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize("name", MODELS)
def test_errors_of_float32_are_those_of_rounding(name: str) -> None:
    """Output and every gradient, of a single mesh and of joined ones, against errors drawn from float32's epsilon."""
    exact, points = in_double(name), sample(31, 3).float()
    model = copy.deepcopy(exact).float()
    for inputs in ((points,), (points, None, torch.tensor([0, 9, 31]))):
        widened = (points.double(), *inputs[1:])
        truth, moved = spread(lambda inputs=widened: output_and_gradients(exact, *inputs), torch.float32)
        for ours, wanted, error in zip(output_and_gradients(model, *inputs), truth, moved, strict=True):
            assert (ours.double() - wanted).norm() <= 4 * error


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_joined_padded_and_single_meshes_give_the_same(name: str, sizes: list[int]) -> None:
    """Joined meshes of similar sizes are padded inside, others computed one by one."""
    model = in_double(name)
    points = sample(sum(sizes), 3)
    offsets = torch.tensor([0, *itertools.accumulate(sizes)])
    with torch.no_grad():
        single = torch.cat([model(part) for part in points.split(sizes)])
        joined = model(points, offsets=offsets)
        mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        padded = torch.full((len(sizes), max(sizes), 3), 5.0, dtype=points.dtype)
        padded[mask] = points
        masked = model(padded, mask=mask)[mask]
    assert_same(joined, single)
    assert_same(masked, single)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_do_not_depend_on_the_layout(name: str) -> None:
    model, points = in_double(name), sample(19, 3)

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out.square().sum(), list(model.parameters()))

    single = gradients(torch.cat([model(points[:9]), model(points[9:])]))
    assert_same(gradients(model(points, offsets=torch.tensor([0, 9, 19]))), single)


@pytest.mark.parametrize("name", MODELS)
def test_points_may_come_in_any_order(name: str) -> None:
    model = in_double(name)
    points, order = sample(15, 3), torch.randperm(15)
    with torch.no_grad():
        assert_same(model(points[order]), model(points)[order])


def test_features_are_appended_to_the_points() -> None:
    model = tiny_flare(in_dim=5).double()
    points, features = sample(7, 3), sample(7, 2)
    with torch.no_grad():
        assert_same(model(points, features), model(torch.cat([points, features], 1)))
    with pytest.raises(UsageError, match="takes 5 numbers a point, but got 3"):
        model(points)


def test_shapes_that_do_not_fit_are_refused() -> None:
    model, points = tiny_flare(), torch.randn(9, 3)
    for offsets in ([0, 3, 8], [0, 3, 3, 9], [1, 3, 9], [0, 5, 3, 9]):
        with pytest.raises(UsageError, match="offsets must rise"):
            model(points, offsets=torch.tensor(offsets))
    with pytest.raises(UsageError, match="not both"):
        model(points[None], offsets=torch.tensor([0, 9]))
    with pytest.raises(UsageError, match="the mask must be"):
        model(points[None], mask=torch.ones(1, 8, dtype=torch.bool))


def compiled(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model of one block in float64, and the same compiled; `fullgraph` raises an error at a graph break."""
    torch.compiler.reset()
    model = in_double(name)
    del model.blocks[1:]
    return model, torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")


@pytest.mark.slow  # the fast suite compiles joined meshes in `test_layout`, and by the kernels with their gradients
@pytest.mark.compiles
@pytest.mark.parametrize("name", MODELS)
def test_compiling_joined_meshes_breaks_no_graph(name: str) -> None:
    model, fast = compiled(name)
    points = sample(24, 3)
    for middle in (9, 20):
        offsets = torch.tensor([0, middle, 24])
        assert_same(fast(points, None, offsets), model(points, None, offsets))
    weights = list(model.parameters())
    found, wanted = (torch.autograd.grad(m(points, None, offsets).square().sum(), weights) for m in (fast, model))
    assert_same(found, wanted)


@pytest.mark.compiles
def test_compiling_single_meshes_breaks_no_graph() -> None:
    model, fast = compiled("flare")
    points = sample(24, 3)
    with torch.no_grad():
        for size in (24, 17):
            assert_same(fast(points[:size]), model(points[:size]))


@pytest.mark.slow  # the same graph with a mask
@pytest.mark.compiles
def test_compiling_padded_meshes_breaks_no_graph() -> None:
    model, fast = compiled("flare")
    points = sample(24, 3)
    with torch.no_grad():
        padded, mask = points.view(2, 12, 3), torch.arange(12) < torch.tensor([[12], [5]])
        assert_same(fast(padded, mask=mask)[mask], model(padded, mask=mask)[mask])


@pytest.mark.slow
def test_compiled_code_gives_the_same_predictions() -> None:
    model = tiny_flare().double()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for size in (24, 31):
        points, offsets = sample(size, 3), torch.tensor([0, 9, size])
        assert_same(compiled(points, None, offsets), model(points, None, offsets))


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_takes_any_number_of_points(name: str) -> None:
    model = in_double(name)
    shapes = {"points": {0: torch.export.Dim("points", min=2)}}
    program = torch.export.export(model, (sample(12, 3),), dynamic_shapes=shapes)
    points = sample(31, 3)
    assert_same(program.module()(points), model(points))


@pytest.mark.parametrize("name", FLARE_FAST_OTHERS_SLOW)
def test_an_exported_model_takes_any_numbers_of_points_and_meshes(name: str) -> None:
    """Joined and padded, of other numbers than it was exported with."""
    model = in_double(name)
    points, meshes = torch.export.Dim("points", min=8), torch.export.Dim("meshes", min=3)
    shapes = {"points": {0: points}, "features": None, "offsets": {0: meshes}}
    joined = torch.export.export(model, (sample(24, 3), None, torch.tensor([0, 5, 9, 24])), dynamic_shapes=shapes)
    others = sample(31, 3), None, torch.tensor([0, 5, 9, 20, 31])
    assert_same(joined.module()(*others), model(*others))
    shapes = {"points": {0: meshes, 1: points}, "features": None, "offsets": None, "mask": {0: meshes, 1: points}}
    mask = torch.arange(12) < torch.tensor([[12], [5], [7], [1]])
    padded = torch.export.export(model, (sample(4, 12, 3), None, None, mask), dynamic_shapes=shapes)
    inputs, mask = sample(3, 9, 3), torch.arange(9) < torch.tensor([[9], [2], [4]])
    found, wanted = (m(inputs, None, None, mask) for m in (padded.module(), model))
    assert_same(found[mask], wanted[mask])


def test_activation_checkpointing_changes_no_gradient() -> None:
    model, points, kept = tiny_flare().double(), sample(2, 13, 3), []
    for switch in (False, True):
        model.activation_checkpointing = switch
        kept.append(output_and_gradients(model, points))
    assert_same(*kept)


@pytest.mark.parametrize("num_blocks", [1, 3, 4])
def test_blocks_checkpointed_two_at_a_time_change_no_gradient(monkeypatch: pytest.MonkeyPatch, num_blocks: int) -> None:
    model, points, kept = tiny_flare(num_blocks=num_blocks).double(), sample(2, 13, 3), []
    model.activation_checkpointing = True
    for many in (1 << 24, 25):
        monkeypatch.setattr(backbone, "_MANY", many)
        kept.append(output_and_gradients(model, points))
    assert_same(*kept)


@pytest.mark.parametrize("name", MODELS)
def test_mixed_precision_keeps_coordinates_and_predictions_in_float32(name: str) -> None:
    """Points 0.003 mm apart in a part 60 mm long: rounded to 16 bits they would coincide."""
    model = MODELS[name]()
    points = torch.zeros(400, 3)
    points[:, 0] = torch.linspace(0.5, 0.52, 400)
    with torch.no_grad():
        full = model(points)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(points)
            rounded = model(points.bfloat16().float())
    assert mixed.dtype == torch.float32
    assert len(mixed.unique()) > 10 * len(rounded.unique())
    assert (mixed - full).norm() < 0.05 * full.norm()


def saved_bytes(model: torch.nn.Module, points: Tensor) -> int:
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(points)
    return total


def test_activation_checkpointing_saves_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = tiny_flare(num_blocks=4), torch.randn(1, 200, 3)
    plain = saved_bytes(model, points)
    model.activation_checkpointing = True
    each = saved_bytes(model, points)
    assert each < plain / 3
    monkeypatch.setattr(backbone, "_MANY", 199)
    kept = 200 * model.config.channels * 4
    assert each - saved_bytes(model, points) == 2 * kept, "the inputs of the second and of the fourth block are kept"


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = Flare(FlareConfig())
    weights = torch.cat([p.flatten() for n, p in model.named_parameters() if n.endswith("weight") and "norm" not in n])
    queries = torch.cat([p.flatten() for n, p in model.named_parameters() if "latent_queries" in n])
    biases = torch.cat([p for n, p in model.named_parameters() if n.endswith("bias")])
    assert abs(weights.std().item() - 0.02) < 2e-4
    assert abs(queries.std().item() - 0.1) < 1e-3
    assert biases.abs().max() == 0


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, flare_model; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert flare_model.Flare is Flare
    assert set(flare_model.__all__) == set(flare_model._HOME)
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = flare_model.Nonsense
