"""The report in a real browser, opened from disk with every request refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.stores.predictions import write_predictions
from lpbf_data.viewer.page import ASSETS as VIEWER
from pipelines.build import run_build
from pipelines.reporting.gallery_parts import KeptCases
from pipelines.reporting.report_data import Report, make_report
from pipelines.selection.filters import Filters
from tests.browser import Visit, colourful, column, drag, open_part, pixels, wait_for_part
from tests.netfabb_cases import Part, write_part
from tests.pipelines.report_support import HOSTILE_LOG
from tests.pipelines.test_build import request
from tests.surface_reader import decode_surface

if TYPE_CHECKING:
    from playwright.sync_api import Browser


HOSTILE_NAMES = ("\"><img src=x onerror='window.pwned=1'>", "<b>деталь部品قطعة", "a'b\"c&amp;{{7*7}}")


@pytest.fixture(scope="module")
def dataset(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small parts: in contact with the blade, hit otherwise, of hostile names, rejected, failed with a hostile log."""
    folder = tmp_path_factory.mktemp("browser")
    for i in range(60):
        write_part(folder / "src", Part(f"{100 + i}_11b839a0_1", shape=(2 + i, 2, 1), amplitude=0.01 + 0.002 * i))
    for i, name in enumerate(HOSTILE_NAMES):
        write_part(folder / "src", Part(name, shape=(3 + i, 7, 2), amplitude=0.5))
    write_part(folder / "src", Part("risky", shape=(6, 5, 4), clearance=55.5, amplitude=0.3, material="inc625"))
    write_part(folder / "src", Part("hit", shape=(5, 5, 4), clearance=-10.0, amplitude=0.2))
    write_part(folder / "src", Part("failed", verdict=HOSTILE_LOG))
    run_build(request(folder / "src", folder / "lpbf", filters=Filters(max_points=350)))
    return folder / "lpbf"


@pytest.fixture(scope="module")
def predictions(dataset: Path) -> Path:
    """The truth plus 0.05 mm, for every case of the test split."""
    cases = KeptCases(DatasetFolder(dataset))
    rows = [
        (r.case_id, {"displacement_z": cases.read(r.case_id, ["displacement"]).fields["displacement"][:, 2] + 0.05})
        for r in cases.manifest.records
        if r.placement is not None and r.placement.split == "test"
    ]
    path = dataset.parent / "predictions.parquet"
    write_predictions(path, rows, ["displacement_z"], str(cases.manifest.digest), "the truth and a bit")
    return path


@pytest.fixture(scope="module")
def report(dataset: Path) -> Report:
    made = make_report(DatasetFolder(dataset))
    (dataset / "report.html").write_bytes(made.page)
    return made


@pytest.fixture
def visit(browser: Browser, dataset: Path, report: Report) -> Iterator[Visit]:
    opened = Visit(browser, dataset / "report.html")
    yield opened
    # Whatever a test did: nothing was asked of a network, nothing went wrong, nobody's markup came to life.
    assert opened.refused == []
    assert opened.errors == []
    assert opened.page.evaluate("window.pwned") is None
    opened.close()


def test_the_table_opens_with_the_least_clearance_first(visit: Visit) -> None:
    page = visit.page
    first = column(visit, 1)
    assert len(first) == 50
    assert first[:2] == ["hit", "risky"]
    assert column(visit, 4)[:2] == ["contact", "hit"]
    assert set(column(visit, 4)[2:]) <= {"clear", "–"}
    assert page.locator("#case-table .alarm-text").all_inner_texts() == ["contact"]
    assert page.locator("#case-table .count").inner_text() == "1–50 of 66"
    page.get_by_role("button", name="next ›").first.click()
    assert len(column(visit, 1)) == 16
    assert page.get_by_role("button", name="next ›").first.is_disabled()


def test_the_table_sorts(visit: Visit) -> None:
    head = visit.page.locator("#case-table th", has_text="points")
    numbers = []
    for expected in ("descending", "ascending"):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == expected
        numbers.append([int(text.replace(",", "")) for text in column(visit, 10) if text != "–"])
    assert numbers[0] == sorted(numbers[0], reverse=True)
    assert numbers[1] == sorted(numbers[1])
    assert numbers[0][0] > numbers[1][0]
    # With the keyboard too; texts begin at A, and what isn't known comes last either way.
    visit.page.locator("#case-table th", has_text="split").get_by_role("button").focus()
    visit.page.keyboard.press("Enter")
    splits = column(visit, 3)
    assert splits == sorted(splits)
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("button", name="next ›").first.click()
    assert column(visit, 3)[-1] == ""


def test_the_table_searches_and_filters(visit: Visit) -> None:
    page = visit.page
    search = page.get_by_role("searchbox", name="Search in cases")
    search.fill("INC625")
    assert column(visit, 1) == ["risky"]
    search.fill("solver_terminated")
    assert column(visit, 1) == ["failed"]
    search.fill("nothing like this")
    assert column(visit, 1) == []
    assert page.locator("#case-table .count").inner_text() == "0 (66 in all)"
    search.fill("")
    page.locator("#case-table label", has_text="status").get_by_role("combobox").select_option(label="rejected")
    assert set(column(visit, 2)) == {"rejected"}
    assert all("max_points" in text for text in column(visit, 12))
    page.locator("#case-table label", has_text="status").get_by_role("combobox").select_option(label="any")
    page.locator("#case-table label", has_text="blade").get_by_role("combobox").select_option(label="hit")
    assert column(visit, 1) == ["risky"]


def test_hostile_names_appear_as_text(visit: Visit) -> None:
    page = visit.page
    search = page.get_by_role("searchbox", name="Search in cases")
    for name in HOSTILE_NAMES:
        search.fill(name)
        assert column(visit, 1) == [name]
        page.locator("#case-table .link").click()
        wait_for_part(visit, name)
        assert page.locator("#viewer-title").inner_text() == name
        page.keyboard.press("Escape")
    search.fill("failed")
    assert "</script><script>window.pwned=1</script>" in column(visit, 12)[0]
    assert page.locator("main img").count() == page.locator(".part img").count()


def test_histograms_are_drawn_and_told_in_words(visit: Visit) -> None:
    page = visit.page
    page.wait_for_selector("#charts figure")
    charts = page.locator("#charts svg[role=img]")
    assert charts.count() == 8
    words = [chart.get_attribute("aria-label") or "" for chart in charts.all()]
    assert words[0].startswith("Points: ")
    kept, rejected = (re.search(rf"([\d,]+) {status} cases", words[0]) for status in ("kept", "rejected"))
    assert kept is not None
    assert rejected is not None
    assert int(kept[1]) + int(rejected[1]) == 65
    assert "limit 350" in words[0]
    drawn = pixels(visit, "#charts figure:first-child svg")
    assert colourful(drawn).sum() > 300


def test_a_click_opens_a_part_that_turns(visit: Visit) -> None:
    page = visit.page
    page.locator("#case-table").get_by_role("button", name="risky").click()
    wait_for_part(visit, "risky")
    before = pixels(visit)
    assert colourful(before).mean() > 0.02
    assert page.locator("#viewer-facts").inner_text().count("closer to the blade than the solver tolerates") == 1
    drag(visit)
    turned = pixels(visit)
    assert (turned != before).any(axis=2).mean() > 0.03
    page.mouse.wheel(0, -600)
    assert colourful(pixels(visit)).sum() > 1.1 * colourful(turned).sum()
    page.get_by_role("button", name="corner").click()
    assert (pixels(visit) != before).any(axis=2).mean() < 0.001


def test_fields_deformation_cut_and_mesh_change_the_picture(visit: Visit) -> None:
    page = visit.page
    open_part(visit, "risky")
    before = pixels(visit)
    page.get_by_label("Field").select_option(label="Von Mises stress")
    stress = pixels(visit)
    assert (stress != before).any(axis=2).mean() > 0.05
    assert "MPa" in page.locator("#viewer-legend").inner_text()
    page.get_by_label("Field").select_option(label="Size of the displacement")
    assert (pixels(visit) != stress).any(axis=2).mean() > 0.02
    page.get_by_label("Field").select_option(label="Z displacement")
    assert np.array_equal(pixels(visit), before)
    for label, value in (("Deformed, times", None), ("Cut above z", "2")):
        slider = page.get_by_label(label)
        original = slider.input_value()
        slider.fill(value or str(slider.get_attribute("max")))
        assert (pixels(visit) != before).any(axis=2).mean() > 0.01, label
        slider.fill(original)
        assert (pixels(visit) != before).any(axis=2).mean() < 0.001, label
    page.get_by_label("mesh").check()
    assert (pixels(visit) != before).any(axis=2).mean() > 0.002


def test_the_cursor_tells_position_and_value(visit: Visit, dataset: Path) -> None:
    page = visit.page
    open_part(visit, "risky")
    page.get_by_role("button", name="top").click()
    box = page.locator("#viewer-canvas").bounding_box()
    assert box is not None
    case = KeptCases(DatasetFolder(dataset)).read("risky", ["displacement", "von_mises_stress"])
    top = case.points[:, 2] == case.points[:, 2].max()
    page.get_by_label("Field").select_option(label="Von Mises stress")
    found = []
    for across in (-40, 0, 40):
        page.mouse.move(box["x"] + box["width"] / 2 + across, box["y"] + box["height"] / 2)
        said = page.locator("#viewer-readout").inner_text().replace("−", "-").replace(",", "")
        numbers = re.fullmatch(r"x (\S+) y (\S+) z (\S+) mm: (\S+) MPa", said)
        assert numbers is not None, said
        x, y, z, value = map(float, numbers.groups())
        assert z == pytest.approx(4.0, abs=0.01)
        # Between the four points around it, as a triangle of two of them takes it.
        near = top & (np.abs(case.points[:, 0] - x) < 1) & (np.abs(case.points[:, 1] - y) < 1)
        around = case.fields["von_mises_stress"][near]
        step = np.ptp(case.fields["von_mises_stress"]) / 4095 + 0.001 * value
        assert around.min() - step <= value <= around.max() + step
        found.append(x)
    assert found == sorted(found)
    assert found[2] - found[0] > 0.2
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    assert page.locator("#viewer-readout").inner_text() == ""


def test_cut_parts_are_read_below_the_cut(visit: Visit) -> None:
    page = visit.page
    open_part(visit, "risky")
    page.get_by_label("Cut above z").fill("1.5")
    page.get_by_role("button", name="top").click()
    box = page.locator("#viewer-canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#viewer-readout").inner_text().endswith("z 1.50 mm: inside, where no values are embedded")
    # The section is hatched: two greys that nothing else on the part has, and none of the fields' colours.
    drawn = pixels(visit)
    middle = drawn[drawn.shape[0] // 2 - 40 : drawn.shape[0] // 2 + 40, drawn.shape[1] // 2 - 40 :][:, :80]
    assert not colourful(middle).any()
    assert {105, 168} <= set(middle[..., 0].ravel().tolist())
    page.get_by_label("Cut above z").fill(page.get_by_label("Cut above z").get_attribute("max") or "")
    assert colourful(pixels(visit)).mean() > 0.02
    assert page.locator("#viewer-readout").inner_text() == ""


def test_everything_works_with_keys(visit: Visit) -> None:
    page = visit.page
    part = page.locator(".part").first
    part.focus()
    page.keyboard.press("Enter")
    wait_for_part(visit, "hit")
    before = pixels(visit)
    page.locator("#viewer-canvas").focus()
    for key in ("ArrowLeft", "ArrowUp", "+", "-", "ArrowRight", "ArrowDown"):
        earlier = pixels(visit)
        page.keyboard.press(key)
        assert (pixels(visit) != earlier).any(axis=2).mean() > 0.001, key
    page.keyboard.press("Home")
    assert (pixels(visit) != before).any(axis=2).mean() < 0.02  # the ring of the focus is drawn now
    page.keyboard.press("PageDown")
    page.wait_for_selector("#viewer-canvas:not([data-shown=hit])")
    page.keyboard.press("PageUp")
    wait_for_part(visit, "hit")
    page.keyboard.press("Escape")
    page.locator("#viewer").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.dataset.part") == part.get_attribute("data-part")


def test_the_gallery_has_an_order_and_opens_in_full(visit: Visit, report: Report) -> None:
    page = visit.page
    shown = page.locator(".part:visible")
    assert shown.count() == 24
    page.get_by_role("button", name="Show all").click()
    assert shown.count() == len(report.gallery_parts)
    page.get_by_label("Order").select_option(label="largest Z displacement first")
    lines = page.locator(".part:visible").all()
    furthest = [
        float(re.findall(r"Z displacement up to (\S+) mm", line.get_attribute("aria-label") or "")[0]) for line in lines
    ]
    assert furthest == sorted(furthest, reverse=True)


def test_everything_has_a_name(visit: Visit) -> None:
    nameless = visit.page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, svg[role=img], canvas[role=img], table")]
            .filter((e) => !e.closest("[aria-hidden=true]"))
            .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || e.innerText?.trim() || e.caption
                             || e.textContent.trim() || e.id === "viewer-canvas"))
            .map((e) => e.outerHTML.slice(0, 100))"""
    )
    assert nameless == []
    open_part(visit, "risky")
    label = visit.page.locator("#viewer-canvas").get_attribute("aria-label")
    assert label is not None
    assert label.startswith("Z displacement on the surface of the part, −")


def test_the_page_reads_surfaces_as_they_were_written(visit: Visit, report: Report) -> None:
    """The reader in JavaScript against the one in Python, number by number."""
    code = "\n".join((VIEWER / "page" / name).read_text() for name in ("text.js", "data.js", "surface.js"))
    for number in (0, 7, len(report.gallery_parts) - 1):
        found = visit.page.evaluate(
            f"""async () => {{ {code}
                const {{ points, faces, columns }} = decodeSurface(await readBlock("surface-{number}"));
                const lists = Object.entries(columns).map(([name, values]) => [name, [...values]]);
                return {{ points: [...points], faces: [...faces], columns: Object.fromEntries(lists) }};
            }}"""
        )
        expected = decode_surface(report.gallery_parts[number].surface)
        assert np.array_equal(np.reshape(found["faces"], (-1, 4)), expected.faces)
        np.testing.assert_allclose(np.reshape(found["points"], (-1, 3)), expected.points, rtol=1e-6, atol=1e-6)
        assert set(found["columns"]) == set(expected.columns)
        for name, values in expected.columns.items():
            np.testing.assert_allclose(found["columns"][name], values, rtol=1e-6, atol=1e-7 * np.abs(values).max())


@pytest.mark.usefixtures("no_pictures_of_parts")
def test_predictions_stand_beside_the_truth(browser: Browser, dataset: Path, predictions: Path, tmp_path: Path) -> None:
    made = make_report(DatasetFolder(dataset), predictions=predictions)
    (tmp_path / "page.html").write_bytes(made.page)
    visit = Visit(browser, tmp_path / "page.html")
    errors = [float(text) for text in column(visit, 4, "#prediction-table")]
    assert len(errors) > 10
    assert errors == sorted(errors, reverse=True)
    assert set(column(visit, 5, "#prediction-table")) == {"0.05 mm"}
    visit.page.locator("#prediction-table .link").first.click()
    visit.page.wait_for_selector("#viewer-canvas[data-shown]")
    assert visit.page.locator("#viewer-panes span").all_inner_texts() == ["truth", "prediction", "error"]
    three = pixels(visit)
    thirds = np.array_split(three[:-60], 3, axis=1)
    solid = [(third < 245).any(axis=2) for third in thirds]  # neither the white ground nor the names of the panes
    assert all(mask.mean() > 0.02 for mask in solid)
    assert len({third.tobytes() for third in thirds}) == 3
    # The error is the same everywhere, and it is what was added.
    box = visit.page.locator("#viewer-canvas").bounding_box()
    assert box is not None
    visit.page.get_by_role("button", name="top").click()
    values = []
    for pane in range(3):
        visit.page.mouse.move(box["x"] + box["width"] * (2 * pane + 1) / 6, box["y"] + box["height"] / 2)
        said = visit.page.locator("#viewer-readout").inner_text().replace("−", "-")
        values.append(float(re.findall(r": \w+ (\S+) mm", said)[0]))
    assert values[2] == pytest.approx(0.05, abs=1e-4)
    assert values[1] - values[0] == pytest.approx(0.05, abs=1e-4)
    visit.page.get_by_label("truth, prediction, error").uncheck()
    assert visit.page.locator("#viewer-panes span").count() == 0
    assert visit.errors == []
    assert visit.refused == []
    visit.close()


def test_the_page_draws_the_pictures_that_it_came_without(browser: Browser, dataset: Path, tmp_path: Path) -> None:
    made = make_report(DatasetFolder(dataset), most_parts=3)
    bare = re.sub(rb'<img src="data:image/webp[^>]*>', b'<span class="still"></span>', made.page)
    assert bare.count(b'class="still"') == 3
    (tmp_path / "page.html").write_bytes(bare)
    visit = Visit(browser, tmp_path / "page.html", "dark")
    visit.page.locator(".part img").nth(2).wait_for()
    assert visit.page.locator(".part img").count() == 3
    assert colourful(pixels(visit, ".part img")).mean() > 0.01
    assert visit.errors == []
    visit.close()


def test_a_narrow_window_shows_everything_without_scrolling_sideways(visit: Visit) -> None:
    page = visit.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_selector("#charts figure")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    open_part(visit, "risky")
    assert colourful(pixels(visit)).mean() > 0.01
    slider = page.get_by_label("Cut above z")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


def test_an_address_opens_a_part(browser: Browser, dataset: Path, report: Report) -> None:
    visit = Visit(browser, dataset / "report.html", fragment="#part=risky")
    wait_for_part(visit, "risky")
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_url(lambda url: "#" not in url)  # the dialog tells that it closed a moment later
    assert visit.errors == []
    visit.close()
