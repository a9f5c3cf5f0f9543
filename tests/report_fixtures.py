"""A data set with report and card."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.build import run_build
from pipelines.select import Filters
from tests.netfabb_cases import TERMINATED, Part, write_part
from tests.test_build import request, write_parts


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with report: eight good parts, one that failed, limits that reject some."""
    folder = tmp_path_factory.mktemp("report")
    write_parts(folder / "src")
    write_part(folder / "src", Part("900_11b839a3_1", clearance=60.0, shape=(4, 4, 3)))
    write_part(folder / "src", Part("901_11b839a3_1", verdict=TERMINATED))
    run_build(request(folder / "src", folder / "lpbf", filters=Filters(max_points=100), report=True))
    return folder / "lpbf"
