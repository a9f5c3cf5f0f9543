"""Benchmarks on GPUs say what they do, instead of taking --help for a file or beginning to measure."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("benchmarks")


@pytest.mark.parametrize("name", ["gpu_mixer", "gpu_step", "gpu_tiles", "gpu_death"])
def test_help_is_what_the_module_says_of_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"tests.benchmarks.{name}", raising=False)  # another test may have imported it
    documentation = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"tests.benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert documentation is not None
    assert documentation in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
