"""The paper's models for its data sets: numbers of parameters, recipes, checkpoints, and runs of earlier versions."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import flare_model
from flare_model.checkpoints.spec import ModelSpec
from flare_model.configs import FOLDER, config_names
from flare_model.models.__main__ import DATA_SETS, count_parameters, models, parameter_counts
from flare_model.models.flare_plus_plus import FlarePlusPlus, FlarePlusPlusConfig
from flare_model.sizes import FlareConfig
from flare_model.training.optimizer import make_optimizer
from flare_model.training.recipe import Recipe
from flare_model.training.settings import make_settings
from lpbf_data.errors import SchemaError, UsageError
from tests.rounding import assert_same_predictions

PUBLISHED = {
    "": (592_641, 691_009, 690_945, 625_409, 691_009, 625_473),
    "flare_plus_plus": (1_291_329, 1_422_529, 1_291_329, 397_713, 695_713, 397_841),
    "transformer": (660_161, 660_241, 660_161, 660_161, 660_241, 660_241),
    "perceiver": (1_930_369, 1_930_497, 1_930_369, 1_930_369, 1_930_497, 1_930_497),
    "lno": (1_831_745, 762_241, 761_985, 761_985, 762_241, 762_241),
    "lno_8_blocks": (None, None, 1_291_905, 1_291_905, None, None),
    "gnot": (4_870_553, 4_904_345, 4_902_297, 4_902_297, 4_873_113, 4_873_113),
    "gnot_positions": (None, 4_873_113, 4_870_553, 4_870_553, None, None),
    "transolver": (713_665, 713_921, 713_665, 713_665, 713_921, 713_921),
    "grid_transolver": (None, 2_826_945, 2_810_817, 2_810_817, None, None),
    "grid_transolver_positions": (None, 2_811_073, None, None, None, None),
    "grid_transolver_official": (None, None, None, 3_073_985, None, None),
}


def read_configuration(name: str) -> Any:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def test_parameter_counts_are_exactly_the_published_ones() -> None:
    found = parameter_counts()
    assert {end: tuple(found[end].get(data) for data in DATA_SETS) for end in found} == PUBLISHED


def test_the_command_shows_every_count(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a screen of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert models() == 0
    said = capsys.readouterr().out
    for counts in PUBLISHED.values():
        assert all(f"{number:,}" in said for number in counts if number)
    assert "--config <data set>_perceiver: PerceiverIO" in said


def test_a_configuration_states_the_parameter_count_of_its_model() -> None:
    for name in config_names():
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        if said := re.search(r"^# Parameters: ([\d,]+)[. ]", text, re.MULTILINE):
            # The count in lpbf_accurate includes its input features and targets, which are no part of `model`.
            assert name == "lpbf_accurate" or int(said[1].replace(",", "")) == count_parameters(name), name
        assert said or name in {"lpbf_published_code", "million_points"}, name


def test_perceiver_of_later_published_code_has_its_parameter_count() -> None:
    config = read_configuration("lpbf_perceiver")["model"]["init_args"]["config"] | {"num_latents": 512}
    model = ModelSpec("PerceiverIO", {"config": config}).build()
    assert sum(p.numel() for p in model.parameters()) == 1_864_961


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("elasticity_transolver", {"batch_size": 1, "warmup": 0.3, "clip_norm": 0.1, "weight_decay": 1e-5}),
        ("airfoil_transolver", {"batch_size": 4, "warmup": 0.3, "clip_norm": 0.1}),
        ("lpbf_transolver", {"batch_size": 1, "epochs": 250, "warmup": 0.3, "clip_norm": 0.1, "weight_decay": 1e-4}),
        ("pipe_grid_transolver_official", {"batch_size": 8}),
        ("darcy_lno", {"batch_size": 4, "warmup": 0.2, "clip_norm": 1000, "beta2": 0.99, "weight_decay": 5e-5}),
        ("lpbf_lno", {"batch_size": 1, "beta2": 0.99, "start_divisor": 1e4, "end_divisor": 1e8, "weight_decay": 1e-4}),
        ("elasticity_gnot", {"batch_size": 2, "warmup": 0.3, "clip_norm": 0.1}),
        ("darcy_gnot", {"batch_size": 4, "weight_decay": 5e-5}),
        ("pipe_transformer", {"batch_size": 2, "warmup": 0.1, "clip_norm": 1, "epsilon": 1e-6}),
        ("drivaerml_40k_perceiver", {"batch_size": 1, "epochs": 500, "weight_decay": 1e-4}),
        ("drivaerml_40k_flare_plus_plus", {"weight_decay": 1e-2, "ema_decay": 0.999, "decay": "published_later"}),
    ],
)
def test_each_model_has_its_own_recipe(name: str, wanted: dict[str, Any]) -> None:
    recipe = Recipe(**read_configuration(name)["recipe"])
    assert {key: getattr(recipe, key) for key in wanted} == wanted
    assert recipe.learning_rate == 1e-3


def test_every_value_of_a_recipe_states_its_source() -> None:
    for name in config_names():
        if not name.endswith(tuple(end for end in PUBLISHED if end)):
            continue
        for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("recipe:")[1].strip().splitlines():
            assert "# " in line, (name, line)


def test_the_optimiser_uses_the_values_of_the_recipe() -> None:
    torch.manual_seed(0)
    model = FlarePlusPlus(FlarePlusPlusConfig(channels=8, num_heads=2, num_blocks=1, num_latents=4))
    optimizer = make_optimizer(model, Recipe(beta2=0.99, epsilon=1e-6, decay="published_later", weight_decay=0.5))
    assert optimizer.defaults["betas"] == (0.9, 0.99)
    assert optimizer.defaults["eps"] == 1e-6
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    spared = {name for name, p in model.named_parameters() if decays[id(p)] == 0}
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) and m.elementwise_affine}
    latents = {f"blocks.0.mixer.latent_{what}" for what in ("seeds", "queries")}
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert spared == {f"{name}.weight" for name in norms} | biases | latents
    for wrong, words in (({"beta2": 1.0}, "beta2 must lie between 0 and 1"), ({"epsilon": 0.0}, "epsilon must be")):
        with pytest.raises(UsageError, match=words):
            Recipe(**wrong)


def test_descriptions_of_earlier_versions_give_the_same_model() -> None:
    """Options that were added later are left out of a model's description where they have their defaults."""
    later = {"separate_decoding", "scaled_scores", "pointwise", "mlp_ratio", "latent_layers"}
    whole = dataclasses.asdict(FlareConfig())
    before = ModelSpec("Flare", {"config": {k: v for k, v in whole.items() if k not in later}})
    assert ModelSpec("Flare", {"config": whole}) == before
    now, then = (make_settings(spec, ["displacement_z"], [], data="") for spec in (ModelSpec("Flare"), before))
    assert not later & set(now.identity["model"]["init_args"]["config"])
    assert now.model.build().config == then.model.build().config  # type: ignore[union-attr]
    other = ModelSpec("Flare", {"config": whole | {"latent_layers": 2}})
    assert other.init_args["config"]["latent_layers"] == 2
    assert other.differing(before) == ["--model.config.latent_layers: 0 → 2"]


SMALL = {"channels": 8, "num_heads": 2, "num_blocks": 1}


@pytest.mark.parametrize("name", ["FlarePlusPlus", "GNOT", "GridTransolver", "LNO", "PerceiverIO"])
def test_a_checkpoint_loads_as_its_own_model_and_as_no_other(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    grid = {"grid_rows": 4, "grid_columns": 5} if name == "GridTransolver" else {}
    model: Any = ModelSpec(name, {"config": SMALL | grid}).build().eval()
    points = torch.rand(20, 3)
    model.save_pretrained(tmp_path / "saved")
    again = getattr(flare_model, name).from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    assert_same_predictions(again(points), model(points))
    other = flare_model.LNO if name != "LNO" else flare_model.GNOT
    with pytest.raises(UsageError, match=f"holds a {name}, not a {other.__name__}"):
        other.from_pretrained(tmp_path / "saved")
    mixed = tmp_path / "mixed"
    flare_model.Transolver(flare_model.TransolverConfig(**SMALL)).save_pretrained(mixed)
    content, theirs = (json.loads((folder / "config.json").read_text()) for folder in (mixed, tmp_path / "saved"))
    (mixed / "config.json").write_text(json.dumps(content | {"model": theirs["model"]}))
    with pytest.raises(SchemaError, match=r"don't fit the model that its config\.json describes"):
        getattr(flare_model, name).from_pretrained(mixed)
