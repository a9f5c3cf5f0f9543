"""A data set with report and card; imports as in data_fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from tests.browser import open_browser

    with open_browser() as started:
        yield started


@pytest.fixture
def no_pictures_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports whose pictures aren't looked at: to start the process that draws them takes longer than all the rest."""
    from pipelines.reporting.gallery_pictures import PartRenderer

    monkeypatch.setattr(PartRenderer, "start", lambda *_: None)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with report: eight good parts, one that failed, limits that reject some."""
    from pipelines.build import run_build
    from pipelines.selection.filters import Filters
    from tests.netfabb_cases import TERMINATED, Part, write_part
    from tests.pipelines.test_build import request, write_parts

    folder = tmp_path_factory.mktemp("report")
    write_parts(folder / "src")
    write_part(folder / "src", Part("900_11b839a3_1", clearance=60.0, shape=(4, 4, 3)))
    write_part(folder / "src", Part("901_11b839a3_1", verdict=TERMINATED))
    run_build(request(folder / "src", folder / "lpbf", filters=Filters(max_points=100), report=True))
    return folder / "lpbf"
