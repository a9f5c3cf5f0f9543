"""Tests that published things stay: commands, public names, import paths, entry points, class paths in checkpoints."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import flare_model
import lpbf_data
from flare_model import Flare, from_pretrained
from flare_model.checkpoints.files import read_checkpoint
from flare_model.checkpoints.restore_model import restore_model
from flare_model.checkpoints.spec import SHIPPED, ModelSpec
from tests.rounding import spread
from tests.test_startup import HEAVY

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CHECKPOINT = ROOT / "tests" / "golden" / "checkpoint"
PACKAGES = ("lpbf_data", "pipelines", "flare_model")
COMMANDS = [
    *(f"pipelines.{name}" for name in ("build", "verify", "report", "publish", "simulate", "calibrate", "compensate")),
    *(f"flare_model.{name}" for name in ("train", "evaluate", "predict", "spectrum", "release", "compensate", "serve")),
]
SUBPACKAGES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py"))


def readme_imports() -> list[tuple[str, str | None]]:
    """Our modules, and the name imported from each (or None), in the code blocks of READMEs."""
    found: set[tuple[str, str | None]] = set()
    for readme in (ROOT / "README.md", *(ROOT / package / "README.md" for package in PACKAGES)):
        for block in re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL):
            for node in ast.walk(ast.parse(textwrap.dedent(block))):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
                    found |= {(node.module, alias.name) for alias in node.names}
                elif isinstance(node, ast.Import):
                    found |= {(n.name, None) for n in node.names if n.name.partition(".")[0] in PACKAGES}
    return sorted(found, key=str)


@pytest.mark.parametrize("module", COMMANDS)
def test_commands_are_where_they_were(module: str) -> None:
    assert callable(importlib.import_module(module).main)
    assert f"{module}:main" in PROJECT["project"]["scripts"].values()


@pytest.mark.parametrize("package", [lpbf_data, flare_model])
def test_public_names(package: Any) -> None:
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith(f"{package.__name__}.")


def test_import_paths_of_readmes() -> None:
    imports = readme_imports()
    assert {module for module, _ in imports} >= {"lpbf_data", "lpbf_data.transforms"}
    for module, name in imports:
        loaded = importlib.import_module(module)
        assert name is None or hasattr(loaded, name), f"{module}.{name}"


@pytest.mark.parametrize(
    ("published", "home"),
    [("schema", "case.schema"), ("batching", "serving.collating"), ("transforms", "serving.transforms")],
)
def test_published_paths_give_the_very_same_objects(published: str, home: str) -> None:
    module = importlib.import_module(f"lpbf_data.{published}")
    at_home = importlib.import_module(f"lpbf_data.{home}")
    ours = {
        name
        for name, value in vars(at_home).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == at_home.__name__
    }
    assert ours
    assert ours <= set(module.__all__)
    assert all(getattr(module, name) is getattr(at_home, name) for name in module.__all__)


def test_entry_point_of_mesh_readers() -> None:
    readers = PROJECT["project"]["entry-points"]["flare_model.mesh_readers"]
    assert readers == {"ensight": "pipelines.ensight"}
    assert importlib.util.find_spec(readers["ensight"]) is not None


@pytest.mark.numeric
def test_a_checkpoint_from_before_the_move() -> None:
    expected = json.loads((CHECKPOINT / "expected.json").read_text(encoding="utf-8"))
    weights, description = read_checkpoint(CHECKPOINT)
    model = restore_model(weights, description.model, folder=CHECKPOINT)
    assert isinstance(model, Flare)
    points = torch.linspace(0, 1, 12).reshape(1, 4, 3).double()
    (values,), (error,) = spread(lambda: [model.double()(points)], torch.float32)
    assert (torch.tensor(expected["values"]).double() - values.flatten()).norm() <= 4 * error  # stored in float32
    assert from_pretrained(CHECKPOINT).usage.targets == ("displacement_z",)


@pytest.mark.parametrize("name", ["model.Flare", "models.flare.Flare"])
def test_class_paths_of_modules_name_the_shipped_model(tmp_path: Path, name: str) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["class_path"] = f"flare_model.{name}"
    path.write_text(json.dumps(content), encoding="utf-8")
    weights, description = read_checkpoint(path.parent)
    assert description.model.class_path == "flare_model.Flare"
    assert isinstance(restore_model(weights, description.model, folder=path.parent), Flare)


def test_every_shipped_model_by_its_module_of_before() -> None:
    for name in ("Flare", "Transformer", "Transolver"):
        before = {"Flare": "model"}.get(name, name.lower())
        assert ModelSpec(f"flare_model.{before}.{name}").class_path == f"flare_model.{name}"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_model_by_its_module_of_today(name: str) -> None:
    model = getattr(flare_model, name)
    assert ModelSpec(f"{model.__module__}.{name}").class_path == f"flare_model.{name}"


@pytest.mark.parametrize("path", SUBPACKAGES, ids=lambda path: f"{path.parts[-3]}.{path.parts[-2]}")
def test_subpackages_say_in_two_lines_what_they_are_for(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    lines = [line for line in said.splitlines() if line]
    assert len(lines) == 2
    assert all(line.endswith(".") for line in lines)


def test_subpackages_import_nothing_heavy() -> None:
    """Who imports one module of a subpackage mustn't wait for what its other modules need."""
    names = [f"{path.parts[-3]}.{path.parts[-2]}" for path in SUBPACKAGES]
    code = (
        "import importlib, json, sys\n"
        "watched, names = json.loads(sys.argv[1])\n"
        "loaded = {}\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "    loaded[name] = [heavy for heavy in watched if sys.modules.pop(heavy, None)]\n"
        "print(json.dumps({name: heavy for name, heavy in loaded.items() if heavy}))\n"
    )
    # Last: importing it loads meshio, to register its format there, and that mustn't count for the others.
    names.sort(key=lambda name: name == "pipelines.ensight")
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([HEAVY, names])], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"pipelines.ensight": ["meshio"]}


@pytest.mark.parametrize("package", PACKAGES)
def test_readmes_have_a_line_a_subpackage(package: str) -> None:
    subpackages = {path.parts[-2] for path in SUBPACKAGES if path.parts[-3] == package}
    table = re.findall(r"^\| `(\w+)/` \|", (ROOT / package / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == sorted(subpackages)


def test_every_subpackage_has_its_layer() -> None:
    """A subpackage that no contract names could import from anywhere."""
    for package in PACKAGES:
        contract = next(
            contract
            for contract in PROJECT["tool"]["importlinter"]["contracts"]
            if contract.get("containers") == [package]
        )
        named = {name.strip() for layer in contract["layers"] for name in re.split(r"[|:]", layer)}
        assert {path.parts[-2] for path in SUBPACKAGES if path.parts[-3] == package} <= named


def test_packages_load_without_torch() -> None:
    code = "import sys, lpbf_data, flare_model, pipelines; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
