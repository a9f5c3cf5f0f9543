"""The contract that every model has to keep, and the refusal of models that break it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from flare_model import from_pretrained
from flare_model.models.contract import check_contract
from flare_model.training.divergence import DivergedError
from flare_model.training.recipe import Recipe
from flare_model.training.training_checkpoint import latest_state
from lpbf_data.errors import UsageError
from tests.flare_model.flare_support import TINY, run_training, tiny_flare
from tests.flare_model.test_flare_checkpoints import Pointwise


class TooWide(Pointwise):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs).repeat(1, 2)


class AddsBatchMean(Pointwise):
    """Adds the mean over the batch, so that the prediction for a mesh depends on the others."""

    def forward(self, *inputs: Tensor) -> Tensor:
        out = super().forward(*inputs)
        return out + inputs[0].mean()


class SumsAlongBatch(Pointwise):
    """Sums along the batch, so that the prediction for the second mesh depends on the first."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs).cumsum(dim=0)


class Normalising(Pointwise):
    """Normalises over all points of a batch in training."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.network.append(nn.BatchNorm1d(out_dim))


class Detached(Pointwise):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs).detach()


class Unused(Pointwise):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.other = nn.Linear(3, 3)


class Failing(Pointwise):
    def forward(self, *inputs: Tensor) -> Tensor:
        raise ValueError("no idea")


class ReturnsList(Pointwise):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs).tolist()  # type: ignore[no-any-return]


class Infinite(Pointwise):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs) / 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (TooWide, r"\[ΣN, T\], here \(144, 1\), but returned \(144, 2\)"),
        (AddsBatchMean, "makes the prediction for a mesh depend on the others of its batch"),
        (SumsAlongBatch, "makes the prediction for a mesh depend on the others of its batch"),
        (Normalising, r"normalises over all points of a batch \(network.3\)"),
        (Detached, "doesn't depend on its parameters"),
        (Failing, r"failed on meshes of \[61, 83\] points \(ValueError: no idea\)"),
        (ReturnsList, "but returned list"),
        (Infinite, "aren't finite before any training"),
    ],
)
def test_models_that_break_the_contract_are_refused(model: type[Pointwise], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_contract(model(3, 1), 0, 1, name="it")


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(UsageError, match="no parameters to train"):
        check_contract(nn.Identity(), 0, 1, name="it")


def test_models_that_keep_the_contract_pass() -> None:
    for model, features, targets in ((Pointwise(3, 1), 0, 1), (Pointwise(5, 2), 2, 2), (tiny_flare(), 0, 1)):
        check_contract(model.train(), features, targets, name="it")
        assert model.training


def test_parameters_without_a_gradient_are_refused_where_processes_wait_for_them() -> None:
    check_contract(Unused(3, 1), 0, 1, name="it")
    with pytest.raises(UsageError, match=r"2 parameters of the model it have no part in what it returns \(other"):
        check_contract(Unused(3, 1), 0, 1, name="it", all_used=True)


class LateInfiniteGradient(Pointwise):
    """Gives an infinite gradient, of a finite loss, in its ninth batch."""

    def forward(self, *inputs: Tensor) -> Tensor:
        out = super().forward(*inputs)
        if self.training:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 9:
                out.register_hook(lambda gradient: gradient * math.inf)
        return out


@pytest.mark.parametrize("options", [{"checkpoint_every": 3}, {"checkpoint_every": 3, "max_steps": 9}])
def test_weights_that_are_not_finite_are_never_saved(box_dataset: str, tmp_path: Path, options: dict[str, Any]) -> None:
    model = {"class_path": f"{__name__}.LateInfiniteGradient"}
    with pytest.raises(DivergedError, match=r"weights are no finite numbers any more at step 9; .*step-00000006"):
        run_training(box_dataset, tmp_path, model=model, recipe=Recipe(epochs=4), **options)
    latest = latest_state(tmp_path)
    assert latest is not None
    for path in (latest / "model.safetensors", *tmp_path.glob("model.safetensors")):
        assert all(values.isfinite().all() for values in safetensors.torch.load_file(path).values())


class Tied(nn.Module):
    """One layer under two names."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.enter = nn.Linear(in_dim, 8)
        self.first = self.second = nn.Linear(8, 8)
        self.leave = nn.Linear(8, out_dim)

    def forward(self, points: Tensor, features: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        """[ΣN, 3] to [ΣN, 1]."""
        out: Tensor = self.leave(self.second(self.first(self.enter(points)).tanh()))
        return out


def test_tied_weights_are_saved_and_stay_tied(box_dataset: str, tmp_path: Path) -> None:
    model = {"class_path": f"{__name__}.Tied"}
    run_training(box_dataset, tmp_path, model=model, checkpoint_every=3, recipe=Recipe(epochs=2, ema_decay=0.5))
    kept = from_pretrained(tmp_path, trust=f"{__name__}.Tied").model
    assert kept.first.weight is kept.second.weight
    assert not torch.equal(kept.first.weight, Tied(3, 1).first.weight)


class NeedsEvenHeads(Pointwise):
    def __init__(self, in_dim: int, out_dim: int, heads: int = 3) -> None:
        super().__init__(in_dim, out_dim)
        assert heads % 2 == 0, "an even number"


def test_a_refused_model_creates_no_folder(box_dataset: str, tmp_path: Path) -> None:
    """So that the corrected command runs with the same --out."""
    name = f"{__name__}.NeedsEvenHeads"
    with pytest.raises(UsageError, match=r"NeedsEvenHeads can't be made from .*: AssertionError an even number"):
        run_training(box_dataset, tmp_path / "run", model={"class_path": name, "init_args": {"heads": 3}})
    assert not (tmp_path / "run").exists()
    run_training(box_dataset, tmp_path / "run", model={"class_path": name, "init_args": {"heads": 4}}, max_steps=1)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["configuration"]["recipe"]["precision"] == "32-true"
    run_training(box_dataset, tmp_path / "ours", model=TINY, max_steps=1)
    ours = json.loads((tmp_path / "ours" / "run.json").read_text())
    assert "model_sha256" in about["code"].keys() - ours["code"].keys()


def test_a_module_that_can_not_be_imported_is_refused_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("class Model(:\n")
    (tmp_path / "raising_module.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, words in (("broken_module", "broken_module.py, line 1"), ("raising_module", "RuntimeError: no")):
        with pytest.raises(UsageError, match=f"{name}.Model can't be imported: .*{words}"):
            run_training("nowhere", tmp_path / "run", model={"class_path": f"{name}.Model"})
