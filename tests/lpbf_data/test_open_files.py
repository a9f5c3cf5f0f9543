"""Many shards under a small limit of open files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lpbf_data.errors import StoreError
from lpbf_data.stores.zarr_parts import ZarrPart, write_part
from tests.data_support import SPECS, make_case, write_dataset

PROGRAM = """
import random, sys

import numpy as np

from lpbf_data.file_access.folder import DatasetFolder
from lpbf_data.reading.split_reader import SplitReader
from tests.data_support import make_case

readers = [SplitReader(DatasetFolder(sys.argv[1]), split) for split in ("train", "test", "train")]
for turn in range(2):
    order = [(reader, index) for reader in readers for index in range(len(reader))]
    random.Random(turn).shuffle(order)
    for reader, index in order:
        case = reader.read(index, reader.field_specs)
        seed = int(case.case_id.split("_")[0])
        if turn == 0:
            continue
        assert np.array_equal(case.points, make_case(seed, 20).points)
files = [open(sys.argv[2]) for _ in range(40)]
print(sum(len(reader) for reader in readers))
"""


@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="ulimit")
@pytest.mark.parametrize(
    ("layout", "count"), [("zarr", 60), ("parquet", 150), pytest.param("zarr", 150, marks=pytest.mark.slow)]
)
def test_more_parts_than_open_files(tmp_path: Path, layout: str, count: int) -> None:
    """Read in any order, from several readers of one process, with descriptors left for others.

    A Zarr part has 14 arrays of a file each, so that reading points, target and fields of 60 parts needs far more than
    the 256 descriptors that are allowed, and that of 150 still more. If every array stayed open, this would fail at the
    twentieth part.
    """
    splits = {"train": range(count - 20), "test": range(count - 20, count)}
    cases = {split: [make_case(seed, 20) for seed in seeds] for split, seeds in splits.items()}
    write_dataset(tmp_path, cases, shards=count, formats=[layout])
    assert layout != "zarr" or len(list(tmp_path.glob("lpbf.zarr/*/*/*/c"))) == 14 * count
    words = f'ulimit -n 256 && exec "{sys.executable}" -c "$PROGRAM" "{tmp_path}" "{__file__}"'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PROGRAM": PROGRAM}
    done = subprocess.run(["bash", "-c", words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(2 * (count - 20) + 20)]


@pytest.mark.skipif(not hasattr(os, "pread"), reason="Windows reads by way of zarr-python")
def test_a_part_that_is_replaced_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that isn't kept open could be another one at the next read; its index would be that of the old one."""
    import lpbf_data.stores.zarr_direct_reader

    monkeypatch.setattr(lpbf_data.stores.zarr_direct_reader, "_MAX_OPEN", 0)
    cases = [make_case(seed) for seed in (1, 2)]
    write_part(tmp_path / "part", cases, SPECS)
    part = ZarrPart(tmp_path / "part")
    np.testing.assert_array_equal(part.read_case(1).points, cases[1].points)
    write_part(tmp_path / "other", [make_case(seed) for seed in (3, 4)], SPECS)
    shutil.rmtree(tmp_path / "part")
    (tmp_path / "other").rename(tmp_path / "part")
    with pytest.raises(StoreError, match="was replaced while it was read; open the data set again"):
        part.read_case(1)
