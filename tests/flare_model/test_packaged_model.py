"""The packaged model: its files are complete and belong together, wheels hold it, and it predicts without options."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import trimesh

from flare_model.checkpoints.files import WEIGHTS_NAME
from flare_model.checkpoints.hub import AUXILIARY_NAMES
from flare_model.checkpoints.packaged_model import PACKAGED_FOLDER, packaged_checkpoint
from flare_model.data.likeness import LIKENESS_NAME
from flare_model.predict import predict
from lpbf_data.durable import sha256_of_file

ROOT = Path(__file__).parents[2]


def test_its_files_are_complete_and_name_the_same_weights() -> None:
    names = {path.name for path in PACKAGED_FOLDER.iterdir()}
    needed = {WEIGHTS_NAME, "config.json", "README.md", LIKENESS_NAME}
    assert needed <= names <= needed | set(AUXILIARY_NAMES)
    digest = sha256_of_file(PACKAGED_FOLDER / WEIGHTS_NAME)
    for name in names - {WEIGHTS_NAME, "README.md"}:
        assert json.loads((PACKAGED_FOLDER / name).read_text())["weights_sha256"] == digest
    assert digest in (PACKAGED_FOLDER / "README.md").read_text()
    assert sum(path.stat().st_size for path in PACKAGED_FOLDER.iterdir()) < 5e6
    assert Path(packaged_checkpoint()) == ROOT / "flare_model/pretrained"


def test_wheels_hold_its_files() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["flare_model"]
    held = {path for pattern in patterns for path in (ROOT / "flare_model").glob(pattern)}
    assert set(PACKAGED_FOLDER.iterdir()) <= held


def test_an_stl_gets_an_answer_without_a_checkpoint_being_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trimesh.creation.box((40, 20, 12)).export(tmp_path / "block.stl")
    assert predict(src=[str(tmp_path / "block.stl")], out=str(tmp_path / "out"), pictures=False) == 0
    told = capsys.readouterr()
    assert told.err == ""
    (answer,) = json.loads((tmp_path / "out/answers.json").read_text())["parts"].values()
    assert answer["material"] == "ti64"
    assert answer["hit"]["verdict"] in ("yes", "no", "can't tell")
    assert 40 < answer["hit"]["clearance"] < 105
    assert not answer["likeness"]["unlike"]
    # A block warps up at its rim, by tens of micrometres.
    assert 0 < answer["up"]["value"] < 0.5
    assert abs(answer["up"]["place"][0]) > 15
