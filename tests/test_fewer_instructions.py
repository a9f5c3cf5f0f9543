"""Tests that `tests.fewer_instructions` limits every library's instructions: `make numeric` depends on it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SAYING = """
import json, numpy._core._multiarray_umath as m, scipy.linalg, threadpoolctl, torch
torch.ones(64, 64) @ torch.ones(64, 64)
print(json.dumps({
    "torch": torch.backends.cpu.get_cpu_capability(),
    "openblas": [i["architecture"] for i in threadpoolctl.threadpool_info() if i.get("internal_api") == "openblas"],
    "numpy": [f for f in m.__cpu_dispatch__ if m.__cpu_features__.get(f)],
}))
"""


@pytest.mark.skipif(platform.machine().lower() not in {"x86_64", "amd64"}, reason="other processors have no AVX")
@pytest.mark.parametrize(
    ("capability", "torch_says", "openblas", "mkl"),
    [("avx2", "AVX2", "Haswell", "(Intel(R) AVX2)"), ("default", "DEFAULT", "Nehalem", "(Intel(R) SSE4.2)")],
)
def test_every_library_keeps_to_fewer_instructions(capability: str, torch_says: str, openblas: str, mkl: str) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fewer_instructions",
        capability,
        sys.executable,
        "-W",
        "error",
        "-c",
        SAYING,
    ]
    environment = os.environ | {"MKL_VERBOSE": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["torch"] == torch_says
    assert found["openblas"]
    assert set(found["openblas"]) == {openblas}
    assert not any(feature.startswith(("AVX512", "X86_V4")) for feature in found["numpy"])
    assert capability == "avx2" or not any("AVX" in feature for feature in found["numpy"])
    if torch.backends.mkl.is_available():
        versions = [line for line in said if "oneMKL" in line]
        assert versions, said
        # On processors that aren't Intel's, MKL uses other code and names no instructions.
        assert all(mkl in line or "(Intel(R)" not in line for line in versions), said


def test_another_word_is_one_sentence() -> None:
    command = [sys.executable, "-m", "tests.fewer_instructions", "avx3", "true"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr == "the first word must be one of avx2, default\n"


@pytest.mark.parametrize(("capability", "none_more"), [("avx2", {"DEFAULT", "AVX2"}), ("default", {"DEFAULT"})])
def test_what_would_only_be_done_again_is_left_out(capability: str, none_more: set[str]) -> None:
    command = [sys.executable, "-m", "tests.fewer_instructions", "--if-fewer", capability]
    done = subprocess.run(
        [*command, sys.executable, "-c", "print('done again')"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    asked = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    ask = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"]
    left_out = subprocess.run(ask, env=asked, capture_output=True, text=True, check=True).stdout.strip() in none_more
    assert ("would only do the same again" in done.stdout) == left_out
    assert ("done again" in done.stdout) == (not left_out)
