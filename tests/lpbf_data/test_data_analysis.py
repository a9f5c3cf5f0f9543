"""A whole split as one xarray data set, lazily."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray
import zarr

from lpbf_data import open_zarr
from lpbf_data.case.record import ATTRIBUTE_TYPES
from lpbf_data.errors import SchemaError, StoreError, UsageError
from lpbf_data.stores.manifest import decode_manifest
from lpbf_data.stores.zarr_parts import LAYOUT_NAME, ZarrPart
from tests.data_support import make_case, write_dataset
from tests.lpbf_data.test_stores import assert_same


@pytest.fixture
def whole(small_dataset: Path) -> Any:
    return open_zarr(str(small_dataset), "train")


def test_parts_lie_end_to_end(whole: Any, small_cases: Any) -> None:
    by_id = {case.case_id: case for case in small_cases["train"]}
    assert whole.sizes["case"] == 17
    for number, name in enumerate(whole.case_id.values.tolist()):
        case = by_id[name]
        points = slice(*whole.point_offset.values[number : number + 2])
        cells = slice(*whole.cell_offset.values[number : number + 2])
        np.testing.assert_array_equal(whole.points[:, points].values.T, case.points)
        np.testing.assert_array_equal(whole.displacement[:, points].values.T, case.fields["displacement"])
        np.testing.assert_array_equal(whole.cells[:, cells].values.T, case.cells)
        assert int(whole.num_points[number]) == case.num_points
    assert whole.von_mises_stress.attrs["units"] == "MPa"
    assert whole.attrs["Conventions"].startswith("CF")


def test_nothing_is_read_before_it_is_asked_for(whole: Any, small_dataset: Path) -> None:
    for name in ("points", "displacement", "von_mises_stress", "cells", "height"):
        assert dask.is_dask_collection(whole[name].data)
    assert whole.von_mises_stress.data.npartitions == 3


def test_a_percentile_over_the_whole_split(whole: Any, small_cases: Any) -> None:
    """The example of the README."""
    lazy = whole.von_mises_stress.chunk(point=-1).quantile([0.5, 0.99])
    assert dask.is_dask_collection(lazy.data)
    values = np.concatenate([case.fields["von_mises_stress"] for case in small_cases["train"]])
    np.testing.assert_allclose(lazy.compute(), np.quantile(values.astype(np.float64), [0.5, 0.99]), rtol=1e-6)
    assert float(whole.von_mises_stress.max()) == values.max()


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_it_can_be_written_again(tmp_path: Path) -> None:
    """From parts of different lengths, none of which is a multiple of the chunks that they are cut into."""
    write_dataset(tmp_path, {"train": [make_case(seed, 60 + 4000 * seed) for seed in range(7)]}, formats=["zarr"])
    whole = open_zarr(str(tmp_path))
    whole.to_zarr(tmp_path / "again.zarr")
    again = xarray.open_zarr(tmp_path / "again.zarr")
    xarray.testing.assert_identical(again.load(), whole.load())
    assert again.von_mises_stress.encoding["compressors"] == whole.von_mises_stress.encoding["compressors"]
    stored = sum(path.stat().st_size for path in (tmp_path / "again.zarr").rglob("*") if path.is_file())
    parts = sum(path.stat().st_size for path in (tmp_path / "lpbf.zarr").rglob("*") if path.is_file())
    assert stored < 1.1 * parts
    whole.isel(case=slice(3)).to_zarr(tmp_path / "some.zarr")


def test_what_is_not_there_is_told(small_dataset: Path, published_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no split 'extra'; it has: train, validation, test"):
        open_zarr(str(small_dataset), "extra")
    with pytest.raises(StoreError, match=r"has no manifest\.parquet"):
        open_zarr(str(published_dataset), "train")
    write_dataset(tmp_path, {"train": [make_case(1)]}, formats=["parquet"])
    with pytest.raises(StoreError, match="has no Zarr parts"):
        open_zarr(str(tmp_path), "train")


def test_scalars_of_cases_have_their_names_whichever_way_a_part_holds_them(small_dataset: Path, tmp_path: Path) -> None:
    """In tables, or in an array each as parts of before do; a data set that grew holds both."""
    mixed = tmp_path / "mixed"
    shutil.copytree(small_dataset, mixed)
    rows = {record.case_id: record for record in decode_manifest((mixed / "manifest.parquet").read_bytes()).records}
    path = min((mixed / "lpbf.zarr" / "train").glob("0*"))
    assert len([file for file in path.rglob("*") if file.is_file()]) == 29  # 14 arrays of two files, and the group
    group = zarr.open_group(path, mode="r+")
    for table in ("measures", "labels"):
        for name, values in zip(group[table].attrs["components"].split(), group[table][:], strict=True):
            known = "string" if table == "labels" else int if name == "num_edges" else float
            array = group.create_array(name, shape=values.shape, dtype=known, dimension_names=("case",))
            array[...] = values if known == "string" else values.astype(known)
        shutil.rmtree(path / table)
    assert group.attrs.asdict().pop(LAYOUT_NAME) == 2
    group.attrs.put({name: value for name, value in group.attrs.items() if name != LAYOUT_NAME})
    old, new = ZarrPart(path), ZarrPart(small_dataset / path.relative_to(mixed))
    for row in range(len(old)):
        assert_same(old.read_case(row), new.read_case(row))
    for folder in (small_dataset, mixed):
        whole = open_zarr(str(folder), "train")
        assert not {"measures", "labels"} & set(whole.data_vars)
        assert set(ATTRIBUTE_TYPES) <= set(whole.data_vars)
        for number, case_id in enumerate(whole.case_id.values.tolist()):
            measures = rows[case_id].measures
            assert measures is not None
            assert float(whole.height[number]) == measures.height
            assert int(whole.num_edges[number]) == measures.num_edges
            assert whole.design_id.values[number] == rows[case_id].design_id


def test_a_part_of_a_later_version_is_refused(small_dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "later"
    shutil.copytree(small_dataset, folder)
    path = max((folder / "lpbf.zarr" / "train").glob("0*"))
    zarr.open_group(path, mode="r+").attrs[LAYOUT_NAME] = 3
    words = r"Zarr part .* has layout 3, this package reads 1 to 2; upgrade the package"
    for read in (lambda: ZarrPart(path), lambda: open_zarr(str(folder), "train")):
        with pytest.raises(SchemaError, match=words):
            read()


def test_importing_the_package_loads_no_torch() -> None:
    program = "import lpbf_data, sys; print(sorted({'torch', 'torch_geometric', 'xarray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
