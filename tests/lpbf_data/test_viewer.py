"""The 3D view without a report around it: its page in a real browser, its bundles, and that a wheel holds them."""

from __future__ import annotations

import hashlib
import html
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lpbf_data.case.schema import resolve_fields
from lpbf_data.viewer.page import ASSETS, ShownPart, render_parts
from lpbf_data.viewer.shown_fields import shown_fields
from pipelines.reporting.report_page import ASSETS as REPORT_ASSETS
from tests.browser import Visit, colourful, open_browser, pixels, wait_for_part
from tests.netfabb_cases import box_mesh

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><script>window.pwned=1</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as started:
        yield started


def shown_part(name: str, shape: tuple[int, int, int]) -> ShownPart:
    points, cells = box_mesh(shape)
    columns = {"displacement_z": points[:, 2] - 1, "von_mises_stress": 100 * points[:, 0]}
    return ShownPart.of_mesh(name, points, cells, columns, [("risk", HOSTILE)])


def number_of(text: str) -> float:
    """The number at the beginning of a text, as the page writes it."""
    return float(text.split(maxsplit=1)[0].replace("−", "-").replace(",", ""))


def test_without_scripts_a_page_tells_what_is_known_of_each_part() -> None:
    page = render_parts("Parts", [shown_part("plate", (4, 3, 2))], shown_fields(resolve_fields(["displacement"])))
    _, _, rest = page.decode().partition("<noscript>")
    told, _, _ = rest.partition("</noscript>")
    assert "<h2>plate</h2>" in told
    assert f"<dt>risk</dt><dd>{html.escape(HOSTILE)}</dd>" in told


def test_a_page_shows_parts_alone(browser: Browser, tmp_path: Path) -> None:
    fields = shown_fields(resolve_fields(["displacement", "von_mises_stress"]))
    page = render_parts(HOSTILE, [shown_part(HOSTILE, (4, 3, 2)), shown_part("other", (6, 2, 2))], fields)
    assert page == render_parts(HOSTILE, [shown_part(HOSTILE, (4, 3, 2)), shown_part("other", (6, 2, 2))], fields)
    (tmp_path / "page.html").write_bytes(page)
    visit = Visit(browser, tmp_path / "page.html")
    wait_for_part(visit, HOSTILE)
    assert visit.page.locator("#viewer-title").inner_text() == HOSTILE
    assert visit.page.locator("#viewer-facts").inner_text().split("\n")[-1] == HOSTILE
    first = pixels(visit)
    assert colourful(first).mean() > 0.02
    labels = visit.page.locator("#viewer-field option").all_inner_texts()
    assert labels == ["Z displacement", "Von Mises stress"]
    visit.page.get_by_label("Field").select_option(label="Von Mises stress")
    assert "MPa" in visit.page.locator("#viewer-legend").inner_text()
    visit.page.keyboard.press("Escape")
    visit.page.get_by_role("button", name="other").click()
    wait_for_part(visit, "other")
    assert (pixels(visit) != first).any(axis=2).mean() > 0.01
    assert visit.errors == []
    assert visit.refused == []
    visit.close()


@pytest.mark.parametrize(
    ("label", "unit"),
    [("Z displacement", "mm"), pytest.param("Von Mises stress", "MPa", marks=pytest.mark.slow)],  # by the other palette
)
def test_colours_on_the_surface_are_those_of_the_colour_bar(
    browser: Browser, tmp_path: Path, label: str, unit: str
) -> None:
    """The value under the cursor, looked up on the bar, has the colour that the surface has under the cursor."""
    points, cells = box_mesh((8, 8, 8))
    columns = {"displacement_z": points.sum(axis=1) - 8, "von_mises_stress": 100 * points.sum(axis=1)}
    fields = shown_fields(resolve_fields(["displacement", "von_mises_stress"]))
    (tmp_path / "page.html").write_bytes(render_parts("a", [ShownPart.of_mesh("a", points, cells, columns)], fields))
    visit = Visit(browser, tmp_path / "page.html")
    wait_for_part(visit, "a")
    visit.page.get_by_label("Field").select_option(label=label)
    bar = pixels(visit, "#viewer-legend .ramp").astype(int)
    low, *_, high = (number_of(text) for text in visit.page.locator("#viewer-legend .ticks span").all_inner_texts())
    box = visit.page.locator("#viewer-canvas").bounding_box()
    assert box is not None
    looked_up = 0
    for view in ("corner", "front", "side", "top"):
        visit.page.get_by_role("button", name=view).click()
        visit.page.mouse.move(0, 0)
        drawn = pixels(visit).astype(int)
        for across, down in np.ndindex(7, 7):
            x, y = box["width"] * (0.35 + 0.05 * across), box["height"] * (0.35 + 0.05 * down)
            visit.page.mouse.move(box["x"] + x, box["y"] + y)
            said = visit.page.locator("#viewer-readout").inner_text()
            around = drawn[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].reshape(-1, 3)
            if unit not in said or np.ptp(around, axis=0).max() > 12:
                continue  # beside the part, or at one of its edges
            share = (number_of(said.partition(": ")[2]) - low) / (high - low)
            # The bar has a border of a pixel.
            of_bar = bar[bar.shape[0] // 2, 1 + round(share * (bar.shape[1] - 3))]
            assert np.abs(around[12] - of_bar).max() <= 8, (view, said, around[12], of_bar)
            looked_up += 1
    assert looked_up > 60
    visit.close()


@pytest.mark.parametrize("folder", [ASSETS, REPORT_ASSETS], ids=["viewer", "report"])
def test_the_bundle_is_what_its_package_file_says(folder: Path) -> None:
    package = json.loads((folder / "package.json").read_text())
    lock = json.loads((folder / "package-lock.json").read_text())
    licences = (folder / "vendor.LICENSES.txt").read_text(encoding="utf-8")
    for name, version in package["dependencies"].items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
        assert f"{name} {version}" in licences
    # What was bundled, by the hashes that bundling wrote down: a source changed since makes the bundle stale.
    made_of = json.loads((folder / "vendor.sources.json").read_text())
    assert sorted(made_of) == ["bundle.mjs", "package-lock.json", "package.json", "vendor.js", "vendor.min.js"]
    for name, digest in made_of.items():
        source = (ASSETS if name == "bundle.mjs" else folder) / name
        assert hashlib.sha256(source.read_bytes()).hexdigest() == digest, f"{source} changed: make report_assets"
    bundle = (folder / "vendor.min.js").read_text(encoding="utf-8")
    assert len(bundle) < 1_000_000
    assert "</script" not in bundle.lower()
    assert all("</script" not in path.read_text().lower() for path in folder.glob("page*/*.js"))


def test_a_wheel_holds_what_pages_are_made_of() -> None:
    """Everything in the folders of assets is in the package data, but what only bundling needs."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, folder in (("lpbf_data", ASSETS), ("pipelines", REPORT_ASSETS)):
        held = {path for pattern in data[package] for path in (ROOT / package).glob(pattern)}
        kinds = ("*.html", "*.css", "vendor.min.js", "vendor.LICENSES.txt", "page*/*.js")
        needed = {path for kind in kinds for path in folder.glob(kind)}
        assert len(needed) > 5
        assert needed <= held
