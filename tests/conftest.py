"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Triton decides when it is imported whether its kernels run on the CPU; without a GPU they do.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.netfabb_cases import Part, write_part


@pytest.fixture(scope="session")
def samples() -> Path:
    """Real NetFabb output, where the environment names it."""
    name = os.environ.get("LPBF_NETFABB_SAMPLES", "")
    if not name or not Path(name).is_dir():
        pytest.skip("LPBF_NETFABB_SAMPLES doesn't name a folder of real NetFabb output")
    return Path(name)


@pytest.fixture
def part_folder(tmp_path: Path) -> Path:
    """A folder with one good case, `101635_11b839a3_5`."""
    return write_part(tmp_path / "cases", Part("101635_11b839a3_5"))
