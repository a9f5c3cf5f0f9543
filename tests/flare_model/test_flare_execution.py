"""How the mixing is computed is chosen on each machine: checkpoints don't hold it, and open on any machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flare_model import Flare, FlareConfig, from_pretrained
from flare_model.checkpoints.spec import ModelSpec, spec_of
from flare_model.layers.mixer import FlareMixer, mix_by
from flare_model.predict import predict
from flare_model.training.recipe import Recipe
from flare_model.training.settings import make_settings
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import TINY, losses, run_training, tiny_flare, train_until_killed
from tests.forked import Program, command

GOLDEN = Path(__file__).parent.parent / "golden" / "checkpoint"
POINTS = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) * 40 - 20


def implementations(model: torch.nn.Module) -> set[str]:
    return {module.implementation for module in model.modules() if isinstance(module, FlareMixer)}


@pytest.mark.parametrize("mixer", ["sdpa", "reference"])
def test_the_mixer_of_the_training_is_not_in_the_checkpoint(
    box_dataset: str, trained_run: Path, tmp_path: Path, mixer: Any
) -> None:
    run = run_training(box_dataset, tmp_path / "run", recipe=Recipe(epochs=1, mixer=mixer), accelerator="cpu")
    for path in (run / "config.json", *run.glob("checkpoints/*/config.json")):
        assert "mixer" not in json.loads(path.read_text())["model"]["init_args"]["config"]
    assert json.loads((run / "run.json").read_text())["configuration"]["recipe"]["mixer"] == mixer
    assert implementations(from_pretrained(run).model) == {"auto"}
    other = run_training(box_dataset, tmp_path / "other", recipe=Recipe(epochs=1), accelerator="cpu")
    for (_, a, _), (_, b, _) in zip(losses(run), losses(other), strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-4)


@pytest.mark.parametrize("mixer", ["triton", "auto", "sdpa"])
def test_checkpoints_that_named_their_mixer_predict_on_a_cpu(
    trained_run: Path, box_dataset: str, tmp_path: Path, mixer: str
) -> None:
    """As earlier versions wrote them."""
    old = tmp_path / "old"
    shutil.copytree(trained_run, old)
    content = json.loads((old / "config.json").read_text())
    content["model"]["init_args"]["config"]["mixer"] = mixer
    (old / "config.json").write_text(json.dumps(content))
    surrogate = from_pretrained(old)
    assert implementations(surrogate.model) == {"auto"}
    torch.testing.assert_close(surrogate(POINTS), from_pretrained(trained_run)(POINTS), rtol=0, atol=0)
    surrogate.save_pretrained(tmp_path / "new")
    assert "mixer" not in json.loads((tmp_path / "new" / "config.json").read_text())["model"]["init_args"]["config"]
    assert predict(str(old), [box_dataset], out=str(tmp_path / "out"), pictures=False, accelerator="cpu") == 0
    # The bare model has the default mixer too.
    assert implementations(Flare.from_pretrained(old)) == {"auto"}


def test_the_oldest_stored_checkpoint_opens(tmp_path: Path) -> None:
    assert json.loads((GOLDEN / "config.json").read_text())["model"]["init_args"]["config"]["mixer"] == "auto"
    found = from_pretrained(GOLDEN)
    assert found.model.config == FlareConfig(channels=8, num_blocks=1, num_heads=2, num_latents=4)


def test_the_mixer_of_a_model_can_be_changed() -> None:
    model, points = tiny_flare(), torch.rand(1, 30, 3)
    assert implementations(Flare(FlareConfig(), "reference")) == {"reference"}
    mix_by(model, "reference")
    assert implementations(model) == {"reference"}
    written_out = model(points)
    mix_by(model, "sdpa")
    torch.testing.assert_close(model(points), written_out, rtol=1e-4, atol=1e-5)
    assert spec_of(model) == spec_of(tiny_flare())


def test_a_mixer_that_does_not_fit_is_refused(box_dataset: str, tmp_path: Path) -> None:
    model = {"class_path": "Transformer", "init_args": {"config": {"channels": 16, "num_heads": 2}}}
    with pytest.raises(
        UsageError, match=r"--recipe\.mixer reference is for FLARE and FLARE\+\+; Transformer mixes in one way"
    ):
        run_training(box_dataset, tmp_path / "run", model, recipe=Recipe(mixer="reference"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="unexpected keyword argument 'mixer'"):
        run_training(
            box_dataset, tmp_path / "run", {"init_args": {"config": {**TINY["init_args"]["config"], "mixer": "sdpa"}}}
        )


def test_options_of_later_versions_leave_the_identity_of_a_run_as_it_was() -> None:
    identity = make_settings(ModelSpec(**TINY), ["displacement_z"], [], data="").identity["recipe"]
    assert not {"mixer", "max_points", "step_graphs"} & identity.keys()
    chosen = Recipe(mixer="sdpa", max_points=9)
    identity = make_settings(ModelSpec(**TINY), ["displacement_z"], [], data="", recipe=chosen).identity["recipe"]
    assert (identity["mixer"], identity["max_points"]) == ("sdpa", 9)


def rewrite_as_earlier_version(run: Path, mixer: str) -> None:
    """Rewrite a run's files as earlier versions wrote them: the mixer among the model's sizes, also in checkpoints."""
    for path in (run / "run.json", run / "config.json", *run.glob("checkpoints/*/config.json")):
        if path.exists():
            content = json.loads(path.read_text())
            within = content.get("configuration", content)
            within["model"]["init_args"]["config"]["mixer"] = mixer
            within.get("recipe", {}).pop("mixer", None)
            path.write_text(json.dumps(content))
    options = yaml.safe_load((run / "config.yaml").read_text())
    options["model"]["init_args"]["config"]["mixer"] = mixer
    options["recipe"].pop("mixer", None)
    (run / "config.yaml").write_text(yaml.safe_dump(options))


@pytest.mark.parametrize("mixer", ["auto", "reference"])
def test_a_run_of_an_earlier_version_that_named_its_mixer_resumes(box_dataset: str, tmp_path: Path, mixer: Any) -> None:
    """It began before that was an option of the recipe; resumed with the same mixer, it has exactly the same losses."""
    recipe = Recipe(epochs=2, mixer=mixer)
    whole = run_training(box_dataset, tmp_path / "whole", recipe=recipe)
    train_until_killed(box_dataset, tmp_path / "cut", 5, recipe, checkpoint_every=3)
    rewrite_as_earlier_version(tmp_path / "cut", mixer)
    if mixer != "auto":
        with pytest.raises(UsageError, match=r"\(--recipe\.mixer: reference → auto\); go on with the same one"):
            run_training(box_dataset, tmp_path / "cut")
    assert losses(run_training(box_dataset, tmp_path / "cut", recipe=recipe, checkpoint_every=3)) == losses(whole)


@pytest.mark.parametrize(("given", "taken"), [([], "reference"), (["--recipe.mixer", "sdpa"], "sdpa")])
def test_a_configuration_of_an_earlier_version_that_names_a_mixer_loads_with_a_note(
    trained_run: Path, box_dataset: str, tmp_path: Path, given: list[str], taken: str
) -> None:
    """The file of a run of an earlier version; options of the command line take precedence over it, as always."""
    old = tmp_path / "old"
    shutil.copytree(trained_run, old)
    rewrite_as_earlier_version(old, "reference")
    words = [f"--config={old / 'config.yaml'}", "--out", str(tmp_path / "new"), "--max_steps", "1", *given]
    program = Program(command, tmp_path / "said", "flare_model.train", *words)
    assert program.end() == 0, program.text()
    sentence = "is of an earlier version: its model.init_args.config.mixer reference is taken as --recipe.mixer"
    assert program.text().replace("\n", " ").count(sentence) == 1
    configuration = json.loads((tmp_path / "new" / "run.json").read_text())["configuration"]
    assert configuration["recipe"]["mixer"] == taken
    before = json.loads((trained_run / "run.json").read_text())["configuration"]
    sizes, wanted = (c["model"]["init_args"]["config"] for c in (configuration, before))
    assert {name: sizes[name] for name in wanted} == wanted
    assert "mixer" not in sizes
    assert configuration["recipe"]["learning_rate"] == before["recipe"]["learning_rate"]
