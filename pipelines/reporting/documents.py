"""The files that stand beside the shards: manifest, `build.json`, card."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Final

from lpbf_data.case.record import CaseRecord
from lpbf_data.case.schema import SCHEMA_VERSION
from lpbf_data.remarks import Remark
from lpbf_data.stores.manifest import MANIFEST_NAME, decode_manifest
from pipelines.building.request import BuildRequest
from pipelines.reporting.card import INTRODUCTION, CardPicture, dataset_version, make_card
from pipelines.reporting.croissant import CROISSANT_NAME, make_croissant
from pipelines.selection.split_options import PUBLISHED

BUILD_NAME: Final = "build.json"
CARD_NAME: Final = "README.md"
REPORT_NAME: Final = "report.html"
PICTURES_NAME: Final = "pictures"
PARTS_PICTURE: Final = f"{PICTURES_NAME}/parts.png"
DISTRIBUTIONS_PICTURE: Final = f"{PICTURES_NAME}/distributions.png"
PICTURES: Final = (PARTS_PICTURE, DISTRIBUTIONS_PICTURE)
"""Pictures that a build draws."""

NOT_ALWAYS_THERE: Final = (CROISSANT_NAME, REPORT_NAME, PICTURES_NAME)
"""What an earlier build may have left and this one may not make."""

_VERSIONED: Final = ("lpbf-flare", "numpy", "pyarrow", "zarr", "zarrs", "numcodecs")


def make_documents(request: BuildRequest, manifest: bytes) -> dict[str, bytes]:
    """File name to content.

    Args:
        request: What was built.
        manifest: The encoded manifest.
    """
    digest = hashlib.sha256(manifest).hexdigest()
    decoded = decode_manifest(manifest)
    records = decoded.records
    documents = {
        CARD_NAME: make_card_of(request, manifest),
        BUILD_NAME: _build_json(request, records, decoded.remarks, digest),
        MANIFEST_NAME: manifest,
    }
    if "parquet" in request.formats and any(record.status == "kept" for record in records):
        documents[CROISSANT_NAME] = make_croissant(records, request.specs, dataset_version(digest), INTRODUCTION)
    return documents


def make_card_of(request: BuildRequest, manifest: bytes, pictures: Sequence[CardPicture] = ()) -> bytes:
    """The card of a data set that was built.

    Args:
        request: What was built.
        manifest: The encoded manifest.
        pictures: Pictures that lie in the data set.
    """
    digest = hashlib.sha256(manifest).hexdigest()
    decoded = decode_manifest(manifest)
    return make_card(
        decoded.records, request.specs, request.formats, request.limits, request.splits, digest, pictures,
        decoded.remarks,
    )  # fmt: skip


def _build_json(
    request: BuildRequest, records: Sequence[CaseRecord], remarks: Sequence[Remark], manifest_sha256: str
) -> bytes:
    sources = sorted(f"{r.case_id}\0{r.source.source_digest}" for r in records)
    content = {
        "schema_version": SCHEMA_VERSION,
        "configuration": request.configuration,
        "leaks_between_splits": request.splits == PUBLISHED,
        "sources": sorted({record.source.archive for record in records}),
        "sources_sha256": hashlib.sha256("\n".join(sources).encode("utf-8", "surrogatepass")).hexdigest(),
        "manifest_sha256": manifest_sha256,
        "remarks": [remark.as_dict() for remark in remarks],
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED},
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
