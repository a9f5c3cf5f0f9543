"""A configuration trains the model that it describes, or is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from flare_model.checkpoints.spec import ModelSpec
from flare_model.configs import FOLDER
from flare_model.models.flare import Flare, FlareConfig
from flare_model.training.settings import make_settings
from lpbf_data.errors import UsageError
from tests.flare_model.test_flare_checkpoints import POINTWISE
from tests.forked import Program, command


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["elasticity", "pipe", "airfoil"])
def test_a_configuration_for_other_data_is_refused(name: str) -> None:
    """Meshes in the plane have two inputs; points of parts have three."""
    model = ModelSpec(**yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["model"])
    with pytest.raises(UsageError, match=r"configured for 2 numbers a point \(in_dim\), but the data set's points"):
        make_settings(model, ["displacement_z"], [], data="")


def test_training_by_a_configuration_for_other_data_is_refused_in_a_sentence(box_dataset: str, tmp_path: Path) -> None:
    words = ["--data", box_dataset, "--out", str(tmp_path / "run"), "--config", "elasticity"]
    program = Program(command, tmp_path / "said", "flare_model.train", *words)
    assert program.end() == 1
    assert program.text().startswith("error: the model is configured for 2 numbers a point (in_dim)")
    assert program.text().count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_stated_numbers_of_inputs_and_targets_must_fit_the_data() -> None:
    plane = ModelSpec("Flare", {"config": {"in_dim": 2}})
    assert plane.stated_numbers() == {"in_dim": 2}
    assert count(plane.fitted(2, 1).build()) == count(Flare(FlareConfig(in_dim=2)))
    with pytest.raises(UsageError, match=r"2 numbers a point \(in_dim\), but .* with 4: .* and 1 components"):
        make_settings(plane, ["displacement_z"], ["temperature"], data="")
    three = ModelSpec("Transolver", {"config": {"out_dim": 3}})
    assert make_settings(three, ["displacement"], [], data="").model.init_args["config"] == {"in_dim": 3, "out_dim": 3}
    with pytest.raises(UsageError, match=r"to predict 3 numbers a point \(out_dim\), but --targets has 1"):
        make_settings(three, ["displacement_z"], [], data="")


def test_defaults_are_not_stated_numbers_of_inputs_and_targets() -> None:
    default = ModelSpec("Flare", {"config": dataclasses.asdict(FlareConfig())})
    assert default.stated_numbers() == {}
    settings = make_settings(default, ["displacement"], ["temperature"], data="")
    config = settings.model.init_args["config"]
    assert (config["in_dim"], config["out_dim"]) == (4, 3)
    # The options that start the run again leave out the numbers that data and targets give: targets may be others.
    again = ModelSpec(**settings.options["model"])
    assert make_settings(again, ["displacement_z"], [], data="").model.init_args["config"]["out_dim"] == 1


def test_stated_numbers_of_a_model_of_another_package_must_fit_the_data() -> None:
    with pytest.raises(UsageError, match="configured for 2 numbers"):
        make_settings(ModelSpec(POINTWISE, {"in_dim": 2}), ["displacement_z"], [], data="")
    fitted = make_settings(ModelSpec(POINTWISE, {"in_dim": 3, "width": 4}), ["displacement_z"], [], data="").model
    assert fitted.init_args == {"in_dim": 3, "out_dim": 1, "width": 4}


SPELLINGS = ["--model.config.num_blocks", "--model.init_args.config.num_blocks"]
WRONG = ["--model.config.blocks", "--model.init_args.config.blocks", "--model.blocks", "--config.num_blocks"]


def said_by_train(folder: Path, *words: str) -> str:
    program = Program(command, folder / "said", "flare_model.train", "--data", str(folder / "none"), *words)
    assert program.end() != 0
    return program.text()


@pytest.mark.parametrize("option", SPELLINGS)
def test_sizes_of_the_model_have_a_short_and_a_long_spelling(option: str, tmp_path: Path) -> None:
    # What is wrong is found after the options are understood.
    assert "none is no folder of a data set" in said_by_train(tmp_path, option, "4")


@pytest.mark.parametrize("option", WRONG)
def test_another_spelling_is_refused_with_the_right_one(option: str, tmp_path: Path) -> None:
    given = option.replace(".init_args", "")
    right = f"error: unknown option {given}; did you mean {SPELLINGS[0]}? --help lists all\n"
    assert said_by_train(tmp_path, option, "4") == right


@pytest.mark.parametrize(
    "key", ["model.config.num_blocks", "model.init_args.config.blocks", "model.init_args.num_blocks"]
)
def test_another_spelling_in_a_configuration_is_refused_with_the_right_one(key: str, tmp_path: Path) -> None:
    content: object = 4
    for name in reversed(key.split(".")):
        content = {name: content}
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(content))
    right = SPELLINGS[1].removeprefix("--")
    wanted = f"error: unknown entry {key} in the configuration; did you mean {right}? --help lists all\n"
    assert said_by_train(tmp_path, "--config", str(path)) == wanted
