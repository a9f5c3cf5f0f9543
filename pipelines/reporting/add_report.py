"""Report, pictures and the card that shows them, added to a data set that is committed.

None of it is needed to use the data. It is made last, from the data set as it lies there, and whatever goes wrong is
reported in a sentence and leaves the data set as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from lpbf_data.errors import LpbfError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.stores.manifest import MANIFEST_NAME, Manifest, decode_manifest
from pipelines.building.request import BuildRequest
from pipelines.building.targets import Target
from pipelines.numbers import format_number
from pipelines.reporting.card import CardPicture
from pipelines.reporting.documents import CARD_NAME, DISTRIBUTIONS_PICTURE, PARTS_PICTURE, REPORT_NAME, make_card_of
from pipelines.reporting.gallery_parts import GalleryPart
from pipelines.reporting.gallery_pictures import draw_histograms, draw_mosaic
from pipelines.reporting.report_data import make_report


def add_report(request: BuildRequest, target: Target) -> str | None:
    """Add report, pictures and the card with them to a data set.

    Args:
        request: What was built.
        target: Where it lies.

    Returns:
        What went wrong, in a sentence; None when nothing did.
    """
    try:
        report = make_report(DatasetFolder(request.out))
        data = target.read(MANIFEST_NAME)
        assert data is not None
        manifest = decode_manifest(data)
        pictures = {}
        if drawn := _draw_parts(report.gallery_parts, manifest):
            pictures[PARTS_PICTURE] = drawn
        if any(record.measures is not None for record in manifest.records):
            pictures[DISTRIBUTIONS_PICTURE] = draw_histograms(manifest.records)
        for name, content in pictures.items():
            target.write(name, content)
        target.write(REPORT_NAME, report.page)
        target.write(CARD_NAME, make_card_of(request, data, _describe(pictures, manifest)))
    except LpbfError as error:
        return f"there is no report: {error}"
    except Exception as error:  # noqa: BLE001 (the data are safe and must stay so, whatever it is)
        return f"there is no report ({type(error).__name__}: {error}); python -m pipelines.report tries again"
    return None if report.problem is None else f"{report.problem}; the report draws the parts itself"


def _draw_parts(gallery_parts: Sequence[GalleryPart], manifest: Manifest) -> bytes | None:
    furthest = {r.case_id: r.measures.displacement_z_abs_max for r in manifest.records if r.measures is not None}
    chosen = [
        (gallery_part.pixels, f"±{format_number(furthest[gallery_part.case_id])} mm")
        for gallery_part in gallery_parts
        if gallery_part.pixels is not None
    ]
    return draw_mosaic(chosen) if chosen else None


def _describe(pictures: Sequence[str] | dict[str, bytes], manifest: Manifest) -> list[CardPicture]:
    kept = sum(record.status == "kept" for record in manifest.records)
    words = {
        PARTS_PICTURE: "Some of the parts, coloured by Z displacement after release from the build plate: blue is "
        "downward, red is upward, each to the figure below it.",
        DISTRIBUTIONS_PICTURE: "Histograms of points, edges, aspect ratios, height, largest Z displacement and stress, "
        f"and least recoater clearance of the {kept:,} kept cases and of the rejected ones.",
    }
    return [CardPicture(name, words[name]) for name in pictures]
