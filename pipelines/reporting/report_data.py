"""What the report shows, gathered from a data set: manifest, `build.json`, shards, and predictions beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lpbf_data.console import follow
from lpbf_data.errors import StoreError, UsageError
from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.stores.predictions import PredictionFile
from lpbf_data.viewer.shown_fields import shown_fields
from pipelines.reporting import gallery_parts as shown
from pipelines.reporting.documents import BUILD_NAME
from pipelines.reporting.gallery_parts import Deviation, GalleryPart, KeptCases
from pipelines.reporting.gallery_pictures import PartRenderer
from pipelines.reporting.gallery_size import MAX_PARTS
from pipelines.reporting.report_page import PageContent, render_page

_MAX_BYTES: Final = 27_000_000
"""Of surfaces and pictures as they stand in the page, so that all of it stays under 30 MB."""


@dataclass(frozen=True)
class Report:
    """A report that was made.

    Attributes:
        page: The page.
        gallery_parts: Parts that it shows; the pictures of some of them are kept.
        problem: Why it has no pictures, where it has none.
    """

    page: bytes
    gallery_parts: tuple[GalleryPart, ...]
    problem: str | None


def make_report(folder: DatasetFolder, *, most_parts: int = MAX_PARTS, predictions: Path | None = None) -> Report:
    """Make the report of a data set.

    Args:
        folder: The data set.
        most_parts: Most parts in the gallery.
        predictions: File of predictions to show beside the truth.

    Raises:
        StoreError: If the data set or the predictions can't be read.
        UsageError: If the predictions belong to another data set.
    """
    cases = shown.KeptCases(folder)
    configuration = _configuration(folder)
    predicted = None if predictions is None else _open_predictions(predictions, cases)
    deviations = () if predicted is None else tuple(shown.judge_predictions(cases, predicted))
    if predicted is not None and not deviations:
        raise UsageError(f"{predictions} predicts no case that {folder.name} holds")
    fields = shown_fields(cases.field_specs)
    chosen = shown.choose_cases(cases.manifest.records, most_parts, deviations)
    with PartRenderer() as renderer:
        made = shown.make_gallery_parts(
            cases, chosen, fields, renderer, predictions=predicted, with_pixels=shown.choose_for_mosaic(chosen)
        )
        gallery_parts = _within_budget(follow(made, len(chosen), "report", "part"))
    content = PageContent(
        records=cases.manifest.records,
        manifest_sha256=str(cases.manifest.digest),
        schema_version=cases.manifest.schema_version,
        limits=configuration["filters"],
        splits=configuration["splits"],
        specs=cases.field_specs,
        fields=fields,
        gallery_parts=gallery_parts,
        gallery_note=_gallery_note(cases, gallery_parts, deviations),
        deviations=deviations,
        remarks=cases.manifest.remarks,
        predictor="" if predicted is None else predicted.model,
    )
    return Report(render_page(content), gallery_parts, renderer.problem)


def _configuration(folder: DatasetFolder) -> dict[str, Any]:
    """What `build.json` says of limits and splits.

    Raises:
        StoreError: If it can't be read.
    """
    try:
        described = json.loads(folder.read(BUILD_NAME))["configuration"]
        filters = {str(name): float(limit) for name, limit in described["filters"].items()}
        return {"filters": filters, "splits": str(described["splits"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder.name}/{BUILD_NAME} can't be read ({error}); build the data set again") from error


def _open_predictions(path: Path, cases: KeptCases) -> PredictionFile:
    predicted = PredictionFile(path)
    if predicted.manifest_sha256 != cases.manifest.digest:
        raise UsageError(f"{path} was predicted for another build of the data set; predict again")
    return predicted


def _within_budget(gallery_parts: Any) -> tuple[GalleryPart, ...]:
    """As many as fit into the page, in their order; base64 takes four bytes for three."""
    chosen: list[GalleryPart] = []
    left = _MAX_BYTES
    for gallery_part in gallery_parts:
        left -= (len(gallery_part.surface) + len(gallery_part.still or b"")) * 4 // 3 + 1000
        if left < 0 and chosen:
            gallery_parts.close()
            break
        chosen.append(gallery_part)
    return tuple(chosen)


def _gallery_note(cases: KeptCases, gallery_parts: Sequence[GalleryPart], deviations: Sequence[Deviation]) -> str:
    kept = sum(record.placement is not None for record in cases.manifest.records)
    opening = "Coloured by Z displacement after release from the build plate; open one to turn, cut and deform it."
    if len(gallery_parts) == kept:
        return opening
    first = "the largest errors of prediction" if deviations else "the least recoater clearance"
    return (
        f"{opening} This is a sample: {len(gallery_parts):,} of {kept:,} kept parts, a third of them those "
        f"with {first}, the others drawn by a hash of their ids. The table below has every case."
    )
