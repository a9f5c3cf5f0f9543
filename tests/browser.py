"""A real Chromium, without a window and without a network, that tests open pages of this project in."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """Path of a Chromium: that of the variable LPBF_CHROMIUM, or Debian's; None where there is none."""
    return os.environ.get("LPBF_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start the browser; the test is skipped, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium, or name one in LPBF_CHROMIUM)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page opened from disk or from a server; requests to anything else are refused and listed.

    Args:
        browser: The browser.
        path: File of the page, or address of a served one, which may send requests to its server.
        scheme: "light" or "dark".
        fragment: End of the address, with its #.

    Attributes:
        refused: Addresses of requests that were refused.
        errors: Errors of the page's scripts and on its console.
        context: Context of the browser, which `close` ends.
        page: The page.
    """

    def __init__(self, browser: Browser, path: Path | str, scheme: str = "light", fragment: str = "") -> None:
        self.refused: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(
            viewport={"width": 1400, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
        )
        self.page: Page = self.context.new_page()
        served = isinstance(path, str)
        address = path if isinstance(path, str) else path.resolve().as_uri()

        def judge(route: Route) -> None:
            asked = route.request.url.partition("#")[0]
            if asked == address or (served and asked.startswith(address)):
                route.continue_()
            else:
                self.refused.append(route.request.url)
                route.abort()

        self.context.route("**/*", judge)
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address + fragment)
        self.page.wait_for_selector("html[data-ready]")

    def close(self) -> None:
        """Close the page."""
        self.context.close()


def column(visit: Visit, number: int, table: str = "#case-table") -> list[str]:
    return visit.page.locator(f"{table} tbody tr td:nth-child({number})").all_inner_texts()


def pixels(visit: Visit, selector: str = "#viewer-canvas") -> NDArray[np.uint8]:
    """Picture of an element, [height, width, 3]."""
    visit.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    with Image.open(io.BytesIO(visit.page.locator(selector).first.screenshot())) as picture:
        return np.asarray(picture.convert("RGB")).copy()


def wait_for_part(visit: Visit, name: str) -> None:
    """Wait until a part is drawn. By an assertion: wait_for_function evaluates text, which the page forbids."""
    from playwright.sync_api import expect

    expect(visit.page.locator("#viewer-canvas")).to_have_attribute("data-shown", name)


def open_part(visit: Visit, name: str) -> None:
    visit.page.locator(".part", has_text=name).first.click()
    wait_for_part(visit, name)


def drag(visit: Visit) -> None:
    """Turn the part with the mouse."""
    area = visit.page.locator("#viewer-canvas").bounding_box()
    assert area is not None
    x, y = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
    visit.page.mouse.move(x, y)
    visit.page.mouse.down()
    visit.page.mouse.move(x + 160, y + 40, steps=4)
    visit.page.mouse.up()


def colourful(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture is neither background nor grey."""
    wide = picture.astype(int)
    return np.asarray(np.ptp(wide, axis=2) > 40)
