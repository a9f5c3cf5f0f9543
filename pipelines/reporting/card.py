"""The data set's card: `README.md`, for people and for the Hugging Face hub.

Its YAML maps splits to files, so that plain `datasets` opens the folder, and carries a version that follows the
manifest: `datasets` caches by the card, and would give old rows after a rebuild in place otherwise.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from lpbf_data.case.record import CaseRecord
from lpbf_data.case.schema import SCHEMA_VERSION, FieldSpec
from lpbf_data.case.statistics import total
from lpbf_data.remarks import Remark
from lpbf_data.stores.manifest import count_by
from pipelines.numbers import format_number
from pipelines.reporting.origin import fusion_parts, is_simulated_here, solver_sentence
from pipelines.reporting.overview import (
    PUBLISHED_SOURCE,
    QUANTITIES,
    SUMMARY_ROWS,
    count_failures,
    count_rejections,
    table_6,
)
from pipelines.reporting.split_balance import balance_splits, leak_sentence
from pipelines.selection.splits import ordered_splits

TITLE: Final = "Laser powder bed fusion simulations"

INTRODUCTION: Final = (
    "Finished parts after release from the build plate, one row per part: hexahedral mesh, displacement and more at "
    "every point, and the recoater clearance over the build. Lengths in mm, stresses in MPa, temperatures in °C."
)


def dataset_version(manifest_sha256: str, schema_version: int = SCHEMA_VERSION) -> str:
    """Version of a data set: another manifest, another version.

    Args:
        manifest_sha256: SHA-256 of the manifest.
        schema_version: Version of the schema that it follows.

    >>> dataset_version("00000001" + "0000000f" + "0" * 48, 1)
    '1.1.15'
    """
    return f"{schema_version}.{int(manifest_sha256[:8], 16)}.{int(manifest_sha256[8:16], 16)}"


_SIZES: Final = (
    ("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", 1e6), ("1M<n<10M", 1e7), ("10M<n<100M", 1e8)
)  # fmt: skip
"""Names that the hub has for numbers of rows, and what each ends at."""

_METHOD: Final = (
    "The solver builds a part layer by layer (several powder layers lumped into one of elements) on a plate, cools it "
    "down and cuts it off; what is stored is the state after that, on a mesh of hexahedra along the axes, and two "
    "fields that reduce the build onto the finished part: `build_clearance_min` and `build_displacement_z_max`."
)

_MESH: Final = (
    "`x, y, z` (mm) are the points, `cells` the zero-based hexahedra (eight numbers each, node order of VTK). Figures "
    "are over all points, or cells, of the kept cases."
)

_LIMITS: Final = (
    "Everything is simulated; nothing here was measured on a machine.",
    "Meshes are of boxes along the axes: slanted and round surfaces are staircases with corners that raise the stress.",
    "Layers are lumped, so what happens within one layer of elements isn't resolved.",
    "The history of the build isn't stored, only the finished part and two reductions over the build.",
    "`von_mises_stress` is in MPa by its size; the result files don't name its unit.",
)

_CITATION: Final = """```bibtex
@article{puri2025flare,
  title   = {{FLARE}: Fast Low-rank Attention Routing Engine},
  author  = {Puri, Vedant and Joglekar, Aditya and Ferguson, Kevin and Chen, Yu-hsuan and Zhang, Yongjie Jessica and
             Kara, Levent Burak},
  journal = {arXiv preprint arXiv:2508.12594},
  year    = {2025}
}
```"""


@dataclass(frozen=True, slots=True)
class CardPicture:
    """A picture on the card.

    Attributes:
        path: Where it lies in the data set.
        alternative: What it shows, for those who don't see it.
    """

    path: str
    alternative: str


def plain(text: str) -> str:
    r"""Escape a text, so that Markdown or HTML in it is shown as it is.

    >>> plain("a|b <script> *c*")
    'a\\|b &lt;script&gt; \\*c\\*'
    """
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _metadata(splits: Sequence[str], manifest_sha256: str, *, parquet: bool, num_rows: int) -> dict[str, Any]:
    """YAML of the card. The version of the configuration is what `datasets` keys its cache by."""
    metadata: dict[str, Any] = {
        "pretty_name": TITLE,
        "task_categories": ["graph-ml"],
        "tags": ["additive-manufacturing", "laser-powder-bed-fusion", "finite-elements", "mesh", "surrogate-modeling"],
        "size_categories": [next((name for name, limit in _SIZES if num_rows < limit), "100M<n<1B")],
    }
    if parquet and splits:
        metadata["configs"] = [
            {
                "config_name": "default",
                "version": dataset_version(manifest_sha256),
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ]
    return metadata


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of cells that are Markdown already."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def make_card(
    records: Sequence[CaseRecord],
    specs: Sequence[FieldSpec],
    formats: Sequence[str],
    limits: Mapping[str, float],
    splits: str,
    manifest_sha256: str,
    pictures: Sequence[CardPicture] = (),
    remarks: Sequence[Remark] = (),
) -> bytes:
    """Write the card of a data set.

    Args:
        records: Rows of the manifest.
        specs: Fields that are stored.
        formats: Formats that are stored.
        limits: Filter limits in force.
        splits: The option `--splits`.
        manifest_sha256: SHA-256 of the manifest.
        pictures: Pictures that lie in the data set.
        remarks: What the build left out, changed, guessed or repaired.
    """
    kept = [record for record in records if record.status == "kept"]
    names = ordered_splits(record.placement.split for record in kept if record.placement is not None)
    metadata = _metadata(names, manifest_sha256, parquet="parquet" in formats, num_rows=len(kept))
    own = sum(map(is_simulated_here, kept))
    lines = [f"# {TITLE}", "", INTRODUCTION, ""]
    if own:
        whose = "Every case was" if own == len(kept) else f"{own} of {len(kept)} cases were"
        lines += [f"**{whose} simulated by this project (`python -m pipelines.simulate`), not by NetFabb.**", ""]
    for picture in pictures:
        lines += [f"![{plain(picture.alternative)}]({picture.path})", ""]
    if pictures:
        lines += [
            "`report.html` lists every case and shows parts in 3D; download it and open it, it needs no network.",
            "",
        ]
    lines += [
        *_how_made(records, limits),
        *_remarks(remarks),
        *_splits(records, splits),
        *_statistics(records),
        *_columns(kept, specs),
        *_loading(names, formats),
        *_known_limits(records, limits, splits),
        *_rights(records),
    ]
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{chr(10).join(lines)}".encode("utf-8", "replace")


def _how_made(records: Sequence[CaseRecord], limits: Mapping[str, float]) -> list[str]:
    """Solver, materials, machines; what was found, and what became of it."""
    kept = [record for record in records if record.status == "kept"]
    status = count_by(records, lambda r: [r.status])
    lines = ["## How it was made", "", plain(solver_sentence(records)), ""]
    for label, attribute in (
        ("material", "material"),
        ("machine", "machine"),
        ("solver version", "solver_version"),
        ("powder layer, mm", "layer_thickness"),
        ("recoater tolerance, % of a layer", "recoater_tolerance"),
    ):
        lines.append(_named(kept, label, attribute))
    found = (
        f"Found {len(records):,} cases: {status.get('kept', 0):,} kept, {status.get('rejected', 0):,} rejected by the "
        f"filter, {status.get('failed', 0):,} failed. `manifest.parquet` has a row for each, with the reasons."
    )
    lines += ["", _METHOD, "", found, ""]
    if limits:
        rows = [
            [f"`{row.criterion}`", format_number(row.limit), f"{row.cases:,}", f"{row.alone:,}"]
            for row in count_rejections(records, limits)
        ]
        lines += _table(["criterion", "limit", "rejected", "by it alone"], rows)
    if failures := count_failures(records):
        lines += _table(["failure", "cases"], [[f"`{row.reason}`", f"{row.cases:,}"] for row in failures])
    return lines


def _remarks(remarks: Sequence[Remark]) -> list[str]:
    """What isn't as it was found, one row per kind."""
    if not remarks:
        return []
    rows = [[remark.treated, f"{remark.count:,}", plain(remark.sentence), plain(remark.where)] for remark in remarks]
    said = "What the build left out, changed, guessed or repaired; the manifest says it for each case."
    return ["## What was changed on the way", "", said, "", *_table(["", "times", "what", "for example"], rows)]


def _named(kept: Sequence[CaseRecord], label: str, attribute: str) -> str:
    """One line: values of an attribute with their counts, and a warning where there are several."""

    def name_of(record: CaseRecord) -> str:
        value = getattr(record.run, attribute)
        return f"{value:g}" if isinstance(value, float) else plain(str(value or "unknown"))

    counts = count_by(kept, lambda record: [name_of(record)])
    listed = ", ".join(f"{name} ({count})" for name, count in counts.items())
    return f"- {label}: {listed}" + (" – **mixed**" if len(counts) > 1 else "")


def _splits(records: Sequence[CaseRecord], splits: str) -> list[str]:
    rows = [
        [row.name, f"{row.cases:,}", f"{row.designs:,}", f"{100 * row.share:.1f} %", plain(row.asked)]
        for row in balance_splits(records, splits)
    ]
    if not rows:
        return []
    lines = ["## Splits", "", leak_sentence(records, splits), ""]
    return lines + _table(["split", "cases", "designs", "share", "asked for"], rows)


def _statistics(records: Sequence[CaseRecord]) -> list[str]:
    """Table 6 of the paper for this set, beside the published figures."""
    here = table_6(records)
    if not here:
        return []
    rows = []
    for name, label in SUMMARY_ROWS.items():
        cells = [label]
        for quantity in QUANTITIES:
            published = "" if quantity.published is None else f" ({format_number(getattr(quantity.published, name))})"
            cells.append(f"{format_number(getattr(here[quantity.name], name))}{published}")
        rows.append(cells)
    source = f"Over the kept cases; in brackets the published set: {PUBLISHED_SOURCE}."
    return ["## Statistics", "", source, "", *_table(["", *(q.heading for q in QUANTITIES)], rows)]


def _columns(kept: Sequence[CaseRecord], specs: Sequence[FieldSpec]) -> list[str]:
    rows = []
    for spec in specs:
        for column in spec.columns:
            stats = total(r.statistics[column] for r in kept if column in r.statistics)
            numbers = [f"{v:.6g}" for v in (stats.mean, stats.std, stats.minimum, stats.maximum)]
            rows.append([f"`{column}`", spec.unit, spec.description, *(numbers if stats.count else ["–"] * 4)])
    return [
        "## Columns",
        "",
        _MESH,
        "",
        *_table(["column", "unit", "what", "mean", "s.d.", "least", "largest"], rows),
    ]


_WAYS: Final = {
    "": (
        "With the package that made it, as graphs for PyTorch:",
        """from lpbf_data import load_dataset

cases = load_dataset("path/or/hub-id", split="{split}")  # a torch_geometric data set
graph = cases[0]  # pos [N, 3] mm, y [N, 1] Z displacement mm, cells [E, 8], every field by its name""",
    ),
    "parquet": (
        "With plain `datasets`, as rows:",
        """import datasets

rows = datasets.load_dataset("path/or/hub-id", split="{split}").with_format("numpy")
displacement_z = rows[0]["displacement_z"]  # [N] mm""",
    ),
    "zarr": (
        "With Zarr or xarray, as CF contiguous ragged arrays, the cases of a part one after the other:",
        """import xarray

part = xarray.open_zarr("path/lpbf.zarr/{split}/00000", consolidated=False)
first, end = part["point_offset"][:2].values  # the points of its first case
displacement_z = part["displacement"][2, first:end].values  # [N] mm""",
    ),
}
"""Ways to load a data set: the format that it takes (none: any), what it is, and the code."""


def _loading(splits: Sequence[str], formats: Sequence[str]) -> list[str]:
    """How to load the data set; nothing where it holds no case."""
    if not splits:
        return []
    lines = ["## Loading", ""]
    for needed, (words, code) in _WAYS.items():
        if not needed or needed in formats:
            lines += [words, "", "```python", code.format(split=splits[0]), "```", ""]
    return lines


def _known_limits(records: Sequence[CaseRecord], limits: Mapping[str, float], splits: str) -> list[str]:
    """What a user should know before trusting the data."""
    kept = [record for record in records if record.status == "kept"]
    found = list(_LIMITS)
    if limits:
        found.append(
            "The filter leaves out large, distorted and strongly deformed parts; a model that learns from the rest "
            "doesn't know them."
        )
    if any(map(is_simulated_here, kept)):
        found.append(
            "The open simulator solves linear elasticity with modified inherent strains: plasticity and contact are "
            "left out."
        )
    if splits == "published":
        found.append("Splits are by case: a model can know a test part by another body of the same design.")
    for label, attribute in (("materials", "material"), ("machines", "machine"), ("solvers", "solver_version")):
        if len({getattr(record.run, attribute) for record in kept}) > 1:
            found.append(f"Cases of several {label} are mixed.")
    return ["## Known limits", "", *(f"- {sentence}" for sentence in found), ""]


def _rights(records: Sequence[CaseRecord]) -> list[str]:
    """Licence and citation. A licence is never assumed."""
    stated = (
        "As the metadata above state; where they state none, none was given, and `python -m pipelines.publish` asks "
        "for it."
    )
    lines = ["## Licence", "", stated]
    if parts := fusion_parts(records):
        lines.append(
            f"{len(parts):,} case ids have the form of those of the Fusion 360 Gallery, whose licence allows "
            "non-commercial research only; that holds for data made from its geometries too."
        )
    paper = "The set follows, and is laid out for comparison with, the data set of this paper's appendix G:"
    return [*lines, "", "## Citation", "", paper, "", _CITATION, ""]
