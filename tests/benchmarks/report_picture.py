"""Makes the picture of the report for the README: the page, and a part of it opened and cut, as Chromium draws them.

    python -m tests.benchmarks.report_picture lpbf/ --part 21763_02925afd_3        # in the root of the repository

Measures nothing. Needs Chromium (`LPBF_CHROMIUM` names one) and a data set with that part; the picture goes to
pipelines/pictures/report.jpg.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Final

from PIL import Image

from lpbf_data.file_access.folder import DatasetFolder
from pipelines.reporting.report_data import make_report
from tests.browser import Visit, open_browser

PICTURE: Final = Path("pipelines/pictures/report.jpg")
_WIDTH: Final = 820  # width of each half, pixels


def take_pictures(page: Path, part: str) -> list[Image.Image]:
    """The top of the page, and the part with its stress, deformed and cut at two thirds of its height."""
    with open_browser() as browser:
        visit = Visit(browser, page)
        visit.page.set_viewport_size({"width": 1240, "height": 930})
        taken = [visit.page.screenshot()]
        visit.page.locator("#case-table").get_by_role("button", name=part, exact=True).click()
        visit.page.wait_for_selector("#viewer-canvas[data-shown]")
        visit.page.get_by_label("Field").select_option(label="Von Mises stress")
        for label, share in (("Deformed, times", 0.1), ("Cut above z", 0.66)):
            slider = visit.page.get_by_label(label)
            low, high = (float(slider.get_attribute(end) or 0) for end in ("min", "max"))
            slider.fill(str(low + share * (high - low)))
        visit.page.wait_for_timeout(300)
        taken.append(visit.page.locator("#viewer").screenshot())
        visit.close()
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in taken]


def main() -> None:
    """Make the report of a data set and the picture of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data set")
    parser.add_argument("--part", required=True, help="case id of the part")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "report.html"
        page.write_bytes(make_report(DatasetFolder(asked.data)).page)
        halves = [
            half.resize((_WIDTH, round(half.height * _WIDTH / half.width)), Image.Resampling.LANCZOS)
            for half in take_pictures(page, asked.part)
        ]
    whole = Image.new("RGB", (2 * _WIDTH + 20, max(half.height for half in halves)), "white")
    for number, half in enumerate(halves):
        whole.paste(half, (number * (_WIDTH + 20), 0))
    PICTURE.parent.mkdir(exist_ok=True)
    whole.save(PICTURE, quality=88, subsampling=0, optimize=True)
    print(PICTURE, PICTURE.stat().st_size)


if __name__ == "__main__":
    main()
