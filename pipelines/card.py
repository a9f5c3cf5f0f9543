"""The data set's card: `README.md`, for people and for the Hugging Face hub.

Its YAML maps splits to files, so that plain `datasets` opens the folder, and carries a version that follows the
manifest: `datasets` caches by the card, and would give old rows after a rebuild in place otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from lpbf_data.manifest import count_by
from lpbf_data.record import CaseRecord
from lpbf_data.schema import SCHEMA_VERSION, FieldSpec
from lpbf_data.statistics import total
from pipelines.select import ordered_splits
from pipelines.simulation.identity import OWN_SOLVER

TITLE: Final = "Laser powder bed fusion simulations"

INTRODUCTION: Final = (
    "Finished parts after release from the build plate, one row a part: hexahedral mesh, displacement and more at "
    "every point, and the recoater clearance over the build. Lengths in mm, stresses in MPa, temperatures in °C."
)


def dataset_version(manifest_sha256: str) -> str:
    """Version of a data set: another manifest, another version.

    >>> dataset_version("00000001" + "0000000f" + "0" * 48)
    '1.1.15'
    """
    return f"{SCHEMA_VERSION}.{int(manifest_sha256[:8], 16)}.{int(manifest_sha256[8:16], 16)}"


def _metadata(splits: Sequence[str], manifest_sha256: str, *, parquet: bool, num_rows: int) -> dict[str, Any]:
    """YAML of the card. The version of the configuration is what `datasets` keys its cache by."""
    sizes = (("n<1K", 1_000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000))
    size = next((name for name, limit in sizes if num_rows < limit), "n>1M")
    metadata: dict[str, Any] = {
        "pretty_name": TITLE,
        "tags": ["additive-manufacturing", "laser-powder-bed-fusion", "finite-elements", "mesh", "surrogate-modeling"],
        "size_categories": [size],
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
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows] + [""]


def _fields(kept: Sequence[CaseRecord], specs: Sequence[FieldSpec]) -> list[str]:
    rows = []
    for spec in specs:
        for column in spec.columns:
            stats = total(r.statistics[column] for r in kept if column in r.statistics)
            numbers = [f"{v:.6g}" for v in (stats.mean, stats.std, stats.minimum, stats.maximum)]
            rows.append([f"`{column}`", spec.unit, spec.description, *(numbers if stats.count else ["–"] * 4)])
    return _table(["column", "unit", "what", "mean", "s.d.", "least", "largest"], rows)


def _mixtures(kept: Sequence[CaseRecord]) -> list[str]:
    """Materials, machines and solver versions, and a warning where there are several."""
    lines = []
    for label, attribute in (("material", "material"), ("machine", "machine"), ("solver version", "solver_version")):
        counts = count_by(kept, lambda r, a=attribute: [str(getattr(r.run, a) or "unknown")])  # type: ignore[misc]
        listed = ", ".join(f"{name} ({count})" for name, count in counts.items())
        lines.append(f"- {label}: {listed}" + (" – **mixed**" if len(counts) > 1 else ""))
    return [*lines, ""]


def _origin(kept: Sequence[CaseRecord]) -> list[str]:
    """Says which cases this project simulated itself."""
    own = sum((record.run.solver_version or "").endswith(OWN_SOLVER) for record in kept)
    if not own:
        return []
    whose = "Every case was" if own == len(kept) else f"{own} of {len(kept)} cases were"
    return [f"**{whose} simulated by this project (`python -m pipelines.simulate`), not by NetFabb.**", ""]


def make_card(
    records: Sequence[CaseRecord],
    specs: Sequence[FieldSpec],
    formats: Sequence[str],
    limits: Mapping[str, float],
    splits: str,
    manifest_sha256: str,
) -> bytes:
    """Write the card of a data set.

    Args:
        records: Rows of the manifest.
        specs: Fields that are stored.
        formats: Formats that are stored.
        limits: Filter limits in force.
        splits: The option `--splits`.
        manifest_sha256: SHA-256 of the manifest.
    """
    kept = [record for record in records if record.status == "kept"]
    per_split = count_by(kept, lambda r: [r.placement.split if r.placement else ""])
    names = ordered_splits(per_split)
    metadata = _metadata(names, manifest_sha256, parquet="parquet" in formats, num_rows=len(kept))
    status = count_by(records, lambda r: [r.status])
    rejected = count_by(records, lambda r: [x.criterion for x in r.rejections])
    failures = count_by(records, lambda r: [str(r.failure.failure_reason)] if r.failure else [])
    lines = [
        f"# {TITLE}",
        "",
        INTRODUCTION,
        "",
        *_table(["split", "cases"], [[name, str(per_split[name])] for name in names]),
        f"Found {len(records)} cases: {status.get('kept', 0)} kept, {status.get('rejected', 0)} rejected by the "
        f"filter, {status.get('failed', 0)} failed. `manifest.parquet` has a row for each, with the reasons. "
        f"Splits: `{splits}`"
        + (", by case: bodies of one design lie on both sides." if splits == "published" else ", by whole designs."),
        "",
        *_table(
            ["criterion", "limit", "rejected"], [[n, f"{v:g}", str(rejected.get(n, 0))] for n, v in limits.items()]
        ),
        *(_table(["failure", "cases"], [[n, str(c)] for n, c in failures.items()]) if failures else []),
        "## Simulation",
        "",
        *_origin(kept),
        *_mixtures(kept),
        "## Columns",
        "",
        "`x, y, z` (mm) are the points, `cells` the zero-based hexahedra (eight numbers each, node order of VTK).",
        "",
        *_fields(kept, specs),
        *_loading(names, formats),
    ]
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{chr(10).join(lines)}".encode()


def _loading(splits: Sequence[str], formats: Sequence[str]) -> list[str]:
    split = splits[0] if splits else "train"
    lines = ["## Loading", "", "```python", "from lpbf_data import load_dataset", ""]
    lines += [f'cases = load_dataset("path/or/hub-id", split="{split}")  # torch_geometric data', "```", ""]
    if "parquet" in formats:
        lines += ["```python", "import datasets", ""]
        lines += [f'rows = datasets.load_dataset("path/or/hub-id", split="{split}").with_format("numpy")', "```", ""]
    if "zarr" in formats:
        lines += ["```python", "import xarray", ""]
        lines += [f'part = xarray.open_zarr("lpbf.zarr/{split}/00000", consolidated=False)', "```", ""]
    return lines
