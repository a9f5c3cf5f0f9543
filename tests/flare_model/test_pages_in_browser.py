"""Answers in a real Chromium: the page that `lpbf-predict --out` writes, and the local page by its real server."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flare_model.compensate import compensate
from flare_model.predict import predict
from tests.browser import Visit, colourful, drag, pixels, wait_for_part
from tests.flare_model.local_server import Server
from tests.flare_model.test_decision import box, model, write_constant_risk

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["model"]

HIT = "its blade, which spreads the powder, hits the part; a hit is more than 99 % likely"
SHOWN = ["X displacement", "Y displacement", "Z displacement", "Least recoater clearance over the build"]


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "bracket <b>.stl"
    box(20, 10, 12).export(path)
    return path


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    write_constant_risk(model, 9.0)
    with Server(model, tmp_path_factory.mktemp("page"), "--most_mb", "1") as running:
        yield running


def fact(visit: Visit, name: str, facts: str) -> str:
    """The text beside a name in a list of facts."""
    return visit.page.locator(f"{facts} dt", has_text=re.compile(f"^{name}$")).locator("+ dd").inner_text()


def check_viewer(visit: Visit) -> None:
    """Turn the part, cut it, deform it, and select every field and interval: the picture or its legend changes."""
    page = visit.page
    before = pixels(visit)
    assert colourful(before).mean() > 0.02
    drag(visit)
    assert (pixels(visit) != before).any(axis=2).mean() > 0.03
    page.get_by_role("button", name="corner").click()
    for label in ("Deformed, times", "Cut above z"):
        slider = page.get_by_label(label)
        kept = slider.input_value()
        slider.fill("2" if label.startswith("Cut") else str(slider.get_attribute("max")))
        assert (pixels(visit) != before).any(axis=2).mean() > 0.01, label
        slider.fill(kept)
    labels = page.locator("#viewer-field option").all_inner_texts()
    assert set(labels) >= {*SHOWN, "Size of the displacement"}
    legends = []
    for label in labels:
        page.get_by_label("Field").select_option(label=label)
        legends.append(page.locator("#viewer-legend").inner_text())
        assert ("%" in legends[-1]) == ("clearance" in label), label
    assert len({*legends}) == len(legends)


def test_the_page_of_an_answer_shows_its_facts_and_the_part(
    browser: Browser, model: Path, part: Path, tmp_path: Path
) -> None:
    write_constant_risk(model, 9.0)
    assert predict(str(model), [str(part)], out=str(tmp_path)) == 0
    (answer,) = json.loads((tmp_path / "answers.json").read_text())["parts"].values()
    visit = Visit(browser, tmp_path / "answer.html")
    wait_for_part(visit, part.stem)
    assert visit.page.locator("#viewer-title").inner_text() == part.stem
    said = fact(visit, "recoater", "#viewer-facts")
    assert said.startswith(HIT)
    assert f"powder layer {answer['hit']['layer']:,} (each" in said
    assert f"{1000 * answer['up']['value']:+.3g} µm" in fact(visit, "warps up", "#viewer-facts")
    check_viewer(visit)
    assert visit.errors == []
    assert visit.refused == []
    visit.close()


def test_the_page_of_the_packaged_model_shows_intervals(browser: Browser, part: Path, tmp_path: Path) -> None:
    assert predict(None, [str(part)], out=str(tmp_path), points=400) == 0
    visit = Visit(browser, tmp_path / "answer.html")
    wait_for_part(visit, part.stem)
    check_viewer(visit)
    halves = [label for label in visit.page.locator("#viewer-field option").all_inner_texts() if "half of its" in label]
    assert halves[:3] == [f"{label}, half of its interval" for label in ("Z displacement", *SHOWN[:2])]
    visit.page.get_by_label("Field").select_option(label=halves[0])
    low, *_ = visit.page.locator("#viewer-legend .ticks span").all_inner_texts()
    assert float(low) > 0
    assert visit.errors == []
    assert visit.refused == []
    visit.close()


def test_a_file_is_chosen_answered_turned_and_compensated(
    browser: Browser, server: Server, model: Path, part: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    visit = Visit(browser, server.address)
    page = visit.page
    page.get_by_label("Points of the mesh").fill("300")
    page.locator("#file").set_input_files(part)
    expect(page.locator(".answer dl")).to_be_visible()
    assert page.locator(".answer h2").inner_text() == part.name
    assert fact(visit, "recoater", ".answer").startswith(HIT)
    assert "20 × 10 × 12 mm; read in mm" in fact(visit, "size", ".answer")
    with page.expect_download() as coming:
        page.get_by_role("button", name="Fetch the JSON").click()
    told = json.loads(coming.value.path().read_text())
    assert [answer["name"] for answer in told["parts"].values()] == [part.stem]

    with page.expect_download() as coming:
        page.get_by_role("button", name="Fetch the compensated STL").click()
    assert coming.value.suggested_filename.endswith("_compensated.stl")
    assert compensate(str(part), str(tmp_path / "new.stl"), checkpoint=str(model), points=300) == 0
    assert coming.value.path().read_bytes() == (tmp_path / "new.stl").read_bytes()
    assert page.locator(".compensation .said").inner_text().startswith(f"{part.stem}: moved by up to ")

    page.get_by_role("button", name="Turn it in 3D").click()
    wait_for_part(visit, part.stem)
    check_viewer(visit)
    assert visit.errors == []
    assert visit.refused == []
    visit.close()
    assert server.uploads() == []


def test_dropped_files_are_answered_or_refused_in_sentences(
    browser: Browser, server: Server, part: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    visit = Visit(browser, server.address)
    page = visit.page
    content = base64.b64encode(part.read_bytes()).decode()
    dropped = page.evaluate_handle(
        """content => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
            transfer.items.add(new File([bytes], "dropped.stl"));
            transfer.items.add(new File(["x"], "notes.txt"));
            transfer.items.add(new File([bytes.slice(0, 300)], "cut.stl"));
            transfer.items.add(new File([new Uint8Array(1_000_001)], "large.stl"));
            return transfer;
        }""",
        content,
    )
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": dropped})
    expect(page.locator(".answer")).to_have_count(4)
    expect(page.locator(".answer .problem")).to_have_count(3)
    names, answers = (page.locator(what).all_inner_texts() for what in (".answer h2", ".answer"))
    texts = dict(zip(names, answers, strict=True))
    assert "hits the part" in texts["dropped.stl"]
    assert "send one of .stl, .obj" in texts["notes.txt"]
    assert "is larger than 1 MB" in texts["large.stl"]
    assert "cut.stl: " in texts["cut.stl"]
    # Chromium logs every answer with an error status; there are no other errors.
    assert [error for error in visit.errors if "422" not in error] == []
    assert visit.refused == []
    visit.close()
    assert server.uploads() == []
