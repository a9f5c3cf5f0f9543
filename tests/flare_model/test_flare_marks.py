"""Folders whose names look like console markup are printed unchanged by `train` and `spectrum`."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_model.spectrum import spectrum
from flare_model.training.recipe import Recipe
from tests.flare_model.flare_support import run_training


def test_folders_named_like_markup_are_printed_unchanged(
    box_dataset: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Taken for markup, a closing tag would raise an error and an opening one would not be printed."""
    out = tmp_path / "case[/b] [bold]"
    run_training(box_dataset, out, recipe=Recipe(epochs=1), accelerator="cpu")
    assert f"{out}\n" in capsys.readouterr().out
    found = out / "spectrum [red]"
    assert spectrum(str(trained_run), box_dataset, out=str(found), accelerator="cpu") == 0
    assert capsys.readouterr().out.endswith(f"numbers and pictures in {found}\n")
