"""The report of data sets that are out of the ordinary, in a real browser: tiny, empty, hostile, refined."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.viewer.shown_fields import shown_fields
from pipelines.build import run_build
from pipelines.reporting.gallery_parts import KeptCases, make_gallery_parts
from pipelines.reporting.gallery_pictures import PartRenderer
from pipelines.reporting.report_data import make_report
from tests.browser import Visit, column, open_part, pixels
from tests.netfabb_cases import Part, write_part
from tests.pipelines.report_support import HOSTILE_LOG
from tests.pipelines.test_build import request
from tests.surface_reader import decode_surface

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_hostile_file_names_appear_as_text(browser: Browser, tmp_path: Path) -> None:
    """NetFabb names files after the case, and a failure names the file."""
    name = "<script>window.pwned=1<b>файл'部品\""
    folder = write_part(tmp_path / "src", Part(name, interactive=True))
    victim = next(folder.rglob("*.geo"))
    victim.write_bytes(victim.read_bytes()[:100])
    run_build(request(tmp_path / "src", tmp_path / "lpbf", report=True))
    visit = Visit(browser, tmp_path / "lpbf" / "report.html")
    assert victim.name in column(visit, 12)[0]
    assert victim.name in visit.page.locator("#rejected").inner_text()
    assert visit.page.evaluate("window.pwned") is None
    assert (visit.errors, visit.refused) == ([], [])
    visit.close()


@pytest.mark.usefixtures("no_pictures_of_parts")
def test_the_smallest_data_sets_have_a_page_that_works(browser: Browser, tmp_path: Path) -> None:
    write_part(tmp_path / "one", Part("alone", shape=(3, 3, 3)))
    write_part(tmp_path / "none", Part("failed", verdict=HOSTILE_LOG))
    for name in ("one", "none"):
        run_build(request(tmp_path / name, tmp_path / f"lpbf-{name}", splits="train=1", report=True))
    visit = Visit(browser, tmp_path / "lpbf-one" / "report.html")
    open_part(visit, "alone")
    assert visit.page.locator("#viewer-previous").is_disabled()
    assert visit.page.locator("#viewer-next").is_disabled()
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_selector("#charts figure")
    assert "1 kept cases from 64 to 64" in (visit.page.locator("#charts svg").first.get_attribute("aria-label") or "")
    assert (visit.errors, visit.refused) == ([], [])
    visit.close()
    visit = Visit(browser, tmp_path / "lpbf-none" / "report.html")
    assert column(visit, 1) == ["failed"]
    visit.page.wait_for_selector("#charts .note")
    assert "No case could be measured." in visit.page.locator("#charts").inner_text()
    assert visit.page.locator("#gallery").inner_text().endswith("No part was kept.")
    assert (visit.errors, visit.refused) == ([], [])
    visit.close()


def test_real_parts_are_closed_and_whole_when_cut(browser: Browser, samples: Path, tmp_path: Path) -> None:
    """Seen from inside, a refined mesh shows no walls between its coarse and fine cells."""
    run_build(request(samples, tmp_path / "lpbf"))
    cases = KeptCases(DatasetFolder(tmp_path / "lpbf"))
    fields = shown_fields(cases.field_specs)
    ids = [record.case_id for record in cases.manifest.records]
    with PartRenderer() as renderer:
        parts = list(make_gallery_parts(cases, ids, fields, renderer))
    assert renderer.problem is None
    for part, count in zip(parts, (760, 2090), strict=True):
        shown = decode_surface(part.surface)
        assert abs(len(shown.faces) - count) < 20
        assert all(math.isfinite(v) for values in shown.columns.values() for v in values)
    (tmp_path / "page.html").write_bytes(make_report(DatasetFolder(tmp_path / "lpbf")).page)
    visit = Visit(browser, tmp_path / "page.html")
    open_part(visit, "step2")
    visit.page.get_by_role("button", name="top").click()
    visit.page.get_by_label("Cut above z").fill("4.4")
    box = visit.page.locator("#viewer-canvas").bounding_box()
    assert box is not None
    heights: dict[bool, set[float]] = {True: set(), False: set()}
    for across in range(-100, 101, 10):
        visit.page.mouse.move(box["x"] + box["width"] / 2 + across, box["y"] + box["height"] / 2 + across / 3)
        if found := re.findall(r"z (\S+) mm: (inside)?", visit.page.locator("#viewer-readout").inner_text()):
            heights[bool(found[0][1])].add(float(found[0][0]))
    # Looking straight down, there is the section, or faces of the outside: no wall between cells.
    outside = {round(float(z), 2) for z in np.unique(cases.read("step2", []).points[:, 2])}
    assert heights[True] == {4.4}
    assert heights[False] <= outside
    drawn = pixels(visit)
    assert (np.ptp(drawn.astype(int), axis=2) == 0).mean() > 0.05
    assert visit.errors == []
    visit.close()
