"""Tests of the extras: `pip install lpbf-flare` brings what reading data needs, each extra what its package imports."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lpbf_data.extras import MODULES_OF_EXTRAS, script_of

ROOT: Final = Path(__file__).parents[1]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES: Final = ("lpbf_data", "pipelines", "flare_model")

SURFACES: Final = (
    *(f"geometry/{name}.py" for name in ("compensation", "render", "surface_files", "surface_repair", "voxelize")),
    *(f"viewer/{name}.py" for name in ("page", "palettes")),
)
"""Modules of lpbf_data that need the extra `surfaces`; no module of reading and serving may import them."""

ALLOWED: Final = {
    "analysis.py": {"dask", "xarray"},
    "testing.py": {"hypothesis"},  # strategies for tests of users who have it
    **{name: {"PIL", "jinja2", "manifold3d", "markupsafe", "matplotlib", "pyvista", "scipy"} for name in SURFACES},
    "geometry/render.py": {"PIL", "pyvista", "vtkmodules"},
}
"""Modules that single files of lpbf_data may import beside those that the base installs."""

BROUGHT_ALONG: Final = {"markupsafe": "jinja2", "vtkmodules": "pyvista"}
"""Modules that are always installed by another package: its module."""

OF_MODEL: Final = {"lightning-fabric", "llvmlite", "triton"}
SUBSTITUTED: Final[Mapping[str, set[str]]] = {"model": OF_MODEL, "serve": OF_MODEL, "pipelines": set()}
"""Packages of an extra that its commands can do without: `lightning` has Fabric too, PyTorch computes FLARE."""


def requirements(extra: str | None = None) -> set[str]:
    """Normalised names of the packages that an extra (None: the base) requires, also by extras that it names."""
    found: set[str] = set()
    for line in PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]:
        asked = Requirement(line)
        if asked.name == PROJECT["name"]:
            found = found.union(*map(requirements, asked.extras))
        else:
            found.add(canonicalize_name(asked.name))
            found |= {"distributed"} if "distributed" in asked.extras else set()
    return found


@cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def packages_of(module: str) -> set[str]:
    """Normalised names of the packages that install a module."""
    module = BROUGHT_ALONG.get(module, module)
    # Python 3.11 doesn't list packages of a compiled module without a folder, such as manifold3d.
    return {canonicalize_name(name) for name in _distributions().get(module, [module])}


def imports(path: Path) -> Iterator[str]:
    """Top-level names of all modules that a file imports, also in functions, without our own and Python's."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        yield from {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, *PACKAGES}


def third_party(package: str) -> dict[str, set[str]]:
    """Path of each file in a package to the third-party modules that it imports."""
    folder = ROOT / package
    return {path.relative_to(folder).as_posix(): set(imports(path)) for path in sorted(folder.rglob("*.py"))}


def test_the_base_reads_and_serves() -> None:
    for path, modules in third_party("lpbf_data").items():
        for module in modules - ALLOWED.get(path, set()):
            assert packages_of(module) & requirements(), f"{path} imports {module}"


def test_reading_and_serving_import_nothing_of_surfaces() -> None:
    surfaces = {f"lpbf_data.{name.removesuffix('.py').replace('/', '.')}" for name in SURFACES}
    beside = {"geometry", "viewer"}
    for path in sorted((ROOT / "lpbf_data").rglob("*.py")):
        if path.parent.name not in beside:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            assert not {node.module for node in nodes if isinstance(node, ast.ImportFrom)} & surfaces, path


@pytest.mark.parametrize(("package", "extra"), [("pipelines", "pipelines"), ("flare_model", "serve")])
def test_an_extra_brings_what_its_package_imports(package: str, extra: str) -> None:
    brought = requirements() | requirements(extra)
    for path, modules in third_party(package).items():
        for module in modules:
            assert packages_of(module) & brought, f"{path} imports {module}"


def test_the_model_needs_no_server_beyond_its_page() -> None:
    brought = requirements() | requirements("model")
    beyond = {
        path
        for path, modules in third_party("flare_model").items()
        if not all(packages_of(module) & brought for module in modules)
    }
    assert beyond == {f"local_page/{name}.py" for name in ("app", "same_origin", "server")}


@pytest.mark.parametrize("extra", MODULES_OF_EXTRAS)
def test_commands_look_for_all_that_their_extra_brings(extra: str) -> None:
    found = [packages_of(module) for module in MODULES_OF_EXTRAS[extra]]
    expected = requirements(extra) - SUBSTITUTED[extra]
    assert all(names & expected for names in found)
    assert expected <= set().union(*found)


def test_all_and_dev_hold_every_other_extra() -> None:
    extras = set(PROJECT["optional-dependencies"]) - {"all", "dev"}
    assert requirements("all") == set().union(*map(requirements, extras))
    assert requirements("all") < requirements("dev")


WITHOUT_EXTRAS: Final = """
import json, sys

missing, module, words = json.loads(sys.argv[1])
sys.modules |= dict.fromkeys(missing)  # as if they weren't installed
sys.argv[1:] = words
__import__(module, fromlist=["main"]).main()
"""


@pytest.mark.parametrize("script", sorted(PROJECT["scripts"].keys() - {"lpbf-verify"}))
def test_commands_say_which_extra_they_need(script: str) -> None:
    module = PROJECT["scripts"][script].partition(":")[0]
    extra = "serve" if module == "flare_model.serve" else "pipelines" if module.startswith("pipelines.") else "model"
    missing = sorted({*MODULES_OF_EXTRAS[extra], "lightning_fabric", "starlette", "uvicorn", "xarray"})

    def called(*words: str) -> subprocess.CompletedProcess[str]:
        asked = json.dumps([missing, module, words])
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_EXTRAS, asked], cwd=ROOT, capture_output=True, text=True, check=False
        )

    done = called()
    assert done.returncode == 1
    names = ", ".join(MODULES_OF_EXTRAS[extra])
    assert done.stderr == (
        f"error: python -m {module} needs packages that aren't installed ({names}): "
        f"python -m pip install 'lpbf-flare[{extra}]', in a clone -c constraints.txt '.[{extra}]'\n"
    )
    assert called("--help").returncode == 0


def test_verifying_needs_no_extra(small_dataset: Path) -> None:
    """On one worker; several need Dask, and the error says so."""
    missing = sorted({module for modules in MODULES_OF_EXTRAS.values() for module in modules})

    def called(missing: list[str], workers: str | None) -> subprocess.CompletedProcess[str]:
        words = [str(small_dataset), *(("--workers", workers) if workers else ())]
        asked = json.dumps([missing, "pipelines.verify", words])
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_EXTRAS, asked], cwd=ROOT, capture_output=True, text=True, check=False
        )

    without, complete = called(missing, None), called([], "0")
    assert without.stdout == complete.stdout
    assert without.returncode == complete.returncode
    refused = called(missing, "2")
    assert refused.returncode == 1
    assert "needs Dask, which isn't installed: python -m pip install 'lpbf-flare[pipelines]'" in refused.stderr


def test_a_model_without_its_extra_says_what_to_install() -> None:
    """By an ImportError, since that is what programs catch that can do without the model."""
    program = f"import sys; sys.modules |= dict.fromkeys({['safetensors']}); from flare_model import from_pretrained"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: flare_model.from_pretrained needs safetensors, which isn't installed: "
        "python -m pip install 'lpbf-flare[model]', in a clone -c constraints.txt '.[model]'"
    )
    assert done.stderr.count("Traceback") == 1


def test_scripts_are_known_to_the_help() -> None:
    for script, entry in PROJECT["scripts"].items():
        assert script_of(f"python -m {entry.removesuffix(':main')}") == script


def test_one_missing_package_is_named() -> None:
    asked = json.dumps([["pyamg"], "pipelines.simulate", []])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, asked], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "aren't installed (pyamg): " in done.stderr
