"""Tests of what commands import: for help and errors in options nothing heavy, for their work only what it needs."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch

import flare_model
from flare_model.checkpoints.spec import SHIPPED
from flare_model.layers.backend import mix_by_kernels, network_by_kernels
from flare_model.predict import Prediction, write_vtu
from flare_model.prediction.parts import Meshing, read_parts
from tests.flare_model.flare_support import tiny_surrogate

REPOSITORY: Final = Path(__file__).parents[1]
PROJECT: Final = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS: Final[dict[str, str]] = PROJECT["scripts"]

COMPILER: Final = ("torch._dynamo", "torch._inductor", "sympy")

HEAVY: Final = (
    *COMPILER, "PIL", "dask", "datasets", "distributed", "fsspec", "httpx2", "huggingface_hub", "jinja2", "lightning",
    "lightning_fabric", "llvmlite", "matplotlib", "meshio", "networkx", "numba", "numcodecs", "pandas", "pyamg",
    "pyarrow", "pyvista", "scipy", "skfem", "starlette", "tensorboard", "torch", "torch_geometric", "trimesh", "triton",
    "uvicorn", "vtkmodules", "zarr",
)  # fmt: skip

LOADED: Final = """
import atexit, json, os, runpy, sys

watched, place = json.loads(os.environ["WATCHED"]), os.environ["LOADED"]

@atexit.register
def tell():
    with open(place, "w", encoding="utf-8") as file:
        json.dump([name for name in watched if name in sys.modules], file)

target = sys.argv.pop(1)
module, _, function = target.partition(":")
if function:  # as the script of an installed package does it
    sys.argv[0] = function
    sys.exit(getattr(__import__(module, fromlist=[function]), function)())
sys.argv[0] = module
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


FORKS: Final = """
import json, os, signal, sys

import docstring_parser, jsonargparse, numpy, typeshed_client, yaml

program, folder, environment, words = None, None, None, None
for line in sys.stdin:
    program, folder, environment, words = json.loads(line)
    process = os.fork()
    if not process:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm(120)  # a command that hangs ends, with status -14
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
for number, name in enumerate((os.devnull, "stdout", "stderr")):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), number)
sys.argv = ["-c", *words]
exec(compile(program, "<string>", "exec"))
"""
"""Program of a process that imports the third-party modules that every command needs, and forks for each command."""

Runs = Callable[[str, Sequence[str], Path], tuple[subprocess.CompletedProcess[str], set[str]]]


@pytest.fixture(scope="module")
def run_forked() -> Iterator[Runs]:
    """Like `run_command` for the watched modules `HEAVY`, but faster: commands are forked, on Linux."""
    if sys.platform != "linux":  # Apple's arithmetic library doesn't survive a fork
        yield run_command
        return
    own = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"}
    server = subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=own, encoding="utf-8"
    )

    def run(target: str, words: Sequence[str], folder: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
        assert server.stdin is not None
        assert server.stdout is not None
        place = folder / "loaded.json"
        place.unlink(missing_ok=True)
        environment = own | {"WATCHED": json.dumps([*HEAVY]), "LOADED": str(place)}
        print(json.dumps([LOADED, str(folder), environment, [target, *words]]), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        assert place.exists(), f"status {status}: {(folder / 'stderr').read_text(encoding='utf-8')}"
        said = ((folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        done = subprocess.CompletedProcess([target, *words], status, *said)
        return done, set(json.loads(place.read_text(encoding="utf-8")))

    try:
        yield run
        server.communicate(timeout=30)
        assert server.returncode == 0
    finally:
        server.kill()


def run_command(
    target: str, words: Sequence[str], folder: Path, watched: Collection[str] = HEAVY
) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a command in a process of its own: how it ended, and which of the watched modules it had imported by then.

    Args:
        target: A module, run as `python -m` does, or module:function.
        words: Arguments.
        folder: Working directory of the process.
        watched: Names of modules.
    """
    place = folder / "loaded.json"
    place.unlink(missing_ok=True)
    environment = os.environ | {"WATCHED": json.dumps([*watched]), "LOADED": str(place), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, target, *words],
        capture_output=True, text=True, check=False, cwd=folder, env=environment, encoding="utf-8",
    )  # fmt: skip
    return done, set(json.loads(place.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", [name for name in HEAVY if name != "lightning"])
def test_the_watched_modules_are_there(name: str) -> None:
    assert importlib.util.find_spec(name) is not None


@pytest.mark.slow  # the same as above, with all of them imported
def test_the_watched_modules_are_seen(tmp_path: Path) -> None:
    # No name in the list is misspelt: once the modules are imported, all are found.
    names = [name for name in HEAVY if name != "lightning"]  # the other package that contains Fabric
    (tmp_path / "everything.py").write_text("\n".join(f"import {name}" for name in names), encoding="utf-8")
    environment = os.environ | {"WATCHED": json.dumps(names), "LOADED": str(tmp_path / "loaded.json")}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADED, "everything"], check=True, cwd=tmp_path, env=environment
    )
    assert set(json.loads((tmp_path / "loaded.json").read_text(encoding="utf-8"))) == set(names)


# Errors in options, below, are those of scripts.
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("how", ["module", pytest.param("script", marks=pytest.mark.slow)])
def test_help_imports_nothing_heavy(script: str, how: str, tmp_path: Path, run_forked: Runs) -> None:
    target = SCRIPTS[script]
    done, loaded = run_forked(target if how == "script" else target.partition(":")[0], ["--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert "--config" in done.stdout
    assert not loaded


WRONG_TYPE: Final = {
    "lpbf-build": ["--src", "cases", "--seed", "many"],
    "lpbf-calibrate": ["--out", "my.yaml", "--points", "many"],
    "lpbf-compensate": ["--src", "part.stl", "--out", "new.stl", "--points", "many"],
    "lpbf-compensate-simulated": ["--src", "part.stl", "--out", "new.stl", "--points", "many"],
    "lpbf-evaluate": ["--checkpoint", "run", "--data", "set", "--worst", "many"],
    "lpbf-pack": ["--src", "set", "--out", "packed", "--tolerance", "many"],
    "lpbf-predict": ["--checkpoint", "run", "--src", "part.stl", "--points", "many"],
    "lpbf-publish": ["set", "--repo", "user/name", "--workers", "many"],
    "lpbf-release": ["--checkpoint", "run", "--data", "set", "--threshold_cases", "many"],
    "lpbf-report": ["set", "--gallery", "many"],
    "lpbf-serve": ["--port", "many"],
    "lpbf-simulate": ["--out", "cases", "--seed", "many"],
    "lpbf-spectrum": ["--checkpoint", "run", "--data", "set", "--cases", "many"],
    "lpbf-train": ["--data", "set", "--recipe.epochs", "many"],
    "lpbf-unpack": ["--src", "packed", "--out", "set", "--shard_megabytes", "many"],
    "lpbf-verify": ["set", "--workers", "many"],
}

OUT_OF_RANGE: Final = {
    "lpbf-build": ["--src", "cases", "--workers", "-1"],
    "lpbf-calibrate": ["--out", "my.yaml", "--points", "7"],
    "lpbf-compensate": ["--src", "part.stl", "--out", "new.stl", "--scale", "6"],
    "lpbf-compensate-simulated": ["--src", "part.stl", "--out", "new.stl", "--iterations", "0"],
    "lpbf-evaluate": ["--checkpoint", "run", "--data", "set", "--worst", "-1"],
    "lpbf-pack": ["--src", "set", "--out", "packed", "--tolerance", "-1"],
    "lpbf-predict": ["--checkpoint", "run", "--src", "part.stl", "--points", "7"],
    "lpbf-publish": ["set", "--repo", "name"],
    "lpbf-release": ["--checkpoint", "run", "--data", "set", "--split", "train"],
    "lpbf-report": ["set", "--gallery", "0"],
    "lpbf-serve": ["--port", "-1"],
    "lpbf-simulate": ["--out", "cases", "--workers", "-1"],
    "lpbf-spectrum": ["--checkpoint", "run", "--data", "set", "--cases", "0"],
    "lpbf-train": ["--data", "set", "--thin_to", "0"],
    "lpbf-unpack": ["--src", "packed", "--out", "set", "--shard_megabytes", "-1"],
    "lpbf-verify": ["set", "--workers", "-1"],
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("words", "status"), [({}, 2), (WRONG_TYPE, 2), (OUT_OF_RANGE, 1)], ids=["unknown", "type", "range"]
)
def test_errors_in_options_import_nothing_heavy(
    script: str, words: dict[str, list[str]], status: int, tmp_path: Path, run_forked: Runs
) -> None:
    asked = words[script] if words else [*WRONG_TYPE[script][:-2], "--nonsense", "3"]
    done, loaded = run_forked(SCRIPTS[script], asked, tmp_path)
    assert done.returncode == status, done.stderr
    assert "error: " in done.stderr
    assert asked[-2].lstrip("-").rpartition(".")[2] in done.stderr
    assert not loaded


@pytest.mark.parametrize(
    ("script", "words"),
    [("lpbf-predict", ["missing.stl"]), ("lpbf-predict", ["part.step", "no/part.vtu"]),
     ("lpbf-compensate", ["missing.stl", "new.stl"])],
)  # fmt: skip
def test_missing_input_files_import_nothing_heavy(
    script: str, words: list[str], tmp_path: Path, run_forked: Runs
) -> None:
    (tmp_path / "part.step").touch()
    done, loaded = run_forked(SCRIPTS[script], words, tmp_path)
    assert done.returncode == 1, done.stderr
    assert all(word in done.stderr for word in words[: 1 if "new.stl" in words else None])
    assert not loaded


@pytest.mark.parametrize("words", [["--model", "Transolver"], ["--model.class_path=Transformer"], ["--config", "lpbf"]])
def test_options_of_a_model_import_nothing_heavy(words: list[str], tmp_path: Path, run_forked: Runs) -> None:
    done, loaded = run_forked(SCRIPTS["lpbf-train"], [*words, "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--model.init_args.config.channels" in done.stdout
    assert ("--model.init_args.config.num_slices" in done.stdout) == ("Transolver" in words)
    assert not loaded


@pytest.mark.parametrize("name", SHIPPED)
def test_models_are_made_from_what_their_options_say(name: str) -> None:
    constructor = getattr(flare_model, name).__init__
    (_, parameter, *others) = inspect.signature(constructor, eval_str=True).parameters.values()
    # `mixer` says how a model is computed, which is an option of the recipe.
    assert [other.name for other in others] == (["mixer"] if name in ("Flare", "FlarePlusPlus") else [])
    assert (parameter.name, parameter.annotation, parameter.default) == ("config", SHIPPED[name], SHIPPED[name]())


def test_constants_of_the_compiler_are_marked_as_it_marks_them() -> None:
    def marked() -> bool:
        return True

    torch.compiler.assume_constant_result(marked)
    assert vars(marked)
    for function in (mix_by_kernels, network_by_kernels):
        assert vars(marked).items() <= vars(function).items()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a small part as surface and as mesh."""
    import trimesh

    folder = tmp_path_factory.mktemp("startup")
    tiny_surrogate().save_pretrained(folder / "model")
    trimesh.creation.box((20, 10, 12)).export(folder / "box.stl")
    part = next(read_parts(folder / "box.stl", Meshing(546)))
    write_vtu(folder / "box.vtu", Prediction(part, {}, {}, {}, (), 0.0))
    return folder


PREDICTION: Final = (*COMPILER, "lightning_fabric", "torch_geometric", "tensorboard", "distributed", "zarr", "triton")


@pytest.mark.parametrize(
    ("source", "words", "needed"),
    [
        pytest.param("box.vtu", ["--pictures", "false"], {"torch"}, marks=pytest.mark.slow),
        ("box.stl", ["--pictures", "false"], {"torch", "scipy"}),
        ("box.vtu", [], {"torch", "pyvista", "matplotlib"}),
    ],
    ids=["mesh", "surface", "picture"],
)
def test_prediction_imports_what_it_needs(
    parts: Path, source: str, words: list[str], needed: set[str], tmp_path: Path
) -> None:
    command = ["--checkpoint", str(parts / "model"), "--src", str(parts / source), *words]
    watched = (*PREDICTION, "torch", "trimesh", "scipy", "pyvista", "matplotlib")
    done, loaded = run_command("flare_model.predict", command, tmp_path, watched)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predictions/box.vtu").exists()
    assert (tmp_path / "predictions/box_displacement_z.png").exists() == (not words)
    assert loaded - {"triton"} == needed  # for pictures Triton has to be imported before VTK


def test_prediction_on_a_data_set_imports_no_compiler(box_dataset: str, trained_run: Path, tmp_path: Path) -> None:
    command = ["--checkpoint", str(trained_run), "--src", box_dataset, "--pictures", "false"]
    watched: tuple[Any, ...] = (*COMPILER, "lightning_fabric", "torch_geometric", "pyvista", "trimesh", "torch", "zarr")
    done, loaded = run_command("flare_model.predict", command, tmp_path, watched)
    assert done.returncode == 0, done.stderr
    assert loaded == {"torch", "zarr"}
