"""Files of the cache: what was written comes back, and nothing that was altered or cut is taken for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpbf_data.stores.arrow import map_arrays, write_arrays
from lpbf_data.stores.selection import Arrays

SMALL: Arrays = {
    "pos": np.arange(27, dtype=np.float32).reshape(9, 3),
    "y": np.linspace(0, 1, 9, dtype=np.float32)[:, None],
    "cells": np.arange(16).reshape(2, 8),
    "edge_index": np.arange(20).reshape(2, 10),
}


def assert_same(first: Arrays, second: Arrays) -> None:
    assert list(first) == list(second)
    for name, values in first.items():
        assert values.dtype == second[name].dtype
        np.testing.assert_array_equal(values, second[name], strict=True)


@given(rows=st.integers(1, 300), cells=st.integers(1, 40), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arrays_come_back_mapped_and_read_only(tmp_path: Path, rows: int, cells: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = {"pos": rng.random((rows, 3), np.float32), "cells": rng.integers(0, 2**40, (cells, 8))}
    arrays["planar"] = rng.random((4, rows), np.float32).T  # not in C order
    write_arrays(tmp_path / "a.arrow", arrays, "stamp")
    before = pa.total_allocated_bytes()
    found = map_arrays(tmp_path / "a.arrow", "stamp")
    assert pa.total_allocated_bytes() - before < 4096  # headers; the values stay in the file
    assert_same(found, arrays)
    assert not any(values.flags.writeable for values in found.values())


def test_another_stamp_is_out_of_date(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.arrow", SMALL, "stamp")
    with pytest.raises(ValueError, match="out of date"):
        map_arrays(tmp_path / "a.arrow", "another stamp")


def test_no_altered_or_cut_file_is_taken_for_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_arrays(path, SMALL, "stamp")
    whole = path.read_bytes()
    altered = [whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :] for i in range(len(whole)) for flip in (1, 0x80)]
    cut = [whole[:size] for size in range(0, len(whole), 7)]
    refused = 0
    for content in altered + cut:
        path.unlink()  # what is mapped must not change under the reader
        path.write_bytes(content)
        try:
            found = map_arrays(path, "stamp")
        except (ValueError, OSError):
            refused += 1
        else:
            # Padding, and parts of the header that are there twice, may differ without harm.
            assert_same(found, SMALL)
    assert refused >= len(cut) + sum(values.nbytes for values in SMALL.values()) * 2
