"""Names that look like a console's markup are printed as they are, by the commands that train and that look inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare_model.spectrum import spectrum
from flare_model.training.recipe import Recipe
from tests.flare_model.flare_support import go


def test_folders_with_marks_are_printed_as_they_are(
    box_dataset: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A closing mark raised, and an opening one vanished."""
    out = tmp_path / "case[/b] [bold]"
    go(box_dataset, out, recipe=Recipe(epochs=1), accelerator="cpu")
    assert f"{out}\n" in capsys.readouterr().out
    found = out / "spectrum [red]"
    assert spectrum(str(trained_run), box_dataset, out=str(found), accelerator="cpu") == 0
    assert capsys.readouterr().out.endswith(f"numbers and pictures in {found}\n")
