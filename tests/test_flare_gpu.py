"""Training on a GPU, where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_model.recipe import Recipe
from flare_model.run_log import read_table
from flare_model.training_state import latest_state
from tests.flare_support import LEARNING, go, kill, losses

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here"),
]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_every_precision_learns_on_a_gpu(box_dataset: str, tmp_path: Path, precision: Any) -> None:
    run = go(box_dataset, tmp_path, recipe=replace(LEARNING, precision=precision), accelerator="gpu")
    errors = read_table(run / "validation.csv")["displacement_z"]
    assert errors[-1] < 0.6 * errors[0]
    latest = latest_state(run)
    assert latest is not None
    scaler = torch.load(latest / "training.pt", weights_only=True)["precision"]
    assert bool(scaler) == (precision == "16-mixed")


@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_a_run_killed_on_a_gpu_goes_on_with_its_loss_scale(box_dataset: str, tmp_path: Path) -> None:
    """Deterministic kernels: the same digits, in 16 bits, the scale of the loss included."""
    recipe = Recipe(epochs=5, accumulate=2, ema_decay=0.8, precision="16-mixed", deterministic=True)
    whole = go(box_dataset, tmp_path / "whole", recipe=recipe, checkpoint_every=3)
    kill(box_dataset, tmp_path / "cut", 5, recipe, checkpoint_every=3)
    cut = go(box_dataset, tmp_path / "cut", recipe=recipe, checkpoint_every=3)
    states = [latest_state(folder) for folder in (whole, cut)]
    scales = [torch.load(s / "training.pt", weights_only=True)["precision"] for s in states if s is not None]
    assert scales[0] == scales[1]
    assert scales[0]["_growth_tracker"] > 0
    assert losses(cut) == losses(whole)


def test_cuda_graphs_give_the_same_losses(box_dataset: str, tmp_path: Path) -> None:
    recipes = [
        Recipe(epochs=2, precision="32-true", round_points=64, compile=mode) for mode in ("off", "reduce-overhead")
    ]
    runs = [go(box_dataset, tmp_path / r.compile, recipe=r, accelerator="gpu") for r in recipes]
    for (_, a, _), (_, b, _) in zip(losses(runs[1]), losses(runs[0]), strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-3)
