"""Tests of the wheel: built from what git tracks, installed elsewhere, used without network, home folder and source."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import trimesh

ROOT = Path(__file__).parents[1]
PACKAGES = ("lpbf_data", "flare_model", "pipelines")
ONLY_FOR_BUNDLING = {
    ".gitignore", "README.md", "NOTES.md", "bundle.mjs", "lint.mjs", "package.json", "package-lock.json", "vendor.js",
    "vendor.sources.json",
}  # fmt: skip


def run(*words: object, folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_network() -> list[str]:
    """Words before a command that run it without a network; none where this machine doesn't allow that."""
    shut = shutil.which("unshare")
    words = [shut, "--map-root-user", "--net"] if shut else []
    return words if words and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0 else []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of what git tracks, without files of earlier builds."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    folder = tmp_path_factory.mktemp("wheel")
    for name in run("git", "ls-files", "-z", folder=ROOT).split("\0"):
        if (ROOT / name).is_file():
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "clone" / name)
    pip = (sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", folder, folder=folder / "clone")
    (built,) = folder.glob("lpbf_flare-*-py3-none-any.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_all_that_commands_need(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    tracked = set(run("git", "ls-files", "-z", *PACKAGES, folder=ROOT).split("\0")) - {""}
    pictures = {".png", ".jpg"}  # of READMEs
    needed = {n for n in tracked if Path(n).name not in ONLY_FOR_BUNDLING and Path(n).suffix not in pictures}
    assert needed - held == set()
    assert {f"{package}/py.typed" for package in PACKAGES} <= held
    assert "flare_model/pretrained/model.safetensors" in held
    assert not [name for name in held if name.startswith("tests")]
    assert wheel.stat().st_size < 10e6


@pytest.mark.slow
def test_one_made_by_way_of_a_source_archive_is_the_same(wheel: Path) -> None:
    run(sys.executable, "-m", "uv", "build", "--offline", "--no-build-isolation", "--out-dir", wheel.parent / "dist",
        "--python", sys.executable, folder=wheel.parent / "clone")  # fmt: skip
    (other,) = (wheel.parent / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(other) as two:
        assert sorted(one.namelist()) == sorted(two.namelist())


@pytest.mark.slow
def test_it_answers_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", "own", folder=tmp_path)
    python = tmp_path / "own/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip())
    # Its dependencies are those of this environment: a line of a .pth file adds their folder, without its .pth files.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    trimesh.creation.box((30, 20, 10)).export(elsewhere / "part.stl")
    environment = {"PATH": os.defpath, "LANG": "C"}
    where = run(
        python, "-c", "import flare_model; print(flare_model.__file__)", folder=elsewhere, environment=environment
    )
    assert Path(where.strip()).is_relative_to(site)
    command = (*without_network(), python.parent / "lpbf-predict", "part.stl")
    said = run(*command, folder=elsewhere, environment=environment)
    assert said.startswith("part\n  recoater ")
    assert "30 × 20 × 10 mm" in said
    kept = {path.name for path in (elsewhere / "predictions").iterdir()}
    assert {"part.vtu", "part_displacement_z.png", "answers.json", "answer.html"} <= kept
    helped = run(python.parent / "lpbf-serve", "--help", folder=elsewhere, environment=environment)
    assert "--most_mb" in helped
