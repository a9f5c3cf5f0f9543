"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Triton reads when it is imported whether its kernels are interpreted on the CPU; without a GPU they are.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.data_fixtures import hub, own_cache, published_dataset, small_cases, small_dataset
from tests.flare_model.flare_fixtures import box_dataset, four_threads, shared_cache, trained_run
from tests.flushes import leave_out_flushes
from tests.pipelines.report_fixtures import browser, built, no_pictures_of_parts

leave_out_flushes()

# A busy machine draws examples slowly, which is no fault of what is tested.
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")

__all__ = [
    "box_dataset",
    "browser",
    "built",
    "four_threads",
    "hub",
    "no_pictures_of_parts",
    "own_cache",
    "part_folder",
    "published_dataset",
    "samples",
    "shared_cache",
    "small_cases",
    "small_dataset",
    "trained_run",
]


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of real NetFabb results, from the variable LPBF_NETFABB_SAMPLES; without it the test is skipped."""
    name = os.environ.get("LPBF_NETFABB_SAMPLES", "")
    if not name or not Path(name).is_dir():
        pytest.skip("LPBF_NETFABB_SAMPLES doesn't name a folder of real NetFabb output")
    return Path(name)


@pytest.fixture
def part_folder(tmp_path: Path) -> Path:
    """A folder with one good case, `101635_11b839a3_5`."""
    from tests.netfabb_cases import Part, write_part

    return write_part(tmp_path / "cases", Part("101635_11b839a3_5"))
