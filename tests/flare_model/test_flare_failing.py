"""Failures that end a training: the error names the cases and a remedy, and the steps that were done are kept."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flare_model.training.recipe import Recipe
from flare_model.training.recorded.step_graphs import StepGraphs
from flare_model.training.run_log import read_table
from flare_model.training.step_errors import StepFailedError, step_error
from flare_model.training.stepper import Stepper
from flare_model.training.training_checkpoint import latest_state
from lpbf_data.errors import StoreError
from lpbf_data.serving.loader import Loader
from tests.flare_model.flare_support import losses, run_training
from tests.flare_model.test_flare_checkpoints import Pointwise

BROKEN: dict[str, Any] = {"at": 0, "raises": None, "training": True}
"""In which pass the model below raises which exception, and whether in training or in validation."""


class Breaking(Pointwise):
    """Raises in one of its forward passes, as BROKEN says."""

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.training == BROKEN["training"] and BROKEN["raises"]:
            BROKEN["at"] -= 1
            if BROKEN["at"] == 0:
                raise BROKEN["raises"]
        return super().forward(*inputs)


CASE = r"1000\d\d_\w+"
MODEL = {"class_path": f"{__name__}.Breaking"}


def set_failure(monkeypatch: pytest.MonkeyPatch, at: int, raises: Exception | None, *, training: bool = True) -> None:
    for name, value in {"at": at, "raises": raises, "training": training}.items():
        monkeypatch.setitem(BROKEN, name, value)


@pytest.mark.parametrize(
    ("raises", "words"),
    [
        (
            IndexError("no such corner"),
            (
                r"Breaking raised IndexError: no such corner \(.*test_flare_failing.py, line \d+\) in step 6 of the "
                rf"training, with cases {CASE}, {CASE} \(\d+ points\); mend the model"
            ),
        ),
        (
            torch.OutOfMemoryError("tried to allocate"),
            r"step 6 of the training doesn't fit into memory, with cases 1000.* lower --recipe.batch_size",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "doesn't fit into memory, with cases"),
    ],
)
def test_a_model_that_raises_names_the_cases_and_keeps_the_steps_that_were_done(
    box_dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raises: Exception,
    words: str,
) -> None:
    """In the second half of an accumulated step; the resumed run has the losses of one that never failed."""
    recipe = Recipe(epochs=4, accumulate=2, ema_decay=0.5)
    whole = run_training(box_dataset, tmp_path / "whole", MODEL, recipe=recipe)
    set_failure(monkeypatch, 12, raises)
    with pytest.raises(StepFailedError, match=words):
        run_training(box_dataset, tmp_path / "cut", MODEL, recipe=recipe)
    latest = latest_state(tmp_path / "cut")
    assert latest is not None
    assert latest.name == "step-00000005"
    assert "the 5 steps that were done are kept" in capsys.readouterr().err
    set_failure(monkeypatch, 0, None)
    cut = run_training(box_dataset, tmp_path / "cut", MODEL, recipe=recipe)
    assert losses(cut) == losses(whole)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_validation_that_fails_names_its_cases(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_failure(monkeypatch, 2, ValueError(), training=False)
    # Checking the contract calls the model in evaluation mode too.
    monkeypatch.setattr("flare_model.training.stepper.check_contract", lambda *_, **__: None)
    with pytest.raises(StepFailedError, match=r"raised ValueError \(.*\) in validation, with cases 1000.*; mend"):
        run_training(box_dataset, tmp_path, MODEL, recipe=Recipe(epochs=3))
    latest = latest_state(tmp_path)
    assert latest is not None
    assert latest.name == "step-00000016"


def validated_steps(run: Path) -> list[float]:
    return read_table(run / "validation.csv")["step"]


@pytest.mark.parametrize(("at", "kept"), [(3, 24), (2, 16)])
def test_a_failed_validation_is_repeated_when_the_run_resumes(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, kept: int
) -> None:
    """After the last step, or before: nothing that was trained is lost, and no validation is left out or done twice."""
    monkeypatch.setattr("flare_model.training.stepper.check_contract", lambda *_, **__: None)
    recipe = Recipe(epochs=3)
    whole = run_training(box_dataset, tmp_path / "whole", MODEL, recipe=recipe)
    assert validated_steps(whole) == [8, 16, 24]
    cut = tmp_path / "cut"
    for _ in range(2):
        set_failure(monkeypatch, at, MemoryError("no more"), training=False)
        with pytest.raises(StepFailedError):
            run_training(box_dataset, cut, MODEL, recipe=recipe)
        assert [p.name for p in (cut / "checkpoints").iterdir()] == [f"step-{kept:08d}"]
        assert not (cut / "result.json").exists()
        at = 1  # Resumed, it fails at once in the validation that is due.
    set_failure(monkeypatch, 0, None)
    run_training(box_dataset, cut, MODEL, recipe=recipe)
    assert validated_steps(cut) == validated_steps(whole)
    assert (cut / "validation.csv").read_bytes() == (whole / "validation.csv").read_bytes()
    assert losses(cut) == losses(whole)
    assert (cut / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_step_that_fails_after_a_validation_does_not_repeat_it(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_failure(monkeypatch, 9, IndexError("no such corner"))
    with pytest.raises(StepFailedError):
        run_training(box_dataset, tmp_path, MODEL)
    set_failure(monkeypatch, 0, None)
    assert validated_steps(run_training(box_dataset, tmp_path, MODEL)) == [8, 16]


def test_a_validation_that_lacks_memory_suggests_what_helps_there(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation reads whole cases, at least 65,536 points together, and keeps no activations."""
    monkeypatch.setattr("flare_model.training.stepper.check_contract", lambda *_, **__: None)
    plain = "go on where there is more memory; else begin another run, and leave such large parts out of the validation"
    for number, (most, cure) in enumerate(((0, plain), (100_000, r"lower --recipe.max_points \(to 65,536 or less\)"))):
        set_failure(monkeypatch, 1, torch.OutOfMemoryError("tried to allocate"), training=False)
        with pytest.raises(StepFailedError, match=f"^validation doesn't fit into memory.*{cure}") as told:
            run_training(box_dataset, tmp_path / str(number), MODEL, recipe=Recipe(epochs=1, max_points=most))
        for ignored in ("batch_size", "thin_to", "activation_checkpointing"):
            assert ignored not in str(told.value)


class Drawing(Breaking):
    """Adds noise of every generator that a model may draw from, before it may raise."""

    def forward(self, *inputs: Tensor) -> Tensor:
        noise = torch.rand(1) + random.random() + float(np.random.rand()) if self.training else 0  # noqa: NPY002
        return super().forward(*inputs) + 0.01 * noise


@pytest.mark.parametrize("num_workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_random_numbers_after_a_failure_are_those_of_a_run_that_never_failed(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """The failed step has already drawn numbers, and worker processes of the loader start anew with every loop."""
    model, options = {"class_path": f"{__name__}.Drawing"}, {"num_workers": num_workers}
    whole = run_training(box_dataset, tmp_path / "whole", model, **options)
    set_failure(monkeypatch, 6, IndexError("no such corner"))
    with pytest.raises(StepFailedError):
        run_training(box_dataset, tmp_path / "cut", model, **options)
    set_failure(monkeypatch, 0, None)
    assert losses(run_training(box_dataset, tmp_path / "cut", model, **options)) == losses(whole)


def test_steps_are_kept_when_data_can_not_be_read_any_more(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, plain, left = run_training(box_dataset, tmp_path / "whole"), Loader.__iter__, [11]

    def interrupted(self: Loader) -> Any:
        for batch in plain(self):
            left[0] -= 1
            if left[0] == 0:
                raise StoreError("the server is away")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "__iter__", interrupted)
        with pytest.raises(StoreError, match="the server is away"):
            run_training(box_dataset, tmp_path / "cut")
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000009"]
    assert losses(run_training(box_dataset, tmp_path / "cut")) == losses(whole)


def test_weights_of_a_half_done_step_are_not_saved(
    box_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the optimiser raises, its step may be half done: the checkpoint before it stays the latest."""
    plain = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        done = plain(self, *arguments, **named)
        if self.state[self.param_groups[0]["params"][0]]["step"] == 6:
            raise RuntimeError("half of it")
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(StepFailedError, match=r"RuntimeError: half of it \(.*\) in step 6 of the training"):
        run_training(box_dataset, tmp_path, checkpoint_every=4)
    latest = latest_state(tmp_path)
    assert latest is not None
    assert latest.name == "step-00000004"


def test_a_failed_recording_changes_no_weights_but_a_failed_replay_may() -> None:
    """Weights may be saved after a graph could not be recorded, but not after its replay failed."""
    stepper = object.__new__(Stepper)
    stepper.recorded, stepper._step_complete = True, True
    stepper.graphs = object.__new__(StepGraphs)
    for replaying in (False, True):
        stepper.graphs.replaying = replaying
        assert stepper.between_steps is not replaying


def test_errors_name_four_cases_and_distinguish_another_process() -> None:
    names = [f"case-{number}" for number in range(70)]
    assert "with cases case-0, case-1, case-2, case-3 and 66 more (900 points)" in str(
        step_error(ValueError("x"), "validation", names, 900, "my.Model")
    )
    gone = step_error(RuntimeError("[gloo] Connection closed by peer"), "step 3", names[:1], 9, "my.Model")
    assert str(gone).startswith("another process of the run ended, at step 3 of this one")
