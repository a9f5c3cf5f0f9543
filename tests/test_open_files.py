"""Many parts under a small limit of open files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lpbf_data.errors import StoreError
from lpbf_data.schema import FIELDS
from lpbf_data.zarr_store import ZarrPart, write_part
from tests.data_support import make_case

PROGRAM = """
import resource, sys
from pathlib import Path

import numpy as np

from lpbf_data.zarr_store import ZarrPart
from tests.test_open_files import PARTS, expected_points

assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256
parts = [ZarrPart(Path(sys.argv[1]) / f"{number % 3}") for number in range(PARTS)]
for turn in range(2):
    for number, part in enumerate(parts):
        case = part.read_case(0)
        assert np.array_equal(case.points, expected_points(number % 3)), number
others = [open(sys.argv[0] if False else __file__) for _ in range(100)] if False else []
print("read", len(parts))
"""
PARTS = 300


def expected_points(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return make_case(f"c{number}", seed=number).points


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    for number in range(3):
        write_part(tmp_path / f"{number}", [make_case(f"c{number}", seed=number)], [FIELDS["temperature"]])
    return tmp_path
