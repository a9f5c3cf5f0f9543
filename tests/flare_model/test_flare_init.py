"""`train --init`: a run that starts from the weights of another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_model.checkpoints.files import read_checkpoint, write_checkpoint
from flare_model.checkpoints.surrogate import from_pretrained
from flare_model.data.envelope import Envelope, Range, merge_envelopes
from flare_model.train import train
from flare_model.training.recipe import Recipe
from lpbf_data.errors import StoreError, UsageError
from tests.flare_model.flare_support import TINY, losses, run_training, train_until_killed

UNCHANGING = Recipe(epochs=1, learning_rate=1e-12, weight_decay=0.0)
"""Steps that change weights by less than a test can measure."""


@pytest.fixture(scope="module")
def start(box_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two targets and one input feature."""
    folder = tmp_path_factory.mktemp("start") / "run"
    options = {"targets": ["displacement", "build_clearance_min"], "features": ["solid_above"], "seed": [3]}
    return run_training(box_dataset, folder, recipe=Recipe(epochs=2, loss="mse"), **options)


def fine_tune(data: str, folder: Path, start: Path, **options: Any) -> Path:
    """Train from another run as the command line does: without sizes of the model, whose defaults are others."""
    recipe = options.pop("recipe", UNCHANGING)
    assert train(data, out=str(folder), init=str(start), recipe=recipe, **options) == 0
    return folder


def test_a_run_starts_from_weights_targets_features_and_normalisation(
    box_dataset: str, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = from_pretrained(start)
    run = fine_tune(box_dataset, tmp_path / "run", start)
    assert "the run predicts displacement, build_clearance_min from the features solid_above" in capsys.readouterr().err
    after = from_pretrained(run)
    assert after.usage.targets == before.usage.targets
    assert after.usage.normalisation == before.usage.normalisation
    assert after.spec == before.spec
    for name, weights in before.stored_weights().items():
        torch.testing.assert_close(after.stored_weights()[name], weights, atol=1e-8, rtol=0)
    assert after.usage.envelope is not None
    assert after.usage.envelope.num_cases == 16
    told = json.loads((run / "run.json").read_text())["configuration"]["init"]
    assert told == {"weights_sha256": json.loads((start / "config.json").read_text())["weights_sha256"]}
    assert f"init: {start}" in (run / "config.yaml").read_text()


def test_a_killed_run_resumes(box_dataset: str, start: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"init": str(start), "checkpoint_every": 3}
    names: dict[str, Any] = {"targets": ["displacement", "build_clearance_min"], "features": ["solid_above"]}
    recipe = Recipe(epochs=2, loss="mse", ema_decay=0.9)
    whole = run_training(box_dataset, tmp_path / "whole", recipe=recipe, **options)
    train_until_killed(box_dataset, tmp_path / "cut", 7, recipe, **options, **names)
    assert losses(run_training(box_dataset, tmp_path / "cut", recipe=recipe, **options)) == losses(whole)
    with pytest.raises(UsageError, match=r"another configuration \(--init"):
        run_training(box_dataset, tmp_path / "cut", recipe=recipe, checkpoint_every=3, **names)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"targets": ["displacement", "temperature"]},
            "--targets displacement build_clearance_min, and this run",
        ),
        ({"features": ["geometry"]}, "trained with --features solid_above"),
        ({"model": {"class_path": "Transformer"}}, r"--model: flare_model.Flare → flare_model.Transformer"),
        ({"model": {"init_args": {"config": {"num_blocks": 2}}}}, r"--model.config.num_blocks: 1 → 2"),
    ],
)
def test_targets_features_and_models_that_differ_are_refused(
    box_dataset: str, start: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        fine_tune(box_dataset, tmp_path / "run", start, **options)
    assert not (tmp_path / "run").exists()


def test_targets_features_and_models_that_agree_are_accepted(box_dataset: str, start: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {"targets": ["displacement", "build_clearance_min"], "features": ["solid_above"]}
    assert (fine_tune(box_dataset, tmp_path / "run", start, model=TINY, **names) / "result.json").exists()


def test_another_unit_is_refused_and_another_scale_gets_a_warning(
    box_dataset: str, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for factor, refused in ((1000.0, True), (20.0, False)):
        other = tmp_path / f"scaled-{factor:g}"
        shutil.copytree(start, other)
        weights, description = read_checkpoint(other)
        assert description.usage is not None
        norm = description.usage.normalisation
        shrunk = {name: tuple(v / factor for v in getattr(norm, name)) for name in ("target_mean", "target_std")}
        for name, values in shrunk.items():
            object.__setattr__(norm, name, values)
        write_checkpoint(other, weights, description)
        if refused:
            with pytest.raises(UsageError, match=r"root mean square of displacement_x is .*; look at the unit"):
                fine_tune(box_dataset, tmp_path / f"run-{factor:g}", other)
        else:
            fine_tune(box_dataset, tmp_path / f"run-{factor:g}", other)
            assert "whose scale is kept" in capsys.readouterr().err


def test_a_missing_checkpoint_is_refused(box_dataset: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="neither a folder"):
        fine_tune(box_dataset, tmp_path / "run", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="no readable checkpoint"):
        fine_tune(box_dataset, tmp_path / "run", tmp_path / "empty")


def test_the_envelope_covers_both_trainings() -> None:
    first = Envelope(2, Range(10, 20), Range(1, 2), Range(1, 5), ("Ti64",), 15.0)
    second = Envelope(3, Range(15, 40), Range(0.5, 1), Range(2, 3), ("IN718",), 30.0)
    both = Envelope(5, Range(10, 40), Range(0.5, 2), Range(1, 5), ("IN718", "Ti64"), 30.0)
    assert merge_envelopes(first, second) == both
    assert merge_envelopes(None, second) == merge_envelopes(second, None) == second
