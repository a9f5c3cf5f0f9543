"""The page `report.html`: what its template shows, and what its scripts work on.

The 3D view and the page's security are [the viewer's](../../lpbf_data/viewer/page.py).
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from lpbf_data.case.record import CaseRecord
from lpbf_data.case.schema import SCHEMA_VERSION, FieldSpec
from lpbf_data.case.statistics import total
from lpbf_data.remarks import Remark
from lpbf_data.stores.manifest import count_by
from lpbf_data.viewer.page import base64_text
from lpbf_data.viewer.page import render_page as render_with_viewer
from lpbf_data.viewer.shown_fields import ShownField
from pipelines.numbers import format_number
from pipelines.reporting.blade_risk import BladeRisk, blade_risk
from pipelines.reporting.card import INTRODUCTION, TITLE, dataset_version
from pipelines.reporting.gallery_parts import Deviation, GalleryPart
from pipelines.reporting.gallery_pictures import STILL_SIZE
from pipelines.reporting.origin import is_simulated_here, solver_sentence
from pipelines.reporting.overview import (
    PUBLISHED_SOURCE,
    QUANTITIES,
    SUMMARY_ROWS,
    count_failures,
    count_rejections,
    table_6,
)
from pipelines.reporting.split_balance import balance_splits, leak_sentence
from pipelines.selection.filters import CRITERIA
from pipelines.selection.splits import leaking_designs

ASSETS: Final = Path(__file__).parents[1] / "report_assets"
"""Template, style sheet, scripts and libraries of the report beside those of the viewer."""

_LIMIT_OF: Final = {measure: criterion.name for criterion in CRITERIA for measure in criterion.measures}


@dataclass(frozen=True)
class PageContent:
    """What the page shows.

    Attributes:
        records: Rows of the manifest, in its order.
        manifest_sha256: SHA-256 of the manifest.
        limits: Filter limits that were in force.
        splits: The option `--splits` of the build.
        specs: Fields that are stored.
        fields: Columns that the 3D view shows.
        gallery_parts: Parts that are shown.
        gallery_note: Which parts those are, in a sentence.
        deviations: Errors of predictions, the largest first; empty without predictions.
        predictor: What predicted, for people.
        schema_version: Version of the schema that the data set follows.
        remarks: What the build left out, changed, guessed or repaired.
    """

    records: Sequence[CaseRecord]
    manifest_sha256: str
    limits: Mapping[str, float]
    splits: str
    specs: Sequence[FieldSpec]
    fields: Sequence[ShownField]
    gallery_parts: Sequence[GalleryPart]
    gallery_note: str
    deviations: Sequence[Deviation] = ()
    predictor: str = ""
    schema_version: int = SCHEMA_VERSION
    remarks: Sequence[Remark] = ()


def render_page(content: PageContent) -> bytes:
    """The whole page; the same content gives the same bytes."""
    kept = [record for record in content.records if record.status == "kept"]
    placed = {record.case_id: record for record in content.records if record.placement is not None}
    context = {
        "title": TITLE,
        "introduction": INTRODUCTION,
        "solver": solver_sentence(content.records),
        "manifest_sha256": content.manifest_sha256,
        "version": dataset_version(content.manifest_sha256, content.schema_version),
        "package_version": importlib.metadata.version("lpbf-flare"),
        "sections": _sections(content),
        "tiles": _tiles(content.records),
        "kept": f"{len(kept):,}",
        "measured": f"{sum(record.measures is not None for record in content.records):,}",
        "gallery_parts": [_part(gallery_part, placed[gallery_part.case_id]) for gallery_part in content.gallery_parts],
        "still_width": STILL_SIZE[0],
        "still_height": STILL_SIZE[1],
        "gallery_note": content.gallery_note,
        "risk_note": _risk_note(content.records),
        "predictions": _prediction_facts(content),
        "published_source": PUBLISHED_SOURCE,
        "table_6": _table_6(content.records),
        "rejections": [
            {**asdict(row), "limit": format_number(row.limit), "cases": f"{row.cases:,}", "alone": f"{row.alone:,}"}
            for row in count_rejections(content.records, content.limits)
        ],
        "failures": _failures(content.records),
        "remarks": [
            {
                "treated": remark.treated,
                "count": f"{remark.count:,}",
                "sentence": remark.sentence,
                "where": remark.where,
            }
            for remark in content.remarks
        ],
        "leaks": bool(leaking_designs(content.records)),
        "leak_sentence": leak_sentence(content.records, content.splits),
        "splits": _splits(content),
        "splits_asked": content.splits,
        "columns": _columns(kept, content.specs),
        "materials": _named(kept, "material"),
        "machines": _named(kept, "machine"),
    }
    surfaces = (gallery_part.surface for gallery_part in content.gallery_parts)
    return render_with_viewer(ASSETS, "report.html", context, _page_data(content), content.fields, surfaces)


def _sections(content: PageContent) -> list[dict[str, str]]:
    names = {"gallery": "Parts", "predictions": "Predictions", "cases": "Cases", "distributions": "Distributions"}
    names |= {"table-6": "Beside the published set", "rejected": "Rejected and failed"}
    names |= {"remarks": "Changed on the way", "splits": "Splits", "fields": "What is stored"}
    return [{"id": key, "name": name} for key, name in names.items() if key != "predictions" or content.deviations]


def _blade(record: CaseRecord) -> BladeRisk | None:
    return None if record.measures is None else blade_risk(record.measures)


def _tiles(records: Sequence[CaseRecord]) -> list[dict[str, Any]]:
    status = count_by(records, lambda record: [record.status])
    kept = [record for record in records if record.status == "kept"]
    blade = [_blade(record) for record in kept]
    points = sum(record.measures.num_points for record in kept if record.measures is not None)
    figures = {
        "cases found": len(records),
        "kept": len(kept),
        "of them hit: closer to the blade than the solver tolerates": blade.count("contact") + blade.count("hit"),
        "of the hit ones in contact with it": blade.count("contact"),
        "rejected by the filter": status.get("rejected", 0),
        "failed": status.get("failed", 0),
        "points": points,
    }
    return [
        {"value": f"{figure:,}", "label": label, "alarm": "in contact" in label and figure > 0}
        for label, figure in figures.items()
    ]


def _risk_note(records: Sequence[CaseRecord]) -> str:
    tolerances = sorted({r.run.recoater_tolerance for r in records if r.run.recoater_tolerance is not None})
    listed = " or ".join(f"{tolerance:g} %" for tolerance in tolerances)
    limit = f"{listed} of a layer" if tolerances else "its tolerance"
    said = (
        "The recoater's blade, which spreads the powder, passes one powder layer above the part. A part counts as hit "
        f"where its clearance falls below {limit} at some height of the build: there the solver reports interference. "
        "It is in contact with the blade where it rises by the whole layer (clearance 0 % or less)."
    )
    if any(map(is_simulated_here, records)):
        said += (
            " The simulator of this project knows neither supports nor plasticity, and parts without supports rise "
            "further than those that a workshop would build: shares here say nothing of real builds."
        )
    return said


def _part(gallery_part: GalleryPart, record: CaseRecord) -> dict[str, Any]:
    measures = record.measures
    assert measures is not None
    clearance = f"clearance {format_number(measures.recoater_clearance_min)} %"
    blade = blade_risk(measures)
    words = {
        "contact": ", in contact with the blade.",
        "hit": ", closer to the blade than the solver tolerates.",
        "clear": ".",
    }
    furthest = f"±{format_number(measures.displacement_z_abs_max)} mm"
    description = (
        f"{record.case_id}: {format_number(measures.num_points)} points, {format_number(measures.height)} mm tall, "
        f"Z displacement up to {format_number(measures.displacement_z_max)} mm, {clearance}{words[blade]}"
    )
    return {
        "case_id": record.case_id,
        "blade": blade,
        "caption": f"{furthest} · {clearance}",
        "description": description,
        "still": None if gallery_part.still is None else base64_text(gallery_part.still),
    }


def _prediction_facts(content: PageContent) -> dict[str, str] | None:
    if not content.deviations:
        return None
    columns = dict.fromkeys(row.column for row in content.deviations)
    means = []
    for column in columns:
        errors = [row.relative_l2 for row in content.deviations if row.column == column and row.relative_l2 is not None]
        if errors:
            means.append(f"{column} {sum(errors) / len(errors):.4f}")
    cases = len({row.case_id for row in content.deviations})
    by = f" by {content.predictor}" if content.predictor else ""
    figures = f" Mean relative L2 error over the cases: {', '.join(means)}." if means else ""
    return {"sentence": f"{cases:,} cases predicted{by}, the largest error first.{figures}"}


def _table_6(records: Sequence[CaseRecord]) -> dict[str, Any]:
    here = table_6(records)
    rows = []
    for name, label in SUMMARY_ROWS.items():
        cells = []
        for quantity in QUANTITIES:
            mine = format_number(getattr(here[quantity.name], name)) if quantity.name in here else "–"
            theirs = "" if quantity.published is None else format_number(getattr(quantity.published, name))
            cells.append({"here": mine, "published": theirs})
        rows.append({"name": label, "cells": cells})
    return {"quantities": [quantity.heading for quantity in QUANTITIES], "rows": rows}


def _failures(records: Sequence[CaseRecord]) -> list[dict[str, Any]]:
    return [
        {
            "reason": row.reason,
            "cases": f"{row.cases:,}",
            "examples": [{"case_id": case_id, "detail": detail} for case_id, detail in row.examples],
        }
        for row in count_failures(records)
    ]


def _splits(content: PageContent) -> list[dict[str, str]]:
    return [
        {
            "name": row.name,
            "cases": f"{row.cases:,}",
            "designs": f"{row.designs:,}",
            "share": f"{100 * row.share:.1f} %",
            "asked": row.asked,
            "hits": f"{row.hits:,}",
            "contacts": f"{row.contacts:,}",
            "num_points": format_number(row.num_points),
            "displacement_z_max": format_number(row.displacement_z_max),
        }
        for row in balance_splits(content.records, content.splits)
    ]


def _columns(kept: Sequence[CaseRecord], specs: Sequence[FieldSpec]) -> list[dict[str, str]]:
    rows = []
    for spec in specs:
        for column in spec.columns:
            stats = total(record.statistics[column] for record in kept if column in record.statistics)
            figures = {name: getattr(stats, name) for name in ("mean", "std", "minimum", "maximum")}
            shown = {name: format_number(value) if stats.count else "–" for name, value in figures.items()}
            rows.append({"column": column, "unit": spec.unit, "description": spec.description, **shown})
    return rows


def _named(kept: Sequence[CaseRecord], attribute: str) -> str:
    counts = count_by(kept, lambda record: [str(getattr(record.run, attribute) or "unknown")])
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items()) or "none"


def _reason(record: CaseRecord) -> str | None:
    if record.failure is not None:
        return f"{record.failure.failure_reason}: {record.failure.description}"
    return (
        ", ".join(f"{r.criterion} {format_number(r.value)} > {format_number(r.limit)}" for r in record.rejections)
        or None
    )


def _rounded(value: float) -> float | None:
    """A number with six digits; None for one that JSON doesn't know."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _as_codes(values: Sequence[str | None]) -> dict[str, Any]:
    known = list(dict.fromkeys(values))
    number = {value: code for code, value in enumerate(known)}
    return {"values": known, "codes": [number[value] for value in values]}


def _page_data(content: PageContent) -> dict[str, Any]:
    """What the scripts work on; numbers with six digits."""
    records = content.records
    row_of = {record.case_id: row for row, record in enumerate(records) if record.placement is not None}

    def measured(name: str) -> list[Any]:
        values = [None if record.measures is None else getattr(record.measures, name) for record in records]
        return [_rounded(value) if isinstance(value, float) else value for value in values]

    cases: dict[str, Any] = {
        "case_id": [record.case_id for record in records],
        "design_id": [record.design_id for record in records],
        "status": _as_codes([record.status for record in records]),
        "split": _as_codes([None if record.placement is None else record.placement.split for record in records]),
        "material": _as_codes([record.run.material for record in records]),
        "reason": [_reason(record) for record in records],
        "remarks": [" · ".join(map(str, record.remarks)) or None for record in records],
        "blade": _as_codes([_blade(record) for record in records]),
        "recoater_clearance_min_height": measured("recoater_clearance_min_height"),
    }
    cases |= {quantity.name: measured(quantity.name) for quantity in QUANTITIES}
    quantities = []
    for quantity in QUANTITIES:
        box = quantity.published
        five = None if box is None else [box.minimum, box.lower_quartile, box.median, box.upper_quartile, box.maximum]
        limit = content.limits.get(_LIMIT_OF.get(quantity.name, ""))
        quantities.append({"name": quantity.name, "heading": quantity.heading, "published": five, "limit": limit})
    units = {field.column: field.unit for field in content.fields}
    errors = [
        {**asdict(row), "row": row_of[row.case_id], "unit": units.get(row.column, "")} for row in content.deviations
    ]
    return {
        "cases": cases,
        "quantities": quantities,
        "gallery": [row_of[gallery_part.case_id] for gallery_part in content.gallery_parts],
        "errors": errors,
    }
