"""Writes the golden data set of the present schema version: it is kept for ever, and never written again.

    python -m tests.make_golden

Call it after SCHEMA_VERSION has been raised, and commit the folder that it prints.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from lpbf_data import load_dataset
from lpbf_data.case.schema import SCHEMA_VERSION
from pipelines.build import run_build
from tests.netfabb_cases import TERMINATED, Part, write_part
from tests.pipelines.test_build import request

GOLDEN = Path(__file__).parent / "golden"


def digests(root: Path, split: str, *, streaming: bool = False) -> dict[str, dict[str, str]]:
    """Type, shape and SHA-256 of the bytes of each array of each case of a split."""
    found = {}
    for sample in load_dataset(str(root), split=split, format="torch", fields="all", edges=True, streaming=streaming):
        arrays = {name: value.numpy() for name, value in sample.items() if hasattr(value, "numpy")}
        found[str(sample["case_id"])] = {
            name: f"{array.dtype} {list(array.shape)} {hashlib.sha256(np.ascontiguousarray(array)).hexdigest()}"
            for name, array in sorted(arrays.items())
        }
    return found


def main() -> None:
    folder = GOLDEN / f"v{SCHEMA_VERSION}"
    if folder.exists():
        sys.exit(f"{folder} is there already: a golden data set is never written again")
    with tempfile.TemporaryDirectory() as scratch:
        src = Path(scratch) / "netfabb_out"
        for i in range(3):
            write_part(src, Part(f"{100 + i}_11b839a{i}_1", shape=(2 + i, 3, 2 + i % 2), amplitude=0.1 + i / 50))
        write_part(src, Part("900_deadbeef_1", verdict=TERMINATED))
        out = folder / "lpbf"
        run_build(request(src, out, fields=["all"], splits="train=0.4,validation=0.3,test=0.3"))
        shutil.rmtree(out / ".build")
    expected = {split: digests(out, split) for split in ("train", "validation", "test")}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {folder}: {sum(len(cases) for cases in expected.values())} cases")


if __name__ == "__main__":
    main()
