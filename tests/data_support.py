"""Made-up parts and small data sets for tests and benchmarks.

The parts are voxel meshes of simple bodies with smooth fields. Their float32 values have rounding noise in the last
digits, as a solver's do, so that they compress as real results do (about 3.3 bytes a value).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lpbf_data.case.case import Case
from lpbf_data.case.record import CaseRecord, Measures, Placement, SourceRef, attributes_of
from lpbf_data.case.schema import BUILD_FIELDS, DEFAULT_FIELDS, FIELDS
from lpbf_data.durable import sha256_of_file, sha256_of_tree
from lpbf_data.geometry.hexahedra import count_hex_edges, hex_aspect_ratio, hex_edges
from lpbf_data.stores.manifest import MANIFEST_NAME, encode_manifest
from lpbf_data.stores.parquet import write_shard
from lpbf_data.stores.zarr_parts import write_part
from pipelines.measuring.measure import field_statistics
from pipelines.reporting.card import make_card

SPECS = tuple(FIELDS[name] for name in (*DEFAULT_FIELDS, *BUILD_FIELDS))
CORNERS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]])


def body_cells(rng: np.random.Generator, num_points: int) -> NDArray[np.int64]:
    """Grid positions of the cells of a body, [E, 3], bottom to top, with about `num_points` points."""
    side = max(round((num_points * 2.2) ** (1 / 3)), 2)
    z, y, x = np.meshgrid(*[np.arange(side)] * 3, indexing="ij")
    unit = np.stack([x, y, z], axis=-1) / side - 0.5 + 0.5 / side
    kind = rng.integers(4)
    radius = np.hypot(unit[..., 0], unit[..., 1])
    if kind == 0:  # a tube
        inside = (radius < 0.48) & (radius > 0.1 + 0.15 * rng.random())
    elif kind == 1:  # a block with drilled holes
        inside = np.abs(unit).max(axis=-1) < 0.42
        for centre in rng.uniform(-0.3, 0.3, (3, 2)):
            inside &= np.hypot(unit[..., 0] - centre[0], unit[..., 1] - centre[1]) > 0.09
    elif kind == 2:  # an L-shaped bracket
        inside = (unit[..., 0] < -0.05) | (unit[..., 2] < -0.05)
    else:  # a blob
        wave = np.sin(unit @ rng.uniform(4, 9, 3) + rng.random()) + np.cos(unit @ rng.uniform(4, 9, 3))
        inside = (np.linalg.norm(unit, axis=-1) < 0.49) & (wave > -1.2)
    inside[0, side // 2, side // 2] = True
    return np.argwhere(inside.transpose(0, 1, 2))[:, ::-1]


def make_case(seed: int, num_points: int = 60, *, case_id: str | None = None) -> Case:
    """A part with the default fields and the reductions over the build.

    Args:
        seed: Number of the part; equal seeds give equal parts.
        num_points: About how many points it has.
        case_id: Its case id; by default one made of the seed.
    """
    rng = np.random.default_rng([7, seed])
    corners = body_cells(rng, num_points)[:, None, :] + CORNERS
    span = int(corners.max()) + 1
    keys = (corners[..., 2] * span + corners[..., 1]) * span + corners[..., 0]
    # Points are numbered in the order in which cells use them first, layer by layer, as NetFabb does.
    unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    cells = np.argsort(order)[inverse]
    unique = unique[order]
    grid = np.stack([unique % span, unique // span % span, unique // span**2], axis=1)
    spacing = np.array([rng.uniform(0.4, 1.2)] * 2 + [rng.choice([0.4, 0.8])])
    points = (grid * spacing - [grid[:, 0].mean() * spacing[0], grid[:, 1].mean() * spacing[1], 0]).astype(np.float32)
    name = case_id or f"{seed:05d}_{hashlib.sha256(str(seed).encode()).hexdigest()[:8]}_0"
    return Case(name, points, cells.reshape(-1, 8).astype(np.int32), make_fields(rng, points))


def make_fields(rng: np.random.Generator, points: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Smooth fields on points [N, 3]: sums of a few waves, with relative noise as of a solver's tolerance."""
    scaled = points / np.abs(points).max()

    def smooth(scale: float, offset: float = 0.0) -> NDArray[np.float32]:
        waves = sum(rng.normal() * np.sin(scaled @ rng.normal(0, 2, 3) + rng.random() * 6) for _ in range(6))
        return ((offset + scale * waves) * (1 + 2e-6 * rng.normal(size=len(points)))).astype(np.float32)

    clearance = np.minimum(smooth(20, 90), np.float32(100))
    return {
        "displacement": np.stack([smooth(0.1), smooth(0.1), smooth(0.2)], axis=1),
        "temperature": np.full(len(points), 25, dtype=np.float32),
        "von_mises_stress": np.abs(smooth(120, 300)),
        "build_clearance_min": clearance,
        "build_displacement_z_max": smooth(0.05, 0.1),
    }


def record_of(case: Case, placement: Placement | None = None) -> CaseRecord:
    """The row of the manifest for a case."""
    ratios = hex_aspect_ratio(case.points, case.cells)
    displacement = case.fields["displacement"].astype(np.float64)
    measures = Measures(
        num_points=case.num_points,
        num_edges=count_hex_edges(case.cells),
        num_cells=case.num_cells,
        aspect_ratio_mean=float(ratios.mean()),
        aspect_ratio_max=float(ratios.max()),
        height=float(np.ptp(case.points[:, 2])),
        displacement_z_max=float(displacement[:, 2].max()),
        displacement_z_abs_max=float(np.abs(displacement[:, 2]).max()),
        displacement_max=float(np.sqrt(np.square(displacement).sum(axis=1).max())),
        von_mises_stress_max=float(case.fields["von_mises_stress"].max()),
        recoater_clearance_min=float(case.fields["build_clearance_min"].min()),
        recoater_clearance_min_height=None,
        recoater_interference=False,
    )
    return CaseRecord(
        case_id=case.case_id,
        source=SourceRef("made", case.case_id, 1, hashlib.sha256(case.points.tobytes()).hexdigest()),
        design_id=case.case_id.rpartition("_")[0],
        measures=measures,
        statistics=field_statistics(case, SPECS),
        placement=placement,
    )


def write_dataset(
    folder: Path,
    splits: Mapping[str, Sequence[Case]],
    *,
    shards: int = 3,
    formats: Sequence[str] = ("parquet", "zarr"),
) -> Path:
    """Write a data set as `pipelines.build` does, without sources.

    Args:
        folder: Existing folder to write it to.
        splits: Split to cases.
        shards: Largest number of shards of a split.
        formats: Formats to store.
    """
    records = []
    for split, cases in splits.items():
        groups = [group.tolist() for group in np.array_split(np.arange(len(cases)), min(shards, len(cases)))]
        for index, group in enumerate(groups):
            chosen = [dataclasses.replace(cases[i], attributes=attributes_of(record_of(cases[i]))) for i in group]
            stored = _write_shard(folder, chosen, split, index, len(groups), formats)
            records += [record_of(case, Placement(split, index, row, **stored)) for row, case in enumerate(chosen)]
    manifest = encode_manifest(records)
    digest = hashlib.sha256(manifest).hexdigest()
    (folder / "README.md").write_bytes(make_card(records, SPECS, formats, {}, "train=1", digest))
    (folder / MANIFEST_NAME).write_bytes(manifest)
    return folder


def _write_shard(
    folder: Path, cases: Sequence[Case], split: str, index: int, count: int, formats: Sequence[str]
) -> dict[str, str | int]:
    """Write one shard in every format.

    Returns:
        The columns of its cases' placement.
    """
    stored: dict[str, str | int] = {}
    if "parquet" in formats:
        stored["parquet_file"] = f"data/{split}-{index:05d}-of-{count:05d}.parquet"
        path = folder / str(stored["parquet_file"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, cases, SPECS)
        stored |= {"parquet_bytes": path.stat().st_size, "parquet_sha256": sha256_of_file(path)}
    if "zarr" in formats:
        stored["zarr_part"] = f"lpbf.zarr/{split}/{index:05d}"
        path = folder / str(stored["zarr_part"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_part(path, cases, SPECS)
        digest, size = sha256_of_tree(path)
        stored |= {"zarr_bytes": size, "zarr_sha256": digest}
    return stored


def write_published(folder: Path, splits: Mapping[str, Sequence[Case]]) -> Path:
    """Write a data set in the layout of the published one: a Parquet index, and one compressed npz a case.

    Args:
        folder: Folder to write it to.
        splits: Split to cases.
    """
    (folder / "data").mkdir(parents=True)
    for split, cases in splits.items():
        (folder / split).mkdir()
        rows = []
        for case in cases:
            text = json.dumps({"metadata": {"case_name": case.case_id, "time_steps": 1}})
            edges = hex_edges(case.cells)
            np.savez_compressed(
                folder / split / f"{case.case_id}.npz",
                pos=case.points,
                edge_index=edges,
                elems=case.cells,
                temp=case.fields["temperature"][:, None],
                disp=case.fields["displacement"],
                vmstr=case.fields["von_mises_stress"][:, None],
                _metadata=np.array([text], dtype=object),
            )
            place = {"case_id": case.case_id, "file": f"{split}/{case.case_id}.npz"}
            counts = {"num_nodes": case.num_points, "num_edges": edges.shape[1]}
            rows.append(place | counts | {"metadata": json.dumps(json.loads(text)["metadata"])})
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder
