"""Can anybody install the pinned versions? Resolves them with the public package index, for all platforms and Pythons.

    python -m tests.check_pins                    every platform
    python -m tests.check_pins --platforms linux  the platforms that continuous integration checks

Local wheels, further indexes and the settings of pip and uv are switched off, so that nothing helps that this machine
alone has. uv resolves for other platforms than this one. A package that has no wheel for a Python is an error, but for
those that are known to be built from source.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLATFORMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux aarch64": "aarch64-manylinux_2_28",
    "macOS arm64": "aarch64-apple-darwin",
    "Windows": "x86_64-pc-windows-msvc",
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Packages without wheels, built from source: jsonpath-rw, which mlcroissant needs, is pure Python; pyamg needs a C++
# compiler on Linux aarch64, as the README says.
BUILT_FROM_SOURCE = {"Linux aarch64": ("jsonpath-rw", "pyamg")}
PURE_PYTHON = ("jsonpath-rw",)
# The oldest macOS that PyTorch's wheels are made for.
MACOS = "14.0"


@dataclass(frozen=True)
class Resolution:
    """Result for one platform and Python; `problem` is empty where everything was found."""

    platform: str
    python: str
    problem: str


def plain_environment() -> dict[str, str]:
    """The environment, without variables that name other sources of packages for pip or uv."""
    certificates = ("PIP_CERT", "UV_NATIVE_TLS")
    kept = {k: v for k, v in os.environ.items() if k in certificates or not k.startswith(("PIP_", "UV_"))}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "MACOSX_DEPLOYMENT_TARGET": MACOS}


def resolve(platform: str, python: str, constraints: Path, project: Path) -> Resolution:
    """Resolve the project with the extra `dev`, which holds all others, under the pins."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--only-binary", ":all:"]
    for package in BUILT_FROM_SOURCE.get(platform, PURE_PYTHON):
        command += ["--no-binary", package]
    command += ["--python-platform", PLATFORMS[platform], "--python-version", python, "--extra", "dev"]
    command += ["--constraint", str(constraints), str(project)]
    done = subprocess.run(command, env=plain_environment(), capture_output=True, text=True, check=False)
    return Resolution(platform, python, "" if done.returncode == 0 else done.stderr.strip() or "uv failed")


def resolve_with_pip(constraints: Path) -> Resolution:
    """Resolve by pip, as the README tells users to install, for this machine and Python."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--constraint", str(constraints), "--report", f"{empty}/report.json", f"{ROOT}[dev]"]
        done = subprocess.run(command, env=plain_environment(), capture_output=True, text=True, check=False)
    return Resolution("this machine, pip", python, "" if done.returncode == 0 else done.stderr.strip()[-2000:])


def main() -> int:
    """Resolve every combination that was asked for; the exit status is 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platforms", default="", help="only platforms whose name contains this, such as linux")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--pip", action="store_true", help="resolve by pip too, for this machine; takes minutes")
    asked = parser.parse_args()
    platforms = [name for name in PLATFORMS if asked.platforms.lower() in name.lower()]
    if not platforms:
        parser.error(f"no platform is called {asked.platforms!r}; there are {', '.join(PLATFORMS)}")
    failed = 0
    with ThreadPoolExecutor(4) as pool:
        pairs = list(itertools.product(platforms, PYTHONS))
        tasks = [pool.submit(resolve, *pair, asked.constraints, ROOT / "pyproject.toml") for pair in pairs]
        if asked.pip:
            tasks.append(pool.submit(resolve_with_pip, asked.constraints))
        for task in tasks:
            found = task.result()
            failed += bool(found.problem)
            print(f"{found.platform:18} Python {found.python:5} {found.problem or 'resolves'}", flush=True)
    print(f"{len(tasks) - failed} passed, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
