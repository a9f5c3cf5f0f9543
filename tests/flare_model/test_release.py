"""The packaged model: made from a run by one command, with the auxiliary files that answers need."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from flare_model import from_pretrained
from flare_model.checkpoints import packaged_model
from flare_model.checkpoints.files import WEIGHTS_NAME
from flare_model.data.intervals import INTERVALS_NAME
from flare_model.data.likeness import DESCRIPTORS, read_training_shapes
from flare_model.evaluate import evaluate
from flare_model.judging.risk_model import RISK_NAME
from flare_model.predict import predict
from flare_model.release import release
from lpbf_data.durable import sha256_of_file
from lpbf_data.errors import StoreError, UsageError


@pytest.fixture(scope="module")
def released(box_dataset: str, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("released")
    (out / INTERVALS_NAME).write_text("of another model")
    before = {path: path.stat().st_mtime_ns for path in trained_run.iterdir()}
    assert release(str(trained_run), box_dataset, out=str(out)) == 0
    assert {path: path.stat().st_mtime_ns for path in trained_run.iterdir()} == before
    return out


def test_a_release_holds_the_model_its_training_shapes_and_a_card(released: Path, trained_run: Path) -> None:
    names = {path.name for path in released.iterdir()} - {RISK_NAME}
    assert names == {WEIGHTS_NAME, "config.json", "likeness.json", "README.md"}  # two designs give no intervals
    digest = sha256_of_file(trained_run / WEIGHTS_NAME)
    seen = read_training_shapes(released)
    assert seen is not None
    assert (seen.parts, seen.weights_sha256) == (8, digest)
    assert seen.quantiles["height"][0] == seen.quantiles["height"][-1] == pytest.approx(24)
    card = (released / "README.md").read_text()
    assert digest in card
    assert re.search(r"\| displacement_z \| \d\.\d{3} \| \d\.\d{3} \| 0\.959 \| ", card)
    assert all(label in card for label, _ in DESCRIPTORS.values())
    points = torch.rand(9, 3)
    with torch.no_grad():
        assert torch.equal(from_pretrained(released)(points), from_pretrained(trained_run)(points))


def test_it_is_evaluated_and_predicts_where_no_checkpoint_is_named(
    released: Path,
    box_dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(packaged_model, "PACKAGED_FOLDER", released)
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in released.iterdir())
    assert evaluate(data=box_dataset, worst=0) == 0
    assert (tmp_path / "own_model/evaluation/test/summary.json").exists()
    assert sorted(path.name for path in released.iterdir()) == before
    assert predict(src=[box_dataset], pictures=False) == 0
    answers = json.loads((tmp_path / "predictions/answers.json").read_text())["parts"]
    assert len(answers) == 2
    assert "2 parts: " in capsys.readouterr().out


def test_weights_that_changed_are_refused(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in released.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / WEIGHTS_NAME).read_bytes())
    data[-1] ^= 1
    (tmp_path / WEIGHTS_NAME).write_bytes(data)
    monkeypatch.setattr(packaged_model, "PACKAGED_FOLDER", tmp_path)
    with pytest.raises(StoreError, match=r"isn't the file that config\.json describes"):
        from_pretrained()


def test_a_card_with_errors_on_training_parts_is_refused(trained_run: Path, box_dataset: str) -> None:
    with pytest.raises(UsageError, match="--split must not be train"):
        release(str(trained_run), box_dataset, split="train")
    with pytest.raises(UsageError, match="--data is missing"):
        evaluate(str(trained_run))
