"""Tests of the pinned versions: one of each package on every platform, and a check that ignores local wheels.

Whether the pins resolve is checked with the package index, by `make check_pins`.
"""

from __future__ import annotations

import tomllib
from collections import Counter

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.check_pins import PLATFORMS, PYTHONS, ROOT, plain_environment

LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
MARKERS = {
    "Linux x86-64": LINUX | {"platform_machine": "x86_64"},
    "Linux aarch64": LINUX | {"platform_machine": "aarch64"},
    "macOS arm64": {
        "sys_platform": "darwin",
        "platform_system": "Darwin",
        "os_name": "posix",
        "platform_machine": "arm64",
    },
    "Windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}


def pins(platform: str, python: str) -> list[Requirement]:
    """The pins that apply on a platform, for a version of Python."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    there = MARKERS[platform] | {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    return [pin for pin in found if pin.marker is None or pin.marker.evaluate(there)]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_platform_has_one_version_of_everything_that_is_asked_for(platform: str, python: str) -> None:
    held = pins(platform, python)
    assert all([s.operator for s in pin.specifier] == ["=="] for pin in held)
    names = Counter(canonicalize_name(pin.name) for pin in held)
    assert max(names.values()) == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in held}
    for one in asked:
        name = canonicalize_name(one.name)
        if name != project["name"] and (one.marker is None or one.marker.evaluate(MARKERS[platform])):
            assert one.specifier.contains(versions[name], prereleases=True), one


def test_packages_for_graphics_cards_of_linux_are_pinned_there_alone() -> None:
    def kinds(platform: str) -> set[str]:
        return {pin.name for pin in pins(platform, "3.12") if pin.name == "triton" or pin.name.startswith("nvidia-")}

    assert "triton" in kinds("Linux x86-64")
    assert "triton" in kinds("Linux aarch64")
    assert not kinds("macOS arm64")
    assert not kinds("Windows")


def test_what_lies_at_hand_does_not_help_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "UV_FIND_LINKS", "UV_INDEX", "UV_OFFLINE"):
        monkeypatch.setenv(name, "/opt/wheels")
    left = {name: value for name, value in plain_environment().items() if "/opt/wheels" in value}
    assert not left
