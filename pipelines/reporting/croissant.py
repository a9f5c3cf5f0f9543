"""`croissant.json`: the data set in the metadata format that data set search engines read (MLCommons Croissant 1.1).

Format: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from lpbf_data.case.record import ATTRIBUTE_TYPES, CaseRecord
from lpbf_data.case.schema import FieldSpec
from lpbf_data.stores.parquet import CELL_COLUMN, POINT_COLUMNS

CROISSANT_NAME: Final = "croissant.json"

_CITATION: Final = (
    "Built with LPBF-FLARE, after Puri et al., FLARE: Fast Low-rank Attention Routing Engine, appendix G."
)
_TYPES: Final = {str: "sc:Text", int: "sc:Integer", float: "sc:Float", bool: "sc:Boolean"}
_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "personalSensitiveInformation": "cr:personalSensitiveInformation",
    "recordSet": "cr:recordSet",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def _field(name: str, data_type: str, description: str, *, many: bool = False) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"cases/{name}",
        "name": name,
        "description": description,
        "dataType": data_type,
        "source": {"fileSet": {"@id": "shards"}, "extract": {"column": name}},
    }
    if many:
        field |= {"isArray": True, "arrayShape": "-1"}
    return field


def _shards(records: Sequence[CaseRecord]) -> dict[str, str]:
    """Path and SHA-256 of each Parquet shard."""
    placements = [record.placement for record in records if record.placement is not None]
    return {p.parquet_file: p.parquet_sha256 or "" for p in placements if p.parquet_file is not None}


def make_croissant(records: Sequence[CaseRecord], specs: Sequence[FieldSpec], version: str, summary: str) -> bytes:
    """Write the metadata of a data set that has Parquet shards.

    Args:
        records: Rows of the manifest.
        specs: Fields that are stored.
        version: Version of the data set, as on its card.
        summary: One or two sentences on what it is.
    """
    shards = _shards(records)
    files = [
        {
            "@type": "cr:FileObject",
            "@id": path,
            "name": path.rpartition("/")[2],
            "contentUrl": path,
            "encodingFormat": "application/x-parquet",
            "sha256": digest,
        }
        for path, digest in sorted(shards.items())
    ]
    fields = [_field("case_id", "sc:Text", "name of the case")]
    fields += [_field(name, _TYPES[kind], name.replace("_", " ")) for name, kind in ATTRIBUTE_TYPES.items()]
    fields += [_field(name, "sc:Float", f"{name} of each point, mm", many=True) for name in POINT_COLUMNS]
    for spec in specs:
        for column in spec.columns:
            where = "point" if spec.location == "point" else "cell"
            text = f"{spec.description} at each {where}" + ("" if spec.unit == "1" else f", {spec.unit}")
            fields.append(_field(column, "sc:Float", text, many=True))
    cells = "zero-based points of each hexahedron, eight numbers a cell, node order of VTK"
    fields.append(_field(CELL_COLUMN, "sc:Integer", cells, many=True))
    content = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": "laser-powder-bed-fusion-simulations",
        "description": summary,
        "citeAs": _CITATION,
        "version": version,
        "isLiveDataset": False,
        "distribution": [
            *files,
            {
                "@type": "cr:FileSet",
                "@id": "shards",
                "name": "shards",
                "description": "Parquet shards, one row per case",
                "encodingFormat": "application/x-parquet",
                "includes": "data/*.parquet",
            },
        ],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "cases", "name": "cases", "field": fields}],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
